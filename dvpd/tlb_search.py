"""TLB factors for given weights: ``python -m dvpd.tlb_search MODEL --set DEV --out DIR``.

Random search, then coordinate search, over the eight factors of the paper's boost without training. They
are chosen on a random half of each set and reported on the other. The run can be ended at any time:
the same command goes on where it was. In the folder: ``candidates.jsonl`` (every figure that was
measured), ``report.md``, ``search.svg`` and ``tlb.json`` (what was found, as ``--tlb`` takes it).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .quality.metrics import MEASURES, Meter, choose_metrics, paired
from .quality.models import open_model
from .quality.page import check_plots, svg_figure
from .quality.pairs import PairFile, find_pairs, spread_sample
from .quality.report import set_sha256
from .quality.tables import Table, as_markdown
from .quality.tlb import (
    HIGH,
    LOW,
    NAMES,
    ONES,
    Aim,
    Bench,
    Figures,
    Journal,
    Point,
    State,
    column,
    factors_of,
    halves,
    point_of,
    search,
)
from .runtime import command
from .runtime.errors import InputError, UsageError
from .runtime.files import sha256_file, write_whole
from .runtime.manifest import Manifest
from .runtime.noise import check_seed
from .runtime.progress import Progress as Bar

METRICS = ("pesq", "estoi", "si_sdr")
OBJECTIVES = ("pesq", "estoi", "dnsmos_ovrl", "dnsmos_sig")
CHOOSING, OTHER = "choosing", "other"
TIERS = ((-math.inf, 2.0), (2.0, 3.0), (3.0, math.inf))  # of PESQ without TLB, the paper's Table 5
JOURNAL, REPORT, PICTURE, FOUND = "candidates.jsonl", "report.md", "search.svg", "tlb.json"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="dvpd.tlb_search",
        description="Search for TLB factors that help a model's weights. What was measured is kept: "
        "the same command goes on with a search that was ended.",
    )
    parser.add_argument("model", help="checkpoint (.safetensors) or engine folder")
    parser.add_argument(
        "--set", required=True, action="append", dest="folders", metavar="DEV",
        help="folder with noisy/ and clean/; may be given again",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the search")
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="so many pairs of each set"
    )
    parser.add_argument("--objective", choices=OBJECTIVES, default="pesq", help="(pesq)")
    parser.add_argument("--dnsmos", metavar="DIR", help="folder of sig_bak_ovr.onnx, model_v8.onnx")
    parser.add_argument("--steps", type=int, metavar="N", help="score calls (the model's)")
    parser.add_argument(
        "--minutes", type=float, default=20.0, metavar="M", help="of this run's search (20)"
    )
    parser.add_argument(
        "--candidates", type=int, default=400, metavar="N", help="at most, over all runs (400)"
    )
    parser.add_argument("--random", type=int, default=24, metavar="N", help="random ones (24)")
    parser.add_argument("--seed", type=int, default=0, help="of the halves, the search, the noise")
    parser.add_argument("--backend", default="auto", help="for engine folders")
    parser.add_argument("--threads", type=int, default=1, help="of the model (1)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    for name, least in (("limit", 0), ("random", 0), ("candidates", 1), ("threads", 1)):
        if getattr(args, name) < least:
            raise UsageError(f"{name} is {getattr(args, name)}; expected {least} or more")
    if not args.minutes >= 0.0:
        raise UsageError(f"minutes is {args.minutes}; expected 0 or more")
    with command.usage():
        check_seed(args.seed)
    check_plots()
    asked = (*METRICS, "dnsmos") if args.dnsmos else METRICS
    metrics = choose_metrics(asked, dnsmos=args.dnsmos is not None)
    if args.objective not in metrics:
        raise UsageError(f"objective is {args.objective!r}, which needs its model: --dnsmos DIR")
    meter = Meter(metrics, args.dnsmos)
    parts = _parts(args.folders, args.limit, args.seed)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror or error}; give another --out") from None
    with open_model(args.model, args.backend, "auto", args.threads) as enhancer:
        manifest = enhancer.manifest
        steps = manifest.sampler.n_steps if args.steps is None else args.steps
        if steps < 1:
            raise UsageError(f"steps is {steps}; expected 1 or more: TLB is in the score network")
        aim = Aim.of(args.objective, metrics)
        settings = {
            "model": _sha256(args.model, manifest), "pairs": _sha256s(parts), "steps": steps,
            "metrics": metrics, "seed": args.seed,
        }  # fmt: skip
        journal = Journal(out / JOURNAL, settings)
        try:
            bench = {half: Bench(enhancer, meter, parts[half], steps, args.seed) for half in parts}
            state = _search(args, aim, bench[CHOOSING], journal, manifest)
            shown = {name: point_of(tlb) for name, tlb in _presets(manifest).items()}
            shown["found"] = state.best
            with Bar("reporting") as bar:
                points = list(dict.fromkeys([ONES, *shown.values()]))
                for i, point in enumerate(points):
                    _measured(bench[OTHER], journal, OTHER, point)
                    bar((i + 1) / len(points))
        finally:
            journal.close()
    title = f"TLB for {Path(args.model).name}: {steps} steps, {state.done} candidates"
    tables = result_tables(journal.known, aim, parts, shown, metrics)
    text = "\n".join([f"# {title}", "", *map(as_markdown, tables)])
    write_whole(out / REPORT, text)
    write_whole(out / PICTURE, picture(journal.known, aim, title))
    found = {"tlb": asdict(factors_of(state.best)), "objective": args.objective}
    gains = {h: aim.gains(journal.known[h, state.best], journal.known[h, ONES]) for h in parts}
    write_whole(out / FOUND, json.dumps({**found, "gains": gains, **settings}, indent=1) + "\n")
    sys.stdout.write(text + "\n")
    return command.EXIT_DONE


def _parts(folders: Sequence[str], limit: int, seed: int) -> dict[str, list[PairFile]]:
    """The pairs of both halves; of each set a half of its own."""
    parts: dict[str, list[PairFile]] = {CHOOSING: [], OTHER: []}
    for folder in folders:
        pairs = spread_sample(find_pairs(folder), limit)
        if len(pairs) < 2:
            raise InputError(
                f"{folder}: {len(pairs)} pair; expected two at least, one for each half"
            )
        for half, some in zip(parts, halves(pairs, seed), strict=True):
            parts[half] += some
    names = [pair.name for pairs in parts.values() for pair in pairs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--set: {doubled[0]} occurs twice; expected sets with names of their own")
    return parts


def _sha256(model: str, manifest: Manifest) -> str:
    return sha256_file(Path(model)) if Path(model).is_file() else manifest.checkpoint_sha256


def _sha256s(parts: Mapping[str, Sequence[PairFile]]) -> dict[str, str]:
    """What is measured, by its names and bytes."""
    found = {}
    for half, pairs in parts.items():
        rows = [{"sha256": f"{p.name} {sha256_file(p.noisy)}"} for p in pairs]
        found[half] = set_sha256(rows)
    return found


def _presets(manifest: Manifest) -> dict[str, Any]:
    return {name: tlb for name, tlb in manifest.tlb_presets.items() if name != "none"}


def _measured(bench: Bench, journal: Journal, half: str, point: Point) -> Figures:
    if (half, point) not in journal.known:
        journal.add(half, point, bench(point))
    return journal.known[half, point]


def _search(
    args: argparse.Namespace, aim: Aim, bench: Bench, journal: Journal, manifest: Manifest
) -> State:
    """Search until nothing helps any more or the budget is used up; what is known costs no time."""
    started, left = time.monotonic(), args.candidates
    with Bar("searching") as bar:

        def score(point: Point) -> float | None:
            nonlocal left
            late = time.monotonic() - started >= 60.0 * args.minutes
            new = (CHOOSING, point) not in journal.known
            # without the first, nothing can be compared
            if left <= 0 or (late and new and point != ONES):
                return None
            left -= 1
            figures = _measured(bench, journal, CHOOSING, point)
            return aim.score(figures, journal.known[CHOOSING, ONES])

        def show(state: State) -> None:
            spent = (time.monotonic() - started) / max(60.0 * args.minutes, 1e-9)
            part = min(max(spent, state.done / args.candidates), 1.0)
            gain = f"{MEASURES[aim.objective].label} {state.score:+.3f}"
            bar(part, f"{state.done} candidates, best {gain}")

        presets = [point_of(tlb) for tlb in _presets(manifest).values()]
        return search(score, first=presets, n_random=args.random, seed=args.seed, show=show)


# --- what is shown ----------------------------------------------------------------------------


def _cell(figures: Figures, without: Figures, names: Sequence[str], measure: str) -> str:
    part = paired(column(figures, names, measure), column(without, names, measure))
    if not part.n:
        return "-"
    digits = MEASURES[measure].decimals
    mark = " *" if part.significant else ""
    return f"{part.mean:+.{digits}f} [{part.low:+.{digits}f} to {part.high:+.{digits}f}]{mark}"


def result_tables(
    known: Mapping[tuple[str, Point], Figures],
    aim: Aim,
    parts: Mapping[str, Sequence[PairFile]],
    shown: Mapping[str, Point],
    metrics: Sequence[str],
) -> list[Table]:
    """What the factors bring on both halves, and on the other half by group and by tier.

    Args:
        known: Figures, as in ``Journal.known``.
        aim: What was looked for.
        parts: Pairs of each half.
        shown: Factors by name, "found" among them.
        metrics: Measures.
    """
    header = tuple(MEASURES[m].label for m in metrics)
    limits = ", ".join(MEASURES[m].label for m in aim.constraints)
    rows = [
        (f"{name}: {half} half", str(len(parts[half])),
         *(_cell(known[half, point], known[half, ONES], [p.name for p in parts[half]], m)
           for m in metrics))
        for name, point in shown.items()
        for half in (CHOOSING, OTHER)
        if (half, point) in known
    ]  # fmt: skip
    note = (
        f"Difference to none, with its 95 % bootstrap interval; * where that leaves out zero. Chosen for "
        f"{MEASURES[aim.objective].label} on the choosing half, where {limits} must not fall; the other "
        "half took no part."
    )
    tables = [Table("What the factors bring", note, ("factors", "pairs", *header), tuple(rows))]
    best, without = known[OTHER, shown["found"]], known[OTHER, ONES]
    groups: dict[str, list[str]] = {}
    for pair in parts[OTHER]:
        groups.setdefault(pair.group or "all", []).append(pair.name)
        pesq = without[pair.name]["pesq"]
        for low, high in TIERS:
            if low <= pesq < high:
                groups.setdefault(_tier(low, high), []).append(pair.name)
    rows = [
        (group, str(len(names)), *(_cell(best, without, names, m) for m in metrics))
        for group, names in sorted(groups.items())
    ]
    text = "By degradation, and by the PESQ without TLB as in the paper's tiers."
    tables.append(Table("What was found, other half", text, ("pairs", "n", *header), tuple(rows)))
    point = shown["found"]
    tables.append(Table("Factors", "", NAMES, (tuple(f"{value:g}" for value in point),)))
    return tables


def _tier(low: float, high: float) -> str:
    if low == -math.inf:
        return f"PESQ below {high:g}"
    return f"PESQ from {low:g}" + ("" if high == math.inf else f" to {high:g}")


def picture(known: Mapping[tuple[str, Point], Figures], aim: Aim, title: str) -> str:
    """Every candidate's gain against each of its factors, as SVG.

    Args:
        known: Figures, as in ``Journal.known``.
        aim: What was looked for.
        title: For readers that do not see it.
    """
    without = known[CHOOSING, ONES]
    points = [point for half, point in known if half == CHOOSING]
    gains = np.array([aim.gains(known[CHOOSING, p], without)[aim.objective] for p in points])
    kept = np.array([aim.score(known[CHOOSING, p], without) > -1e3 for p in points])

    def draw(figure: Any) -> None:
        axes = figure.subplots(2, 4, sharey=True)
        for i, (name, one) in enumerate(zip(NAMES, axes.flat, strict=True)):
            values = np.array([p[i] for p in points])
            one.plot(values[~kept], gains[~kept], "x", color="#8a8f98", ms=4)
            one.plot(values[kept], gains[kept], "o", color="#3b82c4", ms=4)
            one.axhline(0.0, color="#8a8f98", lw=0.8)
            one.set(xscale="log", xlim=(LOW, HIGH), title=name)
            one.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
            one.minorticks_off()
        for row in axes:
            row[0].set_ylabel(f"{MEASURES[aim.objective].label} gained")

    return svg_figure(f"{title}; crosses break a constraint", 10.0, 5.0, draw)


if __name__ == "__main__":
    command.leave(main())
