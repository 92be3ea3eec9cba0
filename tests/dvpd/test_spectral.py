from pathlib import Path

import numpy as np
import soundfile as sf
import torch

from dvpd import spectral
from dvpd.runtime import stft as np_stft
from dvpd.runtime.spec import SignalSpec

CLIP = Path(__file__).parents[1] / "assets" / "clip0_noisy.flac"
SIGNAL = SignalSpec()
PARITY = 1e-5  # of the largest value


def speech(n: int = 40000) -> np.ndarray:
    wav, rate = sf.read(CLIP, dtype="float32")
    assert rate == 16000
    wav = wav[:n]
    return wav / np.abs(wav).max()


def test_stft_of_torch_equals_numpy_on_real_speech():
    wav = speech()
    a = spectral.stft(torch.from_numpy(wav)[None])[0].numpy()
    b = np_stft.stft(wav, SIGNAL)
    assert a.shape == b.shape
    assert np.abs(a - b).max() < PARITY * np.abs(b).max()


def test_compression_of_torch_equals_numpy_on_real_speech():
    # in float64: the root of a bin that is 1e-6 of full scale magnifies float32's rounding
    wav = speech()
    a = spectral.compress(torch.from_numpy(wav).double()[None])[0].numpy()
    b = np_stft.compress(np_stft.stft(wav, SIGNAL), SIGNAL)[:2]
    assert a.shape == b.shape
    assert np.abs(b).max() > 0.5
    assert np.abs(a - b).max() < PARITY * np.abs(b).max()


def test_round_trip_snr():
    wav = speech()
    back = spectral.istft_from_compressed(
        spectral.compress(torch.from_numpy(wav).double()[None]).float(), len(wav)
    )
    error = back[0].double().numpy() - wav
    assert 10 * np.log10((wav**2).sum() / (error**2).sum()) >= 100


def test_frames_and_channels():
    noisy = spectral.compressed_noisy(torch.randn(2, 32640))
    assert noisy.shape == (2, 3, 256, 257)
    assert torch.allclose(noisy[:, 2], noisy[:, :2].square().sum(1).sqrt(), atol=1e-5)


def test_silence_has_finite_gradients():
    ri = torch.zeros(1, 2, 8, 257, requires_grad=True)
    spectral.magnitude(ri).sum().backward()
    assert torch.isfinite(ri.grad).all()
    assert spectral.istft_from_compressed(ri.detach(), 896).abs().max() == 0


def test_linear_power_undoes_the_compression():
    wav = 0.1 * torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    expected = spectral.stft(wav).abs().square()
    torch.testing.assert_close(
        spectral.linear_power(spectral.compress(wav)), expected, rtol=1e-3, atol=1e-8
    )
