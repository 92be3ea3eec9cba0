"""Killed at any moment and run again, every file is done once and whole."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bulk_parts import ENGINE, do

from dvpd.runtime import cli

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes as POSIX systems do")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


@pytest.fixture
def quick_folder(tmp_path):
    """In memory where that is possible: kills lose nothing that was written, on a disk or not."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_run_that_is_killed_at_each_of_its_steps(quick_folder):
    done = subprocess.run(
        [sys.executable, HERE / "crash_points.py", quick_folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    killed = [row for row in table["rows"] if row.pop("died") == signal.SIGKILL]
    assert table["groups"] == [4, 1]
    assert len(killed) > 80
    expected = {"between": True, "again": 0, "whole": True, "missing": [], "times": [1] * 5,
                "runs": 0, "more": []}  # fmt: skip
    assert [row for row in table["rows"] if row != expected] == []
    two = table["two"]  # two runs at the same time on the same output
    assert (two["ended"], two["whole"], two["times"]) == ([0, 0], True, [1] * 30)


def test_a_file_that_kills_a_real_process_is_set_aside(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for name, data in (("a.wav", b"a"), ("b.wav", b"killing"), ("c.wav", b"c")):
        (root / name).write_bytes(data)
    done, results = do(root, tmp_path / "out", {})
    assert (done.counts.done, done.counts.failed) == (2, 1)
    assert results["b.wav"]["state"] == "poison"
    assert "was ended by SIGKILL; often memory that ran out, 2 times" in results["b.wav"]["error"]


def test_a_real_process_is_told_that_another_has_nothing_to_do(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    (root / "last.wav").write_bytes(b"a")
    (root / "b.wav").write_bytes(b"b")
    done, _ = do(root, tmp_path / "out", {}, n=2)
    assert done.counts.done == 2


def test_a_file_at_which_a_process_stands_still_is_set_aside(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for name, data in (("a.wav", b"hanging"), ("b.wav", b"b")):
        (root / name).write_bytes(data)
    done, results = do(root, tmp_path / "out", {}, engine=replace(ENGINE, hung_s=1.5))
    assert (done.counts.done, done.counts.failed) == (1, 1)
    assert results["a.wav"]["state"] == "poison"
    said = results["a.wav"]["error"]
    assert re.search(
        r"moved for too long \(in enhance_file, bulk_parts\.py line \d+\), .*, 2 t", said
    )


@pytest.mark.slow
def test_kill_loop_of_the_command(engine_shared, speech, tmp_path, capsys):
    """The real command with its worker processes, killed as soon as it has got somewhere."""
    pytest.importorskip("onnxruntime")
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    n_files = 12
    for index in range(n_files):
        wav = np.roll(speech, 1000 * index)[: 16000 * (1 + index % 3)]
        soundfile.write(root / f"{index:02}.wav", wav, 16000, "PCM_16")
    words = ["enhance", root, out, "--resume", "--jobs", "2", "--model", engine_shared]
    words += ["--backend", "ort"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kills = 0
    for goal in (0, 1, 4, 7):  # outputs that are there when it is killed
        process = subprocess.Popen(
            [sys.executable, "-m", "dvpd.runtime", *map(str, words)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        limit = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < limit:
            started = (out / ".dvpd" / "journal.sqlite").exists()
            if started and len(list(out.glob("*.wav"))) >= goal:
                break
            time.sleep(0.002)
        kills += process.poll() is None
        process.kill()
        process.wait()
        for path in out.glob("*.wav"):
            assert soundfile.info(path).frames == soundfile.info(root / path.name).frames
    assert kills >= 2
    assert cli.main([*map(str, words), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["done"] + summary["done_before"] == n_files
    assert summary["failed"] == 0
    with sqlite3.connect(out / ".dvpd" / "journal.sqlite") as db:
        assert db.execute("SELECT DISTINCT times FROM jobs").fetchall() == [(1,)]
    db.close()
    assert list((out / ".dvpd" / "parts").iterdir()) == []
    lines = (out / "dvpd-results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert [r["state"] for r in results] == ["done"] * n_files
    single = tmp_path / "single.wav"  # the same bytes as one file alone
    words = ["enhance", root / "05.wav", single, "--model", engine_shared, "--backend", "ort"]
    assert cli.main(list(map(str, words))) == 0
    assert single.read_bytes() == (out / "05.wav").read_bytes()
