"""Faults of real recordings, each in a sound of its own: what a model does to them, in dB.

Made by formula and from the clips of tests/assets, so that the figures are the same everywhere. Each
scene knows where its parts are and gives figures that say how much of each was kept or lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvpd.benchmarks.common import recordings
from dvpd.benchmarks.common.recordings import RATE_HZ
from dvpd.runtime.arrays import FloatArray

SPEECH_DB = -23.0
UTTERANCE_S, GAP_S = 2.0, 1.0
QUIET_SNR_DB = 10.0
NOISE_S = 12.0  # longer than a window of the runtime
EARLY_S = 0.05  # reflections that belong to the speech
ROOM_T60_S, ROOM_DIRECT_DB = 0.6, -6.0
PHONE_HZ = (300.0, 3400.0)
EVENT_DB = 10.0  # above the speech
FLOOR_DB = -120.0
CAP_DB = 60.0  # more is not heard


@dataclass(frozen=True)
class Scene:
    """One sound.

    Attributes:
        name: What it is.
        wav: float32 [L] at 16 kHz.
        figures: Output [L] -> name and unit of a figure -> number, NaN where it is not defined.
    """

    name: str
    wav: FloatArray
    figures: Callable[[FloatArray], dict[str, float]]


def level_db(wav: NDArray[np.floating]) -> float:
    """RMS level (dB of full scale), at least ``FLOOR_DB``."""
    power = float(np.mean(np.square(np.asarray(wav, np.float64)))) if len(wav) else 0.0
    return max(10.0 * float(np.log10(power + 1e-30)), FLOOR_DB)


def at_level(wav: NDArray[Any], db: float) -> FloatArray:
    """``wav`` at an RMS of ``db`` (dB of full scale)."""
    return np.asarray(wav * 10.0 ** ((db - level_db(wav)) / 20.0), np.float32)


def _change(wav: FloatArray, out: FloatArray, start: int, end: int) -> float:
    return max(level_db(out[start:end]) - level_db(wav[start:end]), -CAP_DB)


def room_tone(rng: np.random.Generator, n: int) -> FloatArray:
    """Steady noise [n] of a room: 3 dB less an octave from 50 Hz on, as fans and traffic have it."""
    freqs = np.fft.rfftfreq(n, 1 / RATE_HZ)
    spec = np.fft.rfft(rng.standard_normal(n)) / np.sqrt(np.maximum(freqs, 50.0))
    return np.fft.irfft(spec, n).astype(np.float32)


def quieter_talker(
    loud: FloatArray, quiet: FloatArray, down_db: float, rng: np.random.Generator
) -> tuple[Scene, Scene]:
    """Two talkers take turns, the second ``down_db`` quieter than the first; both are wanted.

    The room's noise lies 10 dB below the second: without noise nothing is lost. The other scene has
    the second alone, in the same noise: what goes there is not the louder one's fault. Noise that is
    gone makes 0.4 dB.

    Args:
        loud: The first's utterance, [L].
        quiet: The second's, [L].
        down_db: How much quieter, dB.
        rng: Of the noise.
    """
    turns = [at_level(loud, SPEECH_DB), at_level(quiet, SPEECH_DB - down_db)]
    both, speech = recordings.spaced(turns * 2, 0.2, GAP_S, 0.2)
    noise = at_level(room_tone(rng, len(both)), SPEECH_DB - down_db - QUIET_SNR_DB)
    alone = np.zeros_like(both)
    for start, end in speech[1::2]:
        alone[start:end] = both[start:end]
    talkers = {"louder": speech[::2], "quieter": speech[1::2]}

    def scene(name: str, wav: FloatArray, who: Sequence[str]) -> Scene:
        def figures(out: FloatArray) -> dict[str, float]:
            return {
                f"{one} talker, dB": float(np.mean([_change(wav, out, *p) for p in talkers[one]]))
                for one in who
            }

        return Scene(name, wav, figures)

    name = f"a talker {down_db:g} dB below the other"
    return (
        scene(name, both + noise, ("louder", "quieter")),
        scene(f"{name}, without the other", alone + noise, ("quieter",)),
    )


def room(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A far microphone's room response [l]: whole, and its first 50 ms.

    Noise that decays by 60 dB in 0.6 s behind a direct sound that holds 6 dB less energy.
    """
    t = np.arange(int(ROOM_T60_S * RATE_HZ)) / RATE_HZ
    tail = rng.standard_normal(len(t)) * 10.0 ** (-3.0 * t / ROOM_T60_S) * (t > 0.002)
    tail /= np.sqrt(np.sum(tail**2))
    whole = tail.copy()
    whole[0] = 10.0 ** (ROOM_DIRECT_DB / 20.0)
    whole /= np.sqrt(np.sum(whole**2))
    return whole, whole * (t < EARLY_S)


