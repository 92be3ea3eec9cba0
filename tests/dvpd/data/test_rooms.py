"""Rooms: direct path, decay, level, and the bank on disk."""

from __future__ import annotations

import os

import numpy as np
import pytest

from dvpd.data import rooms
from dvpd.data.degrade import rms
from dvpd.data.mix import make_rng
from dvpd.data.rooms import RoomRanges, bank_rooms, measure_t60
from dvpd.runtime.errors import InputError

# a Schroeder fit over 20 dB of one noisy decay
T60_REL = 0.05
needs_images = pytest.mark.skipif(
    not rooms.has_image_sources(), reason="pyroomacoustics is not installed"
)
SMALL = RoomRanges((3.0, 6.0), (2.3, 3.0), (0.2, 0.5), (0.5, 2.0))
DRY = RoomRanges((3.0, 6.0), (2.3, 3.0), (0.2, 0.25), (0.5, 2.0))  # fewer reflections to compute


def drr_db(room: rooms.Room, direct: int = 20) -> float:
    energy = room.response.astype(np.float64) ** 2
    inside = energy[max(room.peak - direct, 0) : room.peak + direct].sum()
    return 10 * np.log10(inside / (energy.sum() - inside))


def noise_decay(t60_s: float, seconds: float) -> np.ndarray:
    count = int(seconds * 16000)
    wav = np.random.default_rng(0).standard_normal(count)
    return wav * np.exp(-np.log(1000) * np.arange(count) / (t60_s * 16000))


@pytest.mark.parametrize("t60_s", [0.2, 0.9])
def test_t60_is_read_off_a_known_decay(t60_s):
    assert measure_t60(noise_decay(t60_s, 1.5)) == pytest.approx(t60_s, rel=T60_REL)
    with pytest.raises(InputError, match="no decay"):
        measure_t60(np.ones(1))


@pytest.mark.parametrize("t60_s", [0.3, 0.6, 0.9])
def test_statistical_room_decays_as_asked(t60_s):
    made = [rooms.statistical_room(make_rng(2, 0, i), t60_s, 0.0) for i in range(8)]
    assert all(room.response[room.peak] == 1.0 for room in made)
    # the duller part alone has this decay; the brighter one goes faster
    mean = np.mean([measure_t60(r.response[16:], -35.0) for r in made])
    assert mean == pytest.approx(t60_s, rel=0.15)


@pytest.mark.parametrize("level_db", [-6.0, 0.0, 12.0])
def test_direct_to_reverberant_ratio_is_reached(level_db):
    assert drr_db(rooms.statistical_room(make_rng(0, 0, 0), 0.5, level_db), 1) == pytest.approx(
        level_db, abs=0.01
    )
    assert drr_db(rooms.freeverb_room(0.5, level_db), 1) == pytest.approx(level_db, abs=0.01)


@pytest.mark.parametrize("t60_s", [0.2, 0.4, 0.8])
def test_freeverb_decays_as_asked(t60_s):
    room = rooms.freeverb_room(t60_s, 0.0, damping=0.0)
    # the all-passes, whose gain is fixed, lengthen a short decay a little
    assert measure_t60(room.response[16:]) == pytest.approx(t60_s, rel=0.15)
    damped = rooms.freeverb_room(t60_s, 0.0, damping=0.5)
    assert measure_t60(damped.response[16:]) < measure_t60(room.response[16:])
    assert np.isfinite(damped.response).all()


@needs_images
@pytest.mark.parametrize("t60_s", [0.2, 0.5, 0.9])
def test_image_room_decays_as_asked(t60_s):
    for i, size in enumerate(((4.0, 3.0, 2.4), (8.0, 6.0, 3.5))):
        room = rooms.image_room(make_rng(i, 0, 0), size, t60_s, (0.5, 3.0))
        reverberation = room.response[room.peak + 40 :]
        assert measure_t60(reverberation) == pytest.approx(t60_s, rel=T60_REL)
        assert room.response[room.peak] == pytest.approx(1.0)
        assert rooms.find_direct(room.response) == room.peak
        # nothing arrives before the direct path but the ringing of the fractional delays
        assert np.abs(room.response[: room.peak - 4]).max() < 0.05


@needs_images
def test_dead_room_with_a_near_source_stays_finite():
    """Its decay from -5 to -25 dB is the direct path alone: nothing to be corrected by."""
    for i in range(4):
        room = rooms.image_room(make_rng(i, 0, 0), (12.0, 11.5, 4.0), 0.17, (0.3, 0.4))
        assert np.isfinite(room.response).all()
        assert np.abs(room.response).max() == pytest.approx(1.0, abs=1e-3)
        assert drr_db(room) > 10


