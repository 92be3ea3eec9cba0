"""The README's quality table, the paper's sweeps (Tables 7 to 9) and quality against cost.

    python benchmarks/quality.py --set DEV/noise --set DEV/universal --markdown table.md
    python benchmarks/quality.py --set DEV/noise --sweeps alpha,steps,t_rs --html quality.html
    python benchmarks/quality.py --set DEV/noise --readme README.md
    python benchmarks/quality.py --from-json quality.json --peers peers.json --html pareto.html

Models are the shipped engines unless given. Sweeps vary one setting around the model's default:
alpha (Table 7), steps at the default start time (``steps``), steps of 0.04 from a growing start
time (``t_rs``, Table 9) and many steps over the whole diffusion time (``paper-steps``, Table 8;
slow). Levels are measured on every set: how far noise is lowered where nobody speaks, and what is left
of the speech. A set that says where somebody speaks (its own pairs.tsv) gets a table of them. What a
sampler costs is measured here, too, so that plots show quality against network calls and against the
real-time factor. ``--peers`` puts the peers of ``peers.py`` on the last plot.
"""

from __future__ import annotations

import argparse
import html
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks import rtf
from dvpd.benchmarks.common import machine, report_html, tables, timing
from dvpd.benchmarks.guard import shipped_engines
from dvpd.quality.pauses import BANDS_KHZ
from dvpd.runtime import command
from dvpd.runtime.backends.choose import cpu_quota
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.progress import show_status

FORMAT = "dvpd-quality-1"
METRICS = ("pesq", "estoi", "si_sdr")
# What a table of a set with pauses shows, besides the recording with the least lowered noise.
PAUSES = {
    "pause_lowered": ("noise lowered, dB", 1),
    "pause_worst": ("worst tenth, dB", 1),
    "pause_loudest": ("loudest 0.5 s, dB", 1),
    "pause_jump": ("jump, dB", 1),
    "words_lost": ("words lost, %", 1),
    "speech_level": ("speech level, dB", 1),
    "pesq_speech": ("PESQ, utterances", 2),
    "estoi_speech": ("ESTOI, utterances", 3),
}
BANDS = {f"speech_{a}_{b}": (f"{a}-{b} kHz, dB", 1) for a, b in BANDS_KHZ}
SPOKEN = {name: PAUSES[name] for name in ("words_lost", "speech_level")}  # of every set
LEVELS = tuple(PAUSES | BANDS)
TITLES = {"pesq": "PESQ", "estoi": "ESTOI", "si_sdr": "SI-SDR, dB"}
STEP_T = 0.04  # Table 9's fixed step
SWEEPS: dict[str, tuple[float, ...]] = {
    "alpha": (1.0, 0.8, 0.6, 0.4, 0.2, 0.0),
    "steps": (1, 2, 3, 4, 6, 8),
    "t_rs": (0.04, 0.08, 0.12, 0.16, 0.20, 0.24),
    "paper-steps": (10, 15, 20, 25, 30, 35, 40),
}
PAPER_TABLES = {"alpha": "Table 7", "t_rs": "Table 9", "paper-steps": "Table 8"}
BLOCK = "quality table"
RTF_WINDOW_S, RTF_RUNS = 2.048, 7

Say = Callable[[str], None]


def sweep_systems(manifest: Manifest, sweep: str) -> list[Any]:
    """The samplers of one sweep, as ``dvpd.quality.models.System``; the value is in the name.

    Args:
        manifest: The model's, for what the sweep leaves alone.
        sweep: Key of ``SWEEPS``.
    """
    from dvpd.quality.models import System

    d, systems = manifest.sampler, []
    for value in SWEEPS[sweep]:
        steps, alpha, t_rs = d.score_steps, d.alpha, d.t_rs
        if sweep == "alpha":
            alpha = value
        elif sweep == "steps":
            steps = int(value)
        elif sweep == "t_rs":
            steps, t_rs = round(value / STEP_T), value
        else:
            steps, t_rs = int(value), manifest.sde.t_max
        systems.append(System(f"{sweep}={value:g}", steps, alpha, "off", t_rs))
    return systems