def far_speech(speech: FloatArray, rng: np.random.Generator) -> Scene:
    """One talker far away in a live room, and the microphone's noise 25 dB below.

    The level is against direct sound and early reflections as they arrive.

    Args:
        speech: [L].
        rng: Of room and noise.
    """
    from scipy.signal import fftconvolve

    from dvpd.quality.pauses import measure_levels

    whole, early = room(rng)
    padded = np.pad(speech, (RATE_HZ // 2, RATE_HZ))
    heard, wanted = (fftconvolve(padded, h)[: len(padded)] for h in (whole, early))
    gain = 10.0 ** ((SPEECH_DB - 10.0 - level_db(heard)) / 20.0)
    heard, wanted = (x * gain for x in (heard, wanted))
    noise = at_level(rng.standard_normal(len(padded)), SPEECH_DB - 35.0)
    wav = (heard + noise).astype(np.float32)

    def figures(out: FloatArray) -> dict[str, float]:
        speaks = [(RATE_HZ // 2, RATE_HZ // 2 + len(speech))]
        found = measure_levels(wav, wanted, out, speaks)
        names = {"speech_level": "speech, dB"}
        names |= {f"speech_{b}": f"speech {b.replace('_', '-')} kHz, dB" for b in BANDS}
        return {text: found[name] for name, text in names.items()}

    return Scene("far speech in a live room", wav, figures)


BANDS = ("0_1", "1_2", "2_4", "4_8")


def telephone(speech: FloatArray, rng: np.random.Generator) -> Scene:
    """Speech of 0.3 to 3.4 kHz over line noise of the same band, 30 dB below.

    Args:
        speech: [L].
        rng: Of the noise.
    """
    from dvpd.quality.pauses import measure_levels

    freqs = np.fft.rfftfreq(len(speech), 1 / RATE_HZ)
    band = (freqs > PHONE_HZ[0]) & (freqs < PHONE_HZ[1])
    clean, noise = (
        at_level(np.fft.irfft(np.fft.rfft(x) * band, len(speech)), db)
        for x, db in ((speech, SPEECH_DB), (rng.standard_normal(len(speech)), SPEECH_DB - 30.0))
    )
    wav = clean + noise

    def figures(out: FloatArray) -> dict[str, float]:
        found = measure_levels(wav, clean, out, [(0, len(wav))])
        return {
            "hiss above the band against speech, dB": found["hiss"],
            "speech, dB": found["speech_level"],
        }

    return Scene("telephone band", wav, figures)


def clap(rng: np.random.Generator) -> NDArray[np.float64]:
    """A clap [l]: noise that decays by 60 dB in 0.15 s."""
    t = np.arange(RATE_HZ // 5) / RATE_HZ
    return np.asarray(rng.standard_normal(len(t)) * 10.0 ** (-3.0 * t / 0.15))


def bark(rng: np.random.Generator) -> NDArray[np.float64]:
    """A bark [l]: voice of 450 to 250 Hz with two formants and breath, 0.25 s."""
    t = np.arange(RATE_HZ // 4) / RATE_HZ
    pitch = 450.0 - 800.0 * t
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    voice = sum(
        np.sin(k * phase) * sum(1 / (1 + ((k * pitch - f) / 250.0) ** 2) for f in (900.0, 2000.0))
        for k in range(1, 16)
    )
    swell = np.sin(np.pi * np.minimum(t / 0.25, 1.0)) ** 0.5
    return np.asarray((voice + 0.1 * rng.standard_normal(len(t))) * swell)


def events(first: FloatArray, second: FloatArray, rng: np.random.Generator) -> Scene:
    """Claps and barks 10 dB above the speech, in the gap between two utterances.

    Args:
        first: [L].
        second: [L].
        rng: Of the events.
    """
    level = SPEECH_DB - 12.0  # a clap's peak is 16 dB above its level, and stays below full scale
    clean, _ = recordings.spaced([at_level(x, level) for x in (first, second)], 0.3, 4.0, 0.3)
    wav = clean.copy()
    at = round(0.3 * RATE_HZ) + len(first) + RATE_HZ // 2
    places: dict[str, list[tuple[int, int]]] = {"claps": [], "barks": []}
    for i, (kind, make) in enumerate((("claps", clap), ("barks", bark)) * 2):
        sound = at_level(make(rng), level + EVENT_DB)
        start = at + i * RATE_HZ * 3 // 4
        wav[start : start + len(sound)] += sound
        places[kind].append((start, start + len(sound)))

    def figures(out: FloatArray) -> dict[str, float]:
        return {
            f"{kind} lowered by, dB": -float(np.mean([_change(wav, out, *p) for p in where]))
            for kind, where in places.items()
        }

    return Scene("claps and barks between utterances", wav, figures)


def noise_alone(name: str, noise: FloatArray) -> Scene:
    """Noise that nobody speaks in.

    Args:
        name: What it is.
        noise: [L].
    """
    from dvpd.quality.pauses import measure_levels

    wav = at_level(noise, -30.0)

    def figures(out: FloatArray) -> dict[str, float]:
        found = measure_levels(wav, np.zeros_like(wav), out, ())
        return {
            "lowered by, dB": found["pause_lowered"],
            "worst tenth of half seconds, dB": found["pause_worst"],
            "loudest half second lowered by, dB": found["pause_loudest"],
            "jump, dB": found["pause_jump"],
        }

    return Scene(name, wav, figures)


def one_click() -> Scene:
    """Digital silence with one sample of 0.5 in its middle."""
    wav = np.zeros(3 * RATE_HZ, np.float32)
    at = len(wav) // 2
    wav[at] = 0.5
    near = np.abs(np.arange(len(wav)) - at) < RATE_HZ // 20

    def figures(out: FloatArray) -> dict[str, float]:
        peak = float(np.abs(out[near]).max())
        return {
            "click's peak, dB": max(20.0 * float(np.log10(peak / 0.5 + 1e-30)), FLOOR_DB),
            "level elsewhere, dB of full scale": level_db(out[~near]),
        }

    return Scene("silence with one click", wav, figures)


def without_edges(speech: FloatArray) -> Scene:
    """Speech from the first sample to the last.

    Args:
        speech: [L], whose silent ends are cut off.
    """
    from dvpd.quality.pauses import WORD, block_levels

    loud = np.flatnonzero(block_levels(speech, WORD) > level_db(speech) - 6.0)
    wav = at_level(speech[loud[0] * WORD : (loud[-1] + 1) * WORD], SPEECH_DB)

    def figures(out: FloatArray) -> dict[str, float]:
        return {
            "first 0.1 s, dB": _change(wav, out, 0, WORD),
            "last 0.1 s, dB": _change(wav, out, len(wav) - WORD, len(wav)),
            "all, dB": _change(wav, out, 0, len(wav)),
        }

    return Scene("speech from the first sample to the last", wav, figures)


def make_scenes(
    speech: Sequence[FloatArray], noises: Sequence[FloatArray], music: FloatArray
) -> list[Scene]:
    """All scenes.

    Args:
        speech: Clean speech of two talkers and more, [L] each.
        noises: Recorded noise, [L] each, more than 1 s.
        music: [L].
    """
    rng = np.random.default_rng(0)
    a, b = (x[: int(UTTERANCE_S * RATE_HZ)] for x in speech[:2])
    n = int(NOISE_S * RATE_HZ)
    return [
        *(
            s
            for db in (10.0, 20.0, 30.0)
            for s in quieter_talker(a, b, db, np.random.default_rng(1))
        ),
        far_speech(speech[0], rng),
        telephone(speech[1], rng),
        events(a, b, rng),
        *(
            noise_alone(f"recorded noise {i} alone", recordings.continuous_noise(x, n))
            for i, x in enumerate(noises, start=1)
        ),
        noise_alone("white noise alone", rng.standard_normal(n).astype(np.float32)),
        noise_alone("music alone", music),
        one_click(),
        without_edges(speech[0]),
    ]
