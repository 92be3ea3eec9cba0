"""A server under load, and what is said about it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from dvpd.benchmarks import serve_load

NOISY = Path(__file__).resolve().parents[2] / "examples" / "noisy.flac"


@pytest.fixture(autouse=True)
def packages():
    for package in ("fastapi", "uvicorn", "websockets", "onnxruntime"):
        pytest.importorskip(
            package, reason=f"{package} is not installed: pip install 'dvpd[cpu,serve]'"
        )


def test_streams_are_sent_to_a_server_of_its_own(capfd):
    words = ["--streams", "2", "--seconds", "0.3", "--serve", "--threads 1"]
    assert serve_load.main([str(NOISY), *words]) == 0
    said = capfd.readouterr().out
    assert "at most 2 streams" in said
    assert re.search(r"2 streams of 0.3 s: 0 samples lost, \d+ of \d+ blocks late, 0 passed", said)
    assert "from a block to its answer (ms): 50 %: " in said
    assert "all streams have ended" in said
    if sys.platform == "linux":
        assert re.search(r"cores: messages 0\.\d\d, other threads ", said)


def test_a_server_that_does_not_start_is_said(capfd):
    assert serve_load.main([str(NOISY), "--serve", "--host 0.0.0.0"]) == 1
    assert "the server did not start: dvpd: 0.0.0.0 can be reached" in capfd.readouterr().err