def _say_pairs(say: Callable[[str], None], engine: str, done: int, total: int, _: Any) -> None:
    say(f"{engine}: {done} of {total} pairs")


def measure_model(
    path: Path, sets: Sequence[Path], sweeps: Sequence[str], *, limit: int = 0, jobs: int = 1,
    backend: str = "auto", say: Say = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Quality of one model on every set, and what its samplers cost here.

    Args:
        path: Engine folder or checkpoint.
        sets: Folders with noisy/ and clean/.
        sweeps: Keys of ``SWEEPS``; they are measured on the first set.
        limit: Evenly spaced pairs of each set; 0 for all.
        jobs: Processes.
        backend: For an engine folder.
        say: Receives what is being done.

    Raises:
        DvpdError: The model or a set cannot be used.
    """
    from dvpd.quality.models import sampler_grid
    from dvpd.quality.pairs import find_pairs, spread_sample
    from dvpd.quality.report import set_sha256, summarise_records
    from dvpd.quality.run import Task, measure_set

    task = Task(model=str(path), backend=backend, metrics=METRICS)
    with task.open() as enhancer:
        manifest, chosen = enhancer.manifest, enhancer.backend.name
    base = sampler_grid(manifest)
    result: dict[str, Any] = {
        "model": path.name if path.is_dir() else path.stem,
        "precision": manifest.precision,
        "backend": chosen,
        "default": asdict(manifest.sampler),
        "full_steps": manifest.sampler.score_steps,
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "gmacs": {k: v / 1e9 for k, v in manifest.macs_per_second.items()},
        "parameters": dict(manifest.parameters),
        "sets": {},
        "sweeps": {},
        "failures": [],
    }
    for i, folder in enumerate(sets):
        extra = [s for sweep in sweeps for s in sweep_systems(manifest, sweep)] if i == 0 else []
        systems = (*base, *extra)
        pairs = spread_sample(find_pairs(folder), limit)
        say(f"{path.name} on {folder.name}: {len(pairs)} pairs, {len(systems)} samplers")
        records, failures = measure_set(
            Task(**{**vars(task), "systems": systems, "metrics": METRICS + LEVELS}), pairs, jobs,
            partial(_say_pairs, say, folder.name),
        )  # fmt: skip
        result["failures"] += [{"set": folder.name, **f} for f in failures]
        if not records:
            raise InputError(f"{folder}: none of {len(pairs)} pairs could be measured")
        found = summarise_records(records)["systems"]  # what no recording has is left out
        summary = {s: {k: v for k, v in f.items() if v["n"]} for s, f in found.items()}
        name = folder.absolute().name
        result["sets"][name] = {
            "n": len(records),
            "sha256": set_sha256(records),
            "pauses": any(pair.speech for pair in pairs),
            "systems": {k: summary[k] for k in ("noisy", "predictive", *(s.name for s in base))},
        }
        for system in extra:
            sweep, _, value = system.name.partition("=")
            result["sweeps"].setdefault(sweep, []).append(
                {
                    "value": float(value),
                    "nfe": 1 + system.steps,
                    "set": name,
                    "figures": summary[system.name],
                }
            )
    steps = {0, manifest.sampler.score_steps}
    steps |= {p["nfe"] - 1 for points in result["sweeps"].values() for p in points}
    say(f"{path.name}: real-time factor of {len(steps)} samplers")
    result["rtf"] = measure_rtf(path, chosen, sorted(steps))
    return result


def measure_rtf(path: Path, backend: str, steps: Sequence[int]) -> dict[str, float]:
    """Median real-time factor by number of network calls, samplers interleaved.

    Raises:
        DvpdError: The model fails.
    """
    if path.is_dir() and Manifest.load(path).causal is not None:
        times = timing.time_files(path, backend, cpu_quota(), RTF_WINDOW_S, steps, RTF_RUNS)
        return {str(1 + n): statistics.median(t) / RTF_WINDOW_S for n, t in times.items()}
    item = timing.load(path, backend, "cpu", cpu_quota())
    if item.backend is None:
        raise InputError(item.error or f"{path} cannot be opened")
    rows = rtf.make_cases([item], [RTF_WINDOW_S], [1], list(steps), grid=False)
    timing.time_interleaved(rows, min_runs=RTF_RUNS, min_seconds=0)
    item.backend.close()
    done = [rtf.summarise(row) for row in rows]
    if failed := [row["error"] for row in done if row["status"] == "failed"]:
        raise InputError(failed[0])
    return {str(1 + row["steps"]): row["rtf"] for row in done}


# ------------------------------------------------------------------------------------------------
# Rendering


def _with_interval(part: dict[str, Any]) -> str:
    return f"{part['mean']:.2f} ({part['low']:.2f}-{part['high']:.2f})"


def full_steps(model: dict[str, Any]) -> int:
    """Steps of a model's system "full" (in results of 2026-11 always its default)."""
    steps: int = model.get("full_steps", model["default"]["n_steps"])
    return steps


def has_pauses(part: dict[str, Any]) -> bool:
    """Whether a set of a result is shown by its pauses (results of 2026-11 do not say it)."""
    return bool(part.get("pauses", "pause_lowered" in part["systems"]["noisy"]))


def _columns(part: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Columns of a set's table behind the usual measures, or instead of them."""
    columns = {**PAUSES, **BANDS} if has_pauses(part) else SPOKEN
    return {name: column for name, column in columns.items() if name in part["systems"]["noisy"]}


def _cells(part: dict[str, Any], system: str) -> list[str]:
    """A row of a set's table."""
    f = part["systems"][system]
    cells = [f"{f[name]['mean'] + 0.0:.{n}f}" for name, (_, n) in _columns(part).items()]
    if has_pauses(part):
        return [cells[0], f"{f['pause_lowered']['least'] + 0.0:.1f}", *cells[1:]]
    others = f"{f['estoi']['mean']:.3f}", f"{f['si_sdr']['mean']:.1f}"
    return [_with_interval(f["pesq"]), *others, *cells]


Grid = tuple[list[str], list[list[Any]]]  # header and rows


def set_grids(result: dict[str, Any]) -> list[Grid]:
    """One table for each set: the README's."""
    parts: list[Grid] = []
    names = list(result["models"][0]["sets"]) if result["models"] else []
    for name in names:
        rows: list[list[Any]] = []
        for i, model in enumerate(result["models"]):
            table = model["sets"][name]
            steps = full_steps(model)
            labels = {
                "noisy": "noisy",
                "predictive": f"`{model['model']}`, predictive alone (`--steps 0`)",
                "full": f"`{model['model']}`, {tables.steps_text(steps)}",
            }
            for system, text in labels.items():
                if system == "noisy" and i:
                    continue
                rows.append([text, *_cells(table, system)])
        first = result["models"][0]["sets"][name]
        header = [title for title, _ in _columns(first).values()]
        if has_pauses(first):
            header.insert(1, "least lowered, dB")
        else:
            header = ["PESQ", "ESTOI", "SI-SDR, dB", *header]
        parts.append(([f"{name}: {first['n']} recordings", *header], rows))
    return parts


def _how(result: dict[str, Any]) -> str:
    """What the figures of ``set_grids`` are."""
    return (
        "Mean, and for PESQ its 95 % bootstrap interval over recordings; "
        f"{', '.join(sorted({m['backend'] for m in result['models']}))}; "
        "`python benchmarks/quality.py` makes this table."
    )


def set_tables(result: dict[str, Any]) -> str:
    """``set_grids`` as Markdown."""
    parts = [tables.markdown(*grid) for grid in set_grids(result)]
    return "\n\n".join([*parts, _how(result)])


def sweep_grids(result: dict[str, Any]) -> list[tuple[str, Grid]]:
    """Title and table of each model and sweep."""
    parts: list[tuple[str, Grid]] = []
    for model in result["models"]:
        for sweep, points in model["sweeps"].items():
            rows = [
                [f"{p['value']:g}", p["nfe"], model["rtf"][str(p["nfe"])],
                 *(f"{p['figures'][m]['mean']:.3f}" for m in METRICS)]
                for p in points
            ]  # fmt: skip
            paper = f" (the paper's {PAPER_TABLES[sweep]})" if sweep in PAPER_TABLES else ""
            title = f"{model['model']}: {sweep}{paper}, {points[0]['set']}"
            header = [sweep, "network calls", "RTF", *(TITLES[m] for m in METRICS)]
            parts.append((title, (header, rows)))
    return parts


def sweep_tables(result: dict[str, Any]) -> str:
    """``sweep_grids`` as Markdown."""
    return "\n\n".join(
        f"### {title}\n\n{tables.markdown(*grid)}" for title, grid in sweep_grids(result)
    )


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind a block of a README."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace_block(text: str, block: str, name: str = BLOCK) -> str:
    """``text`` with what is between the two marks replaced.

    Raises:
        InputError: The marks are not there, once each and in order.
    """
    begin, end = marks(name)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"the file needs {begin} and {end}, once each and in this order")
    head, tail = text.split(begin)[0], text.split(end)[1]
    return f"{head}{begin}\n{block}\n{end}{tail}"


def _plot_sweep(model: dict[str, Any], sweep: str, metric: str, x: str) -> Callable[[Any], None]:
    points = model["sweeps"][sweep]
    values = {
        "value": [p["value"] for p in points],
        "nfe": [p["nfe"] for p in points],
        "rtf": [model["rtf"][str(p["nfe"])] for p in points],
    }[x]
    labels = {"value": sweep, "nfe": "network calls", "rtf": "real-time factor"}

    def draw(axes: Any) -> None:
        mean, low, high = ([p["figures"][metric][k] for p in points] for k in
                           ("mean", "low", "high"))  # fmt: skip
        axes.fill_between(values, low, high, color=report_html.COLOURS[0], alpha=0.12, lw=0)
        axes.plot(values, mean, "o-", color=report_html.COLOURS[0], ms=4)
        first = model["sets"][points[0]["set"]]["systems"]
        for system, style in (("noisy", ":"), ("predictive", "--")):
            axes.axhline(first[system][metric]["mean"], color=report_html.INK, lw=0.9, ls=style)
            axes.text(1.0, first[system][metric]["mean"], f" {system}", va="center", fontsize=8,
                      transform=axes.get_yaxis_transform())  # fmt: skip
        axes.set(xlabel=labels[x], ylabel=TITLES[metric])

    return draw


def pareto_points(result: dict[str, Any], peers: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Quality and cost of every model, sampler and peer that was measured on the first set."""
    points = []
    for model in result["models"]:
        name = next(iter(model["sets"]))
        table = model["sets"][name]
        p, s = (model["gmacs"].get(k, 0.0) for k in ("predictive", "score"))
        if not p:
            continue
        steps = full_steps(model)
        chosen = [("predictive", 0, table["systems"]["predictive"])]
        chosen.append((tables.steps_text(steps), steps, table["systems"]["full"]))
        chosen += [
            (tables.steps_text(q["nfe"] - 1), q["nfe"] - 1, q["figures"])
            for q in model["sweeps"].get("steps", [])
            if q["nfe"] - 1 != steps
        ]
        points += [
            {"name": f"{model['model']}, {text}", "gmacs": p + n * s, "ours": True,
             "pesq": figures["pesq"]["mean"], "low": figures["pesq"]["low"],
             "high": figures["pesq"]["high"]}
            | ({"label": str(n)} if n not in (0, steps) else {})  # their names would overlap
            for text, n, figures in chosen
        ]  # fmt: skip
    sha256 = {t["sha256"] for m in result["models"] for t in m["sets"].values()}
    ours = {m["model"] for m in result["models"]}  # peers.py measures them, too
    for peer in (peers or {}).get("peers", []):
        quality = peer.get("quality")
        if peer["name"].split(",")[0] in ours:
            continue
        if quality and peer.get("gmacs") and quality["sha256"] in sha256:
            points.append(
                {"name": peer["name"], "gmacs": peer["gmacs"], "ours": False,
                 "pesq": quality["pesq"]["mean"], "low": quality["pesq"]["low"],
                 "high": quality["pesq"]["high"]}
            )  # fmt: skip
    return points


def place_labels(axes: Any, labels: Sequence[tuple[str, float, float]]) -> list[Any]:
    """Write each label beside its point, where it covers no other label and no point.

    Args:
        axes: With its final limits and scales.
        labels: Text and point (data coordinates).

    Returns:
        The texts, for a test of what they cover.
    """
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # the layout is settled: boxes have their final places
    points = axes.transData.transform([(x, y) for _, x, y in labels])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in points]
    inside, texts = axes.get_window_extent(), []
    places = [
        (side * dx, dy, "left" if side > 0 else "right")
        for dy in (4, -10, 16, -22, 28, -34, 40, -46)
        for side, dx in ((1, 6), (-1, 6))
    ]
    for text, x, y in labels:
        for dx, dy, align in places:
            written = axes.annotate(
                text, (x, y), xytext=(dx, dy), textcoords="offset points", ha=align, fontsize=9
            )
            box = written.get_window_extent()
            free = not any(box.overlaps(other) for other in taken)
            if free and inside.x0 <= box.x0 and box.x1 <= inside.x1:
                break
            written.remove()
        else:  # no room at all: the table below has it
            continue
        taken.append(box)
        texts.append(written)
    return texts


def _plot_pareto(points: Sequence[dict[str, Any]]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for ours, mark, name in ((True, "o", "DVPD"), (False, "s", "other models")):
            some = [p for p in points if p["ours"] is ours]
            colour = report_html.COLOURS[0 if ours else 1]
            for p in some:
                axes.plot([p["gmacs"]] * 2, [p["low"], p["high"]], color=colour, lw=1, alpha=0.4)
            if some:
                axes.plot([p["gmacs"] for p in some], [p["pesq"] for p in some], mark,
                          color=colour, ms=6, label=name)  # fmt: skip
        axes.set_xscale("log")
        report_html.plain_log(axes.xaxis, (1.0,))
        axes.margins(x=0.15)
        axes.set(xlabel="GMAC per second of audio", ylabel="PESQ (95 % interval)")
        report_html.legend_above(axes)
        place_labels(axes, [(p.get("label", p["name"]), p["gmacs"], p["pesq"]) for p in points])

    return draw


def _pareto_grid(points: Sequence[dict[str, Any]]) -> Grid:
    """The figures of the plot of quality against cost, cheapest first."""
    rows: list[list[Any]] = [
        [p["name"], p["gmacs"], _with_interval({**p, "mean": p["pesq"]})]
        for p in sorted(points, key=lambda p: p["gmacs"])
    ]
    return ["model", "GMAC per second of audio", "PESQ (95 % interval)"], rows


def to_html(result: dict[str, Any], peers: dict[str, Any] | None) -> str:
    """One self-contained page: tables, sweeps, quality against cost; light and dark.

    Raises:
        InputError: matplotlib is not installed.
    """
    grid = report_html.html_table
    parts = []
    points = pareto_points(result, peers)
    if points:
        svg = report_html.figure(_plot_pareto(points), "pareto", (5.0, 4.2))
        parts.append(
            "<h2>Quality against arithmetic</h2>"
            f"<figure>{svg}<figcaption>The same recordings for all.</figcaption></figure>"
            + grid(*_pareto_grid(points))
        )
    parts.append("<h2>Quality</h2>")
    parts += [grid(header, _plain(rows)) for header, rows in set_grids(result)]
    parts.append(f'<p class="lead">{html.escape(_how(result).replace("`", ""))}</p>')
    for model in result["models"]:
        for sweep in model["sweeps"]:
            figures = []
            for metric in METRICS:
                for x in ("value",) if sweep == "alpha" else ("nfe", "rtf"):
                    salt = f"{model['model']}-{sweep}-{metric}-{x}"
                    svg = report_html.figure(_plot_sweep(model, sweep, metric, x), salt)
                    caption = html.escape(f"{model['model']}, {sweep}: {TITLES[metric]}")
                    figures.append(f"<figure>{svg}<figcaption>{caption}</figcaption></figure>")
            parts.append(f'<div class="plots">{"".join(figures)}</div>')
    for title, (header, rows) in sweep_grids(result):
        parts.append(f"<h2>{html.escape(title)}</h2>{grid(header, rows)}")
    weights = ", ".join(f"{m['model']} {m['checkpoint_sha256'][:12]}" for m in result["models"])
    lead = html.escape(f"Measured {result['created'][:10]}; weights (SHA-256): {weights}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Quality of DVPD models</title><style>{report_html.STYLE}</style></head><body>\n"
        f'<h1>Quality of DVPD models</h1><p class="lead">{lead}</p>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _plain(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Cells without Markdown's marks of code."""
    return [[c.replace("`", "") if isinstance(c, str) else c for c in row] for row in rows]


def read_peers(path: Path) -> dict[str, Any]:
    """A result of ``peers.py``.

    Raises:
        InputError: It cannot be read or is of another version.
    """
    try:
        peers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(peers, dict) or peers.get("format") != "dvpd-peers-1":
        raise InputError(f"{path}: not a result of this version's peers.py")
    return peers


def _sweeps(text: str) -> list[str]:
    names = [name for name in text.split(",") if name and name != "none"]
    if unknown := sorted(set(names) - set(SWEEPS)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not of {', '.join(SWEEPS)}, none")
    return names


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="quality.py", description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, help="default: every shipped engine")
    parser.add_argument(
        "--set", dest="sets", action="append", type=Path, default=[],
        help="folder with noisy/ and clean/; may be given again, sweeps use the first",
    )  # fmt: skip
    parser.add_argument(
        "--sweeps", type=_sweeps, default=[], help=f"of {', '.join(SWEEPS)} (default: none)"
    )
    parser.add_argument(
        "--limit", type=command.whole(0), default=0, help="evenly spaced pairs of each set"
    )
    parser.add_argument("--jobs", type=command.whole(1), help="processes (default: usable cores)")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--peers", type=Path, help="JSON of peers.py for the last plot")
    parser.add_argument(
        "--from-json", type=Path, metavar="IN", help="measure nothing: render what --json wrote"
    )
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--markdown", type=Path, metavar="OUT")
    parser.add_argument("--html", type=Path, metavar="OUT")
    parser.add_argument("--readme", type=Path, help=f"file whose text between {marks(BLOCK)[0]} and "
                        "its end is replaced by the tables")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _main)


def read(path: Path) -> dict[str, Any]:
    """A result of this command.

    Raises:
        InputError: It cannot be read or is of another version.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise InputError(f"{path}: not a result of this version's quality.py: measure again")
    return result


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    models = args.models or shipped_engines()
    if not models:
        raise InputError("no engine is shipped; give a model")
    if not args.sets:
        raise InputError("give --set FOLDER (with noisy/ and clean/) to measure, or --from-json")
    return {
        "format": FORMAT,
        "created": machine.now(),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "load_before": machine.load_average(),
        "models": [
            measure_model(
                path, args.sets, args.sweeps, limit=args.limit, jobs=args.jobs or cpu_quota(),
                backend=args.backend, say=show_status,
            )
            for path in models
        ],
    }  # fmt: skip


def _main(args: argparse.Namespace) -> int:
    # what can be refused is refused before time is spent
    peers = read_peers(args.peers) if args.peers else None
    if args.readme:
        replace_block(args.readme.read_text(encoding="utf-8"), "")
    for path in (args.json, args.markdown, args.html):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist")
        if path is not None and path.is_dir():
            raise InputError(f"{path}: is a folder; give a file name")
    result = read(args.from_json) if args.from_json else _measure(args)
    text = "\n\n".join(filter(None, [set_tables(result), sweep_tables(result)]))
    print(text)
    failures = [f for model in result["models"] for f in model["failures"]]
    for failure in failures:
        command.say(f"failed: {failure['set']} {failure['name']}: {failure['error']}")
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1) + "\n")
    if args.markdown:
        write_whole(args.markdown, text + "\n")
    if args.html:
        write_whole(args.html, to_html(result, peers))
    if args.readme:
        readme = args.readme.read_text(encoding="utf-8")
        write_whole(args.readme, replace_block(readme, set_tables(result)))
    return 1 if failures else 0


if __name__ == "__main__":
    command.leave(main())
