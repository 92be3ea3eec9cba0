"""Reports of ``rtf.py``: schema, tables, one HTML file with plots, comparison, conditions."""

from __future__ import annotations

import html
import io
import json
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dvpd.benchmarks.common import tables
from dvpd.runtime.errors import InputError

SCHEMA_FILE = Path(__file__).resolve().parent / "rtf.schema.json"
SCHEMA = "dvpd-rtf-1"
BOARD_SCHEMA = "dvpd-board-1"  # of board.py, which holds a whole report
BOOTSTRAP_DRAWS = 4000
SIGNIFICANCE = 0.05  # for all rows of a comparison together
LEAST_CHANGE = 0.02  # a difference smaller than this is not called one, however significant

Row = dict[str, Any]
Report = dict[str, Any]


# ------------------------------------------------------------------------------------------------
# Reading


def validate(report: Any, source: str = "this report") -> None:
    """Check a report against the published schema.

    Raises:
        InputError: It is of another version, or does not fit; the message says where.
    """
    version = report.get("schema") if isinstance(report, dict) else None
    if version != SCHEMA:
        raise InputError(
            f"{source}: schema is {version!r}; this version reads {SCHEMA!r}: measure again, or "
            "use the version of dvpd that wrote it"
        )
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        return  # the light install on a board: the writer is tested against the schema
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    for error in Draft202012Validator(schema).iter_errors(report):
        where = "/".join(map(str, error.absolute_path)) or "top level"
        raise InputError(f"{source}: does not fit the schema at {where}: {error.message[:200]}")


