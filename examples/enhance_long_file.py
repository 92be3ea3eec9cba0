"""Enhance a long recording with little memory, and show progress.

python examples/enhance_long_file.py            # ten minutes, made from noisy.flac
python examples/enhance_long_file.py lecture.wav clean.wav
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import soundfile

from dvpd.runtime import Enhancer

SHORT = Path(__file__).resolve().parent / "noisy.flac"


def make_long(path: Path, minutes: float) -> None:
    """Write ``SHORT`` again and again, block by block."""
    wav, rate = soundfile.read(SHORT, dtype="float32")
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        left = int(minutes * 60 * rate)
        while left > 0:
            file.write(wav[:left])
            left -= len(wav)


def show(fraction: float) -> None:
    """A line on the terminal that counts."""
    print(f"\r{fraction:4.0%}", end="", file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("input", nargs="?", type=Path)
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the recording that is made")
    parser.add_argument("--model", default="dvpd-tiny")
    parser.add_argument("--steps", type=int)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, Enhancer.open(args.model) as enhancer:
        source = args.input or Path(folder) / "long.flac"
        if args.input is None:
            make_long(source, args.minutes)
        target = args.output or Path(folder) / "clean.flac"
        done = enhancer.enhance_file(source, target, steps=args.steps, progress=show)
    print(f"\n{done.duration_s:.0f} s of audio, real-time factor {done.rtf:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
