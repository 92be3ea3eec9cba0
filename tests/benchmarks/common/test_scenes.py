"""Scenes say what was done to their parts: nothing by the input itself, a gain by that gain."""

from __future__ import annotations

import numpy as np
import pytest

from dvpd.benchmarks import probes
from dvpd.benchmarks.common import recordings, scenes
from dvpd.benchmarks.common.recordings import RATE_HZ
from dvpd.benchmarks.common.scenes import CAP_DB, level_db


@pytest.fixture(scope="module")
def by_name():
    noisy, clean = recordings.read_clip(3)
    music = probes.chords(np.random.default_rng(0), 2.0)
    return {s.name: s for s in scenes.make_scenes(probes.read_speech(), [noisy - clean], music)}


def test_the_input_itself_and_half_of_it(by_name):
    for scene in by_name.values():
        assert scene.wav.dtype == np.float32
        assert np.abs(scene.wav).max() <= 1.0
        same, half = scene.figures(scene.wav), scene.figures(np.float32(0.5) * scene.wav)
        for name, value in same.items():
            if "against" in name or "elsewhere" in name or "jump" in name:
                continue
            sign = -1.0 if "lowered" in name or "worst" in name else 1.0
            assert half[name] - value == pytest.approx(-6.02 * sign, abs=0.02), (scene.name, name)
            assert abs(value) < (2.5 if scene.name.startswith("far") else 0.05)


@pytest.mark.parametrize("down", [10, 20, 30])
def test_the_quieter_talker_is_measured_alone(by_name, down):
    scene = by_name[f"a talker {down} dB below the other"]
    loud = np.abs(scene.wav) > 10 ** (-(down + 15) / 20)
    out = np.where(loud, scene.wav, 0)
    assert scene.figures(out)["louder talker, dB"] > scene.figures(out)["quieter talker, dB"] + 3
    blocks = scene.wav[: len(scene.wav) // 1600 * 1600].reshape(-1, 1600)
    levels = np.array([level_db(block) for block in blocks])
    turns = [levels[i * 30 + 2 : i * 30 + 22] for i in range(4)]  # 2 s each, 1 s between
    loudness = [10 * np.log10(np.mean(10 ** (turn / 10))) for turn in turns]
    for loud_turn, quiet_turn in ((0, 1), (2, 3)):
        assert loudness[loud_turn] - loudness[quiet_turn] == pytest.approx(down, abs=1.0)


def test_a_deleted_talker_is_capped(by_name):
    figures = by_name["a talker 30 dB below the other"].figures(np.zeros(200000, np.float32))
    assert figures == {"louder talker, dB": -CAP_DB, "quieter talker, dB": -CAP_DB}


def test_the_quieter_talker_alone_is_the_same_one_in_the_same_noise(by_name):
    both, alone = (
        by_name[f"a talker 20 dB below the other{end}"] for end in ("", ", without the other")
    )
    turns = [slice(i * 3 * RATE_HZ + 3200, (i * 3 + 2) * RATE_HZ + 3200) for i in range(4)]
    for turn in turns[1::2]:
        np.testing.assert_array_equal(both.wav[turn], alone.wav[turn])
    noise = level_db(alone.wav[turns[0]])
    assert level_db(alone.wav[turns[1]]) - noise == pytest.approx(scenes.QUIET_SNR_DB, abs=0.7)
    out = alone.wav.copy()
    out[turns[1]] *= 0.1
    assert alone.figures(out) == {"quieter talker, dB": pytest.approx(-10.0, abs=0.01)}


def test_far_speech_is_mostly_reverberation():
    whole, early = scenes.room(np.random.default_rng(0))
    assert np.sum(whole**2) == pytest.approx(1.0)
    direct = 10 * np.log10(whole[0] ** 2 / np.sum(whole[1:] ** 2))
    assert direct == pytest.approx(scenes.ROOM_DIRECT_DB, abs=0.01)
    np.testing.assert_array_equal(early[:800], whole[:800])
    assert not early[800:].any()


def test_a_low_pass_dulls_far_speech(by_name):
    scene = by_name["far speech in a live room"]
    spectrum = np.fft.rfft(scene.wav)
    spectrum[np.fft.rfftfreq(len(scene.wav), 1 / RATE_HZ) > 4000] *= 0.1
    dull = scene.figures(np.fft.irfft(spectrum, len(scene.wav)).astype(np.float32))
    plain = scene.figures(scene.wav)
    assert dull["speech 4-8 kHz, dB"] < plain["speech 4-8 kHz, dB"] - 15
    assert dull["speech 0-1 kHz, dB"] == pytest.approx(plain["speech 0-1 kHz, dB"], abs=0.1)


def test_hiss_above_the_telephone_band_is_heard(by_name):
    scene = by_name["telephone band"]
    name = "hiss above the band against speech, dB"
    assert scene.figures(scene.wav)[name] < -80
    noise = np.random.default_rng(0).standard_normal(len(scene.wav))
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(len(noise), 1 / RATE_HZ) < 4000] = 0
    hiss = scenes.at_level(np.fft.irfft(spectrum, len(noise)), level_db(scene.wav) - 40)
    assert scene.figures(scene.wav + hiss)[name] == pytest.approx(-40, abs=0.5)


def test_claps_and_barks_are_told_apart(by_name):
    scene = by_name["claps and barks between utterances"]
    out = scene.wav.copy()
    out[3 * RATE_HZ - 3200 : 3 * RATE_HZ] *= 0.1  # the first clap: 0.5 s after 0.3 + 2 s
    figures = scene.figures(out)
    assert figures["claps lowered by, dB"] > 8.0
    assert figures["barks lowered by, dB"] == pytest.approx(0.0, abs=1e-6)
    speech = scene.wav[int(0.3 * RATE_HZ) : int(2.3 * RATE_HZ)]
    bark = scene.wav[int(3.55 * RATE_HZ) : int(3.8 * RATE_HZ)]
    assert level_db(bark) - level_db(speech) == pytest.approx(scenes.EVENT_DB, abs=0.5)


def test_what_a_click_leaves_behind_is_heard(by_name):
    scene = by_name["silence with one click"]
    out = scene.wav.copy()
    out[:1600] = 0.01
    figures = scene.figures(out)
    assert figures["click's peak, dB"] == pytest.approx(0.0, abs=0.01)
    assert figures["level elsewhere, dB of full scale"] > -60


def test_a_faded_start_is_heard(by_name):
    scene = by_name["speech from the first sample to the last"]
    out = scene.wav.copy()
    out[:1600] *= 0.1
    figures = scene.figures(out)
    assert figures["first 0.1 s, dB"] == pytest.approx(-20.0, abs=0.01)
    assert figures["last 0.1 s, dB"] == pytest.approx(0.0, abs=1e-6)
