"""The page's commands against a server, and the example client."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
PLACE = "127.0.0.1:8130"


def test_the_pages_requests_are_answered(client, tmp_path):
    if (curl := shutil.which("curl")) is None:
        pytest.skip("curl is not installed")
    noisy, rate = soundfile.read(ROOT / "examples" / "noisy.flac", frames=8000)
    soundfile.write(tmp_path / "noisy.flac", noisy, rate)
    lines = re.findall(r"^curl .+$", PAGE, re.M)
    assert len(lines) == 4
    for line in lines:
        words = [word.replace(PLACE, client.place) for word in shlex.split(line)[1:]]
        done = subprocess.run([curl, "-sS", *words], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        if "-o" in words:
            assert soundfile.info(tmp_path / "clean.wav").frames == 8000


def test_the_example_client_loses_nothing(client, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = importlib.import_module("stream_clients")
    out = tmp_path / "out.wav"
    words = [str(ROOT / "examples" / "noisy.flac"), str(out), "--streams", "3", "--seconds", "0.4"]
    assert example.main([*words, "--url", f"ws://{client.place}/stream"]) == 0
    assert "3 streams of 0.4 s: 0 samples lost" in capsys.readouterr().out
    assert soundfile.info(out).frames == 6400 + 896
    client.until(lambda: not client.service.sounds)
