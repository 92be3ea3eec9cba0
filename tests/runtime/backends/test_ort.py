"""ONNX Runtime on a GPU, off the GPU: providers, options, and where the feats are.

A stand-in says that it has CUDA and TensorRT, runs on the CPU, and records what is asked of it.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dvpd.runtime import Enhancer
from dvpd.runtime.backends.choose import _candidates, open_backend
from dvpd.runtime.backends.ort_providers import engine_cache
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.tensorrt.onnx_inputs import Profile

onnxruntime = pytest.importorskip("onnxruntime")
ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
FEATS = [f"feat_{i}" for i in range(6)]


class Value:
    """An output; a copy to the host is recorded."""

    def __init__(self, name, value, log):
        self.name, self.value, self.log = name, value, log

    def numpy(self):
        self.log.append(("to_host", self.name))
        return self.value.numpy()


class Binding:
    """An IO binding on the CPU that remembers on which device things were to be."""

    def __init__(self, inner, log):
        self.inner, self.log, self.names = inner, log, []

    def bind_cpu_input(self, name, array):
        self.log.append(("from_host", name))
        self.inner.bind_cpu_input(name, array)

    def bind_ortvalue_input(self, name, value):
        self.log.append(("handed_on", name, value.value.data_ptr()))
        self.inner.bind_ortvalue_input(name, value.value)

    def bind_output(self, name, device, index=0):
        self.log.append(("output", name, device, index))
        self.names.append(name)
        self.inner.bind_output(name, "cpu")

    def get_outputs(self):
        values = self.inner.get_outputs()
        for name, value in zip(self.names, values, strict=True):
            self.log.append(("written", name, value.data_ptr()))
        return [Value(n, v, self.log) for n, v in zip(self.names, values, strict=True)]


class Session:
    """A session on the CPU that reports the providers it was given."""

    def __init__(self, path, settings, providers, log, loses):
        names = [p if isinstance(p, str) else p[0] for p in providers]
        # else the threads of one graph spin on the cores that the other one needs
        assert settings.get_session_config_entry("session.force_spinning_stop") == "1"
        log.append(("session", Path(path).name, providers))
        self.providers = [n for n in names if n not in loses]
        self.inner = onnxruntime.InferenceSession(
            path, settings, providers=["CPUExecutionProvider"]
        )
        self.log = log

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def get_providers(self):
        return self.providers

    def run(self, *args, **kwargs):
        raise AssertionError("a run without binding copies every feat to the host and back")

    def io_binding(self):
        return Binding(self.inner.io_binding(), self.log)

    def run_with_iobinding(self, binding):
        self.inner.run_with_iobinding(binding.inner)


@pytest.fixture
def gpu_ort(monkeypatch, tmp_path):
    """A function that puts the stand-in in ONNX Runtime's place; the record of its calls."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def install(providers=ALL, loses=()):
        log = []
        fake = SimpleNamespace(
            get_available_providers=lambda: list(providers),
            SessionOptions=onnxruntime.SessionOptions,
            GraphOptimizationLevel=onnxruntime.GraphOptimizationLevel,
            InferenceSession=lambda path, settings, providers: Session(
                path, settings, providers, log, loses
            ),
            preload_dlls=lambda: (log.append(("preload",)), print("no libcublas")),
            __version__="1.99",
            __spec__=onnxruntime.__spec__,
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        return log

    return install


def load(folder, device):
    return open_backend(folder, Manifest.load(folder), "ort", device, 1)


@pytest.mark.parametrize("device", ["cuda", "cuda:2", "tensorrt", "tensorrt:2"])
@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_feats_are_never_copied(engine_shared, engine_fp16, gpu_ort, speech, device, kind):
    """A whole recording: every feat is bound where the predictive graph wrote it, and stays."""
    folder = engine_shared if kind == "fp32" else engine_fp16
    with Enhancer.open(folder, backend="ort", device="cpu", threads=1) as plain:
        expected = plain.enhance(speech, 16000, seed=3).wav
    log = gpu_ort()
    with Enhancer.open(folder, backend="ort", device=device, threads=1) as enhancer:
        heard = enhancer.enhance(speech, 16000, seed=3).wav
    np.testing.assert_allclose(heard, expected, atol=1e-6)

    index = int(device.partition(":")[2] or 0)
    calls = [entry for entry in log if entry[0] != "session"]
    windows = sum(entry[:2] == ("from_host", "noisy") for entry in calls)
    score_calls = sum(entry[:2] == ("from_host", "xt") for entry in calls)
    assert windows >= 1
    assert score_calls == 3 * windows
    copied = [e for e in calls if e[0] in ("from_host", "to_host") and e[1] in FEATS]
    assert copied == []
    outputs = [e for e in calls if e[0] == "output" and e[1] in FEATS]
    assert outputs == windows * [("output", name, "cuda", index) for name in FEATS]
    # Copies a window: noisy in, clean_ri out; each score call four small inputs in, one out.
    assert sum(e[0] == "from_host" for e in calls) == windows + 4 * score_calls
    assert sum(e[0] == "to_host" for e in calls) == windows + score_calls
    where = {}
    for entry in calls:
        if entry[0] == "written" and entry[1] in FEATS:
            where[entry[1]] = entry[2]
        if entry[0] == "handed_on":
            assert entry[2] == where[entry[1]], "not the buffer that the predictive graph wrote"
    assert sum(e[0] == "handed_on" for e in calls) == 6 * score_calls


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "tensorrt"])
def test_the_first_gpu_is_not_named(engine_fp16, gpu_ort, device):
    """ONNX Runtime 1.31 warned of "No registered plugin EP device" at every session that named it."""
    log = gpu_ort()
    load(engine_fp16, device).close()
    sessions = [entry[2] for entry in log if entry[0] == "session"]
    assert len(sessions) == 2
    for provider in (p for providers in sessions for p in providers if isinstance(p, tuple)):
        assert "device_id" not in provider[1], provider


