from pathlib import Path

import pytest

from dvpd.quality.pairs import PairFile, find_pairs, spread_sample


def pair_files(count):
    return [PairFile(f"{i:03d}", Path(f"n{i}"), Path(f"c{i}"), "") for i in range(count)]


@pytest.mark.parametrize(("count", "limit"), [(60, 30), (60, 20), (60, 12), (40, 20), (824, 50)])
@pytest.mark.parametrize("period", [2, 3, 4, 5])
def test_a_part_of_a_set_holds_all_that_it_cycles_through(count, limit, period):
    files = pair_files(count)
    part = spread_sample(files, limit)
    assert len({pair.name for pair in part}) == limit
    assert part == sorted(part, key=lambda pair: pair.name)
    places = [int(pair.name) for pair in part]
    each = [sum(place % period == k for place in places) for k in range(period)]
    assert max(each) - min(each) <= 3  # even spacing leaves whole residues out
    assert min(each) >= 1
    gaps = [b - a for a, b in zip([-1, *places], [*places, count], strict=True)]
    assert max(gaps) <= 3 * count / limit


@pytest.mark.parametrize("limit", [0, 8, 9])
def test_a_limit_beyond_the_set_takes_all(limit):
    files = pair_files(8)
    assert spread_sample(files, limit) == files


def test_recordings_of_every_readable_kind_are_found_and_hidden_files_are_not(tmp_path):
    for name in ("a.wav", "b.OPUS", "c.flac", "d.ogg", "._a.wav", ".hidden.flac", "e.mp3", "f.txt"):
        (tmp_path / name).write_bytes(b"")
    found = find_pairs(tmp_path, alone=True)
    assert [pair.noisy.name for pair in found] == ["a.wav", "b.OPUS", "c.flac", "d.ogg"]
