"""Build TensorRT plans once, then enhance with them.

    python examples/tensorrt_plan.py noisy.wav clean.wav [--model engines/dvpd-tiny-fp16]

On the GPU or Jetson that is to run them. ``--backend tensorrt-rtx`` for RTX cards.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dvpd.export import build_engine
from dvpd.runtime import Enhancer, command

ENGINE = Path(__file__).resolve().parent.parent / "engines" / "dvpd-tiny-fp16"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--model", type=Path, default=ENGINE, help="an engine folder")
    parser.add_argument("--backend", choices=["tensorrt", "tensorrt-rtx"], default="tensorrt")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    # Valid plans are kept: only the first run takes minutes.
    if code := build_engine.main([str(args.model), "--backend", args.backend]):
        return code
    with Enhancer.open(args.model, backend=args.backend) as enhancer:
        done = enhancer.enhance_file(args.input, args.output)
        print(f"{done.path}: real-time factor {done.rtf:.4f} on {enhancer.backend.device}")
    return 0


if __name__ == "__main__":
    command.leave(main())
