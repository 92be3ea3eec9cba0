"""Two devices and a model between them: rings, clocks that differ, what is heard."""

import tracemalloc

import numpy as np
import pytest

from dvpd.runtime.duplex import SILENT_DEVICE_S, Duplex
from dvpd.runtime.ring import DriftControl, Ring

from fake_stream import GAIN, LATE, FakeStream  # isort: skip  # beside this file

RATE, BLOCK, TARGET = 16000, 160, 480


def make_duplex(channels=1, clock=lambda: 0.0, stream=FakeStream):
    return Duplex(stream(RATE, channels), RATE, channels, block=BLOCK, target=TARGET, clock=clock)


def sine(n, first=0):
    return (0.5 * np.sin(2 * np.pi * 200 / RATE * np.arange(first, first + n))).astype(np.float32)


def carry(loop, blocks, first=0, channels=1):
    """Both devices in step; what was heard."""
    heard = []
    for index in range(first, first + blocks):
        loop.on_input(sine(BLOCK, index * BLOCK)[:, None].repeat(channels, 1), BLOCK, None, None)
        assert loop.work()
        out = np.empty((BLOCK, channels), np.float32)
        loop.on_output(out, BLOCK, None, None)
        heard.append(out)
    return np.concatenate(heard)


def test_a_ring_gives_back_what_it_took_in_whatever_the_pieces():
    rng = np.random.default_rng(0)
    ring, taken, given = Ring(50, 2), [], []
    for n in rng.integers(0, 40, 200):
        block = rng.standard_normal((n, 2)).astype(np.float32)
        room = 50 - ring.level
        ring.write(block)
        taken.append(block[:room])
        out = np.ones((rng.integers(0, 40), 2), np.float32)
        count = ring.read(out)
        given.append(out[:count])
        assert not out[count:].any()
    taken, given = np.concatenate(taken), np.concatenate(given)
    assert np.array_equal(given, taken[: len(given)])
    assert ring.lost > 0
    assert ring.written == len(taken)


@pytest.mark.parametrize(("level", "change"), [(600, -100), (400, 100), (510, 0)])
def test_a_level_that_is_off_is_put_right_without_a_click(level, change):
    control = DriftControl(500, 50, fade=24, average_blocks=1)
    block = sine(320)[:, None]
    out = control.apply(block, level)
    assert len(out) - len(block) == change
    assert control.dropped - control.repeated == -change
    assert control.corrections == (change != 0)
    before = np.abs(np.diff(block[:, 0])).max()
    assert np.abs(np.diff(out[:, 0])).max() < 2 * before + 1 / 24  # a fade, no jump
    assert out[0] == pytest.approx(block[0], abs=0.03)
    assert out[-1] == pytest.approx(block[-1], abs=0.03)


def test_what_is_said_is_heard_late_by_the_delay_and_the_buffer():
    loop = make_duplex()
    out = carry(loop, 40)[:, 0]
    first = np.flatnonzero(out)[0]
    wait = TARGET - BLOCK  # the buffer is at its target when the third block is in it
    np.testing.assert_allclose(out[wait + LATE :], GAIN * sine(len(out) - wait - LATE), atol=1e-6)
    assert first == wait + LATE + 1
    assert loop.xruns == {"input": 0, "output": 0}


def test_the_raw_sound_takes_the_place_of_the_enhanced_one_in_step_and_without_a_jump():
    loop = make_duplex()
    carry(loop, 10)
    loop.raw = True
    out = carry(loop, 10, first=10)[:, 0]
    place = 10 * BLOCK - (TARGET - BLOCK) - LATE
    np.testing.assert_allclose(out[-5 * BLOCK :], sine(5 * BLOCK, place + 5 * BLOCK), atol=1e-6)
    assert np.abs(np.diff(out)).max() < 0.06
    loop.raw = False
    out = carry(loop, 10, first=20)[:, 0]
    np.testing.assert_allclose(
        out[-5 * BLOCK :], GAIN * sine(5 * BLOCK, place + 15 * BLOCK), atol=1e-6
    )


def test_one_channel_is_heard_on_both_loudspeakers():
    loop = make_duplex()
    for _ in range(4):
        loop.on_input(np.full((BLOCK, 1), 0.2, np.float32), BLOCK, None, None)
        loop.work()
    out = np.empty((BLOCK, 2), np.float32)
    loop.on_output(out, BLOCK, None, None)
    assert out[-1] == pytest.approx([0.1, 0.1])


