"""Fewer steps when computing falls behind."""

import logging

import numpy as np
import pytest

from dvpd.runtime.governor import FIRST_WAIT, LONGEST_WAIT, PROVEN, Forecast, Governor

BLOCK_S = 0.032


def run(governor: Governor, n: int, cost, streams=("one",)) -> list[int]:
    """Steps of n blocks of which each takes ``cost(steps)`` seconds."""
    used = []
    for _ in range(n):
        used.append(governor.steps)
        governor.spent(cost(governor.steps), streams, BLOCK_S)
    return used


def test_it_falls_step_by_step_and_comes_back():
    governor = Governor(3)
    slow = lambda steps: 0.02 + 0.02 * steps  # noqa: E731  # one line
    assert run(governor, 6, slow) == [3, 3, 1, 0, 0, 0]
    assert governor.ladder == (3, 1, 0)
    fast = lambda steps: 0.001 + 0.002 * steps  # noqa: E731  # one line
    used = run(governor, 4 * FIRST_WAIT, fast)
    assert used == sorted(used)
    assert used[-1] == 3
    assert used.count(1) == FIRST_WAIT
    assert governor.changes == 4


def test_one_late_block_changes_nothing():
    governor = Governor(3)
    assert governor.spent(0.04, ["one"], BLOCK_S)
    assert run(governor, 5, lambda steps: 0.01) == [3] * 5
    assert governor.backlog_s == 0.0


def test_a_long_stall_is_made_up_for_with_fewer_steps():
    governor = Governor(3)
    governor.spent(0.3, ["one"], BLOCK_S)
    used = run(governor, 40, lambda steps: 0.001 + 0.008 * steps)
    assert used[:3] == [3, 1, 0]
    assert governor.backlog_s == 0.0


def test_tries_that_fail_become_rare():
    governor = Governor(1)
    slow = lambda steps: 0.01 + 0.04 * steps  # noqa: E731  # one line
    used = run(governor, 40 * FIRST_WAIT, slow)
    tries = [i for i in range(1, len(used)) if used[i] > used[i - 1]]
    waits = np.diff(tries)
    assert len(waits) >= 3
    assert (waits[1:] >= 1.9 * waits[:-1] - 4).all()
    # Once it is fast again, the longest wait is the last.
    used = run(governor, LONGEST_WAIT + PROVEN, lambda steps: 0.001)
    assert used[-PROVEN:] == [1] * PROVEN


@pytest.mark.parametrize(("steps", "ladder"), [(0, (0,)), (1, (1, 0)), (5, (5, 1, 0))])
def test_the_ladder_begins_with_what_is_asked_for(steps, ladder):
    assert Governor(steps).ladder == ladder
    fixed = Governor(steps, adapt=False)
    assert run(fixed, 10, lambda steps: 1.0) == [steps] * 10


def test_streams_that_are_computed_apart_share_the_time():
    governor = Governor(1)
    for _ in range(50):  # three streams, of 10 ms each: together within 32 ms
        late = [governor.spent(0.01, [name], BLOCK_S) for name in "abc"]
        assert not any(late)
    late = []
    for _ in range(10):  # four are too many
        late += [governor.spent(0.01, [name], BLOCK_S) for name in "abcd"]
    assert any(late)
    assert governor.steps == 0


def test_changes_are_told(caplog):
    with caplog.at_level(logging.INFO, "dvpd"):
        run(Governor(3), 3, lambda steps: 0.1)
    assert "computing falls behind: 1 step from here on" in caplog.text


def planned(costs, channels, most_load=0.75) -> Governor:
    governor = Governor(max(costs))
    governor.forecast = Forecast(costs, most_load, BLOCK_S)
    governor.expect(channels)
    return governor


@pytest.mark.parametrize(("channels", "steps"), [(1, 3), (2, 1), (3, 1), (4, 0), (9, 0)])
def test_steps_follow_from_what_comes_in_before_the_first_block(channels, steps):
    assert planned({3: 0.016, 1: 0.008, 0: 0.004}, channels).steps == steps


def test_fewer_channels_bring_steps_back_later():
    governor = planned({1: 0.008, 0: 0.004}, 4)
    governor.expect(3)
    cost = lambda steps: 0.012 + 0.012 * steps  # noqa: E731  # one line
    used = run(governor, 2 * FIRST_WAIT, cost)
    assert used == [0] * FIRST_WAIT + [1] * FIRST_WAIT
    governor.expect(4)
    assert run(governor, 40 * FIRST_WAIT, cost) == [0] * 40 * FIRST_WAIT  # and none is tried


def test_blocks_that_take_longer_than_they_did_get_fewer_steps_in_time():
    governor = planned({1: 0.008, 0: 0.004}, 2)
    for _ in range(10 * FIRST_WAIT):  # a machine half as fast as it was: 0.016 a channel
        steps = governor.steps
        governor.forecast.count(0.016 * (1 + steps), 2, steps)
        assert not governor.spent(0.016 * (1 + steps) / 2, ["one"], BLOCK_S)
    assert (governor.steps, governor.changes) == (0, 1)
    for _ in range(2):  # one that is held up for long says nothing
        governor.forecast.count(9.0, 2, 0)
    assert governor.forecast.fits(0)
