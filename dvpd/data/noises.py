"""Noise made by formula: hums, wind, keyboards, music, ticks, crackle, cries, loud short events.

Two hours of recordings do not hold all that happens beside a microphone. Each function draws from the
generator it is given and returns float32 [count] at 16 kHz with an RMS of 1, unless it says otherwise.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.random import Generator

from ..runtime.spec import SAMPLE_RATE
from .degrade import Wav, db_to_gain, rms

_SEMITONE = 2.0 ** (1.0 / 12.0)
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))
_STROKE_S = 0.012  # a key's click has died away
_LONGEST_EVENT_S = 0.4


def _unit(wav: Wav) -> Wav:
    return (wav / np.float32(max(rms(wav), 1e-9))).astype(np.float32, copy=False)


def coloured_noise(rng: Generator, count: int, exponent: float) -> Wav:
    """Gaussian noise with power ~ 1 / f^exponent (flat below 30 Hz)."""
    size = scipy.fft.next_fast_len(count, real=True)
    half = size // 2 + 1
    parts = rng.standard_normal(2 * half, dtype=np.float32)
    spec = parts.view(np.complex64)
    freqs = np.maximum(np.arange(half, dtype=np.float32) * np.float32(SAMPLE_RATE / size), 30.0)
    spec = spec * freqs ** np.float32(-exponent / 2)
    spec[0] = 0
    return _unit(scipy.fft.irfft(spec, size)[:count])


def slow_modulation(rng: Generator, count: int, depth_db: float) -> Wav:
    """A slowly wandering gain (not of RMS 1): levels in +- ``depth_db``, a few a second."""
    n_knots = int(rng.integers(3, 16))
    levels = rng.uniform(-depth_db, depth_db, n_knots)
    curve = np.interp(np.linspace(0, n_knots - 1, 512), np.arange(n_knots), levels)
    gains = 10.0 ** (curve / 20.0)
    return np.interp(np.linspace(0, 511, count), np.arange(512), gains).astype(np.float32)


def hum(rng: Generator, count: int) -> Wav:
    """Mains hum: harmonics of 50 or 60 Hz (detuned by up to 1 %)."""
    base = float(rng.choice((50.0, 60.0, 100.0, 120.0))) * rng.uniform(0.99, 1.01)
    time = np.arange(count, dtype=np.float32) / np.float32(SAMPLE_RATE)
    wav = np.zeros(count, np.float32)
    for n in range(1, int(rng.integers(3, 12))):
        level = rng.uniform(0.1, 1.0) / n ** rng.uniform(0.3, 1.5)
        wav += np.float32(level) * np.sin(
            np.float32(2 * np.pi * base * n) * time + rng.uniform(0, 6)
        )
    return _unit(wav)


def wind(rng: Generator, count: int) -> Wav:
    """Wind in a microphone: noise that falls by 6 to 12 dB an octave, in gusts of 20 dB and more."""
    wav = coloured_noise(rng, count, rng.uniform(2.0, 4.0))
    return _unit(wav * slow_modulation(rng, count, rng.uniform(6.0, 15.0)))


def keyboard(rng: Generator, count: int) -> Wav:
    """Typing: clicks of a few milliseconds around 1 to 5 kHz, a press and a softer release each."""
    length = int(_STROKE_S * SAMPLE_RATE)
    wav = np.zeros(count + length, np.float32)
    time = np.arange(length, dtype=np.float32) / np.float32(SAMPLE_RATE)
    rate = rng.uniform(2.0, 9.0)  # strokes a second
    place = rng.exponential(1.0 / rate)
    while place * SAMPLE_RATE < count:
        tone = np.sin(np.float32(2 * np.pi * rng.uniform(1000.0, 5000.0)) * time)
        noise = rng.standard_normal(length, dtype=np.float32)
        decay = np.exp(-time / np.float32(rng.uniform(0.001, 0.004)))
        click = (noise + tone * np.float32(rng.uniform(0.0, 2.0))) * decay
        release = place + rng.uniform(0.05, 0.12)
        for at, level_db in ((place, rng.uniform(-6.0, 0.0)), (release, rng.uniform(-18.0, -6.0))):
            first = int(at * SAMPLE_RATE)
            if first < count:
                wav[first : first + length] += click * np.float32(db_to_gain(level_db))
        # Words, with a pause between them now and then.
        place += rng.exponential(1.0 / rate) + (
            rng.uniform(0.3, 1.0) if rng.random() < 0.1 else 0.03
        )
    return _unit(wav[:count])


def music(rng: Generator, count: int) -> Wav:
    """Simple music: a few voices of plucked or held tones in one scale, now and then with drums."""
    beat = 60.0 / rng.uniform(60.0, 150.0)  # s
    scale = _SCALES[int(rng.integers(len(_SCALES)))]
    root_hz = 55.0 * _SEMITONE ** rng.uniform(0.0, 12.0)
    wav = np.zeros(count, np.float32)
    for voice in range(int(rng.integers(1, 5))):
        octave = int(rng.integers(0 if voice == 0 else 1, 4))
        step = beat * float(rng.choice((0.5, 1.0, 2.0)))
        held, loud = rng.random() < 0.4, db_to_gain(rng.uniform(-9.0, 0.0))
        harmonics, slope = int(rng.integers(2, 9)), rng.uniform(0.7, 2.0)
        place = -rng.uniform(0.0, step)  # the music does not begin with the crop
        while place * SAMPLE_RATE < count:
            first, last = int(place * SAMPLE_RATE), int((place + 1.3 * step) * SAMPLE_RATE)
            # One note in six is a rest; the draw is the same, so that voices stay independent.
            degree, rest = scale[int(rng.integers(len(scale)))], rng.random() < 1 / 6
            place += step
            if rest or last <= 0:
                continue
            time = np.arange(last - first, dtype=np.float32) / np.float32(SAMPLE_RATE)
            frequency = root_hz * 2.0**octave * _SEMITONE**degree
            note = np.zeros_like(time)
            for n in range(1, harmonics + 1):
                if frequency * n < SAMPLE_RATE / 2:
                    angle = np.float32(2 * np.pi * frequency * n) * time + rng.uniform(0.0, 6.0)
                    note += np.float32(n**-slope) * np.sin(angle)
            attack = np.minimum(time / np.float32(0.05 if held else 0.004), 1.0)
            release = np.minimum((time[-1] - time) / np.float32(0.05), 1.0)
            fade = 1.0 if held else np.exp(-time / np.float32(0.4 * step))
            note *= attack * release * fade * np.float32(loud)
            begin, end = max(first, 0), min(last, count)
            wav[begin:end] += note[begin - first : end - first]
    if rng.random() < 0.4:
        drums = np.zeros(count, np.float32)
        place = -rng.uniform(0.0, beat)
        while place * SAMPLE_RATE < count:
            _add(drums, burst(rng, rng.uniform(0.03, 0.15)), int(place * SAMPLE_RATE))
            place += beat * float(rng.choice((0.5, 1.0)))
        wav = wav + _unit(drums) * np.float32(rms(wav) * rng.uniform(0.2, 0.8))
    return _unit(wav)


def burst(rng: Generator, decay_s: float) -> Wav:
    """One clap, knock or click (any length): noise around one frequency that dies away; peak 1."""
    count = max(int(5.0 * decay_s * SAMPLE_RATE), 32)
    size = scipy.fft.next_fast_len(count, real=True)
    spec = scipy.fft.rfft(rng.standard_normal(count, dtype=np.float32), size)
    freqs = np.arange(len(spec), dtype=np.float32) * np.float32(SAMPLE_RATE / size)
    centre_hz, octaves = 2.0 ** rng.uniform(7.0, 12.5), rng.uniform(0.5, 3.0)
    distance = np.log2(np.maximum(freqs, 20.0) / np.float32(centre_hz)) / np.float32(octaves)
    wav = scipy.fft.irfft(spec * np.exp(-0.5 * distance**2), size)[:count]
    time = np.arange(count, dtype=np.float32) / np.float32(SAMPLE_RATE)
    wav = wav * np.exp(-time / np.float32(decay_s)) * np.minimum(time / np.float32(5e-4), 1.0)
    out: Wav = (wav / max(float(np.max(np.abs(wav))), 1e-9)).astype(np.float32)
    return out


def ticks(rng: Generator, count: int) -> Wav:
    """A clock or a dripping tap: the same click again and again, every other one softer."""
    wav = np.zeros(count, np.float32)
    click = burst(rng, float(np.exp(rng.uniform(np.log(0.001), np.log(0.02)))))
    period, softer_db = rng.uniform(0.15, 1.2), rng.uniform(-12.0, 0.0)
    place, number = rng.uniform(0.0, min(period, count / SAMPLE_RATE)), 0
    while place * SAMPLE_RATE < count:
        level = db_to_gain(softer_db * (number % 2) + rng.uniform(-1.0, 1.0))
        _add(wav, click * np.float32(level), int(place * SAMPLE_RATE))
        place, number = place + period * rng.uniform(0.99, 1.01), number + 1
    return _unit(wav)


def crackle(rng: Generator, count: int) -> Wav:
    """Fire or breaking twigs: clicks at random, most of them soft and few loud, over a faint hiss."""
    wav = coloured_noise(rng, count, rng.uniform(0.0, 1.0)) * np.float32(
        db_to_gain(rng.uniform(-50.0, -30.0))
    )
    rate = float(np.exp(rng.uniform(np.log(4.0), np.log(40.0))))  # clicks a second
    place = rng.exponential(1.0 / rate)
    while place * SAMPLE_RATE < count:
        click = burst(rng, float(np.exp(rng.uniform(np.log(0.0005), np.log(0.01)))))
        level_db = -rng.exponential(10.0)
        _add(wav, click * np.float32(db_to_gain(level_db)), int(place * SAMPLE_RATE))
        place += rng.exponential(1.0 / rate)
    return _unit(wav)


def cries(rng: Generator, count: int) -> Wav:
    """An animal: short voiced cries that fall in pitch, with rough breath and silence between.

    Pitch from 300 to 1500 Hz and no cry longer than 0.3 s: no voice that somebody would speak with.
    """
    length_s, pitch_hz = rng.uniform(0.06, 0.3), 300.0 * 5.0 ** rng.uniform(0.0, 1.0)
    fall, formant_hz = rng.uniform(0.0, 0.5), rng.uniform(600.0, 3000.0)
    breath, period = rng.uniform(0.05, 0.6), rng.uniform(0.25, 1.5)
    time = np.arange(int(length_s * SAMPLE_RATE), dtype=np.float32) / np.float32(SAMPLE_RATE)
    wav = np.zeros(count, np.float32)
    place = rng.uniform(-0.5 * length_s, min(period, count / SAMPLE_RATE))
    while place * SAMPLE_RATE < count:
        pitch = pitch_hz * rng.uniform(0.9, 1.1) * (1.0 - fall * time / np.float32(length_s))
        phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
        cry = np.zeros_like(time)
        for n in range(1, int(SAMPLE_RATE / 2 / pitch_hz) + 1):
            gain = 1.0 / (0.3 + abs(np.log2(n * pitch_hz / formant_hz)))
            cry += np.float32(gain) * np.sin(n * phase).astype(np.float32)
        air = rng.standard_normal(len(time), dtype=np.float32)
        cry = _unit(cry) + air * np.float32(breath)
        swell = np.sin(np.pi * np.minimum(time / np.float32(length_s), 1.0)) ** 0.5
        level = np.float32(db_to_gain(rng.uniform(-6.0, 0.0)))
        _add(wav, cry * swell * level, int(place * SAMPLE_RATE))
        place += max(period * rng.uniform(0.5, 1.5), length_s)
    return _unit(wav)


def impulsive(rng: Generator, count: int) -> Wav:
    """Short loud sounds with next to nothing between them: ticks, crackle or cries."""
    makers = (ticks, crackle, cries)
    return makers[int(rng.integers(len(makers)))](rng, count)


def piece(rng: Generator, recording: Wav) -> Wav:
    """The loudest part of a recording, 0.05 to 0.4 s with ramps: a bark, a cough; peak 1."""
    count = min(int(rng.uniform(0.05, _LONGEST_EVENT_S) * SAMPLE_RATE), len(recording))
    middle = int(np.argmax(np.abs(recording)))
    first = int(np.clip(middle - rng.integers(count), 0, len(recording) - count))
    wav = recording[first : first + count].copy()
    ramp = max(min(count // 4, SAMPLE_RATE // 50), 1)
    shape = np.linspace(0.0, 1.0, ramp, dtype=np.float32)
    wav[:ramp] *= shape
    wav[-ramp:] *= shape[::-1]
    return wav / np.float32(max(float(np.max(np.abs(wav))), 1e-9))


def _add(wav: Wav, what: Wav, first: int) -> None:
    begin, end = max(first, 0), min(first + len(what), len(wav))
    if end > begin:
        wav[begin:end] += what[begin - first : end - first]


def events(rng: Generator, count: int, recordings: list[Wav]) -> Wav:
    """One to three sudden events at any place of [count]; the largest peak is 1.

    Args:
        rng: Source of randomness.
        count: Samples.
        recordings: Recorded noise that an event may be cut from; with none, all are bursts.
    """
    wav = np.zeros(count, np.float32)
    for number in range(int(rng.integers(1, 4))):
        recorded = bool(recordings) and rng.random() < 0.6
        if recorded:
            event = piece(rng, recordings[int(rng.integers(len(recordings)))])
        else:
            event = burst(rng, float(np.exp(rng.uniform(np.log(0.002), np.log(0.08)))))
        level_db = rng.uniform(-10.0, 0.0) if number else 0.0
        _add(wav, event * np.float32(db_to_gain(level_db)), int(rng.integers(count)))
    return wav / np.float32(max(float(np.max(np.abs(wav))), 1e-9))
