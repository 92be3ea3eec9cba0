"""The journal of a job: which output is done, by whom another is being made, what failed.

SQLite in ``OUT/.dvpd``, or in a folder of the user's choice, in WAL mode. An output goes through these states::

    (none) -> claimed -> placing -> done        placing: its bytes are safe under another name,
                      -> failed, poison         their hash is known, and it gets its name now

A claim belongs to a run, a run to a process of a host. The claims of a run that has ended are
taken over: at once where its process is gone, else when it has given no sign of life for
``LEASE_S``. ``placing`` is on the disk before an output gets its name. So a run that dies at any
moment leaves either no output, or one whose hash the journal knows.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DvpdError, InputError
from .plan import Job
from .rows import Made, Row, is_there

FOLDER, NAME = ".dvpd", "journal.sqlite"
LEASE_S, BEAT_EVERY_S = 60.0, 5.0
POISON_ATTEMPTS = 2
_APPLICATION, _FORMAT = 0x44565044, 1  # "DVPD"
_WAIT_S = 30.0  # for another process's write
_TABLES = """
CREATE TABLE IF NOT EXISTS runs(
    id INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER, host TEXT, beat REAL);
CREATE TABLE IF NOT EXISTS jobs(
    target BLOB PRIMARY KEY, state TEXT NOT NULL, run INTEGER NOT NULL, key TEXT NOT NULL,
    n_bytes INTEGER, mtime_ns INTEGER, content TEXT, attempts INTEGER NOT NULL DEFAULT 0,
    out_bytes INTEGER, out_mtime_ns INTEGER, out_sha256 TEXT, times INTEGER NOT NULL DEFAULT 0,
    result TEXT) WITHOUT ROWID;
