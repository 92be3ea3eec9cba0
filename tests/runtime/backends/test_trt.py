"""The TensorRT path against a recording stand-in that runs the graphs in ONNX Runtime."""

import importlib.util
import logging
import os

import numpy as np
import pytest
from fake_cuda import FakeCuda, Misuse, cudaError, plan_bytes
from tiny_graphs import make_manifest
from trt_rig import PROFILE, Rig

from dvpd.runtime.backends.choose import open_backend
from dvpd.runtime.backends.cuda import Cuda, DeviceLostError, DeviceMemoryError
from dvpd.runtime.backends.trt import MAX_SLOTS
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import BackendError, InputError, ManifestError
from dvpd.runtime.sampler import sample
from dvpd.runtime.schedule import initial_state, sampler_steps
from dvpd.runtime.spec import TLB_PRESETS
from dvpd.runtime.tensorrt import gpus, plans

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SAME_ENGINE = 2e-6  # ONNX Runtime's sums against NumPy's, float32


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def rig(engine):
    return Rig(engine).build()


def window(batch=1, n_frames=64, seed=0):
    rng = np.random.default_rng(seed)
    noisy = rng.standard_normal((batch, 3, n_frames, 257)).astype(np.float32)
    noisy[:, 2] = np.hypot(noisy[:, 0], noisy[:, 1])
    noisy[:, :, :3] = 0.0  # bins without a phase
    return noisy, rng.standard_normal((8, batch, 1, n_frames, 257)).astype(np.float32)


def run(backend, noisy, noise, n_steps=3, alpha=0.4, tlb="severe"):
    manifest = make_manifest()
    return sample(
        backend,
        noisy,
        start=initial_state(manifest.sde, manifest.sampler.t_rs),
        steps=sampler_steps(manifest.sde, manifest.sampler.t_rs, n_steps) if n_steps else (),
        alpha=alpha,
        tlb=TLB_PRESETS[tlb],
        draw=lambda i: noise[i],
    )


def cpu(rig, *args, **kwargs):
    backend = open_backend(rig.folder, rig.manifest, "ort", "cpu", 1)
    try:
        return run(backend, *args, **kwargs)
    finally:
        backend.close()


@pytest.mark.parametrize(
    ("batch", "n_frames", "n_steps"), [(1, 64, 3), (2, 32, 1), (4, 36, 4), (1, 32, 0)]
)
def test_sampler_equals_the_cpu_eager_captured_and_replayed(rig, batch, n_frames, n_steps):
    backend = rig.open()
    for call in range(4):
        noisy, noise = window(batch, n_frames, seed=call)
        got = run(backend, noisy, noise, n_steps)
        np.testing.assert_allclose(
            got, cpu(rig, noisy, noise, n_steps), rtol=0, atol=SAME_ENGINE * np.abs(got).max()
        )
    assert rig.gpu.calls.count("cudaStreamBeginCapture") == 1
    assert rig.gpu.calls.count("cudaGraphLaunch") == 3  # the first call ran call by call
    backend.close()
    left = (rig.gpu.memory, rig.gpu.pinned, rig.gpu.streams, rig.gpu.execs, rig.gpu.graphs)
    assert not any(left)


def test_capture_changes_no_number(rig):
    backend = rig.open()
    noisy, noise = window()
    first = run(backend, noisy, noise)
    captured = run(backend, noisy, noise)
    backend.capture = False
    backend._slots.clear()
    np.testing.assert_array_equal(first, captured)
    np.testing.assert_array_equal(first, run(backend, noisy, noise))


def test_settings_change_without_a_new_capture(rig):
    backend = rig.open()
    noisy, noise = window()
    for alpha, tlb in ((0.4, "none"), (0.4, "none"), (0.9, "mild"), (0.0, "severe")):
        got = run(backend, noisy, noise, alpha=alpha, tlb=tlb)
        want = cpu(rig, noisy, noise, alpha=alpha, tlb=tlb)
        np.testing.assert_allclose(got, want, rtol=0, atol=SAME_ENGINE * np.abs(want).max())
    assert rig.gpu.calls.count("cudaStreamBeginCapture") == 1


