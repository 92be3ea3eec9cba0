"""Learning curves of a training log, as one SVG file.

    python benchmarks/curves.py engines/dvpd-tiny            # training.jsonl -> curves.svg
    python benchmarks/curves.py runs/tiny/log.jsonl -o curves.svg

One panel a loss term, one band a run, numbered; the list below says which run is which. Every run has
the same width, so that a long one does not hide the others; its hours are in the list. What a run
optimised may differ: a step between two runs is not progress.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import report_html
from dvpd.benchmarks.common.report_html import INK
from dvpd.runtime import command
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole

LOG_NAMES = ("training.jsonl", "log.jsonl")
# Term of the log -> title; lower is better in all of them.
TERMS = {
    "mag": "MSE of magnitudes",
    "ri": "MSE of real and imaginary parts",
    "phase": "phase loss",
    "perceptual": "PESQ-shaped disturbance",
    "estoi": "1 - ESTOI",
    "silence": "what is left where the target is silent, tens of dB",
    "snr": "negative SNR, tens of dB",
    "si_sdr": "negative SI-SDR, tens of dB",
    "mr_stft": "multi-resolution STFT loss",
    "score": "score matching",
    "start": "score matching at the start time",
    "consistency": "consistency of neighbouring times",
    "sampler": "losses of the sampler's output",
}
LOG_FROM = 4.0  # largest over smallest value from which an axis is logarithmic
WIDTH_IN, PANEL_IN, LINE_IN = 5.2, 1.5, 0.17
NAME_CHARACTERS = 52  # of a run in the list: what fits into the width


def read_log(path: Path) -> list[list[dict[str, Any]]]:
    """Runs of a log, each a list of its "train" records, in order.

    Args:
        path: training.jsonl, whose records name their run, or the log.jsonl of one run.

    Raises:
        InputError: The file is missing, damaged, or has no training record.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    number = 0
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            number += 1
            record = json.loads(line)
            if record["kind"] == "train":
                runs.setdefault(str(record.get("run", "")), []).append(record)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}, line {number}: not a record of a training log ({error})"
        ) from None
    if not runs:
        raise InputError(f"{path}: no training record in it")
    return list(runs.values())


def series(
    runs: Sequence[Sequence[dict[str, Any]]], term: str
) -> list[tuple[int, list[float], list[float]]]:
    """Points of one term: for each run that has it its number, shares of its audio, and values.

    Args:
        runs: From ``read_log``.
        term: Key of ``TERMS``.

    Returns:
        Tuples (number from 1, shares from 0 to 1 of the run's hours, values).
    """
    found: list[tuple[int, list[float], list[float]]] = []
    for number, run in enumerate(runs, start=1):
        rows = [r for r in run if term in r]
        if rows:
            whole = float(rows[-1]["audio_hours"]) or 1.0
            shares = [float(r["audio_hours"]) / whole for r in rows]
            found.append((number, shares, [float(r[term]) for r in rows]))
    return found


def names(runs: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """A line for each run: number, name, hours of audio."""
    lines = []
    for number, run in enumerate(runs, start=1):
        name = str(run[-1].get("run") or "this run")
        head, *rest = textwrap.wrap(name, NAME_CHARACTERS)
        lines += [f"{number:2d}  {head}" + f" ({run[-1]['audio_hours']:.1f} h)" * (not rest)]
        lines += [f"      {line}" for line in rest[:-1]]
        lines += [f"      {line} ({run[-1]['audio_hours']:.1f} h)" for line in rest[-1:]]
    return lines


def plot(runs: Sequence[Sequence[dict[str, Any]]]) -> str:
    """All terms of a log as one SVG, dark on white wherever it is shown.

    Raises:
        InputError: matplotlib is not installed.
    """
    present = [term for term in TERMS if series(runs, term)]
    lines = names(runs)
    list_in = LINE_IN * len(lines) + 0.3

    def draw(axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        figure = axes.figure
        figure.clear()
        figure.patch.set(facecolor="white", alpha=1.0)
        heights = [PANEL_IN] * len(present) + [list_in]
        *panels, key = figure.subplots(len(heights), height_ratios=heights)
        for part, term in zip(panels, present, strict=True):
            points = series(runs, term)
            for place, (_, shares, values) in enumerate(points):
                part.axvspan(place, place + 1, color=INK, alpha=0.06 * (place % 2), lw=0)
                x = [place + 0.08 + 0.84 * share for share in shares]
                marker = "o" if len(x) == 1 else None
                part.plot(x, values, color=report_html.COLOURS[0], lw=1.2, marker=marker, ms=3)
            part.set(xlim=(0, len(points)), xlabel="run" if part is panels[-1] else "")
            part.set_xticks([i + 0.5 for i in range(len(points))], [n for n, _, _ in points])
            part.tick_params(axis="x", length=0)
            part.grid(axis="x", visible=False)
            part.set_title(TERMS[term], loc="left", fontsize=10)
            everything = [v for _, _, values in points for v in values]
            if min(everything) > 0 and max(everything) > LOG_FROM * min(everything):
                part.set_yscale("log")
                report_html.plain_log(part.yaxis)
            else:
                part.yaxis.set_major_locator(MaxNLocator(4))
        key.axis("off")
        for i, line in enumerate(lines):
            y = 1 - (i + 1) * LINE_IN / list_in
            key.text(0.0, y, line, transform=key.transAxes, fontsize=9)

    size = (WIDTH_IN, PANEL_IN * len(present) + list_in)
    return report_html.figure(draw, "curves", size).replace("currentColor", "#1c2430")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="curves.py", description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path, help="training log, or a folder that has one")
    parser.add_argument("-o", "--out", type=Path, help="default: curves.svg beside the log")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _draw)


def _draw(args: argparse.Namespace) -> int:
    path = args.log
    if path.is_dir():
        found = [path / name for name in LOG_NAMES if (path / name).is_file()]
        if not found:
            raise InputError(f"{path} has neither {' nor '.join(LOG_NAMES)}")
        path = found[0]
    out = args.out or path.with_name("curves.svg")
    write_whole(out, plot(read_log(path)) + "\n")
    print(out)
    return 0


if __name__ == "__main__":
    command.leave(main())
