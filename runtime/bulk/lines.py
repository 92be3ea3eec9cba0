"""Manifests: a recording a line, as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..audio import target_in
from ..errors import InputError
from . import places
from .journal import FOLDER
from .plan import Plan

_LONGEST_S = 1e9
KEYS = ("path", "start", "duration", "output")


def manifest_plan(path: Path, root: Path, out: Path) -> Plan:
    """The recordings that a manifest names.

    A line is an object such as ``{"path": "a/x.wav", "start": 1.5, "duration": 10, "output":
    "x.flac"}``; all but the path may be missing. A line that is wrong is set aside by its number.

    Args:
        path: The manifest, UTF-8.
        root: Where paths begin that are not absolute.
        out: The output folder, where outputs begin.

    Raises:
        InputError: It cannot be read, or has no lines.
    """
    plan = Plan()
    n_lines = 0
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                n_lines += 1
                try:
                    source, output, part = _read(line)
                except InputError as error:
                    named = InputError(f"{path} line {number}: {error}")
                    plan.refuse(named, number, manifest=str(path), line=number)
                    continue
                target = out / output if output else _default_target(out, source)
                where = places.place(source) if places.is_url(source) else root / source
                plan.add(where, target, part, number)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if not n_lines:
        raise InputError(f'{path}: has no lines; expected one like {{"path": "a.wav"}} a recording')
    return plan


def _default_target(out: Path, source: str) -> Path:
    """The tree is kept, unless it would lead out of the output folder."""
    if places.is_url(source):
        return target_in(out, source)
    parent = os.path.normpath(os.path.dirname(source) or ".")
    if os.path.isabs(parent) or parent.split(os.sep)[0] == "..":
        parent = "."
    return target_in(out if parent == "." else out / parent, source)


def _read(line: str) -> tuple[str, str | None, tuple[float, float | None] | None]:
    try:
        table = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})") from None
    if not isinstance(table, dict):
        raise InputError(f"is {type(table).__name__}; expected an object with the key path")
    if unknown := sorted(set(table) - set(KEYS)):
        raise InputError(f"has the unknown key {unknown[0]!r}; expected {', '.join(KEYS)}")
    source = _text(table, "path")
    if source is None:
        raise InputError("has no path")
    output = _text(table, "output")
    if output is not None:
        output = os.path.normpath(output)
        if os.path.isabs(output) or output.split(os.sep)[0] in ("..", ".", FOLDER):
            raise InputError(f"output {table['output']!r} is not within the output folder")
    start, duration = _seconds(table, "start"), _seconds(table, "duration")
    if duration == 0.0:
        raise InputError("duration is 0; expected seconds > 0")
    part = None if start is None and duration is None else (start or 0.0, duration)
    return source, output, part


def _text(table: dict[str, Any], key: str) -> str | None:
    value = table.get(key)
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise InputError(f"{key} is {value!r}; expected the path of a file")
    return value


def _seconds(table: dict[str, Any], key: str) -> float | None:
    value = table.get(key)
    if value is None:
        return None
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not right or not 0 <= value <= _LONGEST_S:  # NaN compares as false
        raise InputError(f"{key} is {value!r}; expected seconds >= 0")
    return float(value)
