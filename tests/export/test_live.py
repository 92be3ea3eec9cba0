"""A causal model's graphs: one state in and out, and every backend that carries it."""

from __future__ import annotations

import shutil

import fake_trt
import numpy as np
import onnx
import pytest

from dvpd.export import trt_api, verify
from dvpd.export.build_engine import build_engines
from dvpd.export.figures import calls, runtime_waveform, stream_waveform
from dvpd.quality.models import open_model
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import GRAPH_NAMES, TLB_PRESETS, graph_io, padded_frames
from dvpd.runtime.tensorrt import gpus
from dvpd.runtime.tensorrt.onnx_inputs import Profile, graph_inputs
from dvpd.runtime.tensorrt.plans import read_sidecar

# Beside those of the other graphs: the tables of a call, whose length is read at run time.
TABLES = {"Shape", "Range", "GreaterOrEqual", "Greater", "Exp", "Neg"}


def speech() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(20_000) * np.sin(np.arange(20_000) * 3e-4)).astype(np.float32)


@pytest.fixture
def whole(live, tmp_path):
    """A copy of the engine folder with its checkpoint in it."""
    folder = shutil.copytree(live, tmp_path / "live")
    shutil.copy(live.parent / "live.safetensors", folder)
    return folder


def test_manifest_and_signature_tell_blocks_states_and_latency(live):
    manifest = Manifest.load(live)
    assert manifest.causal.latency_samples == 896 + 512
    assert manifest.causal.block_frames == 4
    assert Manifest.from_dict(manifest.to_dict()) == manifest
    for name in GRAPH_NAMES:
        model = onnx.load(str(live / f"{name}.onnx"))
        sides = graph_io(name, "fp32", manifest.causal)
        for specs, values in zip(sides, (model.graph.input, model.graph.output), strict=True):
            assert [v.name for v in values] == [s.name for s in specs]
        size = values[-1].type.tensor_type.shape.dim
        assert size[0].dim_param == "B"
        assert size[1].dim_value == manifest.causal.state_size[name]


def test_little_is_computed_from_sizes(live):
    for name in GRAPH_NAMES:
        ops = [n.op_type for n in onnx.load(str(live / f"{name}.onnx")).graph.node]
        assert ops.count("Shape") <= 2
        assert ops.count("Range") <= 3
        assert "If" not in ops
        assert "Loop" not in ops
        assert {"Shape", "Range"} <= set(ops) & TABLES


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_every_backend_gives_what_the_checkpoint_does(live, backend):
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    wav = speech()
    with open_model(live.parent / "live.safetensors") as reference:
        wanted = reference.enhance(wav, 16000, steps=2).wav
    with Enhancer.open(live, backend, "cpu", 1) as enhancer:
        out = enhancer.enhance(wav, 16000, steps=2).wav
    error = np.abs(out - wanted).max() / np.abs(wanted).max()
    assert error < 1e-4


def test_calls_of_any_length_and_several_streams_agree(live):
    rng = np.random.default_rng(1)
    noisy = rng.standard_normal((2, 3, 40, 257)).astype(np.float32) * np.float32(0.2)
    with Enhancer.open(live, "ort", "cpu", 1) as enhancer:
        backend = enhancer.backend
        whole, _, _ = backend.predict_next(noisy, None)
        state, parts = None, []
        for first, last in ((0, 4), (4, 32), (32, 40)):
            clean, _, state = backend.predict_next(noisy[:, :, first:last], state)
            parts.append(clean)
        alone, _, _ = backend.predict_next(noisy[1:], None)
    assert np.abs(np.concatenate(parts, axis=2) - whole).max() <= 1e-5 * np.abs(whole).max()
    assert np.abs(alone[0] - whole[1]).max() <= 1e-5 * np.abs(whole).max()


def test_openvino_takes_the_next_block_in_a_request_of_its_size(live):
    pytest.importorskip("openvino")
    rng = np.random.default_rng(1)
    noisy = rng.standard_normal((1, 3, 8, 257)).astype(np.float32) * np.float32(0.2)
    with Enhancer.open(live, "openvino", "cpu", 1) as enhancer:
        backend, state, parts = enhancer.backend, None, []
        whole, _, after = backend.predict_next(noisy, None)
        for first in (0, 4):
            clean, feats, state = backend.predict_next(noisy[:, :, first : first + 4], state)
            parts.append(clean)
        assert [feat.shape[2] for feat in feats] == [4, 4, 2, 1, 2, 4]
        used = [backend._requests[f"{graph}.block"].get_input_tensor(0) for graph in GRAPH_NAMES]
        assert [list(tensor.shape) for tensor in used] == [[1, 3, 4, 257], [1, 1, 4, 257]]
    assert np.abs(np.concatenate(parts, axis=2) - whole).max() <= 1e-5 * np.abs(whole).max()
    assert np.abs(state - after).max() <= 1e-5 * np.abs(after).max()
    with pytest.raises(BackendError, match="closed"):
        backend.predict_next(noisy[:, :, :4], state)


