"""Training pairs made on the fly from speech, noise and rooms.

Everything random comes from one generator, seeded by (seed, epoch, index): the same three numbers
give the same pair on any number of workers. Clean and noisy are aligned to the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.fft
import soxr
from numpy.random import Generator
from numpy.typing import NDArray

from ..data_config import DataConfig
from ..runtime.errors import InputError
from .chain import draw_snr, run_chain
from .degrade import (
    Wav,
    add_noise,
    change_gain,
    db_to_gain,
    fit_length,
    noise_gain,
    rms,
    spectral_gain,
)
from .pool import SAMPLE_RATE, Pool
from .rooms import Room, as_room, freeverb_room, statistical_room

_ACTIVE_DB = -35.0  # a 16 ms block this far below the loudest one is a pause
_SPEECH_TRIES = 4


def make_rng(seed: int, epoch: int, index: int) -> Generator:
    """The generator of one pair."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, index))))


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


def active_share(wav: Wav, reference: float) -> float:
    """Share of 16 ms blocks within 35 dB of ``reference`` (an RMS)."""
    blocks = wav[: len(wav) // 256 * 256].reshape(-1, 256)
    levels = np.einsum("ij,ij->i", blocks, blocks) / 256.0
    return (
        float(np.mean(levels > (reference * db_to_gain(_ACTIVE_DB)) ** 2)) if len(blocks) else 0.0
    )


def scale_pair(rng: Generator, config: DataConfig, noisy: Wav, clean: Wav) -> tuple[Wav, Wav]:
    """Scale a pair together so that max|noisy| is 1, or less by the config's level."""
    scale = 1.0 / max(float(np.max(np.abs(noisy))), 1e-4)
    if rng.random() < config.level_p:
        scale *= db_to_gain(rng.uniform(*config.level_db))
    return noisy * np.float32(scale), clean * np.float32(scale)


class Mixer:
    """Makes training pairs from pools of speech, noise and rooms."""

    def __init__(
        self,
        config: DataConfig,
        speech: Pool,
        noise: Pool | None = None,
        rirs: Pool | None = None,
        bank: Sequence[Room] = (),
    ) -> None:
        """Prepare the draw of sources.

        Args:
            config: What a pair is made of.
            speech: Clean speech.
            noise: Recorded noise; None replaces it by coloured noise.
            rirs: Measured rooms; None simulates all of them.
            bank: Image-source rooms; without them there are statistical ones.

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
        self._measured = [] if rirs is None else [as_room(rirs.read(i)) for i in range(len(rirs))]
        self._bank = list(bank)
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
        if c.speech_change_p and rng.random() < c.speech_change_p:
            clean = self._change_level(rng, clean)
        if rng.random() < c.universal_p:
            noisy, clean, _ = self.degrade(rng, clean)
        else:
            noisy = add_noise(clean, self.draw_noise(rng, len(clean)), draw_snr(rng, c))
        return scale_pair(rng, c, noisy, clean)

    def degrade(self, rng: Generator, clean: Wav) -> tuple[Wav, Wav, dict[str, Any]]:
        """Clean speech [L] through the universal chain: noisy, target, and what was drawn."""
        return run_chain(
            rng, self.config, clean, lambda: self.draw_noise(rng, len(clean)), self.draw_room
        )

    def _change_level(self, rng: Generator, clean: Wav) -> Wav:
        """Another level from somewhere on, or up to there, or for a while in between."""
        count = len(clean)
        first, last = sorted(int(i) for i in rng.integers(count + 1, size=2))
        kind = rng.random()
        first, last = (0 if kind < 0.4 else first), (count if kind > 0.6 else last)
        return change_gain(clean, first, last, rng.uniform(*self.config.speech_change_db))

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

    def draw_room(self, rng: Generator) -> tuple[Room, str]:
        """A room, and its kind."""
        c = self.config
        kind = rng.random()
        if self._measured and kind < c.measured_rir_p:
            return self._measured[int(rng.integers(len(self._measured)))], "measured"
        kind -= c.measured_rir_p
        if self._bank and 0.0 <= kind < c.image_rir_p:
            return self._bank[int(rng.integers(len(self._bank)))], "image"
        kind -= c.image_rir_p
        t60_s, drr_db = rng.uniform(*c.t60_s), rng.uniform(*c.drr_db)
        if 0.0 <= kind < c.freeverb_p:
            return freeverb_room(t60_s, drr_db, rng.uniform(0.0, 0.5)), "freeverb"
        return statistical_room(rng, t60_s, drr_db), "statistical"

    def draw_noise(self, rng: Generator, count: int) -> Wav:
        """Noise [count] of the config's kinds, at any level."""
        c = self.config
        kind = rng.random()
        if kind < c.recorded_p and self.noise is not None:
            noise = self._recorded(rng, count)
            if rng.random() < c.second_noise_p:
                other = self._recorded(rng, count)
                noise = noise + other * np.float32(noise_gain(noise, other, rng.uniform(-10, 10)))
        elif c.recorded_p <= kind < c.recorded_p + c.babble_p:
            noise = self._babble(rng, count)
        else:
            noise = coloured_noise(rng, count, rng.uniform(-0.5, 2.0))
            if rng.random() < 0.6:
                noise = noise * slow_modulation(rng, count, rng.uniform(0.0, 15.0))
        if rng.random() < c.noise_eq_p:
            noise = random_eq(noise, rng, 12.0)
        if rng.random() < c.hum_p:
            extra = hum(rng, count)
            noise = noise + extra * np.float32(noise_gain(noise, extra, rng.uniform(-10, 10)))
        return noise

    def _recorded(self, rng: Generator, count: int) -> Wav:
        pool, c = self.noise, self.config
        if pool is None or self._noise_p is None:
            raise InputError("the mixer has no recorded noise")
        speed = rng.uniform(*c.noise_speed) if rng.random() < c.noise_speed_p else 1.0
        need = count if speed == 1.0 else int(count * speed) + 64
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
        return fit_length(change_speed(wav, speed) if speed != 1.0 else wav, count)

    def _babble(self, rng: Generator, count: int) -> Wav:
        pool = self.speech
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
