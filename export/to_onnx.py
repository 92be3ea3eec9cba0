"""Checkpoint -> predictive.onnx, score.onnx and manifest.json, verified before they appear.

python export/to_onnx.py CKPT [-o engines/NAME] [--precision fp32|fp16] [--steps N] [--verify-wav WAV]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # run as a plain script: the checkout is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dvpd.runtime import command
from dvpd.runtime.errors import BackendError
from dvpd.runtime.progress import Steps


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="to_onnx",
        description="Export a checkpoint to two ONNX graphs and verify them against PyTorch.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="a .safetensors checkpoint")
    parser.add_argument(
        "-o",
        "--out",
        metavar="DIR",
        help="engine folder to write (default: engines/NAME, unless that is of another checkpoint)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="fp16 writes strongly typed graphs for GPUs (default: fp32)",
    )
    parser.add_argument(
        "--steps",
        type=command.whole(0),
        metavar="N",
        help="score network calls that the engine makes by default (default: the checkpoint's "
        "sampler.n_steps); benchmarks/steps.py shows what they buy",
    )
    parser.add_argument(
        "--verify-wav",
        metavar="WAV",
        help="noisy speech for the checks (default: the checkout's test clips, else synthetic)",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    return command.run(build_parser(), argv, _export)


def _export(args: argparse.Namespace) -> None:
    steps = Steps()
    steps.say("loading")
    try:
        from dvpd.export.build import export_checkpoint
    except ModuleNotFoundError as error:
        raise BackendError(f"{error}: pip install 'dvpd[export]'") from None
    folder, manifest = export_checkpoint(
        args.checkpoint, args.out, args.precision, args.verify_wav, steps.say, args.steps
    )
    steps.say("done")
    print(json.dumps(manifest.to_dict(), indent=2) if args.json else folder)


if __name__ == "__main__":
    command.leave(main())
