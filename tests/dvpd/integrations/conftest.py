"""Engines without weights: the causal graphs of the runtime's tests, as NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """A machine that is busy with something else changes no result."""
    monkeypatch.setattr("dvpd.integrations.sound.BEHIND_S", 60.0)


@pytest.fixture
def networks_worker(monkeypatch):
    """A StreamWorker and its networks, which tests can slow down or let fail."""
    pytest.importorskip("onnx")
    monkeypatch.syspath_prepend(str(RUNTIME))
    from test_live import opened

    from dvpd.integrations import StreamWorker

    enhancer, networks = opened()
    with StreamWorker(enhancer, steps=1, adapt=False) as worker:
        yield worker, networks


@pytest.fixture
def pcm():
    """Noise of one second at 16 kHz, int16 [n, 1]."""
    return np.random.default_rng(0).integers(-3000, 3000, (16000, 1)).astype(np.int16)
