"""OpenVINO's bfloat16: asked for by name, only where it was measured, never in float32's place."""

import numpy as np
import pytest

from dvpd.runtime.backends import openvino
from dvpd.runtime.backends.choose import BF16, _candidates, open_backend
from dvpd.runtime.errors import BackendError
from dvpd.runtime.manifest import Manifest

pytest.importorskip("openvino", reason="OpenVINO is not installed")


class Core:
    """OpenVINO's core on a CPU that can, or cannot, compute in bfloat16; what is compiled for it."""

    def __init__(self, capabilities):
        self.inner, self.capabilities = openvino.shared_core(), capabilities
        self.available_devices = self.inner.available_devices
        self.read_model = self.inner.read_model
        self.asked = []

    def get_property(self, device, name):
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self.capabilities

    def compile_model(self, model, device, config):
        self.asked.append(config)
        exact = config | {"INFERENCE_PRECISION_HINT": "f32"}  # the CPU here may have none
        return self.inner.compile_model(model, device, exact)


@pytest.fixture
def core(monkeypatch):
    def install(*capabilities):
        fake = Core(list(capabilities))
        monkeypatch.setattr(openvino, "shared_core", lambda: fake)
        return fake

    return install


def load(folder, name=BF16, device="auto", threads=2):
    return open_backend(folder, Manifest.load(folder), name, device, threads)


@pytest.mark.parametrize(("name", "hint"), [(BF16, "bf16"), ("openvino", "f32")])
def test_the_name_says_what_is_rounded(engine_shared, core, name, hint):
    fake = core("FP32", "BF16", "FP16")
    backend = load(engine_shared, name, "cpu")
    assert (backend.name, backend.device) == (name, "cpu")
    workers, count = backend.for_workers()
    assert (workers.name, count) == (name, 2)
    assert [config["INFERENCE_PRECISION_HINT"] for config in fake.asked] == [hint] * 4
    clean_ri, _ = backend.predict(np.ones((1, 3, 32, 257), np.float32))
    np.testing.assert_allclose(clean_ri, 0.5)
    backend.close()


def test_a_cpu_without_it_computes_nothing_else_instead(engine_shared, core):
    fake = core("FP32", "INT8")
    with pytest.raises(BackendError, match=r"needs a CPU with AMX .* use backend openvino or ort"):
        load(engine_shared)
    assert fake.asked == []


def test_models_it_was_not_measured_with_are_refused(engine_causal, engine_fp16, core):
    core("FP32", "BF16")
    for folder, kind in ((engine_causal, "causal"), (engine_fp16, "fp16")):
        with pytest.raises(BackendError, match=f"is {kind}; openvino-bf16 takes fp32 engines"):
            load(folder)


def test_auto_never_rounds(tmp_path):
    assert BF16 not in dict(_candidates("auto", "auto", tmp_path))
    assert BF16 not in dict(_candidates("auto", "cpu", tmp_path))
    assert _candidates(BF16, "auto", tmp_path) == [(BF16, "cpu")]
