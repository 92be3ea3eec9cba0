"""What many files and long ones cost beside the networks, with a network that does nothing.

    python benchmarks/bulk_limits.py engines/dvpd-tiny engines/dvpd-base    # minutes
    python benchmarks/bulk_limits.py engines/dvpd-tiny --files 500,10000 --hours 10 --folder /big/disk
    python benchmarks/bulk_limits.py engines/dvpd-tiny --seconds 0.3,1,5 --files 50,250 --hours 0

Short files: CPU time of a job a file, from two sizes of the job, so that what is done once drops out;
against the CPU time of the networks on such a file; both in turn, medians of the rounds; and where it
goes: the signal (transforms, phase rounds, levels), files and hashes, the journal. Long files: peak
memory of a process that enhances one, against one of a minute; --hours 0 leaves them out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.runtime import command
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.bulk.here import work_here
from dvpd.runtime.bulk.journal import FOLDER, Journal
from dvpd.runtime.bulk.plan import folder_plan
from dvpd.runtime.bulk.pool import Pool
from dvpd.runtime.bulk.run import PARTS, Rules, Run
from dvpd.runtime.bulk.worker import Engine, answer, settle, start_process
from dvpd.runtime.engines import default_engine
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.progress import Progress
from dvpd.runtime.spec import SAMPLE_RATE

SHORT_S, MINUTE = "0.3", 60 * SAMPLE_RATE
TIMES = 9
MIB = 1024.0  # of ru_maxrss, which Linux gives in KiB


class Passing:
    """A network that hands on what it hears.

    Attributes:
        name: "passing".
        device: "cpu".
    """

    name, device = "passing", "cpu"

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """See ``Backend.predict``."""
        clean_ri: FloatArray = noisy[:, :2].copy()
        return clean_ri, ()

    def score(self, xt: FloatArray, *_: Any) -> FloatArray:
        """See ``Backend.score``; it names no noise."""
        return np.zeros_like(xt)

    def close(self) -> None:
        """Nothing is held."""


def serve(pipe: Any, engine: Engine) -> None:
    """``worker.serve`` with the network that does nothing."""
    start_process()
    enhancer = Enhancer(Manifest.load(engine.folder), Passing())
    settle()
    pipe.send(("ready", {"backend": "passing", "device": "cpu"}))
    try:
        while True:
            pipe.send(answer(pipe.recv(), enhancer, engine, pipe.send))
    except EOFError:
        pipe.close()


def sound(n_samples: int, seed: int = 0) -> FloatArray:
    """Noise in syllables, [n_samples] at 16 kHz."""
    rng = np.random.default_rng(seed)
    envelope = np.abs(np.sin(np.arange(n_samples) * (4.0 * np.pi / SAMPLE_RATE)))
    wav: FloatArray = (0.1 * envelope * rng.standard_normal(n_samples)).astype(np.float32)
    return wav


def run_short(folder: Path, engine: Path, n_files: int, seconds: float) -> dict[str, float]:
    """A job of short files in this process and a worker's.

    Args:
        folder: For its files.
        engine: Engine folder, for its manifest.
        n_files: How many.
        seconds: Length of each (s).

    Returns:
        "parent_s" and "worker_s" of CPU, "wall_s", "parent_mib" and "worker_mib" (peaks).
    """
    source, out = folder / "in", folder / "out"
    source.mkdir()
    out.mkdir()
    for i in range(n_files):
        wav = sound(round(seconds * SAMPLE_RATE), i)
        soundfile.write(source / f"{i:06d}.wav", wav, SAMPLE_RATE, "PCM_16")
    started, cpu = time.perf_counter(), time.process_time()
    options = {"steps": 0, "salvage": False}
    plan = folder_plan(source, out, [], False)
    with Journal(out) as journal:
        run = Run(journal, plan, {}, Rules(), out / FOLDER / PARTS, command.say)
        with Pool(1, Engine(engine, "ort", "cpu", 1, False, options, flush=False), serve) as pool:
            work_here(run, pool, Progress("files"))
        if run.counts.done != n_files:
            raise RuntimeError(f"{run.counts.done} of {n_files} files were done")
    workers, own = (
        resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)
    )
    return {
        "parent_s": time.process_time() - cpu,
        "worker_s": workers.ru_utime + workers.ru_stime,
        "wall_s": time.perf_counter() - started,
        "parent_mib": own.ru_maxrss / MIB,
        "worker_mib": workers.ru_maxrss / MIB,
    }


def run_long(folder: Path, engine: Path, minutes: int) -> dict[str, float]:
    """One recording in this process.

    Args:
        folder: For its files.
        engine: Engine folder, for its manifest.
        minutes: Length of the recording.

    Returns:
        "wall_s" and "peak_mib".
    """
    source = folder / "in.wav"
    minute = sound(MINUTE)
    with soundfile.SoundFile(source, "w", SAMPLE_RATE, 1, "PCM_16") as stream:
        for _ in range(minutes):
            stream.write(minute)
    started = time.perf_counter()
    Enhancer(Manifest.load(engine), Passing()).enhance_file(source, folder / "out.wav", steps=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    return {"wall_s": time.perf_counter() - started, "peak_mib": peak}


def network_s(engine: Path, seconds: float) -> dict[str, float]:
    """CPU time of a short file in an enhancer.

    Args:
        engine: Engine folder.
        seconds: Length of the file (s).

    Returns:
        "signal_s" with the passing network; "network_s": what the networks take beside that.
    """
    wav = sound(round(seconds * SAMPLE_RATE))
    manifest = Manifest.load(engine)
    with Enhancer.open(engine, "ort", "cpu", 1) as opened:
        spent = []
        for enhancer, steps in ((opened, None), (Enhancer(manifest, Passing()), 0)) * TIMES:
            before = time.process_time()
            enhancer.enhance(wav, SAMPLE_RATE, steps=steps)
            spent.append(time.process_time() - before)
    whole, signal = (float(np.median(spent[first::2])) for first in (0, 1))
    return {"network_s": whole - signal, "signal_s": signal}


def apart(
    args: argparse.Namespace, engine: Path, kind: str, size: int, seconds: float = 0.0
) -> dict[str, float]:
    """A run in a process of its own, whose peak of memory is its own, too.

    Args:
        args: The command's.
        engine: Engine folder.
        kind: "short", "long" or "networks".
        size: Files, or minutes.
        seconds: Length of a short file.
    """
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        words = [str(engine), "--only", kind, "--size", str(size), "--folder", folder]
        words += ["--seconds", str(seconds)]
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), *words],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bulk_limits.py", description=__doc__.split("\n")[0])
    parser.add_argument("engines", nargs="*", type=Path, help="default: the default engine")
    parser.add_argument("--rounds", type=command.whole(1), default=3, help="of short files")
    parser.add_argument("--seconds", default=SHORT_S, metavar="S,S", help="of a short file")
    parser.add_argument("--files", default="200,2000", metavar="FEW,MANY")
    parser.add_argument("--hours", type=float, default=1.0, help="of the long file")
    parser.add_argument("--folder", type=Path, help="for the files (default: the system's)")
    parser.add_argument("--only", choices=("short", "long", "networks"), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _main)


def print_short(args: argparse.Namespace, engines: Sequence[Path], seconds: float) -> None:
    """Measure short files and print what each engine's networks leave to the rest.

    Args:
        args: The command's.
        engines: Engine folders.
        seconds: Length of a file.
    """
    few, many = sorted(int(n) for n in args.files.split(","))
    rows = []
    for _ in range(args.rounds):
        small, large = (apart(args, engines[0], "short", n, seconds) for n in (few, many))
        networks = [apart(args, engine, "networks", 0, seconds) for engine in engines]
        own = [(large[k] - small[k]) / (many - few) for k in ("parent_s", "worker_s", "wall_s")]
        spent = [found["network_s"] for found in networks]
        rows.append([1e3 * value for value in (*own, networks[0]["signal_s"], *spent)])
    table = np.array(rows)
    parent_ms, worker_ms, wall_ms, signal_ms, *networks_ms = np.median(table, axis=0)
    own_ms = table[:, 0] + table[:, 1]
    print(f"a file of {seconds:g} s: {np.median(own_ms):.2f} ms of CPU and {wall_ms:.2f} ms in all, one "
          "after the other, beside the networks")  # fmt: skip
    print(
        f"  of that: the signal {signal_ms:.2f} ms, files and hashes {worker_ms - signal_ms:.2f} ms, "
        f"plan and journal {parent_ms:.2f} ms"
    )
    shares = np.median(own_ms[:, None] / table[:, 4:], axis=0)
    for engine, spent_ms, share in zip(engines, networks_ms, shares, strict=True):
        print(f"{engine.name}: {spent_ms:.1f} ms of CPU for the networks; beside them {share:.1%}")
    for name in ("parent", "worker"):
        print(
            f"memory of the {name}: {small[f'{name}_mib']:.1f} MiB with {few} files, "
            f"{large[f'{name}_mib']:.1f} MiB with {many}"
        )


def _main(args: argparse.Namespace) -> int:
    engines = args.engines or [default_engine()]
    engine = engines[0]
    if args.only:
        seconds = float(args.seconds)
        if args.only == "networks":
            found = network_s(engine, seconds)
        elif args.only == "short":
            found = run_short(args.folder, engine, args.size, seconds)
        else:
            found = run_long(args.folder, engine, args.size)
        print(json.dumps(found))
        return 0
    for seconds in args.seconds.split(","):
        print_short(args, engines, float(seconds))
    if not args.hours:
        return 0
    minute, hours = (apart(args, engine, "long", n) for n in (1, round(60 * args.hours)))
    print(
        f"a file of {args.hours:g} h: {hours['peak_mib']:.1f} MiB at most, of a minute "
        f"{minute['peak_mib']:.1f} MiB ({hours['peak_mib'] / minute['peak_mib'] - 1.0:+.1%})"
    )
    return 0


if __name__ == "__main__":
    command.leave(main())
