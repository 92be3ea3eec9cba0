"""The long recording is what the guard needs: steady noise, and a pause longer than a window."""

from __future__ import annotations

import numpy as np
import pytest

from dvpd.benchmarks.common import recordings
from dvpd.benchmarks.common.recordings import RATE_HZ
from dvpd.quality.pauses import block_levels, find_speech
from dvpd.runtime.errors import InputError
from dvpd.runtime.windows import WindowPlan


def test_noise_goes_on_without_gap_or_step():
    rng = np.random.default_rng(0)
    piece = (0.1 * rng.standard_normal(2 * RATE_HZ)).astype(np.float32)
    noise = recordings.continuous_noise(piece, 7 * RATE_HZ)
    assert noise.shape == (7 * RATE_HZ,)
    levels = block_levels(noise, RATE_HZ // 4)
    assert levels.min() > -20.5
    assert levels.max() < -19.5
    with pytest.raises(InputError, match="expected more than"):
        recordings.continuous_noise(piece[: 2 * recordings.FADE], 10)


def test_the_pause_is_longer_than_a_window_and_speech_is_where_it_says():
    noisy, clean, speech = recordings.with_pauses()
    assert noisy.shape == clean.shape
    assert np.abs(noisy).max() < 1.0
    (_, first), (second, end) = speech
    assert second - first > WindowPlan().window_samples
    assert end <= len(clean)
    assert not clean[first:second].any()
    assert clean[: speech[0][0]].any() == clean[end:].any() == False  # noqa: E712
    for (a, b), (c, d) in zip(find_speech(clean), speech, strict=True):
        assert c - 2000 < a < b < d + 2000
    noise = noisy - clean
    spoken = np.concatenate([clean[a:b] for a, b in speech])
    snr = 10 * np.log10(np.mean(spoken**2) / np.mean(noise**2))
    assert snr == pytest.approx(recordings.SNR_DB, abs=0.05)
    assert np.ptp(block_levels(noise)) < 12.0


def test_missing_clips_are_said(tmp_path):
    with pytest.raises(InputError, match=r"has no clip0_noisy\.flac; run this in a checkout"):
        recordings.with_pauses(tmp_path)