@needs_images
def test_far_is_more_reverberant_than_near():
    near, far = (
        np.mean(
            [drr_db(rooms.image_room(make_rng(i, 0, 0), (7, 6, 3), 0.5, (d, d))) for i in range(3)]
        )
        for d in (0.5, 2.5)
    )
    assert near > far + 6  # 14 dB in a free field


def test_first_strong_arrival_is_the_direct_path():
    response = np.zeros(4000)
    response[[200, 900]] = 0.5, -1.0  # a reflection stronger than the direct path
    room = rooms.as_room(response)
    assert room.peak == 40
    assert room.response[40] == pytest.approx(1.0)
    assert room.response[740] == pytest.approx(-2.0)
    response[50] = 0.2  # 14 dB below the strongest: noise of the measurement
    assert rooms.find_direct(response) == 200


def test_room_is_aligned_to_its_direct_path(lab, pools):
    room = rooms.as_room(pools[2].read(0))
    wav = lab.voice(2, 1)
    wet, target = rooms.reverberate(wav, room)
    np.testing.assert_array_equal(target, wav)
    assert lab.lag(wav, wet) == 0
    # direct path positive and of unit energy: what is left is the echo alone
    echo = wet - wav
    assert rms(echo[:590]) < 1e-3 * rms(wav)
    assert 20 * np.log10(rms(echo) / rms(wav)) == pytest.approx(-8.5, abs=0.3)


@pytest.mark.parametrize("kind", ["statistical", "freeverb", "image"])
def test_reverberant_speech_stays_in_place(lab, kind):
    if kind == "image":
        if not rooms.has_image_sources():
            pytest.skip("pyroomacoustics is not installed")
        room = rooms.image_room(make_rng(1, 0, 0), (6, 5, 3), 0.6, (1.5, 3.0))
    elif kind == "freeverb":
        room = rooms.freeverb_room(0.6, -3.0)
    else:
        room = rooms.statistical_room(make_rng(1, 0, 0), 0.6, -3.0)
    wav = lab.voice(2, 1)
    assert lab.lag(wav, rooms.reverberate(wav, room)[0]) == 0


def test_early_reflections_can_stay_in_the_target(lab, pools):
    room = rooms.as_room(pools[2].read(0))
    wet, target = rooms.reverberate(lab.voice(2, 1), room, early_ms=50.0)
    np.testing.assert_allclose(target, wet, atol=1e-5)


def test_silent_room_is_refused():
    with pytest.raises(InputError, match="silent"):
        rooms.as_room(np.zeros(100, np.float32))


@needs_images
def test_bank_is_built_once_and_goes_on_after_a_stop(tmp_path, monkeypatch):
    seen = []
    bank = bank_rooms(SMALL, 20, 3, tmp_path, lambda *n: seen.append(n), workers=1)
    assert seen == [(16, 20), (20, 20)]
    assert len(bank) == 20
    files = sorted(tmp_path.rglob("*.npz"))
    assert len(files) == 2
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(
        [files[0].parent.name, *(p.name for p in files)]
    )
    os.unlink(files[1])  # as if the first run had ended here
    assert rooms.count_built(SMALL, 3, tmp_path) == 16
    stamp = files[0].stat().st_mtime_ns
    again = bank_rooms(SMALL, 20, 3, tmp_path, workers=1)
    assert files[0].stat().st_mtime_ns == stamp
    assert rooms.count_built(SMALL, 3, tmp_path) == 32
    assert rooms.count_built(SMALL, 4, tmp_path) == 0
    for a, b in zip(bank, again, strict=True):
        np.testing.assert_array_equal(a.response, b.response)
        assert a.peak == b.peak
    monkeypatch.setattr(rooms, "_build_chunk", lambda *_: pytest.fail("built again"))
    assert len(bank_rooms(SMALL, 32, 3, tmp_path)) == 32  # a larger bank takes the smaller one's
    files[0].write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(InputError, match=r"00000.npz is damaged.*delete it"):
        bank_rooms(SMALL, 20, 3, tmp_path)


@needs_images
@pytest.mark.slow
def test_bank_does_not_depend_on_processes(tmp_path):
    alone = bank_rooms(DRY, 32, 1, tmp_path / "a", workers=1)
    shared = bank_rooms(DRY, 32, 1, tmp_path / "b", workers=2)
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(a.response, b.response)
    assert not np.array_equal(
        alone[0].response, bank_rooms(DRY, 1, 2, tmp_path / "c", workers=1)[0].response
    )


def test_without_pyroomacoustics_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyroomacoustics", None)
    with pytest.raises(InputError, match="pip install"):
        rooms.image_room(make_rng(0, 0, 0), (5, 4, 3), 0.4, (1.0, 2.0))
