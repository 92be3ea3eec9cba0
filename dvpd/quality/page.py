"""The report as one HTML page that needs no network: tables, plots and spectrograms.

Plots are inline SVG whose text and axes take the page's colour, so that they read in light, dark
and print alike.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import BackendError
from ..runtime.spec import SAMPLE_RATE
from .metrics import MEASURES
from .pauses import block_levels
from .tables import Table, families, headline, ranked, settings, tables

PLOTTED = ("pesq", "estoi", "si_sdr", "dnsmos_ovrl")
PLOTTED_LEVELS = ("pause_lowered", "pause_worst", "pause_jump", "words_lost", "loud_level")
# Each reads on white and on near-black.
_COLOURS = ("#8a8f98", "#2f8fd6", "#e07b2d")
_CLEAN_COLOUR = "#2e9e5b"
_INK = "#123456"  # stands for the page's own colour until the SVG is written
_MAX_SECONDS = 60.0  # of a recording's pictures
_MAX_COLUMNS = 1200  # of a spectrogram
_DYNAMIC_RANGE_DB = 80.0
_LEVEL_BLOCK = SAMPLE_RATE // 10

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --soft: #5c6570;
  --line: #d5dae0; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e4e7eb; --soft: #9aa4b0;
  --line: #363c44; --band: #1d2126; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 78rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; overflow-wrap: anywhere; }
p { margin: .25rem 0 .75rem; color: var(--soft); max-width: 60rem; overflow-wrap: anywhere; }
/* a shadow at the edge behind which a table goes on */
.scroll { overflow-x: auto; background:
  linear-gradient(90deg, transparent, var(--paper) 50%) right / 3rem 100% no-repeat local,
  linear-gradient(270deg, #8886, transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; vertical-align: top; white-space: nowrap; }
td { border-top: 1px solid var(--line); }
.more td { border-top: 0; padding-top: 0; }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
tbody tr:hover { background: var(--band); }
td small { display: block; color: var(--soft); font-size: .92em; white-space: normal; }
th:first-child, td:first-child { position: sticky; left: 0;
  background: var(--paper) padding-box; }
th.text, td.text { text-align: left; }
td.wide { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr));
  gap: 1rem; }
figure { margin: 0; min-width: 0; }
figure.wide { overflow-x: auto; margin: 0 0 .75rem; }
figure.wide svg { min-width: 44rem; }
figure svg { width: 100%; height: auto; color: var(--ink); }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 1em; }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --band: #f4f4f4; }
  body { padding: 0; max-width: none; font-size: 8pt; } .scroll { overflow: visible; }
  .plots { grid-template-columns: 1fr 1fr; } figure.wide svg { min-width: 0; }
  table { font-size: 6pt; } th, td { white-space: normal; padding: .15rem .3rem; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def check_plots() -> None:
    """Refuse to start where the page cannot be drawn.

    Raises:
        BackendError: Matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BackendError("the report page needs Matplotlib: pip install 'dvpd[bench]'") from None


def _figure(width_in: float, height_in: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def svg_figure(name: str, width_in: float, height_in: float, draw: Callable[[Any], None]) -> str:
    """An inline SVG whose lines and letters take the page's colour.

    Args:
        name: What it shows, for readers that do not see it.
        width_in: Width (inches).
        height_in: Height (inches).
        draw: Draws on a fresh Matplotlib figure.
    """
    import matplotlib as mpl

    ink = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    )
    style: dict[Any, Any] = {  # matplotlib asks for a Literal of all its keys
        **ink,
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # ids are the same in each run, and differ between figures
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#8a8f98",
        "grid.alpha": 0.3,
    }
    stream = io.StringIO()
    with mpl.rc_context(style):
        figure = _figure(width_in, height_in)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, dpi=100, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    used = set(re.findall(r"""["(]#([^")]+)[")]""", text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(name, quote=True)}" ', 1)


def _values(records: Sequence[Mapping[str, Any]], system: str, metric: str) -> NDArray[np.float64]:
    return np.array([r["figures"][system][metric] for r in records], np.float64)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _label(metric: str) -> str:
    measure = MEASURES[metric]
    return f"{measure.label} ({measure.unit})" if measure.unit else measure.label


def _shown(report: Mapping[str, Any]) -> list[str]:
    """Noisy, predictive and what stands for the model: more could not be distinguished."""
    return list(dict.fromkeys(("noisy", "predictive", report["primary"])))


def _plotted(report: Mapping[str, Any]) -> list[str]:
    chosen = []
    for name, measured in families(report):
        wanted = PLOTTED_LEVELS if name else PLOTTED
        chosen += [m for m in wanted if m in measured] or measured[:4]
    return chosen


def _overview(report: Mapping[str, Any], metric: str) -> str:
    """Mean and interval of every system."""
    systems = list(report["systems"])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, system in enumerate(systems):
            part = report["systems"][system][metric]
            if not math.isfinite(part["mean"]):
                continue
            colour = _COLOURS[min(row, 2)]
            axes.plot([part["low"], part["high"]], [row, row], color=colour, linewidth=2.5)
            axes.plot([part["mean"]], [row], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(systems)), systems)
        axes.set_ylim(len(systems) - 0.5, -0.5)
        axes.set_xlabel(_label(metric))
        axes.grid(axis="x")

    return svg_figure(f"{_label(metric)} by system", 5.2, 0.9 + 0.27 * len(systems), draw)


