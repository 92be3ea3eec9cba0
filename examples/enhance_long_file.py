"""Enhance a long recording with little memory, and show progress.

python examples/enhance_long_file.py            # ten minutes, made from noisy.flac
python examples/enhance_long_file.py lecture.wav clean.wav
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import soundfile

from dvpd.runtime import Enhancer, command
from dvpd.runtime.progress import Progress

SHORT = Path(__file__).resolve().parent / "noisy.flac"


def make_long(path: Path, minutes: float) -> None:
    """Write ``SHORT`` again and again, block by block."""
    wav, rate = soundfile.read(SHORT, dtype="float32")
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        left = int(minutes * 60 * rate)
        while left > 0:
            file.write(wav[:left])
            left -= len(wav)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("input", nargs="?", type=Path)
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument(
        "--minutes",
        type=command.number(above=True),
        default=10.0,
        help="of the recording that is made",
    )
    parser.add_argument("--model", default="dvpd-tiny")
    parser.add_argument("--steps", type=command.whole(0))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder, Enhancer.open(args.model) as enhancer:
        source = args.input or Path(folder) / "long.flac"
        if args.input is None:
            make_long(source, args.minutes)
        target = args.output or Path(folder) / "clean.flac"
        with Progress(source.name) as progress:
            done = enhancer.enhance_file(source, target, steps=args.steps, progress=progress)
    print(f"{done.duration_s:.0f} s of audio, real-time factor {done.rtf:.3f}")


if __name__ == "__main__":
    command.leave(main())
