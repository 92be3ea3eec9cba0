"""What the journal says of an output, held against what is there."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from . import places
from .plan import Job


@dataclass(frozen=True)
class Row:
    """What the journal knows of an output; the columns of its table, without the target.

    ``key`` is ``Job.key``; ``content`` the SHA-256 of the recording, ``n_bytes`` and ``mtime_ns``
    its size and time when it was read; ``out_*`` the same of the output. ``attempts`` counts
    processes that died with it, ``times`` how often it was finished.
    """

    state: str
    run: int
    key: str
    n_bytes: int
    mtime_ns: int
    content: str | None
    attempts: int
    out_bytes: int | None
    out_mtime_ns: int | None
    out_sha256: str | None
    times: int
    result: str | None


@dataclass(frozen=True)
class Made:
    """An output that waits for its name.

    Attributes:
        path: Where it waits.
        source: Size (bytes) and time (ns) of the recording that it was made from.
        content: SHA-256 of that.
        n_bytes: Its size.
        mtime_ns: When it was last changed; its name does not change that.
        sha256: Its hash.
        safe: Whether it is on the disk, or in the storage; else the run waits for that.
    """

    path: Path
    source: tuple[int, int]
    content: str
    n_bytes: int
    mtime_ns: int
    sha256: str
    safe: bool = True


def is_there(pid: int) -> bool:
    """Whether a process of this host lives."""
    if os.name != "posix":  # elsewhere os.kill is no question; the lease decides
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def fresh(job: Job) -> Job:
    """The job with its recording's size and time of now; a plan may be days old."""
    try:
        n_bytes, mtime_ns = places.state(job.source)
    except OSError:
        return job  # the worker says why
    return replace(job, n_bytes=n_bytes, mtime_ns=mtime_ns)


def held(row: Row, alive: dict[int, str]) -> bool:
    """Whether another run that is alive works on it."""
    return row.state in ("claimed", "placing") and row.run in alive


def same_source(job: Job, row: Row) -> bool:
    """Whether a recording is what it was: by size and time, else by content."""
    if (job.n_bytes, job.mtime_ns) == (row.n_bytes, row.mtime_ns):
        return True
    try:
        return job.n_bytes == row.n_bytes and places.sha256(job.source) == row.content
    except OSError:
        return False


def same_output(job: Job, row: Row) -> bool:
    """Whether an output is what was made: by size and time, else by content."""
    try:
        n_bytes, mtime_ns = places.state(job.target)
        if n_bytes != row.out_bytes:
            return False
        return mtime_ns == row.out_mtime_ns or places.sha256(job.target) == row.out_sha256
    except OSError:
        return False


def named(job: Job, row: Row) -> bool:
    """Whether a dead run had given an output its name before it died."""
    try:
        if places.state(job.target)[0] != row.out_bytes:
            return False
        return places.sha256(job.target) == row.out_sha256
    except OSError:
        return False
