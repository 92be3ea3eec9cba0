"""The level tracker: what a stream's frames are divided by."""

import math

import numpy as np
import pytest

from dvpd.runtime.level import LEAST, RELEASE_DB_S, LevelTracker
from dvpd.runtime.spec import SignalSpec

SIGNAL = SignalSpec()


def plain(peaks):
    """The recurrence as it is defined."""
    level, out = 0.0, []
    fall = 10.0 ** (-RELEASE_DB_S / 20.0 / SIGNAL.frame_rate_hz)
    for p in peaks:
        level = max(float(p), fall * level, LEAST)
        out.append(level)
    return np.array(out)


def test_any_split_equals_the_recurrence():
    rng = np.random.default_rng(0)
    peaks = (10.0 ** rng.uniform(-5, 0, 4000)).astype(np.float32)
    peaks[1000:2500] = 0.0
    wanted = plain(peaks)
    for cuts in ([], [1], [7, 8, 999, 1001, 3000], list(range(4, 4000, 4))):
        tracker = LevelTracker(SIGNAL)
        parts = [tracker.push(part) for part in np.split(peaks, cuts)]
        np.testing.assert_allclose(np.concatenate(parts), wanted, rtol=1e-6)


def test_thirty_minutes_keep_their_precision():
    rng = np.random.default_rng(1)
    tracker, n = LevelTracker(SIGNAL), round(1800 * SIGNAL.frame_rate_hz)
    peaks = np.full(n, 0.1, np.float32) * rng.uniform(0.0, 1.0, n).astype(np.float32)
    whole = tracker.push(peaks)
    tail = LevelTracker(SIGNAL)
    parts = [tail.push(part) for part in np.array_split(peaks, 1000)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)
    assert whole[-1] <= 0.1


def test_a_pause_is_raised_slowly_and_never_beyond_the_cap():
    tracker = LevelTracker(SIGNAL)
    loud = tracker.push(np.array([1.0], np.float32))
    ten_s = tracker.push(np.zeros(round(10 * SIGNAL.frame_rate_hz), np.float32))
    assert loud[-1] == 1.0
    assert 20 * math.log10(ten_s[-1]) == pytest.approx(-10 * RELEASE_DB_S, abs=0.01)
    hours = tracker.push(np.zeros(100_000, np.float32))
    assert hours[-1] == pytest.approx(LEAST)
    assert LevelTracker(SIGNAL).push(np.zeros(3, np.float32)).tolist() == pytest.approx([LEAST] * 3)
