"""The search for TLB factors: it finds a hidden optimum, keeps constraints, and goes on after a kill."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dvpd.quality.pairs import PairFile
from dvpd.quality.tlb import (
    HIGH,
    LOW,
    NAMES,
    ONES,
    TIERS,
    Aim,
    Journal,
    factors_of,
    halves,
    in_tier,
    parts_of,
    point_of,
    search,
)
from dvpd.runtime.errors import InputError
from dvpd.runtime.spec import TLB_PRESETS

HIDDEN = np.array([1.6, 0.8, 1.3, 1.0, 0.7, 1.2, 2.0, 0.9])


def nearness(point) -> float:
    return -float(np.square(np.log(np.array(point) / HIDDEN)).sum())


def test_a_point_is_the_factors_in_another_form():
    for factors in TLB_PRESETS.values():
        assert factors_of(point_of(factors)) == factors
    assert factors_of(ONES) == TLB_PRESETS["none"]


def test_it_comes_near_to_a_hidden_optimum_and_never_asks_twice():
    asked = []

    def score(point):
        asked.append(point)
        return nearness(point)

    state = search(score, n_random=8)
    assert asked[0] == ONES
    assert len(set(asked)) == len(asked) == state.done
    assert all(LOW <= value <= HIGH for point in asked for value in point)
    assert np.abs(np.log(np.array(state.best) / HIDDEN)).max() < math.log(1.08)
    assert state.score == max(map(nearness, asked))


def test_it_is_the_same_search_again_and_another_with_another_seed():
    def run(seed, count):
        asked = []

        def score(point):
            asked.append(point)
            return nearness(point) if len(asked) <= count else None

        search(score, n_random=5, seed=seed)
        return asked

    assert run(1, 30) == run(1, 30)
    assert run(1, 10) == run(1, 30)[:11]
    assert run(2, 30) != run(1, 30)


def test_what_does_not_help_leaves_all_ones():
    assert search(lambda point: 0.0 if point == ONES else -1.0, n_random=4).best == ONES


def figures(pesq, estoi):
    return {name: {"pesq": p, "estoi": estoi} for name, p in zip("ab", pesq, strict=True)}


def test_a_broken_constraint_is_worse_than_any_loss():
    aim = Aim.of("pesq", ("pesq", "estoi", "si_sdr"))
    assert aim.constraints == ("estoi",)
    without = figures((2.0, 3.0), 0.8)
    assert aim.score(without, without) == 0.0
    assert aim.score(figures((2.2, 3.2), 0.8), without) == pytest.approx(0.2)
    worse = aim.score(figures((1.0, 2.0), 0.81), without)
    broken = aim.score(figures((2.9, 3.9), 0.79), without)
    more = aim.score(figures((2.9, 3.9), 0.70), without)
    assert 0.0 > worse > broken > more
    lost = figures((math.nan, 3.5), 0.8)  # not defined: not counted
    assert aim.gains(lost, without)["pesq"] == pytest.approx(0.5)


def test_every_recording_with_a_pesq_is_in_one_tier():
    pesq = {"a": 1.1, "b": 2.0, "c": 2.9, "d": 3.0, "e": math.nan}
    without = {name: {"pesq": value} for name, value in pesq.items()}
    assert [in_tier(tier, without) for tier in TIERS] == [["a"], ["b", "c"], ["d"]]


def test_parts_of_a_point_multiply_to_the_whole():
    point = tuple(HIDDEN)
    parts = parts_of(point)
    assert parts.pop("all") == point
    for pair in (("outer level alone", "deep level alone"), ("skip alone", "backbone alone")):
        assert np.prod([parts[name] for name in pair], axis=0) == pytest.approx(point)
        for name in pair:
            moved = [NAMES[i] for i, value in enumerate(parts[name]) if value != 1.0]
            assert all(name.split()[0] in where for where in moved)


def test_halves_are_random_and_whole():
    pairs = [PairFile(f"{i:02d}", None, None, "") for i in range(11)]
    first, second = halves(pairs, 3)
    assert sorted(p.name for p in (*first, *second)) == [p.name for p in pairs]
    assert (len(first), len(second)) == (5, 6)
    assert halves(pairs, 4)[0] != first


def test_the_journal_survives_a_kill_in_the_middle_of_a_line(tmp_path):
    path, settings = tmp_path / "journal.jsonl", {"steps": 3, "metrics": ("pesq",)}
    journal = Journal(path, settings)
    journal.add("choosing", ONES, figures((2.0, math.nan), 0.8))
    journal.add("other", ONES, figures((2.5, 2.6), 0.9))
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"half": "choosing", "factors": [1.5')
    again = Journal(path, settings)
    assert set(again.known) == {("choosing", ONES), ("other", ONES)}
    assert math.isnan(again.known["choosing", ONES]["b"]["pesq"])
    again.add("other", (2.0, *ONES[1:]), figures((2.7, 2.8), 0.9))
    again.add("other", ONES, {"c": {"pesq": 3.0, "estoi": 0.9}})  # one more, beside the others
    assert sorted(again.known["other", ONES]) == ["a", "b", "c"]
    again.close()
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 5
    with pytest.raises(InputError, match="another steps; give another --out"):
        Journal(path, {**settings, "steps": 1})
    path.write_text("no json\n")
    with pytest.raises(InputError, match="no journal of a search"):
        Journal(path, settings)
