"""Training of both branches: ``python -m dvpd.train CONFIG.toml --data DIR --out DIR``.

On several GPUs or machines: ``torchrun --nproc-per-node N -m dvpd.train ...`` with the same
arguments, in a folder that all of them see. The config's batch_size is that of all processes
together; its workers are those of each.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load_model
from .config import Config, load_toml, override
from .data import open_source
from .data.loader import PairSource
from .data.mix import Mixer
from .data.paired import PairedSource
from .data.pool import Pool
from .model import DVPD
from .runtime import command
from .runtime.errors import InputError, UsageError
from .runtime.progress import Progress
from .training.log import Example, TensorBoard, make_display
from .training.parallel import join_team
from .training.start import read_start
from .training.state import StateFiles
from .training.trainer import LAST_NAME, Evaluate, Trainer, read_state

TENSORBOARD_NAME = "tensorboard"
N_EXAMPLES = 3
SOURCES_SHOWN = 6
EXAMPLE_SAMPLES = 80_000  # 5 s: each look at the examples adds about a megabyte


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dvpd.train", description="Train DVPD.")
    parser.add_argument("config", help="TOML file")
    parser.add_argument(
        "--data", required=True,
        help="folder with speech/, noise/ and, if there, rir/; or with noisy/ and clean/",
    )  # fmt: skip
    parser.add_argument("--out", required=True, help="folder for state, checkpoints and log")
    parser.add_argument("--cache", help="folder for decoded audio (default: OUT/../cache)")
    parser.add_argument("--dev", help="folder with noisy/ and clean/ for --set train.eval_minutes")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    parser.add_argument("--init", metavar="CKPT", help="start from these weights")
    parser.add_argument(
        "--keep", metavar="CKPT",
        help="with train.keep_speech: the weights whose output on speech is to stay as it is",
    )  # fmt: skip
    parser.add_argument(
        "--max-minutes", type=command.number(), default=0.0, help="save and stop after this"
    )
    parser.add_argument("--threads", type=command.whole(0), default=0, help="CPU threads of torch")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument(
        "--tensorboard", action="store_true",
        help="write OUT/tensorboard: figures, and examples at evaluation times",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="T.K=V", dest="settings",
        help="override a key of the config, e.g. train.minutes=30",
    )  # fmt: skip
    return parser


class _Decoding:
    """Progress of decoding, a display for each kind of recordings."""

    def __init__(self) -> None:
        self._shown: dict[str, Progress] = {}

    def __call__(self, kind: str, done: int, total: int) -> None:
        if kind not in self._shown:
            self._shown[kind] = Progress(f"decoding {kind}")
        self._shown[kind](done / max(total, 1), f"{done} of {total}")
        if done == total:
            self._shown.pop(kind).close()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    config = load_toml(args.config)
    with command.usage():
        config = override(config, args.settings)
    out = Path(args.out)
    files = StateFiles(out)
    if files.exist() and not args.resume:
        raise UsageError(f"{files.newest} exists; use --resume, or another --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; expected a folder")
    _warn_of_unused(args, config)
    teacher = _teacher(args.keep, config) if args.keep else None
    if args.init and not args.resume:
        read_start(args.init, config)
    cache = Path(args.cache) if args.cache else out.parent / "cache"
    team = join_team(args.device)
    with team.lead_first():  # one process decodes, the others map what it wrote
        if args.resume:  # what cannot go on says so before an hour of decoding
            read_state(files, config, torch.device("cpu"))
        source = open_source(config, args.data, cache, _Decoding())
    if team.rank == 0:
        command.say(found_in(source))
    trainer = Trainer(config, source, out, team=team, evaluate=_evaluation(args, config))
    if teacher is not None:
        trainer.objective.keep(teacher)
    if args.init and not args.resume:
        trainer.init_from(args.init)
    if args.resume:
        trainer.resume()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    watchers: list[Any] = []
    try:
        for name in handlers:
            signal.signal(name, lambda *_: trainer.stop())
        if team.rank == 0:
            watchers = _watch(trainer, args)
        trainer.run(args.max_minutes)
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
        for watcher in watchers:
            watcher.close()
    if team.rank == 0:
        command.say(f"saved {out / LAST_NAME} after {trainer.step} steps")
    return 0


def found_in(source: Mixer | PairedSource) -> str:
    """Recordings, hours and source folders of training data, in a line."""
    pools: dict[str, Pool | None] = (
        {"recordings of speech": source.speech, "recordings of noise": source.noise}
        if isinstance(source, Mixer)
        else {"pairs": source.clean}
    )
    parts = []
    for what, pool in pools.items():
        if pool is not None:
            names = ", ".join(pool.sources[:SOURCES_SHOWN])
            more = ", ..." if len(pool.sources) > SOURCES_SHOWN else ""
            parts.append(f"{len(pool)} {what}, {pool.hours:.3g} h ({names}{more})")
    return "; ".join(parts)


def _warn_of_unused(args: argparse.Namespace, config: Config) -> None:
    """Say which options do nothing without another one."""
    if args.dev and not (config.train.eval_minutes or args.tensorboard):
        command.say("--dev is not used: --set train.eval_minutes=10 measures on it")
    # a config may have it for those who have a dev set
    asked = any(setting.startswith("train.eval_minutes") for setting in args.settings)
    if asked and config.train.eval_minutes and not args.dev:
        command.say("train.eval_minutes is not used: --dev DIR names what to measure on")
    if args.resume and args.init:
        command.say("--init is not used: --resume goes on from the weights of the run")


def _teacher(path: str, config: Config) -> DVPD:
    """The networks of a checkpoint whose spectra are those of ``config``."""
    theirs, teacher = load_model(path)
    for what, expected, got in (
        ("train keep_speech", True, config.train.keep_speech),
        ("signal", config.signal, theirs.signal),
    ):
        if got != expected:
            raise UsageError(f"--keep {path}: {what} is {got}; expected {expected}")
    if theirs.model.causal and not config.model.causal:
        raise UsageError(
            f"--keep {path}: model causal is True, of {config.model.name} False; expected weights that "
            "hear as much: an offline model's, or train a causal one"
        )
    return teacher


def _watch(trainer: Trainer, args: argparse.Namespace) -> list[Any]:
    """Show the run as the options ask; returns what must be closed at its end."""
    watchers: list[Any] = []
    if args.tensorboard:
        examples = find_examples(trainer.config, trainer.source, args.dev)
        first_step = trainer.step + 1 if args.resume else 0
        board = TensorBoard(trainer.out / TENSORBOARD_NAME, examples, first_step)
        trainer.show = board.show
        watchers.append(board)
    display = make_display(trainer.config.train)
    watchers.append(display)

    def report(record: dict[str, Any]) -> None:
        for watcher in watchers:
            watcher(record)

    trainer.report = report
    return watchers


def _evaluation(args: argparse.Namespace, config: Config) -> Evaluate | None:
    if not (args.dev and config.train.eval_minutes):
        return None
    from .evaluate import quick_evaluation

    return quick_evaluation(args.dev, config.train.eval_files)


def find_examples(config: Config, source: PairSource, dev: str | Path | None) -> list[Example]:
    """The pairs to look at and listen to: evenly spaced ones of the dev set, or of the training.

    Args:
        config: The whole config.
        source: Makes training pairs.
        dev: A test set, or None.

    Raises:
        InputError: The dev set is unusable.
    """
    if dev is None:
        pairs = [source.pair(config.train.seed, 0, i) for i in range(N_EXAMPLES)]
        named = [(f"train-{i}", *pair) for i, pair in enumerate(pairs)]
    else:
        from .evaluate import find_pairs, read_pair

        found = find_pairs(dev)
        count = min(N_EXAMPLES, len(found))
        chosen = [found[i * len(found) // count] for i in range(count)]
        named = []
        for pair in chosen:
            noisy, clean = read_pair(pair)
            if clean is None:
                raise InputError(f"{dev}: {pair.name} has no clean recording; --dev needs pairs")
            named.append((pair.name, noisy, clean))
    return [(name, a[:EXAMPLE_SAMPLES], b[:EXAMPLE_SAMPLES]) for name, a, b in named]


if __name__ == "__main__":
    command.leave(main())
