"""Quality against latency, as one SVG file: results of quality.py, latencies of their engines' manifests.

    python benchmarks/latency.py quality.json quality-live.json runs/la3/quality.json \
        --engine runs/la3/dvpd-live-tiny-la3 -o latency.svg

A model of whole recordings is a line across the picture: its latency is the recording's length.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks import quality
from dvpd.benchmarks.common import report_html
from dvpd.benchmarks.guard import shipped_engines
from dvpd.runtime import command
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import Manifest


@dataclass(frozen=True)
class Point:
    """A model on a set.

    Attributes:
        model: Its name.
        latency_ms: What its streams are late (ms); None for a model of whole recordings.
        mean: Of the measure.
        low: Of the interval.
        high: Likewise.
    """

    model: str
    latency_ms: float | None
    mean: float
    low: float
    high: float


def latencies(folders: Sequence[Path]) -> dict[str, float | None]:
    """Latency (ms) of each engine by its checkpoint's hash; None for whole recordings.

    Args:
        folders: Engine folders.

    Raises:
        DvpdError: One cannot be read.
    """
    table: dict[str, float | None] = {}
    for folder in folders:
        manifest = Manifest.load(folder)
        causal, rate = manifest.causal, manifest.signal.sample_rate
        late = None if causal is None else 1e3 * causal.latency_samples / rate
        table[manifest.checkpoint_sha256] = late
    return table


def points(
    results: Sequence[dict[str, Any]], late: dict[str, float | None], name: str, metric: str
) -> list[Point]:
    """Every model that was measured on a set, by latency; those of whole recordings last.

    Args:
        results: Of quality.py.
        late: See ``latencies``.
        name: The set's.
        metric: Such as "pesq".

    Raises:
        InputError: No model was measured on it, or one's engine is not there.
    """
    found = []
    for model in (model for result in results for model in result["models"]):
        if name not in model["sets"]:
            continue
        if model["checkpoint_sha256"] not in late:
            raise InputError(
                f"{model['model']} is of another checkpoint than the engines here: give its folder "
                "with --engine"
            )
        answer = "full" if model["default"]["n_steps"] else "predictive"  # as the model is used
        f = model["sets"][name]["systems"][answer][metric]
        where = late[model["checkpoint_sha256"]]
        found.append(Point(model["model"], where, f["mean"], f["low"], f["high"]))
    if not found:
        raise InputError(f"no result has the set {name!r}")
    return sorted(found, key=lambda p: (p.latency_ms is None, p.latency_ms or 0.0))


def draw(found: Sequence[Point], metric: str) -> Callable[[Any], None]:
    """What draws the picture on the axes that it is given."""

    def work(axes: Any) -> None:
        live = [(p.latency_ms, p) for p in found if p.latency_ms is not None]
        if live:
            axes.errorbar(
                [ms for ms, _ in live],
                [p.mean for _, p in live],
                [[p.mean - p.low for _, p in live], [p.high - p.mean for _, p in live]],
                fmt="o-", color=report_html.COLOURS[0], ms=5, lw=1.2, capsize=3,
            )  # fmt: skip
        for ms, p in live:
            axes.annotate(p.model, (ms, p.mean), (6, 6), textcoords="offset points", fontsize=8)
        for p in (p for p in found if p.latency_ms is None):
            axes.axhline(p.mean, color=report_html.INK, lw=0.9, ls="--")
            axes.text(1.0, p.mean, f"{p.model}, whole recordings", va="bottom", ha="right",
                      fontsize=8, transform=axes.get_yaxis_transform())  # fmt: skip
        axes.set(xlabel="latency of the algorithm, ms", ylabel=quality.TITLES[metric])
        axes.set_xlim(0.0, 1.3 * max([ms for ms, _ in live], default=100.0))

    return work


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="latency.py", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", help="written by quality.py --json")
    parser.add_argument(
        "--engine", type=Path, action="append", default=[], help="besides the shipped ones"
    )
    parser.add_argument("--set", default="noise", help="name of the set (noise)")
    parser.add_argument("--metric", choices=sorted(quality.TITLES), default="pesq")
    parser.add_argument("-o", "--out", type=Path, default=Path("latency.svg"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _main)


def _main(args: argparse.Namespace) -> int:
    late = latencies([*shipped_engines(), *args.engine])
    results = [quality.read(path) for path in args.results]
    found = points(results, late, args.set, args.metric)
    svg = report_html.figure(draw(found, args.metric), "latency", (5.2, 3.6))
    write_whole(args.out, svg.replace("currentColor", "#1c2430") + "\n")
    for p in found:
        where = "whole recordings" if p.latency_ms is None else f"{p.latency_ms:.0f} ms"
        print(f"{p.model}: {where}, {args.metric} {p.mean:.2f} ({p.low:.2f}-{p.high:.2f})")
    print(args.out)
    return 0


if __name__ == "__main__":
    command.leave(main())
