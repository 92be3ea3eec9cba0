"""A causal model on a signal that comes in pieces: spectrum in, networks, spectrum out, states kept.

Frames are processed in groups that lie on a fixed grid, so what comes back is a function of the
signal alone, not of the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from .arrays import DoubleArray, FloatArray
from .backends.base import StreamBackend
from .errors import BackendError
from .level import LevelTracker
from .sampler import TINY
from .schedule import InitialState, SamplerStep
from .spec import FRAME_MULTIPLE, SignalSpec, TlbFactors
from .stft import compress, decompress, hann_periodic

Draw = Callable[[int, int, int], FloatArray]  # (draw, first frame, frames) -> noise [T, F]
FILE_FRAMES = 256  # frames that a file is processed in at a time: 2 s
MAX_BIN = 1e8  # of an output spectrum; a full-scale sine has 128


class BlockSampler:
    """Both networks and the sampler on the frames of one or several streams, states kept.

    Of each network call its own state is kept: the predictive branch's and one for every step.
    """

    def __init__(
        self,
        backend: StreamBackend,
        *,
        start: InitialState,
        steps: Sequence[SamplerStep],
        alpha: float,
        tlb: TlbFactors,
        lookahead_frames: int = 0,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Start streams.

        Args:
            backend: The two networks.
            start: Coefficients of the first state.
            steps: Coefficients of the reverse steps; none for the predictive branch alone.
            alpha: Weight of the predictive magnitude in the fusion.
            tlb: Factors of the score network.
            lookahead_frames: By how many frames what leaves is later than what enters.
            lock: Held while the networks run, where several streams share a backend.
        """
        self.backend, self.start, self.steps, self.alpha = backend, start, tuple(steps), alpha
        self.tlb, self.lookahead_frames = tlb, lookahead_frames
        self._lock = lock or nullcontext()
        self.first_frame = 0
        self._predictive: Any = None
        self._scores: list[Any] = [None] * len(self.steps)
        self._late: FloatArray | None = None  # noisy magnitudes that wait

    def push(self, noisy: FloatArray, draw: Draw) -> FloatArray:
        """The next frames.

        Args:
            noisy: float32 [B, 3, T, 257], T a multiple of 4.
            draw: Noise by absolute frame of the output.

        Returns:
            float32 [B, 2, T, 257]: the estimate, ``lookahead_frames`` late; frames before the
            first are zero.

        Raises:
            BackendError: A network failed.
        """
        with self._lock:
            return self._push(noisy, draw)

    def _push(self, noisy: FloatArray, draw: Draw) -> FloatArray:
        n_frames, wait = noisy.shape[2], self.lookahead_frames
        clean_ri, feats, self._predictive = self.backend.predict_next(noisy, self._predictive)
        first = self.first_frame - wait
        self.first_frame += n_frames
        y = noisy[:, 2:3]
        if wait:
            if self._late is None:
                self._late = np.zeros((*y.shape[:2], wait, y.shape[3]), np.float32)
            y = np.concatenate([self._late, y], axis=2)
            y, self._late = y[:, :, :n_frames], y[:, :, n_frames:].copy()
        if not self.steps:
            return clean_ri
        f32 = np.float32

        def noise(index: int) -> FloatArray:
            begun = max(0, min(-first, n_frames))  # there is none before the first frame
            z = np.zeros((n_frames, noisy.shape[3]), np.float32)
            if begun < n_frames:
                z[begun:] = draw(index, first + begun, n_frames - begun)
            return z

        mag_p = np.sqrt(np.square(clean_ri).sum(axis=1, keepdims=True))  # [B, 1, T, F]
        start = self.start
        xt = f32(start.w_x0) * mag_p + f32(start.w_y) * y + f32(start.std) * noise(0)
        mean = xt
        factors = self.tlb.arrays()
        for index, step in enumerate(self.steps):
            t = np.full(noisy.shape[0], step.t, np.float32)
            sigma_z, self._scores[index] = self.backend.score_next(
                xt, t, feats, *factors, self._scores[index]
            )
            mean = f32(step.a) * xt + f32(step.b) * y + f32(step.e) * sigma_z
            if index + 1 < len(self.steps):
                xt = mean + f32(step.n) * noise(index + 1)
        mag = f32(self.alpha) * mag_p + f32(1.0 - self.alpha) * np.maximum(mean, f32(0.0))
        fused: FloatArray = clean_ri * (mag / np.maximum(mag_p, TINY))
        return fused


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
            sampler: Of this stream alone.
            draw: Noise by absolute frame.
            signal: The front end.
            group: Frames at a time, a multiple of 4: 4 for the least delay, more for speed.
        """
        self.group, self._sampler, self._draw, self._signal = group, sampler, draw, signal
        self._frames = SpectralStream(signal)
        self._tracker = LevelTracker(signal)
        self._levels = np.zeros(sampler.lookahead_frames, np.float32)  # of frames that wait
        self._left = sampler.lookahead_frames  # frames before the first that still leave
        self._given = 0

    def push(self, wav: FloatArray) -> list[FloatArray]:
        """Add samples.

        Args:
            wav: float32 [n].

        Returns:
            Enhanced pieces that are final now, in order.
        """
        self._frames.push(wav)
        pieces = []
        while self._frames.available >= self.group:
            pieces.append(self._process(*self._frames.take(self.group)))
        return self._counted(pieces)

    def finish(self) -> list[FloatArray]:
        """Process what is left; the stream is spent afterwards."""
        if not self._frames.n_samples:
            return []
        total = self._frames.close()
        left = total - self._frames.n_frames
        noisy, peaks = self._frames.take(left)
        extra = -left % FRAME_MULTIPLE + self._sampler.lookahead_frames
        noisy = np.pad(noisy, ((0, 0), (0, extra), (0, 0)))
        peaks = np.pad(peaks, (0, extra))
        pieces = []
        for first in range(0, noisy.shape[1], self.group):
            part = slice(first, min(first + self.group, noisy.shape[1]))
            used = total + self._sampler.lookahead_frames - self._sampler.first_frame
            pieces.append(self._process(noisy[:, part], peaks[part], used))
        pieces.append(self._frames.rest())
        return self._counted(pieces, last=True)

    def _counted(self, pieces: list[FloatArray], last: bool = False) -> list[FloatArray]:
        """Pieces cut at the end of the signal."""
        cut = []
        for piece in pieces:
            piece = piece[: self._frames.n_samples - self._given] if last else piece
            self._given += piece.size
            if piece.size:
                cut.append(piece)
        return cut

    def _process(self, noisy: FloatArray, peaks: FloatArray, used: int | None = None) -> FloatArray:
        """Enhance frames [3, T, F]; samples of the first ``used`` of those that leave."""
        signal = self._signal
        levels = self._tracker.push(peaks)
        heard = noisy * (levels ** np.float32(-signal.compress_exponent))[:, None]
        clean_ri = self._sampler.push(np.ascontiguousarray(heard[None]), self._draw)
        # Digital silence stays silence, whatever a network makes of it.
        waiting = np.concatenate([self._levels, np.where(peaks > 0.0, levels, np.float32(0.0))])
        levels, self._levels = waiting[: len(peaks)], waiting[len(peaks) :]
        spec = decompress(clean_ri[0], signal)
        if not np.abs(spec).max() <= MAX_BIN:
            second = self._sampler.first_frame / signal.frame_rate_hz
            raise BackendError(
                f"backend {self._sampler.backend.name} returned values beyond any signal near second "
                f"{second:.1f}; nothing was written: try another backend or the fp32 engine, and "
                "report the recording"
            )
        spec = spec * levels[:, None]
        early = min(self._left, len(spec))
        self._left -= early
        return self._frames.give(spec[early:used])
