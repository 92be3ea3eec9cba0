"""Does the loader keep up? Crops a second of the loader alone, of a training step alone, of both.

    python benchmarks/loader.py dvpd/configs/tiny.toml --data DATA --workers 0 1 2 --threads 1

The three are measured in turn in each round; the figures are medians over the rounds. "Alone" is a
step on one batch that is always the same. "Both" begins with an empty queue; "waiting" is the share
of its time that the step waited for its batch. Without --data the crops are mixed from
examples/: the cost of mixing is the same, that of reading a large corpus is left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import soundfile as sf
import torch
from torch import Tensor

from dvpd.benchmarks.common.machine import machine
from dvpd.benchmarks.common.tables import show
from dvpd.config import Config, load_toml, override
from dvpd.data import open_source
from dvpd.data.loader import PairSource, batches
from dvpd.data.mix import Mixer
from dvpd.data.pool import Pool
from dvpd.runtime import command
from dvpd.runtime.errors import UsageError
from dvpd.runtime.files import write_whole
from dvpd.runtime.progress import track
from dvpd.runtime.spec import SAMPLE_RATE
from dvpd.training.parallel import Team
from dvpd.training.trainer import Trainer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Figures:
    """What one number of workers gives; medians over the rounds.

    Attributes:
        workers: Processes that mix; 0 mixes in the training process.
        loader_crops_per_s: The loader alone.
        step_crops_per_s: Training steps alone.
        both_crops_per_s: Training as it is.
        waiting: Share of that time spent waiting for a batch.
    """

    workers: int
    loader_crops_per_s: float
    step_crops_per_s: float
    both_crops_per_s: float
    waiting: float


def _batches(config: Config, source: PairSource, workers: int, device: str) -> Batches:
    # Nothing keeps the iterator beyond the call that it is made for: its workers end with it, and
    # do not run beside the next measurement.
    train = config.train
    stream = batches(
        source,
        seed=train.seed,
        batch_size=train.batch_size,
        epoch_crops=train.epoch_crops,
        workers=workers,
        pin_memory=torch.device(device).type == "cuda",
    )
    next(stream)  # the workers are up
    return stream


def _time_loader(stream: Batches, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        next(stream)
    return time.perf_counter() - started


def _time_steps(trainer: Trainer, stream: Batches, steps: int) -> tuple[float, float]:
    """Seconds of the steps, and how many of them passed in waiting for a batch."""
    started, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - asked
        trainer.train_step(*batch)  # reads the loss: the device has finished
    return time.perf_counter() - started, waited


def measure(
    config: Config,
    source: PairSource,
    *,
    device: str = "cpu",
    workers: tuple[int, ...] = (0, 1),
    steps: int = 10,
    rounds: int = 3,
) -> list[Figures]:
    """Measure the three rates for each number of workers.

    Args:
        config: Gives the networks, the batch and the chain of degradations.
        source: Makes the pairs.
        device: torch device.
        workers: Numbers of workers to try.
        steps: Batches in each measurement.
        rounds: Measurements of each.
    """
    size = config.train.batch_size
    seconds: dict[tuple[int, str], list[float]] = {}
    waits: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, source, folder, team=Team(device))
        fixed = next(_batches(config, source, 0, device))
        trainer.train_step(*fixed)  # compiles, allocates
        for _ in track(range(rounds), "measuring", rounds):
            alone, _ = _time_steps(trainer, iter([fixed] * steps), steps)
            for n in workers:
                loader = _time_loader(_batches(config, source, n, device), steps)
                both, waited = _time_steps(trainer, _batches(config, source, n, device), steps)
                for what, value in (("alone", alone), ("loader", loader), ("both", both)):
                    seconds.setdefault((n, what), []).append(value)
                waits.setdefault(n, []).append(waited / both)

    def rate(n: int, what: str) -> float:
        return steps * size / statistics.median(seconds[n, what])

    return [
        Figures(
            n, rate(n, "loader"), rate(n, "alone"), rate(n, "both"), statistics.median(waits[n])
        )
        for n in workers
    ]


def example_source(config: Config) -> Mixer:
    """Crops from the clip in ``examples/`` and its own noise."""
    clean, noisy = (
        sf.read(EXAMPLES / f"{name}.flac", dtype="float32")[0] for name in ("clean", "noisy")
    )
    speech = Pool.from_arrays([("example", clean)])
    noise = Pool.from_arrays([("example", noisy[: len(clean)] - clean[: len(noisy)])])
    return Mixer(config.data, speech, noise)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/loader.py", description="Speed of the loader and of the training step."
    )
    parser.add_argument("config", help="TOML file of a training")
    parser.add_argument("--data", help="training data as for dvpd.train (default: examples/)")
    parser.add_argument("--cache", help="folder for decoded audio (default: in memory)")
    parser.add_argument(
        "--workers", type=command.whole(0), nargs="+", default=[0, 1, 2], metavar="N"
    )
    parser.add_argument("--threads", type=command.whole(0), default=0, help="CPU threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--steps", type=command.whole(1), default=10, help="batches in a measurement"
    )
    parser.add_argument(
        "--rounds", type=command.whole(1), default=3, help="measurements of each kind"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--set", action="append", default=[], metavar="T.K=V", dest="settings",
        help="override a key of the config, e.g. train.batch_size=32",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _measure)


def _measure(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    report = _run(args)
    if args.json:
        write_whole(Path(args.json), json.dumps(report, indent=2) + "\n")
    return 0


def _run(args: argparse.Namespace) -> dict[str, Any]:
    for name, least in (("steps", 1), ("rounds", 1), ("threads", 0)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name} is {getattr(args, name)}; expected at least {least}")
    if min(args.workers) < 0:
        raise UsageError(f"--workers is {args.workers}; expected no negative number")
    if args.threads:
        torch.set_num_threads(args.threads)
    config = load_toml(args.config)
    with command.usage():
        config = override(config, args.settings)
    if args.data:
        source: PairSource = open_source(config, args.data, args.cache)
    else:
        source = example_source(config)
    figures = measure(
        config,
        source,
        device=args.device,
        workers=tuple(args.workers),
        steps=args.steps,
        rounds=args.rounds,
    )
    crop_s = config.data.crop_samples / SAMPLE_RATE
    report = {
        "config": str(args.config),
        "data": args.data or "examples",
        "device": args.device,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "torch": torch.__version__,
        "batch_size": config.train.batch_size,
        "crop_s": crop_s,
        "steps": args.steps,
        "rounds": args.rounds,
        "rows": [asdict(f) for f in figures],
    }
    show(
        f"{args.config}, {args.device}, {report['threads']} threads, {config.train.batch_size} "
        f"crops of {crop_s:.2f} s a step, data: {report['data']}",
        ("workers", "loader crops/s", "step crops/s", "both crops/s", "waiting %", "loader / step"),
        [
            (
                f.workers,
                f.loader_crops_per_s,
                f.step_crops_per_s,
                f.both_crops_per_s,
                100.0 * f.waiting,
                f.loader_crops_per_s / f.step_crops_per_s,
            )
            for f in figures
        ],
    )
    return report


if __name__ == "__main__":
    command.leave(main())
