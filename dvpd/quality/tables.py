"""An evaluation report as tables and text."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .metrics import MEASURES, Measure
from .pauses import BLIND_MEASURES, PAUSE_MEASURES


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: Heading.
        note: What to know about it, "" for nothing.
        header: First row.
        rows: The others.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers (a dash for none, an empty cell for the one above)."""
        return all(re.match(r"[-+]?[0-9]|-?$", row[column]) for row in self.rows)


Ranking = list[tuple[float, dict[str, Any]]]


def ranked(report: Mapping[str, Any], metric: str | None = None) -> tuple[str, Ranking]:
    """Files by what the model gained, worst first.

    Args:
        report: The report.
        metric: The measure; None for the first one of the report.

    Returns:
        The measure, and (gain of the primary system over the noisy input, record).
    """
    metric = metric or families(report)[0][1][0]
    sign = MEASURES[metric].better or 1
    gains = [
        (sign * (r["figures"][report["primary"]][metric] - r["figures"]["noisy"][metric]), r)
        for r in report["files"]
    ]
    finite = [item for item in gains if math.isfinite(item[0])]
    return metric, sorted(finite, key=lambda item: (item[0], item[1]["name"]))


def _text(value: float, measure: Measure, sign: bool = False) -> str:
    if not math.isfinite(value):
        return "-"
    value = round(value, measure.decimals) + 0.0  # no minus zero
    return f"{value:{'+' if sign else ''}.{measure.decimals}f}"


def _interval(part: Mapping[str, Any], measure: Measure, sign: bool = False) -> str:
    low, high = (_text(part[key], measure, sign) for key in ("low", "high"))
    return f"{low} to {high}"


def _heading(metric: str) -> str:
    measure = MEASURES[metric]
    return f"{measure.label} ({measure.unit})" if measure.unit else measure.label


def _difference_cell(part: Mapping[str, Any], metric: str) -> str:
    measure = MEASURES[metric]
    mark = " *" if part["significant"] else ""
    return f"{_text(part['mean'], measure, True)} [{_interval(part, measure, True)}]{mark}"


_LEVELS = {*PAUSE_MEASURES, *BLIND_MEASURES}


