import contextlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dvpd.checkpoint import load_model
from dvpd.runtime.backends.choose import open_backend
from dvpd.runtime.errors import BackendError, InputError, ManifestError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.sampler import sample
from dvpd.runtime.schedule import initial_state, sampler_steps
from dvpd.runtime.spec import TLB_PRESETS
from dvpd.torch_backend import TorchBackend, need_checkpoint, prepare

ENGINES = Path(__file__).resolve().parents[2] / "engines"
TINY = ENGINES / "dvpd-tiny"
PARITY = 1e-4  # of the output's range: two libraries' float32
HALF_SNR_DB = 35.0  # the contract's for fp16 graphs


@pytest.fixture(scope="module")
def manifest():
    return Manifest.load(TINY)


@pytest.fixture(scope="module")
def backend(manifest):
    opened = open_backend(TINY, manifest, "torch", "cpu", 1)
    yield opened
    opened.close()


def window(batch=1, n_frames=32, seed=0):
    rng = np.random.default_rng(seed)
    noisy = 0.3 * rng.standard_normal((batch, 3, n_frames, 257)).astype(np.float32)
    noisy[:, 2] = np.hypot(noisy[:, 0], noisy[:, 1])
    return noisy, rng.standard_normal((3, batch, 1, n_frames, 257)).astype(np.float32)


def run(backend, manifest, noisy, noise, n_steps=3, tlb="none"):
    return sample(
        backend,
        noisy,
        start=initial_state(manifest.sde, manifest.sampler.t_rs),
        steps=sampler_steps(manifest.sde, manifest.sampler.t_rs, n_steps) if n_steps else (),
        alpha=manifest.sampler.alpha,
        tlb=TLB_PRESETS[tlb],
        draw=lambda i: noise[i],
    )


def parts(backend):
    """The same backend without its whole sampler."""
    return SimpleNamespace(predict=backend.predict, score=backend.score)


@pytest.mark.parametrize(
    ("batch", "n_steps", "tlb"), [(1, 3, "none"), (2, 2, "severe"), (1, 0, "none")]
)
def test_whole_sampler_equals_the_steps_and_the_exported_graphs(
    backend, manifest, batch, n_steps, tlb
):
    pytest.importorskip("onnxruntime")
    noisy, noise = window(batch)
    got = run(backend, manifest, noisy, noise, n_steps, tlb)
    stepped = run(parts(backend), manifest, noisy, noise, n_steps, tlb)
    np.testing.assert_allclose(got, stepped, rtol=0, atol=1e-5 * np.ptp(stepped))
    graphs = open_backend(TINY, manifest, "ort", "cpu", 1)
    want = run(graphs, manifest, noisy, noise, n_steps, tlb)
    graphs.close()
    np.testing.assert_allclose(got, want, rtol=0, atol=PARITY * np.ptp(want))


def test_half_precision_from_the_checkpoint_beside(backend, manifest):
    folder = ENGINES / "dvpd-tiny-fp16"
    half = open_backend(folder, Manifest.load(folder), "torch", "cpu", 1)
    assert next(half.model.parameters()).dtype == torch.float16
    noisy, noise = window()
    want = run(backend, manifest, noisy, noise)
    error = run(half, manifest, noisy, noise) - want
    assert 10 * np.log10(np.square(want).sum() / np.square(error).sum()) > HALF_SNR_DB
    half.close()


def test_tensor_as_input(backend, manifest):
    noisy, noise = window()
    settings = dict(
        start=initial_state(manifest.sde, 0.12), steps=sampler_steps(manifest.sde, 0.12, 1),
        alpha=0.4, tlb=TLB_PRESETS["none"],
    )  # fmt: skip
    want = backend.run_sampler(noisy, noise[:1], **settings)
    got = backend.run_sampler(torch.from_numpy(noisy), noise[:1], **settings)
    np.testing.assert_array_equal(got, want)
    with pytest.raises(InputError, match=r"torch\.float64"):
        backend.run_sampler(torch.from_numpy(noisy).double(), noise[:1], **settings)
    with pytest.raises(InputError, match="multiple of 4"):
        backend.run_sampler(torch.from_numpy(noisy)[:, :, :31], noise[:1], **settings)


