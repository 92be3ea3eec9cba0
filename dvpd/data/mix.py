"""Training pairs made on the fly: small pure functions on float32 waveforms at 16 kHz.

Everything random comes from one generator, seeded by (seed, epoch, index): the same three numbers
give the same pair on any number of workers. Filters act on the spectrum with a real gain (zero
phase) and rooms are moved so that the direct path stays where the dry speech is: clean and noisy
are aligned to the sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.fft
import soxr
from numpy.random import Generator
from numpy.typing import NDArray

from ..runtime.errors import InputError
from ..train_config import DataConfig
from .pool import SAMPLE_RATE, Pool

Wav = NDArray[np.float32]

_FILTER_TAIL = 1024  # zeros against the wrap-around of a filter's ringing (samples)
_ACTIVE_DB = -35.0  # a 16 ms block this far below the loudest one is a pause
_SPEECH_TRIES = 4
_RIR_MAX = 16000  # one second of a room is enough for a crop of two
_DIRECT = 40  # samples around the strongest one that count as the direct path (2.5 ms)


def make_rng(seed: int, epoch: int, index: int) -> Generator:
    """The generator of one pair."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, index))))


def rms(wav: Wav) -> float:
    """Root mean square."""
    return float(np.sqrt(np.dot(wav, wav) / max(len(wav), 1)))


def db_to_gain(level_db: float) -> float:
    """Decibels to an amplitude factor."""
    return float(10.0 ** (level_db / 20.0))


def noise_gain(speech: Wav, noise: Wav, snr_db: float) -> float:
    """Factor for ``noise`` that sets the ratio of mean powers to ``snr_db`` (dB); 0 if it is silent."""
    level = rms(noise)
    return rms(speech) / level * db_to_gain(-snr_db) if level > 1e-7 else 0.0


def spectral_gain(wav: Wav, gain: Callable[[Wav], Wav]) -> Wav:
    """Filter with a real gain over frequency, so without delay.

    Args:
        wav: [L].
        gain: Frequencies (Hz) -> amplitude factors.
    """
    size = scipy.fft.next_fast_len(len(wav) + _FILTER_TAIL, real=True)
    spec = scipy.fft.rfft(wav, size)
    freqs = np.arange(len(spec), dtype=np.float32) * np.float32(SAMPLE_RATE / size)
    spec *= gain(freqs)
    return scipy.fft.irfft(spec, size)[: len(wav)].astype(np.float32, copy=False)


def lowpass_gain(freqs: Wav, cutoff_hz: float, order: int) -> Wav:
    """Amplitude of a Butterworth low-pass: -3 dB at the cut-off."""
    ratio = np.minimum(freqs / np.float32(cutoff_hz), np.float32(20.0))
    return np.float32(1.0) / np.sqrt(np.float32(1.0) + ratio ** np.float32(2 * order))


def lowpass(wav: Wav, cutoff_hz: float, order: int = 12) -> Wav:
    """Zero-phase Butterworth low-pass."""
    return spectral_gain(wav, lambda f: lowpass_gain(f, cutoff_hz, order))


def bandpass(wav: Wav, low_hz: float, high_hz: float, order: int = 4) -> Wav:
    """Zero-phase Butterworth band-pass."""

    def gain(freqs: Wav) -> Wav:
        high = lowpass_gain(freqs, high_hz, order)
        # a Butterworth high-pass is the low-pass's power complement
        return high * np.sqrt(np.maximum(1.0 - lowpass_gain(freqs, low_hz, order) ** 2, 0.0))

    return spectral_gain(wav, gain)


def random_eq(wav: Wav, rng: Generator, depth_db: float) -> Wav:
    """Random smooth colouring: 5 points from 0 to 8 kHz, uniform in +- ``depth_db`` (dB)."""
    points_hz = np.array([0.0, 250.0, 1000.0, 3000.0, 8000.0])
    levels = rng.uniform(-depth_db, depth_db, len(points_hz))
    knots = np.log2(points_hz + 100.0)

    def gain(freqs: Wav) -> Wav:
        curve = np.interp(np.log2(freqs + np.float32(100.0)), knots, levels)
        return (10.0 ** (curve / 20.0)).astype(np.float32)

    return spectral_gain(wav, gain)


