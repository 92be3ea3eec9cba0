"""A causal model's graphs in half precision: what stays in float32, near the float32 graphs for minutes."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dvpd.export import half, lint, parity, verify
from dvpd.export.figures import snr_db, speech
from dvpd.export.lint_state import MOVES, size_tables
from dvpd.quality.models import open_model
from dvpd.runtime import stft
from dvpd.runtime.block_sampler import BlockSampler, Lane
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.schedule import initial_state, sampler_steps
from dvpd.runtime.spec import BLOCK_STATES, GRAPH_NAMES, N_FREQS, TlbFactors, graph_io

HALF_SNR_DB = parity.MIN_SNR_DB["fp16"]
CALL = 252  # frames: 2 s


def noisy_speech(seconds: float) -> np.ndarray:
    """Speech over noise, louder and softer all the time, [L] at 16 kHz."""
    wav, rng = speech(_Rate())[0], np.random.default_rng(0)
    n = int(16000 * seconds)
    level = 10 ** (np.interp(np.arange(n), np.arange(0, n + 48000, 24000), [
        rng.uniform(-2, 0) for _ in range(0, n + 48000, 24000)
    ]))  # fmt: skip
    noise = 10 ** rng.uniform(-3, -1.5) * rng.standard_normal(n)
    return np.asarray(level * np.resize(wav, n) + noise, np.float32)


class _Rate:
    signal = stft.SignalSpec()


def test_manifest_signature_and_figures_of_the_export(live_fp16):
    manifest = Manifest.load(live_fp16)
    assert manifest.precision == "fp16"
    assert manifest.causal is not None
    assert manifest.block is None  # of one block: for CPUs, in float32
    for name in GRAPH_NAMES:
        graph = onnx.load(str(live_fp16 / f"{name}.onnx")).graph
        for specs, values in zip(
            graph_io(name, "fp16", manifest.causal), (graph.input, graph.output), strict=True
        ):
            types = [(v.name, v.type.tensor_type.elem_type) for v in values]
            kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
            assert types == [(s.name, kinds[s.dtype]) for s in specs]
        assert graph.input[-1].type.tensor_type.elem_type == TensorProto.FLOAT  # the state
    figures = manifest.parity
    assert min(figures["waveform_snr_db"], figures["half_snr_db"]) >= HALF_SNR_DB
    assert figures["half_max"] < half.HALF_MAX
    errors = figures["max_error_of_range"]
    assert set(errors) == {"clean_ri", "sigma_z", *(f"feat_{i}" for i in range(6)), *BLOCK_STATES}
    assert max(errors.values()) < 1e-2  # three digits, through a whole network


def test_an_export_that_half_ruins_is_refused(live_checkpoint, live_fp16):
    """What is verified is the waveform of call after call, with the states of the calls before."""
    from dvpd.checkpoint import load_model

    config, model = load_model(live_checkpoint)
    wav, _ = parity.speech(config)
    with Enhancer.open(live_fp16, "ort", "cpu", 1) as enhancer:
        backend = enhancer.backend
        predict_next = backend.predict_next
        backend.predict_next = lambda noisy, state: predict_next(noisy, None)
        report = parity.verify(model, config, backend, "fp16", wav)
    (failure,) = report.failures
    assert "waveform SNR" in failure
    assert "at least 35 dB" in failure


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_a_stream_is_near_that_of_the_checkpoint(live_checkpoint, live_fp16, backend):
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    wav = noisy_speech(2.0)

    def heard(enhancer):
        stream = enhancer.stream(16000, steps=2, adapt=False)
        pieces = [stream.process(wav[i : i + 480]) for i in range(0, len(wav), 480)]
        return np.concatenate([*pieces, stream.flush()])

    with open_model(live_checkpoint) as reference:
        wanted = heard(reference)
    with Enhancer.open(live_fp16, backend, "cpu", 1) as enhancer:
        out = heard(enhancer)
    assert HALF_SNR_DB < snr_db(wanted, out) < 100  # near, and not the same


def long_stream(folder, wav) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Spectra call by call, and both networks' states at the end."""
    manifest = Manifest.load(folder)
    late, sampler = manifest.causal.lookahead_frames, manifest.sampler

    def draw(index, first, n_frames):
        rng = np.random.default_rng((index, first))
        return rng.standard_normal((n_frames, N_FREQS)).astype(np.float32)

    noisy = stft.compress(stft.stft(wav, manifest.signal), manifest.signal)[None]
    with Enhancer.open(folder, "ort", "cpu", 1) as enhancer:
        networks = BlockSampler(
            enhancer.backend,
            start=initial_state(manifest.sde, sampler.t_rs),
            steps=sampler_steps(manifest.sde, sampler.t_rs, 1, sampler.last_step),
            alpha=sampler.alpha,
            tlb=TlbFactors(),
            lookahead_frames=late,
        )
        lane, out = Lane(draw, late, N_FREQS), []
        for first in range(0, noisy.shape[2] - CALL, CALL):
            out.append(networks.push([lane], noisy[:, :, first : first + CALL]))
        return out, [np.asarray(row.stack) for row in lane.rows]


