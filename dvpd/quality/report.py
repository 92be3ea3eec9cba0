"""Figures of a run as one JSON value and as CSV; the files of a report."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from ..runtime.files import write_whole
from .metrics import paired, summarise
from .models import System

FORMAT = 2
REPORT_FILES = ("report.json", "files.csv", "report.md", "index.html")
_PACKAGES = ("numpy", "scipy", "torch", "onnxruntime", "openvino", "pesq", "pystoi")


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

    The predictive branch alone, always measured, is that of a model that takes 0 steps by default.

    Args:
        systems: From ``sampler_grid``.
        manifest: The model's manifest.
    """
    default = manifest.sampler
    if not default.n_steps:
        return "predictive"
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


def _number(value: Any) -> float:
    """JSON's null was NaN or infinite."""
    return float("nan") if value is None else float(value)


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
