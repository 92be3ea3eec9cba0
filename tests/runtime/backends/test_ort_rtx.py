"""ONNX Runtime's RTX plug-in, off the GPU: how it is registered, what it is given, what is said.

A stand-in registers it and runs on the CPU; the last test wants an RTX card and the real package.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dvpd.runtime import Enhancer, InputError
from dvpd.runtime.backends.choose import _candidates, check_causal, open_backend
from dvpd.runtime.backends.ort_rtx import PACKAGE
from dvpd.runtime.errors import BackendError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.tensorrt.gpus import cuda_device_count

onnxruntime = pytest.importorskip("onnxruntime")
NAME = "NvTensorRTRTXExecutionProvider"
NOISY = Path(__file__).resolve().parents[3] / "examples" / "noisy.flac"


class Runtime:
    """In the place of onnxruntime: knows the plug-in once it is registered; runs on the CPU."""

    GraphOptimizationLevel, __version__ = onnxruntime.GraphOptimizationLevel, "1.99"
    __spec__ = onnxruntime.__spec__

    def __init__(self, gpus: int = 1, fails: str = "", falls_back: bool = False) -> None:
        self.gpus, self.fails, self.falls_back = gpus, fails, falls_back
        self.registered: list[tuple[str, str]] = []
        self.given: list[tuple[str, object, dict[str, str]]] = []
        runtime = self

        class Options(onnxruntime.SessionOptions):
            def add_provider_for_devices(self, devices, options):
                runtime.given.append((devices[0].ep_name, devices[0].index, options))

        self.SessionOptions = Options

    def get_available_providers(self):
        return ["CPUExecutionProvider"]

    def register_execution_provider_library(self, name, path):
        if self.fails:
            raise RuntimeError(self.fails)
        self.registered.append((name, path))

    def get_ep_devices(self):
        mine = [SimpleNamespace(ep_name=NAME, index=i) for i in range(self.gpus)]
        return [SimpleNamespace(ep_name="CPUExecutionProvider")] + mine * bool(self.registered)

    def InferenceSession(self, path, settings):
        inner = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        first = "CPUExecutionProvider" if self.falls_back else NAME
        inner.get_providers = lambda: [first, "CPUExecutionProvider"]
        return inner


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    """Puts a ``Runtime`` in onnxruntime's place, and a package in the plug-in's."""

    def install(*args, **options) -> Runtime:
        runtime = Runtime(*args, **options)
        package = SimpleNamespace(get_ep_name=lambda: NAME, get_library_path=lambda: "lib.so")
        monkeypatch.setitem(sys.modules, PACKAGE, package)
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return runtime

    return install


def load(folder, device="rtx"):
    return open_backend(folder, Manifest.load(folder), "ort", device, 1)


def test_a_recording_on_the_plug_in(engine_shared, plugin, speech, tmp_path):
    with Enhancer.open(engine_shared, "ort", "cpu", 1) as plain:
        wanted = plain.enhance(speech, 16000, seed=3).wav
    runtime = plugin(gpus=2)
    with Enhancer.open(engine_shared, device="rtx:1", threads=1) as enhancer:
        assert enhancer.backend.device == "rtx:1"
        heard = enhancer.enhance(speech, 16000, seed=3).wav
    np.testing.assert_allclose(heard, wanted, atol=1e-6)
    assert runtime.registered == [(NAME, "lib.so")]
    assert [(name, index) for name, index, _ in runtime.given] == [(NAME, 1)] * 2
    for _, _, options in runtime.given:
        cache = Path(options["nv_runtime_cache_path"])
        assert cache.is_relative_to(tmp_path / "dvpd" / "ort-rtx")
        assert cache.stat().st_mode & 0o777 == 0o700
    assert runtime.given[0][2]["nv_profile_min_shapes"] == "noisy:1x3x32x257"
    assert "xt:1x1x256x257" in runtime.given[1][2]["nv_profile_opt_shapes"]
    load(engine_shared).close()
    assert len(runtime.registered) == 1  # once in a process
    with pytest.raises(InputError, match="TensorRT's engine holds"):
        load(engine_shared).predict(np.zeros((5, 3, 32, 257), np.float32))


@pytest.mark.parametrize(
    ("options", "device", "said"),
    [
        ({"gpus": 0}, "rtx", "finds 0 GPUs; it takes GeForce and workstation RTX"),
        ({"gpus": 1}, "rtx:1", "rtx:1 asked for, but the RTX provider finds 1 GPUs"),
        ({"fails": "libcuda.so.1: cannot open\nmore"}, "rtx", r"\(libcuda.so.1: cannot open\): it"),
        ({"falls_back": True}, "rtx", "fell back to CPUExecutionProvider"),
        ({}, "rtx:x", "no device 'rtx:x'"),
    ],
)
def test_what_is_not_there_is_said(engine_shared, plugin, options, device, said):
    plugin(**options)
    with pytest.raises(BackendError, match=said):
        load(engine_shared, device)


def test_an_old_onnx_runtime_and_a_missing_or_broken_package_are_said(
    engine_shared, plugin, monkeypatch, tmp_path
):
    runtime = plugin()
    old = SimpleNamespace(
        __version__="1.23",
        __spec__=onnxruntime.__spec__,
        get_available_providers=runtime.get_available_providers,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", old)
    with pytest.raises(BackendError, match=r"needs onnxruntime 1.24 or newer, this is 1.23"):
        load(engine_shared)
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(BackendError, match=r"pip install 'dvpd\[ort-rtx\]'"):
        load(engine_shared)
    monkeypatch.delitem(sys.modules, PACKAGE)
    (tmp_path / f"{PACKAGE}.py").write_text("raise OSError('no libnvinfer')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BackendError, match=r"does not import \(no libnvinfer\)"):
        load(engine_shared)


def test_auto_leaves_it_to_onnx_runtime_and_live_models_are_refused(engine_shared):
    assert _candidates("auto", "rtx", engine_shared) == [("ort", "rtx")]
    live = Manifest.load(NOISY.parents[1] / "engines" / "dvpd-live-tiny")
    with pytest.raises(BackendError, match="causal model, and ort on rtx does not carry its state"):
        check_causal(live, "ort", "rtx")


@pytest.mark.gpu
@pytest.mark.skipif(cuda_device_count() == 0, reason="no NVIDIA GPU")
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is missing")
def test_an_rtx_card_gives_what_the_cpu_gives():
    import soundfile

    wav, rate = soundfile.read(NOISY, dtype="float32")
    heard = []
    for device in ("cpu", "rtx"):
        with Enhancer.open("dvpd-tiny", "ort", device) as enhancer:
            heard.append(enhancer.enhance(wav, rate, seed=0).wav)
    error = np.square(heard[1] - heard[0]).sum() / np.square(heard[0]).sum()
    assert 10 * np.log10(error) < -40
