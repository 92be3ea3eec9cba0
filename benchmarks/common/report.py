"""Reports of ``rtf.py``: schema and tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dvpd.benchmarks.common import tables
from dvpd.runtime.errors import InputError

SCHEMA_FILE = Path(__file__).resolve().parent / "rtf.schema.json"
SCHEMA = "dvpd-rtf-1"
BOARD_SCHEMA = "dvpd-board-1"  # of board.py, which holds a whole report

Row = dict[str, Any]
Report = dict[str, Any]


# ------------------------------------------------------------------------------------------------
# Reading


def validate(
    report: Any, source: str = "this report", schema: str = SCHEMA, file: Path = SCHEMA_FILE
) -> None:
    """Check a report against a published schema.

    Raises:
        InputError: It is of another version, or does not fit; the message says where.
    """
    version = report.get("schema") if isinstance(report, dict) else None
    if version != schema:
        raise InputError(
            f"{source}: schema is {version!r}; this version reads {schema!r}: measure again, or "
            "use the version of dvpd that wrote it"
        )
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        return  # the light install on a board: the writer is tested against the schema
    table = json.loads(file.read_text(encoding="utf-8"))
    for error in Draft202012Validator(table).iter_errors(report):
        where = "/".join(map(str, error.absolute_path)) or "top level"
        raise InputError(f"{source}: does not fit the schema at {where}: {error.message[:200]}")


def read(path: Path, schema: str = SCHEMA, file: Path = SCHEMA_FILE) -> Report:
    """A validated report from a JSON file, or the one in a file of ``dvpd benchmark --report``.

    Raises:
        InputError: It cannot be read or does not fit.
    """
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    if isinstance(report, dict) and report.get("schema") == BOARD_SCHEMA:
        report = report.get("rtf") or {}
    validate(report, str(path), schema, file)
    return report


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
    "engine", "backend", "window, s", "batch", "steps", "RTF", "p50, ms", "p90, ms", "p95, ms",
    "p99, ms", "max, ms", "audio s / s", "runs",
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


STAGE_HEADER = (
    "base case", "STFT, ms", "predictive, ms", "score calls, ms", "noise, fusion, ms", "iSTFT, ms",
)  # fmt: skip
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
        ("statistic", f"{p['min_runs']} runs and {p['min_seconds']} s of each case"
         + (f", cut at {p['budget_s']:g} s an engine," if p.get("budget_s") is not None else "")
         + f" after {p['warm_up_rounds']} warm-up rounds; cases interleaved in a new order every round, "
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
