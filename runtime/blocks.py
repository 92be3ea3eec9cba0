"""Blocks of samples between a recording and the model: their check, and other rates through soxr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import soxr

from .arrays import FloatArray
from .errors import InputError


def check_finite(block: FloatArray, first_sample: int, source: str) -> None:
    """Refuse NaN and infinity.

    Args:
        block: [n, n_channels].
        first_sample: Position of the block in the recording (samples).
        source: File name or "wav", for the message.

    Raises:
        InputError: Names the first such sample and its channel.
    """
    finite = np.isfinite(block)
    if finite.all():
        return
    row, channel = np.argwhere(~finite)[0].tolist()
    value = block[row, channel]
    raise InputError(
        f"{source}: sample {first_sample + row} of channel {channel} is {value}; expected finite "
        "values: repair or cut the recording"
    )


def part_of(blocks: Iterable[FloatArray], first: int, count: int) -> Iterator[FloatArray]:
    """Yield the samples from ``first`` on, ``count`` in all; what follows is not asked for.

    Args:
        blocks: [n, n_channels] each.
        first: Of the samples that are wanted.
        count: How many are wanted.
    """
    place = 0
    for block in blocks:
        low, high = max(first - place, 0), min(first + count - place, len(block))
        if low < high:
            yield block[low:high]
        place += len(block)
        if place >= first + count:
            return


class Resampler:
    """Streamed change of rate that keeps alignment and gives an exact number of samples."""

    def __init__(self, rate_in: int, rate_out: int, n_channels: int) -> None:
        """Start a stream.

        Args:
            rate_in: Rate of what is pushed (Hz).
            rate_out: Rate of what is returned (Hz).
            n_channels: Channels.
        """
        self._stream: Any = None
        if rate_in != rate_out:
            self._stream = soxr.ResampleStream(rate_in, rate_out, n_channels, "float32", "HQ")
        self._n_channels = n_channels
        self._done = 0

    def push(self, block: FloatArray) -> FloatArray:
        """Add samples [n, n_channels] and return what is final, [m, n_channels], m >= 0."""
        if self._stream is None:
            out = block
        else:
            out = self._stream.resample_chunk(np.ascontiguousarray(block))
            out = out.reshape(-1, self._n_channels)
        self._done += len(out)
        return out

    def finish(self, n_samples: int) -> FloatArray:
        """End the stream and return the rest, so that n_samples were returned in all.

        Args:
            n_samples: Exact total. The filter's own total is off by one sample at most; it is
                extended with zeros or cut there.
        """
        rest = np.zeros((0, self._n_channels), np.float32)
        if self._stream is not None:
            rest = self._stream.resample_chunk(rest, last=True).reshape(-1, self._n_channels)
        missing = n_samples - self._done
        if len(rest) < missing:
            zeros = np.zeros((missing - len(rest), self._n_channels), np.float32)
            rest = np.concatenate([rest, zeros])
        return rest[:missing]
