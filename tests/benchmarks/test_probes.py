"""Probes are the sounds that they are called, and the table says what became of them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import soundfile

from dvpd.benchmarks import probes
from dvpd.benchmarks.common import scenes
from dvpd.benchmarks.probes import RATE_HZ, Probe, level_db, main, make_probes, measure, whisper

pytest.importorskip("pesq")


@pytest.fixture(scope="module")
def speech():
    return probes.read_speech()


@pytest.fixture(scope="module")
def by_name(speech):
    return {p.name: p for p in make_probes(speech)}


def _autocorrelation_peak(wav: np.ndarray) -> float:
    """Largest normalised autocorrelation at lags of 70 to 350 Hz: near 1 for voiced sounds."""
    wav = wav.astype(np.float64) - wav.mean()
    r = np.correlate(wav, wav, "full")[len(wav) - 1 :]
    return float(r[RATE_HZ // 350 : RATE_HZ // 70].max() / r[0])


def test_levels_are_as_named(by_name):
    assert not by_name["digital silence"].wav.any()
    assert level_db(by_name["noise floor at -70 dB"].wav) == pytest.approx(-70, abs=0.01)
    assert level_db(by_name["clean speech at -55 dB"].wav) == pytest.approx(-55, abs=0.01)
    step = by_name["clean speech that falls by 20 dB"].wav
    assert np.abs(step[len(step) // 2 :]).max() < 0.5 * np.abs(step[: len(step) // 2]).max()
    offset = by_name["clean speech on an offset of 0.1"]
    np.testing.assert_allclose(offset.wav - offset.wanted, 0.1, atol=1e-6)
    assert all(np.abs(p.wav).max() <= 1.1 for p in by_name.values())
    assert all(p.wav.dtype == np.float32 for p in by_name.values())


def test_a_whisper_has_the_spectrum_but_no_voice(speech):
    voice = speech[0]
    whispered = whisper(voice, np.random.default_rng(0))
    assert whispered.shape == voice.shape
    blocks = voice[: len(voice) // 1024 * 1024].reshape(-1, 1024)
    quiet = whispered[: len(voice) // 1024 * 1024].reshape(-1, 1024)
    loudest = np.argsort(np.square(blocks).sum(1))[-12:]
    assert np.median([_autocorrelation_peak(b) for b in blocks[loudest]]) > 0.6
    assert np.median([_autocorrelation_peak(b) for b in quiet[loudest]]) < 0.4
    bands = [
        np.log(np.square(np.abs(np.fft.rfft(w)))[: len(w) // 2].reshape(-1, len(w) // 64)[:24].sum(1))
        for w in (voice[: len(voice) // 64 * 64], whispered[: len(voice) // 64 * 64])
    ]  # fmt: skip
    assert np.corrcoef(bands)[0, 1] > 0.9


def test_laughter_is_voiced_and_breath_is_not(by_name):
    laugh = by_name["laughter-like bursts"].wav
    assert _autocorrelation_peak(laugh[RATE_HZ : RATE_HZ + 1600]) > 0.6
    air = by_name["breath"].wav
    middle = int(0.7 * RATE_HZ)
    assert _autocorrelation_peak(air[middle - 800 : middle + 800]) < 0.4
    assert level_db(air[: RATE_HZ // 4]) < level_db(air[middle - 800 : middle + 800]) - 20


def test_figures_by_hand(speech):
    voice = speech[1]
    same = measure(Probe("x", voice, True), voice)
    assert same["gain_db"] == pytest.approx(0, abs=1e-6)
    assert same["pesq"] > 4.5
    assert not same["clicks"]
    half = measure(Probe("x", voice, True), np.float32(0.5) * voice)
    assert half["gain_db"] == pytest.approx(-6.02, abs=0.01)
    assert half["loudest_gain_db"] == pytest.approx(-6.02, abs=0.01)
    broken = voice.copy()
    broken[5000] += 0.9
    assert measure(Probe("x", voice, True), broken)["clicks"]
    assert measure(Probe("x", voice, True), voice + np.float32(0.01))["dc"] > 9e-3
    silence = np.zeros(RATE_HZ, np.float32)
    assert measure(Probe("x", silence), silence)["gain_db"] is None


def test_command(tiny_engine, tmp_path, capsys):
    out = [str(tmp_path / name) for name in ("p.json", "p.md", "audio")]
    assert main([str(tiny_engine), "--json", out[0], "--markdown", out[1], "--audio", out[2]]) == 0
    text = capsys.readouterr().out
    assert "| digital silence | -120 | - |" in text
    assert (tmp_path / "p.md").read_text().strip() == text.strip()
    result = json.loads((tmp_path / "p.json").read_text())
    rows, more = result["engines"]["tiny"], result["scenes"]["tiny"]
    assert {r["name"] for r in rows} >= {"two talkers at equal level", "music: struck strings"}
    assert all("pesq" in r["full"] for r in rows if r["name"] == "clean speech")
    assert {r["name"] for r in more} >= {"telephone band", "far speech in a live room"}
    for row in more:
        for figure in row["figures"].values():
            assert list(figure) == ["in", "predictive", "full"]
    assert "| telephone band | hiss above the band against speech, dB |" in text
    sounds = len(list((tmp_path / "audio" / "tiny").glob("*.flac")))
    assert sounds == 3 * (len(rows) + len(more))


def test_scenes_alone_of_two_engines_of_a_name(tiny_engine, tmp_path, monkeypatch, capsys):
    older = shutil.copytree(tiny_engine, tmp_path / "older" / tiny_engine.name)
    monkeypatch.setattr(probes, "make_scenes", lambda *_: [scenes.one_click()])
    out = tmp_path / "scenes.json"
    rng = np.random.default_rng(0)
    for name, level in (("hiss", 0.1), ("nothing", 0.0)):
        wav = level * rng.standard_normal(RATE_HZ)
        soundfile.write(tmp_path / f"{name}.flac", wav, RATE_HZ)
    engines = [str(tiny_engine), str(older)]
    assert main([*engines, "--scenes", "--noise", str(tmp_path), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found["scenes"]) == ["tiny", str(older)]
    assert found["engines"] == {"tiny": [], str(older): []}
    for (row,) in found["scenes"].values():
        assert all(list(figure) == ["in", "predictive"] for figure in row["figures"].values())
    # the tiny graph halves the compressed spectrum: 20 dB; what is silent is left out
    assert found["noises"]["tiny"] == {"hiss.flac": pytest.approx(20.07, abs=0.01)}
    text = capsys.readouterr().out
    assert "| tiny: scene | what | in the input | predictive |" in text
    assert "| tiny | 1 | 20.1 | 20.1 | 0% | hiss.flac 20.1 |" in text


def test_missing_recordings(tmp_path, capsys):
    assert main(["--speech", str(tmp_path)]) == 1
    assert "has no clip0_clean.flac" in capsys.readouterr().err
