"""Pairs and their order: determinism, levels, sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dvpd.data import mix
from dvpd.data.degrade import rms
from dvpd.data.loader import batches
from dvpd.data.mix import Mixer, make_rng
from dvpd.data.pool import Pool
from dvpd.data.rooms import Room
from dvpd.data_config import DataConfig
from dvpd.runtime.errors import InputError


def config(**changes) -> DataConfig:
    return DataConfig(**{"crop_samples": 16384, **changes})


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_has_its_slope(lab, exponent):
    wav = mix.coloured_noise(make_rng(0, 0, 0), lab.rate * 8, exponent)
    assert rms(wav) == pytest.approx(1.0, abs=1e-3)
    octave = lab.power_db(wav, 1000, 1100) - lab.power_db(wav, 2000, 2200)
    assert octave == pytest.approx(3.01 * exponent, abs=0.8)


def test_hum_sits_on_its_harmonics(lab):
    wav = mix.hum(make_rng(1, 0, 0), lab.rate * 2)
    assert rms(wav) == pytest.approx(1.0, abs=1e-3)
    assert lab.power_db(wav, 40, 1500) > lab.power_db(wav, 3000, 8000) + 40


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
    plain = config(universal_p=0.0, clean_p=0.0, snr_db=(5.0, 5.0), speech_eq_p=0.0)
    for index in range(5):
        noisy, clean = Mixer(plain, *pools).pair(0, 0, index)
        reached = 20 * np.log10(rms(clean) / rms(noisy - clean))
        assert reached == pytest.approx(5.0, abs=0.01)


def test_level_stays_in_its_range(pools):
    mixer = Mixer(config(level_p=1.0, level_db=(-30.0, -10.0)), *pools)
    peaks = [20 * np.log10(np.abs(mixer.pair(0, 0, i)[0]).max()) for i in range(40)]
    assert min(peaks) >= -30.01
    assert max(peaks) <= -9.99


def test_speech_may_go_on_at_another_level_and_so_does_its_target(pools):
    plain = {"universal_p": 0.0, "clean_p": 0.0, "snr_db": (60.0, 60.0), "level_p": 0.0}
    plain |= {"speech_eq_p": 0.0, "speech_speed_p": 0.0}
    ups, downs, untouched = 0, 0, 0
    for index in range(60):
        # the same generator up to the change: the same speech
        draws = [config(**plain, speech_change_p=1.0, speech_change_db=(d, d)) for d in (0, -20)]
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
