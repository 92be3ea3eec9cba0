"""Training pairs made on the fly from speech, noise and rooms.

Everything random comes from one generator, seeded by (seed, epoch, index): the same three numbers
give the same pair on any number of workers. Clean and noisy are aligned to the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import soxr
from numpy.random import Generator
from numpy.typing import NDArray

from ..config.data import DataConfig
from ..runtime.errors import InputError
from ..runtime.spec import SAMPLE_RATE
from . import noises
from .chain import draw_snr, run_chain
from .degrade import (
    Wav,
    change_gain,
    compand,
    db_to_gain,
    fit_length,
    highpass,
    noise_gain,
    rms,
    spectral_gain,
    through_rate,
)
from .pool import Pool
from .rooms import Room, as_room, freeverb_room, reverberate, statistical_room

_ACTIVE_DB = -35.0  # a 16 ms block this far below the loudest one is a pause
_SPEECH_TRIES = 4
_BLOCK = 256  # 16 ms
_RAMP = 160  # speech is switched off and on within 10 ms (samples)
_LONGEST_FADE_S = 0.5  # of a noise that begins, ends or changes
_STRETCH_S = 4.0  # speech of this length gets one pause, longer speech more
_TELEPHONE_LOW_HZ = (200.0, 350.0)


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
        drawn: Wav = (10.0 ** (curve / 20.0)).astype(np.float32)
        return drawn

    return spectral_gain(wav, gain)


def change_speed(wav: Wav, factor: float) -> Wav:
    """Play faster (factor > 1) or slower: pitch and length change together."""
    out: Wav = soxr.resample(wav, SAMPLE_RATE * factor, SAMPLE_RATE, "MQ")
    return out.astype(np.float32, copy=False)


def active_share(wav: Wav, reference: float) -> float:
    """Share of 16 ms blocks within 35 dB of ``reference`` (an RMS)."""
    blocks = wav[: len(wav) // 256 * 256].reshape(-1, 256)
    levels = np.einsum("ij,ij->i", blocks, blocks) / 256.0
    return (
        float(np.mean(levels > (reference * db_to_gain(_ACTIVE_DB)) ** 2)) if len(blocks) else 0.0
    )


def scale_pair(rng: Generator, config: DataConfig, noisy: Wav, clean: Wav) -> tuple[Wav, Wav]:
    """Scale a pair together so that max|noisy| is 1, or less by the config's level."""
    level_db = 0.0
    if rng.random() < config.level_p:
        level_db = rng.uniform(*config.level_db)
    return _to_peak(noisy, clean, level_db)


def _to_peak(noisy: Wav, clean: Wav, level_db: float) -> tuple[Wav, Wav]:
    scale = 1.0 / max(float(np.max(np.abs(noisy))), 1e-4)
    scale *= db_to_gain(level_db)
    return noisy * np.float32(scale), clean * np.float32(scale)


def quiet_place(wav: Wav, place: int, reach: int) -> int:
    """The start of the quietest 16 ms within ``reach`` samples of ``place``: between two words."""
    first = max(place - reach, 0) // _BLOCK
    last = min(place + reach, len(wav)) // _BLOCK
    blocks = wav[first * _BLOCK : last * _BLOCK].reshape(-1, _BLOCK)
    if not len(blocks):
        return place
    return (first + int(np.argmin(np.einsum("ij,ij->i", blocks, blocks)))) * _BLOCK