def test_nothing_is_allocated_between_windows_and_only_in_and_out_are_copied(rig):
    backend = rig.open()
    noisy, noise = window()
    run(backend, noisy, noise)
    run(backend, noisy, noise)
    before, copies = len(rig.gpu.calls), len(rig.gpu.copies)
    for seed in range(5):
        run(backend, *window(seed=seed))
    names = set(rig.gpu.calls[before:])
    assert names == {
        "cudaGetDevice",
        "cudaSetDevice",
        "cudaMemcpyAsync",
        "cudaGraphLaunch",
        "cudaStreamSynchronize",
    }
    kinds = [kind for kind, _ in rig.gpu.copies[copies:]]
    assert kinds == ["H2D", "D2H"] * 5
    assert {n for kind, n in rig.gpu.copies[copies:] if kind == "D2H"} == {noisy[:, :2].nbytes}
    assert rig.trt.contexts == 5  # one for each graph of the shape


def test_predictive_alone(rig):
    backend = rig.open()
    noisy, noise = window()
    np.testing.assert_allclose(run(backend, noisy, noise, 0), 0.5 * noisy[:, :2], atol=1e-6)


def test_batch_beyond_the_profile_runs_in_parts(rig):
    backend = rig.open()
    noisy, noise = window(batch=6, n_frames=32)
    got = run(backend, noisy, noise)
    want = cpu(rig, noisy, noise)
    np.testing.assert_allclose(got, want, rtol=0, atol=SAME_ENGINE * np.abs(want).max())
    assert {key[0] for key in backend._slots} == {4, 2}


def test_array_on_the_device_is_not_copied_through_the_host(rig):
    backend = rig.open()
    noisy, noise = window(batch=6, n_frames=32)
    want = run(backend, noisy, noise)
    copies = len(rig.gpu.copies)
    manifest = make_manifest()
    got = backend.run_sampler(
        rig.gpu.put(noisy),
        noise[:3],
        start=initial_state(manifest.sde, 0.12),
        steps=sampler_steps(manifest.sde, 0.12, 3),
        alpha=0.4,
        tlb=TLB_PRESETS["severe"],
    )
    np.testing.assert_array_equal(got, want)
    moved = rig.gpu.copies[copies:]
    assert sum(n for kind, n in moved if kind == "D2D") == noisy.nbytes
    assert sum(n for kind, n in moved if kind == "H2D") < noise[:3].nbytes + 10_000


@pytest.mark.parametrize("interface", [{"version": 2, "stream": None}, {"stream": None}])
def test_array_that_names_no_stream_is_read_after_all_work_on_the_device(rig, interface):
    """As torch's: version 2 of the interface has no stream."""
    backend = rig.open()
    noisy, noise = window(n_frames=32)
    want = run(backend, noisy, noise)
    given = rig.gpu.put(np.zeros_like(noisy), **interface)
    address = given.__cuda_array_interface__["data"][0]
    _, stream = rig.gpu.cudaStreamCreateWithFlags(1)

    def write():
        rig.gpu.array(address, noisy.shape, np.float32)[...] = noisy

    rig.gpu.enqueue(stream, write)
    manifest = make_manifest()
    got = backend.run_sampler(
        given,
        noise[:3],
        start=initial_state(manifest.sde, 0.12),
        steps=sampler_steps(manifest.sde, 0.12, 3),
        alpha=0.4,
        tlb=TLB_PRESETS["severe"],
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.astype(np.float64), "<f8"),
        (lambda a: a[:, :, :31], "multiple of 4"),
        (lambda a: a[:, :2], "expected"),
    ],
)
def test_wrong_array_on_the_device(rig, change, message):
    backend = rig.open()
    noisy, noise = window(n_frames=32)
    given = rig.gpu.put(np.ascontiguousarray(change(noisy)))
    with pytest.raises(InputError, match=message):
        backend.run_sampler(
            given, noise[:0], start=initial_state(make_manifest().sde, 0.12), steps=(),
            alpha=0.4, tlb=TLB_PRESETS["none"],
        )  # fmt: skip


