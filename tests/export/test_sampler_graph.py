"""The sampler's small graphs against runtime/sampler.py, and as the runtime ships them."""

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from dvpd.export import sampler_graph
from dvpd.runtime.sampler import sample
from dvpd.runtime.schedule import SdeSpec, initial_state, sampler_steps
from dvpd.runtime.spec import TlbFactors
from dvpd.runtime.tensorrt import onnx_inputs, plans

NAMES = ("start", "step", "finish")
SHIPPED = Path(sampler_graph.__file__).resolve().parent.parent / "runtime" / "graphs"
SAME_SUM = 1e-6  # of the output's range: the order of three float32 additions


class Networks:
    """Two networks as simple as can be, recording the states that they are given."""

    name, device = "fake", "cpu"

    def __init__(self):
        self.states = []

    def predict(self, noisy):
        return 0.7 * noisy[:, :2], [None] * 6

    def score(self, xt, t, feats, tlb_skip, tlb_backbone):
        self.states.append(xt)
        return np.float32(0.3) * xt + np.float32(0.1) * t.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_graphs_are_what_this_module_writes(name, tmp_path):
    assert sampler_graph.main(["-o", str(tmp_path)]) == 0
    assert (tmp_path / f"{name}.onnx").read_bytes() == (SHIPPED / f"{name}.onnx").read_bytes()


@pytest.mark.parametrize(("batch", "n_frames", "n_steps"), [(1, 32, 1), (2, 36, 3)])
def test_graphs_equal_the_sampler(batch, n_frames, n_steps):
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((batch, 3, n_frames, 257)).astype(np.float32)
    noisy[:, :, :2] = 0.0  # bins without a phase
    noise = rng.standard_normal((n_steps, batch, 1, n_frames, 257)).astype(np.float32)
    start = initial_state(SdeSpec(), 0.12)
    steps, alpha = sampler_steps(SdeSpec(), 0.12, n_steps), 0.4
    networks = Networks()
    want = sample(
        networks, noisy, start=start, steps=steps, alpha=alpha, tlb=TlbFactors(),
        draw=lambda i: noise[i],
    )  # fmt: skip

    graphs = {n: ort.InferenceSession(SHIPPED / f"{n}.onnx") for n in NAMES}

    def run(name, *coefficients, **feed):
        filled = np.array([*coefficients, 0, 0, 0, 0][:4], np.float32)
        return graphs[name].run(None, {**feed, "coefficients": filled})

    clean_ri, feats = Networks().predict(noisy)
    mag_p, xt = run(
        "start", start.w_x0, start.w_y, start.std, noisy=noisy, clean_ri=clean_ri, noise=noise[0]
    )
    for i, step in enumerate(steps):
        np.testing.assert_allclose(xt, networks.states[i], rtol=0, atol=SAME_SUM * np.ptp(xt))
        t = np.full(batch, step.t, np.float32)
        sigma_z = Networks().score(xt, t, feats, None, None)
        following = noise[min(i + 1, n_steps - 1)]
        (xt,) = run(
            "step", step.a, step.b, step.e, step.n,
            noisy=noisy, xt=xt, sigma_z=sigma_z, noise=following,
        )  # fmt: skip
    (fused,) = run("finish", alpha, 1 - alpha, clean_ri=clean_ri, mag_p=mag_p, xt=xt)
    np.testing.assert_allclose(fused, want, rtol=0, atol=SAME_SUM * np.ptp(want))
    assert not fused[:, :, :2].any()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
@pytest.mark.parametrize("name", NAMES)
def test_tensorrt_rtx_builds_them(name):
    from dvpd.export.trt_api import TrtApi

    api, path = TrtApi("tensorrt-rtx"), SHIPPED / f"{name}.onnx"
    inputs = onnx_inputs.graph_inputs(path)
    parsed = api.parse(path)
    api.check_inputs(parsed, inputs, path)
    data, _ = api.build(parsed, onnx_inputs.Profile().shapes(inputs), api.target("portable"))
    assert data.startswith(plans.PLAN_MAGIC["tensorrt-rtx"])