def change_speed(wav: Wav, factor: float) -> Wav:
    """Play faster (factor > 1) or slower: pitch and length change together."""
    return soxr.resample(wav, SAMPLE_RATE * factor, SAMPLE_RATE, "MQ").astype(
        np.float32, copy=False
    )


def through_rate(wav: Wav, rate_hz: int) -> Wav:
    """To a lower sample rate and back; length and alignment stay (the resampler has no delay)."""
    down = soxr.resample(wav, SAMPLE_RATE, rate_hz, "HQ")
    up = soxr.resample(down, rate_hz, SAMPLE_RATE, "HQ")
    return fit_length(up.astype(np.float32, copy=False), len(wav))


def fit_length(wav: Wav, count: int) -> Wav:
    """Cut or zero-pad at the end to ``count`` samples."""
    return wav[:count] if len(wav) >= count else np.pad(wav, (0, count - len(wav)))


def clip_at_quantile(wav: Wav, quantile: float) -> Wav:
    """Hard clipping at a quantile of |wav|."""
    limit = np.float32(np.quantile(np.abs(wav[::4]), quantile))
    return np.clip(wav, -limit, limit) if limit > 0 else wav


def coloured_noise(rng: Generator, count: int, exponent: float) -> Wav:
    """Gaussian noise with power ~ 1 / f^exponent (flat below 30 Hz), unit RMS."""
    size = scipy.fft.next_fast_len(count, real=True)
    half = size // 2 + 1
    parts = rng.standard_normal(2 * half, dtype=np.float32)
    spec = parts.view(np.complex64)
    freqs = np.maximum(np.arange(half, dtype=np.float32) * np.float32(SAMPLE_RATE / size), 30.0)
    spec = spec * freqs ** np.float32(-exponent / 2)
    spec[0] = 0
    wav = scipy.fft.irfft(spec, size)[:count]
    return (wav / max(rms(wav), 1e-9)).astype(np.float32)


def slow_modulation(rng: Generator, count: int, depth_db: float) -> Wav:
    """A slowly wandering gain: random levels in +- ``depth_db``, a few a second, joined smoothly."""
    n_knots = int(rng.integers(3, 16))
    levels = rng.uniform(-depth_db, depth_db, n_knots)
    curve = np.interp(np.linspace(0, n_knots - 1, 512), np.arange(n_knots), levels)
    gains = 10.0 ** (curve / 20.0)
    return np.interp(np.linspace(0, 511, count), np.arange(512), gains).astype(np.float32)


def hum(rng: Generator, count: int) -> Wav:
    """Mains hum: harmonics of 50 or 60 Hz (detuned by up to 1 %), unit RMS."""
    base = float(rng.choice((50.0, 60.0, 100.0, 120.0))) * rng.uniform(0.99, 1.01)
    time = np.arange(count, dtype=np.float32) / np.float32(SAMPLE_RATE)
    wav = np.zeros(count, np.float32)
    for n in range(1, int(rng.integers(3, 12))):
        level = rng.uniform(0.1, 1.0) / n ** rng.uniform(0.3, 1.5)
        wav += np.float32(level) * np.sin(
            np.float32(2 * np.pi * base * n) * time + rng.uniform(0, 6)
        )
    return wav / np.float32(max(rms(wav), 1e-9))


@dataclass(frozen=True)
class Room:
    """A room impulse response with its direct path found.

    Attributes:
        response: float32 [L], scaled so that the direct path has unit energy.
        peak: Index of the direct path.
    """

    response: Wav
    peak: int


def as_room(response: Wav) -> Room:
    """Find the direct path (the strongest sample), cut to a second, scale, make it positive.

    Args:
        response: [L] at 16 kHz.

    Raises:
        InputError: The response is silent.
    """
    peak = int(np.argmax(np.abs(response)))
    if not abs(response[peak]) > 0.0:
        raise InputError("a room response is silent")
    start = max(peak - _DIRECT, 0)
    cut = response[start : start + _RIR_MAX]
    peak -= start
    direct = cut[max(peak - _DIRECT, 0) : peak + _DIRECT]
    scale = np.sign(cut[peak]) / np.sqrt(np.sum(direct**2))
    return Room((cut * scale).astype(np.float32), peak)