@pytest.mark.slow
def test_minutes_of_a_stream_do_not_drift(live, live_fp16):
    wav = noisy_speech(75.0)
    (want, wanted), (got, states) = (long_stream(folder, wav) for folder in (live, live_fp16))
    by_call = [snr_db(a, b) for a, b in zip(want, got, strict=True)]
    first, *_, last = (np.mean(part) for part in np.array_split(by_call[1:], 6))
    assert last > first - 3, by_call
    assert min(by_call) > HALF_SNR_DB
    assert all(snr_db(a, b) > HALF_SNR_DB for a, b in zip(wanted, states, strict=True))


def test_verification_runs_the_graphs_in_true_half_arithmetic(live_fp16, monkeypatch, tmp_path):
    folder = shutil.copytree(live_fp16, tmp_path / "live-fp16")
    shutil.copy(live_fp16.parent / "live.safetensors", folder)
    monkeypatch.setattr(verify, "ROOT", tmp_path)  # without the example: synthetic speech
    every = verify.recordings
    monkeypatch.setattr(verify, "recordings", lambda *a: {"speech": every(*a)["speech"]})
    report = verify.verify_engine(folder, ["onnx", "ort"], seconds=0.25, quality=False)
    assert report.failures == []
    assert report.waveform_snr_db["onnx"]["speech"] >= HALF_SNR_DB
    assert len(report.outputs["onnx"]) == 8
    manifest = Manifest.load(folder)
    for graph, path in manifest.verify_graphs(folder).items():
        names = {node.name for node in half.load(path).graph.node}
        assert {n["node"] for n in report.nodes[graph]["speech"]} <= names
        assert 0 < report.half_peak[graph]["speech"]["peak"] < half.HALF_MAX


def test_a_block_after_a_block_in_true_half_arithmetic(live_fp16):
    """The reference evaluator carries the state: two calls are one."""
    from dvpd.runtime.backends.base import LoadOptions
    from dvpd.runtime.errors import InputError

    manifest = Manifest.load(live_fp16)
    paths = manifest.verify_graphs(live_fp16)
    options = LoadOptions(paths["predictive"], paths["score"], manifest, "cpu", 1)
    backend = half.ReferenceBackend(options)
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((1, 3, 12, N_FREQS)).astype(np.float32) * np.float32(0.2)
    xt, t, ones = noisy[:, 2:], np.full(1, 0.1, np.float32), np.ones((2, 2), np.float32)
    runs = []
    for cuts in ((0, 12), (0, 4, 12)):
        heard = diffused = None
        parts = []
        for first, last in itertools.pairwise(cuts):
            part = slice(first, last)
            clean_ri, feats, heard = backend.predict_next(noisy[:, :, part], heard)
            sigma_z, diffused = backend.score_next(xt[:, :, part], t, feats, ones, ones, diffused)
            parts.append(np.concatenate([clean_ri, sigma_z], axis=1))
        runs.append((np.concatenate(parts, axis=2), heard, diffused))
    for whole, split in zip(*runs, strict=True):
        assert parity.error_of_range(whole, split) < 5e-3
    with pytest.raises(InputError):
        backend.predict(np.zeros((1, 3, 32, N_FREQS), np.float32))