def test_providers_and_their_options(engine_fp16, gpu_ort, tmp_path, caplog):
    log = gpu_ort()
    options = {"device_id": "1", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    load(engine_fp16, "cuda:1").close()
    assert [entry[2] for entry in log if entry[0] == "session"] == 2 * [
        [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
    ]
    log.clear()
    manifest = Manifest.load(engine_fp16)
    open_backend(engine_fp16, manifest, "ort", "cuda:1", 1, tf32=True).close()
    assert [e[2][0][1]["use_tf32"] for e in log if e[0] == "session"] == ["1", "1"]
    log.clear()
    load(engine_fp16, "tensorrt:1").close()
    sessions = [entry for entry in log if entry[0] == "session"]
    for _, _, (tensorrt, cuda, cpu) in sessions:
        assert tensorrt[0] == "TensorrtExecutionProvider"
        assert (cuda, cpu) == (("CUDAExecutionProvider", options), "CPUExecutionProvider")
        assert tensorrt[1]["device_id"] == "1"
        assert tensorrt[1]["trt_fp16_enable"] == "True"
        assert tensorrt[1]["trt_engine_cache_enable"] == "True"
        folder = Path(tensorrt[1]["trt_engine_cache_path"])
        assert folder.is_dir()
        assert folder.is_relative_to(tmp_path / "cache")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert sessions[0][2][0][1]["trt_profile_min_shapes"] == "noisy:1x3x32x257"
    largest = Profile().frames[2]
    assert sessions[0][2][0][1]["trt_profile_max_shapes"] == f"noisy:4x3x{largest}x257"
    opt = dict(
        part.split(":") for part in sessions[1][2][0][1]["trt_profile_opt_shapes"].split(",")
    )
    assert set(opt) == {"xt", "t", "tlb_skip", "tlb_backbone", *FEATS}
    assert opt["xt"] == "1x1x256x257"
    assert opt["tlb_skip"] == "2x2"
    assert opt["t"] == "1"
    assert caplog.text.count("minutes, once") == 2
    caplog.clear()
    for _, _, ((_, options), *_) in sessions:
        (Path(options["trt_engine_cache_path"]) / "built.engine").write_bytes(b"")
    load(engine_fp16, "tensorrt:1").close()
    assert "minutes, once" not in caplog.text


def test_libraries_of_wheels_are_loaded_first_and_stdout_stays_clean(
    engine_shared, gpu_ort, capsys
):
    log = gpu_ort()
    load(engine_shared, "cuda").close()
    assert [entry[0] for entry in log][:3] == ["preload", "session", "session"]
    log.clear()
    load(engine_shared, "cpu").close()
    assert ("preload",) not in log
    assert capsys.readouterr().out == ""
    del sys.modules["onnxruntime"].preload_dlls  # before 1.21
    load(engine_shared, "cuda").close()


@pytest.mark.parametrize(
    ("device", "providers", "loses", "message"),
    [
        ("tensorrt", ALL[1:], (), "has only CUDAExecutionProvider, CPUExecutionProvider"),
        ("cuda", ALL[2:], (), "has only CPUExecutionProvider"),
        (
            "tensorrt",
            ALL,
            ALL[:1],
            "could not load its TensorRT, CUDA libraries and fell back to C",
        ),
        ("cuda", ALL, ALL[:2], "could not load its CUDA libraries and fell back to CPU"),
        ("tensorrt:x", ALL, (), "no device 'tensorrt:x'; it knows cpu, cuda, cuda:N, tensorrt"),
        ("cpu:1", ALL, (), "no device 'cpu:1'"),
    ],
)
def test_a_provider_that_is_not_there(engine_shared, gpu_ort, device, providers, loses, message):
    gpu_ort(providers, loses)
    with pytest.raises(BackendError, match=message):
        load(engine_shared, device)


@pytest.mark.parametrize(("batch", "frames"), [(5, 32), (1, 1028)])
def test_sizes_outside_the_tensorrt_engine(engine_shared, gpu_ort, batch, frames):
    gpu_ort()
    noisy = np.zeros((batch, 3, frames, 257), np.float32)
    engine = load(engine_shared, "tensorrt")
    with pytest.raises(InputError, match=f"{frames} frames and batch {batch}.*32 to 1024 frames"):
        engine.predict(noisy)
    engine.close()
    engine = load(engine_shared, "cuda")  # has no profile
    assert engine.predict(noisy)[0].shape == (batch, 2, frames, 257)
    engine.close()


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_an_engine_cache_of_others_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = engine_cache("a" * 64)
    folder.chmod(0o777)
    with pytest.raises(BackendError, match="executable code"):
        engine_cache("a" * 64)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="set XDG_CACHE_HOME"):
        engine_cache("a" * 64)


def test_auto_leaves_tensorrt_to_onnx_runtime(engine_shared):
    assert _candidates("auto", "tensorrt", engine_shared) == [("ort", "tensorrt")]
    assert _candidates("auto", "cpu", engine_shared)[0] == ("ort", "cpu")
