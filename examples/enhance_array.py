"""Enhance a waveform in memory: ``python examples/enhance_array.py noisy.wav clean.wav``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dvpd.runtime import Enhancer, audio, command


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--model", help="name or folder (default: dvpd-base, else dvpd-tiny)")
    parser.add_argument("--steps", type=command.whole(0), help="0: the predictive network alone")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> None:
    wav, sample_rate = audio.read_whole(args.input)  # float32 [samples, channels]
    with Enhancer.open(args.model) as enhancer:
        result = enhancer.enhance(wav, sample_rate, steps=args.steps)
    print(result)
    print(f"wrote {result.save(args.output)}")


if __name__ == "__main__":
    command.leave(main())
