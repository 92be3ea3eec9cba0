import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bulk_parts import do, use_threads

from dvpd.runtime.bulk import journal as journal_module
from dvpd.runtime.bulk.journal import Journal, JournalError
from dvpd.runtime.bulk.plan import Job
from dvpd.runtime.bulk.rows import Made


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path / "in.wav", tmp_path / "out.wav", None, 1, 2)


MADE = Made(Path("s"), (1, 2), "c", 3, 4, "s")


def sign_in(out, pid, host, beat):
    with sqlite3.connect(out / ".dvpd" / "journal.sqlite") as db:
        run = db.execute(
            "INSERT INTO runs(pid, host, beat) VALUES(?, ?, ?)", (pid, host, beat)
        ).lastrowid
    db.close()
    return run


def ended_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_who_is_alive(tmp_path):
    here, now = socket.gethostname(), time.time()
    with Journal(tmp_path) as journal:
        alive = sign_in(tmp_path, os.getpid(), here, now)
        far = sign_in(tmp_path, 1, "elsewhere", now - 30)
        sign_in(tmp_path, ended_pid(), here, now)  # gone: at once
        sign_in(tmp_path, 1, "elsewhere", now - 90)  # no sign of life for longer than a lease
        sign_in(tmp_path, os.getpid(), here, now - 90)  # another process has got its number
        assert list(journal.others()) == [alive, far]
        assert journal.others()[far] == "process 1 on elsewhere"


def test_a_claim_has_one_owner(tmp_path, job):
    with Journal(tmp_path) as one, Journal(tmp_path) as two:
        assert not two.begun
        assert one.claim(job, "key", None)
        assert not two.claim(job, "key", None)
        row = two.row(job.target)
        assert (row.state, row.run) == ("claimed", one.run)
        # its lease has run out, and it is taken over: it may not place its output any more
        assert two.claim(job, "key", row)
        assert not one.claim(job, "key", row)
        assert not one.placing(job, MADE, {})
        one.fail(job, {"error": "too late"})
        assert two.placing(job, MADE, {"rtf": 1})
        assert not one.done(job.target, one.run)
        assert two.done(job.target, two.run)
        row = one.row(job.target)
        assert (row.state, row.times, row.out_sha256, row.content) == ("done", 1, "s", "c")
    with Journal(tmp_path) as three:
        assert three.begun


def test_signs_of_life(tmp_path, monkeypatch):
    with Journal(tmp_path) as one, Journal(tmp_path) as two:
        later = time.time() + 50
        clock = time.monotonic() + 50
        monkeypatch.setattr(journal_module.time, "time", lambda: later)
        monkeypatch.setattr(journal_module.time, "monotonic", lambda: clock)
        one.beat()
        later += 20
        assert list(two.others()) == [one.run]
        assert one.others() == {}


@pytest.mark.parametrize("damage", ["garbage", "half", "pages"])
def test_a_damaged_journal_is_an_error_with_a_way_out(tmp_path, monkeypatch, damage):
    use_threads(monkeypatch)
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    for index in range(60):
        (root / f"{index:02}.wav").write_bytes(b"%d" % index)
    do(root, out, {}, n=3)
    path = out / ".dvpd" / "journal.sqlite"
    data = path.read_bytes()
    broken = {
        "garbage": b"no database" * 100,
        "half": data[: len(data) // 2],
        "pages": data[:8192] + bytes(range(256)) * 32 + data[16384:],
    }
    path.write_bytes(broken[damage])
    with pytest.raises(JournalError) as error:
        do(root, out, {"resume": True})
    assert "is damaged" in str(error.value)
    assert "move the folder" in str(error.value)
    assert "\n" not in str(error.value)
    (out / ".dvpd").rename(tmp_path / "away")  # what it says
    (out / "07.wav").unlink()
    done, _ = do(root, out, {"skip_existing": True})
    assert (done.counts.skipped, done.counts.done) == (59, 1)


def test_a_database_of_another_program_or_version(tmp_path):
    (tmp_path / ".dvpd").mkdir()
    with sqlite3.connect(tmp_path / ".dvpd" / "journal.sqlite") as db:
        db.execute("CREATE TABLE photographs(name)")
    db.close()
    with pytest.raises(JournalError, match="is no journal of this version"):
        Journal(tmp_path)


def test_a_journal_that_cannot_be_written(tmp_path, job):
    with Journal(tmp_path) as journal:
        journal._db.execute("PRAGMA query_only=1")  # as a full or read-only disk refuses
        with pytest.raises(JournalError, match="run again with --resume"):
            journal.claim(job, "key", None)
        journal._db.execute("PRAGMA query_only=0")


def test_two_that_begin_at_the_same_moment(tmp_path, monkeypatch):
    """SQLite refuses the switch to WAL at once while another process makes it."""
    refusals = [1, 2]

    class Busy(sqlite3.Connection):
        def execute(self, statement, *values):
            if "journal_mode" in statement and refusals:
                refusals.pop()
                raise sqlite3.OperationalError("database is locked")
            return super().execute(statement, *values)

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **k, factory=Busy))
    with Journal(tmp_path) as journal:
        assert journal.others() == {}
    assert refusals == []
