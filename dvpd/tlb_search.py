"""TLB factors for given weights: ``python -m dvpd.tlb_search MODEL --set DEV --out DIR``.

Random search, then coordinate search, over the eight factors of the paper's boost without training: once
for all recordings, then for each of the paper's tiers of PESQ. They are chosen on a random half of each
set and reported on the other. The run can be ended at any time:
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
    TIERS,
    Aim,
    Bench,
    Figures,
    Journal,
    Point,
    State,
    column,
    factors_of,
    halves,
    in_tier,
    parts_of,
    point_of,
    search,
    tier_name,
)
from .runtime import command
from .runtime.audio_in import probe
from .runtime.errors import InputError, UsageError
from .runtime.files import sha256_file, write_whole
from .runtime.manifest import Manifest
from .runtime.noise import check_seed
from .runtime.progress import Progress as Bar

METRICS = ("pesq", "estoi", "si_sdr")
OBJECTIVES = ("pesq", "estoi", "dnsmos_ovrl", "dnsmos_sig")
CHOOSING, OTHER = "choosing", "other"
PAPERS = ("severe", "moderate", "mild")  # the paper's presets, one for each of its tiers
FOUND_ALL = "found"
LEAST = 4  # recordings of a tier that is searched: fewer say nothing about others
TRIAL = 0.25  # of the recordings come first; who gains less there than the best is left alone
JOURNAL, REPORT, PICTURE, FOUND = "candidates.jsonl", "report.md", "search.svg", "tlb.json"

Known = Mapping[tuple[str, Point], Figures]


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
    parser.add_argument(
        "--longest", type=float, metavar="S", help="leave out recordings of more seconds"
    )
    parser.add_argument("--objective", choices=OBJECTIVES, default="pesq", help="(pesq)")
    parser.add_argument("--dnsmos", metavar="DIR", help="folder of sig_bak_ovr.onnx, model_v8.onnx")
    parser.add_argument("--steps", type=int, metavar="N", help="score calls (the model's)")
    parser.add_argument(
        "--minutes", type=float, default=20.0, metavar="M",
        help="of this run: half for all recordings, half for the tiers (20)",
    )  # fmt: skip
    parser.add_argument(
        "--candidates", type=int, default=400, metavar="N", help="of each search, at most (400)"
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
    parts = _parts(args.folders, args.limit, args.longest, args.seed)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror or error}; give another --out") from None
    with open_model(args.model, args.backend, "auto", args.threads) as enhancer:
        manifest = enhancer.manifest
        steps = manifest.sampler.score_steps if args.steps is None else args.steps
        if steps < 1:
            raise UsageError(f"steps is {steps}; expected 1 or more: TLB is in the score network")
        aim = Aim.of(args.objective, metrics)
        settings = {
            "model": _sha256(args.model, manifest), "pairs": _sha256s(parts), "steps": steps,
            "metrics": metrics, "seed": args.seed,
        }  # fmt: skip
        presets = {
            name: point_of(tlb) for name, tlb in manifest.tlb_presets.items() if name != "none"
        }
        journal = Journal(out / JOURNAL, settings)
        try:
            bench = {half: Bench(enhancer, meter, parts[half], steps, args.seed) for half in parts}
            found = _search(args, aim, bench[CHOOSING], journal, presets)
            with Bar("reporting") as bar:
                _report(bench[OTHER], journal, presets, found, bar)
        finally:
            journal.close()
    done = len({point for half, point in journal.known if half == CHOOSING})
    title = f"TLB for {Path(args.model).name}: steps {steps}, {done} candidates"
    tables = result_tables(journal.known, aim, parts[OTHER], presets, found, metrics)
    text = "\n".join([f"# {title}", "", *map(as_markdown, tables)])
    write_whole(out / REPORT, text)
    write_whole(out / PICTURE, picture(journal.known, aim, title))
    whole = {"objective": args.objective, "found": _summary(journal.known, aim, found), **settings}
    write_whole(out / FOUND, json.dumps(whole, indent=1) + "\n")
    sys.stdout.write(text + "\n")
    return command.EXIT_DONE


def _summary(known: Known, aim: Aim, found: Mapping[str, Point]) -> dict[str, Any]:
    """What was found, all recordings ("found") and tiers, with its mean gains on both halves."""
    names = {half: groups_of(known[half, ONES]) for half in (CHOOSING, OTHER)}
    return {
        group: {
            "tlb": asdict(factors_of(point)),
            "gains": {
                half: aim.gains(known[half, point], _of(known[half, ONES], groups[group]))
                for half, groups in names.items()
            },
        }
        for group, point in found.items()
    }


def _parts(
    folders: Sequence[str], limit: int, longest: float | None, seed: int
) -> dict[str, list[PairFile]]:
    """The pairs of both halves; of each set a half of its own."""
    parts: dict[str, list[PairFile]] = {CHOOSING: [], OTHER: []}
    for folder in folders:
        pairs = find_pairs(folder)
        if longest is not None:
            pairs = [pair for pair in pairs if probe(pair.noisy).duration_s <= longest]
        pairs = spread_sample(pairs, limit)
        if len(pairs) < 2:
            raise InputError(
                f"{folder}: {len(pairs)} pairs; expected two at least, one for each half"
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


def _of(figures: Figures, names: Sequence[str]) -> Figures:
    return {name: figures[name] for name in names}


def _measured(
    bench: Bench, journal: Journal, half: str, point: Point, names: Sequence[str]
) -> Figures:
    if lacking := _lacking(journal, half, point, names):
        journal.add(half, point, bench(point, lacking))
    return _of(journal.known[half, point], names)


def _lacking(journal: Journal, half: str, point: Point, names: Sequence[str]) -> list[str]:
    known = journal.known.get((half, point), {})
    return [name for name in names if name not in known]


def groups_of(without: Figures) -> dict[str, list[str]]:
    """Recordings of what is searched for: all of them ("found"), and each tier by its name.

    Args:
        without: Figures without TLB.
    """
    return {FOUND_ALL: list(without), **{tier_name(t): in_tier(t, without) for t in TIERS}}


def _search(
    args: argparse.Namespace,
    aim: Aim,
    bench: Bench,
    journal: Journal,
    presets: Mapping[str, Point],
) -> dict[str, Point]:
    """The best factors for all recordings, and for each tier that has enough of them."""
    everything = [pair.name for pair, *_ in bench.pairs]
    half = 0.5 * 60.0 * args.minutes
    with Bar("searching") as bar:

        def best(group: str, names: list[str], first: Sequence[Point], seconds: float) -> Point:
            """Search until nothing helps any more or the budget is used up; what is known is free."""
            started, left = time.monotonic(), args.candidates
            leader, top = ONES, -math.inf
            mixed = np.random.default_rng(args.seed).permutation(len(names))
            trial = [names[i] for i in mixed[: max(2, round(TRIAL * len(names)))]]

            def figures(point: Point, some: Sequence[str]) -> tuple[Figures, Figures]:
                without = _measured(bench, journal, CHOOSING, ONES, some)
                return _measured(bench, journal, CHOOSING, point, some), without

            def gain(point: Point) -> float:
                return aim.gains(*figures(point, trial))[aim.objective]

            def over(point: Point, some: Sequence[str]) -> bool:
                # without the first, nothing can be compared
                late = time.monotonic() - started >= seconds and point != ONES
                return late and bool(_lacking(journal, CHOOSING, point, some))

            def score(point: Point) -> float | None:
                nonlocal left, leader, top
                if left <= 0 or over(point, trial):
                    return None
                left -= 1
                if gain(point) < gain(leader):
                    return -math.inf
                if over(point, names):
                    return None
                if (found := aim.score(*figures(point, names))) > top:
                    leader, top = point, found
                return found

            def show(state: State) -> None:
                spent = (time.monotonic() - started) / max(seconds, 1e-9)
                gain = f"{MEASURES[aim.objective].label} {state.score:+.3f}"
                part = min(max(spent, state.done / args.candidates), 1.0)
                bar(part, f"{group}: {state.done} candidates, best {gain}")

            return search(score, first=first, n_random=args.random, seed=args.seed, show=show).best

        found = {FOUND_ALL: best(FOUND_ALL, everything, [*presets.values()], half)}
        for group, names in groups_of(journal.known[CHOOSING, ONES]).items():
            if group not in found and len(names) >= LEAST:
                first = [found[FOUND_ALL], *presets.values()]
                found[group] = best(group, names, first, half / len(TIERS))
    return found


def _report(
    bench: Bench,
    journal: Journal,
    presets: Mapping[str, Point],
    found: Mapping[str, Point],
    bar: Bar,
) -> None:
    """Measure on the other half what the tables show."""
    everything = [pair.name for pair, *_ in bench.pairs]
    points = list(dict.fromkeys([ONES, *presets.values(), found[FOUND_ALL]]))
    for i, point in enumerate(points):
        _measured(bench, journal, OTHER, point, everything)
        bar(0.5 * (i + 1) / len(points))
    groups = groups_of(journal.known[OTHER, ONES])
    for i, group in enumerate(group for group in found if group != FOUND_ALL):
        for _, point in _taken_apart(group, presets, found):
            _measured(bench, journal, OTHER, point, groups[group])
        bar(0.5 + 0.5 * (i + 1) / len(TIERS))


def _taken_apart(
    group: str, presets: Mapping[str, Point], found: Mapping[str, Point]
) -> list[tuple[str, Point]]:
    """A tier's factors, the paper's and those that were found, with their parts."""
    paper = dict(zip(map(tier_name, TIERS), PAPERS, strict=True))[group]
    whole = {paper: presets[paper]} if paper in presets else {}
    whole["found for the tier"] = found[group]
    return [
        (f"{name}: {part}", point)
        for name, factors in whole.items()
        if factors != ONES
        for part, point in parts_of(factors).items()
    ]


# --- what is shown ----------------------------------------------------------------------------


def _cell(figures: Figures, without: Figures, names: Sequence[str], measure: str) -> str:
    part = paired(column(figures, names, measure), column(without, names, measure))
    if not part.n:
        return "-"
    digits = MEASURES[measure].decimals
    mark = " *" if part.significant else ""
    return f"{part.mean:+.{digits}f} [{part.low:+.{digits}f} to {part.high:+.{digits}f}]{mark}"


def result_tables(
    known: Known,
    aim: Aim,
    others: Sequence[PairFile],
    presets: Mapping[str, Point],
    found: Mapping[str, Point],
    metrics: Sequence[str],
) -> list[Table]:
    """What the factors bring: on both halves, on the other half by degradation, by tier and in parts.

    Args:
        known: Figures, as in ``Journal.known``.
        aim: What was looked for.
        others: Pairs of the other half.
        presets: The model's presets.
        found: Factors by what they were found for: "found" (all), and names of tiers.
        metrics: Measures.
    """
    header = tuple(MEASURES[m].label for m in metrics)
    limits = ", ".join(MEASURES[m].label for m in aim.constraints)
    without = {half: known[half, ONES] for half in (CHOOSING, OTHER)}

    def row(first: str, half: str, point: Point, names: Sequence[str]) -> tuple[str, ...]:
        cells = (_cell(known[half, point], without[half], names, m) for m in metrics)
        return (first, str(len(names)), *cells)

    shown = {**presets, FOUND_ALL: found[FOUND_ALL]}
    halved = [
        row(f"{name}: {half} half", half, point, list(without[half]))
        for name, point in shown.items()
        for half in without
        if set(without[half]) <= set(known.get((half, point), ()))
    ]
    note = (
        f"Difference to none, with its 95 % bootstrap interval; * where that leaves out zero. Chosen for "
        f"{MEASURES[aim.objective].label} on the choosing half, where {limits} must not fall; the other "
        "half took no part."
    )
    tables = [Table("What the factors bring", note, ("factors", "pairs", *header), tuple(halved))]
    degradations: dict[str, list[str]] = {}
    for pair in others:
        degradations.setdefault(pair.group or "all", []).append(pair.name)
    rows = [row(name, OTHER, found[FOUND_ALL], names) for name, names in degradations.items()]
    text = "What was found for all recordings."
    tables.append(
        Table("By degradation, other half", text, ("pairs", "n", *header), tuple(sorted(rows)))
    )
    groups = groups_of(without[OTHER])
    tiers = [group for group in found if group != FOUND_ALL and groups[group]]
    rows = [
        row(f"{group}: {name}", OTHER, point, groups[group])
        for group in tiers
        for name, point in {**shown, "found for the tier": found[group]}.items()
    ]
    text = "The paper's tiers, by the PESQ without TLB (its Table 5)."
    tables.append(Table("By tier, other half", text, ("tier", "pairs", *header), tuple(rows)))
    rows = [
        row(f"{group}: {name}", OTHER, point, groups[group])
        for group in tiers
        for name, point in _taken_apart(group, presets, found)
    ]
    text = "All other factors are ones (the paper's Tables 10 and 11)."
    tables.append(Table("In parts, other half", text, ("part", "pairs", *header), tuple(rows)))
    rows = [
        (name, *(f"{value:g}" for value in point), f"`{json.dumps(asdict(factors_of(point)))}`")
        for name, point in found.items()
    ]
    tables.append(Table("Factors", "", ("found for", *NAMES, "what --tlb takes"), tuple(rows)))
    return [table for table in tables if table.rows]


def picture(known: Known, aim: Aim, title: str) -> str:
    """Gain of every candidate that was measured on all recordings against each factor, as SVG.

    Args:
        known: Figures, as in ``Journal.known``.
        aim: What was looked for.
        title: For readers that do not see it.
    """
    without = known[CHOOSING, ONES]
    whole = {p: f for (half, p), f in known.items() if half == CHOOSING and len(f) == len(without)}
    points = list(whole)
    gains = np.array([aim.gains(f, without)[aim.objective] for f in whole.values()])
    kept = np.array([aim.score(f, without) > -1e3 for f in whole.values()])

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
