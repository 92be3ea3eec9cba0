"""Options that several commands have, and the numbers that options take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from .backends.choose import BACKENDS, BF16, ON_REQUEST
from .options import QUALITY_STEPS


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers in [low, high].

    Args:
        low: Least.
        high: Largest.
    """

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in [{low}, {high}]")
        return value

    return parse


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def fraction(text: str) -> float:
    """A number in [0, 1].

    Args:
        text: What the user gave.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not 0.0 <= (value := _number(text)) <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1]")
    return value


def decibels(text: str) -> float:
    """A number of dB >= 0, infinity included.

    Args:
        text: What the user gave.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not (value := _number(text)) >= 0.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of dB >= 0")
    return value


def between(low: float, high: float, unit: str) -> Callable[[str], float]:
    """A parser of numbers in [low, high].

    Args:
        low: Least.
        high: Largest.
        unit: For the message.
    """

    def parse(text: str) -> float:
        if not low <= (value := _number(text)) <= high:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number of {unit} in [{low:g}, {high:g}]"
            )
        return value

    return parse


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Which engine runs, where, and with how many threads.

    Args:
        parser: Of the command.
    """
    parser.add_argument(
        "--model",
        metavar="NAME|DIR",
        help="engine: a name, a folder, or hf:OWNER/NAME of the Hugging Face Hub (default: "
        "$DVPD_ENGINE, else engines/dvpd-base or dvpd-tiny)",
    )
    parser.add_argument(
        "--backend",
        choices=["auto", *BACKENDS, *ON_REQUEST],
        default="auto",
        help=f"inference engine; {BF16} rounds to bfloat16, on CPUs that have it; torch needs PyTorch "
        "and the checkpoint that the engine was exported from, beside it",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:N, tensorrt or rtx (ort's providers), gpu, npu (openvino) or auto",
    )
    parser.add_argument("--threads", type=whole(1, 4096), metavar="N", help="CPU threads")
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="let a GPU round the float32 products of an fp32 engine to TF32: faster",
    )


def add_door_options(parser: argparse.ArgumentParser, port: int, token: str) -> None:
    """Where a server listens, and who may come.

    Args:
        parser: Of the command.
        port: The usual one.
        token: What the token file is for, in words.
    """
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=whole(0, 65535), default=port, metavar="N", help=f"default: {port}; 0: any"
    )
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"{token} (default: $DVPD_TOKEN)"
    )


def add_steps_options(parser: argparse.ArgumentParser, default: str) -> None:
    """How often the score network runs: a number or a name, not both.

    Args:
        parser: Of the command.
        default: What happens without them, in words.
    """
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--steps",
        type=whole(0, 1000),
        metavar="N",
        help=f"diffusion steps; 0: predictive branch alone (default: {default})",
    )
    either.add_argument(
        "--quality",
        choices=tuple(QUALITY_STEPS),
        help="in place of --steps: " + ", ".join(f"{k} {v}" for k, v in QUALITY_STEPS.items()),
    )


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    """What the two commands for sound that is still coming in have in common.

    Args:
        parser: Of the command.
    """
    add_engine_options(parser)
    add_steps_options(parser, "the model's")
    parser.add_argument(
        "--fixed-steps",
        action="store_true",
        help="never take fewer while computing falls behind: the same output whatever the load, "
        "perhaps late",
    )
    parser.add_argument(
        "--max-attenuation",
        type=decibels,
        metavar="DB",
        help="lower nothing by more than this (dB)",
    )
    parser.add_argument("--json", dest="json_line", action="store_true", help="also say it as JSON")