def read(path: Path) -> Report:
    """A validated report from a JSON file, or the one in a file of ``dvpd benchmark --report``.

    Raises:
        InputError: It cannot be read or does not fit.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    if isinstance(report, dict) and report.get("schema") == BOARD_SCHEMA:
        report = report.get("rtf")
    validate(report, str(path))
    return report  # type: ignore[no-any-return]


def label(row: Row) -> str:
    """Engine, backend and device in a few words."""
    return f"{row['engine']} {row['backend']}" + (
        "" if row["device"] in ("cpu", "auto") else f" {row['device']}"
    )


def key(row: Row) -> tuple[Any, ...]:
    """What makes rows of two reports the same case."""
    return tuple(row[k] for k in ("engine", "backend", "device", "frames", "batch", "steps"))


def base_rows(report: Report) -> list[Row]:
    """The base case of every engine and backend: the first of each axis; failures left out."""
    good = [row for row in report["rows"] if row["status"] == "ok"]
    if not good:
        return []
    first = good[0]
    return [r for r in good if all(r[k] == first[k] for k in ("frames", "batch", "steps"))]


# ------------------------------------------------------------------------------------------------
# Tables

HEADER = (
    "engine", "backend", "window, s", "batch", "steps", "RTF", "p50, ms", "p90", "p95", "p99",
    "max", "audio s / s", "runs",
)  # fmt: skip


def speed_rows(report: Report) -> list[list[Any]]:
    """One line a case; why one failed is among the remarks."""
    lines: list[list[Any]] = []
    for row in report["rows"]:
        where = row["backend"] + (
            f" {row['device']}" if row["device"] not in ("cpu", "auto") else ""
        )
        head = [row["engine"], where, row["window_s"], row["batch"], row["steps"]]
        if row["status"] == "failed":
            lines.append([*head, "failed", *[None] * (len(HEADER) - 6)])
            continue
        latency = [row["latency_ms"][k] for k in ("p50", "p90", "p95", "p99", "max")]
        lines.append([*head, row["rtf"], *latency, row["audio_s_per_s"], row["runs"]])
    return lines


def stage_rows(report: Report) -> list[list[Any]]:
    """Stages of the base cases, medians in ms."""
    lines = []
    for row in base_rows(report):
        s = row["stages_ms"]
        predictive, score = s["predictive"], " + ".join(map(tables.cell, s["score"])) or None
        if s.get("sampler") is not None:
            predictive, score = None, f"{tables.cell(s['sampler'])} (whole sampler)"
        lines.append([label(row), s["stft"], predictive, score, s["fusion"], s["istft"]])
    return lines


def process_rows(report: Report) -> list[list[Any]]:
    """Fresh processes: cold start, load, first window, memory."""
    names = ("cold_start_s", "start_s", "load_s", "first_window_s", "peak_rss_mib", "gpu_mib")
    return [
        [
            label(row),
            *(
                ["failed", *[None] * 5]
                if row["status"] == "failed"
                else [row[name] for name in names]
            ),
        ]
        for row in report["processes"]
    ]


def energy_rows(report: Report) -> list[list[Any]]:
    """Energy of every case and meter; empty without a meter."""
    return [
        [label(row), row["window_s"], row["batch"], row["steps"], meter, e["joules_per_audio_s"],
         e["watts"]]
        for row in report["rows"]
        if row["status"] == "ok" and row["energy"]
        for meter, e in row["energy"].items()
    ]  # fmt: skip


STAGE_HEADER = ("base case", "STFT, ms", "predictive", "score calls", "noise, fusion", "iSTFT")
PROCESS_HEADER = (
    "fresh process", "cold start, s", "imports, s", "load, s", "first window, s", "peak RSS, MiB",
    "GPU, MiB",
)  # fmt: skip
ENERGY_HEADER = ("case", "window, s", "batch", "steps", "meter", "J / s of audio", "W")


def no_energy(report: Report) -> str:
    """Why there are no energy figures, in a sentence; empty if there are."""
    if report["meters"]["found"]:
        return ""
    reasons = "; ".join(f"{k}: {v}" for k, v in report["meters"]["absent"].items())
    return f"No energy figures, for want of a meter ({reasons})."


def protocol_lines(report: Report) -> list[tuple[str, str]]:
    """The protocol as (name, text)."""
    p, m, peak = report["protocol"], report["machine"], report["peak"]
    clocks = p["clocks_mhz"]
    git = p["git"]
    share = p["others_cpu_share"]
    lines = [
        ("measured", report["created"]),
        ("machine", f"{m['cpu']}, {m['usable_cores']} of {m['logical_cores']} cores, "
         f"{tables.cell(m['memory_gib'])} GiB, {m['os']}"),
        ("board, GPUs", ", ".join(filter(None, [m["board"], *m["gpus"]])) or "none"),
        ("what is timed", p["timed"]),
        ("statistic", f"at least {p['min_runs']} runs and {p['min_seconds']} s of each case after "
         f"{p['warm_up_rounds']} warm-up rounds; cases interleaved in a new order every round, "
         f"{p['settle_s']} s pause between engines"),
        ("threads, affinity", f"{p['threads']}; cores {p['affinity']}"),
        ("governor, clocks", f"{', '.join(p['governors']) or 'not shown by this system'}; "
         + (f"{clocks[0]:.0f} to {clocks[1]:.0f} MHz" if clocks else "not shown")),
        ("nvpmodel", p["nvpmodel"] or "none"),
        ("load average", f"{p['load_before']} before, {p['load_after']} after; other processes "
         + ("not known" if share is None else f"{share:.1%} of all cores' time while timing")),
        ("peak of this machine", "not measured" if peak is None else
         f"{peak['gflops']:.0f} GFLOP/s (float32 product), {peak['bandwidth_gbs']:.1f} GB/s "
         f"({peak['threads']} threads)"),
        ("versions", ", ".join(f"{k} {v}" for k, v in p["versions"].items())),
        ("revision", "not a checkout" if git is None else
         git["revision"] + (" with changes" if git["modified"] else "")),
        ("graphs", "; ".join(
            f"{e}: " + ", ".join(f"{g} {h[:12]}" for g, h in t.items())
            for e, t in p["graphs"].items())),
    ]  # fmt: skip
    return lines + ([("note", p["note"])] if p.get("note") else [])


def sections(report: Report) -> list[tuple[str, Sequence[str], list[list[Any]]]]:
    """(title, header, rows) of every table that has rows."""
    parts = [
        ("Speed", HEADER, speed_rows(report)),
        ("Stages", STAGE_HEADER, stage_rows(report)),
        ("Start and memory", PROCESS_HEADER, process_rows(report)),
        ("Energy", ENERGY_HEADER, energy_rows(report)),
    ]
    return [part for part in parts if part[2]]


def remarks(report: Report) -> list[str]:
    """Warnings, missing meters and backends that did not run."""
    lines = [f"Warning: {text}." for text in report["warnings"]]
    failed = [r for r in (*report["rows"], *report["processes"]) if r["status"] == "failed"]
    lines += dict.fromkeys(f"Failed: {label(r)} ({r['error']})." for r in failed)
    lines += [f"Not run: {x['backend']} ({x['reason']})." for x in report["not_run"]]
    return lines + ([no_energy(report)] if no_energy(report) else [])


def show(report: Report) -> None:
    """Print the tables on the terminal."""
    for title, header, rows in sections(report):
        tables.show(title, header, rows)
    for line in remarks(report):
        print(line)


def to_markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = ["# Speed of DVPD engines", *remarks(report)]
    for title, header, rows in sections(report):
        parts += [f"## {title}", tables.markdown(header, rows)]
    parts += ["## Protocol", tables.markdown(("", ""), protocol_lines(report))]
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------------------
# Conditions

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CONDITION = re.compile(rf"\s*(\w+)\s*(<=|>=|<|>)\s*({_NUMBER})\s*(?:@\s*(.*?))?\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_FIELDS: dict[str, Callable[[Row], float]] = {
    "rtf": lambda r: r["rtf"],
    "rtf_p95": lambda r: r["rtf_p95"],
    "audio_s_per_s": lambda r: r["audio_s_per_s"],
    **{
        f"{k}_ms": (lambda r, k=k: r["latency_ms"][k])  # type: ignore[misc]
        for k in ("p50", "p90", "p95", "p99", "max", "mean")
    },
    **{
        k: (lambda r, k=k: r[k])  # type: ignore[misc]
        for k in ("cold_start_s", "load_s", "first_window_s", "peak_rss_mib", "gpu_mib")
    },
}
_PROCESS_FIELDS = ("cold_start_s", "load_s", "first_window_s", "peak_rss_mib", "gpu_mib")
_FILTERS = ("engine", "backend", "device", "precision", "window_s", "batch", "steps")


@dataclass(frozen=True)
class Condition:
    """One ``--assert``: a field, a comparison, a limit, and the rows that it is about."""

    text: str
    name: str
    comparison: str
    limit: float
    filters: tuple[tuple[str, str], ...]


def parse_condition(text: str) -> Condition:
    """Read "rtf<0.5" or "p99_ms<900 @ backend=ort steps=3".

    Raises:
        InputError: It is not of this form, or names what no row has.
    """
    match = _CONDITION.fullmatch(text)
    if match is None or match[1] not in _FIELDS:
        raise InputError(
            f"condition {text!r}; expected FIELD<NUMBER, with <, <=, > or >=, and perhaps "
            f"'@ KEY=VALUE ...'; fields: {', '.join(_FIELDS)}"
        )
    filters = []
    for part in (match[4] or "").split():
        name, equals, value = part.partition("=")
        if not equals or name not in _FILTERS:
            raise InputError(
                f"condition {text!r}: {part!r} chooses no rows; expected KEY=VALUE with one of "
                f"{', '.join(_FILTERS)}"
            )
        filters.append((name, value))
    return Condition(text, match[1], match[2], float(match[3]), tuple(filters))


def _chosen(row: Row, filters: Sequence[tuple[str, str]]) -> bool:
    for name, value in filters:
        have = row.get(name)
        if isinstance(have, (int, float)):
            try:
                # a window is named by its round length: 2.048 for 2.04 s of samples
                if not math.isclose(have, float(value), abs_tol=0.02):
                    return False
            except ValueError:
                return False
        elif have != value:
            return False
    return True


def check(condition: Condition, report: Report) -> list[str]:
    """Where a condition is not met, one line each; a row that failed meets nothing.

    Args:
        condition: From ``parse_condition``.
        report: The report.
    """
    cold = condition.name in _PROCESS_FIELDS
    rows = [
        r for r in report["processes" if cold else "rows"] if _chosen(r, condition.filters)
    ]  # fmt: skip
    if not rows:
        return [f"{condition.text}: no row was measured that it is about"]
    missed = []
    for row in rows:
        where = label(row) if cold else (
            f"{label(row)}, {row['window_s']} s, batch {row['batch']}, {row['steps']} steps"
        )  # fmt: skip
        if row["status"] == "failed":
            missed.append(f"{condition.text}: {where} failed ({row['error']})")
            continue
        value = _FIELDS[condition.name](row)
        if value is None:
            missed.append(f"{condition.text}: {where} has no such figure on this machine")
        elif not _COMPARE[condition.comparison](value, condition.limit):
            missed.append(f"{condition.text}: {where} has {tables.cell(float(value))}")
    return missed


# ------------------------------------------------------------------------------------------------
# Comparison


@dataclass(frozen=True)
class Change:
    """One case of two reports.

    Attributes:
        name: The case in words.
        before_ms: Median of the first report, None where it has no such case.
        after_ms: Median of the second.
        ratio: After over before.
        low: Lower end of the ratio's bootstrap interval.
        high: Its upper end.
        verdict: "faster", "slower", "no difference shown", or why there is none.
    """

    name: str
    before_ms: float | None
    after_ms: float | None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""


def bootstrap_ratio(
    before: Sequence[float], after: Sequence[float], level: float, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of medians after / before and its percentile-bootstrap interval.

    Args:
        before: Samples.
        after: Samples.
        level: Probability that the interval leaves out, both ends together.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)

    def medians(samples: Sequence[float]) -> Any:
        array = np.asarray(samples)
        return np.median(array[rng.integers(len(array), size=(BOOTSTRAP_DRAWS, len(array)))], 1)

    ratios = medians(after) / medians(before)
    low, high = np.quantile(ratios, (level / 2, 1 - level / 2))
    return float(np.median(after) / np.median(before)), float(low), float(high)


def compare(a: Report, b: Report) -> list[Change]:
    """What differs from report ``a`` to report ``b``, case by case.

    A case is called faster or slower if the interval of the ratio of medians, at 5 % for all cases
    together (Bonferroni), leaves out one, and the ratio differs from one by 2 % or more.
    """
    first, second = ({key(r): r for r in report["rows"]} for report in (a, b))
    both = [k for k in first if k in second]
    level = SIGNIFICANCE / max(len(both), 1)
    changes = []
    for k in dict.fromkeys([*first, *second]):
        x, y = first.get(k), second.get(k)
        row = x or y
        assert row is not None
        name = f"{label(row)}, {row['window_s']} s, batch {row['batch']}, {row['steps']} steps"
        p = x["latency_ms"]["p50"] if x and x["status"] == "ok" else None
        q = y["latency_ms"]["p50"] if y and y["status"] == "ok" else None
        if x is None or y is None:
            side = "first" if y is None else "second"
            changes.append(Change(name, p, q, verdict=f"only in the {side} report"))
        elif p is None or q is None:
            side = "first" if p is None else "second"
            changes.append(Change(name, p, q, verdict=f"failed in the {side} report"))
        else:
            ratio, low, high = bootstrap_ratio(x["samples_ms"], y["samples_ms"], level)
            verdict = "no difference shown"
            if high < 1 and ratio <= 1 - LEAST_CHANGE:
                verdict = "faster"
            elif low > 1 and ratio >= 1 + LEAST_CHANGE:
                verdict = "slower"
            changes.append(Change(name, p, q, ratio, low, high, verdict))
    for report, what in ((a, "first"), (b, "second")):
        for text in report["warnings"]:
            changes.append(Change(f"warning of the {what} report: {text}", None, None))
    if a["machine"]["cpu"] != b["machine"]["cpu"]:
        text = f"different machines: {a['machine']['cpu']}, {b['machine']['cpu']}"
        changes.append(Change(text, None, None))
    return changes


def render_comparison(changes: Sequence[Change], first: str, second: str) -> str:
    """The comparison as text."""
    rows = [
        [c.name, c.before_ms, c.after_ms, c.ratio,
         None if c.low is None else f"{c.low:.3f} to {c.high:.3f}", c.verdict]
        for c in changes
        if c.verdict
    ]  # fmt: skip
    header = (
        "case", "before, ms", "after, ms", "ratio", "interval (5 % for all cases)", "verdict",
    )  # fmt: skip
    count = {v: sum(c.verdict == v for c in changes) for v in ("faster", "slower")}
    notes = [c.name for c in changes if not c.verdict]
    return "\n".join(
        [
            f"{second} against {first}: {count['faster']} cases significantly faster, "
            f"{count['slower']} slower.",
            *notes,
            tables.markdown(header, rows),
        ]
    )


# ------------------------------------------------------------------------------------------------
# HTML

COLOURS = (
    "#3b82c4", "#e0762f", "#3a9d5d", "#c2478f", "#8a6fd1", "#b89a1c", "#2aa6a6", "#d0514f",
)  # fmt: skip
STAGES = ("STFT", "predictive", "score calls", "noise, fusion", "iSTFT")
STAGE_KEYS = {
    "STFT": "stft", "score calls": "score", "noise, fusion": "fusion", "iSTFT": "istft",
    "whole sampler": "sampler",
}  # fmt: skip
INK = "#010203"  # stands for the page's text colour until the SVG is written
STYLE = """
:root { color-scheme: light dark; --bg: #ffffff; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5;
  --warn: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --bg: #12161c; --ink: #e4e9f0; --soft: #97a3b3;
  --line: #2d3642; --warn: #3a2f12; } }
body { background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.2rem; font-size: 1.2rem; }
p.lead { color: var(--soft); margin-top: 0; }
.warn { background: var(--warn); padding: .5rem .8rem; border-radius: .4rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(27rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .86rem; }
svg { width: 100%; height: auto; color: var(--ink); }
svg text { font-family: system-ui, sans-serif !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, td:nth-child(2), table.text td { text-align: left; }
th { color: var(--soft); font-weight: 600; }
"""


def figure(draw: Callable[[Any], None], salt: str, size: tuple[float, float] = (6.2, 4.0)) -> str:
    """An inline SVG whose lines and text take the page's colour, so that dark mode works."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'dvpd[bench]'") from None
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
        "ytick.color": INK, "grid.color": INK, "grid.alpha": 0.15, "axes.grid": True,
        "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
        "svg.hashsalt": salt, "font.family": "sans-serif", "font.size": 9.5,
        "legend.frameon": False, "legend.fontsize": 8.5, "axes.axisbelow": True,
        "axes.facecolor": "none",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        draw(axes)
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def _colour(report: Report) -> dict[str, str]:
    names = list(dict.fromkeys(label(r) for r in report["rows"]))
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def plain_log(axis: Any) -> None:
    """Numbers like 0.2 and 40 on a logarithmic axis, few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _plot_latency(report: Report) -> Callable[[Any], None]:
    colours = _colour(report)

    def draw(axes: Any) -> None:
        for row in base_rows(report):
            x = np.sort(row["samples_ms"])
            y = np.arange(1, len(x) + 1) / len(x)
            axes.step(x, y, where="post", color=colours[label(row)], label=label(row), lw=1.8)
        for p in (0.5, 0.95, 0.99):
            axes.axhline(p, color=INK, lw=0.7, alpha=0.5, ls=":")
            axes.text(1.0, p, f" p{100 * p:.0f}", transform=axes.get_yaxis_transform(),
                      va="center", fontsize=8)  # fmt: skip
        axes.set_xscale("log")
        plain_log(axes.xaxis)
        axes.set(xlabel="latency of one window, ms", ylabel="share of runs", ylim=(0, 1.02))
        axes.legend(loc="lower right")

    return draw


def _plot_windows(report: Report) -> Callable[[Any], None]:
    colours, base = _colour(report), base_rows(report)[0]

    def draw(axes: Any) -> None:
        for name, colour in colours.items():
            rows = sorted(
                (r for r in report["rows"] if r["status"] == "ok" and label(r) == name
                 and r["batch"] == base["batch"] and r["steps"] == base["steps"]),
                key=lambda r: r["window_s"],
            )  # fmt: skip
            if rows:
                x = [r["window_s"] for r in rows]
                axes.plot(x, [r["rtf"] for r in rows], "o-", color=colour, label=name, ms=4)
                axes.plot(x, [r["rtf_p95"] for r in rows], "--", color=colour, lw=0.9, alpha=0.7)
        if max(axes.get_ylim()) > 0.8:
            axes.axhline(1.0, color=INK, lw=1, ls="--")
            axes.text(0.01, 1.0, "real time", transform=axes.get_yaxis_transform(), va="bottom")
        axes.set_xscale("log")
        plain_log(axes.xaxis)
        axes.set(xlabel="window, s", ylabel="real-time factor", ylim=(0, None))
        axes.legend(loc="best")

    return draw


def _plot_stages(report: Report) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        rows = base_rows(report)[::-1]
        left = np.zeros(len(rows))
        whole = any(r["stages_ms"].get("sampler") for r in rows)
        for stage, colour in zip((*STAGES, *["whole sampler"] * whole), COLOURS, strict=False):
            name = STAGE_KEYS.get(stage, stage)
            values = [r["stages_ms"].get(name) or 0.0 for r in rows]
            if stage == "score calls":
                # one segment a call, a gap between them
                calls = [r["stages_ms"]["score"] for r in rows]
                for call in range(max(map(len, calls), default=0)):
                    part = np.array([v[call] if call < len(v) else 0.0 for v in calls])
                    axes.barh(range(len(rows)), part, left=left, color=colour, height=0.6,
                              label=stage if call == 0 else None, edgecolor="#ffffff", lw=0.8)  # fmt: skip
                    left = left + part
                continue
            part = np.array(values)
            axes.barh(range(len(rows)), part, left=left, color=colour, height=0.6, label=stage)
            left = left + part
        axes.set_yticks(range(len(rows)), [label(r) for r in rows])
        axes.set(xlabel="ms a window (medians)")
        axes.grid(axis="y", visible=False)
        axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1.0))

    return draw


def roofline_points(report: Report) -> list[dict[str, Any]]:
    """Each base case's graphs: operations a byte without fusion, and GFLOP/s reached."""
    points = []
    for row in base_rows(report):
        costs = report["costs"].get(row["engine"])
        if costs is None or costs["frames"] != row["frames"]:
            continue
        score = row["stages_ms"]["score"]
        for graph, ms in (
            ("predictive", row["stages_ms"]["predictive"]),
            ("score", float(np.median(score)) if score else None),
        ):
            if ms:
                c = costs[graph]
                operations = c["operations"] * row["batch"]
                points.append(
                    {
                        "name": label(row),
                        "graph": graph,
                        "intensity": c["operations"] / c["bytes_moved"],
                        "intensity_fused": c["operations"] / c["bytes_least"],
                        "gflops": operations / ms / 1e6,
                    }
                )
    return points


def _plot_roofline(report: Report) -> Callable[[Any], None]:
    colours, peak, points = _colour(report), report["peak"], roofline_points(report)

    def draw(axes: Any) -> None:
        top, slope = peak["gflops"], peak["bandwidth_gbs"]
        x = np.geomspace(0.1, 1000, 200)
        axes.plot(x, np.minimum(top, slope * x), color=INK, lw=1.6)
        axes.text(900, top * 1.1, f"{top:.0f} GFLOP/s", ha="right", fontsize=8.5)
        quarter = 0.25 * top / slope  # on the slanted roof, below the ridge
        axes.text(0.85 * quarter, slope * quarter, f"{slope:.0f} GB/s", ha="right", fontsize=8.5)
        seen: set[str] = set()
        for p in points:
            marker = "o" if p["graph"] == "predictive" else "s"
            name = None if p["name"] in seen else p["name"]
            seen.add(p["name"])
            axes.plot([p["intensity"], p["intensity_fused"]], [p["gflops"]] * 2, "-", lw=0.9,
                      color=colours[p["name"]], alpha=0.5)  # fmt: skip
            axes.plot(p["intensity"], p["gflops"], marker, color=colours[p["name"]], label=name,
                      ms=6)  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            plain_log(axis)
        low = min([p["gflops"] for p in points], default=1.0)
        axes.set(xlabel="operations a byte (unfused, line to perfectly fused)",
                 ylabel="GFLOP/s reached", xlim=(0.1, 1000), ylim=(min(low, slope) / 3, top * 2))  # fmt: skip
        axes.legend(loc="lower right", title="round: predictive, square: score")

    return draw


def html_table(header: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> str:
    """An HTML table of class ``kind`` that scrolls by itself where the page is narrow."""

    def line(cells: Sequence[Any], tag: str) -> str:
        texts = (html.escape(tables.cell(c)) for c in cells)
        return "<tr>" + "".join(f"<{tag}>{t}</{tag}>" for t in texts) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    head = line(header, "th") if any(header) else ""
    return f'<div class="scroll"><table class="{kind}">{head}{body}</table></div>'


def to_html(report: Report) -> str:
    """One self-contained HTML file: plots as inline SVG, tables, protocol; light and dark.

    Raises:
        InputError: matplotlib is not installed.
    """
    figures = []
    if base_rows(report):
        b = base_rows(report)[0]
        case = f"window {b['window_s']} s, batch {b['batch']}, {b['steps']} steps"
        count = len(base_rows(report))
        figures = [
            (figure(_plot_latency(report), "latency"),
             f"Distribution of latency: {case}. A curve further left is faster, a steep one "
             "steadier."),
            (figure(_plot_windows(report), "windows"),
             f"Real-time factor against window, batch {b['batch']}, {b['steps']} steps: median, "
             "dashed p95."),
            (figure(_plot_stages(report), "stages", (6.2, 1.9 + 0.5 * count)),
             f"Where the time goes: {case}; one segment for each score call."),
        ]  # fmt: skip
        if report["peak"] and roofline_points(report):
            figures.append(
                (figure(_plot_roofline(report), "roofline"),
                 "Roofline: the networks against this machine's measured peak arithmetic and "
                 "memory bandwidth. Above the slanted roof, fusion and caches keep traffic away "
                 "from memory.")
            )  # fmt: skip
    plots = "".join(
        f"<figure>{svg}<figcaption>{html.escape(text)}</figcaption></figure>"
        for svg, text in figures
    )
    m = report["machine"]
    lead = f"{m['board'] or m['cpu']}, {report['created'][:10]}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Speed of DVPD engines</title><style>{STYLE}</style></head><body>",
        f'<h1>Speed of DVPD engines</h1><p class="lead">{html.escape(lead)}</p>',
        *(
            f'<p class="{"warn" if t.startswith("Warning") else ""}">{html.escape(t)}</p>'
            for t in remarks(report)
        ),
        f'<div class="plots">{plots}</div>',
    ]
    for title, header, rows in sections(report):
        parts.append(f"<h2>{title}</h2>{html_table(header, rows)}")
    parts.append(f"<h2>Protocol</h2>{html_table(('', ''), protocol_lines(report), 'text')}")
    return "\n".join([*parts, "</body></html>", ""])
