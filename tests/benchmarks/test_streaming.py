"""rtf.py --stream: what is counted as late, what the delay is, and that the report fits its schema."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dvpd.benchmarks.common import stream_timing

RATE, BLOCK, MODEL_BLOCK = 16000, 160, 512


class Clock:
    """Time that passes only where the test lets it; ``wait`` is its sleep."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


class Late:
    """A stream whose networks run for ``costs`` seconds, in turn, whenever 512 samples are there."""

    latency_samples, latency_ms = 896, 56.0

    def __init__(self, clock, costs, late=896, gain=0.5):
        self._clock, self._costs, self._gain = clock, costs, gain
        self._samples = self.blocks = 0
        self._waiting = np.zeros((late, 1), np.float32)

    @property
    def stats(self):
        return SimpleNamespace(
            blocks=self.blocks, seconds=self.blocks * MODEL_BLOCK / RATE, steps_now=1
        )

    def process(self, block):
        self._samples += len(block)
        while (self.blocks + 1) * MODEL_BLOCK <= self._samples:
            self._clock.now += self._costs[self.blocks % len(self._costs)]
            self.blocks += 1
        waiting = np.concatenate([self._waiting, self._gain * block])
        self._waiting = waiting[len(block) :]
        return waiting[: len(block)]

    def flush(self):
        return self._waiting


def timed(costs, seconds=3.2, block=BLOCK, real_time=False, memory=lambda: 100.0):
    clock = Clock()
    wav = np.ones(5000, np.float32)
    found = stream_timing.time_stream(
        Late(clock, costs), wav, RATE, block, seconds, real_time=real_time,
        clock=clock, sleep=clock.wait, memory=memory,
    )  # fmt: skip
    return found, clock.now


@pytest.mark.parametrize("real_time", [False, True])
def test_only_blocks_in_which_the_networks_ran_count(real_time):
    found, now = timed([0.008], real_time=real_time)
    row = stream_timing.summarise(found, 56.0)
    assert row["blocks"] == 100  # 3.2 s in blocks of 32 ms, although 320 calls of 10 ms were made
    assert row["latency_ms"]["p50"] == pytest.approx(8.0)
    assert row["latency_ms"]["max"] == pytest.approx(8.0)
    assert row["rtf"] == pytest.approx(0.25)
    assert (row["missed"], row["jitter_ms"]) == (0, pytest.approx(0.0, abs=1e-9))
    assert row["deadline_ms"] == pytest.approx(32.0)
    assert row["delay_ms"] == pytest.approx(64.0)
    assert now == pytest.approx(3.208 if real_time else 0.8)


@pytest.mark.parametrize("real_time", [False, True])
def test_a_slow_block_makes_those_after_it_wait(real_time):
    """One block in 50 takes 70 ms: it is late, and the next call waits, as at a microphone."""
    found, _ = timed([0.07] + [0.008] * 49, real_time=real_time)
    row = stream_timing.summarise(found, 56.0)
    assert row["latency_ms"]["max"] == pytest.approx(70.0)
    # 32 ms later, 38 ms are still to be waited for: 46 ms; then 22 ms, which is in time.
    assert sorted(found.latency_s)[-4:-2] == pytest.approx([0.046, 0.046], abs=0.006)
    assert row["missed"] == 4
    assert row["jitter_ms"] > 30
    assert row["rtf"] == pytest.approx((2 * 0.07 + 98 * 0.008) / 3.2)


def test_who_is_too_slow_falls_behind_without_end():
    row = stream_timing.summarise(timed([0.04])[0], 56.0)
    assert row["rtf"] == pytest.approx(1.25)
    assert row["missed"] == row["blocks"] == 100
    assert row["latency_ms"]["max"] > 700


def test_long_blocks_have_as_long_as_they_last():
    row = stream_timing.summarise(timed([0.008], block=1600)[0], 56.0)
    assert row["deadline_ms"] == pytest.approx(100.0)
    assert row["latency_ms"]["max"] == pytest.approx(32.0)  # four blocks of the model in a call
    assert row["missed"] == 0


def test_memory_that_grows_is_seen():
    values = iter([100.0, 130.0, 140.0])  # the first tenth may allocate
    assert timed([0.008], memory=lambda: next(values))[0].growth_mib == 10.0
    assert timed([0.008], memory=lambda: None)[0].growth_mib is None


@pytest.mark.parametrize("late", [896, 900])
def test_the_delay_is_measured_and_not_taken_from_what_is_said(late):
    enhancer = SimpleNamespace(stream=lambda *a, **k: Late(Clock(), [0.0], late))
    row = stream_timing.measure_delay(enhancer, RATE, 1)
    assert row == {"sample_rate": RATE, "reported": 896, "speech": late, "click": late}
    assert stream_timing.same([row]) == (late == 896)


def test_a_click_of_which_nothing_is_left_has_no_place():
    class Deaf(Late):
        def process(self, block):
            return super().process(np.clip(block, -0.05, 0.05))

    enhancer = SimpleNamespace(stream=lambda *a, **k: Deaf(Clock(), [0.0]))
    row = stream_timing.measure_delay(enhancer, RATE, 1)
    assert row["click"] is None
    assert row["speech"] == 896
    assert stream_timing.same([row])
