"""A phase ends in time with all its children, and says how."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dvpd.lease.jobs import Job

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def run(tmp_path):
    """Starts jobs; at the end none is left."""
    jobs = []

    def start(call, limit_s: float = 60.0) -> Job:
        jobs.append(Job("job", call, limit_s, tmp_path / "log"))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


def end(job: Job) -> str:
    until = time.monotonic() + 60.0
    while (how := job.ended()) is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    return how


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def appears(path: Path) -> str:
    until = time.monotonic() + 60.0
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return path.read_text()


def test_success_and_failure_are_told_apart(run, tmp_path):
    assert end(run(lambda: print("done"))) == "ok"
    assert end(run(lambda: sys.exit(3))) == "failed: exit 1"
    assert end(run(lambda: os.execv("/bin/sh", ["sh", "-c", "echo spoke; exit 7"]))) == (
        "failed: exit 7"
    )
    assert end(run(lambda: os.kill(os.getpid(), signal.SIGKILL))) == "failed: signal 9"
    log = (tmp_path / "log").read_text()
    assert "done" in log
    assert "spoke" in log
    assert "SystemExit: 3" in log


def test_past_its_limit_the_whole_group_is_killed(run, tmp_path):
    def parent() -> None:
        child = subprocess.Popen([sys.executable, "-c", SLEEP])
        (tmp_path / "pid").write_text(str(child.pid))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)

    job = run(parent)
    child = int(appears(tmp_path / "pid"))
    assert job.ended() is None
    job.ask_to_end(0.0)  # it does not listen
    assert end(job) == "stopped"
    until = time.monotonic() + 60.0
    while alive(child):
        assert time.monotonic() < until
    assert end(run(lambda: time.sleep(600), 0.05)) == "late"


def test_it_may_end_by_itself_when_asked(run, tmp_path):
    def listener() -> None:
        signal.signal(
            signal.SIGTERM, lambda *_: (tmp_path / "saved").write_text("x") and sys.exit()
        )
        (tmp_path / "ready").write_text("x")
        time.sleep(600)

    job = run(listener)
    appears(tmp_path / "ready")
    job.ask_to_end(60.0)
    assert end(job) == "stopped"
    assert (tmp_path / "saved").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children so on Linux only")
def test_it_goes_with_its_parent(tmp_path):
    def inner() -> None:
        (tmp_path / "inner").write_text(str(os.getpid()))
        time.sleep(600)

    def outer() -> None:
        Job("inner", inner, 60.0, tmp_path / "log")
        appears(tmp_path / "inner")
        os.kill(os.getpid(), signal.SIGKILL)

    job = Job("outer", outer, 60.0, tmp_path / "log")
    assert end(job) == "failed: signal 9"
    pid = int(appears(tmp_path / "inner"))
    until = time.monotonic() + 60.0
    while alive(pid):
        assert time.monotonic() < until
