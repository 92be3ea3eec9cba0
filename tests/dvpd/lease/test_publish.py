"""Results in pieces: joined from any order, the newest whole one counts, a full disk loses none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import dvpd.runtime.files
from dvpd.lease.publish import Publisher, collect, deliver, find_pieces, read_piece

PIECE = 4096


@pytest.fixture
def publisher(tmp_path) -> Publisher:
    return Publisher(tmp_path / "published", PIECE)


def bring(publisher: Publisher, home: Path, files: int = 8, size: int = 1 << 20, **more) -> dict:
    """A poll and a collection."""
    out = home.with_name("came")
    for path in out.glob("*"):
        path.unlink()
    names = deliver(publisher.folder, out, files, size, **more)
    assert len(names) <= files
    assert sum((out / name).stat().st_size for name in names) <= size
    assert sorted(p.name for p in out.iterdir()) == sorted(names)
    return collect([out], home)


def test_a_state_comes_back_in_calls_of_a_few_small_files(publisher, tmp_path):
    state = random.Random(0).randbytes(20_000)
    publisher.publish("state-a", {"state.pt": state, "gone": tmp_path / "not there"})
    assert all(p.path.stat().st_size <= PIECE for p in find_pieces(publisher.folder))
    home = tmp_path / "home"
    calls = 0
    while not (found := bring(publisher, home, files=2, size=9000))["state-a"]["number"]:
        calls += 1
        assert found["state-a"]["missing"]
    assert calls == 7  # fifteen pieces: half of such a small one is kept for the checksums
    assert (home / "state-a" / "state.pt").read_bytes() == state
    assert [p.name for p in (home / "state-a").iterdir()] == ["state.pt"]


def test_what_has_begun_to_come_is_finished_first(publisher, tmp_path):
    home = tmp_path / "home"
    publisher.publish("state-a", {"state.pt": bytes(9_000)})
    bring(publisher, home, files=4)
    for number in range(2, 6):
        publisher.publish("state-a", {"state.pt": bytes([number]) * 9_000})
    found = bring(publisher, home, files=8)
    assert found["state-a"]["number"] == 1
    found = bring(publisher, home, files=12)
    assert found["state-a"]["number"] == 5
    assert (home / "state-a" / "state.pt").read_bytes() == bytes([5]) * 9_000
    assert {p.number for p in find_pieces(publisher.folder)} == {5, 1}
    publisher.publish("state-a", {"state.pt": b""})
    assert {p.number for p in find_pieces(publisher.folder)} == {5, 6}


def test_results_first_and_the_cache_last(publisher, tmp_path):
    for stream in ("cache", "state-a", "result"):
        publisher.publish(stream, {"x": b"1"})
    out = tmp_path / "out"
    names = deliver(publisher.folder, out, 14, 1 << 20)
    assert [n.split(".")[0] for n in names] == ["result"] * 5 + ["state-a"] * 5 + ["cache"] * 4
    assert deliver(publisher.folder, out, 14, 1 << 20) == ["cache.00001.04"]
    assert deliver(publisher.folder, out, 14, 1 << 20) == []
    assert deliver(publisher.folder, out, 14, 1 << 20, again=True) == names


def test_the_newest_whole_publication_counts(publisher, tmp_path):
    home = tmp_path / "home"
    publisher.publish("result", {"x": b"old"})
    deliver(publisher.folder, tmp_path / "a", 8, 1 << 20)
    publisher.publish("result", {"x": b"new"})
    deliver(publisher.folder, tmp_path / "b", 8, 1 << 20)
    torn = tmp_path / "b" / "result.00002.03"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-1])
    found = collect([tmp_path / "a", tmp_path / "b"], home)
    assert found["result"] == {"number": 1, "newest": 2, "missing": [3]}
    assert (home / "result" / "x").read_bytes() == b"old"
    torn.write_bytes(whole[:-1] + b"?")
    assert collect([tmp_path / "b"], home)["result"]["number"] == 1
    torn.write_bytes(whole)
    assert collect([tmp_path], home)["result"] == {"number": 2, "newest": 2, "missing": []}
    assert (home / "result" / "x").read_bytes() == b"new"
    assert {p.number for p in find_pieces(home / "pieces")} == {2}


def test_strange_files_are_left_alone(tmp_path):
    (tmp_path / "result.00001.00").write_text("not a piece")
    (tmp_path / "notes.txt").write_text("x")
    assert collect([tmp_path], tmp_path / "home") == {}
    assert read_piece(tmp_path / "result.00001.00") is None
    assert collect([tmp_path / "none"], tmp_path / "home") == {}


def test_a_full_disk_keeps_the_publication_before(publisher, tmp_path, monkeypatch, capfd):
    publisher.publish("result", {"x": b"old"})
    left = 3

    def full(handle):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(dvpd.runtime.files.os, "fsync", full)
    assert not publisher.publish("result", {"x": bytes(30_000)})
    monkeypatch.undo()
    assert "No space left" in capfd.readouterr().err
    assert bring(publisher, tmp_path / "home", files=99)["result"]["number"] == 1
    assert publisher.publish("result", {"x": b"new"})
    assert bring(publisher, tmp_path / "home", files=99)["result"]["number"] == 2
