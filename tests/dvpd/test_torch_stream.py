"""A causal model's block on a torch device: states that stay there, one captured graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_model import SMALL, set_weights
from torch.utils._python_dispatch import TorchDispatchMode

from dvpd.checkpoint import load_model
from dvpd.model import DVPD
from dvpd.runtime import Enhancer
from dvpd.runtime.block_sampler import BlockSampler, Lane
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.schedule import initial_state, sampler_steps
from dvpd.runtime.spec import TLB_PRESETS
from dvpd.torch_backend import TorchBackend, prepare
from dvpd.torch_device import Captured

LIVE = Path(__file__).resolve().parents[2] / "engines" / "dvpd-live-tiny"


def small(lookahead: int = 1) -> TorchBackend:
    model = DVPD(replace(SMALL, causal=True, lookahead_blocks=lookahead))
    set_weights(model)
    return TorchBackend(prepare(model))


def call_by_call(backend: TorchBackend) -> SimpleNamespace:
    """The same backend without its whole blocks."""
    names = ("name", "predict_next", "score_next", "join_states")
    return SimpleNamespace(**{name: getattr(backend, name) for name in names})


def sampler(backend, lookahead: int, n_steps: int, tlb: str) -> BlockSampler:
    manifest = Manifest.load(LIVE)
    plans = {n: sampler_steps(manifest.sde, 0.12, n) for n in (1, 3)} | {0: ()}
    return BlockSampler(
        backend,
        start=initial_state(manifest.sde, 0.12),
        steps=plans[n_steps],
        alpha=0.4,
        tlb=TLB_PRESETS[tlb],
        lookahead_frames=4 * lookahead,
        fewer=plans,
    )


def lanes(n: int, lookahead: int) -> list[Lane]:
    def draw(index: int, first: int, n_frames: int) -> np.ndarray:
        rng = np.random.default_rng((index, first))
        return rng.standard_normal((n_frames, 257)).astype(np.float32)

    return [Lane(draw, 4 * lookahead, 257) for _ in range(n)]


def heard(
    backend, lookahead, n_steps, tlb="none", batches=((0, 1), (0, 1), (1, 0), (1,), (0, 1, 2))
):
    """Blocks of streams that are together in changing orders, with all steps, none, and all again."""
    networks, streams = sampler(backend, lookahead, n_steps, tlb), lanes(3, lookahead)
    rng = np.random.default_rng(0)
    out = []
    for turn, batch in enumerate(batches):
        noisy = 0.3 * rng.standard_normal((len(batch), 3, 4, 257)).astype(np.float32)
        given = n_steps if turn != 1 else min(n_steps, 1)
        out.append(networks.push([streams[i] for i in batch], noisy, given).copy())
    return out


@pytest.mark.parametrize(
    ("lookahead", "n_steps", "tlb"), [(0, 1, "none"), (1, 3, "severe"), (1, 0, "none")]
)
def test_a_block_equals_its_calls(lookahead, n_steps, tlb):
    backend = small(lookahead)
    whole = heard(backend, lookahead, n_steps, tlb)
    wanted = heard(call_by_call(backend), lookahead, n_steps, tlb)
    for one, other in zip(whole, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.ptp(other))


class HostFree(TorchDispatchMode):
    """In a capture's place: refuses what one cannot record, tensors of host data and readings."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name
        assert not name.endswith(("lift_fresh", "lift_fresh_copy", "_local_scalar_dense")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("tlb", ["none", "severe"])
def test_a_captured_block_reads_no_host_and_everything_that_changes_is_copied_in(monkeypatch, tlb):
    backend, made = small(), []

    def captured(self, work, given):
        inputs = tuple(tensor.clone() for tensor in given)
        with HostFree():
            out = work(*inputs)

        def replay():
            for static, value in zip(out, work(*inputs), strict=True):
                static.copy_(value)

        made.append(len(given[0]))
        return Captured(SimpleNamespace(replay=replay), inputs, out)

    wanted = heard(call_by_call(backend), 1, 3, tlb)
    monkeypatch.setattr(TorchBackend, "_captures", True)
    monkeypatch.setattr(TorchBackend, "_captured", captured)
    for one, other in zip(heard(backend, 1, 3, tlb), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.ptp(other))
    assert sorted(made) == [1, 2, 2, 4]  # two streams with 3 steps and with 1; three take 4 places


def test_states_are_tensors_that_a_later_call_leaves_alone():
    backend = small(0)
    networks, (lane,) = sampler(backend, 0, 1, "none"), lanes(1, 0)
    noisy = np.random.default_rng(0).standard_normal((1, 3, 4, 257)).astype(np.float32)
    networks.push([lane], noisy)
    first = lane.predictive.stack
    assert isinstance(first, torch.Tensor)
    before = first.clone()
    networks.push([lane], noisy)
    assert torch.equal(first, before)
    assert lane.predictive.stack is not first


def test_what_cannot_be_computed_is_said():
    backend = small(0)
    noisy = np.full((1, 3, 4, 257), np.nan, np.float32)
    noise = np.zeros((0, 1, 1, 4, 257), np.float32)
    settings = {"start": initial_state(Manifest.load(LIVE).sde, 0.12), "steps": (), "alpha": 0.4}
    settings["tlb"] = TLB_PRESETS["none"]
    with pytest.raises(BackendError, match="non-finite"):
        backend.run_block(noisy, noisy, noise, [None], **settings)
    offline = TorchBackend(prepare(DVPD(SMALL)))
    with pytest.raises(InputError, match="hears whole recordings"):
        offline.run_block(0 * noisy, 0 * noisy, noise, [None], **settings)
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run_block(noisy, noisy, noise, [None], **settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_streams_on_a_gpu_are_captured_and_equal_the_cpu(precision):
    manifest = Manifest.load(LIVE)
    model = load_model(next(LIVE.glob("*.safetensors")))[1]
    rng = np.random.default_rng(0)
    wavs = 0.05 * rng.standard_normal((3, 8192)).astype(np.float32)

    def streamed(backend):
        pool = Enhancer(manifest, backend).stream_pool(steps=1, adapt=False)
        streams = [pool.open(16000, seed=i) for i in range(3)]
        for first in range(0, 8192, 512):
            for stream, wav in zip(streams, wavs, strict=True):
                stream.push(wav[first : first + 512])
            pool.run()
        return np.stack([stream.pull() for stream in streams])

    wanted = streamed(TorchBackend(prepare(model)))
    backend = TorchBackend(prepare(model, precision), "cuda")
    captured = streamed(backend)
    assert [found is not None for found in backend._known.values()] == [True, True]
    backend.capture = False
    eager = streamed(backend)
    np.testing.assert_allclose(captured, eager, rtol=0, atol=1e-5 * np.ptp(eager))
    error = np.square(captured - wanted).sum() / np.square(wanted).sum()
    assert 10 * np.log10(error) < (-60 if precision == "fp32" else -35)