def test_full_memory_halves_the_batch(backend, manifest, monkeypatch, caplog):
    noisy, noise = window(3)
    want = run(backend, manifest, noisy, noise, 1)
    whole = TorchBackend._run

    def run_small(self, arrays, tlb):
        if len(arrays[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return whole(self, arrays, tlb)

    monkeypatch.setattr(TorchBackend, "_run", run_small)
    got = run(backend, manifest, noisy, noise, 1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.ptp(want))
    assert [r.getMessage().endswith("batches of 1") for r in caplog.records] == [True]
    run(backend, manifest, noisy, noise, 1)
    assert len(caplog.records) == 1  # said once
    backend._max_batch = None


def test_missing_checkpoint_device_and_precision(tmp_path, backend, manifest):
    with pytest.raises(ManifestError, match="found: none"):
        need_checkpoint(tmp_path / "e", manifest.checkpoint_sha256)
    with pytest.raises(ManifestError, match="exported from"):
        need_checkpoint(TINY, "0" * 64)
    with pytest.raises(BackendError, match="no device 'tpu'"):
        open_backend(TINY, manifest, "torch", "tpu")
    with pytest.raises(InputError, match="bf16"):
        prepare(backend.model, "bf16")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="finds no CUDA"):
            open_backend(TINY, manifest, "torch", "cuda")


def test_non_finite_and_closed(manifest):
    broken = open_backend(TINY, manifest, "torch", "cpu", 1)
    noisy, noise = window()
    noise[0, 0, 0, 0, 0] = np.nan
    with pytest.raises(BackendError, match="non-finite"):
        run(broken, manifest, noisy, noise, 1)
    broken.close()
    with pytest.raises(BackendError, match="closed"):
        run(broken, manifest, noisy, noise, 1)


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_as_asked_for_in_the_calls_and_as_it_was_outside(manifest, allowed, monkeypatch):
    model = prepare(load_model(TINY / "dvpd-tiny.safetensors")[1])
    backend = TorchBackend(model, "cpu", tf32=allowed)
    parts, seen = (torch.backends.cuda.matmul, torch.backends.cudnn), []
    before = [part.allow_tf32 for part in parts]
    inner = backend._predictive

    def predictive(noisy):
        seen.append([part.allow_tf32 for part in parts])
        return inner(noisy)

    monkeypatch.setattr(backend, "_predictive", predictive)
    noisy, noise = window()
    run(backend, manifest, noisy, noise, 0)
    backend.predict(noisy)
    assert seen == 2 * [[allowed, allowed]]
    assert [part.allow_tf32 for part in parts] == before


def test_an_application_with_torchs_newer_settings_is_left_alone():
    """torch 2.9 and later refuse to say allow_tf32 after these; process-wide, so another process."""
    code = """
import torch
from dvpd.torch_device import tf32_allowed
matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
matmul.fp32_precision, conv.fp32_precision = "tf32", "ieee"
with tf32_allowed(False):
    assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "ieee")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class HostFree(TorchDispatchMode):
    """In a capture's place: refuses what one cannot record, tensors of host data and readings."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name
        assert not name.endswith(("lift_fresh", "lift_fresh_copy", "_local_scalar_dense")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", ["none", "severe"])
def test_what_is_captured_bears_other_threads_work_and_reads_no_host(
    backend, manifest, monkeypatch, preset
):
    """A global capture ends when another thread, such as a data loader's, allocates."""
    modes = []

    class Nothing:
        def __getattr__(self, name):
            return lambda *args: None

    def graph(_, capture_error_mode="global"):
        modes.append(capture_error_mode)
        return HostFree()

    for name in ("Stream", "CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    noisy, noise = window()
    steps = sampler_steps(manifest.sde, 0.12, 1)
    start = initial_state(manifest.sde, 0.12)
    rows = [(start.w_x0, start.w_y, start.std, 0.0), (steps[0].a, steps[0].b, steps[0].e, 0.0)]
    rows += [(0.4, 0.6, 0.0, 0.0)]
    given = [torch.from_numpy(noisy), torch.from_numpy(noise[:1]), torch.tensor(rows)]
    given.append(torch.full((1, 1), steps[0].t))
    factors = backend._factors(*TLB_PRESETS[preset].arrays())
    given += [factor for factor in factors if factor is not None]

    def work(noisy, noise, coefficients, times, *some):
        scales = backend._filled(factors, some)
        return (backend._sampler(scales, noisy, noise, coefficients, times),)

    with torch.inference_mode():
        captured = backend._captured(work, given)
        assert torch.equal(captured.out[0], work(*given)[0])
    assert modes == ["thread_local"]
    # all that a later call may change is copied in
    assert len(captured.inputs) == 4 + sum(f is not None for f in factors)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_capture_changes_no_number(manifest, precision):
    model = prepare(load_model(TINY / "dvpd-tiny.safetensors")[1], precision)
    backend = TorchBackend(model, "cuda")
    noisy, noise = window(2, 64)
    presets = ("none", "severe", "none", "mild")
    captured = [run(backend, manifest, noisy, noise, tlb=preset) for preset in presets]
    backend.capture = False
    for preset, result in zip(presets, captured, strict=True):
        eager = run(backend, manifest, noisy, noise, tlb=preset)
        np.testing.assert_allclose(result, eager, rtol=0, atol=1e-5 * np.ptp(eager))