def simulate_room(rng: Generator, t60_s: float) -> Room:
    """A simple synthetic room: direct path, a dozen early reflections, a decaying diffuse tail.

    The tail starts at the mixing time and decays by 60 dB in ``t60_s``, faster at high
    frequencies; its level follows from the direct-to-reverberant ratio drawn in -6 to 12 dB.

    Args:
        rng: Source of randomness.
        t60_s: Reverberation time (s).
    """
    count = int(np.clip(0.8 * t60_s * SAMPLE_RATE, 1600, _RIR_MAX))
    decay = np.float32(-6.9078 / (t60_s * SAMPLE_RATE))
    envelope = np.exp(decay * np.arange(count, dtype=np.float32))
    tail = rng.standard_normal(count, dtype=np.float32) * envelope
    # Air and walls take the highs first: a second, duller part decays slower.
    dull = tail.copy()
    dull[1:] += tail[:-1]
    tail = np.float32(0.35) * tail * np.sqrt(envelope) + np.float32(0.65) * dull
    mixing = int(rng.uniform(0.008, 0.03) * SAMPLE_RATE)
    tail[:mixing] *= np.linspace(0.0, 1.0, mixing, dtype=np.float32) ** 2
    n_early = int(rng.integers(6, 16))
    places = rng.integers(16, max(mixing * 2, 64), n_early)
    places = np.minimum(places, count - 1)
    heights = rng.uniform(0.1, 0.7, n_early) * rng.choice((-1.0, 1.0), n_early)
    early = np.zeros(count, np.float32)
    np.add.at(early, places, (heights / np.sqrt(places / 32.0 + 1.0)).astype(np.float32))
    reverberant = tail + early * np.float32(np.sqrt(np.sum(tail**2) / (np.sum(early**2) + 1e-9)))
    drr_db = rng.uniform(-6.0, 12.0)
    reverberant *= np.float32(db_to_gain(-drr_db) / np.sqrt(np.sum(reverberant**2)))
    reverberant[0] = 1.0
    return Room(reverberant, 0)


def reverberate(speech: Wav, room: Room, early_ms: float = 0.0) -> tuple[Wav, Wav]:
    """Speech in a room, and its target.

    Args:
        speech: Dry speech [L].
        room: The room.
        early_ms: Reflections up to here stay in the target (ms); 0 leaves it dry.

    Returns:
        Reverberant speech and target, both [L], the direct path at the dry speech's place.
    """
    count = len(speech)
    size = scipy.fft.next_fast_len(count + len(room.response), real=True)
    spec = scipy.fft.rfft(speech, size)
    shift = slice(room.peak, room.peak + count)
    wet = scipy.fft.irfft(spec * scipy.fft.rfft(room.response, size), size)[shift]
    if early_ms <= 0.0:
        return wet, speech
    early = room.response.copy()
    early[room.peak + int(early_ms * SAMPLE_RATE / 1000.0) :] = 0.0
    return wet, scipy.fft.irfft(spec * scipy.fft.rfft(early, size), size)[shift]


