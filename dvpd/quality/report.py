"""Figures of a run as one JSON value, and as tables, CSV and Markdown."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from ..runtime.files import write_whole
from .metrics import MEASURES, Measure, paired, summarise
from .models import System
from .pauses import BLIND_MEASURES, PAUSE_MEASURES

FORMAT = 2
REPORT_FILES = ("report.json", "files.csv", "report.md", "index.html")
_PACKAGES = ("numpy", "scipy", "torch", "onnxruntime", "openvino", "pesq", "pystoi")


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


def _columns(
    records: Sequence[dict[str, Any]],
) -> Iterator[tuple[str, str, list[float]]]:
    for system, figures in records[0]["figures"].items():
        for metric in figures:
            yield system, metric, [r["figures"][system][metric] for r in records]


def summarise_records(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summaries by system and measure, paired differences, and means by group.

    Args:
        records: From ``measure_pair``, at least one, all with the same systems and measures.

    Returns:
        "systems": system -> measure -> ``Summary``; "differences": system -> "noisy" or
        "predictive" -> measure -> ``Difference`` of the system to it; "groups": group -> "n" and
        "systems" -> system -> measure -> mean.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for system, metric, column in _columns(records):
        values.setdefault(system, {})[metric] = column
    result: dict[str, Any] = {
        "systems": {
            system: {metric: asdict(summarise(column)) for metric, column in table.items()}
            for system, table in values.items()
        },
        "differences": {
            system: {
                other: {
                    metric: asdict(paired(column, values[other][metric]))
                    for metric, column in table.items()
                }
                for other in ("noisy", "predictive")
                if other in values and list(values).index(other) < list(values).index(system)
            }
            for system, table in values.items()
            if system != "noisy"
        },
        "groups": {},
    }
    for group in sorted({r["group"] for r in records} - {""}, key=_natural):
        chosen = [r for r in records if r["group"] == group]
        table: dict[str, Any] = {"n": len(chosen), "systems": {}}
        for system, metric, column in _columns(chosen):
            table["systems"].setdefault(system, {})[metric] = summarise(column, draws=1).mean
        result["groups"][group] = table
    return result


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Sort key that puts "snr 5" before "snr 10"."""
    key = []
    for word in text.split():
        try:
            key.append((0, float(word), ""))
        except ValueError:
            key.append((1, 0.0, word))
    return key


def primary_system(systems: Sequence[System], manifest: Any) -> str:
    """The system that stands for the model: its own defaults if measured, else the first sampler.

    Args:
        systems: From ``sampler_grid``.
        manifest: The model's manifest.
    """
    default = manifest.sampler
    for system in systems:
        settings = (system.steps, system.alpha, system.t_rs, system.tlb)
        if settings == (default.n_steps, default.alpha, default.t_rs, "off"):
            return system.name
    return systems[0].name if systems else "predictive"


