"""The recreated test sets: each recipe's physics, the files, and what may go wrong."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from dvpd.data import make_set as module
from dvpd.data import rooms
from dvpd.data.degrade import rms
from dvpd.data.make_set import RECIPES, Corpora, main, make_set
from dvpd.evaluate import find_pairs, read_pair

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
# both sides are rounded to 16 bit
SNR_DB = 0.02


@pytest.fixture
def folder(lab, tmp_path):
    for i in range(6):
        lab.write(tmp_path / "speech" / f"s{i}.wav", 2 * lab.voice(1.0 + 0.1 * i, i))
        lab.write(tmp_path / "pairs" / "clean" / f"s{i}.wav", lab.voice(1.0, i))
        lab.write(tmp_path / "pairs" / "noisy" / f"s{i}.wav", lab.voice(1.0, i + 9))
    rng = np.random.default_rng(0)
    lab.write(tmp_path / "noise" / "long.wav", 0.1 * rng.standard_normal((48000, 2)), 48000)
    lab.write(tmp_path / "noise" / "short.wav", 0.1 * rng.standard_normal(4000))
    response = np.zeros(4000)
    response[[100, 400]] = 1.0, 0.4
    lab.write(tmp_path / "rir" / "r.wav", 0.5 * response)
    return tmp_path


def run(folder, name, *more, out="out", source="--speech"):
    place = folder / ("speech" if source == "--speech" else "pairs")
    parts = ["--noise", str(folder / "noise"), "--rir", str(folder / "rir")]
    return main([name, source, str(place), *parts, "--out", str(folder / out), *more])


def read_set(folder, name):
    """(noisy, clean, row of the table, drawn) of each pair, as the evaluation finds them."""
    stem = name.lower()
    with (folder / "pairs.tsv").open(newline="") as table:
        rows = {r["file"]: r for r in csv.DictReader(table, delimiter="\t")}
    pairs = find_pairs(folder / stem)
    assert len(pairs) == len(rows)
    for pair in pairs:
        row = rows[pair.noisy.name]
        assert row["set"] == stem
        assert pair.group == row["degradation"] != ""
        yield *read_pair(pair), row, json.loads(row["drawn"])


def whitened_lag(clean, noisy):
    """Like ``lab.lag``, of whitened spectra: reverberation does not move its peak."""
    size = 2 * len(clean)
    cross = np.fft.rfft(noisy, size) * np.fft.rfft(clean, size).conj()
    return int(np.argmax(np.fft.irfft(cross / (np.abs(cross) + 1e-9), size)))


@pytest.mark.parametrize("source", ["--speech", "--pairs"])
@pytest.mark.parametrize("name", RECIPES)
def test_each_set_is_whole_and_aligned(folder, name, source, capsys):
    if name == "WSJ0-RB" and not rooms.has_image_sources():
        pytest.skip("pyroomacoustics is not installed")
    assert run(folder, name, source=source) == 0
    captured = capsys.readouterr()
    assert f"{folder / 'out' / name.lower()}: 6 pairs" in captured.out
    assert captured.err == ""  # the progress bar is for terminals
    items = list(read_set(folder / "out", name))
    assert [row["speech"] for _, _, row, _ in items] == [f"s{i}.wav" for i in range(6)]
    for noisy, clean, row, drawn in items:
        assert noisy.shape == clean.shape
        assert max(np.abs(noisy).max(), np.abs(clean).max()) < 1.0
        assert not np.array_equal(noisy, clean) or name == "WSJ0-UNI"
        assert whitened_lag(clean, noisy) == 0
        side = folder / "out" / name.lower() / "noisy" / row["file"]
        assert sf.info(str(side)).subtype == "PCM_16"
        assert drawn["scale"] <= 1.0
    assert not [p for p in folder.iterdir() if p.suffix == ".tmp"]


def test_snr_of_ce3_is_the_drawn_one(folder):
    assert run(folder, "wsj0-ce3") == 0
    values = []
    for noisy, clean, row, drawn in read_set(folder / "out", "WSJ0-CE3"):
        reached = 20 * np.log10(rms(clean) / rms(noisy - clean))
        assert reached == pytest.approx(drawn["snr_db"], abs=SNR_DB)
        low, high = (int(row["degradation"].split()[i]) for i in (1, 3))
        assert low <= drawn["snr_db"] <= high
        assert row["other"] in ("long.wav", "short.wav")
        values.append(drawn["snr_db"])
    assert len(set(values)) == 6


def test_low_pass_of_sr_is_at_4_khz(folder, lab):
    assert run(folder, "VBDMD-SR") == 0
    for noisy, clean, _, _ in read_set(folder / "out", "VBDMD-SR"):
        assert lab.power_db(noisy, 5600, 8000) < lab.power_db(clean, 5600, 8000) - 34
        assert lab.power_db(noisy, 100, 3000) == pytest.approx(
            lab.power_db(clean, 100, 3000), abs=0.1
        )
        assert lab.power_db(noisy, 3950, 4050) == pytest.approx(
            lab.power_db(clean, 3950, 4050) - 3.0, abs=1.0
        )


def test_reverberation_of_rb_is_as_told(folder):
    assert run(folder, "VBD-RB") == 0
    drawn = [d for *_, d in read_set(folder / "out", "VBD-RB")]
    assert np.mean([d["measured_t60_s"] for d in drawn]) == pytest.approx(0.4, abs=0.06)
    assert all(0.3 <= d["t60_s"] <= 0.5 for d in drawn)


@pytest.mark.skipif(not rooms.has_image_sources(), reason="pyroomacoustics is not installed")
def test_rooms_of_wsj0_rb_are_as_told(folder):
    assert run(folder, "WSJ0-RB") == 0
    for *_, drawn in read_set(folder / "out", "WSJ0-RB"):
        assert 5 <= drawn["length_m"] <= 15
        assert 5 <= drawn["width_m"] <= 15
        assert 2 <= drawn["height_m"] <= 6
        assert 0.4 <= drawn["t60_s"] <= 1.0
        assert -18 < drawn["drr_db"] < 3


def test_same_seed_same_set(folder):
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(folder, "WSJ0-UNI", "--seed", seed, "--count", "3", out=out) == 0
    for path in sorted(p for p in (folder / "a").rglob("*") if p.is_file()):
        other = folder / "b" / path.relative_to(folder / "a")
        assert path.read_bytes() == other.read_bytes()
    assert (folder / "a" / "pairs.tsv").read_text() != (folder / "c" / "pairs.tsv").read_text()


def test_nothing_is_overwritten(folder, capsys):
    (folder / "out").mkdir()
    assert run(folder, "VBDMD-SR") == 0  # an empty folder is fine
    before = (folder / "out" / "pairs.tsv").read_text()
    assert run(folder, "WSJ0-CE3") == 1
    assert "already there" in capsys.readouterr().err
    assert (folder / "out" / "pairs.tsv").read_text() == before


def test_full_disk_leaves_nothing(folder, monkeypatch, capsys):
    real, calls = sf.write, []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(module.sf, "write", failing)
    before = sorted(folder.iterdir())
    assert run(folder, "VBDMD-SR") == 1
    assert "No space left" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_silent_recordings_are_left_out(folder, lab):
    lab.write(folder / "speech" / "s2.wav", np.zeros(8000))
    before = list(logging.getLogger().handlers)
    assert run(folder, "VBDMD-SR") == 0
    assert logging.getLogger().handlers == before  # the command's own handler has said it
    names = [row["speech"] for _, _, row, _ in read_set(folder / "out", "VBDMD-SR")]
    assert names == ["s0.wav", "s1.wav", "s3.wav", "s4.wav", "s5.wav"]
    for i in range(6):
        lab.write(folder / "speech" / f"s{i}.wav", np.zeros(8000))
    assert run(folder, "VBDMD-SR", out="other") == 1
    assert not (folder / "other").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "speech" / "s1.wav").write_bytes(b"RIFF"), "s1.wav cannot be decoded"),
        (lambda f: sf.write(f / "speech" / "s1.wav", np.zeros(0), 16000), "holds no samples"),
        (lambda f: (f / "noise" / "long.wav").write_bytes(b"RIFF"), "long.wav cannot be decoded"),
        (lambda f: [sf.write(p, np.zeros(9), 16000) for p in f.glob("noise/*")], "silent"),
        (lambda f: [p.unlink() for p in f.glob("noise/*")], "holds no"),
    ],
)
def test_bad_corpora_are_named(folder, damage, message, capsys):
    damage(folder)
    assert run(folder, "WSJ0-CE3") == 1
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_noise_without_a_length_gives_the_same_set(folder, lab):
    """FLAC from a pipe, and a WAV whose recorder crashed: the same samples are drawn."""
    noise = folder / "noise"
    flac = noise / "long.flac"
    sf.write(flac, *sf.read(noise / "long.wav"), subtype="PCM_16")
    (noise / "long.wav").unlink()
    assert run(folder, "WSJ0-CE3") == 0
    data = bytearray(flac.read_bytes())
    data[21:42] = bytes([data[21] & 0xF0]) + bytes(20)
    flac.write_bytes(data)
    data = bytearray((noise / "short.wav").read_bytes())
    data[4:8] = data[40:44] = bytes(4)
    (noise / "short.wav").write_bytes(data)
    assert run(folder, "WSJ0-CE3", out="again") == 0
    for side in ("noisy", "clean"):
        for path in (folder / "out" / "wsj0-ce3" / side).iterdir():
            again = folder / "again" / "wsj0-ce3" / side / path.name
            np.testing.assert_array_equal(sf.read(path)[0], sf.read(again)[0])


def test_bad_requests_are_refused(folder, capsys):
    clean = sorted((folder / "speech").glob("*"))
    for name, corpora, options, message in (
        ("VBD", Corpora(clean), {}, "expected one of VBD-RB"),
        ("WSJ0-CE3", Corpora(clean), {}, "needs noise"),
        ("VBD-RB", Corpora(clean), {"count": 7}, "7 of 6 recordings"),
        ("VBD-RB", Corpora(clean), {"count": 0}, "0 of 6 recordings"),
    ):
        with pytest.raises(module.InputError, match=message):
            make_set(name, corpora, folder / "out", **options)
    assert main(["VBD-RB", "--out", "x"]) == 2
    assert "one of the arguments --speech --pairs is required" in capsys.readouterr().err
    assert run(folder, "VBD-RB", "--seed", "-1") == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the repository")
@pytest.mark.parametrize("name", ["VBD-RB", "VBDMD-SR", "WSJ0-CE3", "WSJ0-RB", "WSJ0-UNI"])
def test_real_recordings_make_every_set(name, tmp_path):
    if name == "WSJ0-RB" and not rooms.has_image_sources():
        pytest.skip("pyroomacoustics is not installed")
    parts = ["--noise", str(SHARED / "dev" / "parts" / "noise")]
    parts += ["--rir", str(SHARED / "dev" / "parts" / "rir")]
    clean = ["--pairs", str(SHARED / "dev" / "noise")]
    assert main([name, *clean, *parts, "--out", str(tmp_path / "out"), "--count", "4"]) == 0
    items = list(read_set(tmp_path / "out", name))
    assert len(items) == 4
    for noisy, clean_wav, _, drawn in items:
        # a measured direct path is a pulse of several samples (loudspeaker, microphone)
        spread = 8 if drawn.get("room") == "measured" else 0
        assert abs(whitened_lag(clean_wav, noisy)) <= spread


def test_pauses_say_where_somebody_speaks(folder):
    assert run(folder, "pauses", "--count", "3") == 0
    with (folder / "out" / "pauses" / "pairs.tsv").open(newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    items = list(read_set(folder / "out", "PAUSES"))
    assert len(rows) == len(items) == 3
    for row, (noisy, clean, _, drawn) in zip(rows, items, strict=True):
        assert len(noisy) == 40 * 16000
        spoken = np.zeros(len(noisy), bool)
        ends = [tuple(int(s) for s in part.split("-")) for part in row["speech_samples"].split()]
        for first, last in ends:
            spoken[first:last] = True
        assert not clean[~spoken].any()
        for (_, last), (first, _) in itertools.pairwise([(0, 0), *ends]):
            assert 2.0 * 16000 <= first - last <= 12.0 * 16000 + 1
        noise = noisy - clean
        reached = 20 * np.log10(rms(clean[spoken]) / rms(noise))
        assert reached == pytest.approx(float(row["snr_db"]), abs=0.1)
        assert drawn["snr_db"] in (0.0, 5.0, 10.0, 20.0)
        assert rms(noise[~spoken]) == pytest.approx(rms(noise), rel=0.2)  # it goes on
