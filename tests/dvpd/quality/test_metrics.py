"""Metrics against closed forms, reference figures and edge cases."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import dvpd.quality.metrics
from dvpd.quality.metrics import (
    DEFAULT_METRICS,
    MEASURES,
    METRICS,
    Meter,
    choose_metrics,
    estoi,
    paired,
    pesq_wb,
    si_sdr,
    summarise,
)
from dvpd.quality.pauses import BLIND_MEASURES, PAUSE_MEASURES, find_speech
from dvpd.runtime.errors import BackendError, InputError

ROOT = Path(__file__).resolve().parents[3]
ASSETS = ROOT / "tests" / "assets"

# examples/noisy.flac against examples/clean.flac by public implementations: compute_metrics.py of
# CMGAN as MP-SENet ships it (commit 89932cf; its own WSS and LLR), torchmetrics 1.9.0 (SI-SDR),
# pesq 0.0.4 and pystoi 0.4.1.
GOLDEN = {
    "pesq": 1.1505682468414307,
    "estoi": 0.9189531958879309,
    "si_sdr": 7.496362178658122,
    "csig": 2.1640010293541394,
    "cbak": 1.9150733016362118,
    "covl": 1.6895471375275837,
    "llr": 1.4965698087941386,
    "wss": 9.202365582452739,
    "ssnr": -3.2457422424892552,
}
# LLR ends in a badly conditioned recursion, whose order of operations differs.
GOLDEN_TOLERANCE = 1e-7


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
    for name in ("pesq", "estoi", "si_sdr"):  # these do not hear the level
        metric = METRICS[name]
        assert metric(clean, noisy) < metric(clean, clean), name
        assert metric(clean, 0.5 * noisy) == pytest.approx(metric(clean, noisy), abs=0.02), name
    perfect = Meter(("csig", "cbak", "covl", "llr", "wss", "ssnr"))(clean, clean)
    worse = Meter(tuple(perfect))(clean, noisy)
    assert perfect["llr"] == pytest.approx(0.0, abs=1e-12)
    assert perfect["wss"] == 0.0
    assert 25.0 < perfect["ssnr"] <= 35.0  # its limit, but where the speech itself is silent
    assert all(worse[k] < perfect[k] for k in ("csig", "cbak", "covl", "ssnr"))
    assert all(worse[k] > perfect[k] for k in ("llr", "wss"))


def test_public_implementations_agree():
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    clean, noisy = (sf.read(ROOT / "examples" / f"{k}.flac")[0] for k in ("clean", "noisy"))
    figures = Meter(tuple(GOLDEN))(clean, noisy)
    assert figures == pytest.approx(GOLDEN, abs=GOLDEN_TOLERANCE)
    # each alone gives what they give together, and equal input gives equal figures
    for name in ("covl", "estoi"):
        assert METRICS[name](clean, noisy) == figures[name]


def test_composite_of_silence(clip):
    pytest.importorskip("pesq")
    clean, noisy = clip
    parts = Meter(("llr", "wss", "ssnr"))
    # Frames of digital silence in the clean speech have no all-pole model: LLR leaves them out.
    pause = np.concatenate([clean, np.zeros(8000, np.float32)])
    hiss = np.concatenate([noisy, noisy[:8000]])
    assert parts(pause, hiss)["llr"] == pytest.approx(parts(clean, noisy)["llr"], abs=0.05)
    figures = parts(clean, np.zeros_like(clean))
    assert all(math.isfinite(value) for value in figures.values())
    assert -1.0 < figures["ssnr"] <= 0.0  # the error is the speech itself
    assert math.isnan(Meter(("llr",))(np.full(16000, 0.1), noisy[:16000])["llr"])
    assert math.isnan(Meter(("csig",))(clean[:599], noisy[:599])["csig"])


def test_choice_of_measures(monkeypatch):
    assert set(choose_metrics()) == {*DEFAULT_METRICS, *PAUSE_MEASURES}
    assert choose_metrics()[0] == "pesq"
    assert "dnsmos_p808" in choose_metrics(dnsmos=True)
    assert choose_metrics(("pauses",)) == tuple(m for m in MEASURES if m in PAUSE_MEASURES)
    assert choose_metrics(("si_sdr", "pesq")) == ("pesq", "si_sdr")
    assert len(choose_metrics(("dnsmos",), dnsmos=True)) == 4
    with pytest.raises(InputError, match="unknown metric 'pesk'; did you mean 'pesq'"):
        choose_metrics(("pesk",))
    with pytest.raises(InputError, match="unknown metric 'qqq'; known: pesq"):
        choose_metrics(("qqq",))
    with pytest.raises(InputError, match="dnsmos_bak needs its model: --dnsmos DIR"):
        choose_metrics(("dnsmos_bak",))
    with pytest.raises(InputError, match="wv_mos needs its model: --wv-mos FILE"):
        choose_metrics(("wv_mos",))
    with pytest.raises(InputError, match="no metric"):
        choose_metrics(())
    assert set(choose_metrics(reference=False)) == set(BLIND_MEASURES)
    assert choose_metrics(("pauses",), reference=False) == choose_metrics(reference=False)
    with pytest.raises(InputError, match="pesq is for recordings with a clean one; expected some"):
        choose_metrics(("pauses", "pesq"), reference=False)
    with pytest.raises(InputError, match="loud_level is for recordings without a clean one"):
        choose_metrics(("loud_level",))
    monkeypatch.setattr(dvpd.quality.metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pystoi is not installed: .* leave out estoi"):
        choose_metrics(("estoi",))


def test_undefined_is_nan(clip):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    clean, noisy = clip
    silent = np.zeros_like(clean)
    assert math.isnan(pesq_wb(silent, noisy))
    assert math.isnan(pesq_wb(clean, silent))
    assert math.isnan(pesq_wb(clean[:1000], noisy[:1000]))
    assert math.isnan(estoi(clean[:1000], noisy[:1000]))
    assert math.isnan(estoi(silent, noisy))


def test_utterances_alone_are_measured_as_cut_out(clip):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    clean, noisy = (np.tile(wav[:32000], 2) for wav in clip)
    speech = ((1000, 31000), (33000, 60000))
    figures = Meter(("pesq_speech", "estoi_speech"))(clean, noisy, noisy, speech)
    parts = [(clean[a:b], noisy[a:b]) for a, b in speech]
    assert figures["pesq_speech"] == np.mean([pesq_wb(*part) for part in parts])
    assert figures["estoi_speech"] == np.mean([estoi(*part) for part in parts])


def test_noise_alone_has_levels_and_nothing_else(clip):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    _, noisy = clip
    figures = Meter()(np.zeros_like(noisy), np.float32(0.1) * noisy, noisy)
    defined = {name for name, value in figures.items() if math.isfinite(value)}
    assert defined == {"pause_lowered", "pause_worst", "pause_loudest", "pause_jump"}
    assert figures["pause_lowered"] == pytest.approx(20.0, abs=1e-3)


def test_a_recording_without_a_clean_one_has_levels(clip):
    clean, noisy = clip
    meter = Meter(reference=False)
    figures = meter(None, np.float32(0.5) * noisy, noisy, find_speech(clean))
    assert tuple(figures) == meter.names
    assert figures["loud_level"] == pytest.approx(-6.02, abs=0.01)
    with pytest.raises(InputError, match="need the noisy input"):
        meter(None, noisy)
    with pytest.raises(InputError, match="need the noisy input"):
        Meter(("pauses",))(clean, noisy)


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
    assert (s.least, s.most) == (values.min(), values.max())
    assert math.isnan(summarise([math.nan]).mean)


def test_paired_difference():
    rng = np.random.default_rng(2)
    speech = rng.normal(2.0, 1.0, 300)  # files differ far more than systems do
    gain = rng.normal(0.1, 0.2, 300)
    difference = paired([*(speech + gain), math.nan, 1.0], [*speech, 1.0, math.nan])
    assert difference.n == 300
    assert difference.mean == pytest.approx(gain.mean())
    half = 1.96 * gain.std(ddof=1) / math.sqrt(300)
    assert difference.high - difference.low == pytest.approx(2 * half, rel=0.08)
    assert difference.significant
    noise = paired(speech + gain - gain.mean(), speech)
    assert not noise.significant
    assert not paired([2.0], [1.0]).significant  # one file proves nothing
    assert math.isnan(paired([math.nan], [1.0]).mean)
    with pytest.raises(InputError, match="2 and 1 figures"):
        paired([1.0, 2.0], [1.0])


def test_paired_interval_covers_the_truth():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        values = rng.normal(0.3, 1.0, 40)
        result = paired(values, np.zeros(40), draws=400)
        hits += result.low <= 0.3 <= result.high
    assert 0.89 < hits / 200 < 0.99  # nominally 0.95, 0.94 at this size
