"""Live sounds on a thread of their own: in order, together, each with its own errors."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from test_live import opened, run, speech

from dvpd.runtime import BackendError, InputError
from dvpd.runtime.stream_worker import StreamWorker, to_int16

STEPS = {"steps": 1, "adapt": False}
WAIT_S = 60.0


class Gate:
    """Holds the networks until it is opened."""

    def __init__(self) -> None:
        self.inside, self.open = threading.Event(), threading.Event()

    def __call__(self, noisy) -> None:
        self.inside.set()
        assert self.open.wait(WAIT_S)


def test_blocks_come_back_in_order_as_from_a_stream():
    enhancer, _ = opened()
    wav = speech(8192)
    with StreamWorker(enhancer, **STEPS) as worker:
        sound = worker.open(16000)
        asked = [sound.process(part) for part in np.array_split(wav, 40)]
        asked.append(sound.flush())
        out = np.concatenate([future.result(WAIT_S) for future in asked])
        assert sound.latency_samples == 896
        assert sound.stats.blocks > 10
    np.testing.assert_array_equal(out, run(opened()[0].stream(16000, **STEPS), wav))


def test_nobody_waits_and_what_waits_is_one_batch():
    enhancer, networks = opened()
    with StreamWorker(enhancer, **STEPS) as worker:
        first, *others = [worker.open(16000, seed=i) for i in range(5)]
        for sound in (first, *others):
            sound.opened.result(WAIT_S)
        gate = networks.raised = Gate()
        held = first.process(speech(1024))
        assert gate.inside.wait(WAIT_S)
        asked = [sound.process(speech(1024)) for sound in others]  # returns at once
        assert not held.done()
        networks.batches.clear()
        gate.open.set()
        for future in asked:
            assert future.result(WAIT_S).shape == (1024,)
        assert max(networks.batches) == 4


def test_errors_are_answers_and_harm_no_other_sound():
    enhancer, networks = opened()
    with StreamWorker(enhancer, **STEPS) as worker:
        wrong = worker.open(1)
        good = worker.open(16000)
        with pytest.raises(InputError, match="sample_rate is 1 Hz"):
            wrong.process(speech(100)).result(WAIT_S)
        with pytest.raises(InputError, match=r"expected \[n\]"):
            good.process(np.zeros((10, 2), np.float32)).result(WAIT_S)
        assert good.process(speech(100)).result(WAIT_S).shape == (100,)
        networks.raised = fail
        with pytest.raises(BackendError, match="no memory"):
            good.process(speech(4096)).result(WAIT_S)
        networks.raised = lambda noisy: None
        again = worker.open(16000)
        assert again.process(speech(4096)).result(WAIT_S).shape == (4096,)


def fail(noisy) -> None:
    raise RuntimeError("no memory")


def test_closing_does_what_was_asked_for_and_then_refuses():
    enhancer, _ = opened()
    worker = StreamWorker(enhancer, **STEPS)
    sound = worker.open(16000)
    asked = sound.process(speech(4096))
    worker.close()
    assert asked.result(0).shape == (4096,)
    for call in (lambda: worker.open(16000), lambda: sound.process(speech(10))):
        with pytest.raises(InputError, match="worker is closed"):
            call()
    sound.close()
    worker.close()


def test_sounds_that_end_leave_the_pool():
    with StreamWorker(opened()[0], **STEPS) as worker:
        sound = worker.open(16000)
        sound.opened.result(WAIT_S)
        assert len(worker.pool.streams) == 1
        sound.close()
        worker.open(16000).opened.result(WAIT_S)
        assert len(worker.pool.streams) == 1


def test_models_for_recordings_are_refused(enhancer):
    with pytest.raises(InputError, match="hears windows of a recording"):
        StreamWorker(enhancer)


def test_sixteen_bits_are_limited():
    wav = np.array([0.0, 0.5, -1.0, 1.0, 3.0, -3.0], np.float32)
    assert to_int16(wav).tolist() == [0, 16384, -32768, 32767, 32767, -32768]
