"""A causal model on a signal that comes in pieces: spectrum in, networks, spectrum out, states kept.

Frames are processed in groups that lie on a fixed grid, so what comes back is a function of the
signal alone, not of the pieces.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import ComplexArray, DoubleArray, FloatArray
from .block_sampler import BlockSampler, Draw, Lane
from .errors import NonFiniteError
from .level import LevelTracker
from .sampler import TINY
from .spec import FRAME_MULTIPLE, SignalSpec
from .stft import compress, decompress, hann_periodic

FILE_FRAMES = 256  # frames that a file is processed in at a time: 2 s
MAX_BIN = 1e8  # of an output spectrum; a full-scale sine has 128


class SpectralStream:
    """Frames of a signal that comes in pieces, and the signal of frames, as ``stft`` and ``istft``."""

    def __init__(self, signal: SignalSpec) -> None:
        """Start an empty signal."""
        self.signal = signal
        self.n_samples = 0  # taken in
        self.n_frames = 0  # given out
        self._half = signal.n_fft // 2
        self._window = hann_periodic(signal.n_fft)
        self._input = np.zeros(0, np.float32)  # from the first sample of the next frame on
        self._begun = False
        self._overlap = signal.n_fft // signal.hop_length
        self._sums: DoubleArray = np.zeros((2, self._overlap - 1, signal.hop_length))
        self._skip = self._half  # samples of the output that lie before the signal

    def push(self, wav: FloatArray) -> None:
        """Add samples [n]."""
        self.n_samples += wav.size
        self._input = np.concatenate([self._input, wav])
        if not self._begun and self._input.size > self._half:
            self._begin()

    def _begin(self) -> None:
        self._begun = True
        self._input = np.concatenate([self._input[self._half : 0 : -1], self._input])

    def close(self) -> int:
        """End the signal; returns the number of frames that it has in all."""
        if not self._begun:  # as `stft`: a short signal is followed by zeros
            self._input = np.concatenate(
                [self._input, np.zeros(self._half + 1 - self._input.size, np.float32)]
            )
            self._begin()
        last = self._input.size
        self._input = np.concatenate(
            [self._input, self._input[last - 2 : last - self._half - 2 : -1]]
        )
        return self.signal.n_frames(max(self.n_samples, self._half + 1))

    @property
    def available(self) -> int:
        """Frames whose samples are there."""
        if not self._begun:
            return 0
        return max(0, (self._input.size - self.signal.n_fft) // self.signal.hop_length + 1)

    def take(self, n_frames: int) -> tuple[FloatArray, FloatArray]:
        """The next frames.

        Args:
            n_frames: How many; at most ``available``.

        Returns:
            Compressed spectrum [3, T, F], and the peak under each window [T].
        """
        signal, hop = self.signal, self.signal.hop_length
        if not n_frames:
            return np.zeros((3, 0, signal.n_freqs), np.float32), np.zeros(0, np.float32)
        rows = np.lib.stride_tricks.sliding_window_view(self._input, signal.n_fft)[::hop][:n_frames]
        spec = np.fft.rfft(rows * self._window, axis=-1).astype(np.complex64)
        peaks: FloatArray = np.abs(rows).max(axis=1)
        self._input = self._input[n_frames * hop :]
        self.n_frames += n_frames
        return compress(spec, signal), peaks

    def give(self, spec: Any) -> FloatArray:
        """Samples that are final after the next frames of the output, complex [T, F]."""
        hop, n_frames = self.signal.hop_length, len(spec)
        parts = np.fft.irfft(spec, n=self.signal.n_fft, axis=-1) * self._window
        parts = parts.reshape(-1, self._overlap, hop)
        squared = (self._window**2).reshape(self._overlap, hop)
        sums: DoubleArray = np.zeros((2, n_frames + self._overlap - 1, hop))
        sums[:, : self._overlap - 1] = self._sums
        for p in range(self._overlap):
            sums[0, p : p + n_frames] += parts[:, p]
            sums[1, p : p + n_frames] += squared[p]
        self._sums = sums[:, n_frames:].copy()
        return self._ready(sums[:, :n_frames])

    def rest(self) -> FloatArray:
        """What the last windows still hold."""
        return self._ready(self._sums)

    def _ready(self, sums: DoubleArray) -> FloatArray:
        total, norm = sums.reshape(2, -1)
        skipped = min(self._skip, total.size)
        self._skip -= skipped
        total, norm = total[skipped:], norm[skipped:]
        wav: FloatArray = (total / np.maximum(norm, TINY)).astype(np.float32)
        return wav


class Channel:
    """One channel's way to the networks and back: samples, frames and their levels.

    Attributes:
        n_samples: Taken in.
    """

    def __init__(self, signal: SignalSpec, lookahead_frames: int) -> None:
        """Start an empty signal."""
        self._signal = signal
        self._frames = SpectralStream(signal)
        self._tracker = LevelTracker(signal)
        self._levels = np.zeros(lookahead_frames, np.float32)  # of frames that wait
        self._lookahead = lookahead_frames
        self._next = -lookahead_frames  # the frame that is given next
        self._total: int | None = None  # frames, once the signal has ended
        self._after = 0  # frames of zeros behind it that are still to be taken
        self._given = 0  # samples

    @property
    def n_samples(self) -> int:
        """Samples taken in."""
        return self._frames.n_samples

    def push(self, wav: FloatArray) -> None:
        """Add samples [n]."""
        self._frames.push(wav)

    def close(self) -> None:
        """End the signal: zeros follow it, to whole blocks and for the look-ahead."""
        if not self.n_samples:
            return
        self._total = self._frames.close()
        left = self._total - self._frames.n_frames
        self._after = -left % FRAME_MULTIPLE + self._lookahead

    @property
    def available(self) -> int:
        """Frames that can be taken."""
        if self._total is None:
            return self._frames.available
        return self._total - self._frames.n_frames + self._after

    def take(self, n_frames: int) -> FloatArray:
        """The next frames as the networks hear them, [3, n_frames, F]."""
        own = n_frames
        if self._total is not None:
            own = min(n_frames, self._total - self._frames.n_frames)
        noisy, peaks = self._frames.take(own)
        if own < n_frames:
            self._after -= n_frames - own
            noisy = np.pad(noisy, ((0, 0), (0, n_frames - own), (0, 0)))
            peaks = np.pad(peaks, (0, n_frames - own))
        levels = self._tracker.push(peaks)
        # Digital silence stays silence, whatever a network makes of it.
        kept = np.where(peaks > 0.0, levels, np.float32(0.0))
        self._levels = np.concatenate([self._levels, kept])
        return noisy * (levels ** np.float32(-self._signal.compress_exponent))[:, None]

    def spectrum(self, clean_ri: FloatArray, source: str) -> ComplexArray:
        """The spectrum of the next frames of the estimate, without their level.

        Args:
            clean_ri: float32 [2, T, F].
            source: Who made it, for the message.

        Raises:
            NonFiniteError: It is beyond any signal.
        """
        spec = decompress(clean_ri, self._signal)
        if not np.abs(spec).max() <= MAX_BIN:
            raise NonFiniteError(
                f"{source} returned values beyond any signal near second "
                f"{max(self._next, 0) / self._signal.frame_rate_hz:.1f}; nothing was written: try "
                "another backend or the fp32 engine, and report the recording"
            )
        return spec

    def give(self, spec: ComplexArray) -> FloatArray:
        """Samples that are final after what ``spectrum`` returned, [T, F]."""
        n_frames = len(spec)
        levels, self._levels = self._levels[:n_frames], self._levels[n_frames:]
        spec = spec * levels[:, None]
        first, self._next = self._next, self._next + n_frames
        if self._total is None:
            wav = self._frames.give(spec[max(0, -first) :])
        else:
            wav = self._frames.give(spec[max(0, -first) : max(0, self._total - first)])
            if self._next >= self._total:
                wav = np.concatenate([wav, self._frames.rest()])
            wav = wav[: self.n_samples - self._given]
        self._given += wav.size
        return wav


class CausalStream:
    """Push a signal in pieces of any size, get the enhanced signal back in order.

    Attributes:
        group: Frames that are processed at a time.
    """

    def __init__(
        self, sampler: BlockSampler, draw: Draw, signal: SignalSpec, group: int = FILE_FRAMES
    ) -> None:
        """Start an empty stream.

        Args:
            sampler: The networks.
            draw: Noise by absolute frame.
            signal: The front end.
            group: Frames at a time, a multiple of 4: 4 for the least delay, more for speed.
        """
        self.group, self._sampler = group, sampler
        self._channel = Channel(signal, sampler.lookahead_frames)
        self._lane = Lane(draw, sampler.lookahead_frames, signal.n_freqs)

    def push(self, wav: FloatArray) -> list[FloatArray]:
        """Add samples.

        Args:
            wav: float32 [n].

        Returns:
            Enhanced pieces that are final now, in order.
        """
        self._channel.push(wav)
        pieces = []
        while self._channel.available >= self.group:
            pieces.append(self._process(self.group))
        return [piece for piece in pieces if piece.size]

    def finish(self) -> list[FloatArray]:
        """Process what is left; the stream is spent afterwards."""
        self._channel.close()
        pieces = []
        while left := self._channel.available:
            pieces.append(self._process(min(self.group, left)))
        return [piece for piece in pieces if piece.size]

    def _process(self, n_frames: int) -> FloatArray:
        heard = np.ascontiguousarray(self._channel.take(n_frames)[None])
        clean_ri = self._sampler.push([self._lane], heard)
        source = f"backend {self._sampler.backend.name}"
        return self._channel.give(self._channel.spectrum(clean_ri[0], source))
