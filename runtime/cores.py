"""What stands between a live stream's resamplers, at the model's rate: blocks or windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .arrays import FloatArray
from .block_sampler import Lane
from .chain import Settings
from .level import RELEASE_DB_S
from .noise import frame_noise
from .spec import FRAME_MULTIPLE, CausalSpec, SignalSpec
from .stream import Channel
from .windows import LoudestStretch, Piece, Reminder, WindowedStream

if TYPE_CHECKING:
    from .enhancer import Enhancer


class Core(Protocol):
    """What stands between a stream's resamplers, at the model's rate.

    Attributes:
        n_samples: Taken in.
        closed: Whether the signal has ended.
    """

    n_samples: int
    closed: bool

    @property
    def n_next(self) -> int:
        """Samples that must have come in for the next block."""

    def push(self, wav: FloatArray) -> None:
        """Add samples [n, n_channels]."""

    def close(self) -> None:
        """End the signal."""


class CausalCore:
    """Blocks of four frames, and what the networks keep."""

    def __init__(self, signal: SignalSpec, causal: CausalSpec, n_channels: int, seed: int) -> None:
        """Start a signal.

        Args:
            signal: The front end.
            causal: The manifest's.
            n_channels: Channels; they share the noise.
            seed: Of the noise.
        """
        self._block, wait = causal.block_frames, causal.lookahead_frames
        self._hop, self._ahead = signal.hop_length, signal.n_fft // 2 - signal.hop_length

        def draw(index: int, first: int, n_frames: int) -> FloatArray:
            return frame_noise(seed, index, first, n_frames)

        self.channels = [Channel(signal, wait) for _ in range(n_channels)]
        self.lanes = [Lane(draw, wait, signal.n_freqs) for _ in range(n_channels)]
        self.n_samples, self.closed, self._blocks = 0, False, 0
        self.passing = 0  # blocks that are to come back as they were
        self._failures, self._n_ahead = 0, causal.lookahead_blocks

    @property
    def n_next(self) -> int:
        """See ``Core``."""
        return (self._blocks + 1) * self._block * self._hop + self._ahead

    def push(self, wav: FloatArray) -> None:
        """Add samples [n, n_channels]."""
        self.n_samples += len(wav)
        for index, channel in enumerate(self.channels):
            channel.push(wav[:, index])

    def close(self) -> None:
        """End the signal."""
        self.closed = True
        for channel in self.channels:
            channel.close()

    @property
    def has_block(self) -> bool:
        """Whether frames are there; after the end until none is left."""
        return self.channels[0].available >= self._block

    def take(self) -> FloatArray:
        """The next block as the networks hear it, [n_channels, 3, T, F]."""
        self._blocks += 1
        return np.stack([channel.take(self._block) for channel in self.channels])

    def late(self, noisy: FloatArray) -> FloatArray:
        """What belongs to the output when a block comes in, as it was heard, [n_channels, 2, T, F]."""
        return np.stack([lane.late(x)[:2] for lane, x in zip(self.lanes, noisy, strict=True)])

    def fail(self) -> None:
        """Count a block that the networks failed on; the second in a row may be the states' fault."""
        self._failures += 1
        self.passing = 1 + self._n_ahead  # states that miss a block give it out of place
        if self._failures > 1:
            for lane in self.lanes:
                lane.forget()

    def give(self, clean_ri: FloatArray, source: str) -> FloatArray:
        """Samples [n, n_channels] that are final after an estimate [n_channels, 2, T, F]."""
        spectra = [
            channel.spectrum(x, source) for channel, x in zip(self.channels, clean_ri, strict=True)
        ]
        self._failures = self._failures if self.passing else 0
        pairs = zip(self.channels, spectra, strict=True)
        return np.stack([channel.give(x) for channel, x in pairs], axis=1)


class WindowCore:
    """Windows of a model that hears whole recordings; level and loudest second are those so far."""

    def __init__(
        self, enhancer: Enhancer, n_channels: int, settings: Callable[[], Settings]
    ) -> None:
        """Start a signal.

        Args:
            enhancer: Gives model, backend and windows.
            n_channels: Channels; they share the noise.
            settings: Returns those of the next window.
        """
        self._enhancer, self._settings = enhancer, settings
        self._plan, signal = enhancer.window_plan, enhancer.manifest.signal
        self._block = FRAME_MULTIPLE * signal.hop_length
        self.n_samples, self.closed = 0, False
        self.windows = 0  # since they were last counted
        self.ready: deque[FloatArray] = deque()
        self._rate = signal.sample_rate
        self._levels = [0.0] * n_channels
        hop, n_remind = signal.hop_length, self._plan.reminder_samples
        self._loudest = [LoudestStretch(n_remind, hop) for _ in range(n_channels * bool(n_remind))]
        self._streams = [
            WindowedStream(self._processor(i), self._plan, hop) for i in range(n_channels)
        ]

    @property
    def n_next(self) -> int:
        """See ``Core``."""
        return self.n_samples + self._block

    def push(self, wav: FloatArray) -> None:
        """Add samples [n, n_channels]."""
        self.n_samples += len(wav)
        for index, stretch in enumerate(self._loudest):
            stretch.push(wav[:, index])
        self._add([s.push(wav[:, i].copy()) for i, s in enumerate(self._streams)])

    def close(self) -> None:
        """End the signal."""
        self.closed = True
        self._add([stream.finish() for stream in self._streams])

    def _add(self, pushed: Sequence[Iterable[Piece]]) -> None:
        for pieces in zip(*pushed, strict=True):
            self.windows += 1
            self.ready.append(np.stack([piece() for piece in pieces], axis=1))

    def _processor(self, index: int) -> Callable[[FloatArray, int], Piece]:
        fall = 10.0 ** (-RELEASE_DB_S / 20.0 * self._plan.step_samples / self._rate)

        def process(wav: FloatArray, first_frame: int) -> FloatArray:
            peak = max(float(np.abs(wav).max()), self._levels[index] * fall)
            self._levels[index] = peak
            reminder = None
            found = self._loudest[index].found if self._loudest else None
            if found is not None and self.n_samples > self._plan.window_samples:
                loud = max(peak, float(np.abs(found.wav).max()))
                reminder = Reminder((found.wav / loud).astype(np.float32), found.first_frame)
            scaled = (wav.astype(np.float64) / peak).astype(np.float32)
            with self._enhancer._lock:
                out = self._enhancer._enhance_window(
                    scaled, first_frame, self._settings(), reminder
                )
            return out * np.float32(peak)

        return lambda wav, first_frame: partial(process, wav, first_frame)
