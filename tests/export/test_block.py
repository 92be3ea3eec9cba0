"""The graph of one block: both networks of a causal model in one call, exact, with the same state."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from dvpd.causal import advance
from dvpd.config import Config
from dvpd.export.block import BlockGraph, block_point, one_block
from dvpd.runtime.backends.choose import open_backend
from dvpd.runtime.block_sampler import BlockSampler, Lane
from dvpd.runtime.errors import ManifestError
from dvpd.runtime.manifest import MANIFEST_NAME, BlockPoint, Manifest
from dvpd.runtime.schedule import initial_state, sampler_steps
from dvpd.runtime.spec import GRAPH_NAMES, TLB_PRESETS, TlbFactors
from dvpd.torch_backend import prepare

EXACT = 1e-5  # of an output's peak
ONES = TlbFactors()


@pytest.fixture(scope="module")
def manifest(live):
    return Manifest.load(live)


@pytest.fixture(scope="module")
def backend(live, manifest):
    pytest.importorskip("onnxruntime")
    opened = open_backend(live, manifest, "ort", "cpu", 1)
    yield opened
    opened.close()


def blocks(n: int):
    rng = np.random.default_rng(0)
    for _ in range(n):
        noisy = 0.3 * rng.standard_normal((1, 3, 4, 257), np.float32)
        yield noisy, 0.2 * rng.standard_normal((1, 1, 4, 257), np.float32)


def two_calls(backend, noisy, given, states, point):
    """What the graph of one block computes, with the other two."""
    clean_ri, feats, heard = backend.predict_next(noisy, states[0])
    magnitude = np.sqrt(np.square(clean_ri).sum(axis=1, keepdims=True))
    xt, t = np.float32(point.w_x0) * magnitude + given, np.array([point.t], np.float32)
    sigma_z, diffused = backend.score_next(xt, t, feats, *ONES.arrays(), states[1])
    return clean_ri, sigma_z, (heard, diffused)


def array(state):
    return state if isinstance(state, np.ndarray) else state.numpy()


def close(got, want):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= EXACT * np.abs(want).max()


def test_outputs_and_states_are_those_of_the_two_graphs(backend, manifest):
    one = two = (None, None)
    for noisy, given in blocks(8):
        *got, one = backend.both_next(noisy, given, one, manifest.block, ONES)
        *want, two = two_calls(backend, noisy, given, two, manifest.block)
        for a, b in zip((*got, *map(array, one)), (*want, *two), strict=True):
            close(a, b)


def test_a_stream_changes_between_both_kinds_at_any_block(backend, manifest):
    mixed = two = (None, None)
    for i, (noisy, given) in enumerate(blocks(7)):
        *want, two = two_calls(backend, noisy, given, two, manifest.block)
        if i % 3 == 1:
            *got, mixed = two_calls(backend, noisy, given, mixed, manifest.block)
        else:
            *got, mixed = backend.both_next(noisy, given, mixed, manifest.block, ONES)
        for a, b in zip(got, want, strict=True):
            close(a, b)


def test_the_sampler_uses_it_for_one_step_without_factors(live, manifest):
    opened = open_backend(live, manifest, "ort", "cpu", 1)
    plain = open_backend(live, dataclasses.replace(manifest, block=None), "ort", "cpu", 1)
    called = []
    real = opened.both_next
    opened.both_next = lambda *args: called.append(real(*args)) or called[-1]
    start, late = initial_state(manifest.sde, 0.12), manifest.causal.lookahead_frames
    point = BlockPoint(start.t, start.w_x0)
    assert (point.t, point.w_x0) == (manifest.block.t, manifest.block.w_x0)
    for steps, tlb, used in ((1, ONES, True), (1, TLB_PRESETS["mild"], False), (2, ONES, None)):
        called.clear()
        results = []
        for one in (opened, plain):
            lane = Lane(lambda i, first, n: np.full((n, 257), 0.1, np.float32), late, 257)
            plan = sampler_steps(manifest.sde, 0.12, steps)
            sampler = BlockSampler(
                one, start=start, steps=plan, alpha=0.7, tlb=tlb, lookahead_frames=late
            )
            results.append([sampler.push([lane], noisy) for noisy, _ in blocks(6)])
        assert [done is not None for done in called] == ([] if used is None else [used] * 6)
        for a, b in zip(*results, strict=True):
            assert np.abs(a - b).max() <= EXACT * max(np.abs(x).max() for x in results[1])
    opened.close()
    plain.close()


@pytest.mark.parametrize("what", ["streams", "frames", "time", "weight", "factors"])
def test_what_it_does_not_compute_is_left_to_the_two_graphs(backend, manifest, what):
    noisy, given = next(blocks(1))
    point, tlb = manifest.block, ONES
    if what == "streams":
        noisy, given = (np.concatenate([x, x]) for x in (noisy, given))
    elif what == "frames":
        noisy, given = (np.concatenate([x, x], axis=2) for x in (noisy, given))
    elif what == "factors":
        tlb = TLB_PRESETS["severe"]
    else:
        key = {"time": "t", "weight": "w_x0"}[what]
        point = dataclasses.replace(point, **{key: getattr(point, key) / 2})
    assert backend.both_next(noisy, given, (None, None), point, tlb) is None


def test_it_has_fewer_nodes_and_most_weights_lie_in_the_other_files(live, manifest):
    model = onnx.load(live / manifest.block.file, load_external_data=False)
    others = [onnx.load(live / manifest.graphs[graph].file) for graph in GRAPH_NAMES]
    assert len(model.graph.node) < 0.56 * sum(len(other.graph.node) for other in others)
    ops = {node.op_type for node in model.graph.node}
    assert not ops & {"Shape", "Range", "Sin", "Cos", "GreaterOrEqual"}  # known beforehand
    places = {
        e.value for c in model.graph.initializer for e in c.external_data if e.key == "location"
    }
    assert places == {"predictive.onnx", "score.onnx"}


def test_a_damaged_file_and_one_of_another_export_are_refused(live, manifest, tmp_path):
    folder = shutil.copytree(live, tmp_path / "live")
    table = json.loads((folder / MANIFEST_NAME).read_text())
    table["causal"]["state_size"]["score"] += 1
    other = Manifest.from_dict(table)
    with pytest.raises(ManifestError):
        open_backend(folder, other, "ort", "cpu", 1)
    path = folder / manifest.block.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ManifestError, match=r"block\.onnx: SHA-256"):
        open_backend(folder, manifest, "ort", "cpu", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": 2, "lookahead_blocks": 3},
        {"encoder": "uniform", "local": "dual_path"},
        {"fi_gate": False, "norm": "layer"},
    ],
)
def test_every_causal_configuration_has_it(make_small, change):
    model = prepare(make_small(causal=True, **change), "fp32")
    point, ones = block_point(Config()), torch.ones(2, 2)
    want, states = [], [None, None]
    inputs = [tuple(torch.from_numpy(x) for x in pair) for pair in blocks(3)]
    with torch.no_grad():
        for noisy, given in inputs:
            (clean, feats), states[0] = advance(model.predictive, states[0], noisy)
            xt = point.w_x0 * clean.square().sum(1, keepdim=True).sqrt() + given
            t = torch.tensor([point.t])
            sigma, states[1] = advance(model.score, states[1], xt, t, feats, ones, ones)
            want.append((clean, sigma))
        with one_block(model):
            graph = BlockGraph(model, point)
            state = [torch.zeros(shape) for shapes in graph.shapes for shape in shapes]
            got = []
            for noisy, given in inputs:
                clean, sigma, *state = graph(noisy, given, state)
                got.append((clean, sigma))
        flat = torch.cat([part.reshape(1, -1) for part in state], dim=1)
        close(flat.numpy(), torch.cat(states, dim=1).numpy())
        for a, b in zip(got, want, strict=True):
            for x, y in zip(a, b, strict=True):
                close(x.numpy(), y.numpy())
        again, _ = advance(model.predictive, None, inputs[0][0])  # nothing of it stays in the model
    assert torch.equal(again[0], want[0][0])
