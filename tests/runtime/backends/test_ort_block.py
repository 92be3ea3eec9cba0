"""The memory of a block's states in ONNX Runtime: used again, but never while somebody holds it."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from dvpd.runtime.backends.choose import open_backend
from dvpd.runtime.errors import BackendError, NonFiniteError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import TlbFactors

pytest.importorskip("onnxruntime")
FOLDER = Path(__file__).resolve().parents[3] / "engines" / "dvpd-live-tiny"
NONE = (None, None)


@pytest.fixture(scope="module")
def manifest():
    return Manifest.load(FOLDER)


@pytest.fixture
def backend(manifest):
    opened = open_backend(FOLDER, manifest, "ort", "cpu", 1)
    yield opened
    opened.close()


@pytest.fixture
def step(backend, manifest):
    rng = np.random.default_rng(0)
    noisy = 0.3 * rng.standard_normal((1, 3, 4, 257), np.float32)
    given = 0.2 * rng.standard_normal((1, 1, 4, 257), np.float32)

    def run(states, scale=1.0):
        x = np.float32(scale) * noisy
        return backend.both_next(x, given, states, manifest.block, TlbFactors())

    return run


def test_what_is_held_stays_as_it_is(step):
    states = [step(NONE)[2]]
    kept = [[state.numpy() for state in states[0]]]
    for _ in range(4):
        states.append(step(states[-1])[2])
        kept.append([state.numpy() for state in states[-1]])
    for held, copies in zip(states, kept, strict=True):
        for state, copy in zip(held, copies, strict=True):
            assert np.array_equal(state.numpy(), copy)
    again = step(states[1])
    for state, copy in zip(again[2], kept[2], strict=True):
        assert np.array_equal(state.numpy(), copy)


def test_outputs_that_are_held_stay_as_they_are(step):
    first = step(NONE)
    kept = [value.copy() for value in first[:2]]
    step(first[2], 0.5)
    for value, copy in zip(first[:2], kept, strict=True):
        assert np.array_equal(value, copy)


def test_one_stream_needs_two_memories_and_two_bindings(backend, step):
    states = step(NONE)[2]
    states = step(states)[2]
    gc.collect()
    block = backend._block
    block._bindings.clear()
    made = []
    for pool in block._pools:
        real = pool._make
        pool._make = lambda value, real=real: made.append(value) or real(value)
    for _ in range(6):
        states = step(states)[2]
    assert made == []
    assert len(block._bindings) == 2


def test_streams_in_turn_are_apart_and_do_not_bind_anew(backend, step):
    alone = [NONE, NONE, NONE]
    for i, scale in enumerate((1.0, 0.5, 0.25)):
        for _ in range(5):
            alone[i] = step(alone[i], scale)[2]
    wanted = [[state.numpy() for state in states] for states in alone]
    turns = [NONE, NONE, NONE]
    for turn in range(5):
        if turn == 3:
            before = len(backend._block._bindings)
        for i, scale in enumerate((1.0, 0.5, 0.25)):
            turns[i] = step(turns[i], scale)[2]
    assert len(backend._block._bindings) <= before + 6
    for states, copies in zip(turns, wanted, strict=True):
        for state, copy in zip(states, copies, strict=True):
            assert np.array_equal(state.numpy(), copy)


def test_a_call_that_fails_leaves_the_state(backend, step, monkeypatch):
    states = step(NONE)[2]
    before = [state.numpy() for state in states]
    with pytest.raises(NonFiniteError, match="the block graph"):
        step(states, np.nan)
    for state, copy in zip(states, before, strict=True):
        assert np.array_equal(state.numpy(), copy)
    monkeypatch.setattr(backend._block, "_session", None)
    backend._block._bindings.clear()
    with pytest.raises(BackendError, match="failed in the block graph on cpu"):
        step(states)


def test_a_closed_backend_leaves_the_block_to_the_two_graphs(backend, step):
    states = step(NONE)[2]
    backend.close()
    assert step(states) is None
    with pytest.raises(BackendError, match="closed"):
        backend.predict_next(np.zeros((1, 3, 4, 257), np.float32), states[0])
