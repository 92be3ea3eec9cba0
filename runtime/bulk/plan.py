"""What is to be done: the recordings of a folder or of a manifest, and where each output goes.

A plan lies in a database on the disk, so that millions of recordings take no memory.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audio import check_suffix, target_in
from ..errors import InputError, one_line
from . import places

# What is looked for in a folder without --glob: what libsndfile reads, and PyAV's usual ones.
SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 "
    ".m4a .m4b .mp4 .mka .webm .aac .wma .amr .3gp".split()
)
_PAGE = 1000
_CACHE_KIB = 8192
# The place of a job is its line, or its path: the order in which a plan is done. A job is open
# until its outcome is known; the outcome is JSON where the journal does not know it.
_TABLES = """
CREATE TABLE jobs(
    place PRIMARY KEY, source BLOB, target BLOB, start REAL, duration REAL, n_bytes INTEGER,
    mtime_ns INTEGER, source_key BLOB, target_key BLOB, open INTEGER DEFAULT 1, outcome TEXT
) WITHOUT ROWID;
CREATE TABLE refused(place PRIMARY KEY, entry TEXT) WITHOUT ROWID;
"""
_JOB = "place, source, target, start, duration, n_bytes, mtime_ns"


@dataclass(frozen=True)
class Job:
    """One output.

    Attributes:
        source: The recording.
        target: The output.
        part: Where to begin and how much to take (s; None: to the end); None for all of it.
        n_bytes: Size of the recording.
        mtime_ns: When it was last changed.
        place: Its place in the plan.
    """

    source: Path
    target: Path
    part: tuple[float, float | None] | None = None
    n_bytes: int = 0
    mtime_ns: int = 0
    place: int | bytes = 0

    def key(self, settings: dict[str, Any]) -> str:
        """SHA-256 of everything but the recording's content that decides the output.

        Args:
            settings: Model and options, as JSON holds them.
        """
        text = json.dumps([settings, self.part], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _job(row: tuple[Any, ...]) -> Job:
    place, source, target, start, duration, n_bytes, mtime_ns = row
    part = None if start is None else (start, duration)
    paths = [places.place(os.fsdecode(path)) for path in (source, target)]
    return Job(paths[0], paths[1], part, n_bytes, mtime_ns, place)


class Plan:
    """Jobs that may run, and what was found wrong before.

    Attributes:
        notes: What a user may want to know.
    """

    def __init__(self) -> None:
        """Begin an empty plan, in a file that SQLite removes when the process ends."""
        self.notes: list[str] = []
        # without a name: private, on the disk, removed however the process ends
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(_TABLES)
        self._db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._db.execute("BEGIN")  # never committed: nobody else reads it

    def add(
        self,
        source: Path,
        target: Path,
        part: tuple[float, float | None] | None = None,
        place: int | bytes | None = None,
    ) -> None:
        """Add a recording if it can be read.

        Args:
            source: The recording.
            target: The output.
            part: As in ``Job``.
            place: As in ``Job``; None: by its path.
        """
        if place is None:
            place = os.fsencode(str(source))
        try:
            check_suffix(target)
            n_bytes, mtime_ns = places.check(source)
        except (InputError, OSError) as error:
            self.refuse(error, place, path=str(source), output=str(target))
            return
        start, duration = part or (None, None)
        paths = os.fsencode(str(source)), os.fsencode(str(target))
        keys = places.identity(source), places.identity(target)
        self._db.execute(
            f"INSERT INTO jobs({_JOB}, source_key, target_key) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (place, *paths, start, duration, n_bytes, mtime_ns, *keys),
        )

    def refuse(self, error: Exception, place: int | bytes, **names: Any) -> None:
        """Set something aside.

        Args:
            error: Why.
            place: Where it stands in the plan.
            names: What it is, for the results.
        """
        entry = {**names, "state": "refused", "error": str(error), "kind": type(error).__name__}
        self._db.execute("INSERT INTO refused VALUES(?, ?)", (place, json.dumps(entry)))

    def jobs(self, *, left: bool = False) -> Iterator[Job]:
        """Jobs, in the order of the plan; they may be settled meanwhile.

        Args:
            left: Only those that are not settled.
        """
        for row in self._pages("jobs", _JOB, "AND open" if left else ""):
            yield _job(row)

    def largest_first(self) -> Iterator[Job]:
        """Those that are not settled now, by size; equal ones in the order of the plan."""
        self._db.execute("CREATE TABLE turns(turn INTEGER PRIMARY KEY, at)")
        self._db.execute(
            "INSERT INTO turns(at) SELECT place FROM jobs WHERE open ORDER BY n_bytes DESC, place"
        )
        for row in self._pages("turns JOIN jobs ON place = at", f"turn, {_JOB}", key="turn"):
            yield _job(row[1:])

    def outcomes(self) -> Iterator[tuple[Job, dict[str, Any] | None]]:
        """All jobs, each with what ``settle`` was told."""
        for row in self._pages("jobs", f"{_JOB}, outcome"):
            yield _job(row[:-1]), None if row[-1] is None else json.loads(row[-1])

    def refused(self) -> Iterator[dict[str, Any]]:
        """Lines of a manifest and recordings that cannot be used, ready for the results."""
        for row in self._pages("refused", "place, entry"):
            yield json.loads(row[1])

    def _pages(
        self, table: str, columns: str, more: str = "", key: str = "place"
    ) -> Iterator[tuple[Any, ...]]:
        """Rows by their places, page by page: what is read is not locked."""
        last: tuple[Any, ...] = (-1,)  # numbers come before paths
        while True:
            rows = self._db.execute(
                f"SELECT {columns} FROM {table} WHERE {key} > ? {more} ORDER BY {key} LIMIT {_PAGE}",
                last[:1],
            ).fetchall()
            yield from rows
            if len(rows) < _PAGE:
                return
            last = rows[-1]

    def settle(self, job: Job, outcome: dict[str, Any] | None = None) -> None:
        """Note that there is nothing more to do for a job.

        Args:
            job: The job.
            outcome: For the results; None: the journal has it.
        """
        self._db.execute(
            "UPDATE jobs SET open=0, outcome=? WHERE place=?",
            (None if outcome is None else json.dumps(outcome), job.place),
        )

    def left(self) -> tuple[int, int]:
        """How many jobs are not settled, and the bytes of their recordings."""
        query = "SELECT count(*), ifnull(sum(n_bytes), 0) FROM jobs WHERE open"
        n, n_bytes = self._db.execute(query).fetchone()
        return n, n_bytes

    @property
    def n_refused(self) -> int:
        """How many recordings and lines cannot be used."""
        n: int = self._db.execute("SELECT count(*) FROM refused").fetchone()[0]
        return n

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found at all."""
        return not (self.left()[0] or self.n_refused)

    def check_targets(self) -> None:
        """Refuse outputs that would meet each other or an input, before anything is done.

        Raises:
            InputError: Two share an output, or an output is an input.
        """
        shared = self._db.execute(
            "SELECT target_key FROM jobs GROUP BY target_key HAVING count(*) > 1 LIMIT 1"
        ).fetchone()
        if shared is not None:
            query = f"SELECT {_JOB} FROM jobs WHERE target_key=? ORDER BY place LIMIT 2"
            first, second = map(_job, self._db.execute(query, shared))
            raise InputError(
                f"{first.source} and {second.source} would share the output {second.target}; name "
                "their outputs in a manifest, or choose one kind with --glob"
            )
        both = self._db.execute(
            "SELECT target_key FROM jobs INTERSECT SELECT source_key FROM jobs LIMIT 1"
        ).fetchone()
        if both is not None:
            query = f"SELECT {_JOB} FROM jobs WHERE target_key=?"
            path = _job(self._db.execute(query, both).fetchone()).target
            raise InputError(f"{path}: would be input and output; choose another output folder")


