"""DNSMOS and WV-MOS: features against librosa, segments, and what is wrong with a model file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from dvpd.quality.mos import DNSMOS_NAMES, Dnsmos, WvMos, mel_features, mel_filters
from dvpd.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT.parent / "shared" / "data" / "dnsmos"
N_SEGMENT = 144160  # 9.01 s
# (frame, band) -> value for the first second of examples/noisy.flac, from audio_melspec of
# dnsmos_local.py (DNS-Challenge, commit 591184a) with librosa 0.11.0, and the mean of all.
MEL_GOLDEN = {
    (0, 0): -1.0,
    (10, 5): 0.35157800397035344,
    (50, 60): 0.1269362126729229,
    (99, 119): -0.12349129608629265,
    (70, 30): -0.5557692289730062,
}
MEL_MEAN = -0.0870914724353937
MEL_TOLERANCE = 1e-6  # float32
# examples/noisy.flac and its first 3 s, from dnsmos_local.py
DNSMOS_GOLDEN = {
    None: (3.563001871072521, 2.456397032991399, 2.4172348396106065, 2.5815628),
    48000: (2.166055085754017, 2.1988109284059942, 1.4892363497486556, 2.149808),
}
DNSMOS_TOLERANCE = 1e-5  # float32, and ONNX Runtime's kernels differ between machines


@pytest.fixture(scope="module")
def noisy():
    return sf.read(ROOT / "examples" / "noisy.flac")[0]


def test_mel_features_equal_librosa(noisy):
    features = mel_features(noisy[:16000])
    assert features.shape == (100, 120)
    got = {key: features[key] for key in MEL_GOLDEN}
    assert got == pytest.approx(MEL_GOLDEN, abs=MEL_TOLERANCE)
    assert features.mean() == pytest.approx(MEL_MEAN, abs=MEL_TOLERANCE)
    assert features.max() == 1.0  # the loudest bin is 0 dB
    assert mel_filters().shape == (120, 161)
    assert np.all(mel_features(np.zeros(16000)) == 1.0)


def test_segments_and_calibration(dnsmos_models):
    scorer = Dnsmos(dnsmos_models)
    rng = np.random.default_rng(0)
    # Starts are whole seconds up to the last whole second less 9.01 s; the level rises.
    for n_samples, starts in ((N_SEGMENT, (0,)), (191999, (0, 1)), (192000, (0, 1, 2))):
        wav = rng.normal(size=n_samples) * (1 + np.arange(n_samples) / 16000)
        power = [np.mean(wav[s * 16000 : s * 16000 + N_SEGMENT] ** 2) for s in starts]
        expected = np.mean(
            [-0.13166888 * (2 * p) ** 2 + 1.60915514 * 2 * p - 0.39604546 for p in power]
        )
        assert scorer(wav)["dnsmos_bak"] == pytest.approx(expected, rel=1e-4)
    pieces = np.array_split(wav, 7)  # a recording that comes in blocks
    assert scorer.of_blocks(pieces) == pytest.approx(scorer(wav), rel=1e-6)
    short = rng.normal(size=50000)
    doubled = np.concatenate([short] * 4)  # 3.1 s doubles to 6.3 s, then to 12.5 s
    assert scorer(short) == scorer(doubled)
    assert tuple(scorer(short)) == DNSMOS_NAMES


@pytest.mark.skipif(not MODELS.is_dir(), reason="the DNSMOS models are not on this machine")
@pytest.mark.parametrize("n_samples", DNSMOS_GOLDEN)
def test_dnsmos_equals_the_public_script(n_samples, noisy):
    scores = Dnsmos(MODELS)(noisy[:n_samples])
    expected = dict(zip(DNSMOS_NAMES, DNSMOS_GOLDEN[n_samples], strict=True))
    assert scores == pytest.approx(expected, abs=DNSMOS_TOLERANCE)


def test_missing_or_damaged_dnsmos(dnsmos_models):
    (dnsmos_models / "model_v8.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"model_v8\.onnx is no model"):
        Dnsmos(dnsmos_models)
    (dnsmos_models / "model_v8.onnx").unlink()
    with pytest.raises(InputError, match=r"lacks model_v8\.onnx; .*DNS-Challenge"):
        Dnsmos(dnsmos_models)
    with pytest.raises(InputError, match=r"lacks sig_bak_ovr\.onnx and model_v8\.onnx"):
        Dnsmos(dnsmos_models / "nowhere")


def test_wv_mos_from_onnx(tmp_path, save_model):
    wav = np.random.default_rng(0).normal(size=5000)
    save_model(tmp_path / "wv.onnx", ["L"], 1, gain=4.0)
    score = WvMos(tmp_path / "wv.onnx")(wav)
    assert score == {"wv_mos": pytest.approx(4 * np.mean(wav**2), rel=1e-5)}
    save_model(tmp_path / "two.onnx", ["L"], 2)
    with pytest.raises(InputError, match=r"returned \[1, 2\]; expected one number"):
        WvMos(tmp_path / "two.onnx")(wav)
    save_model(tmp_path / "fixed.onnx", [900, 120], 1)
    with pytest.raises(InputError, match=r"does not take float32 \[1, 5000\]"):
        WvMos(tmp_path / "fixed.onnx")(wav)
    with pytest.raises(InputError, match="no such WV-MOS model"):
        WvMos(tmp_path / "nowhere.onnx")


def test_wv_mos_from_torchscript(tmp_path):
    import torch

    class Loudness(torch.nn.Module):
        def forward(self, wav):
            return wav.square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Loudness(), torch.ones(1, 10)).save(str(tmp_path / "wv.pt"))
    wav = np.random.default_rng(0).normal(size=5000)
    score = WvMos(tmp_path / "wv.pt")(wav)
    assert score == {"wv_mos": pytest.approx(np.mean(wav**2), rel=1e-5)}
    (tmp_path / "bad.pt").write_bytes(b"no archive")
    with pytest.raises(InputError, match="no TorchScript file"):
        WvMos(tmp_path / "bad.pt")
