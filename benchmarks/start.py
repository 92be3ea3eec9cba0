"""What a whole command costs, from the shell and back: start, memory, CPU time, and a longer file.

    python benchmarks/start.py                                  # engines that ship, 1 s and 60 s
    python benchmarks/start.py --before ../other-checkout       # beside another version of the code
    python benchmarks/start.py --backends ort,openvino-bf16 --seconds 1,60,3600 --rounds 3

Each case is a fresh ``dvpd enhance`` of a recording made of the shipped example. Cases take turns, so
that whatever else the machine does meets all of them; figures are medians, ratios medians of each
round's ratio to the first case of the same model and length. With ``--before`` outputs are compared
bit by bit. The first run of each case compiles modules and fills the disk's cache: it is not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import machine, tables
from dvpd.runtime import command
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.files import write_whole
from dvpd.runtime.progress import show_status

FORMAT = "dvpd-start-1"
HERE = Path(__file__).resolve().parent.parent
LENGTHS_S = (1.0, 60.0)
MODELS = ("dvpd-tiny", "dvpd-base")


@dataclass
class Case:
    """One command, and what its runs took.

    Attributes:
        code: Checkout that it is run from.
        backend: Inference engine.
        model: Engine name.
        seconds: Of audio.
        wall_s: From the start of the process to its end, each run.
        cpu_s: Of all threads, user and system.
        peak_mib: Most memory.
        sha256: Of the output; one value if all runs agree.
    """

    code: str
    backend: str
    model: str
    seconds: float
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    sha256: set[str] = field(default_factory=set)


def write_recording(path: Path, seconds: float) -> None:
    """Write the shipped example, repeated to a length.

    Args:
        path: 16-bit WAV to write.
        seconds: Its length.
    """
    wav, rate = soundfile.read(HERE / "examples" / "noisy.flac", dtype="int16")
    left = round(seconds * rate)
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        while left > 0:
            file.write(wav[:left])
            left -= min(left, len(wav))


def run_once(case: Case, source: Path, folder: Path, words: Sequence[str]) -> None:
    """Run a case's command and add what it took.

    Args:
        case: What to run.
        source: The recording.
        folder: For the output and compiled modules.
        words: More options of the command.

    Raises:
        BackendError: The command failed.
    """
    target = folder / "out.wav"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPATH": case.code, "PYTHONPYCACHEPREFIX": str(folder / "modules")}
    call = [sys.executable, "-m", "dvpd", "enhance", str(source), str(target), "--overwrite"]
    call += ["--model", str(Path(case.code) / "engines" / case.model), "--backend", case.backend]
    begin = time.perf_counter()
    with open(folder / "said.txt", "w+b") as said:
        child = subprocess.Popen([*call, *words], stdout=said, stderr=said, env=env, cwd=folder)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begin
        said.seek(0)
        text = said.read().decode(errors="replace").strip()
    if child.returncode:
        raise BackendError(f"{case.model} on {case.backend} from {case.code} failed: {text}")
    case.wall_s.append(wall)
    case.cpu_s.append(usage.ru_utime + usage.ru_stime)
    case.peak_mib.append(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
    case.sha256.add(hashlib.sha256(target.read_bytes()).hexdigest())


def measure(cases: Sequence[Case], rounds: int, words: Sequence[str]) -> None:
    """Run all cases in turn, so many times, after one run of each that is not counted.

    Args:
        cases: Filled in place.
        rounds: Counted runs of each.
        words: More options of the command.
    """
    with tempfile.TemporaryDirectory() as name:
        sources = {case.seconds: Path(name) / f"{case.seconds:g}.wav" for case in cases}
        for seconds, source in sources.items():
            write_recording(source, seconds)
        for index in range(rounds + 1):
            for number, case in enumerate(cases, 1):
                show_status(f"round {index} of {rounds}, case {number} of {len(cases)}")
                run_once(case, sources[case.seconds], Path(name), words)
                if index == 0:
                    for values in (case.wall_s, case.cpu_s, case.peak_mib):
                        values.clear()


def summarise(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Medians of each case, and of its ratios to the first of the same model and length."""
    rows = []
    for case in cases:
        same = [c for c in cases if (c.model, c.seconds) == (case.model, case.seconds)]
        row = asdict(case) | {"sha256": sorted(case.sha256)}
        row["same_output"] = case.sha256 == same[0].sha256 and len(case.sha256) == 1
        for name in ("wall_s", "cpu_s", "peak_mib"):
            values, first = getattr(case, name), getattr(same[0], name)
            row[f"{name}_median"] = statistics.median(values)
            row[f"{name}_ratio"] = statistics.median(
                a / b for a, b in zip(values, first, strict=True)
            )
        rows.append(row)
    return rows


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown."""
    head = ("audio, s", "model", "backend", "code", "wall, s", "CPU, s", "peak, MiB", "ratios")
    lines = []
    for row in rows:
        ratios = " / ".join(f"{row[f'{k}_ratio']:.2f}" for k in ("wall_s", "cpu_s", "peak_mib"))
        lines.append(
            [
                f"{row['seconds']:g}",
                row["model"],
                row["backend"],
                row["code"],
                f"{row['wall_s_median']:.2f}",
                f"{row['cpu_s_median']:.2f}",
                f"{row['peak_mib_median']:.0f}",
                ratios + ("" if row["same_output"] else ", another output"),
            ]
        )
    return tables.markdown(head, lines)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout, first case")
    parser.add_argument("--models", default=",".join(MODELS), metavar="LIST")
    parser.add_argument("--backends", default="ort", metavar="LIST")
    parser.add_argument("--seconds", default="1,60", metavar="LIST", help="lengths of recordings")
    parser.add_argument("--rounds", type=command.whole(1), default=5, metavar="N")
    parser.add_argument("--threads", type=command.whole(1), metavar="N")
    parser.add_argument("--steps", type=command.whole(0), metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


def find_cases(args: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for.

    Raises:
        InputError: A length is no number, or a folder is no checkout.
    """
    codes = [str(path.resolve()) for path in (args.before, HERE) if path is not None]
    for code in codes:
        if not (Path(code) / "dvpd" / "__main__.py").is_file():
            raise InputError(
                f"{code}: is no checkout of dvpd; give the folder that has dvpd/ in it"
            )
    try:
        lengths = [float(text) for text in args.seconds.split(",")]
    except ValueError:
        lengths = [0.0]
    if not all(np.isfinite(lengths)) or min(lengths) <= 0.0:
        raise InputError(f"--seconds is {args.seconds!r}; expected lengths (s), such as 1,60")
    return [
        Case(code, backend, model, seconds)
        for seconds in lengths
        for model in args.models.split(",")
        for backend in args.backends.split(",")
        for code in codes
    ]


def _main(args: argparse.Namespace) -> None:
    cases = find_cases(args)
    words = [] if args.threads is None else ["--threads", str(args.threads)]
    words += [] if args.steps is None else ["--steps", str(args.steps)]
    measure(cases, args.rounds, words)
    rows = summarise(cases)
    print(render(rows))
    if args.json is not None:
        report = {
            "format": FORMAT,
            "created": machine.now(),
            "machine": machine.machine(),
            "rows": rows,
        }
        write_whole(args.json, json.dumps(report, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: Arguments; None for those of the process.
    """
    return command.run(build_parser(), argv, _main)


if __name__ == "__main__":
    command.leave(main())
