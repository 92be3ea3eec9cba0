"""Pairs and their order: determinism, levels, sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dvpd.config.data import NOISE_KINDS, DataConfig
from dvpd.data.degrade import rms
from dvpd.data.loader import batches
from dvpd.data.mix import Mixer, add_pauses, make_rng, quiet_place
from dvpd.data.pool import Pool
from dvpd.data.rooms import Room
from dvpd.runtime.errors import InputError

# What tests of one thing leave out.
OFF = dict.fromkeys(
    "silent_p silent_full_p pause_p turns_p overlap_p far_p event_p telephone_p noise_change_p".split(),
    0.0,
)


def config(**changes) -> DataConfig:
    return DataConfig(**{"crop_samples": 16384, **OFF, **changes})


def plain(**changes) -> DataConfig:
    """Speech as it is and noise at 5 dB, nothing else."""
    quiet = {"universal_p": 0.0, "clean_p": 0.0, "snr_db": (5.0, 5.0), "speech_eq_p": 0.0}
    quiet |= {"speech_change_p": 0.0, "speech_speed_p": 0.0, "level_p": 0.0}
    return config(**{**quiet, **changes})


def test_pair_is_a_function_of_its_numbers(pools):
    mixer = Mixer(config(universal_p=1.0), *pools)
    first = mixer.pair(3, 1, 7)
    for again in (mixer.pair(3, 1, 7), Mixer(config(universal_p=1.0), *pools).pair(3, 1, 7)):
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
    for other in ((4, 1, 7), (3, 2, 7), (3, 1, 8)):
        assert not np.array_equal(first[0], mixer.pair(*other)[0])


def test_pairs_are_finite_scaled_and_alive(pools):
    mixer = Mixer(config(level_p=0.0, universal_p=0.5), *pools)
    for index in range(60):
        noisy, clean = mixer.pair(0, 0, index)
        assert noisy.shape == clean.shape == (16384,)
        assert noisy.dtype == clean.dtype == np.float32
        assert np.isfinite(noisy).all()
        assert np.isfinite(clean).all()
        assert np.abs(noisy).max() == pytest.approx(1.0, abs=1e-5)
        assert rms(clean) > 1e-3


def test_pair_reaches_the_snr(pools):
    for index in range(5):
        noisy, clean = Mixer(plain(), *pools).pair(0, 0, index)
        reached = 20 * np.log10(rms(clean) / rms(noisy - clean))
        assert reached == pytest.approx(5.0, abs=0.01)


def test_level_stays_in_its_range(pools):
    mixer = Mixer(config(level_p=1.0, level_db=(-30.0, -10.0)), *pools)
    peaks = [20 * np.log10(np.abs(mixer.pair(0, 0, i)[0]).max()) for i in range(40)]
    assert min(peaks) >= -30.01
    assert max(peaks) <= -9.99


def test_speech_may_go_on_at_another_level_and_so_does_its_target(pools):
    ups, downs, untouched = 0, 0, 0
    for index in range(60):
        # the same generator up to the change: the same speech
        draws = [
            plain(snr_db=(60.0, 60.0), speech_change_p=1.0, speech_change_db=(d, d))
            for d in (0, -20)
        ]
        (_, flat), (noisy, clean) = (Mixer(c, *pools).pair(0, 0, index) for c in draws)
        assert rms(noisy - clean) < 0.01 * rms(clean)
        loud = np.abs(flat) > 1e-2
        level = 20 * np.log10(np.abs(clean[loud]) / np.abs(flat[loud]))
        level -= level.max()  # pairs are scaled to their peak
        untouched += level.min() > -1.0
        assert level.min() > -20.5
        ups += level[0] < -19.0 and level[-1] > -1.0
        downs += level[0] > -1.0 and level[-1] < -19.0
    assert ups > 5
    assert downs > 5
    assert untouched < 20


def test_works_without_noise_and_rooms(pools):
    noisy, clean = Mixer(config(universal_p=1.0), pools[0]).pair(0, 0, 0)
    assert np.isfinite(noisy).all()
    assert not np.array_equal(noisy, clean)


def test_source_weights_decide(pools):
    rng = make_rng(0, 0, 0)
    mixer = Mixer(config(speech_weights={"short": 0.0}), *pools)
    np.testing.assert_allclose(mixer._speech_p, [1.0, 0.0])
    assert mixer._speech(rng).shape == (16384,)
    with pytest.raises(InputError, match="weight 0"):
        Mixer(config(speech_weights={"short": 0.0, "long": 0.0}), *pools)


@pytest.mark.parametrize("workers", [1, 2])
def test_order_does_not_depend_on_workers(pools, workers):
    mixer = Mixer(config(), *pools)
    options = {"seed": 1, "batch_size": 3, "epoch_crops": 4}
    alone = batches(mixer, **options, workers=0)
    shared = batches(mixer, **options, workers=workers)
    for _ in range(4):
        for mine, theirs in zip(next(alone), next(shared), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_batches_start_anywhere(pools):
    mixer = Mixer(config(), *pools)
    options = {"seed": 1, "batch_size": 2, "epoch_crops": 5, "workers": 0}
    stream = batches(mixer, **options)
    third = [next(stream) for _ in range(3)][-1]
    later = next(batches(mixer, **options, first_crop=4))
    assert torch.equal(third[0], later[0])


def test_silent_recordings_make_finite_pairs(lab):
    speech = Pool.from_arrays([("a", np.zeros(40000)), ("b", lab.voice(3, 1))])
    noise = Pool.from_arrays([("n", np.zeros(40000))])
    mixer = Mixer(config(universal_p=0.7), speech, noise)
    alive = 0
    for index in range(60):
        noisy, clean = mixer.pair(0, 0, index)
        assert np.isfinite(noisy).all()
        assert np.isfinite(clean).all()
        alive += bool(clean.any())
    assert alive > 50  # half of the speech is silent, four draws are made
    silent = Mixer(config(universal_p=0.7), Pool.from_arrays([("a", np.zeros(40000))]), noise)
    for index in range(20):
        assert np.isfinite(silent.pair(0, 0, index)[0]).all()


def test_bank_rooms_are_used(pools):
    click = Room(np.array([1.0, 0.0, 0.5], np.float32), 0)
    c = config(universal_p=1.0, image_rir_p=0.7, measured_rir_p=0.3, freeverb_p=0.0)
    mixer = Mixer(c, *pools, bank=[click])
    kinds = [mixer.draw_room(make_rng(0, 0, i))[1] for i in range(400)]
    assert kinds.count("image") / 400 == pytest.approx(0.7, abs=0.1)
    assert kinds.count("measured") / 400 == pytest.approx(0.3, abs=0.1)


def test_a_silent_crop_is_noise_and_its_target_silence(pools):
    mixer = Mixer(config(silent_p=1.0, silent_db=(-50.0, -20.0), event_p=0.3), *pools)
    for index in range(20):
        noisy, clean = mixer.pair(0, 0, index)
        assert not clean.any()
        assert -50.01 <= 20 * np.log10(np.abs(noisy).max()) <= -19.99
    full = Mixer(config(silent_p=1.0, silent_db=(-50.0, -20.0), silent_full_p=0.5), *pools)
    peaks = np.array([np.abs(full.pair(0, 0, index)[0]).max() for index in range(60)])
    assert np.mean(peaks > 0.999) == pytest.approx(0.5, abs=0.2)  # as the runtime gives noise alone
    assert (peaks[peaks < 0.999] < 0.11).all()
    some = Mixer(config(silent_p=0.25), *pools)
    share = np.mean([not some.pair(0, 0, i)[1].any() for i in range(200)])
    assert share == pytest.approx(0.25, abs=0.1)


def test_pauses_silence_a_stretch_and_leave_the_noise_as_it_is(pools):
    silent, begins, ends, inside = [], 0, 0, 0
    steady = {"impulsive_p": 0.0, "keyboard_p": 0.0, "coloured_p": 0.24}  # no silence in them
    for index in range(60):
        noisy, clean = Mixer(plain(pause_p=1.0, **steady), *pools).pair(0, 0, index)
        zero = clean.reshape(-1, 128).any(1) == 0  # blocks of 8 ms
        silent.append(zero.mean())
        begins, ends = begins + zero[0], ends + zero[-1]
        inside += zero[5:-5].any() and not zero[0] and not zero[-1]
        assert clean.any()
        noise = noisy - clean
        if zero.mean() > 0.3:
            gone = np.repeat(zero, 128)
            assert rms(noise[gone]) == pytest.approx(rms(noise), rel=0.5)
    assert 0.2 < np.mean(silent) < 0.7
    assert begins > 10
    assert ends > 10
    assert inside > 3


def test_longer_speech_has_more_pauses(lab):
    wav = np.ones(16 * lab.rate, np.float32)
    starts = []
    for index in range(20):
        paused = add_pauses(make_rng(0, 0, index), wav)
        starts.append(int(np.sum(np.diff((paused == 0).astype(int)) == 1)))
        assert np.abs(np.diff(paused)).max() < 0.01  # ramps, no clicks
    assert 2 <= np.mean(starts) <= 4.5


def test_pauses_are_put_between_words(lab):
    wav = np.ones(lab.rate, np.float32)
    wav[5000:6000] = 0.0
    assert 5000 <= quiet_place(wav, 7000, 4000) <= 6000
    assert quiet_place(wav, 100, 10) == 100  # no block that near


def test_two_talkers_take_turns_at_their_levels(pools):
    falls = 0
    for index in range(20):
        settings = {"snr_db": (60.0, 60.0), "turns_p": 1.0, "turns_db": (-30.0, -30.0)}
        noisy, clean = Mixer(plain(**settings), *pools).pair(0, 0, index)
        assert rms(noisy - clean) < 0.01 * rms(clean)  # both are in the target
        first, last = rms(clean[:3000]), rms(clean[-3000:])
        falls += 22.0 < abs(20 * np.log10(first / last)) < 38.0
    assert falls >= 16  # a syllable's pause may fall on an end


def test_two_talkers_at_once_are_both_in_the_target(pools):
    settings = {"snr_db": (60.0, 60.0), "overlap_p": 1.0, "overlap_db": (-6.0, -6.0)}
    for index in range(5):
        mixer = Mixer(plain(**settings), *pools)
        noisy, both = mixer.pair(0, 0, index)
        assert rms(noisy - both) < 0.01 * rms(both)
        one = mixer._speech(make_rng(0, 0, index))
        ratio = float(np.dot(both, one) / np.dot(one, one))
        other = both - ratio * one
        assert 20 * np.log10(rms(other) / rms(ratio * one)) == pytest.approx(-6.0, abs=1.0)


def test_a_far_talker_keeps_the_early_sound(pools):
    settings = {"snr_db": (60.0, 60.0), "far_p": 1.0, "far_drr_db": (-6.0, -6.0)}
    for index in range(5):
        noisy, clean = Mixer(plain(**settings, far_early_ms=0.0), *pools).pair(0, 0, index)
        # dry target: what is not direct has four times its energy
        ratio_db = 20 * np.log10(rms(noisy - clean) / rms(clean))
        assert ratio_db == pytest.approx(6.0, abs=1.5)
        early_noisy, early = Mixer(plain(**settings, far_early_ms=80.0), *pools).pair(0, 0, index)
        np.testing.assert_allclose(early_noisy, noisy, atol=1e-4)
        assert rms(early) > rms(clean)
        assert rms(early_noisy - early) < rms(noisy - clean)


def test_events_are_as_loud_as_asked(pools):
    for index in range(5):
        settings = {"snr_db": (60.0, 60.0), "event_db": (15.0, 15.0)}
        noisy, clean = Mixer(plain(event_p=1.0, **settings), *pools).pair(0, 0, index)
        ratio = np.abs(noisy - clean).max() / np.abs(clean).max()
        assert 20 * np.log10(ratio) == pytest.approx(15.0, abs=0.3)


def test_a_telephone_limits_both_sides(lab, pools):
    mixer = Mixer(plain(telephone_p=1.0, telephone_hz=(8000,)), *pools)
    for index in range(6):
        noisy, clean = mixer.pair(0, 0, index)
        for wav, floor_db in ((clean, 50.0), (noisy, 20.0)):  # G.711 rounds the noisy side
            assert lab.power_db(wav, 500, 3500) > lab.power_db(wav, 4500, 7500) + floor_db


def test_noise_begins_ends_or_changes(pools):
    loud_first, loud_last = 0, 0
    for index in range(40):
        wav = Mixer(config(noise_change_p=1.0, hum_p=0.0), *pools).draw_noise(
            make_rng(0, 0, index), 32000
        )
        assert np.isfinite(wav).all()
        first, last = rms(wav[:2000]), rms(wav[-2000:])
        loud_first += first > 5 * last
        loud_last += last > 5 * first
    assert loud_first > 3
    assert loud_last > 3


@pytest.mark.parametrize(
    ("key", "make"),
    [(f"{name}_p", name) for name in ("wind", "keyboard", "music", "impulsive")],
)
def test_each_made_noise_comes_by_its_share(pools, monkeypatch, key, make):
    shares = dict.fromkeys(NOISE_KINDS, 0.0) | {key: 0.3, "coloured_p": 0.7}
    made = []
    monkeypatch.setattr(
        f"dvpd.data.noises.{make}", lambda rng, n: made.append(1) or np.ones(n, np.float32)
    )
    mixer = Mixer(config(**shares, noise_eq_p=0.0), *pools)
    for index in range(300):
        mixer.draw_noise(make_rng(0, 0, index), 512)
    assert len(made) / 300 == pytest.approx(0.3, abs=0.09)


def test_hum_comes_on_top_by_its_share(pools, monkeypatch):
    monkeypatch.setattr("dvpd.data.noises.hum", lambda rng, n: made.append(1) or np.ones(n))
    for share in (0.0, 0.3):
        made = []
        mixer = Mixer(config(hum_p=share, noise_eq_p=0.0), *pools)
        wavs = [mixer.draw_noise(make_rng(0, 0, index), 4096) for index in range(200)]
        assert len(made) / 200 == pytest.approx(share, abs=0.1)
        # it is added: the noise itself is still there
        offset = [abs(float(np.mean(wav))) > 0.2 * rms(wav) for wav in wavs]
        assert np.mean(offset) == pytest.approx(share, abs=0.15)


def test_several_noises_come_at_once(pools, monkeypatch):
    shares = dict.fromkeys(NOISE_KINDS, 0.0) | {"recorded_p": 1.0, "hum_p": 0.0, "noise_eq_p": 0.0}
    for share in (0.0, 0.5, 1.0):
        mixer, drawn = Mixer(config(**shares, second_noise_p=share), *pools), []
        recorded = mixer._recorded
        monkeypatch.setattr(
            mixer, "_recorded", lambda *a, r=recorded, d=drawn: d.append(1) or r(*a)
        )
        for index in range(100):
            mixer.draw_noise(make_rng(0, 0, index), 2048)
        assert len(drawn) / 100 == pytest.approx(1.0 + share, abs=0.12)


def test_babble_from_afar_is_smeared(pools):
    shares = dict.fromkeys(NOISE_KINDS, 0.0) | {"babble_p": 1.0, "noise_eq_p": 0.0, "hum_p": 0.0}
    near, far = (
        Mixer(config(**shares, babble_room_p=p), *pools).draw_noise(make_rng(0, 0, 3), 32000)
        for p in (0.0, 1.0)
    )
    assert rms(near - far) > 0.3 * rms(near)


def test_everything_at_once_is_finite_and_a_function_of_its_numbers(pools):
    every = {name: 0.5 for name in (*OFF, "babble_room_p", "limit_target_p", "universal_p")}
    mixer = Mixer(config(**every), *pools)
    for index in range(60):
        noisy, clean = mixer.pair(5, 0, index)
        again = mixer.pair(5, 0, index)
        np.testing.assert_array_equal(noisy, again[0])
        np.testing.assert_array_equal(clean, again[1])
        assert noisy.dtype == clean.dtype == np.float32
        assert np.isfinite(noisy).all()
        assert np.isfinite(clean).all()
        assert np.abs(noisy).max() <= 1.0 + 1e-5
