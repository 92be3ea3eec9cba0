"""What was taken from a recording: over all of it, and in its pauses."""

from __future__ import annotations

import numpy as np
import pytest

from dvpd.quality.pauses import find_speech, measure_blind
from dvpd.runtime.taken import CAP_DB, OUTPUT_RANGE_DB, Energy, taken_db

RATE = 16000


def energy(wav, rate=RATE, cuts=()):
    found = Energy(rate, wav.shape[1])
    for part in np.split(wav, cuts):
        found.push(part)
    return found


def speech_and_noise(noise_gain):
    """[20 s, 1]: loud for three seconds, noise alone for three seconds, and so on."""
    rng = np.random.default_rng(0)
    spoken = (np.arange(20 * RATE) // (3 * RATE) % 2 == 0) * 0.1
    noise = 0.01 * rng.standard_normal(20 * RATE)
    speech = spoken * rng.standard_normal(20 * RATE)
    return (speech + noise_gain * noise).astype(np.float32)[:, None]


def test_pauses_are_lowered_as_the_evaluation_says():
    noisy, output = speech_and_noise(1.0), speech_and_noise(0.1)
    whole, pauses = taken_db(energy(noisy), energy(output))
    assert whole == pytest.approx(10 * np.log10(np.mean(noisy**2) / np.mean(output**2)), abs=1e-3)
    assert pauses == pytest.approx(20.0, abs=0.1)
    speech = find_speech(output[:, 0], OUTPUT_RANGE_DB)
    judged = measure_blind(noisy[:, 0], output[:, 0], speech)["pause_lowered"]
    assert pauses == pytest.approx(judged, abs=0.1)


def test_blocks_of_any_size_and_other_rates_give_the_same():
    noisy, output = speech_and_noise(1.0), speech_and_noise(0.1)
    expected = taken_db(energy(noisy), energy(output))
    cuts = (1, 2, 4000, 100_000, 100_001)
    assert taken_db(energy(noisy, cuts=cuts), energy(output, cuts=cuts[:2])) == pytest.approx(
        expected
    )
    stereo = [np.repeat(wav, 2, axis=1) for wav in (noisy, output)]
    assert taken_db(*map(energy, stereo)) == pytest.approx(expected)
    # as if it were twice as fast
    assert taken_db(energy(noisy, 32000), energy(output, 32000)) == pytest.approx(expected, abs=0.2)


def test_where_there_is_nothing_to_take():
    silent, loud = np.zeros((RATE, 1), np.float32), np.full((RATE, 1), 0.5, np.float32)
    assert taken_db(energy(silent), energy(silent)) == (None, None)
    assert taken_db(energy(loud), energy(loud)) == (0.0, None)  # no pause
    assert taken_db(energy(loud), energy(silent)) == (CAP_DB, CAP_DB)  # all is one
    assert taken_db(energy(loud), energy(2 * loud))[0] == pytest.approx(-6.02, abs=0.01)
    short = energy(loud[:100])  # less than half a second
    assert taken_db(short, short) == (0.0, None)
    huge = np.full((RATE, 1), 1e30, np.float32)  # its square is beyond float32
    assert taken_db(energy(huge), energy(loud))[0] == CAP_DB


def test_ten_hours_take_less_than_a_megabyte():
    found = Energy(50, 1)
    for _ in range(10):
        found.push(np.zeros((3600 * 50, 1), np.float32))
    kept = sum(len(values) * values.itemsize for values in (found.levels, found.peaks))
    assert (len(found.levels), kept) == (72_000, 576_000)
