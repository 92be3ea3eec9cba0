"""What an enhancement took from a recording, in dB: over all of it, and where nobody speaks.

Pauses are found as ``dvpd.quality.pauses`` finds them without a clean side, by the energy of the
output, but block by block, so that ten hours need less than a megabyte: half seconds in which every
20 ms lie ``OUTPUT_RANGE_DB`` below the loudest half second, with neighbours that do so, too.
"""

from __future__ import annotations

import math
from array import array

import numpy as np

from .arrays import DoubleArray, FloatArray

OUTPUT_RANGE_DB = 25.0  # below the loudest half second: speech; what lies under it is a pause
CAP_DB = 60.0  # more is not heard
NOTHING_DB = -90.0  # below one step of 16 bits: digital silence, nothing to lower
_FLOOR = 1e-12  # -120 dB
_FRAMES = 25  # of 20 ms, in a block


def _decibels(power: DoubleArray) -> DoubleArray:
    level: DoubleArray = 10.0 * np.log10(np.maximum(power, _FLOOR))
    return level


def _levels(power: DoubleArray) -> bytes:
    return _decibels(power).astype(np.float32).tobytes()


class Energy:
    """The energy of a signal that comes in blocks of any size.

    Attributes:
        total: Sum of all squares.
        n: How many there are.
        levels: Mean level of each whole half second (dB of full scale, all channels).
        peaks: Level of its loudest 20 ms.
    """

    def __init__(self, sample_rate: int, n_channels: int) -> None:
        """Begin.

        Args:
            sample_rate: Samples a second (Hz), at least 50.
            n_channels: Channels.
        """
        self._frame, self._n_channels = sample_rate // 50, n_channels
        self._rest = np.zeros(0)
        self.total, self.n = 0.0, 0
        self.levels, self.peaks = array("f"), array("f")

    def push(self, block: FloatArray) -> FloatArray:
        """Add samples.

        Args:
            block: [n, n_channels].

        Returns:
            The block.
        """
        wide = block.astype(np.float64)  # the square of a large value overflows float32
        power = np.einsum("nc,nc->n", wide, wide)
        self.total += float(power.sum())
        self.n += block.size
        power = np.concatenate([self._rest, power])
        whole = len(power) // (_FRAMES * self._frame)
        used = whole * _FRAMES * self._frame
        if whole:
            frames = power[:used].reshape(whole, _FRAMES, self._frame).mean(axis=2)
            frames /= self._n_channels
            self.levels.frombytes(_levels(frames.mean(axis=1)))
            self.peaks.frombytes(_levels(frames.max(axis=1)))
        self._rest = power[used:]
        return block


def taken_db(before: Energy, after: Energy) -> tuple[float | None, float | None]:
    """By how much an output is softer than its input.

    Args:
        before: The input's.
        after: The output's, as long.

    Returns:
        Over all of it, and in pauses; dB, at most ``CAP_DB``, negative where the output is louder.
        None where the input holds nothing, and where there is no pause.
    """
    whole = _fall(before.total / max(before.n, 1), after.total / max(after.n, 1))
    if not after.levels:
        return whole, None
    inputs, outputs, peaks = (
        np.array(values, np.float64) for values in (before.levels, after.levels, after.peaks)
    )
    loud = peaks > max(outputs.max() - OUTPUT_RANGE_DB, NOTHING_DB)
    near = loud.copy()  # no tails, no breath
    near[1:] |= loud[:-1]
    near[:-1] |= loud[1:]
    if near.all():
        return whole, None
    sides = (float(np.mean(10.0 ** (side[~near] / 10.0))) for side in (inputs, outputs))
    return whole, _fall(*sides)


def _fall(before: float, after: float) -> float | None:
    level, left = (10.0 * math.log10(max(power, _FLOOR)) for power in (before, after))
    return None if level <= NOTHING_DB else min(level - left, CAP_DB)
