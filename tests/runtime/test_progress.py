import sys

import pytest

from dvpd.runtime import progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_bar_on_a_terminal(monkeypatch, capsys, clock):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Progress("x.wav") as bar:
        for now, fraction in ((1.0, 0.1), (3.0, 0.5), (3.05, 0.55), (4.0, 1.0)):
            clock.now = now
            bar(fraction)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\rx.wav") == 2  # too early, drawn, too soon, drawn
    assert "50%     3 s left" in printed.err
    assert printed.err.endswith("\r\033[K")


def test_a_line_now_and_then_elsewhere(capsys, clock):
    with progress.Progress("x.wav") as shown:
        for now in range(0, 61):
            clock.now = float(now)
            shown(now / 100, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dvpd: x.wav: 15% done, 85 s left, loss 0.5"
    assert len(lines) == 4


def test_items_are_tracked(capsys, clock):
    for _ in progress.track(range(4), "files", 4):
        clock.now += 20.0
    assert capsys.readouterr().err.splitlines()[-1] == "dvpd: files: 100% done, 0 s left, 4 of 4"


@pytest.mark.parametrize("closed", [True, False])
def test_no_stderr(monkeypatch, clock, tmp_path, closed):
    stream = None
    if closed:
        stream = open(tmp_path / "x", "w")
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.Progress("x") as shown:
        clock.now = 100.0
        shown(0.5)
