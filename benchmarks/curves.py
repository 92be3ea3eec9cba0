"""Learning curves of a training log, as one SVG file.

    python benchmarks/curves.py engines/dvpd-tiny            # training.jsonl -> curves.svg
    python benchmarks/curves.py runs/tiny/log.jsonl -o curves.svg

One plot a loss term, over the hours of audio seen; runs that follow each other on the same branch
continue each other's axis. What a run optimised may differ: a step between two runs is not progress.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import report_html
from dvpd.runtime import command
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole

LOG_NAMES = ("training.jsonl", "log.jsonl")
# Term of the log -> title.
TERMS = {
    "mag": "MSE of magnitudes",
    "ri": "MSE of real and imaginary parts",
    "phase": "phase loss",
    "perceptual": "PESQ-shaped disturbance",
    "score": "score matching",
    "sampler": "losses of the sampler's output",
}


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
) -> list[tuple[list[float], list[float]]]:
    """Points of one term, a pair of lists (hours of audio, value) for each run that has it.

    Args:
        runs: From ``read_log``.
        term: Key of ``TERMS``.
    """
    found: list[tuple[list[float], list[float]]] = []
    before = 0.0
    for run in runs:
        rows = [r for r in run if term in r]
        if rows:
            hours = [before + float(r["audio_hours"]) for r in rows]
            found.append((hours, [float(r[term]) for r in rows]))
            before = hours[-1]
    return found


def plot(runs: Sequence[Sequence[dict[str, Any]]]) -> str:
    """All terms of a log as one SVG.

    Raises:
        InputError: matplotlib is not installed.
    """
    present = [t for t in TERMS if series(runs, t)]

    def draw(axes: Any) -> None:
        figure = axes.figure
        figure.clear()
        for i, term in enumerate(present):
            part = figure.add_subplot(1, len(present), i + 1)
            for k, (hours, values) in enumerate(series(runs, term)):
                part.plot(
                    hours, values, color=report_html.COLOURS[k % len(report_html.COLOURS)], lw=1.2
                )
            part.set(title=TERMS[term], xlabel="hours of audio")
            part.title.set_fontsize(9.5)

    svg = report_html.figure(draw, "curves", (3.1 * len(present), 2.8))
    return svg.replace("currentColor", "#666666")


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
