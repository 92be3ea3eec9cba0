"""What happened, a JSON line each: written through at once, readable after any crash."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROWS_NAME = "rows.jsonl"
Row = dict[str, Any]


class Rows:
    """The journal of a lease; every process of it appends."""

    def __init__(self, path: Path, started: float) -> None:
        """Name the file.

        Args:
            path: JSON lines; made with the first row.
            started: When the machine was asked for (s since 1970).
        """
        self.path, self.started = path, started

    def add(self, phase: str, event: str, **more: Any) -> None:
        """Append a row with the seconds since the ask; a full disk is no reason to stop."""
        row = {"t": round(time.time() - self.started, 2), "phase": phase, "event": event, **more}
        line = (json.dumps(row) + "\n").encode()
        try:
            # One write with O_APPEND: rows of several processes do not mix.
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line)
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            sys.stderr.write(f"row lost ({error.strerror}): {line.decode()}")

    def read(self) -> list[Row]:
        """All rows so far."""
        return read_rows(self.path)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; a torn line is left out, a file that is not there has none."""
    rows = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
            if isinstance(row, dict) and {"t", "phase", "event"} <= set(row):
                rows.append(row)
        except ValueError:
            continue
    return rows


def last_of(rows: Iterable[Row], phase: str, event: str, **more: Any) -> Row | None:
    """The newest row of a phase and event whose other entries are as given."""
    found = None
    for row in rows:
        if (row["phase"], row["event"]) == (phase, event):
            if all(row.get(k) == v for k, v in more.items()):
                found = row
    return found


def is_over(rows: list[Row]) -> bool:
    """Whether the newest supervisor has come to its end."""
    marks = [(row["phase"], row["event"]) for row in rows]
    ends = [i for i, mark in enumerate(marks) if mark == ("lease", "end")]
    begins = [("lease", "begin"), ("supervisor", "begin")]
    return bool(ends) and not any(mark in begins for mark in marks[ends[-1] :])


def unfinished(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """(phase, process) of what has begun and has no end."""
    open_: dict[int, str] = {}
    for row in rows:
        if row["event"] == "begin" and "pid" in row:
            open_[row["pid"]] = row["phase"]
        elif row["event"] == "end":
            open_.pop(row.get("pid", 0), None)
    return [(phase, pid) for pid, phase in open_.items()]


def spans(rows: Iterable[Row]) -> list[tuple[str, float, float, str]]:
    """(phase, from, to, how it ended) of every process, in the order of their beginnings (s)."""
    open_: dict[Any, tuple[str, float]] = {}
    done = []
    last = 0.0
    for row in rows:
        last = max(last, row["t"])
        if row["event"] == "begin" and "pid" in row:
            open_[row["pid"]] = (row["phase"], row["t"])
        elif row["event"] == "end" and row.get("pid") in open_:
            phase, begin = open_.pop(row["pid"])
            done.append((phase, begin, row["t"], str(row.get("how"))))
    done += [(phase, begin, last, "no end") for phase, begin in open_.values()]
    return sorted(done, key=lambda span: span[1])


def trained(rows: Iterable[Row]) -> dict[str, Row]:
    """The newest "saved" row of each model."""
    found: dict[str, Row] = {}
    for row in rows:
        if row["event"] == "saved" and "model" in row:
            found[row["model"]] = row
    return found


def report(rows: list[Row]) -> str:
    """Where the time went, as text.

    Returns:
        A line for every process, one for every model, and the share that was training: steps with
        the waits for their batches, of the time from the ask to the last row.
    """
    if not rows:
        return "no rows"
    lines = [f"{'from s':>7} {'to s':>7} {'took s':>7}  phase"]
    for phase, begin, end, how in spans(rows):
        lines.append(f"{begin:7.1f} {end:7.1f} {end - begin:7.1f}  {phase}: {how}")
    whole = max(row["t"] for row in rows)
    seconds = 0.0
    for name, row in trained(rows).items():
        seconds += row["seconds"]
        lines.append(
            f"{name}: {row['step']} steps, {row['audio_hours']:.3f} h of audio in "
            f"{row['seconds']:.1f} s of steps ({_rate(row):.0f} audio-seconds a second)"
        )
    lines.append(f"training {seconds:.1f} of {whole:.1f} s: {100.0 * seconds / whole:.1f} %")
    return "\n".join(lines)


def _rate(row: Mapping[str, Any]) -> float:
    return float(row["audio_hours"]) * 3600.0 / max(float(row["seconds"]), 1e-9)
