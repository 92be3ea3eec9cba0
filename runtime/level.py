"""The level that a causal network's input is divided by, frame by frame.

A recording's peak is known at its end; a stream has the largest peak so far, which falls slowly:

    l_t = max(p_t, r l_(t-1), l_min),   p_t the largest sample under frame t's window.

r is a release of 1 dB a second: a pause of ten seconds raises the noise by 10 dB at most. Below
l_min nothing is raised further. The equal parallel form is

    log l_t = max(max_(s <= t) (log p_s + s d) - t d, log l_min),   d = -log r.
"""

from __future__ import annotations

import math

import numpy as np

from .arrays import DoubleArray, FloatArray
from .spec import SignalSpec

RELEASE_DB_S = 1.0
LEAST_DB = -60.0  # of full scale: louder speech is treated alike whatever its level
LEAST = 10.0 ** (LEAST_DB / 20.0)
SILENT = 1e-10  # stands for a peak of zero in logarithms


def release(signal: SignalSpec) -> float:
    """What the logarithm of the level falls by in a frame."""
    return RELEASE_DB_S * math.log(10.0) / 20.0 / signal.frame_rate_hz


class LevelTracker:
    """The level of a stream, continued from call to call.

    Attributes:
        level: Of the last frame; 0 before the first.
    """

    def __init__(self, signal: SignalSpec) -> None:
        """Start a stream."""
        self.level = 0.0
        self._fall = release(signal)

    def push(self, peaks: FloatArray) -> FloatArray:
        """Levels of the next frames.

        Args:
            peaks: [T], largest magnitude under each frame's window.

        Returns:
            float32 [T], at least ``LEAST``.
        """
        if not len(peaks):
            return np.zeros(0, np.float32)
        before = math.log(max(self.level, SILENT))
        place = self._fall * np.arange(1, len(peaks) + 1)
        raised: DoubleArray = np.log(np.maximum(peaks.astype(np.float64), SILENT)) + place
        log = np.maximum(np.maximum.accumulate(raised), before) - place
        levels = np.maximum(np.exp(log), LEAST)
        self.level = float(levels[-1])
        result: FloatArray = levels.astype(np.float32)
        return result
