"""Pools: decoded once, mapped after, and what is done about bad files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from dvpd.data.pool import STALE_S, find_audio, load_pool
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import temporary_path

# int16 rounding of the written files
INT16_STEP = 1.0 / 32768.0


def test_pool_decodes_once_and_maps(lab, tmp_path):
    lab.write(tmp_path / "speech" / "a" / "1.flac", lab.voice(0.5, 1))
    lab.write(tmp_path / "speech" / "b" / "2.wav", lab.voice(0.25, 2), 8000)
    lab.write(tmp_path / "speech" / "b" / "3.wav", np.stack([lab.voice(0.5, 3)] * 2, axis=1))
    seen = []
    pool = load_pool(tmp_path / "speech", tmp_path / "cache", lambda *n: seen.append(n))
    assert seen[-1] == (3, 3)
    assert pool.sources == ("a", "b")
    assert [pool.length(i) for i in range(3)] == [8000, 8000, 8000]  # 8 kHz became 16 kHz
    np.testing.assert_allclose(pool.read(0), lab.voice(0.5, 1), atol=INT16_STEP)
    np.testing.assert_allclose(pool.read(2), lab.voice(0.5, 3), atol=INT16_STEP)
    np.testing.assert_array_equal(pool.read(0, 100, 50), pool.read(0)[100:150])
    again = load_pool(tmp_path / "speech", tmp_path / "cache", lambda *n: pytest.fail("decoded"))
    np.testing.assert_array_equal(again.samples, pool.samples)
    in_memory = load_pool(tmp_path / "speech")
    np.testing.assert_array_equal(in_memory.samples, pool.samples)
    assert not list((tmp_path / "cache").glob("*.tmp"))
    lab.write(tmp_path / "speech" / "a" / "4.flac", lab.voice(0.5, 4))
    assert len(load_pool(tmp_path / "speech", tmp_path / "cache")) == 4


@pytest.mark.parametrize("cached", [False, True])
def test_pool_leaves_out_a_bad_file_but_not_many(lab, tmp_path, cached):
    cache = tmp_path / "cache" if cached else None
    for i in range(3):
        lab.write(tmp_path / "speech" / "a" / f"{i}.wav", lab.voice(0.2, i))
    (tmp_path / "speech" / "a" / "x.wav").write_bytes(b"not audio")
    assert len(load_pool(tmp_path / "speech", cache)) == 3
    (tmp_path / "speech" / "a" / "y.wav").write_bytes(b"")
    with pytest.raises(InputError, match="2 of 5 files"):
        load_pool(tmp_path / "speech", cache)
    assert not cached or not list(cache.glob("*.tmp"))


def test_pool_without_audio_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        load_pool(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no"):
        load_pool(tmp_path)


def test_pool_of_named_files_wants_every_one(lab, tmp_path):
    for i in range(3):
        lab.write(tmp_path / "x" / f"{i}.wav", lab.voice(0.2, i))
    bad = {"empty": np.zeros(0), "nan": np.array([0.0, np.nan]), "inf": np.array([np.inf, 0.0])}
    for name, wav in bad.items():
        sf.write(tmp_path / "x" / f"{name}.wav", wav, lab.rate, subtype="FLOAT")
    (tmp_path / "x" / "text.wav").write_bytes(b"not audio")
    good = [tmp_path / "x" / f"{i}.wav" for i in (2, 0)]
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        pool = load_pool(tmp_path / "x", cache, files=good)
        assert [pool.name(i) for i in range(2)] == [str(p) for p in good]
        np.testing.assert_allclose(pool.read(0), lab.voice(0.2, 2), atol=INT16_STEP)
        with pytest.raises(
            InputError, match=r"4 of 7 files .*empty.wav holds no samples; .*inf.wav"
        ):
            load_pool(tmp_path / "x", cache, files=find_audio(tmp_path / "x"))


def test_what_killed_decoding_left_is_removed_but_not_what_goes_on(lab, tmp_path):
    lab.write(tmp_path / "x" / "0.wav", lab.voice(0.2, 0))
    cache = tmp_path / "cache"
    cache.mkdir()
    left, running, other = (
        temporary_path(cache / name) for name in ("pool-x-1.npy", "pool-x-2.npy", "mine.npy")
    )
    for path in (left, running, other):
        path.write_bytes(b"half")
    for path in (left, other):
        os.utime(path, (0, time.time() - 2 * STALE_S))
    assert len(load_pool(tmp_path / "x", cache)) == 1
    assert [path.exists() for path in (left, running, other)] == [False, True, True]


def test_damaged_index_is_built_anew(lab, tmp_path):
    lab.write(tmp_path / "x" / "0.wav", lab.voice(0.2, 0))
    pool = load_pool(tmp_path / "x", tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("*.json")
    index.write_text('{"offsets": [0, 32')
    again = load_pool(tmp_path / "x", tmp_path / "cache")
    np.testing.assert_array_equal(again.samples, pool.samples)


def test_folders_behind_links_are_searched_once(lab, tmp_path):
    lab.write(tmp_path / "elsewhere" / "1.wav", lab.voice(0.2, 1))
    lab.write(tmp_path / "speech" / "a" / "2.wav", lab.voice(0.2, 2))
    (tmp_path / "speech" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "speech" / "again").symlink_to(tmp_path / "speech" / "a")
    (tmp_path / "speech" / "a" / "circle").symlink_to(tmp_path / "speech")
    pool = load_pool(tmp_path / "speech")
    assert (len(pool), pool.sources) == (2, ("a", "b"))


def test_folder_that_cannot_be_read_is_an_error(lab, tmp_path, monkeypatch):
    lab.write(tmp_path / "a" / "1.wav", lab.voice(0.2, 1))
    (tmp_path / "b").mkdir()
    read = Path.iterdir

    def refuse(path):  # root may read what has no permission
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"b: Permission denied; expected a folder that can"):
        find_audio(tmp_path)


def test_hidden_files_are_left_out_and_other_formats_named(lab, tmp_path, caplog):
    lab.write(tmp_path / "1.wav", lab.voice(0.2, 1))
    (tmp_path / "._1.wav").write_bytes(b"of a Mac")
    (tmp_path / "notes.txt").write_bytes(b"text")
    assert find_audio(tmp_path) == [tmp_path / "1.wav"]
    assert not caplog.messages
    (tmp_path / "2.mp3").write_bytes(b"ID3")
    assert find_audio(tmp_path) == [tmp_path / "1.wav"]
    assert "left out: 1 files in" in caplog.text
    assert "2.mp3" in caplog.text
    (tmp_path / "1.wav").unlink()
    with pytest.raises(InputError, match=r"files, but 1 such as 2\.mp3"):
        find_audio(tmp_path)


def test_bad_file_is_refused_without_an_option_of_another_command(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"not audio")
    with pytest.raises(InputError, match="not a readable audio file") as refused:
        load_pool(tmp_path)
    assert "--raw" not in str(refused.value)
