"""Measures of pauses and levels on signals whose figures follow from how they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from dvpd.quality.pauses import (
    BLIND_MEASURES,
    LEVEL_MEASURES,
    band_edge,
    block_levels,
    find_speech,
    measure_blind,
    measure_levels,
    over_utterances,
    seam_steps,
)
from dvpd.runtime.errors import InputError
from dvpd.runtime.taken import CAP_DB

RATE = 16000
SPEECH = ((RATE, 3 * RATE), (9 * RATE, 11 * RATE))
LENGTH = 13 * RATE
PAUSE = ("pause_lowered", "pause_worst", "pause_loudest", "pause_jump")
SET = Path(__file__).resolve().parents[4] / "shared" / "data" / "dev" / "pauses"


def db(value):
    return np.float32(10.0 ** (value / 20.0))


@pytest.fixture(scope="module")
def parts():
    """Clean "speech" (white noise at -20 dB) at ``SPEECH``, and steady noise at -40 dB."""
    rng = np.random.default_rng(0)
    clean = np.zeros(LENGTH, np.float32)
    for start, end in SPEECH:
        clean[start:end] = 0.1 * rng.standard_normal(end - start)
    return clean, (0.01 * rng.standard_normal(LENGTH)).astype(np.float32)


@pytest.mark.parametrize("known", [True, False], ids=["said", "found"])
def test_the_input_itself_changes_nothing(parts, known):
    clean, noise = parts
    noisy = clean + noise
    figures = measure_levels(noisy, clean, noisy, SPEECH if known else None)
    assert tuple(figures) == LEVEL_MEASURES
    for name in ("pause_lowered", "pause_worst", "pause_loudest", "words_lost"):
        assert figures[name] == 0.0
    assert figures["pause_jump"] < 0.5  # steady noise
    for name in ("speech_level", "speech_0_1", "speech_1_2", "speech_2_4", "speech_4_8"):
        assert figures[name] == pytest.approx(0.04, abs=0.1)  # noise 20 dB below the speech
    assert np.isnan(figures["hiss"])  # speech of the whole band


def test_gains_of_noise_and_speech_are_told_apart(parts):
    clean, noise = parts
    figures = measure_levels(clean + noise, clean, db(-6) * clean + db(-23) * noise, SPEECH)
    for name in ("pause_lowered", "pause_worst", "pause_loudest"):
        assert figures[name] == pytest.approx(23.0, abs=0.01)
    for name in ("speech_level", "speech_0_1", "speech_4_8"):
        assert figures[name] == pytest.approx(-6.0, abs=0.05)
    assert figures["words_lost"] == 0.0


def test_noise_that_comes_back_is_seen_by_all_but_the_speech(parts):
    clean, noise = parts
    gate = np.where(np.arange(LENGTH) < 7 * RATE, db(-50), db(-6)) * np.float32(1)
    figures = measure_levels(clean + noise, clean, clean + gate * noise, SPEECH)
    # back in 1.5 s before the second utterance and 1.5 s after it, 50 dB down in 0.5 + 3.5 s
    share = 3.0 / 7.0
    expected = -10 * np.log10(share * 10**-0.6 + (1 - share) * 10**-5.0)
    assert figures["pause_lowered"] == pytest.approx(expected, abs=0.1)
    assert figures["pause_worst"] == pytest.approx(6.0, abs=0.01)
    assert figures["pause_loudest"] == pytest.approx(6.0, abs=0.5)
    # -46 against -90 dB, of which what is 60 dB below the speech is not heard
    assert figures["pause_jump"] == pytest.approx(-46.0 - (-20.0 - CAP_DB), abs=1.0)
    assert figures["words_lost"] == 0.0
    assert abs(figures["speech_level"]) < 0.1


def test_a_lost_utterance_counts_by_its_share(parts):
    clean, noise = parts
    heard = clean.copy()
    heard[SPEECH[1][0] : SPEECH[1][0] + RATE] *= db(-12)
    figures = measure_levels(clean + noise, clean, heard, SPEECH)
    assert figures["words_lost"] == pytest.approx(25.0)
    heard[SPEECH[1][0] : SPEECH[1][0] + RATE] *= db(3)  # 9 dB are not lost
    assert measure_levels(clean + noise, clean, heard, SPEECH)["words_lost"] == 0.0


def test_a_dulled_voice_is_seen_in_its_band(parts):
    clean, noise = parts
    spectrum = np.fft.rfft(clean)
    spectrum[np.fft.rfftfreq(LENGTH, 1 / RATE) > 4000] *= 0.1
    dull = np.fft.irfft(spectrum, LENGTH).astype(np.float32)
    figures = measure_levels(clean + noise, clean, dull, SPEECH)
    assert figures["speech_4_8"] == pytest.approx(-20.0, abs=1.5)  # windows leak at the edge
    assert figures["speech_2_4"] == pytest.approx(0.0, abs=0.1)


def test_what_is_removed_altogether_is_capped_and_finite(parts):
    clean, noise = parts
    figures = measure_levels(clean + noise, clean, np.zeros_like(clean), SPEECH)
    assert [figures[name] for name in PAUSE] == [CAP_DB, CAP_DB, CAP_DB, 0.0]
    assert figures["words_lost"] == 100.0
    assert figures["speech_level"] == figures["speech_0_1"] == -CAP_DB


def test_speech_without_a_pause_has_no_figure_of_pauses(parts):
    _, noise = parts
    figures = measure_levels(noise, noise, noise, ((0, LENGTH),))
    assert all(np.isnan(figures[name]) for name in PAUSE)
    assert figures["speech_level"] == 0.0
    short = noise[:200]
    assert all(np.isnan(measure_levels(short, short, short)[name]) for name in PAUSE)


@pytest.mark.parametrize("speech", [None, ()])
def test_noise_alone_has_no_figure_of_speech(parts, speech):
    _, noise = parts
    figures = measure_levels(noise, np.zeros_like(noise), db(-10) * noise, speech)
    assert figures["pause_lowered"] == pytest.approx(10.0, abs=1e-3)
    assert figures["pause_worst"] == pytest.approx(10.0, abs=1e-3)
    assert all(np.isnan(figures[name]) for name in LEVEL_MEASURES if name not in PAUSE)


def test_digital_silence_is_nothing_to_lower(parts):
    clean, _ = parts
    figures = measure_levels(clean, clean, clean, SPEECH)
    assert all(np.isnan(figures[name]) for name in PAUSE)
    assert figures["words_lost"] == 0.0
    nothing = np.zeros(LENGTH, np.float32)
    assert all(np.isnan(value) for value in measure_levels(nothing, nothing, nothing).values())
    assert find_speech(nothing) == ()


def test_speech_is_found_where_it_is(parts):
    clean, _ = parts
    found = find_speech(clean)
    assert len(found) == 2
    for (a, b), (c, d) in zip(found, SPEECH, strict=True):
        assert abs(a - c) <= 0.1 * RATE
        assert abs(b - d) <= 0.1 * RATE
    clean = clean.copy()
    clean[5 * RATE : 5 * RATE + 320] = 0.1  # a click is no word
    assert find_speech(clean) == found


def test_speech_that_the_recording_does_not_have_is_refused(parts):
    clean, noise = parts
    for speech in (((0, LENGTH + 1),), ((5, 5),), ((100, 200), (150, 300))):
        with pytest.raises(InputError, match="expected intervals in order"):
            measure_levels(noise, clean, noise, speech)
    with pytest.raises(InputError, match="expected equal"):
        measure_levels(noise, clean, noise[1:])


def test_a_band_edge_is_found_and_what_is_above_it():
    rng = np.random.default_rng(1)
    n = 4 * RATE
    wide = 0.1 * rng.standard_normal(n)
    freqs = np.fft.rfftfreq(n, 1 / RATE)
    narrow = np.fft.irfft(np.fft.rfft(wide) * (freqs < 3400), n)
    speech = ((0, n),)
    hiss = np.fft.irfft(np.fft.rfft(wide) * (freqs > 4000), n)
    hiss *= np.sqrt(np.mean(narrow**2) / np.mean(hiss**2)) * db(-30)
    assert measure_levels(narrow, narrow, narrow + hiss, speech)["hiss"] == pytest.approx(
        -30, abs=1
    )
    assert measure_levels(narrow, narrow, narrow, speech)["hiss"] < -80
    assert measure_blind(narrow, narrow + hiss, speech)["hiss"] == pytest.approx(-30, abs=1)
    assert np.isnan(measure_levels(wide, wide, wide, speech)["hiss"])
    # a slope, as of any voice, is no edge
    assert band_edge(1.0 / (1.0 + np.arange(257.0)) ** 4) is None


def test_without_a_clean_side_levels_are_against_the_input(parts):
    clean, noise = parts
    noisy = clean + noise
    output = db(-3) * clean + db(-20) * noise
    speech = find_speech(output, 25.0)
    figures = measure_blind(noisy, output, speech)
    assert tuple(figures) == BLIND_MEASURES
    assert figures["pause_lowered"] == pytest.approx(20.0, abs=0.1)
    assert figures["loud_level"] == pytest.approx(-3.0, abs=0.2)
    assert figures["loud_2_4"] == pytest.approx(-3.0, abs=0.2)
    assert figures["pause_share"] == pytest.approx(100 * 7 / 13, abs=2)
    same = measure_blind(noisy, noisy, speech)
    assert same["pause_lowered"] == same["loud_level"] == 0.0
    nothing = np.zeros(LENGTH, np.float32)
    silent = measure_blind(nothing, nothing, ())
    assert silent.pop("pause_share") == 100.0
    assert all(np.isnan(value) for value in silent.values())


def test_utterances_are_measured_one_by_one():
    wav = np.arange(100.0)
    pieces = []

    def measure(clean, estimate):
        pieces.append((clean[0], estimate[-1]))
        return np.nan if len(pieces) == 3 else float(len(clean))

    assert over_utterances(measure, wav, wav, ((0, 10), (20, 50), (60, 61))) == 20.0
    assert pieces == [(0.0, 9.0), (20.0, 49.0), (60.0, 60.0)]
    assert np.isnan(over_utterances(measure, wav, wav, ()))


def test_block_levels_are_rms():
    wav = np.concatenate([np.full(100, 0.1), np.zeros(100), np.ones(50)])
    np.testing.assert_allclose(block_levels(wav, 100), [-20.0, -120.0])


@pytest.mark.skipif(not SET.is_dir(), reason="needs the shared dev set")
def test_speech_is_found_where_the_dev_set_says():
    from dvpd.quality.pairs import find_pairs

    for pair in find_pairs(SET)[:3]:
        clean = sf.read(pair.clean)[0]
        said, found = (
            np.concatenate([np.arange(a, b) for a, b in spans])
            for spans in (pair.speech, find_speech(clean))
        )
        both = len(np.intersect1d(said, found))
        assert both > 0.75 * len(said)  # inner pauses of an utterance are none of its speech
        assert both > 0.95 * len(found)


def test_steps_count_at_seams_in_pauses_alone():
    out = np.full(20 * RATE, 1e-3, np.float32)
    seam = 10 * RATE
    out[seam:] *= 2.0
    assert seam_steps(out, [seam], ()) == pytest.approx([6.02], abs=0.01)
    assert seam_steps(out, [seam - 3 * RATE], ()) == pytest.approx([0.0])
    assert seam_steps(0.01 * out, [seam], ()) == pytest.approx([0.0])  # not heard
    near = [(seam + RATE, seam + 2 * RATE)]
    assert not len(seam_steps(out, [seam, 0, len(out)], near))
