import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dvpd.runtime.errors import InputError
from dvpd.runtime.spec import SignalSpec, padded_frames
from dvpd.runtime.stft import compress, decompress, hann_periodic, istft, stft

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SIGNAL = SignalSpec()
STFT_TOLERANCE = 1e-5  # the equivalence that the project promises
ROUND_TRIP_DB = 100.0


def snr_db(reference, other):
    error = np.sum((reference.astype(np.float64) - other) ** 2)
    return 10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / max(error, 1e-300))


@pytest.mark.parametrize("clip", range(4))
def test_round_trip_on_speech(clip):
    wav = soundfile.read(ASSETS / f"clip{clip}_noisy.flac", dtype="float32")[0]
    spec = stft(wav, SIGNAL)
    assert spec.dtype == np.complex64
    assert spec.shape == (1 + wav.size // 128, 257)
    assert snr_db(wav, istft(spec, wav.size, SIGNAL)) >= ROUND_TRIP_DB
    features = compress(spec, SIGNAL)
    assert features.dtype == np.float32
    back = istft(decompress(features[:2], SIGNAL), wav.size, SIGNAL)
    assert back.dtype == np.float32
    assert snr_db(wav, back) >= ROUND_TRIP_DB


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 255, 256, 257, 258, 511, 512, 513, 4097])
def test_any_length_comes_back(length):
    wav = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    spec = stft(wav, SIGNAL)
    assert spec.shape[0] == 1 + max(length, 257) // 128
    back = istft(spec, length, SIGNAL)
    assert back.shape == (length,)
    assert snr_db(wav, back) >= ROUND_TRIP_DB


def test_long_signal_in_blocks():
    wav = np.random.default_rng(0).standard_normal(128 * 2048 * 2 + 77).astype(np.float32)
    assert snr_db(wav, istft(stft(wav, SIGNAL), wav.size, SIGNAL)) >= ROUND_TRIP_DB


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("length", [257, 1000, 49875])
def test_equals_torch(length):
    import torch

    wav = soundfile.read(ASSETS / "clip0_noisy.flac", dtype="float32")[0][:length]
    wav = wav / np.abs(wav).max()
    window = torch.hann_window(512, periodic=True, dtype=torch.float64)
    expected = torch.stft(
        torch.from_numpy(wav).double(),
        512,
        128,
        512,
        window,
        center=True,
        pad_mode="reflect",
        return_complex=True,
    ).T.numpy()
    np.testing.assert_allclose(stft(wav, SIGNAL), expected, atol=STFT_TOLERANCE, rtol=0)
    spec = expected.astype(np.complex64)
    if length % 128 == 0 or length > 512:
        inverse = torch.istft(
            torch.from_numpy(spec.T).to(torch.complex128),
            512,
            128,
            512,
            window,
            center=True,
            length=length,
        ).numpy()
        np.testing.assert_allclose(istft(spec, length, SIGNAL), inverse, atol=STFT_TOLERANCE)


def test_compression_formula():
    rng = np.random.default_rng(3)
    spec = (rng.standard_normal((4, 257)) + 1j * rng.standard_normal((4, 257))).astype(np.complex64)
    real, imag, mag = compress(spec, SIGNAL)
    np.testing.assert_allclose(mag, 0.3 * np.abs(spec) ** 0.3, rtol=1e-5)
    np.testing.assert_allclose(np.hypot(real, imag), mag, rtol=1e-5)
    np.testing.assert_allclose(np.angle(real + 1j * imag), np.angle(spec), atol=1e-5)


def test_zeros_stay_zero():
    features = compress(np.zeros((3, 257), np.complex64), SIGNAL)
    assert not features.any()
    assert not decompress(features[:2], SIGNAL).any()


def test_window_is_periodic():
    torch = pytest.importorskip("torch")
    expected = torch.hann_window(512, periodic=True, dtype=torch.float64).numpy()
    np.testing.assert_allclose(hann_periodic(512), expected, atol=1e-15)


@pytest.mark.parametrize("shape", [(0,), (2, 300), ()])
def test_bad_waveform(shape):
    with pytest.raises(InputError, match="stft got"):
        stft(np.zeros(shape, np.float32), SIGNAL)


def test_bad_spectrum():
    with pytest.raises(InputError, match="257"):
        istft(np.zeros((4, 256), np.complex64), 100, SIGNAL)
    with pytest.raises(InputError, match="frames"):
        istft(np.zeros((4, 257), np.complex64), 1000, SIGNAL)
    with pytest.raises(InputError, match="frames"):
        istft(np.zeros((4, 257), np.complex64), 0, SIGNAL)


@pytest.mark.parametrize(("n", "expected"), [(1, 32), (32, 32), (33, 36), (36, 36), (125, 128)])
def test_padded_frames(n, expected):
    assert padded_frames(n) == expected
