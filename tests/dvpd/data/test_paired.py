"""Recorded pairs: matching, cropping, and what is wrong with a corpus."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import soundfile as sf
import torch

from dvpd.config.data import DataConfig
from dvpd.data.loader import batches
from dvpd.data.paired import PairedSource, match_names
from dvpd.data.pool import Pool
from dvpd.data.sources import find_sides
from dvpd.runtime.errors import InputError

# two roundings to int16, and the scale to a peak of 1
ROUNDING = 2e-3
PLAIN = DataConfig(crop_samples=8000, level_p=0.0)


@pytest.fixture
def corpus(lab, tmp_path):
    """Six pairs; noisy is the clean side three times as loud, so that places can be compared."""
    for i in range(6):
        wav = lab.voice(0.4 + 0.3 * i, i)
        lab.write(tmp_path / "clean" / f"p{i}.wav", 0.3 * wav)
        lab.write(tmp_path / "noisy" / f"p{i}.flac", 0.9 * wav)
    return tmp_path


def open_pairs(folder, config=PLAIN, **options) -> PairedSource:
    return PairedSource.open(config, *find_sides(folder), **options)


def test_crops_lie_at_the_same_place_of_both(corpus):
    seen = []
    source = open_pairs(corpus, cache=corpus / "cache", report=lambda *n: seen.append(n))
    assert seen[-1] == ("clean", 6, 6)
    for index in range(24):
        noisy, clean = source.pair(0, 0, index)
        assert noisy.shape == clean.shape == (8000,)
        assert noisy.dtype == clean.dtype == np.float32
        assert np.abs(noisy).max() == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_allclose(noisy, 3.0 * clean, atol=ROUNDING)
    again = open_pairs(corpus, cache=corpus / "cache")
    np.testing.assert_array_equal(again.pair(1, 2, 3)[0], source.pair(1, 2, 3)[0])


def test_short_files_are_padded_at_the_end(lab, tmp_path):
    for side in ("noisy", "clean"):
        lab.write(tmp_path / side / "a.wav", lab.voice(0.3, 1))
    noisy, clean = open_pairs(tmp_path).pair(0, 0, 0)
    assert not noisy[4800:].any()
    assert not clean[4800:].any()
    assert clean[2000:4800].any()


def test_an_epoch_takes_each_file_once(corpus):
    source = open_pairs(corpus)
    orders = [tuple(source._shuffled(0, epoch)) for epoch in range(3)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(orders)) > 1
    assert source._shuffled(1, 0).tolist() != source._shuffled(0, 0).tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_order_does_not_depend_on_workers(corpus, workers):
    source = open_pairs(corpus)
    options = {"seed": 1, "batch_size": 3, "epoch_crops": 4}
    alone, shared = batches(source, **options), batches(source, **options, workers=workers)
    for _ in range(4):
        for mine, theirs in zip(next(alone), next(shared), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_fewer_files_than_workers(lab, tmp_path):
    for side in ("noisy", "clean"):
        lab.write(tmp_path / side / "a.wav", lab.voice(1.0, 1))
    source = open_pairs(tmp_path)
    stream = batches(source, seed=0, batch_size=4, epoch_crops=8, workers=2)
    noisy, _ = next(stream)
    assert noisy.shape == (4, 8000)


def test_other_rates_and_channels_are_brought_to_one(lab, tmp_path):
    wav = lab.voice(1.0, 1)
    for side in ("noisy", "clean"):
        lab.write(tmp_path / side / "a.wav", np.stack([wav, wav], axis=1), 48000)
        lab.write(tmp_path / side / "b.wav", wav, 8000)
    lab.write(tmp_path / "clean" / "b.wav", np.repeat(wav, 2), 16000)  # rates mixed in a pair
    source = open_pairs(tmp_path)
    assert [source.noisy.length(i) for i in range(2)] == [5333, 32000]
    noisy, clean = source.pair(0, 0, 0)
    assert noisy.shape == clean.shape


def test_missing_partners_are_named(corpus, lab):
    for name in ("x", "y", "z", "zz"):
        lab.write(corpus / "noisy" / f"{name}.wav", lab.voice(0.2, 1))
    (corpus / "noisy" / "p3.flac").unlink()
    with pytest.raises(
        InputError, match=r"5 files .* lack a partner .*: p3.wav, x.wav, y.wav, \.\.\."
    ):
        open_pairs(corpus)


def test_two_files_of_one_name_are_refused(corpus, lab):
    lab.write(corpus / "noisy" / "p1.wav", lab.voice(0.2, 1))
    with pytest.raises(InputError, match=r"p1.flac and .*p1.wav have the same name"):
        match_names(corpus / "noisy", corpus / "clean")


def test_lengths_must_match(corpus, lab):
    lab.write(corpus / "clean" / "p2.wav", lab.voice(0.5, 1))
    with pytest.raises(InputError, match=r"1 pairs differ in length, such as .*p2.flac with 16000"):
        open_pairs(corpus)


@pytest.mark.parametrize("cached", [False, True])
def test_bad_files_are_named(corpus, cached):
    sf.write(corpus / "clean" / "p0.wav", np.zeros(0), 16000)
    (corpus / "clean" / "p4.wav").write_bytes(b"RIFF nonsense")
    with pytest.raises(InputError, match=r"2 of 6 files .*p0.wav holds no samples; .*p4.wav"):
        open_pairs(corpus, cache=corpus / "cache" if cached else None)
    assert not cached or not list((corpus / "cache").glob("*.tmp"))


def test_not_a_number_is_named(corpus):
    bad = np.full(16000, np.nan, np.float32)
    sf.write(corpus / "clean" / "p2.wav", bad, 16000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"1 of 6 files .*p2.wav holds values that are not finite"):
        open_pairs(corpus)


def test_silent_clean_files_are_left_out(corpus, lab, caplog):
    lab.write(corpus / "clean" / "p2.wav", np.zeros(16000))
    with caplog.at_level(logging.WARNING, "dvpd"):
        source = open_pairs(corpus)
    assert "p2.wav is silent" in caplog.text
    for index in range(10):
        assert source.pair(0, 0, index)[1].any()
    for i in range(6):
        lab.write(corpus / "clean" / f"p{i}.wav", np.zeros(int(16000 * (0.4 + 0.3 * i))))
    with pytest.raises(InputError, match="every clean recording is silent"):
        open_pairs(corpus)


def test_pools_must_be_pairs(lab):
    pool = Pool.from_arrays([("a", lab.voice(0.2, 1))] * 2)
    with pytest.raises(InputError, match="2 noisy recordings and 1 clean"):
        PairedSource(PLAIN, pool, Pool.from_arrays([("a", lab.voice(0.2, 1))]))