def set_sha256(records: Sequence[Mapping[str, Any]]) -> str:
    """One hash for all the files measured.

    Args:
        records: From ``measure_pair``.
    """
    return hashlib.sha256("".join(r["sha256"] for r in records).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load_baseline(path: str | Path) -> dict[str, Any]:
    """Read an earlier report.

    Args:
        path: report.json, or what ``--json`` wrote.

    Raises:
        InputError: It cannot be read, or is no report.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        known = [(r["name"], r["figures"]["noisy"]) for r in report["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no report of dvpd.evaluate ({type(error).__name__}: {error}); give the "
            "report.json of an earlier run"
        ) from None
    if not known:
        raise InputError(f"{path} holds no files; give the report.json of an earlier run")
    return dict(report)


def compare(report: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Paired differences of two reports on the same set, this one minus the baseline.

    Args:
        report: This report.
        baseline: From ``load_baseline``.

    Returns:
        "model", "n_files" (in both), "missing" (in one alone) and "differences": system ->
        measure -> ``Difference``.

    Raises:
        InputError: The sets differ, or no system and measure is in both.
    """
    ours = {r["name"]: r["figures"] for r in report["files"]}
    before = {r["name"]: r["figures"] for r in baseline["files"]}
    common = [name for name in ours if name in before]
    # Reports of before format 2 hold no hashes: their names must do.
    known = {r["name"]: r["sha256"] for r in baseline["files"] if "sha256" in r}
    changed = any(known.get(r["name"], r["sha256"]) != r["sha256"] for r in report["files"])
    if changed or not common:
        raise InputError(
            f"the baseline was measured on another set ({baseline.get('set')}, "
            f"{len(before)} files) than this report ({report['set']}, {len(ours)} files); "
            "differences of pairs need the same files"
        )
    differences: dict[str, Any] = {}
    for system, table in ours[common[0]].items():
        for metric in table:
            if metric in before[common[0]].get(system, {}):
                columns = (
                    [_number(side[name].get(system, {}).get(metric)) for name in common]
                    for side in (ours, before)
                )
                differences.setdefault(system, {})[metric] = asdict(paired(*columns))
    if not differences:
        raise InputError("the baseline shares no system and measure with this report")
    return {
        "model": baseline.get("model"),
        "n_files": len(common),
        "missing": len(ours.keys() ^ before.keys()),
        "differences": differences,
    }


def _number(value: Any) -> float:
    """JSON's null was NaN or infinite."""
    return float("nan") if value is None else float(value)


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
    result = [_summary(report, name, metrics) for name, metrics in kinds]
    for other, (name, metrics) in itertools.product(("noisy", "predictive"), kinds):
        rows = tuple(
            (system, *(_difference_cell(against[other][m], m) for m in metrics))
            for system, against in report["differences"].items()
            if other in against
        )
        if rows:
            title = {"noisy": "the noisy input", "predictive": "the predictive branch alone"}[other]
            result.append(
                Table(
                    f"Difference to {title}" + (f": {name}" if name else ""),
                    "Mean of the differences of the same files and its 95 % bootstrap interval; "
                    "* where the interval leaves out zero (one comparison each, not corrected for "
                    "their number).",
                    ("system", *map(_heading, metrics)),
                    rows,
                )
            )
    for name, metrics in kinds:
        if "baseline" in report:
            base = report["baseline"]
            lacking = (
                f" {base['missing']} files are in one report alone." if base["missing"] else ""
            )
            result.append(
                Table(
                    f"Difference to the baseline {base['model']}" + (f": {name}" if name else ""),
                    f"This report minus the baseline on {base['n_files']} files.{lacking} * where "
                    "the 95 % bootstrap interval leaves out zero (not corrected for their number).",
                    ("system", *map(_heading, metrics)),
                    tuple(
                        (
                            system,
                            *(_difference_cell(part[m], m) if m in part else "-" for m in metrics),
                        )
                        for system, part in base["differences"].items()
                    ),
                )
            )

    def by_system(
        first: tuple[str, ...],
        figures: Mapping[str, Mapping[str, float]],
        systems: Sequence[str],
        metrics: Sequence[str],
    ) -> Iterator[tuple[str, ...]]:
        """A row for each system; what they share stands in the first."""
        for system in systems:
            yield (*first, system, *(_text(figures[system][m], MEASURES[m]) for m in metrics))
            first = ("",) * len(first)

    for name, metrics in kinds:
        if report["groups"]:
            result.append(
                Table(
                    "By degradation" + (f": {name}" if name else ""),
                    "Mean over the files of a group.",
                    ("degradation", "files", "system", *map(_heading, metrics)),
                    tuple(
                        row
                        for group, part in report["groups"].items()
                        for row in by_system(
                            (group, str(part["n"])), part["systems"], list(part["systems"]), metrics
                        )
                    ),
                )
            )
    systems = list(dict.fromkeys(("noisy", "predictive", report["primary"])))

    def files(
        title: str, note: str, chosen: Ranking, measure: Measure, metrics: Sequence[str]
    ) -> None:
        if chosen:
            result.append(
                Table(
                    title,
                    note,
                    ("file", "degradation", "gain", "system", *map(_heading, metrics)),
                    tuple(
                        row
                        for gain, r in chosen
                        for row in by_system(
                            (r["name"], r["group"] or "-", _text(gain, measure, True)),
                            r["figures"],
                            systems,
                            metrics,
                        )
                    ),
                )
            )

    for name, metrics in kinds:
        metric, order = ranked(report, metrics[0])
        measure = MEASURES[metric]
        least = order[:n_extremes]
        most = order[len(least) :][-n_extremes:][::-1] if n_extremes else []
        for title, chosen in (("Worst files", least), ("Best files", most)):
            note = f"By the gain in {measure.label} of {report['primary']} over noisy."
            title += f": {name}" if name else ""
            files(title, note, chosen, measure, metrics)
    if report["failures"]:
        result.append(
            Table(
                "Failed files",
                "They are in no figure of this report.",
                ("file", "error"),
                tuple((f["name"], f["error"]) for f in report["failures"]),
            )
        )
    return result


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


def markdown(report: Mapping[str, Any], n_extremes: int = 5) -> str:
    """The report in Markdown.

    Args:
        report: The report.
        n_extremes: Best and worst files to show.
    """

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")

    lines = [f"# {cell(headline(report))}", "", cell(settings(report)), ""]
    for table in tables(report, n_extremes):
        lines += [f"## {cell(table.title)}", ""]
        lines += [table.note, ""] if table.note else []
        numeric = [table.is_numeric(i) for i in range(len(table.header))]
        lines.append("| " + " | ".join(map(cell, table.header)) + " |")
        lines.append("|" + "|".join("---:" if right else "---" for right in numeric) + "|")
        lines += ["| " + " | ".join(map(cell, row)) + " |" for row in table.rows]
        lines.append("")
    return "\n".join(lines)


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


def csv_text(report: Mapping[str, Any]) -> str:
    """One line for each file and system.

    Args:
        report: The report.
    """
    metrics = list(report["systems"]["noisy"])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("file", "degradation", "system", *metrics))
    for record in report["files"]:
        for system, figures in record["figures"].items():
            writer.writerow((record["name"], record["group"], system, *figures.values()))
    return stream.getvalue()