def test_a_gap_is_one_interruption_and_the_buffer_fills_again():
    loop = make_duplex()
    carry(loop, 10)
    out = np.empty((BLOCK, 1), np.float32)
    for _ in range(6):  # the worker is stopped
        loop.on_output(out, BLOCK, None, None)
    assert not out.any()
    assert loop.xruns == {"input": 0, "output": 1}
    heard = carry(loop, 10, first=10)
    assert heard[-1] != 0
    assert loop.xruns["output"] == 1


def test_what_the_worker_cannot_take_is_counted():
    loop = make_duplex()
    block = np.zeros((RATE // 4, 1), np.float32)
    for _ in range(3):
        loop.on_input(block, RATE // 4, None, None)
    assert loop.heard.lost == RATE // 4
    assert loop.xruns["input"] == 1
    loop.on_input(block[:0], 0, None, "input overflow")  # said by the audio system
    assert loop.xruns["input"] == 2


def test_a_burst_is_left_out_at_once_and_without_a_click():
    """A device that starts late and delivers what it has kept."""
    loop = make_duplex()
    loop.on_input(sine(RATE // 2)[:, None], RATE // 2, None, None)
    while loop.work():
        pass
    heard = carry(loop, 40, first=50)[:, 0]
    assert loop.ready.level < 1.5 * TARGET
    assert loop.drift.corrections == 1
    assert loop.drift.dropped > RATE // 2 - 4 * TARGET
    assert np.abs(np.diff(heard[10:])).max() < 0.04
    place = 90 * BLOCK - loop.ready.level - LATE
    np.testing.assert_allclose(heard[-BLOCK:], GAIN * sine(BLOCK, place - BLOCK), atol=1e-6)


@pytest.mark.parametrize("share", [1.001, 0.999])
def test_clocks_that_differ_by_a_thousandth_interrupt_nothing(share):
    """Two minutes; uncorrected, 120 ms would pile up or be missing, and the buffer holds 30."""
    loop = make_duplex()
    out, heard, due, levels = np.empty((BLOCK, 1), np.float32), [], 0.0, []
    for index in range(12_000):
        loop.on_input(sine(BLOCK, index * BLOCK)[:, None], BLOCK, None, None)
        loop.work()
        while due <= index:
            loop.on_output(out, BLOCK, None, None)
            heard.append(out[:, 0].copy())
            due += share
        levels.append(loop.ready.level)
    assert loop.xruns == {"input": 0, "output": 0}
    assert max(levels) < 2 * TARGET
    wanted = 12_000 * BLOCK * 0.001
    assert abs(loop.drift.dropped - loop.drift.repeated) == pytest.approx(wanted, rel=0.3)
    assert (loop.drift.dropped > 0) == (share > 1)
    assert np.abs(np.diff(np.concatenate(heard)[3 * BLOCK :])).max() < 0.05


def test_the_callbacks_only_copy():
    size = 8000
    loop = Duplex(FakeStream(RATE, 2), RATE, 2, block=size, target=size)
    data, out = np.zeros((size, 2), np.float32), np.empty((size, 2), np.float32)
    loop.ready.write(data)
    tracemalloc.start()
    try:
        for _ in range(20):
            loop.on_input(data, size, None, None)
            loop.on_output(out, size, None, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < data.nbytes / 8  # views and numbers, no samples


def test_a_device_that_calls_no_more_is_noticed():
    now = [0.0]
    loop = make_duplex(clock=lambda: now[0])
    for _ in range(10):
        now[0] += 1.0
        loop.on_input(np.zeros((BLOCK, 1), np.float32), BLOCK, None, None)
        assert not loop.gone("input")
    assert loop.gone("output")  # it never called
    now[0] += SILENT_DEVICE_S
    assert not loop.gone("input")
    now[0] += 0.1
    assert loop.gone("input")


def test_an_error_of_the_worker_is_kept_for_the_command():
    class Broken(FakeStream):
        def process(self, block):
            raise RuntimeError("engine")

    loop = make_duplex(stream=Broken)
    loop.start()
    loop.on_input(np.zeros((BLOCK, 1), np.float32), BLOCK, None, None)
    loop._worker.join(10)
    loop.stop()
    assert str(loop.error) == "engine"
