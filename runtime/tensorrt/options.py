"""Command-line options that every builder of plans takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..manifest import Manifest
from .onnx_inputs import Profile
from .versions import BUILDERS


def sizes(text: str) -> tuple[int, int, int]:
    """Read "min,opt,max" of a command line.

    Args:
        text: Three whole numbers.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    try:
        low, opt, high = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not MIN,OPT,MAX, three whole numbers"
        ) from None
    return low, opt, high


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    """Add --frames and --batch, as every builder takes them."""
    parser.add_argument(
        "--frames",
        type=sizes,
        metavar="MIN,OPT,MAX",
        help="frames of one call, multiples of 4 (default: 32,256,1024, of live models 4,4,256; 125 a "
        "second)",
    )
    parser.add_argument(
        "--batch",
        type=sizes,
        metavar="MIN,OPT,MAX",
        help="recordings or streams in one call (default: 1,1,4, of live models 1,1,64)",
    )


def chosen_profile(args: argparse.Namespace, manifest: Manifest) -> Profile:
    """The sizes that the options ask for; what they leave open is usual for the model.

    Args:
        args: With ``frames`` and ``batch``.
        manifest: Of the model.

    Raises:
        InputError: The model's graphs take no such calls.
    """
    causal = manifest.causal is not None
    usual = Profile.usual(causal)
    profile = Profile(args.frames or usual.frames, args.batch or usual.batch)
    profile.check(causal)
    return profile


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``dvpd build`` and of export/build_engine.py."""
    parser.add_argument("folder", type=Path, metavar="NAME|DIR", help="engine folder")
    parser.add_argument(
        "--backend",
        choices=BUILDERS,
        help="default: tensorrt if it is installed, else tensorrt-rtx",
    )
    parser.add_argument(
        "--target",
        metavar="TARGET",
        help="local (this GPU), or with tensorrt-rtx portable, sm89, or several in one plan, "
        "sm86,sm89,sm120 (default: tensorrt local, tensorrt-rtx portable)",
    )
    add_profile_options(parser)
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="let products of fp32 graphs be rounded to TF32: faster, and no longer float32",
    )
    parser.add_argument("--force", action="store_true", help="build even if valid plans are there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
