"""The examples of the integrations, on a second of the recording that is shipped."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture(autouse=True)
def _shipped(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("DVPD_ENGINE", raising=False)


@pytest.mark.filterwarnings("ignore:'audioop' is deprecated")  # Pipecat's
@pytest.mark.parametrize("package", ["livekit", "pipecat"])
def test_a_recording_is_heard_through_the_filter(package, tmp_path, capsys):
    pytest.importorskip(
        package, reason=f"{package} is not installed: pip install 'dvpd[{package}]'"
    )
    example = importlib.import_module(f"{package}_filter")
    out = tmp_path / "out.wav"
    words = [
        str(EXAMPLES / "noisy.flac"),
        str(out),
        "--seconds",
        "0.5",
        "--model",
        "dvpd-live-tiny",
    ]
    assert example.main(words) == 0
    assert "Enhancer(dvpd-live-tiny" in capsys.readouterr().out
    heard, rate = soundfile.read(out, dtype="int16")
    assert rate == 16000
    if package == "pipecat":  # as fast as it goes, so the same on every machine
        assert len(heard) == 8000 + 1600
        assert not heard[:896].any()
    assert np.abs(heard).max() > 0