def test_verification_carries_the_state_on_every_backend(whole, monkeypatch):
    monkeypatch.setattr(verify, "ROOT", whole.parent)  # without the example: synthetic speech
    names = [name for name in ("ort", "openvino") if verify.installed(name)]
    report = verify.verify_engine(whole, names, seconds=0.25, quality=False)
    assert report.failures == []
    assert report.reference == "torch, float32"
    for name in names:
        assert set(report.waveform_snr_db[name]) == {"speech", "loud", "quiet", "clipped"}
        assert len(report.outputs[name]) == 8 + 2  # and block by block


def test_verification_finds_a_backend_that_loses_the_state(whole, monkeypatch):
    pytest.importorskip("onnxruntime")
    real = verify.open_backend

    def forgetful(*args):
        backend = real(*args)
        predict_next = backend.predict_next
        backend.predict_next = lambda noisy, state: predict_next(noisy, None)
        return backend

    monkeypatch.setattr(verify, "open_backend", forgetful)
    every = verify.recordings
    monkeypatch.setattr(verify, "recordings", lambda *a: {"speech": every(*a)["speech"]})
    report = verify.verify_engine(whole, ["ort"], seconds=0.25, quality=False)
    assert any("ort: clean_ri differs by" in text for text in report.failures)
    assert any("ort: speech has a waveform SNR of" in text for text in report.failures)


def test_call_after_call_gives_the_waveform_of_the_whole(live):
    manifest, wav = Manifest.load(live), speech()[:8000]
    n_frames = padded_frames(manifest.signal.n_frames(len(wav)))
    parts = [np.arange(n_frames)[part] for part in calls(n_frames)]
    assert len(parts) > 2
    assert np.array_equal(np.concatenate(parts), np.arange(n_frames))
    rng = np.random.default_rng(2)
    noise = [
        rng.standard_normal((1, 1, n_frames, 257), np.float32)
        for _ in range(manifest.sampler.n_steps)
    ]
    with open_model(live.parent / "live.safetensors") as reference:
        tlb = TLB_PRESETS["severe"]
        wanted = runtime_waveform(reference.backend, manifest, wav, noise, tlb)
        split = stream_waveform(reference.backend, manifest, wav, noise, tlb)
    assert np.abs(split - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_tensorrt_rtx_reads_the_graphs(live, live_fp16):
    pytest.importorskip("tensorrt_rtx")
    from dvpd.export.trt_api import TrtApi

    api = TrtApi("tensorrt-rtx")
    for path in (folder / f"{name}.onnx" for folder in (live, live_fp16) for name in GRAPH_NAMES):
        api.check_inputs(api.parse(path), graph_inputs(path), path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_plans(precision, live, live_fp16, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    folder = shutil.copytree(live if precision == "fp32" else live_fp16, tmp_path / "copy")
    built = build_engines(folder, backend="tensorrt-rtx", profile=Profile((4, 4, 4), (1, 1, 2)))
    assert [plan.graph for plan in built] == list(GRAPH_NAMES)
    assert all(plan.path.name.endswith(f".{precision}.plan") for plan in built)


def test_plans_are_built_for_one_block_and_many_streams(whole, monkeypatch):
    driver = gpus.CudaDriver((12, 6), (gpus.Gpu("Orin", "8.7"),))
    monkeypatch.setattr(trt_api, "cuda_driver", lambda: driver)
    monkeypatch.setenv("XDG_CACHE_HOME", str(whole.parent / "cache"))
    api = trt_api.TrtApi("tensorrt", fake_trt.make())
    built = build_engines(whole, api=api)
    assert [plan.graph for plan in built] == list(GRAPH_NAMES)
    for plan in built:
        profile = read_sidecar(plan.path).spec.profile
        assert (profile.frames, profile.batch) == ((4, 4, 256), (1, 1, 64))
    assert all(plan.reused for plan in build_engines(whole, api=api))


def test_a_model_of_windows_takes_no_single_blocks():
    Profile.usual(True).check(True)
    with pytest.raises(InputError, match="at least 32: this model hears windows"):
        Profile.usual(True).check(False)


def test_one_provider_says_that_it_does_not_carry_the_state(live):
    with pytest.raises(BackendError, match="does not carry its state: use backend tensorrt"):
        Enhancer.open(live, "ort", "tensorrt")
