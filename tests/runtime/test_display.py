"""What a result writes, and what it shows in a notebook."""

from __future__ import annotations

import base64
import html.parser
import io
import logging
import re
import zlib

import numpy as np
import pytest
import soundfile

from dvpd.runtime import Enhanced, InputError, display

RATE = 16000


def result(wav, rate=RATE, noisy=None):
    return Enhanced(np.asarray(wav, np.float32), rate, 4, 0.25, noisy)


def tone(hz, rate=RATE, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def pictures(page):
    for data in re.findall(r"data:image/png;base64,([^']+)", page):
        raw = base64.b64decode(data)
        assert raw[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = (int.from_bytes(raw[a : a + 4], "big") for a in (16, 20))
        size = int.from_bytes(raw[33:37], "big")
        rows = np.frombuffer(zlib.decompress(raw[41 : 41 + size]), np.uint8)
        yield rows.reshape(height, 1 + 3 * width)[:, 1:].reshape(height, width, 3)


def players(page):
    for data in re.findall(r"data:audio/wav;base64,([^']+)", page):
        yield soundfile.read(io.BytesIO(base64.b64decode(data)))


def test_repr_is_one_line_without_samples(enhancer, speech):
    made = enhancer.enhance(speech[:RATE], RATE)
    assert re.fullmatch(
        r"Enhanced\(1\.00 s, 16000 Hz, 1 channel, 4 network calls, rtf \d\.\d{3}\)", repr(made)
    )
    assert "1 network call, " in repr(enhancer.enhance(speech[:RATE], RATE, steps=0))
    assert "2 channels" in repr(result(np.zeros((RATE, 2))))
    assert repr(enhancer) == "Enhancer(tiny-test 0.0.1 fp32, ort on cpu)"


def test_rtf_is_work_for_a_second_of_audio():
    assert result(np.zeros(2 * RATE)).rtf == pytest.approx(0.125)
    assert result(np.zeros((RATE // 2, 2))).rtf == pytest.approx(0.5)


def test_save_keeps_every_sample_in_a_wav(tmp_path):
    wav = np.stack([3 * tone(440), 1e-6 * tone(100)], axis=1)
    path = result(wav, 44100).save(tmp_path / "out.wav")
    back, rate = soundfile.read(path, dtype="float32")
    assert rate == 44100
    np.testing.assert_array_equal(back, wav)
    assert list(tmp_path.iterdir()) == [path]


def test_save_says_what_a_format_limits(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "dvpd"):
        result(2 * tone(440)).save(tmp_path / "out.flac")
    assert "beyond full scale were limited" in caplog.text
    back, _ = soundfile.read(tmp_path / "out.flac")
    assert np.abs(back).max() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["out.mp9", "no/such/folder/out.wav", "."])
def test_save_refuses_what_cannot_be_written(tmp_path, name):
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        result(tone(440)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_notebook_gets_players_and_spectrograms_of_both(enhancer, speech):
    loud = np.round(speech[:RATE] * 32767).astype(np.int16)
    page = enhancer.enhance(loud, RATE)._repr_html_()
    html.parser.HTMLParser().feed(page)
    (noisy, rate), (enhanced, _) = players(page)
    assert rate == RATE
    np.testing.assert_allclose(noisy, speech[:RATE], atol=2e-4)
    assert 0 < np.square(enhanced).sum() < np.square(noisy).sum()  # the tiny graph halves
    before, after = pictures(page)
    assert before.shape == after.shape
    assert before.mean() > after.mean()
    assert "http" not in page


def test_a_spectrogram_shows_a_tone_at_its_place():
    (shown,) = pictures(result(tone(2000))._repr_html_())
    height = len(shown)
    bright = shown.sum(axis=(1, 2)).argmax()
    assert bright == pytest.approx(height * (1 - 2000 / 8000), abs=2)


def test_the_same_level_has_the_same_colour():
    loud, quiet = pictures(display.page("", {"a": tone(1000), "b": 0.01 * tone(1000)}, RATE))
    assert loud.max() > quiet.max() > 0


@pytest.mark.parametrize("wav", [np.zeros(10), np.zeros((RATE, 2)), 1e20 * tone(300)])
def test_silence_snippets_and_large_values_are_shown(wav):
    page = result(wav)._repr_html_()
    assert len(list(pictures(page))) == 1
    ((heard, _),) = players(page)
    assert np.abs(heard).max() <= 1


def test_only_the_first_seconds_of_a_long_recording_are_kept(monkeypatch):
    monkeypatch.setattr(display, "SHOWN_S", 1)
    page = result(tone(500, seconds=3), noisy=tone(500, seconds=3))._repr_html_()
    assert [len(wav) for wav, _ in players(page)] == [RATE, RATE]
    assert "the first 1 s are shown" in page
