"""Noise made by formula has the spectrum and the course in time of what it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from dvpd.data import noises
from dvpd.data.degrade import rms
from dvpd.data.mix import make_rng


def levels_db(wav, block=160):
    blocks = wav[: len(wav) // block * block].reshape(-1, block)
    return 10 * np.log10((blocks**2).mean(1) + 1e-12)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_has_its_slope(lab, exponent):
    wav = noises.coloured_noise(make_rng(0, 0, 0), lab.rate * 8, exponent)
    assert rms(wav) == pytest.approx(1.0, abs=1e-3)
    octave = lab.power_db(wav, 1000, 1100) - lab.power_db(wav, 2000, 2200)
    assert octave == pytest.approx(3.01 * exponent, abs=0.8)


def test_hum_sits_on_its_harmonics(lab):
    wav = noises.hum(make_rng(1, 0, 0), lab.rate * 2)
    assert rms(wav) == pytest.approx(1.0, abs=1e-3)
    assert lab.power_db(wav, 40, 1500) > lab.power_db(wav, 3000, 8000) + 40


IMPULSIVE = [noises.ticks, noises.crackle, noises.cries]


@pytest.mark.parametrize(
    "make", [noises.wind, noises.keyboard, noises.music, noises.hum, *IMPULSIVE]
)
@pytest.mark.parametrize("count", [1, 700, 32640])
def test_made_noise_has_its_length_and_level(make, count):
    for index in range(3):
        wav = make(make_rng(0, 0, index), count)
        assert wav.shape == (count,)
        assert wav.dtype == np.float32
        assert np.isfinite(wav).all()
        if count > 10000:
            assert rms(wav) == pytest.approx(1.0, abs=1e-3)


def test_wind_is_low_and_comes_in_gusts(lab):
    for index in range(3):
        wav = noises.wind(make_rng(1, 0, index), lab.rate * 4)
        assert lab.power_db(wav, 20, 200) > lab.power_db(wav, 1000, 4000) + 25
        low, high = np.percentile(levels_db(wav, 3200), [10, 90])
        assert high - low > 4.0


def test_typing_is_short_clicks_with_silence_between(lab):
    for index in range(3):
        wav = noises.keyboard(make_rng(1, 0, index), lab.rate * 4)
        level = levels_db(wav)
        assert np.mean(level > level.max() - 30) < 0.4
        assert lab.power_db(wav, 800, 6000) > lab.power_db(wav, 20, 200)


@pytest.mark.parametrize("make", IMPULSIVE)
def test_short_loud_sounds_have_little_between_them(lab, make):
    for index in range(6):
        wav = make(make_rng(1, 0, index), lab.rate * 4)
        assert np.mean(wav**4) > 6.0  # of an RMS of 1: Gaussian noise has 3
        level = levels_db(wav)
        assert level.max() > np.median(level) + 6.0


def test_ticks_come_at_even_times():
    for index in range(6):
        level = levels_db(noises.ticks(make_rng(5, 0, index), 64000), 80)
        loud = level > level.max() - 15
        starts = np.flatnonzero(np.diff(loud.astype(int)) == 1)
        starts = starts[np.diff(starts, prepend=-99) > 15]
        gaps = np.diff(starts)
        assert len(gaps) >= 2
        assert np.std(gaps) < 0.15 * np.mean(gaps)


def test_cries_are_voiced_above_a_talkers_pitch(lab):
    for index in range(6):
        wav = noises.cries(make_rng(6, 0, index), lab.rate * 4)
        assert lab.power_db(wav, 280, 8000) > lab.power_db(wav, 20, 150) + 3


def test_each_short_sound_comes():
    sparse = [noises.impulsive(make_rng(7, 0, index), 16000) for index in range(30)]
    # the crackle alone has something between its clicks
    filled = np.mean([np.mean(wav == 0) < 0.01 for wav in sparse])
    assert 0.1 < filled < 0.6


def test_music_is_made_of_tones(lab):
    flatness = []
    for index in range(6):
        wav = noises.music(make_rng(1, 0, index), lab.rate * 3)
        spec = np.abs(np.fft.rfft(wav * np.hanning(len(wav)))[300:9000]) ** 2
        flatness.append(np.exp(np.mean(np.log(spec + 1e-9))) / spec.mean())
    assert np.median(flatness) < 0.1  # white noise has 0.56


def test_a_burst_begins_at_once_and_dies_away():
    for index in range(5):
        wav = noises.burst(make_rng(2, 0, index), 0.02)
        assert np.abs(wav).max() == pytest.approx(1.0, abs=1e-5)
        half = len(wav) // 2
        assert rms(wav[half:]) < 0.2 * rms(wav[:half])


def test_an_event_is_the_loudest_part_of_a_recording():
    recording = np.full(16000, 0.01, np.float32)
    recording[8000:8200] = 0.5
    for index in range(5):
        wav = noises.piece(make_rng(3, 0, index), recording)
        assert 800 <= len(wav) <= 6400
        assert np.abs(wav).max() == pytest.approx(1.0, abs=1e-5)
    assert len(noises.piece(make_rng(3, 0, 0), recording[:7])) == 7


def test_events_are_few_and_sudden():
    for recordings in ([], [np.random.default_rng(0).standard_normal(8000).astype(np.float32)]):
        for index in range(10):
            wav = noises.events(make_rng(4, 0, index), 64000, recordings)
            assert np.abs(wav).max() == pytest.approx(1.0, abs=1e-5)
            assert np.mean(wav == 0) > 0.5