def test_strided_array_on_the_device(rig):
    given = rig.gpu.put(window()[0])
    given.__cuda_array_interface__["strides"] = (4, 4, 4, 4)
    with pytest.raises(InputError, match="contiguous"):
        rig.open().run_sampler(
            given, window()[1][:0], start=None, steps=(), alpha=0.4, tlb=TLB_PRESETS["none"]
        )


def test_without_capture_the_numbers_stay_and_it_is_said_once(rig, caplog):
    rig.gpu.capture_ok = False
    backend = rig.open()
    noisy, noise = window()
    with caplog.at_level(logging.WARNING, "dvpd"):
        results = [run(backend, noisy, noise) for _ in range(4)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert len([r for r in caplog.records if "cannot be captured" in r.message]) == 1
    assert "cudaGraphLaunch" not in rig.gpu.calls


def test_shapes_that_are_not_used_give_their_memory_back(rig):
    backend = rig.open()
    for n_frames in range(32, 32 + 4 * (MAX_SLOTS + 3), 4):
        run(backend, *window(n_frames=n_frames))
    assert len(backend._slots) == MAX_SLOTS
    assert len(rig.gpu.pinned) == MAX_SLOTS
    backend.close()
    assert not rig.gpu.memory


def test_full_memory_halves_the_batch_and_says_so_once(rig, caplog):
    backend = rig.open()
    noisy, noise = window(batch=4, n_frames=32)
    want = run(backend, noisy, noise)
    rig.gpu.capacity = int(0.7 * rig.gpu.used())  # too little for 4, enough for 2
    for key in list(backend._slots):
        backend._drop(key)
    with caplog.at_level(logging.WARNING, "dvpd"):
        for _ in range(3):
            np.testing.assert_allclose(run(backend, noisy, noise), want, rtol=0, atol=1e-5)
    messages = [r.message for r in caplog.records if "going on with batches of" in r.message]
    assert len(messages) == 1
    assert messages[0].endswith("of 2")
    rig.gpu.capacity = 0
    for key in list(backend._slots):
        backend._drop(key)
    with pytest.raises(DeviceMemoryError, match="memory is full"):
        run(backend, noisy, noise)


def test_lost_device_is_not_used_again(rig):
    backend = rig.open()
    noisy, noise = window()
    run(backend, noisy, noise)
    rig.gpu.fail["cudaStreamSynchronize"] = cudaError.cudaErrorLaunchFailure
    with pytest.raises(DeviceLostError, match="start a new process"):
        run(backend, noisy, noise)
    count = len(rig.gpu.calls)
    with pytest.raises(DeviceLostError):
        run(backend, noisy, noise)
    backend.close()
    assert len(rig.gpu.calls) == count


@pytest.mark.parametrize(
    ("said", "kind"), [("Out of memory in allocator", DeviceMemoryError), ("cask", BackendError)]
)
def test_engine_that_fails(rig, said, kind):
    backend = rig.open()
    rig.trt.refuse, rig.trt.said = {"sigma_z"}, said
    with pytest.raises(kind, match=said):
        run(backend, *window())


def test_non_finite_output_is_refused(rig):
    backend = rig.open()
    noisy, noise = window()
    noise[1] = np.inf
    with pytest.raises(BackendError, match="non-finite"), np.errstate(invalid="ignore"):
        run(backend, noisy, noise)


@pytest.mark.parametrize("n_frames", [132, 256])
def test_frames_outside_the_profile_never_reach_the_engine(rig, n_frames):
    backend = rig.open()
    with pytest.raises(InputError, match="hold 32 to 128"):
        run(backend, *window(n_frames=n_frames))
    with pytest.raises(InputError, match="hold 32 to 128"):
        backend.predict(window(n_frames=n_frames)[0])
    with pytest.raises(InputError, match="hold 1 to 4"):
        backend.predict(window(batch=5)[0])
    assert rig.trt.contexts == 0


def test_plain_interface_equals_the_cpu_and_feats_outlive_the_next_call(rig):
    backend = rig.open()
    reference = open_backend(rig.folder, rig.manifest, "ort", "cpu", 1)
    x, other = window(seed=0)[0], window(seed=1)[0]
    clean_ri, feats = backend.predict(x)
    backend.predict(other)
    want_ri, want_feats = reference.predict(x)
    np.testing.assert_allclose(clean_ri, want_ri, atol=1e-6)
    call = (x[:, 2:], np.full(1, 0.1, np.float32))
    factors = TLB_PRESETS["severe"].arrays()
    got = backend.score(*call, feats, *factors)
    np.testing.assert_allclose(got, reference.score(*call, want_feats, *factors), atol=1e-6)
    with pytest.raises(InputError, match="not what predict"):
        backend.score(*call, [0] * 6, *factors)
    held = rig.gpu.used()
    del feats
    assert rig.gpu.used() < held  # they hold memory only as long as somebody has them
    reference.close()


def test_half_precision_engine(engine_fp16, tmp_path):
    import shutil

    rig = Rig(shutil.copytree(engine_fp16, tmp_path / "e")).build()
    noisy, noise = window()
    got = run(rig.open(), noisy, noise)
    np.testing.assert_allclose(got, cpu(rig, noisy, noise), rtol=0, atol=1e-5)


def test_whole_recording_through_the_enhancer(rig, speech):
    from dvpd.runtime.windows import WindowPlan

    plan = WindowPlan(127 * 128, 16 * 128, 4 * 128, reminder_samples=0)
    gpu = Enhancer(rig.manifest, rig.open(), plan).enhance(speech, 16000)
    with Enhancer.open(rig.folder, "ort", "cpu", 1, window_plan=plan) as enhancer:
        want = enhancer.enhance(speech, 16000)
    assert gpu.nfe == want.nfe == 4
    np.testing.assert_allclose(gpu.wav, want.wav, rtol=0, atol=1e-5)
    assert rig.gpu.calls.count("cudaStreamBeginCapture") == 1


# -- plans ----------------------------------------------------------------------------------------


def test_no_plan(engine):
    with pytest.raises(BackendError, match=r"there is none.*dvpd build .* --backend tensorrt"):
        Rig(engine).open()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (gpus.Target("Other GPU", "8.7"), "built for Other GPU"),
        (gpus.Target("Test GPU", "8.9"), "this GPU is Test GPU"),
    ],
)
def test_plan_of_another_gpu(engine, target, message):
    rig = Rig(engine, target=target).build()
    rig.trt.Runtime = None  # TensorRT must not be asked
    with pytest.raises(BackendError, match=message):
        rig.open()


