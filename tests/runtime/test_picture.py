"""The picture of before and after: its levels are those of the waveforms, and it stays small."""

import struct

import numpy as np
import pytest

from dvpd.runtime import picture


def test_levels_are_root_mean_squares_of_pieces():
    rate = 16000
    wav = np.concatenate([np.full(rate, 0.5), np.zeros(rate + 100)]).astype(np.float32)
    times, db = picture.levels_over_time(wav, rate)
    assert db[:20] == pytest.approx(20 * np.log10(0.5), abs=1e-3)
    assert (db[20:] == picture.SILENCE_DB).all()
    assert times[0] == pytest.approx(picture.LEVEL_S / 2)
    assert times[-1] == pytest.approx((2 * rate + 50) / rate)  # of the piece that is left


def test_an_hour_has_no_more_points_than_a_picture_has_columns():
    _, db = picture.levels_over_time(np.zeros(3600 * 1000, np.float32), 1000)
    assert len(db) <= picture.MAX_COLUMNS


@pytest.mark.parametrize("shape", [(8000,), (8000, 2), (100,)])
def test_a_picture_has_a_panel_for_each_waveform_and_one_of_levels(shape):
    pytest.importorskip("matplotlib")
    wav = np.random.default_rng(0).standard_normal(shape).astype(np.float32) / 10
    data = picture.before_after({"noisy": wav, "enhanced": 0 * wav}, 8000)
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (880, 660)
