"""A few hundred mutations of every format's header; more with fuzz_containers.py."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fuzz_containers

CORPUS = sorted((Path(__file__).resolve().parents[1] / "assets" / "fuzz").iterdir())
SEEDS = dict(fuzz_containers.seeds())
MUTATIONS = 15  # of each format: a few seconds in all


@pytest.mark.parametrize("name", SEEDS)
def test_mutated_headers_are_answered(name, tmp_path):
    rng = random.Random(name)
    before = set(tmp_path.iterdir())
    for index in range(MUTATIONS):
        path = tmp_path / f"{index}.bin"
        data = fuzz_containers.mutate(SEEDS[name], rng)
        path.write_bytes(data)
        assert fuzz_containers.judge(path) in ("read", "refused", "salvaged")
        assert path.read_bytes() == data
        path.unlink()
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_once_went_wrong(path):
    assert fuzz_containers.judge(path) in ("read", "refused", "salvaged")
