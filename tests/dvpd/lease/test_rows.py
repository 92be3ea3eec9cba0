"""The journal: readable after any crash, and it says where the time went."""

from __future__ import annotations

import dvpd.lease.rows
from dvpd.lease.rows import Rows, is_over, last_of, read_rows, report, spans, unfinished


def row(t: float, phase: str, event: str, **more) -> dict:
    return {"t": t, "phase": phase, "event": event, **more}


def test_torn_lines_are_left_out(tmp_path):
    rows = Rows(tmp_path / "rows.jsonl", 0.0)
    rows.add("data", "parts", here=1)
    with rows.path.open("a") as file:
        file.write('{"t": 1, "phase": "da\n[]\n{"t": 2}\n')
    rows.add("data", "parts", here=2)
    assert [r["here"] for r in rows.read()] == [1, 2]
    assert last_of(rows.read(), "data", "parts")["here"] == 2
    assert last_of(rows.read(), "data", "parts", here=3) is None
    assert read_rows(tmp_path / "none") == []


def test_a_full_disk_is_no_reason_to_stop(tmp_path, monkeypatch, capsys):
    def full(*_args):
        raise OSError(28, "No space left on device")

    rows = Rows(tmp_path / "rows.jsonl", 0.0)
    monkeypatch.setattr(dvpd.lease.rows.os, "write", full)
    rows.add("train", "saved", step=3)
    monkeypatch.undo()
    assert "No space left" in capsys.readouterr().err
    rows.add("train", "saved", step=4)
    assert [r["step"] for r in rows.read()] == [4]


def test_where_the_time_went():
    rows = [
        row(60.0, "supervisor", "begin", pid=1),
        row(60.0, "smoke", "begin", pid=2),
        row(65.0, "smoke", "end", pid=2, how="ok"),
        row(65.0, "data", "begin", pid=3),
        row(66.0, "proof", "begin", pid=4),
        row(90.0, "proof", "end", pid=4, how="late"),
        row(100.0, "data", "end", pid=3, how="ok"),
        row(100.0, "train-one", "begin", pid=5),
        row(150.0, "train", "saved", model="one", step=50, seconds=30.0, audio_hours=0.5),
        row(200.0, "train", "saved", model="one", step=100, seconds=80.0, audio_hours=1.0),
    ]
    assert [span for span in spans(rows) if span[0] != "supervisor"] == [
        ("smoke", 60.0, 65.0, "ok"),
        ("data", 65.0, 100.0, "ok"),
        ("proof", 66.0, 90.0, "late"),
        ("train-one", 100.0, 200.0, "no end"),
    ]
    text = report(rows).splitlines()
    assert text[-1] == "training 80.0 of 200.0 s: 40.0 %"
    assert text[-2] == (
        "one: 100 steps, 1.000 h of audio in 80.0 s of steps (45 audio-seconds a second)"
    )
    assert unfinished(rows) == [("supervisor", 1), ("train-one", 5)]
    assert report([]) == "no rows"


def test_a_lease_that_goes_on_is_not_over():
    begin, end = row(0, "lease", "begin"), row(1, "lease", "end")
    again = row(2, "supervisor", "begin", pid=3)
    assert not is_over([])
    assert not is_over([begin])
    assert is_over([begin, end, row(1, "supervisor", "end", pid=1)])
    assert not is_over([begin, end, again])
    assert not is_over([begin, end, again, begin])
