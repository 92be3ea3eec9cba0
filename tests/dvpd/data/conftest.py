"""Speech-like signals, and the measures of the physics tests."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import soundfile as sf

from dvpd.data.pool import Pool

RATE = 16000


def voice(seconds: float, seed: int) -> np.ndarray:
    """Syllables of band-limited noise: pauses, onsets and a spectrum up to 8 kHz."""
    rng = np.random.default_rng(seed)
    wav = rng.standard_normal(int(seconds * RATE)).astype(np.float32)
    syllables = np.abs(np.sin(np.arange(len(wav)) * 2 * np.pi * 3 / RATE)) ** 2
    return (0.1 * wav * syllables).astype(np.float32)


def power_db(wav: np.ndarray, low_hz: float, high_hz: float) -> float:
    freqs, power = scipy.signal.welch(wav, RATE, nperseg=1024)
    return 10 * np.log10(power[(freqs >= low_hz) & (freqs < high_hz)].mean() + 1e-20)


def lag(a: np.ndarray, b: np.ndarray) -> int:
    """Samples by which ``b`` is late."""
    return int(np.argmax(scipy.signal.correlate(b, a, method="fft"))) - (len(a) - 1)


def tone(freq_hz: float, level_db: float, seconds: float = 1.0) -> np.ndarray:
    """A sine of the given RMS (dB of full scale)."""
    time = np.arange(int(seconds * RATE)) / RATE
    wav = np.sin(2 * np.pi * freq_hz * time) * np.sqrt(2) * 10 ** (level_db / 20)
    return wav.astype(np.float32)


def gain_at(process, freq_hz: float, level_db: float = -20.0) -> float:
    """Gain (dB) of ``process`` for a tone, from its projection on that tone, edges left out."""
    wav = tone(freq_hz, level_db)
    wave = np.exp(-2j * np.pi * freq_hz * np.arange(len(wav)) / RATE)[2000:-2000]
    before, after = (abs(np.dot(w[2000:-2000], wave)) for w in (wav, process(wav)))
    return 20 * np.log10(after / before + 1e-12)


def write(path, wav, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wav, rate)


@pytest.fixture(scope="session")
def lab():
    """The functions above."""
    return SimpleNamespace(
        rate=RATE, voice=voice, power_db=power_db, lag=lag, tone=tone, gain_at=gain_at, write=write
    )


@pytest.fixture(scope="session")
def pools():
    speech = Pool.from_arrays(
        [("long", voice(5, 1)), ("long", voice(4, 2))]
        + [("short", voice(0.5, i)) for i in range(9)]
    )
    rng = np.random.default_rng(5)
    noise = Pool.from_arrays(
        [("n", 0.05 * rng.standard_normal(RATE * 3)), ("m", 0.05 * rng.standard_normal(RATE))]
    )
    response = np.zeros(8000)
    response[300] = -0.8  # arrives late and inverted
    response[900] = 0.3
    return speech, noise, Pool.from_arrays([("rooms", response)])
