"""What steps, alpha and the model change on one recording: time, SI-SDR, and PESQ if installed.

    python examples/compare_settings.py [--models dvpd-tiny dvpd-base] [--seconds 6]

One recording says little: ``python -m dvpd.evaluate`` measures a set, with intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import soundfile
from demo import pesq_wb, si_sdr_db

from dvpd.runtime import Enhancer, command

HERE = Path(__file__).resolve().parent
SETTINGS = ({"steps": 0}, {"steps": 1}, {"steps": 3}, {"steps": 3, "alpha": 0.4})


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["dvpd-tiny"], help="names or folders")
    parser.add_argument(
        "--seconds", type=command.number(above=True), default=6.0, help="of the recording"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> None:
    noisy, rate = soundfile.read(HERE / "noisy.flac", dtype="float32")
    clean, _ = soundfile.read(HERE / "clean.flac", dtype="float32")
    part = slice(2 * rate, int((2 + args.seconds) * rate))  # the speech begins after two seconds
    noisy, clean = noisy[part], clean[part]

    def line(name: str, rtf: str, wav) -> None:
        pesq = pesq_wb(wav, clean, rate)
        shown = "-" if pesq is None else f"{pesq:.2f}"
        print(f"{name:34}{rtf:>8}{si_sdr_db(wav, clean):10.1f}{shown:>8}")

    print(f"{'':34}{'RTF':>8}{'SI-SDR':>10}{'PESQ':>8}")
    line("noisy", "-", noisy)
    for model in args.models:
        with Enhancer.open(model) as enhancer:
            for setting in SETTINGS:
                result = enhancer.enhance(noisy, rate, **setting)
                words = ", ".join(f"{key} {value}" for key, value in setting.items())
                line(f"{enhancer.manifest.name}, {words}", f"{result.rtf:.3f}", result.wav)


if __name__ == "__main__":
    command.leave(main())