def add_pauses(rng: Generator, wav: Wav) -> Wav:
    """Speech that begins late, ends early or stops for a while; one pause for every four seconds.

    The places are drawn and moved to the quietest 16 ms within a quarter of a second. What would
    become silent as a whole stays as it was.
    """
    count = len(wav)
    reach = SAMPLE_RATE // 4
    gain = np.ones(count, np.float32)
    stretches = max(round(count / (_STRETCH_S * SAMPLE_RATE)), 1)
    edges = np.linspace(0, count, stretches + 1).astype(int)
    for low, high in pairwise(edges):
        first, last = sorted(int(i) for i in rng.integers(low, high + 1, size=2))
        kind = rng.random()
        first = low if kind < 0.4 else quiet_place(wav, first, reach)
        last = high if kind > 0.6 else quiet_place(wav, last, reach)
        if last - first > 2 * _RAMP:
            ends = [first, first + _RAMP, last - _RAMP, last]
            # What begins or ends with the crop is silent from its first or to its last sample.
            levels = [float(first > 0), 0.0, 0.0, float(last < count)]
            course = np.interp(np.arange(first, last), ends, levels)
            gain[first:last] = np.minimum(gain[first:last], course)
    paused = wav * gain
    return paused if rms(paused) > 0.03 * rms(wav) else wav


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
        if c.silent_p and rng.random() < c.silent_p:
            return self._silent_pair(rng)
        clean = self._speech(rng)
        if rng.random() < c.speech_eq_p:
            clean = random_eq(clean, rng, 5.0)
        if c.speech_change_p and rng.random() < c.speech_change_p:
            clean = self._change_level(rng, clean)
        if c.turns_p and rng.random() < c.turns_p:
            clean = self._take_turns(rng, clean)
        if c.overlap_p and rng.random() < c.overlap_p:
            clean = self._overlap(rng, clean)
        level = rms(clean)  # before the pauses: they leave the ratio of speech to noise as it is
        if c.pause_p and rng.random() < c.pause_p:
            clean = add_pauses(rng, clean)
        if rng.random() < c.universal_p:
            noisy, clean, _ = self.degrade(rng, clean)
        else:
            noisy, clean = self._additive(rng, clean, level)
        return scale_pair(rng, c, noisy, clean)

    def _additive(self, rng: Generator, clean: Wav, level: float) -> tuple[Wav, Wav]:
        """Speech plus noise, perhaps far away, with sudden events, through a telephone.

        Args:
            rng: Source of randomness.
            clean: Speech [L].
            level: Its RMS where somebody speaks.
        """
        c, count = self.config, len(clean)
        wet = clean
        if c.far_p and rng.random() < c.far_p:
            room = statistical_room(rng, rng.uniform(*c.t60_s), rng.uniform(*c.far_drr_db))
            dry = max(rms(clean), 1e-9)
            wet, clean = reverberate(clean, room, c.far_early_ms)
            level *= rms(wet) / dry
        noise = self.draw_noise(rng, count)
        loud = rms(noise)
        noisy = wet
        if loud > 1e-7:
            noisy = wet + noise * np.float32(level / loud * db_to_gain(-draw_snr(rng, c)))
        if c.event_p and rng.random() < c.event_p:
            peak = float(np.max(np.abs(wet))) * db_to_gain(rng.uniform(*c.event_db))
            noisy = noisy + self._events(rng, count) * np.float32(peak)
        if c.telephone_p and rng.random() < c.telephone_p:
            noisy, clean = self._telephone(rng, noisy, clean)
        return noisy, clean

    def _silent_pair(self, rng: Generator) -> tuple[Wav, Wav]:
        """Noise alone; nobody speaks, so the target is silence."""
        c = self.config
        noise = self.draw_noise(rng, c.crop_samples)
        if c.event_p and rng.random() < c.event_p:
            peak = rms(noise) * db_to_gain(rng.uniform(0.0, 40.0))
            noise = noise + self._events(rng, len(noise)) * np.float32(peak)
        silence = np.zeros_like(noise)
        if c.telephone_p and rng.random() < c.telephone_p:
            noise, _ = self._telephone(rng, noise, silence)
        level_db = rng.uniform(*c.silent_db)
        full = c.silent_full_p and rng.random() < c.silent_full_p
        return _to_peak(noise, silence, 0.0 if full else level_db)

    def _take_turns(self, rng: Generator, clean: Wav) -> Wav:
        """Another talker goes on from somewhere, or was there until then, at another level."""
        c, count = self.config, len(clean)
        other = self._speech(rng)
        place = quiet_place(clean, int(rng.integers(count // 4, 3 * count // 4)), SAMPLE_RATE // 4)
        change = rms(clean) / max(rms(other), 1e-5) * db_to_gain(rng.uniform(*c.turns_db))
        other = other * np.float32(change)
        before, after = (clean, other) if rng.random() < 0.5 else (other, clean)
        return np.concatenate([before[:place], after[place:]])

    def _overlap(self, rng: Generator, clean: Wav) -> Wav:
        """Another talker speaks at the same time: both are speech, not babble."""
        other = self._speech(rng)
        change = (
            rms(clean) / max(rms(other), 1e-5) * db_to_gain(rng.uniform(*self.config.overlap_db))
        )
        return clean + other * np.float32(change)

    def _telephone(self, rng: Generator, noisy: Wav, clean: Wav) -> tuple[Wav, Wav]:
        """Both through a narrow band; the target keeps to it: nothing is made up above it."""
        rate_hz = int(rng.choice(self.config.telephone_hz))
        noisy, clean = through_rate(noisy, rate_hz), through_rate(clean, rate_hz)
        if rng.random() < 0.5:
            low_hz = rng.uniform(*_TELEPHONE_LOW_HZ)
            noisy, clean = highpass(noisy, low_hz, 4), highpass(clean, low_hz, 4)
        if rng.random() < 0.5:
            noisy = compand(noisy, db_to_gain(rng.uniform(-20.0, 0.0)))
        return noisy, clean

    def _events(self, rng: Generator, count: int) -> Wav:
        recorded = [] if self.noise is None else [self._recorded(rng, count) for _ in range(2)]
        return noises.events(rng, count, recorded)

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
        noise = self._one_noise(rng, count)
        if rng.random() < c.noise_eq_p:
            noise = random_eq(noise, rng, 12.0)
        if rng.random() < c.hum_p:
            extra = noises.hum(rng, count)
            noise = noise + extra * np.float32(noise_gain(noise, extra, rng.uniform(-10, 10)))
        if c.noise_change_p and rng.random() < c.noise_change_p:
            noise = self._change_noise(rng, noise)
        return noise

    def _one_noise(self, rng: Generator, count: int) -> Wav:
        c = self.config
        kind = rng.random()
        if kind < c.recorded_p and self.noise is not None:
            noise = self._recorded(rng, count)
            if rng.random() < c.second_noise_p:
                other = self._recorded(rng, count)
                noise = noise + other * np.float32(noise_gain(noise, other, rng.uniform(-10, 10)))
            return noise
        kind -= c.recorded_p
        if 0.0 <= kind < c.babble_p:
            return self._babble(rng, count)
        kind -= c.babble_p
        for share, make in (
            (c.wind_p, noises.wind),
            (c.keyboard_p, noises.keyboard),
            (c.music_p, noises.music),
            (c.impulsive_p, noises.impulsive),
        ):
            if 0.0 <= kind < share:
                return make(rng, count)
            kind -= share
        noise = noises.coloured_noise(rng, count, rng.uniform(-0.5, 2.0))
        if rng.random() < 0.6:
            noise = noise * noises.slow_modulation(rng, count, rng.uniform(0.0, 15.0))
        return noise

    def _change_noise(self, rng: Generator, noise: Wav) -> Wav:
        """Noise that begins, ends, or turns into another one, at once or within half a second."""
        count = len(noise)
        place, fade = rng.integers(count), rng.uniform(0.005, _LONGEST_FADE_S) * SAMPLE_RATE
        ends = [place - fade / 2, place + fade / 2]
        rise: Wav = np.interp(np.arange(count), ends, [0.0, 1.0]).astype(np.float32)
        kind = rng.random()
        if kind < 0.3:
            return noise * rise
        if kind < 0.5:
            return noise * (np.float32(1.0) - rise)
        other = self._one_noise(rng, count)
        other = other * np.float32(noise_gain(noise, other, rng.uniform(-15.0, 15.0)))
        turned: Wav = noise * (np.float32(1.0) - rise) + other * rise
        return turned

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
        for _ in range(int(rng.integers(5, 10))):
            source = int(rng.integers(len(self._speech_members)))
            voice = self._utterances(rng, pool, self._speech_members[source], count)
            level = rms(voice)
            if level > 1e-5:
                total += voice * np.float32(db_to_gain(rng.uniform(-9.0, 0.0)) / level)
        if self.config.babble_room_p and rng.random() < self.config.babble_room_p:
            t60_s, drr_db = rng.uniform(*self.config.t60_s), rng.uniform(-12.0, 0.0)
            total, _ = reverberate(total, statistical_room(rng, t60_s, drr_db))
        return total


def _source_probabilities(pool: Pool, weights: dict[str, float]) -> NDArray[np.float64]:
    """Weight times hours of each source, normalised."""
    lengths = np.diff(pool.offsets)
    hours = np.bincount(pool.source, weights=lengths, minlength=len(pool.sources))
    values = hours * np.array([weights.get(name, 1.0) for name in pool.sources])
    if not values.sum() > 0.0:
        raise InputError(f"every source of {', '.join(pool.sources)} has weight 0")
    shares: NDArray[np.float64] = values / values.sum()
    return shares
