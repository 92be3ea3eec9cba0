"""Live sounds on several workers: measured, placed, and given no more steps than there is time for."""

from __future__ import annotations

import threading
import types

import numpy as np
import pytest
from test_live import opened, run, speech

from dvpd.runtime import BackendError, InputError, stream_workers
from dvpd.runtime.stream_worker import StreamWorker
from dvpd.runtime.stream_workers import StreamWorkers, block_costs

WAIT_S = 60.0


class Ticks:
    """A clock of each thread's own, a tick further each time that it is asked."""

    def __init__(self, tick_s: float) -> None:
        self.tick_s, self._here = tick_s, threading.local()

    def __call__(self) -> float:
        self._here.now = getattr(self._here, "now", 0.0) + self.tick_s
        return self._here.now


def made(count: int = 2, tick_s: float = 0.01, **options) -> StreamWorkers:
    options = {"steps": 1, "adapt": False} | options
    return StreamWorkers(
        [StreamWorker(opened()[0], **options) for _ in range(count)], 0.75, Ticks(tick_s)
    )


def test_a_block_is_timed_with_each_number_of_steps():
    enhancer, networks = opened()
    networks.seconds = 0.002  # of each of its calls
    costs = block_costs(enhancer, (3, 1, 0), networks.clock)
    assert costs == pytest.approx({3: 0.008, 1: 0.004, 0: 0.002})


@pytest.mark.parametrize(("tick_s", "most"), [(0.01, 4), (0.0119, 4), (0.0121, 2), (0.5, 1)])
def test_what_is_computed_in_time_follows_from_the_measurement(tick_s, most):
    with made(tick_s=tick_s) as workers:  # 24 of 32 ms may be used
        assert workers.costs == pytest.approx({1: tick_s})
        assert workers.max_channels == most


def test_a_sound_goes_where_the_fewest_channels_are():
    with made(3) as workers:
        sounds = [workers.open(16000, channels) for channels in (2, 1, 1, 1, 1)]
        for sound in sounds:
            sound.opened.result(WAIT_S)
        assert [worker.channels for worker in workers.workers] == [2, 2, 2]
        assert workers.channels == 6
        sounds[0].close()
        assert [worker.channels for worker in workers.workers] == [0, 2, 2]
        next_one = workers.open(16000)
        assert workers.workers[0].channels == 1
        assert next_one.process(speech(512)).result(WAIT_S).shape == (512,)


def test_each_gives_what_a_stream_gives():
    wav = speech(4096)
    with made() as workers:
        sounds = [workers.open(16000, seed=3) for _ in range(4)]
        asked = [[sound.process(part) for part in np.split(wav, 8)] for sound in sounds]
        outs = [np.concatenate([f.result(WAIT_S) for f in futures]) for futures in asked]
    alone = run(opened()[0].stream(16000, seed=3, steps=1, adapt=False), wav)[: len(wav)]
    for out in outs:
        np.testing.assert_allclose(out, alone, atol=1e-5)


def test_steps_become_fewer_before_anything_is_late():
    enhancer, networks = opened()
    networks.seconds = 0.0039  # 7.8 ms a channel with one step, 3.9 with none; 24 may be used
    worker = StreamWorker(enhancer, steps=1, clock=networks.clock)
    with StreamWorkers([worker], 0.75, networks.clock) as workers:
        sounds = []
        for steps in (1, 1, 1, 0, 0):
            sounds.append(workers.open(16000))
            sounds[-1].opened.result(WAIT_S)
            assert workers.steps_now == steps
        assert workers.max_channels == 6
        for sound in sounds[2:]:
            sound.close()
        for _ in range(100):  # they come back when those that are left are in time for a while
            for sound in sounds[:2]:
                sound.process(speech(512)).result(WAIT_S)
        assert workers.steps_now == 1
        assert all(sound.stats.late == 0 for sound in sounds)


class Engine:
    """Stands in for ``Enhancer.open``."""

    def __init__(self, device: str, fails_at: int = 99) -> None:
        self.device, self.fails_at, self.asked = device, fails_at, []

    def __call__(self, folder, backend, device, threads):
        self.asked.append((backend, device, threads))
        if len(self.asked) == self.fails_at:
            raise BackendError("no memory")
        enhancer, networks = opened()
        networks.device, networks.name = self.device, "ort"
        return enhancer


@pytest.fixture
def engines(monkeypatch):
    """Called with a device, whose engines are then opened on a machine with three cores."""

    def begin(*args) -> Engine:
        from dvpd.runtime import engines, enhancer
        from dvpd.runtime.backends import choose

        engine = Engine(*args)
        monkeypatch.setattr(engines, "find_live_engine", lambda model: model)
        monkeypatch.setattr(enhancer, "Enhancer", types.SimpleNamespace(open=engine))
        monkeypatch.setattr(choose, "cpu_quota", lambda: 3)
        return engine

    return begin


def test_a_cpu_gets_a_worker_for_each_core_with_one_thread(engines):
    engine = engines("cpu")
    with StreamWorkers.start("live", steps=1) as workers:
        assert len(workers.workers) == 3
    assert engine.asked == [("auto", "auto", 1), ("ort", "cpu", 1), ("ort", "cpu", 1)]
    with StreamWorkers.start("live", threads=2, steps=1) as workers:
        assert len(workers.workers) == 2


def test_a_gpu_gets_one_worker(engines):
    engines("cuda")
    with StreamWorkers.start("live", steps=1) as workers:
        assert len(workers.workers) == 1
        assert stream_workers.own_clock(workers.enhancer) is stream_workers.time.perf_counter


def test_workers_that_cannot_all_be_opened_are_closed(engines):
    engines("cpu", 3)
    with pytest.raises(BackendError, match="no memory"):
        StreamWorkers.start("live", steps=1)
    assert not [t for t in threading.enumerate() if t.name == "dvpd-streams"]


def test_a_closed_one_refuses():
    workers = made()
    workers.close()
    with pytest.raises(InputError, match="worker is closed"):
        workers.open(16000)
    assert workers.channels == 0
