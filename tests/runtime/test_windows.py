import dataclasses
from functools import partial

import numpy as np
import pytest

from dvpd.runtime.errors import InputError
from dvpd.runtime.spec import SignalSpec
from dvpd.runtime.windows import LoudestStretch, WindowedStream, WindowPlan

PLAN = WindowPlan(
    window_samples=63 * 128, context_samples=8 * 128, fade_samples=4 * 128, reminder_samples=0
)


def run(wav, process, sizes, plan=PLAN):
    stream = WindowedStream(lambda *window: partial(process, *window), plan, 128)
    pieces, position = [], 0
    rng = np.random.default_rng(0)
    while position < wav.size:
        size = sizes or int(rng.integers(1, 3000))
        pieces += [piece() for piece in stream.push(wav[position : position + size])]
        position += size
    return np.concatenate(
        [np.zeros(0, np.float32), *pieces, *(piece() for piece in stream.finish())]
    )


SHORT_LAST = dataclasses.replace(PLAN, least_samples=31 * 128)
REMINDED = dataclasses.replace(PLAN, window_samples=(63 + 32) * 128, reminder_samples=32 * 128)


@pytest.mark.parametrize(
    "plan", [PLAN, SHORT_LAST, REMINDED], ids=["whole last", "short last", "room for a reminder"]
)
@pytest.mark.parametrize("length", [1, 128, 8064, 8065, 8191, 14080, 14081, 20000, 50001, 100000])
def test_identity_at_any_length_and_cut(length, plan):
    wav = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    calls = []

    def process(piece, frame):
        calls.append((frame, piece.size))
        np.testing.assert_array_equal(piece, wav[frame * 128 : frame * 128 + piece.size])
        return piece

    for sizes in (1000, 8064, 10**6, None):
        calls.clear()
        out = run(wav, process, sizes, plan)
        np.testing.assert_allclose(out, wav, atol=1e-6)
        lengths = [size for _, size in calls]
        assert max(lengths) <= plan.window_samples
        assert set(lengths[:-1]) <= {plan.cut_samples}
        if length > plan.window_samples:  # no window is left with little to average over
            assert max(lengths) == plan.cut_samples
            assert lengths[-1] > plan.last_samples - 128
            # and none is longer than it has to be
            rest = length - (len(calls) - 1) * plan.step_samples
            assert lengths[-1] <= max(plan.last_samples, rest)


def test_the_default_spends_little_on_the_last_window():
    """11.5 s: a second window of 5.4 s, where one as long as the first would be 7.2 s."""
    lengths = []

    def process(piece, frame):
        lengths.append(piece.size)
        return piece

    wav = np.ones(184000, np.float32)
    run(wav, process, 4096, WindowPlan())
    assert lengths == [(1023 - 128) * 128, 184000 - WindowPlan().step_samples]


def test_contaminated_ends_are_thrown_away():
    wav = np.random.default_rng(1).standard_normal(40000).astype(np.float32)

    def process(piece, frame):
        out = piece.copy()
        edge = PLAN.context_samples - PLAN.fade_samples // 2
        if frame:
            out[:edge] = 1e6
        if frame * 128 + piece.size < wav.size:
            out[-edge:] = 1e6
        return out

    np.testing.assert_allclose(run(wav, process, 777), wav, atol=1e-6)


def test_disagreeing_windows_meet_without_a_click():
    wav = np.ones(40000, np.float32)
    level = iter(np.tile([1.0, 2.0], 20))
    out = run(wav, lambda piece, frame: piece * np.float32(next(level)), 512)
    assert {out[0], out.max()} == {1.0, 2.0}
    assert np.abs(np.diff(out)).max() <= 1.01 / PLAN.fade_samples


def test_silent_window_never_reaches_the_network():
    def process(piece, frame):
        raise AssertionError

    assert not run(np.zeros(30000, np.float32), process, 4000).any()


def test_empty_signal():
    assert WindowedStream(lambda p, f: p, PLAN, 128).finish() == []


@pytest.mark.parametrize("sizes", [1, 777, 5000, 10**6])
def test_the_loudest_stretch_is_found_in_pieces_of_any_size(sizes):
    wav = (0.01 * np.random.default_rng(0).standard_normal(60000)).astype(np.float32)
    wav[10 * 2048 + 5 : 14 * 2048 - 5] *= 10.0
    wav[20 * 2048 + 5 : 24 * 2048 - 5] *= 9.9
    loudest = LoudestStretch(4 * 2048, 128)
    for start in range(0, wav.size, sizes):
        loudest.push(wav[start : start + sizes])
    assert loudest.found.first_frame == 10 * 16
    np.testing.assert_array_equal(loudest.found.wav, wav[10 * 2048 : 14 * 2048])


def test_no_stretch_in_a_shorter_signal():
    loudest = LoudestStretch(4 * 2048, 128)
    loudest.push(np.ones(4 * 2048 - 1, np.float32))
    assert loudest.found is None
    loudest.push(np.zeros(1, np.float32))
    assert loudest.found.first_frame == 0


@pytest.mark.parametrize("samples", [-2048, 4000, 8 * 2048 + 1])
def test_bad_reminder(samples):
    with pytest.raises(InputError, match=r"reminder_samples is .*expected a multiple of 2048"):
        WindowPlan(reminder_samples=samples)


@pytest.mark.parametrize(
    "sizes", [(1000, 600, 100), (8064, 100, 200), (8064, 1024, 3), (8064, 1024, 4, 0)]
)
def test_bad_plan(sizes):
    with pytest.raises(InputError):
        WindowPlan(*sizes, reminder_samples=0)


def test_windows_too_small_for_their_reminder():
    with pytest.raises(InputError, match="must hold the reminder"):
        WindowPlan(128 * 128)


def test_plan_off_the_frame_grid():
    with pytest.raises(InputError, match="hop"):
        WindowPlan(10000, 1000, 100, reminder_samples=0).check_grid(SignalSpec())


@pytest.mark.parametrize(
    "plan", [PLAN, REMINDED, WindowPlan()], ids=["small", "reminded", "default"]
)
@pytest.mark.parametrize("excess", [0, 1, 5000, 10**6])
def test_seams_are_where_windows_meet(plan, excess):
    length = plan.window_samples + excess
    firsts = []

    def process(piece, frame):
        firsts.append(frame)
        return np.full_like(piece, len(firsts))

    out = run(np.ones(length, np.float32), process, 30000, plan)
    seams = plan.seams(length)
    assert len(seams) == len(firsts) - 1
    for number, seam in enumerate(seams, start=1):  # the middle of the fade from one to the next
        assert out[seam] == pytest.approx(number + 0.5, abs=1.0 / plan.fade_samples)
