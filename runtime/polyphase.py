"""Change of rate with a short delay: a windowed sinc, read at the phases that the rates need.

A filter of 4 ms to each side, for streams; soxr's waits for 37 ms and more. What lies above the
lower of both Nyquist frequencies is 70 dB down; the band is flat to 0.54 kHz below it. Source: Oppenheim and
Schafer, Discrete-Time Signal Processing, 7.6 (Kaiser's window and its formulas).
"""

from __future__ import annotations

import math

import numpy as np

from .arrays import DoubleArray, FloatArray
from .spec import STREAM_RATES_HZ

MIN_RATE_HZ, MAX_RATE_HZ = STREAM_RATES_HZ  # that it is made for
REACH_S = 0.004  # to each side
STOP_DB = 70.0
_MAX_PHASES = 1024  # with more, neighbours are interpolated: an error below -110 dB
_ROWS = 512  # computed at a time
_FEW_PHASES = 8  # up to here each is a step through the input, without copies


def reach(rate_in: int, rate_out: int) -> int:
    """Samples of the input that a sample of the output needs after it."""
    return 0 if rate_in == rate_out else int(REACH_S * rate_in)


def _taps(rate_in: int, rate_out: int, n_phases: int) -> FloatArray:
    """[n_phases + 1, 2 reach]: row p weighs samples i - reach + 1 ... i + reach at i + p / n_phases."""
    half = reach(rate_in, rate_out)
    beta = 0.1102 * (STOP_DB - 8.7)
    # Width of the transition, in cycles a sample of the input.
    width = (STOP_DB - 8.0) / (2.285 * 2.0 * math.pi * (2 * half - 1))
    cutoff = min(1.0, rate_out / rate_in) - width  # twice the frequency of -6 dB
    phase = np.arange(n_phases + 1)[:, None] / n_phases
    at: DoubleArray = np.arange(1 - half, half + 1)[None] - phase
    window = np.i0(beta * np.sqrt(np.maximum(1.0 - np.square(at / half), 0.0))) / np.i0(beta)
    taps = cutoff * np.sinc(cutoff * at) * window
    taps /= taps.sum(axis=1, keepdims=True)  # a constant stays what it is, whatever the phase
    result: FloatArray = taps.astype(np.float32)
    return result


class Polyphase:
    """Streamed change of rate; sample k of the output lies at sample k rate_in / rate_out."""

    def __init__(self, rate_in: int, rate_out: int, n_channels: int) -> None:
        """Start a stream.

        Args:
            rate_in: Rate of what is pushed (Hz).
            rate_out: Rate of what is returned (Hz).
            n_channels: Channels.
        """
        common = math.gcd(rate_in, rate_out)
        self._up, self._down = rate_out // common, rate_in // common
        self._half = reach(rate_in, rate_out)
        self._n_phases = min(self._up, _MAX_PHASES)
        if self._half:
            self._taps = _taps(rate_in, rate_out, self._n_phases)
        # Zeros before the first sample; from here on what outputs to come need.
        self._input = np.zeros((n_channels, max(self._half - 1, 0)), np.float32)
        self._first = 1 - self._half  # place of the first sample that is kept
        self._n_in = self._n_out = 0

    def needed(self, n_out: int) -> int:
        """Samples that must have been pushed for n_out samples, n_out >= 1, to have been returned."""
        if not self._half:
            return n_out
        return (n_out - 1) * self._down // self._up + self._half + 1

    def push(self, block: FloatArray) -> FloatArray:
        """Add samples [n, n_channels] and return what is final, [m, n_channels], m >= 0."""
        if not self._half:
            return block
        self._n_in += len(block)
        self._input = np.concatenate([self._input, block.T], axis=1)
        # The first output that cannot be computed yet.
        end = max(0, -(-(self._n_in - self._half) * self._up // self._down))
        parts = [self._rows(k, min(k + _ROWS, end)) for k in range(self._n_out, end, _ROWS)]
        self._n_out = max(self._n_out, end)
        keep = self._n_out * self._down // self._up - self._half + 1
        self._input, self._first = self._input[:, keep - self._first :].copy(), keep
        return np.concatenate(parts) if parts else np.zeros((0, block.shape[1]), np.float32)

    def _rows(self, first: int, last: int) -> FloatArray:
        """Outputs first ... last - 1, [last - first, n_channels]."""
        windows = np.lib.stride_tricks.sliding_window_view(self._input, 2 * self._half, axis=1)
        before = 1 - self._half - self._first
        out = np.empty((len(self._input), last - first), np.float32)
        if self._up <= _FEW_PHASES:
            for k in range(first, min(first + self._up, last)):
                whole, phase = divmod(k * self._down, self._up)
                mine = out[:, k - first :: self._up]
                rows = windows[:, whole + before :: self._down][:, : mine.shape[1]]
                np.einsum("cnt,t->cn", rows, self._taps[phase], out=mine)
            return out.T
        places, rest = divmod(np.arange(first, last, dtype=np.int64) * self._down, self._up)
        phases, between = divmod(rest * self._n_phases, self._up)
        taps = self._taps[phases]
        if self._n_phases != self._up:
            share = (between / self._up).astype(np.float32)[:, None]
            taps = taps * (1 - share) + self._taps[phases + 1] * share
        np.einsum("cnt,nt->cn", windows[:, places + before], taps, out=out)
        return out.T

    def finish(self, n_samples: int) -> FloatArray:
        """End the stream with zeros and return the rest, so that n_samples were returned in all.

        Args:
            n_samples: Exact total, at most what covers the input.
        """
        if not self._half:
            return np.zeros((0, len(self._input)), np.float32)
        done = self._n_out
        zeros = np.zeros((self.needed(max(n_samples, 1)), len(self._input)), np.float32)
        return self.push(zeros[max(0, self._n_in) :])[: n_samples - done]
