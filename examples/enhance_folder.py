"""Enhance every recording of a folder: ``python examples/enhance_folder.py IN OUT``.

A recording that cannot be enhanced is named at the end and does not stop the others; one whose
output is there is left alone, so that a run that was broken off can be started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dvpd.runtime import DvpdError, Enhancer, InputError, command

SUFFIXES = (".wav", ".flac", ".ogg")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=command.whole(0))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    if not args.input.is_dir():
        raise InputError(f"{args.input}: not a folder; give one with recordings")
    sources = sorted(p for p in args.input.rglob("*") if p.suffix.lower() in SUFFIXES)
    failed: list[DvpdError] = []
    with Enhancer.open(args.model) as enhancer:  # opened once: that takes longer than a short file
        for source in sources:
            target = args.output / source.relative_to(args.input)
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                done = enhancer.enhance_file(source, target, steps=args.steps)
            except DvpdError as error:
                failed.append(error)
            else:
                print(f"{done.path}: {done.duration_s:.1f} s, real-time factor {done.rtf:.3f}")
    for error in failed:
        command.say(f"failed: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    command.leave(main())