def test_plan_of_another_version_or_export_or_owner(engine):
    rig = Rig(engine).build()
    rig.trt.Runtime = None
    rig.trt.__version__ = "10.16.2"
    with pytest.raises(BackendError, match=r"built by tensorrt 10\.3\.0, here is 10\.16\.2"):
        rig.open()
    rig.trt.__version__ = "10.3.0"
    plan = next(engine.glob("score*.plan"))
    os.chmod(plan, 0o666)
    with pytest.raises(BackendError, match="others may write"):
        rig.open()
    os.chmod(plan, 0o644)
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    with pytest.raises(BackendError, match="SHA-256 differs"):
        rig.open()
    plans.sidecar_path(plan).unlink()
    with pytest.raises(BackendError, match="no sidecar"):
        rig.open()


def test_plan_of_another_graph_is_refused_by_its_signature(engine):
    rig = Rig(engine).build()
    for graph in ("predictive", "score"):
        spec = plans.plan_spec(rig.manifest, graph, "tensorrt", "10.3.0", rig.target, PROFILE)
        plans.install_plan(engine, spec, plan_bytes((engine / "predictive.onnx").read_bytes()))
    with pytest.raises(ManifestError, match="the score graph has inputs"):
        rig.open()


def test_portable_plan_of_rtx(engine):
    target = gpus.Target.parse("portable")
    rig = Rig(engine, "tensorrt-rtx", "1.7.1", target).build()
    backend = rig.open()
    assert (backend.name, backend.device) == ("tensorrt-rtx", "cuda:0")
    noisy, noise = window()
    want = cpu(rig, noisy, noise)
    for _ in range(3):  # the stand-in ends a capture of kernels that fit every shape
        np.testing.assert_allclose(run(backend, noisy, noise), want, rtol=0, atol=1e-5)
    assert rig.gpu.calls.count("cudaGraphLaunch") == 2
    # The sampler's own graphs are built here: nothing allocates as it runs, nothing is rounded.
    assert rig.trt.flags == 3 * [{"REQUIRE_USER_ALLOCATION"}]