def active_share(wav: Wav, reference: float) -> float:
    """Share of 16 ms blocks within 35 dB of ``reference`` (an RMS)."""
    blocks = wav[: len(wav) // 256 * 256].reshape(-1, 256)
    levels = np.einsum("ij,ij->i", blocks, blocks) / 256.0
    return (
        float(np.mean(levels > (reference * db_to_gain(_ACTIVE_DB)) ** 2)) if len(blocks) else 0.0
    )


class Mixer:
    """Makes training pairs from pools of speech, noise and rooms."""

    def __init__(
        self, config: DataConfig, speech: Pool, noise: Pool | None = None, rirs: Pool | None = None
    ) -> None:
        """Prepare the draw of sources.

        Args:
            config: What a pair is made of.
            speech: Clean speech.
            noise: Recorded noise; None replaces it by coloured noise.
            rirs: Measured rooms; None simulates all of them.

        Raises:
            InputError: Every source has weight 0, or a room is silent.
        """
        self.config = config
        self.speech = speech
        self.noise = noise
        self._speech_p = _source_probabilities(speech, config.speech_weights)
        self._noise_p = (
            None if noise is None else _source_probabilities(noise, config.noise_weights)
        )
        self._rooms = [] if rirs is None else [as_room(rirs.read(i)) for i in range(len(rirs))]
        self._speech_members = [
            np.flatnonzero(speech.source == s) for s in range(len(speech.sources))
        ]
        self._noise_members = (
            []
            if noise is None
            else [np.flatnonzero(noise.source == s) for s in range(len(noise.sources))]
        )

    def pair(self, seed: int, epoch: int, index: int) -> tuple[Wav, Wav]:
        """One training pair, a function of its three numbers.

        Args:
            seed: Seed of the run.
            epoch: Epoch.
            index: Index of the crop within the epoch.

        Returns:
            noisy and clean, float32 [crop_samples], scaled together so that max|noisy| is 1 (or
            less, by the config's level).
        """
        rng = make_rng(seed, epoch, index)
        c = self.config
        clean = self._speech(rng)
        if rng.random() < c.speech_eq_p:
            clean = random_eq(clean, rng, 5.0)
        universal = rng.random() < c.universal_p
        degraded = clean
        if universal and rng.random() < c.reverb_p:
            degraded, clean = reverberate(clean, self._room(rng), c.early_ms)
        noise = self._noise(rng)
        snr_db = rng.uniform(30.0, 50.0) if rng.random() < c.clean_p else rng.uniform(*c.snr_db)
        noisy = degraded + noise * np.float32(noise_gain(degraded, noise, snr_db))
        if universal:
            noisy = self._channel(rng, noisy)
        scale = 1.0 / max(float(np.max(np.abs(noisy))), 1e-4)
        if rng.random() < c.level_p:
            scale *= db_to_gain(rng.uniform(*c.level_db))
        return noisy * np.float32(scale), clean * np.float32(scale)

    def _channel(self, rng: Generator, noisy: Wav) -> Wav:
        c = self.config
        if rng.random() < c.bandpass_p:
            noisy = bandpass(noisy, rng.uniform(100.0, 400.0), rng.uniform(2800.0, 4500.0))
        if rng.random() < c.lowpass_p:
            low, high = c.lowpass_hz
            cutoff = float(np.exp(rng.uniform(np.log(low), np.log(high))))
            noisy = lowpass(noisy, cutoff, int(rng.choice((4, 8, 12))))
        if rng.random() < c.clip_p:
            noisy = clip_at_quantile(noisy, rng.uniform(*c.clip_quantile))
        if rng.random() < c.resample_p:
            noisy = through_rate(noisy, int(rng.choice(c.resample_hz)))
        return noisy

    def _speech(self, rng: Generator) -> Wav:
        c, pool = self.config, self.speech
        count = c.crop_samples
        wav = np.zeros(count, np.float32)
        speed = rng.uniform(*c.speech_speed) if rng.random() < c.speech_speed_p else 1.0
        need = count if speed == 1.0 else int(count * speed) + 64
        for _ in range(_SPEECH_TRIES):
            source = int(rng.choice(len(self._speech_p), p=self._speech_p))
            wav = self._utterances(rng, pool, self._speech_members[source], need)
            blocks = wav[: len(wav) // 256 * 256].reshape(-1, 256)
            loudest = float(np.sqrt(np.max(np.einsum("ij,ij->i", blocks, blocks)) / 256.0))
            if loudest > 1e-3 and active_share(wav, loudest) > 0.3:
                break
        if speed != 1.0:
            wav = change_speed(wav, speed)
        return fit_length(wav, count)

    @staticmethod
    def _utterances(rng: Generator, pool: Pool, members: NDArray[np.int64], need: int) -> Wav:
        """A crop of one long recording, or short ones with pauses between (neighbours in the
        pool, which mostly are of one speaker)."""
        at = int(rng.integers(len(members)))
        spare = pool.length(int(members[at])) - need
        if spare >= 0:
            return pool.read(int(members[at]), int(rng.integers(spare + 1)), need)
        wav = np.zeros(need, np.float32)
        # Start up to half a recording early, so that beginnings are not always at the beginning.
        place = -int(rng.integers(pool.length(int(members[at])) // 2 + 1))
        place += int(rng.integers(4000)) if rng.random() < 0.5 else 0
        while place < need:
            piece = pool.read(int(members[at]))
            first = max(place, 0)
            piece = piece[first - place :][: need - first]
            wav[first : first + len(piece)] = piece
            place += pool.length(int(members[at])) + int(rng.integers(800, 6400))
            at = (at + 1) % len(members)
        return wav

    def _room(self, rng: Generator) -> Room:
        if self._rooms and rng.random() < self.config.measured_rir_p:
            return self._rooms[int(rng.integers(len(self._rooms)))]
        return simulate_room(rng, rng.uniform(*self.config.t60_s))

    def _noise(self, rng: Generator) -> Wav:
        c = self.config
        kind = rng.random()
        if kind < c.recorded_p and self.noise is not None:
            noise = self._recorded(rng)
            if rng.random() < c.second_noise_p:
                other = self._recorded(rng)
                noise = noise + other * np.float32(noise_gain(noise, other, rng.uniform(-10, 10)))
        elif c.recorded_p <= kind < c.recorded_p + c.babble_p:
            noise = self._babble(rng)
        else:
            noise = coloured_noise(rng, c.crop_samples, rng.uniform(-0.5, 2.0))
            if rng.random() < 0.6:
                noise = noise * slow_modulation(rng, c.crop_samples, rng.uniform(0.0, 15.0))
        if rng.random() < c.noise_eq_p:
            noise = random_eq(noise, rng, 12.0)
        if rng.random() < c.hum_p:
            extra = hum(rng, c.crop_samples)
            noise = noise + extra * np.float32(noise_gain(noise, extra, rng.uniform(-10, 10)))
        return noise

    def _recorded(self, rng: Generator) -> Wav:
        pool, c = self.noise, self.config
        if pool is None or self._noise_p is None:
            raise InputError("the mixer has no recorded noise")
        speed = rng.uniform(*c.noise_speed) if rng.random() < c.noise_speed_p else 1.0
        need = c.crop_samples if speed == 1.0 else int(c.crop_samples * speed) + 64
        wav = np.zeros(need, np.float32)
        for _ in range(_SPEECH_TRIES):
            source = int(rng.choice(len(self._noise_p), p=self._noise_p))
            members = self._noise_members[source]
            index = int(members[int(rng.integers(len(members)))])
            spare = pool.length(index) - need
            if spare >= 0:
                wav = pool.read(index, int(rng.integers(spare + 1)), need)
            else:
                wav = np.roll(np.resize(pool.read(index), need), int(rng.integers(need)))
            if rms(wav) > 1e-4:
                break
        return fit_length(change_speed(wav, speed) if speed != 1.0 else wav, c.crop_samples)

    def _babble(self, rng: Generator) -> Wav:
        pool, count = self.speech, self.config.crop_samples
        total = np.zeros(count, np.float32)
        for _ in range(int(rng.integers(3, 9))):
            source = int(rng.integers(len(self._speech_members)))
            voice = self._utterances(rng, pool, self._speech_members[source], count)
            level = rms(voice)
            if level > 1e-5:
                total += voice * np.float32(db_to_gain(rng.uniform(-9.0, 0.0)) / level)
        return total


def _source_probabilities(pool: Pool, weights: dict[str, float]) -> NDArray[np.float64]:
    """Weight times hours of each source, normalised."""
    lengths = np.diff(pool.offsets)
    hours = np.bincount(pool.source, weights=lengths, minlength=len(pool.sources))
    values = hours * np.array([weights.get(name, 1.0) for name in pool.sources])
    if not values.sum() > 0.0:
        raise InputError(f"every source of {', '.join(pool.sources)} has weight 0")
    return values / values.sum()