"""


class JournalError(DvpdError):
    """The journal is damaged, of another version, or cannot be written."""


_COLUMNS = ", ".join(Row.__dataclass_fields__)


class Journal:
    """A journal, open for one run. Use as a context manager.

    Attributes:
        folder: Where it lies.
        begun: Whether an earlier run has begun with its outputs.
        run: Number of this run.
    """

    def __init__(self, out: Path, folder: Path | None = None) -> None:
        """Open or make the journal of an output folder, and sign in.

        Args:
            out: The output folder, which exists.
            folder: Where the journal lies; None: ``OUT/.dvpd``.

        Raises:
            JournalError: It is damaged, of another version, or cannot be written.
        """
        self._out, self._inside = out, f"{out}{os.sep}"
        self.folder = folder or out / FOLDER
        self._path = self.folder / NAME
        try:
            self.folder.mkdir(exist_ok=True, parents=folder is not None)
        except OSError as error:
            raise InputError(
                f"{folder or out}: cannot write here ({error.strerror or error})"
            ) from None
        self._host = socket.gethostname()
        self._beaten = time.monotonic()
        with self._told():
            self._db = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)
            try:
                self._prepare()
                cursor = self._write(
                    "INSERT INTO runs(pid, host, beat) VALUES(?, ?, ?)",
                    (os.getpid(), self._host, time.time()),
                )
                self.run: int = cursor.lastrowid or 0
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        self._switch_to_wal()
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("BEGIN IMMEDIATE")  # two runs that begin at the same time
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and (application, version) != (_APPLICATION, _FORMAT):
            raise JournalError(
                f"{self._path}: is no journal of this version of dvpd (format {version}, expected "
                f"{_FORMAT}); {self._way_out()}"
            )
        if not tables:
            for statement in _TABLES.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id={_APPLICATION}")
            self._db.execute(f"PRAGMA user_version={_FORMAT}")
        self._db.execute("COMMIT")
        self.begun = bool(self._db.execute("SELECT EXISTS(SELECT 1 FROM jobs)").fetchone()[0])
        if (said := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(said.replace("\n", " "))

    def _switch_to_wal(self) -> None:
        """SQLite does not wait by itself for another process that makes the same switch."""
        limit = time.monotonic() + _WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > limit:
                    raise
            time.sleep(0.02)

    def _way_out(self) -> str:
        return (
            f"move the folder {self.folder} away, and run again with --skip-existing: outputs that "
            "are there are whole"
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = " ".join(str(error).split())
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in text:
                raise JournalError(
                    f"{self._path}: {text}; make it writable or free space, and run again with "
                    "--resume"
                ) from None
            raise JournalError(f"{self._path}: is damaged ({text}); {self._way_out()}") from None

    def _write(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        with self._told():
            return self._db.execute(statement, values)

    @contextlib.contextmanager
    def together(self, *, durable: bool = False) -> Iterator[None]:
        """One transaction for what is noted within: all of it, or nothing.

        Args:
            durable: Whether it is on the disk at the end.
        """
        if durable:  # this cannot be said within a transaction
            self._write("PRAGMA synchronous=FULL")
        try:
            self._write("BEGIN IMMEDIATE")
            try:
                yield
                self._write("COMMIT")
            except BaseException:
                with contextlib.suppress(JournalError):
                    self._write("ROLLBACK")
                raise
        finally:
            if durable:
                self._write("PRAGMA synchronous=NORMAL")

    def _name(self, target: Path) -> bytes:
        """Within the output folder, which may be moved; names need not be Unicode."""
        text = str(target)
        if text.startswith(self._inside):  # always, but for OUT "." and for URLs
            return os.fsencode(text[len(self._inside) :].replace(os.sep, "/"))
        return os.fsencode(target.relative_to(self._out).as_posix())

    def __enter__(self) -> Journal:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Sign out: what this run had claimed is free again."""
        with contextlib.suppress(JournalError):
            self._write("DELETE FROM runs WHERE id=?", (self.run,))
        self._db.close()

    def beat(self) -> None:
        """Give a sign of life, unless it was given a moment ago."""
        if time.monotonic() - self._beaten >= BEAT_EVERY_S:
            self._beaten = time.monotonic()
            self._write("UPDATE runs SET beat=? WHERE id=?", (time.time(), self.run))

    def others(self) -> dict[int, str]:
        """Runs that are alive beside this one, and where they run; the dead are forgotten."""
        with self._told():
            rows = self._db.execute("SELECT id, pid, host, beat FROM runs").fetchall()
        found = {}
        for run, pid, host, beat in rows:
            if run == self.run:
                continue
            gone = host == self._host and not is_there(pid)
            if gone or time.time() - beat > LEASE_S:
                self._write("DELETE FROM runs WHERE id=?", (run,))
            else:
                found[run] = f"process {pid} on {host}"
        return found

    def row(self, target: Path) -> Row | None:
        """What is known of an output."""
        with self._told():
            query = f"SELECT {_COLUMNS} FROM jobs WHERE target=?"
            found = self._db.execute(query, (self._name(target),)).fetchone()
        return Row(*found) if found else None

    def claim(self, job: Job, key: str, before: Row | None) -> bool:
        """Take an output for this run.

        Args:
            job: The job.
            key: Its ``Job.key``.
            before: What ``row`` said; if it is not true any more, somebody was faster.

        Returns:
            Whether it is ours.
        """
        same = before is not None and (before.key, before.n_bytes, before.mtime_ns) == (
            key, job.n_bytes, job.mtime_ns
        )  # fmt: skip
        attempts = before.attempts if same and before and before.state != "poison" else 0
        values = (self.run, key, job.n_bytes, job.mtime_ns, attempts)
        if before is None:
            done = self._write(
                "INSERT INTO jobs(state, run, key, n_bytes, mtime_ns, attempts, target) "
                "VALUES('claimed', ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (*values, self._name(job.target)),
            )
        else:
            done = self._write(
                "UPDATE jobs SET state='claimed', run=?, key=?, n_bytes=?, mtime_ns=?, attempts=?, "
                "result=NULL WHERE target=? AND state=? AND run=?",
                (*values, self._name(job.target), before.state, before.run),
            )
        return done.rowcount == 1

    def placing(self, job: Job, made: Made, result: dict[str, Any]) -> bool:
        """Note what an output will be, before it gets its name: ``together`` makes that durable.

        Args:
            job: The job.
            made: The output.
            result: For the results.

        Returns:
            Whether the claim is still ours.
        """
        done = self._write(
            "UPDATE jobs SET state='placing', n_bytes=?, mtime_ns=?, content=?, out_bytes=?, "
            "out_mtime_ns=?, out_sha256=?, result=? WHERE target=? AND state='claimed' AND run=?",
            (
                *made.source,
                made.content,
                made.n_bytes,
                made.mtime_ns,
                made.sha256,
                json.dumps(result),
                self._name(job.target),
                self.run,
            ),
        )
        return done.rowcount == 1

    def done(self, target: Path, run: int, mtime_ns: int | None = None) -> bool:
        """Note that an output has its name.

        Args:
            target: The output.
            run: The run that had placed it: this one, or a dead one.
            mtime_ns: When the output was last changed; None: as it was noted.

        Returns:
            Whether nobody else has noted it.
        """
        done = self._write(
            "UPDATE jobs SET state='done', run=?, attempts=0, times=times+1, "
            "out_mtime_ns=ifnull(?, out_mtime_ns) WHERE target=? AND state='placing' AND run=?",
            (self.run, mtime_ns, self._name(target), run),
        )
        return done.rowcount == 1

    def fail(self, job: Job, result: dict[str, Any], state: str = "failed") -> None:
        """Note that an output cannot be made.

        Args:
            job: The job.
            result: For the results.
            state: "failed", or "poison": it is not tried again.
        """
        self._write(
            "UPDATE jobs SET state=?, result=? WHERE target=? AND run=?",
            (state, json.dumps(result), self._name(job.target), self.run),
        )

    def died(self, job: Job, *, asked: bool = False) -> int:
        """Note that the process that worked on a job has died, and free the job.

        Args:
            job: The job.
            asked: Whether somebody asked the process to end, so that the job is not to blame.

        Returns:
            How many have died with it.
        """
        self._write(
            "UPDATE jobs SET state='failed', attempts=attempts+? WHERE target=? AND run=?",
            (0 if asked else 1, self._name(job.target), self.run),
        )
        row = self.row(job.target)
        return row.attempts if row else 0