def rtx(engine, target="portable"):
    return Rig(engine, "tensorrt-rtx", "1.7.1", gpus.Target.parse(target)).build()


def test_kernels_that_rtx_compiled_are_kept_and_shared_by_all_contexts(engine, tmp_path, caplog):
    rig = rtx(engine)
    backend = rig.open()
    run(backend, *window())
    (cache,) = rig.trt.caches
    assert len(rig.trt.settings) == 5
    assert all(settings.cache is cache for settings in rig.trt.settings)
    backend.close()
    (kept,) = (tmp_path / "cache" / "dvpd").iterdir()
    assert kept.name == "tensorrt-rtx-1.7.1.test-rtx.kernels"
    assert kept.stat().st_mode & 0o777 == 0o644
    kept.write_bytes(b"kernels of an earlier run")
    backend = rig.open()
    run(backend, *window())
    assert rig.trt.caches[1].data == b"kernels of an earlier run"
    backend.close()
    kept.write_bytes(b"of another driver")  # refused by TensorRT-RTX: written anew
    backend = rig.open()
    run(backend, *window())
    backend.close()
    assert kept.read_bytes() == b"kernels of this run"
    kept.chmod(0o666)
    with caplog.at_level(logging.WARNING, "dvpd"):
        run(rig.open(), *window())
    assert "others may write" in caplog.text
    assert rig.trt.caches[3].data == b""


def test_an_rtx_plan_whose_context_allocates_is_not_captured(engine, caplog):
    rig = rtx(engine)
    rig.trt.allocates = True
    backend = rig.open()
    noisy, noise = window()
    with caplog.at_level(logging.WARNING, "dvpd"):
        results = [run(backend, noisy, noise) for _ in range(3)]
    np.testing.assert_array_equal(results[0], results[2])
    assert "allocates as it runs: build its plan again" in caplog.text
    assert "cudaStreamBeginCapture" not in rig.gpu.calls


@pytest.mark.parametrize(
    "gpu", [gpus.Gpu("NVIDIA H100 PCIe", "9.0"), gpus.Gpu("Orin", "8.7")], ids=lambda g: g.name
)
def test_rtx_says_at_once_which_gpus_it_runs_on(engine, gpu):
    rig = rtx(engine)
    rig.trt.Runtime = None  # TensorRT-RTX must not be asked
    with pytest.raises(BackendError, match=r"does not run on .* \(compute .*use TensorRT"):
        rig.open(gpu=gpu)


def test_fp32_plans_that_round_to_tf32_are_used_only_when_asked_for(engine):
    rig = Rig(engine).build(tf32=True)
    with pytest.raises(BackendError, match="rounded to TF32"):
        rig.open()
    rig.open(tf32=True).close()
    rig.build()  # the exact plan lies beside it
    assert sorted(path.name.split(".")[-2] for path in engine.glob("*.plan")) == [
        "fp32", "fp32", "fp32-tf32", "fp32-tf32"
    ]  # fmt: skip
    rig.open().close()


