"""Sound goes on, whatever the engine does."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
import pytest

from dvpd.integrations.sound import BEHIND_S, RETRY_S, FilteredSound
from dvpd.runtime.stream_worker import to_int16

LATE, SIZE = 896, 160


def blocks(pcm):
    return [pcm[first : first + SIZE] for first in range(0, len(pcm), SIZE)]


def expected(worker, pcm) -> np.ndarray:
    """What the engine makes of a sound."""
    return to_int16(worker.open(16000).process(pcm).result())


def settle(sound: FilteredSound) -> None:
    """Wait until all that was asked for is computed."""
    for future in sound._asked:
        future.result(60.0)


async def heard(sound: FilteredSound, pcm) -> np.ndarray:
    return np.concatenate([await sound.later(block, 16000) for block in blocks(pcm)])


def test_later_is_the_stream_itself(networks_worker, pcm):
    worker, _ = networks_worker
    out = asyncio.run(heard(FilteredSound(worker), pcm))
    np.testing.assert_array_equal(out, expected(worker, pcm))
    assert not out[:LATE].any()
    assert out[LATE:].any()


def test_now_is_the_same_a_buffer_later(networks_worker, pcm):
    worker, _ = networks_worker
    sound = FilteredSound(worker, buffer_ms=20.0)
    out = []
    for block in blocks(pcm):
        out.append(sound.now(block, 16000))
        settle(sound)
    wanted = expected(worker, pcm)
    np.testing.assert_array_equal(np.concatenate(out)[320:], wanted[:-320])
    assert sound.late == sound.failures == 0


def test_a_block_that_is_not_ready_passes_in_its_place(networks_worker, pcm, caplog):
    worker, networks = networks_worker
    sound = FilteredSound(worker)  # no time at all for computing
    sound.now(pcm[:0], 16000)
    settle(sound)
    networks.raised = lambda noisy: time.sleep(0.05)
    with caplog.at_level(logging.WARNING, "dvpd"):
        out = np.concatenate([sound.now(block, 16000) for block in blocks(pcm[:4800])])
    np.testing.assert_array_equal(out[LATE:], pcm[: 4800 - LATE])
    assert sound.late > 10
    assert caplog.text.count("not ready in time") == 1
    networks.raised = lambda noisy: None
    settle(sound)
    late = sound.late
    sound._buffer = SIZE  # time enough from here on
    sound.now(pcm[4800:4960], 16000)
    settle(sound)
    sound._collect()
    after = sound.now(pcm[4960:5120], 16000)
    assert sound.late == late
    np.testing.assert_array_equal(after, expected(worker, pcm[:5120])[4800:4960])


@pytest.mark.parametrize("way", ["now", "later"])
def test_a_failure_is_said_once_and_tried_again(networks_worker, pcm, caplog, way):
    worker, networks = networks_worker
    now = 0.0
    sound = FilteredSound(worker, clock=lambda: now)

    def fail(noisy):
        raise RuntimeError("the engine is gone")

    def step(block):
        if way == "later":
            return asyncio.run(sound.later(block, 16000))
        out = sound.now(block, 16000)
        if sound._sound is not None:
            settle_quietly(sound)
        return out

    networks.raised = fail
    with caplog.at_level(logging.WARNING, "dvpd"):
        for _ in range(3):
            outs = [step(block) for block in blocks(pcm[:3200])]
            now += RETRY_S
    assert sound.failures == 3
    assert caplog.text.count("the engine is gone") == 1
    np.testing.assert_array_equal(outs[-1], pcm[3040:3200])  # as it is, without delay
    networks.raised = lambda noisy: None
    assert not step(pcm[:SIZE]).any()  # the delay of a new sound
    assert sound.failures == 3


def settle_quietly(sound: FilteredSound) -> None:
    for future in sound._asked:
        future.exception(60.0)


def test_an_engine_that_hangs_does_not_hold_the_sound(networks_worker, pcm, monkeypatch, caplog):
    worker, networks = networks_worker
    monkeypatch.setattr("dvpd.integrations.sound.BEHIND_S", 0.02)
    networks.raised = lambda noisy: time.sleep(0.1)
    sound = FilteredSound(worker)
    block = pcm[:2048]
    np.testing.assert_array_equal(asyncio.run(sound.later(block, 16000)), block)
    assert "computing is behind" in caplog.text
    waiting = FilteredSound(worker)
    for _ in range(8):
        last = waiting.now(block, 16000)
    assert waiting.failures == 1
    np.testing.assert_array_equal(last, block)
    assert BEHIND_S == 1.0


def test_switched_off_it_passes_and_computes_nothing(networks_worker, pcm):
    worker, networks = networks_worker
    sound = FilteredSound(worker)
    asyncio.run(heard(sound, pcm))
    sound.enabled = False
    calls = len(networks.batches)
    np.testing.assert_array_equal(asyncio.run(heard(sound, pcm)), pcm)
    assert len(networks.batches) == calls
    sound.enabled = True
    np.testing.assert_array_equal(asyncio.run(heard(sound, pcm)), expected(worker, pcm))


def test_the_format_may_change(networks_worker):
    worker, _ = networks_worker
    sound = FilteredSound(worker)
    for rate, channels in ((16000, 1), (48000, 2), (44100, 1)):
        block = np.ones((rate // 100, channels), np.int16)
        assert asyncio.run(sound.later(block, rate)).shape == block.shape
    worker.open(16000).opened.result()
    assert len(worker.pool.streams) == 2  # the last one, and the one that was asked for now
