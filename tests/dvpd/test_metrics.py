"""Metrics against closed forms, reference figures and edge cases."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from dvpd.metrics import METRICS, estoi, pesq_wb, si_sdr, summarise
from dvpd.runtime.errors import InputError

ASSETS = Path(__file__).resolve().parents[1] / "assets"


@pytest.fixture(scope="module")
def clip():
    return [
        sf.read(ASSETS / f"clip0_{kind}.flac", dtype="float32")[0] for kind in ("clean", "noisy")
    ]


def test_si_sdr_closed_form():
    time = np.arange(16000) / 16000
    clean, error = np.sin(2 * np.pi * 100 * time), np.sin(2 * np.pi * 200 * time)
    for db in (-5.0, 0.0, 20.0):
        noisy = clean + 10 ** (-db / 20) * error
        assert si_sdr(clean, noisy) == pytest.approx(db, abs=1e-9)
        assert si_sdr(clean, -3 * noisy + 0.5) == pytest.approx(db, abs=1e-9)
    assert si_sdr(clean, 0.5 * clean) > 250
    assert math.isnan(si_sdr(np.zeros(100), np.ones(100)))


def test_perfect_speech(clip):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    clean, noisy = clip
    assert pesq_wb(clean, clean) == pytest.approx(4.644, abs=1e-3)
    assert estoi(clean, clean) == pytest.approx(1.0, abs=1e-6)
    for name, metric in METRICS.items():
        assert metric(clean, noisy) < metric(clean, clean), name
        # none hears the level
        assert metric(clean, 0.5 * noisy) == pytest.approx(metric(clean, noisy), abs=0.02), name


def test_undefined_is_nan(clip):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    clean, noisy = clip
    silent = np.zeros_like(clean)
    assert math.isnan(pesq_wb(silent, noisy))
    assert math.isnan(pesq_wb(clean, silent))
    assert math.isnan(pesq_wb(clean[:1000], noisy[:1000]))
    assert math.isnan(estoi(clean[:1000], noisy[:1000]))


@pytest.mark.parametrize("name", list(METRICS))
def test_bad_input_is_refused(name, clip):
    clean, noisy = clip
    with pytest.raises(InputError, match="equal"):
        METRICS[name](clean, noisy[:-1])
    with pytest.raises(InputError, match="finite"):
        METRICS[name](clean, np.where(np.arange(len(noisy)) == 5, np.nan, noisy))


def test_summary():
    rng = np.random.default_rng(1)
    values = rng.normal(2.0, 0.5, 400)
    s = summarise([*values, math.nan])
    assert (s.n, s.lost) == (400, 1)
    assert s.mean == pytest.approx(values.mean())
    assert s.std == pytest.approx(values.std(ddof=1))
    # the normal approximation of the interval
    assert s.high - s.low == pytest.approx(2 * 1.96 * s.std / 20, rel=0.08)
    assert s.low < s.mean < s.high
    assert summarise(list(values)) == summarise(list(values))
    assert math.isnan(summarise([math.nan]).mean)