# -- the machine ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        ({"driver_version": 0}, "no NVIDIA GPU with a working driver"),
        ({"count": 0}, "no NVIDIA GPU with a working driver"),
    ],
)
def test_no_driver_or_no_gpu(gpu, message):
    fake = FakeCuda(**gpu)
    with pytest.raises(BackendError, match=message):
        Cuda(0, fake.runtime, fake.driver)


def test_driver_too_old_device_missing_or_held():
    fake = FakeCuda(driver_version=11040)
    fake.fail["cudaGetDeviceCount"] = cudaError.cudaErrorInsufficientDriver
    with pytest.raises(BackendError, match=r"supports CUDA 11\.4.*update the driver"):
        Cuda(0, fake.runtime, fake.driver)
    fake = FakeCuda()
    with pytest.raises(BackendError, match="cuda:3 is not there; this machine has 1"):
        Cuda(3, fake.runtime, fake.driver)
    fake.fail["cudaFree"] = cudaError.cudaErrorDevicesUnavailable
    with pytest.raises(BackendError, match="another process holds the GPU"):
        Cuda(0, fake.runtime, fake.driver)


def test_context_of_its_own_is_refused_the_primary_one_is_shared(rig):
    backend = rig.open()
    noisy, noise = window()
    rig.gpu.context = rig.gpu.primary  # torch, CuPy, pycuda.autoprimaryctx
    run(backend, noisy, noise)
    rig.gpu.context = 99  # pycuda.autoinit
    with pytest.raises(BackendError, match="autoprimaryctx"):
        run(backend, noisy, noise)


def test_the_callers_device_stays_current(rig):
    rig.gpu.count = 2
    backend = rig.open()
    rig.gpu.device = 1
    run(backend, *window())
    assert rig.gpu.device == 1


def test_wrong_device_name_and_closed_backend(rig):
    with pytest.raises(BackendError, match="it knows cuda and cuda:N"):
        rig.open("cpu")
    backend = rig.open()
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        run(backend, *window())


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-python is not installed")
def test_genuine_cuda_python_has_every_function_in_use():
    from cuda.bindings import driver, runtime

    fake = FakeCuda()
    for name in vars(fake.runtime):
        assert hasattr(runtime, name), name
    for name in vars(fake.driver):
        assert hasattr(driver, name), name
    if int(runtime.cudaGetDeviceCount()[0]) != 0:
        with pytest.raises(BackendError, match="driver"):
            Cuda()


# -- the fake itself: what it is there to catch ---------------------------------------------------


def test_the_fake_catches_a_host_copy_of_feats_and_freed_memory(rig):
    backend = rig.open()
    run(backend, *window())
    (slot,) = backend._slots.values()
    stream = backend._stream
    backend._cuda.copy(slot.host.base, slot.device["feat_0"], 64, stream)
    with pytest.raises(Misuse, match="feat_"):
        backend._cuda.synchronize(stream)
    rig.gpu.streams[stream] = []
    run(backend, *window())
    graph = slot.graph
    rig.gpu.memory.pop(slot.device.base)
    rig.gpu.runtime.cudaGraphLaunch(graph, stream)
    with pytest.raises(Misuse, match="no live device memory"):
        backend._cuda.synchronize(stream)


def test_the_fake_catches_synchronising_in_a_capture():
    fake = FakeCuda()
    cuda = Cuda(0, fake.runtime, fake.driver)
    stream = cuda.stream()
    with pytest.raises(Misuse, match="captures"), cuda.capturing(stream, []):
        cuda.synchronize(stream)
    with pytest.raises(Misuse, match="captures"), cuda.capturing(stream, []):
        cuda.call("cudaMalloc", 16)
