"""`dvpd.runtime.phase`: the phase of a spectrum against its magnitude."""

from __future__ import annotations

import numpy as np
import pytest

from dvpd.runtime.phase import to_waveform
from dvpd.runtime.spec import SignalSpec
from dvpd.runtime.stft import istft, stft

SIGNAL = SignalSpec()
RNG = np.random.default_rng(5)


def voiced(n: int = 16000) -> np.ndarray:
    """Harmonics that glide, with pauses: [n] float32."""
    t = np.arange(n) / 16000.0
    turns = np.cumsum(140.0 + 40.0 * np.sin(2.0 * np.pi * 1.3 * t)) / 16000.0
    wav = sum(np.sin(2.0 * np.pi * k * turns) / k for k in range(1, 20))
    return (0.1 * wav * (np.sin(2.0 * np.pi * 1.1 * t) > -0.5)).astype(np.float32)


def disturbed(wav: np.ndarray, spread: float) -> np.ndarray:
    """The spectrum of a waveform whose phase is off by ``spread`` radians, bin by bin."""
    spec = stft(wav, SIGNAL)
    turned = spec * np.exp(1j * spread * RNG.standard_normal(spec.shape))
    return turned.astype(np.complex64)


def contradiction(wav: np.ndarray, spec: np.ndarray) -> float:
    """How far the waveform's magnitude is from the one that was asked for (dB)."""
    wrong = np.abs(stft(wav, SIGNAL)) - np.abs(spec)
    return float(10.0 * np.log10(np.sum(wrong**2) / np.sum(np.abs(spec) ** 2)))


def test_each_round_brings_the_waveform_nearer_to_the_magnitude() -> None:
    """Griffin and Lim's theorem: the distance never grows; two rounds take several dB."""
    spec = disturbed(voiced(), 0.6)
    found = [
        contradiction(to_waveform(spec, 16000, SIGNAL, rounds), spec) for rounds in (0, 1, 2, 5)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] - found[2] > 3.0


def test_rounds_bring_a_disturbed_phase_nearer_to_the_true_one() -> None:
    """What the networks leave of the phase's error becomes less."""
    wav = voiced()
    spec = disturbed(wav, 0.6)
    errors = [np.sum((to_waveform(spec, 16000, SIGNAL, rounds) - wav) ** 2) for rounds in (0, 2)]
    assert errors[1] < 0.8 * errors[0]


def test_no_round_is_the_inverse_transform() -> None:
    """0 changes nothing, bit by bit."""
    spec = disturbed(voiced(), 0.6)
    np.testing.assert_array_equal(to_waveform(spec, 16000, SIGNAL, 0), istft(spec, 16000, SIGNAL))


@pytest.mark.parametrize("n", [16000, 15999, 200])
def test_a_spectrum_without_contradiction_stays(n: int) -> None:
    """The spectrum of a waveform, also a short one, and frames of padding after it."""
    wav = voiced(n)
    spec = stft(wav, SIGNAL)
    padded = np.concatenate([spec, np.zeros((3, spec.shape[1]), np.complex64)])
    np.testing.assert_allclose(to_waveform(spec, n, SIGNAL, 3), wav, atol=1e-6)
    assert len(to_waveform(padded[: len(spec)], n, SIGNAL, 1)) == n


def test_silence_stays_silence() -> None:
    """No division by the magnitude that is not there."""
    spec = np.zeros((126, 257), np.complex64)
    assert not to_waveform(spec, 16000, SIGNAL, 2).any()