def _boxes(report: Mapping[str, Any], metric: str) -> str:
    """Spread over files by degradation."""
    records = report["files"]
    names = list(report["groups"]) or [""]
    systems = _shown(report)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        height = 0.8 / len(systems)
        for i, system in enumerate(systems):
            data = [
                _finite(_values([r for r in records if not g or r["group"] == g], system, metric))
                for g in names
            ]
            rows = [n + (i - (len(systems) - 1) / 2) * height for n in range(len(names))]
            line = {"color": _COLOURS[i], "linewidth": 1.2}
            axes.boxplot(
                data,
                positions=rows,
                widths=height * 0.8,
                orientation="horizontal",
                manage_ticks=False,
                patch_artist=True,
                boxprops={"facecolor": _COLOURS[i] + "59", "edgecolor": _COLOURS[i]},
                medianprops={"color": _COLOURS[i], "linewidth": 2.2},
                whiskerprops=line,
                capprops=line,
                flierprops={"markeredgecolor": _COLOURS[i], "marker": ".", "markersize": 5},
            )
        labels = [textwrap.fill(name, 22) if name else "all files" for name in names]
        axes.set_yticks(range(len(names)), labels)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(_label(metric))
        axes.grid(axis="x")

    return svg_figure(f"{_label(metric)} by degradation", 5.2, 0.9 + 0.62 * len(names), draw)


