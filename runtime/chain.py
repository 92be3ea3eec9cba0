"""The walk of one recording: its rate, the model's, windows, and back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from .arrays import FloatArray
from .audio import Resampler, check_finite
from .backends.base import StreamBackend
from .block_sampler import BlockSampler
from .closing import Closing
from .errors import InputError
from .manifest import Manifest
from .noise import check_seed
from .options import Tlb, sampler_choice
from .polyphase import MAX_RATE_HZ, MIN_RATE_HZ, Polyphase
from .schedule import SamplerStep
from .spec import CausalSpec, SignalSpec, TlbFactors
from .stream import CausalStream
from .windows import LoudestStretch, Piece, Reminder, WindowedStream
from .workers import Work

if TYPE_CHECKING:
    from .enhancer import Enhancer

MAX_AMPLITUDE = 1e30  # with MAX_BIN it stays below float32's largest number
OFFSET_SHARE = 0.02  # of the peak: a mean above it is an offset ...
OFFSET_FROM_S = 1.0  # ... in a recording that is not too short to tell


@dataclass(frozen=True)
class Settings:
    """What one call asks of the sampler, checked."""

    seed: int
    steps: tuple[SamplerStep, ...]
    alpha: float
    tlb: TlbFactors
    phase_rounds: int
    noise: FloatArray | None
    noisy_share: float  # of the recording itself in the output


def make_settings(
    manifest: Manifest,
    seed: int,
    steps: int | None,
    alpha: float | None,
    tlb: Tlb,
    noise: FloatArray | None = None,
    noisy_share: float = 0.0,
    phase_rounds: int | None = None,
) -> Settings:
    """Check what a user asks of the sampler, and fill in what is left open.

    Args:
        manifest: Of the model, whose defaults hold.
        seed: See ``Enhancer.enhance``.
        steps: See there.
        alpha: See there.
        tlb: See there.
        noise: See there.
        noisy_share: Share of the recording itself in the output, 0 to 1.
        phase_rounds: See there.

    Raises:
        InputError: A value is out of range.
    """
    count, weight, factors, rounds = sampler_choice(manifest, steps, alpha, tlb, phase_rounds)
    return Settings(
        seed=check_seed(seed),
        steps=manifest.sampler.steps(manifest.sde, count),
        alpha=weight,
        tlb=factors,
        phase_rounds=rounds,
        noise=noise,
        noisy_share=noisy_share,
    )


@dataclass(frozen=True)
class Levels:
    """What the first pass finds of each channel.

    Attributes:
        offsets: Constant to be taken away, [n_channels]; 0 where there is none to speak of.
        peaks: Largest magnitude at the model's rate without it, [n_channels].
        reminders: What stands beside the windows, [n_channels]; None where one window holds all.
        n_samples: Length at the model's rate.
    """

    offsets: FloatArray
    peaks: FloatArray
    reminders: tuple[Reminder | None, ...]
    n_samples: int


def channel_stream(
    enhancer: Enhancer, settings: Settings, peak: float, reminder: Reminder | None, work: Work
) -> WindowedStream | CausalStream:
    """One channel's way through the model: in windows, or for a causal one as it comes.

    Args:
        enhancer: Gives model, backend and windows.
        settings: Of the sampler.
        peak: Largest magnitude of the channel at the model's rate; causal models do not use it.
        reminder: What stands beside the windows, or None; likewise.
        work: Computes the windows; likewise.
    """
    manifest = enhancer.manifest
    if manifest.causal is None:
        process = enhancer._channel_process(settings, peak, reminder, work)
        return WindowedStream(work.begin(process), enhancer.window_plan, manifest.signal.hop_length)

    def draw(index: int, first: int, n_frames: int) -> FloatArray:
        return enhancer._noise(settings, index, first, n_frames)

    sampler = block_sampler(enhancer, settings)
    return CausalStream(sampler, draw, manifest.signal)


def block_sampler(
    enhancer: Enhancer,
    settings: Settings,
    fewer: Mapping[int, Sequence[SamplerStep]] | None = None,
) -> BlockSampler:
    """A causal model's networks and sampler.

    Args:
        enhancer: Gives model and backend.
        settings: Of the sampler.
        fewer: See ``BlockSampler``.
    """
    manifest = enhancer.manifest
    return BlockSampler(
        cast(StreamBackend, enhancer.backend),
        start=manifest.sampler.start(manifest.sde),
        steps=settings.steps,
        alpha=settings.alpha,
        tlb=settings.tlb,
        lookahead_frames=cast(CausalSpec, manifest.causal).lookahead_frames,
        lock=enhancer._lock,
        fewer=fewer,
    )


def check_noise(noise: object, settings: Settings, signal: SignalSpec, n_samples: int) -> None:
    """Refuse given noise that does not fit.

    Args:
        noise: What was given.
        settings: Whose steps it is for.
        signal: The front end.
        n_samples: Of the recording at the model's rate.

    Raises:
        InputError: It is not float32 [steps, n_frames or more, 257], or not finite.
    """
    n_frames = signal.n_frames(n_samples)
    wanted = f"float32 [{len(settings.steps)}, {n_frames} or more, 257]"
    if not isinstance(noise, np.ndarray) or noise.dtype != np.float32:
        got = noise.dtype if isinstance(noise, np.ndarray) else type(noise).__name__
        raise InputError(f"noise is {got}; expected {wanted}")
    n_freqs = signal.n_freqs
    if (
        noise.ndim != 3
        or noise.shape[0] < len(settings.steps)
        or noise.shape[1] < n_frames
        or noise.shape[2] != n_freqs
    ):
        raise InputError(f"noise has shape {list(noise.shape)}; expected {wanted}")
    if not np.isfinite(noise).all():
        raise InputError("noise holds NaN or infinity; expected finite values")


def find_levels(
    enhancer: Enhancer, blocks: Iterable[FloatArray], rate: int, n_channels: int, source: str
) -> Levels:
    """First pass: offset, largest magnitude and loudest stretch at the model's rate.

    Args:
        enhancer: Gives model and windows.
        blocks: Of the recording, [n, n_channels].
        rate: Its rate (Hz).
        n_channels: Its channels.
        source: Its name, for messages.

    Raises:
        InputError: It holds what is not finite, or too large.
    """
    plan, signal = enhancer.window_plan, enhancer.manifest.signal
    rate_model, hop = signal.sample_rate, signal.hop_length
    resampler = Resampler(rate, rate_model, n_channels)
    n_remind = plan.reminder_samples
    loudest = [LoudestStretch(n_remind, hop) for _ in range(n_channels if n_remind else 0)]
    low, high = np.zeros((2, n_channels), np.float32)
    total, done = np.zeros(n_channels), 0

    def add(part: FloatArray) -> None:
        nonlocal low, high
        if len(part):
            low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
            for channel, stretch in enumerate(loudest):
                stretch.push(part[:, channel])

    for block in blocks:
        check_finite(block, done, source)
        done += len(block)
        total += block.sum(axis=0, dtype=np.float64)
        add(resampler.push(block))
    n_samples = n_model(done, rate, rate_model)
    add(resampler.finish(n_samples))
    peak = np.maximum(high, -low)
    if peak.max() > MAX_AMPLITUDE:
        raise InputError(
            f"{source}: amplitude {peak.max():.3g}; expected at most {MAX_AMPLITUDE:g}: scale "
            "the recording down"
        )
    mean = (total / max(done, 1)).astype(np.float32)
    if enhancer.manifest.causal is not None:  # it knows neither the offset nor the peak beforehand
        return Levels(np.zeros_like(peak), peak, (None,) * n_channels, n_samples)
    is_offset = (np.abs(mean) > OFFSET_SHARE * peak) & (done >= OFFSET_FROM_S * rate)
    offsets = np.where(is_offset, mean, np.float32(0.0))
    reminders: list[Reminder | None] = [None] * n_channels
    if n_samples > plan.window_samples:
        for channel, stretch in enumerate(loudest):
            if stretch.found:
                kept = stretch.found
                reminders[channel] = replace(kept, wav=kept.wav - offsets[channel])
    peaks = np.maximum(high - offsets, offsets - low)
    return Levels(offsets, peaks, tuple(reminders), n_samples)


class Chain(Closing):
    """Rate in -> model rate -> windows or blocks -> rate in, for all channels of one recording."""

    def __init__(self, enhancer: Enhancer, settings: Settings, rate: int, levels: Levels) -> None:
        """Prepare the streams of all channels.

        Args:
            enhancer: Gives model, backend and windows.
            settings: Of the sampler.
            rate: Of the recording (Hz).
            levels: Of its channels.
        """
        signal = enhancer.manifest.signal
        n_channels = len(levels.peaks)
        self._offsets = levels.offsets
        self._rates = (rate, signal.sample_rate)
        # A causal model hears in a file what it hears in a stream.
        short = enhancer.manifest.causal is not None and MIN_RATE_HZ <= rate <= MAX_RATE_HZ
        resampler = Polyphase if short else Resampler
        self._down = resampler(rate, signal.sample_rate, n_channels)
        self._up = resampler(signal.sample_rate, rate, n_channels)
        n_windows = n_channels * (1 + len(enhancer.window_plan.seams(levels.n_samples)))
        enhancer._check_process()
        self._work = enhancer._workers.work(n_windows, enhancer._lock)
        self._streams = [
            channel_stream(enhancer, settings, float(peak), reminder, self._work)
            for peak, reminder in zip(levels.peaks, levels.reminders, strict=True)
        ]
        self._waiting: deque[tuple[FloatArray | Piece, ...]] = deque()  # one piece a channel
        self._n_in = 0

    def close(self) -> None:
        """Give up what nobody asks for any more."""
        self._work.stop()

    def push(self, block: FloatArray) -> Iterator[FloatArray]:
        """What a block [n, n_channels] of the recording makes complete."""
        self._n_in += len(block)
        # Before resampling, which rings where an offset begins and ends.
        yield from self._windows(self._down.push(block - self._offsets))

    def finish(self) -> Iterator[FloatArray]:
        """The rest, at the recording's end."""
        yield from self._windows(self._down.finish(n_model(self._n_in, *self._rates)))
        self._waiting.extend(zip(*(stream.finish() for stream in self._streams), strict=True))
        yield from self._joined(0)
        yield self._up.finish(self._n_in)

    def _windows(self, block: FloatArray) -> Iterator[FloatArray]:
        if not len(block):
            return
        pushed = (s.push(block[:, c].copy()) for c, s in enumerate(self._streams))
        for pieces in zip(*pushed, strict=True):
            self._waiting.append(pieces)
            yield from self._joined(self._work.ahead)

    def _joined(self, ahead: int) -> Iterator[FloatArray]:
        """The oldest pieces, until at most ``ahead`` wait."""
        while len(self._waiting) * len(self._streams) > ahead:
            pieces = [piece() if callable(piece) else piece for piece in self._waiting.popleft()]
            yield self._up.push(np.stack(pieces, axis=1))


def n_model(n_in: int, rate_in: int, rate_model: int) -> int:
    """Samples at the model's rate that cover n_in samples; at least one."""
    return -(-n_in * rate_model // rate_in)


def mixed(
    enhanced: Iterable[FloatArray], noisy: Iterable[FloatArray], share: float
) -> Iterator[FloatArray]:
    """Mix two equally long streams of blocks [n, n_channels]; their blocks may be cut anywhere."""
    if share == 0.0:
        yield from enhanced
        return
    source, rest = iter(noisy), np.zeros((0, 0), np.float32)
    for block in enhanced:
        pieces, missing = [], len(block)
        while missing:
            if not len(rest):
                rest = next(source)
            pieces.append(rest[:missing])
            missing -= len(pieces[-1])
            rest = rest[len(pieces[-1]) :]
        if not pieces:
            continue
        dry = np.concatenate(pieces)
        yield dry if share == 1.0 else block * np.float32(1.0 - share) + dry * np.float32(share)