def families(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Measures that are shown together: name for headings, measures.

    Args:
        report: The report.

    Returns:
        Quality ("") and "pauses and levels", each where it was measured. A figure of the second that
        no recording has (a set without pauses) is left out.
    """
    names = list(report["systems"]["noisy"])
    levels = [
        m
        for m in names
        if m in _LEVELS and any(table[m]["n"] for table in report["systems"].values())
    ]
    both = [("", [m for m in names if m not in _LEVELS]), ("pauses and levels", levels)]
    return [(name, measures) for name, measures in both if measures]


def worst(part: Mapping[str, Any], measure: Measure) -> float:
    """The worst recording's figure: the lowest, the highest, or the one farthest from zero.

    Args:
        part: A ``Summary`` as a mapping.
        measure: Which measure it is of.
    """
    ends = (part["least"], part["most"])
    return float({1: ends[0], -1: ends[1]}.get(measure.better, max(ends, key=abs)))


def _summary(report: Mapping[str, Any], name: str, metrics: Sequence[str]) -> Table:
    def cell(part: Mapping[str, Any], m: str) -> str:
        text = f"{_text(part['mean'], MEASURES[m])} ± {_text(part['std'], MEASURES[m])}"
        lost = f" ({part['lost']} undefined)" if part["lost"] else ""
        return f"{text} [{_interval(part, MEASURES[m])}]{lost}"

    rows = []
    for system, table in report["systems"].items():
        rows.append((system, *(cell(table[m], m) for m in metrics)))
        if name:
            ends = (_text(worst(table[m], MEASURES[m]), MEASURES[m]) for m in metrics)
            rows.append(("worst recording", *ends))
    note = "Mean ± standard deviation over files, and the 95 % bootstrap interval of the mean."
    return Table(
        f"Summary: {name}" if name else "Summary",
        f"{note} {LEVELS_NOTE}" if name else note,
        ("system", *map(_heading, metrics)),
        tuple(rows),
    )


LEVELS_NOTE = (
    "Pauses are half a second and more away from speech, blocks half a second long; the worst "
    "recording of each column stands below. Speech level is against the clean side, without one the "
    "loudest tenth against the noisy input: 0 dB is best."
)


def tables(report: Mapping[str, Any], n_extremes: int = 5) -> list[Table]:
    """Everything that a reader wants, as tables.

    Args:
        report: The report.
        n_extremes: Best and worst files to show.
    """
    kinds = families(report)
    found: list[Table | None] = [_summary(report, name, metrics) for name, metrics in kinds]
    for other, (name, metrics) in itertools.product(("noisy", "predictive"), kinds):
        found.append(_difference_table(report, other, name, metrics))
    found += [_baseline_table(report, name, metrics) for name, metrics in kinds]
    found += [_group_table(report, name, metrics) for name, metrics in kinds]
    for name, metrics in kinds:
        found += _extreme_tables(report, name, metrics, n_extremes)
    if report["failures"]:
        rows = tuple((f["name"], f["error"]) for f in report["failures"])
        note = "They are in no figure of this report."
        found.append(Table("Failed files", note, ("file", "error"), rows))
    return [table for table in found if table is not None]


def _titled(title: str, family: str) -> str:
    return f"{title}: {family}" if family else title


def _difference_table(
    report: Mapping[str, Any], other: str, family: str, metrics: Sequence[str]
) -> Table | None:
    """Every system against the noisy input, or against the predictive branch alone."""
    rows = tuple(
        (system, *(_difference_cell(against[other][m], m) for m in metrics))
        for system, against in report["differences"].items()
        if other in against
    )
    if not rows:
        return None
    title = {"noisy": "the noisy input", "predictive": "the predictive branch alone"}[other]
    return Table(
        _titled(f"Difference to {title}", family),
        "Mean of the differences of the same files and its 95 % bootstrap interval; "
        "* where the interval leaves out zero (one comparison each, not corrected for "
        "their number).",
        ("system", *map(_heading, metrics)),
        rows,
    )


def _baseline_table(report: Mapping[str, Any], family: str, metrics: Sequence[str]) -> Table | None:
    """This report against an earlier one, where one was given."""
    if "baseline" not in report:
        return None
    base = report["baseline"]
    lacking = f" {base['missing']} files are in one report alone." if base["missing"] else ""
    return Table(
        _titled(f"Difference to the baseline {base['model']}", family),
        f"This report minus the baseline on {base['n_files']} files.{lacking} * where "
        "the 95 % bootstrap interval leaves out zero (not corrected for their number).",
        ("system", *map(_heading, metrics)),
        tuple(
            (system, *(_difference_cell(part[m], m) if m in part else "-" for m in metrics))
            for system, part in base["differences"].items()
        ),
    )


def _rows_by_system(
    first: tuple[str, ...],
    figures: Mapping[str, Mapping[str, float]],
    systems: Sequence[str],
    metrics: Sequence[str],
) -> Iterator[tuple[str, ...]]:
    """A row for each system; what they share stands in the first."""
    for system in systems:
        yield (*first, system, *(_text(figures[system][m], MEASURES[m]) for m in metrics))
        first = ("",) * len(first)


def _group_table(report: Mapping[str, Any], family: str, metrics: Sequence[str]) -> Table | None:
    """Means over the files of each degradation."""
    if not report["groups"]:
        return None
    return Table(
        _titled("By degradation", family),
        "Mean over the files of a group.",
        ("degradation", "files", "system", *map(_heading, metrics)),
        tuple(
            row
            for group, part in report["groups"].items()
            for row in _rows_by_system(
                (group, str(part["n"])), part["systems"], list(part["systems"]), metrics
            )
        ),
    )


def _extreme_tables(
    report: Mapping[str, Any], family: str, metrics: Sequence[str], count: int
) -> list[Table]:
    """The files that gained least and most; none where nothing is ranked."""
    systems = list(dict.fromkeys(("noisy", "predictive", report["primary"])))
    metric, order = ranked(report, metrics[0])
    measure = MEASURES[metric]
    least = order[:count]
    most = order[len(least) :][-count:][::-1] if count else []
    return [
        Table(
            _titled(title, family),
            f"By the gain in {measure.label} of {report['primary']} over noisy.",
            ("file", "degradation", "gain", "system", *map(_heading, metrics)),
            tuple(
                row
                for gain, r in chosen
                for row in _rows_by_system(
                    (r["name"], r["group"] or "-", _text(gain, measure, True)),
                    r["figures"],
                    systems,
                    metrics,
                )
            ),
        )
        for title, chosen in (("Worst files", least), ("Best files", most))
        if chosen
    ]


def headline(report: Mapping[str, Any]) -> str:
    """One line that says what was measured on what.

    Args:
        report: The report.
    """
    failed = f", {len(report['failures'])} failed" if report["failures"] else ""
    return (
        f"{report['model']} ({report['backend']}) on {report['set']}: {report['n_files']} "
        f"{'pairs' if report.get('reference', True) else 'recordings without a clean side'}{failed}"
    )


def settings(report: Mapping[str, Any]) -> str:
    """What it takes to measure the same again, in one line.

    Args:
        report: The report.
    """
    runs = "; ".join(
        f"{name}: steps {s['steps']}, alpha {s['alpha']:g}, TLB {s['tlb']}, t_rs {s['t_rs']:g}"
        for name, s in report["settings"].items()
    )
    tools = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"seed {report['seed']}; {runs or 'no sampler'}; set {report['set_sha256'][:12]}; {tools}"
    )


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def as_markdown(table: Table) -> str:
    """A table under its heading; ends with an empty line.

    Args:
        table: The table.
    """
    lines = [f"## {_escaped(table.title)}", ""]
    lines += [table.note, ""] if table.note else []
    numeric = [table.is_numeric(i) for i in range(len(table.header))]
    lines.append("| " + " | ".join(map(_escaped, table.header)) + " |")
    lines.append("|" + "|".join("---:" if right else "---" for right in numeric) + "|")
    lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in table.rows]
    return "\n".join([*lines, ""])


def markdown(report: Mapping[str, Any], n_extremes: int = 5) -> str:
    """The report in Markdown.

    Args:
        report: The report.
        n_extremes: Best and worst files to show.
    """

    lines = [f"# {_escaped(headline(report))}", "", _escaped(settings(report)), ""]
    return "\n".join([*lines, *map(as_markdown, tables(report, n_extremes))])


def plain(report: Mapping[str, Any]) -> str:
    """The means as aligned text: all files, then by group.

    Args:
        report: The report.
    """
    lines = [headline(report), "mean ± half the 95 % interval; by degradation: mean"]
    for name, metrics in families(report):
        rows = [[name, *(_heading(m) for m in metrics)]]
        for system, table in report["systems"].items():
            cells = []
            for m in metrics:
                half = (table[m]["high"] - table[m]["low"]) / 2
                cells.append(f"{_text(table[m]['mean'], MEASURES[m])} ± {_text(half, MEASURES[m])}")
            rows.append([system, *cells])
            if name:
                ends = (_text(worst(table[m], MEASURES[m]), MEASURES[m]) for m in metrics)
                rows.append(["  worst recording", *ends])
        for group, part in report["groups"].items():
            rows.append([f"{group} ({part['n']})"])
            for system, table in part["systems"].items():
                rows.append([f"  {system}", *(_text(table[m], MEASURES[m]) for m in metrics)])
        # A group's name stands alone and sets no width.
        full = [row for row in rows if len(row) > 1]
        widths = [max(len(row[i]) for row in full) for i in range(len(metrics) + 1)]
        for row in rows:
            first = row[0].ljust(widths[0])
            rest = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=False))
            lines.append("  ".join((first, *rest)).rstrip())
    lines += [f"failed: {f['name']}: {f['error']}" for f in report["failures"]]
    return "\n".join(lines)