def _scatter(report: Mapping[str, Any], metric: str) -> str:
    """Each file before and after."""
    records = report["files"]
    before = _values(records, "noisy", metric)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        ends = [_finite(before)]
        for i, system in enumerate(_shown(report)[1:], start=1):
            after = _values(records, system, metric)
            ends.append(_finite(after))
            axes.plot(
                before, after, "o", color=_COLOURS[i], markersize=4.5, alpha=0.75, markeredgewidth=0
            )
        everything = np.concatenate(ends)
        if everything.size:
            span = [float(everything.min()), float(everything.max())]
            axes.plot(span, span, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xlabel(f"{_label(metric)}, noisy")
        axes.set_ylabel(f"{_label(metric)}, enhanced")
        axes.grid()

    return svg_figure(f"{_label(metric)} of each file, noisy and enhanced", 5.2, 3.9, draw)


def _cut(wav: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(wav[: int(_MAX_SECONDS * SAMPLE_RATE)], np.float64)


def _levels(name: str, wavs: Mapping[str, NDArray[np.floating]]) -> str:
    """Level of one file over time: where noise comes back, the line of an output rises."""
    colours = {"clean": _CLEAN_COLOUR, "noisy": _COLOURS[0], "predictive": _COLOURS[1]}
    levels = {label: block_levels(_cut(wav), _LEVEL_BLOCK) for label, wav in wavs.items()}
    everything = np.concatenate(list(levels.values()))
    top = float(everything.max()) if everything.size else 0.0

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for label, level in levels.items():
            seconds = (np.arange(len(level)) + 0.5) * _LEVEL_BLOCK / SAMPLE_RATE
            axes.plot(
                seconds,
                np.maximum(level, top - _DYNAMIC_RANGE_DB),
                color=colours.get(label, _COLOURS[2]),
                linewidth=1.8 if label not in ("clean", "noisy") else 1.1,
                label=label,
            )
        axes.set_ylim(top - _DYNAMIC_RANGE_DB, top + 3.0)
        axes.margins(x=0.0)
        axes.set_xlabel("s")
        axes.set_ylabel("dB of full scale")
        axes.grid()
        figure.legend(loc="outside upper left", ncols=len(levels), frameon=False)

    return svg_figure(f"Level of {name} over time", 10.5, 2.9, draw)


def _spectrogram(name: str, wavs: Mapping[str, NDArray[np.floating]]) -> str:
    """Spectrograms of one file on one scale, dB below the loudest bin of all."""
    window = np.hanning(512)
    levels = {}
    for label, wav in wavs.items():
        cut = _cut(wav)
        cut = np.pad(cut, (0, max(0, 512 - len(cut))))
        frames = np.lib.stride_tricks.sliding_window_view(cut, 512)[::160] * window
        power = np.abs(np.fft.rfft(frames, axis=1)).T ** 2
        # a column for several frames of a long recording: their mean, none is skipped
        starts = np.arange(0, power.shape[1], -(-power.shape[1] // _MAX_COLUMNS))
        counts = np.diff([*starts, power.shape[1]])
        levels[label] = 10 * np.log10(np.add.reduceat(power, starts, axis=1) / counts + 1e-18)
        duration = len(cut) / SAMPLE_RATE
    top = max(float(level.max()) for level in levels.values())

    def draw(figure: Any) -> None:
        grid = figure.subplots(len(levels), 1, sharex=True, squeeze=False)[:, 0]
        image = None
        for axes, (label, level) in zip(grid, levels.items(), strict=True):
            image = axes.imshow(
                level - top,
                origin="lower",
                aspect="auto",
                extent=(0.0, duration, 0.0, SAMPLE_RATE / 2000),
                vmin=-_DYNAMIC_RANGE_DB,
                vmax=0.0,
                cmap="magma",
            )
            axes.set_title(label, loc="left", fontsize=9)
            axes.set_ylabel("kHz")
        grid[-1].set_xlabel("s")
        figure.colorbar(image, ax=list(grid), label="dB", pad=0.01, aspect=40)

    return svg_figure(f"Spectrograms of {name}", 10.5, 0.5 + 1.75 * len(levels), draw)


def _table(table: Table) -> str:
    right = [table.is_numeric(i) for i in range(len(table.header))]

    def cell(tag: str, i: int, text: str) -> str:
        kinds = [] if right[i] else ["text"]
        kinds += ["wide"] * (len(text) > 60)
        body = escape(text)
        if right[i]:  # the interval below the figure
            head, _, tail = body.partition(" [")
            body = f"{head}<small>[{tail}</small>" if tail else body
        return (
            f'<{tag} class="{" ".join(kinds)}">{body}</{tag}>'
            if kinds
            else f"<{tag}>{body}</{tag}>"
        )

    head = "".join(cell("th", i, text) for i, text in enumerate(table.header))
    rows = "".join(
        ("<tr>" if row[0] else '<tr class="more">')
        + "".join(cell("td", i, text) for i, text in enumerate(row))
        + "</tr>\n"
        for row in table.rows
    )
    note = f"<p>{escape(table.note)}</p>\n" if table.note else ""
    return (
        f'<section>\n<h2>{escape(table.title)}</h2>\n{note}<div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n</section>\n"
    )


def _plots(title: str, note: str, figures: Sequence[str]) -> str:
    inner = "\n".join(f"<figure>{figure}</figure>" for figure in figures)
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n<p>{note}</p>\n"
        f'<div class="plots">\n{inner}\n</div>\n</section>\n'
    )


def render_page(
    report: Mapping[str, Any],
    waveforms: Mapping[str, Mapping[str, NDArray[np.floating]]],
    n_extremes: int = 5,
) -> str:
    """The page.

    Args:
        report: The report.
        waveforms: File name -> label -> wav [L] at 16 kHz, drawn in this order.
        n_extremes: Best and worst files to show.

    Raises:
        BackendError: Matplotlib is missing.
    """
    check_plots()
    metrics = _plotted(report)
    # levels of the noisy input are zero by definition: nothing to plot against
    compared = [m for m in metrics if m not in PLOTTED_LEVELS]
    keys = [
        f'<span class="key" style="background:{_COLOURS[i]}"></span>{escape(system)}'
        for i, system in enumerate(_shown(report))
    ]
    count = len(families(report))
    every_table = tables(report, n_extremes)
    first, others = every_table[:count], every_table[count:]
    parts = [
        f"<h1>{escape(headline(report))}</h1>\n<p>{escape(settings(report))}</p>\n",
        *(_table(table) for table in first),
        _plots(
            "Systems",
            "Mean and its 95 % bootstrap interval.",
            [_overview(report, m) for m in metrics],
        ),
        _plots(
            "Spread by degradation",
            f"Median, quartiles, 1.5 interquartile ranges, outliers:{''.join(keys)}",
            [_boxes(report, m) for m in metrics],
        ),
        *(
            [
                _plots(
                    "Noisy against enhanced",
                    f"One point a file; on the dashed line nothing changed:{''.join(keys[1:])}",
                    [_scatter(report, m) for m in compared],
                )
            ]
            if compared
            else []
        ),
        *(_table(table) for table in others),
    ]
    if waveforms:
        gains: dict[str, list[str]] = {}
        for _, measures in families(report):
            metric, order = ranked(report, measures[0])
            for gain, r in order:
                gains.setdefault(r["name"], [r["group"]] if r["group"] else []).append(
                    f"{_label(metric)} {gain:+.{MEASURES[metric].decimals}f}"
                )
        parts.append(
            f"<section>\n<h2>Pictures of the worst files</h2>\n<p>By what was gained over the noisy "
            f"input; level over time in blocks of {_LEVEL_BLOCK / SAMPLE_RATE:g} s, spectrograms in "
            f"dB below the loudest bin of each file's panels; the first {_MAX_SECONDS:g} s.</p>\n"
        )
        for name, wavs in waveforms.items():
            words = ", ".join((name, *gains.get(name, ())))
            parts.append(f"<h3>{escape(words)}</h3>\n")
            for picture in (_levels, _spectrogram):
                parts.append(f'<figure class="wide">{picture(name, wavs)}</figure>\n')
        parts.append("</section>\n")
    title = escape(headline(report))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "".join(parts)
        + "</body>\n</html>\n"
    )
