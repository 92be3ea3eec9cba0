"""A report of ``rtf.py`` as one HTML file with plots."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dvpd.benchmarks.common import tables
from dvpd.benchmarks.common.report import (
    Report,
    base_rows,
    label,
    protocol_lines,
    remarks,
    sections,
)
from dvpd.runtime.errors import InputError

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
.plots { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; max-width: 48rem; } figcaption { color: var(--soft); font-size: .86rem; }
svg { width: 100%; height: auto; color: var(--ink); }
svg text { font-family: system-ui, sans-serif !important; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0;
  background: var(--bg) padding-box; }
th:first-child, td:first-child, th.text, td.text { text-align: left; }
table.text td:last-child { white-space: normal; text-align: left; min-width: 12rem;
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
p, figcaption, h1, h2 { overflow-wrap: anywhere; }
"""


def figure(draw: Callable[[Any], None], salt: str, size: tuple[float, float] = (5.0, 3.5)) -> str:
    """An inline SVG whose lines and text take the page's colour, so that dark mode works.

    Args:
        draw: Draws on the axes that it is given.
        salt: Makes the ids of this figure different from those of others on the page.
        size: Width and height in inches. A narrow figure keeps its letters readable on a telephone.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'dvpd[bench]'") from None
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {  # matplotlib asks for a Literal of all its keys
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
        "ytick.color": INK, "grid.color": INK, "grid.alpha": 0.15, "axes.grid": True,
        "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
        "svg.hashsalt": salt, "font.family": "sans-serif", "font.size": 10,
        "legend.frameon": False, "legend.fontsize": 9, "axes.axisbelow": True,
        "axes.facecolor": "none",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained", dpi=72)  # as the SVG is written
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


def plain_log(axis: Any, subs: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Numbers like 0.2 and 40 on a logarithmic axis, few of them: ``subs`` of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_above(axes: Any, columns: int = 2, **options: Any) -> None:
    """The legend above the axes, where no curve runs through it."""
    axes.figure.legend(loc="outside upper left", ncols=columns, **options)


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
                      va={0.95: "top", 0.99: "bottom"}.get(p, "center"), fontsize=9)  # fmt: skip
        axes.set_xscale("log")
        plain_log(axes.xaxis)
        axes.set(xlabel="latency of one window, ms", ylabel="share of runs", ylim=(0, 1.02))
        legend_above(axes)

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
        axes.set_xticks(sorted({r["window_s"] for r in report["rows"] if r["window_s"]}))
        axes.set(xlabel="window, s", ylabel="real-time factor", ylim=(0, None))
        legend_above(axes)

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
        legend_above(axes, 3)

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
        axes.text(900, top * 1.1, f"{top:.0f} GFLOP/s", ha="right", fontsize=9)
        quarter = 0.25 * top / slope  # on the slanted roof, below the ridge
        axes.text(0.85 * quarter, slope * quarter, f"{slope:.0f} GB/s", ha="right", fontsize=9)
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
        plain_log(axes.xaxis, (1.0,))  # four decades in a narrow figure
        plain_log(axes.yaxis)
        low = min([p["gflops"] for p in points], default=1.0)
        axes.set(xlabel="operations a byte (unfused, line to perfectly fused)",
                 ylabel="GFLOP/s reached", xlim=(0.1, 1000), ylim=(min(low, slope) / 3, top * 2))  # fmt: skip
        legend_above(axes)

    return draw


def html_table(header: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> str:
    """An HTML table of class ``kind`` that scrolls by itself where the page is narrow.

    Columns of words are aligned to the left, those of figures to the right.
    """
    words = [
        any(isinstance(row[i], str) and row[i][:1].isalpha() for row in rows)
        for i in range(len(header))
    ]

    def line(cells: Sequence[Any], tag: str) -> str:
        texts = (
            f"<{tag}{' class=text' if text else ''}>{html.escape(tables.cell(cell))}</{tag}>"
            for text, cell in zip(words, cells, strict=True)
        )
        return f"<tr>{''.join(texts)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    head = f"<thead>{line(header, 'th')}</thead>" if any(header) else ""
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


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
            (figure(_plot_stages(report), "stages", (5.0, 1.9 + 0.45 * count)),
             f"Where the time goes: {case}; one segment for each score call."),
        ]  # fmt: skip
        if report["peak"] and roofline_points(report):
            figures.append(
                (figure(_plot_roofline(report), "roofline"),
                 "Roofline: the networks (round: predictive, square: score) against this machine's "
                 "measured peak arithmetic and memory bandwidth. Above the slanted roof, fusion and caches keep traffic away "
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