def _strict(value: Any) -> Any:
    """JSON knows no NaN: null instead."""
    if isinstance(value, Mapping):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(report: Mapping[str, Any]) -> str:
    """The report as JSON; null where a figure is not defined.

    Args:
        report: The report.
    """
    return json.dumps(_strict(report), indent=1, allow_nan=False) + "\n"


def check_folder(path: str | Path) -> None:
    """Refuse a folder that a report cannot go to, before time is spent.

    Args:
        path: New, empty, or holding an earlier report and nothing else.

    Raises:
        InputError: It is none of these, or its parent is missing or not writable.
    """
    folder = Path(path).absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{path} is a file; expected a folder for the report")
    if not folder.parent.is_dir():
        raise InputError(f"{folder.parent} is not a folder; create it first")
    if folder.is_dir():
        strangers = sorted({p.name for p in folder.iterdir()} - set(REPORT_FILES))
        if strangers:
            raise InputError(
                f"{path} holds {strangers[0]}, which is no part of a report; give a new or empty "
                "folder"
            )
    try:
        probe = _beside(folder, "tmp")
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise InputError(f"no report can be written to {path}: {error.strerror or error}") from None


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.{suffix}")


def write_folder(path: str | Path, files: Mapping[str, str]) -> None:
    """Write a report's files, all of them or none; an earlier report is replaced.

    Args:
        path: A folder that ``check_folder`` accepts.
        files: Name -> contents.

    Raises:
        InputError: See ``check_folder``.
        OSError: It cannot be written; an earlier report is still there.
    """
    check_folder(path)
    folder = Path(path).absolute()
    new, old = _beside(folder, "tmp"), _beside(folder, "old")
    try:
        new.mkdir()
        for name, text in files.items():
            write_whole(new / name, text)
        if folder.is_dir():
            folder.replace(old)
        try:
            new.replace(folder)
        except OSError:
            if old.is_dir():
                old.replace(folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)