# ------------------------------------------------------------------------------------------------
# Types


def linted(model, folder, graph="predictive"):
    return lint.lint_graph(model, graph, "fp16", Manifest.load(folder).causal).faults


def test_the_graphs_are_clean_and_the_parser_agrees(live_fp16):
    for found in lint.lint_engine(live_fp16):
        assert found.faults == []
        assert set(found.counts["Conv"]) == {"half"}
        if found.trt is not None:
            confirmed, total = found.confirmed
            assert confirmed == total > 500


def through_half(model, name):
    """The tensor ``name`` rounded to half for everybody who reads it."""
    for node in model.graph.node:
        for i, source in enumerate(node.input):
            if source == name:
                node.input[i] = "rounded"
    at = next(i for i, node in enumerate(model.graph.node) if name in node.output)
    cast = [
        helper.make_node("Cast", [name], ["less"], name="planted/less", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["less"], ["rounded"], name="planted/back", to=TensorProto.FLOAT),
    ]
    for node in reversed(cast):
        model.graph.node.insert(at + 1, node)


@pytest.mark.parametrize("module", ["mixer.scan", "mixer.past", "local.mean", "past.clock"])
def test_a_sum_that_is_carried_through_half_is_found(live_fp16, module):
    model = onnx.load(str(live_fp16 / "predictive.onnx"))
    makers = {o: node for node in model.graph.node for o in node.output}
    (joined,) = (node for node in model.graph.node if "next_state" in node.output)
    # What a part is made of, back to where something is added.
    node = next(makers[n] for n in joined.input if module in makers[n].name)
    while node.op_type in MOVES:
        node = makers[node.input[0]]
    assert node.op_type == "Add"
    through_half(model, node.output[0])
    assert {f.rule for f in linted(model, live_fp16)} >= {"recurrence"}


def test_frames_that_are_only_kept_may_pass_through_half(live_fp16):
    model = onnx.load(str(live_fp16 / "predictive.onnx"))
    first = next(n for n in model.graph.node if "state" in n.input and "ffn.past" in n.name)
    casts = [n for n in model.graph.node if n.op_type == "Cast" and "ffn.past" in n.name]
    assert first.op_type == "Slice"
    assert casts
    assert linted(model, live_fp16) == []


def test_a_running_sum_in_half_is_found(live_fp16):
    """A product with a table of decays: what it multiplies, and the table, cast to half."""
    model = onnx.load(str(live_fp16 / "predictive.onnx"))
    tables = size_tables(model)
    product = next(
        n for n in model.graph.node if n.op_type == "MatMul" and not tables.isdisjoint(n.input)
    )
    at = list(model.graph.node).index(product)
    out = product.output[0]
    for i, name in enumerate(list(product.input)):
        cast = helper.make_node("Cast", [name], [f"h{i}"], name=f"planted/{i}", to=10)
        model.graph.node.insert(at, cast)
        product.input[i] = f"h{i}"
    product.output[0] = "short"
    back = helper.make_node("Cast", ["short"], [out], name="planted/back", to=1)
    model.graph.node.insert(list(model.graph.node).index(product) + 1, back)
    (fault,) = linted(model, live_fp16)
    assert (fault.rule, fault.node) == ("statistic", f"{product.name} (MatMul)")


def test_a_state_that_is_not_there_or_cannot_be_followed_is_a_fault(live_fp16):
    path = live_fp16 / "predictive.onnx"
    model = onnx.load(str(path))
    (joined,) = (node for node in model.graph.node if "next_state" in node.output)
    joined.output[0] = "joined"
    moved = helper.make_node("Identity", ["joined"], ["next_state"], name="planted/move")
    model.graph.node.append(moved)
    assert {f.rule for f in linted(model, live_fp16)} == {"state"}
    model = onnx.load(str(path))
    model.graph.output.remove(next(v for v in model.graph.output if v.name == "next_state"))
    assert "signature" in {f.rule for f in linted(model, live_fp16)}