def folder_plan(root: Path, out: Path, globs: Sequence[str], recursive: bool) -> Plan:
    """Every recording in a folder; its place under ``out`` is its place under ``root``.

    Args:
        root: The folder.
        out: The output folder; if it lies in ``root``, it is left out.
        globs: Patterns of file names; none for the usual suffixes of recordings.
        recursive: Whether folders in it are looked into.

    Raises:
        InputError: The folder cannot be read, or there is nothing in it.
    """
    plan = Plan()
    found = (
        _urls(root, out, recursive)
        if places.is_remote(root)
        else _files(root, out, recursive, plan)
    )
    for relative in found:
        if _wanted(relative.name, globs):
            parent = relative.parent
            # a URL would keep the dot
            folder = out if parent == Path() else out / parent
            plan.add(root / relative, target_in(folder, relative.name))
    if plan.is_empty:
        what = f"that match {' or '.join(globs)}" if globs else "(by their suffixes)"
        hint = "choose others with --glob" if recursive else "--recursive looks into its folders"
        raise InputError(f"{root}: no recordings {what}; {hint}")
    return plan


def _wanted(name: str, globs: Sequence[str]) -> bool:
    if globs:
        return any(fnmatch.fnmatch(name, pattern) for pattern in globs)
    return Path(name).suffix.lower() in SUFFIXES


def _urls(root: Path, out: Path, recursive: bool) -> Iterator[Path]:
    """Paths of files under a URL, relative to it; hidden ones and those of ``out`` are left out.

    Raises:
        InputError: It cannot be read.
    """
    remote: Any = root
    excluded = out.path if places.is_remote(out) else None  # type: ignore[attr-defined]  # a UPath
    base = remote.path.rstrip("/")
    depth = None if recursive else 1
    try:
        for folder, folders, files in remote.fs.walk(base, maxdepth=depth, on_error="raise"):
            for name in [n for n in folders if n.startswith(".") or f"{folder}/{n}" == excluded]:
                folders.remove(name)
            inside = Path(folder.rstrip("/")[len(base) :].lstrip("/"))
            for name in files:
                if name and not name.startswith("."):
                    yield inside / name
    except Exception as error:
        raise InputError(f"{root}: {one_line(error)}") from None


def _files(root: Path, out: Path, recursive: bool, plan: Plan) -> Iterator[Path]:
    """Paths of files under ``root``, relative to it; hidden ones are left out.

    Each folder is looked into once: real folders first, then links to folders. So links in a
    circle end, and the place of a file does not depend on the order of names.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [Path()], list[Path]()
    excluded = os.path.realpath(out)
    while folders or links:
        is_link = not folders
        relative = folders.pop() if folders else links.pop(0)
        folder = root / relative
        within: list[tuple[str, bool]] = []
        try:
            state = os.stat(folder)
            if (identity := (state.st_dev, state.st_ino)) in seen:
                if is_link:
                    plan.notes.append(f"{folder}: links to a folder that is looked into already")
                continue
            seen.add(identity)
            if relative != Path() and os.path.realpath(folder) == excluded:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not entry.is_dir():  # dangling links, too: they are refused by name
                        yield relative / entry.name
                    elif recursive:
                        within.append((entry.name, entry.is_symlink()))
        except OSError as error:
            if relative == Path():
                raise InputError(f"{root}: {error.strerror or error}") from None
            named = InputError(f"{folder}: {error.strerror or error}")
            plan.refuse(named, os.fsencode(str(folder)), path=str(folder))
        for name, linked in sorted(within):
            (links if linked else folders).append(relative / name)
