import numpy as np
import pytest

from dvpd.runtime.sampler import sample
from dvpd.runtime.schedule import SdeSpec, initial_state, sampler_steps, std
from dvpd.runtime.spec import TLB_PRESETS, TlbFactors

SDE = SdeSpec()
RNG = np.random.default_rng(0)


class FakeBackend:
    name, device = "fake", "cpu"

    def __init__(self):
        self.calls = []

    def predict(self, noisy):
        return noisy[:, :2] * np.float32(0.7), ["feats"]

    def score(self, xt, t, feats, tlb_skip, tlb_backbone):
        self.calls.append((xt.copy(), t.copy(), feats, tlb_skip, tlb_backbone))
        return xt * np.float32(0.1)

    def close(self):
        pass


def noisy_batch():
    ri = RNG.standard_normal((2, 2, 32, 257)).astype(np.float32)
    ri[:, :, 5, 7] = 0.0
    return np.concatenate([ri, np.sqrt((ri**2).sum(1, keepdims=True))], axis=1)


def run(noisy, n_steps=3, alpha=0.4, tlb=None, backend=None):
    z = np.random.default_rng(9).standard_normal((4, 32, 257)).astype(np.float32)
    return (
        sample(
            backend or FakeBackend(),
            noisy,
            start=initial_state(SDE, 0.12),
            steps=sampler_steps(SDE, 0.12, n_steps) if n_steps else (),
            alpha=alpha,
            tlb=tlb or TlbFactors(),
            draw=lambda i: z[i],
        ),
        z,
    )


def test_without_steps_a_backend_that_can_is_asked_for_the_estimate_alone():
    class Shorter(FakeBackend):
        def estimate(self, noisy):
            return noisy[:, :2] * np.float32(0.3)

    noisy = noisy_batch()
    np.testing.assert_array_equal(run(noisy, 0)[0], noisy[:, :2] * np.float32(0.7))
    np.testing.assert_array_equal(
        run(noisy, 0, backend=Shorter())[0], noisy[:, :2] * np.float32(0.3)
    )
    np.testing.assert_array_equal(run(noisy, 1, backend=Shorter())[0], run(noisy, 1)[0])


def test_follows_algorithm_1_in_float64():
    noisy = noisy_batch()
    out, z = run(noisy)
    pred = noisy[:, :2].astype(np.float64) * np.float32(0.7)
    mag_p = np.sqrt((pred**2).sum(1, keepdims=True))
    y = noisy[:, 2:3].astype(np.float64)
    x = (1 - 0.12) * mag_p + 0.12 * y + std(SDE, 0.12) * z[0]
    for i, t in enumerate((0.12, 0.08, 0.04)):
        g2 = 0.51 * 2.6 ** (2 * t)
        score = -(0.1 * x) / std(SDE, t) ** 2
        mean = x + (-(y - x) / (1 - t) + g2 * score) * 0.04
        x = mean + np.sqrt(g2 * 0.04) * z[i + 1]
    mag = 0.4 * mag_p + 0.6 * np.maximum(mean, 0)
    phase = np.arctan2(pred[:, 1], pred[:, 0])[:, None]
    expected = np.concatenate([mag * np.cos(phase), mag * np.sin(phase)], axis=1)
    expected[np.broadcast_to(mag_p == 0, expected.shape)] = 0
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=2e-5)
    assert not out[:, :, 5, 7].any()


def test_network_sees_times_feats_and_factors():
    backend = FakeBackend()
    run(noisy_batch(), tlb=TLB_PRESETS["severe"], backend=backend)
    assert [c[1].tolist() for c in backend.calls] == [
        pytest.approx([t, t]) for t in (0.12, 0.08, 0.04)
    ]
    for xt, t, feats, skip, backbone in backend.calls:
        assert xt.dtype == t.dtype == skip.dtype == backbone.dtype == np.float32
        assert xt.shape == (2, 1, 32, 257)
        assert feats == ["feats"]
        assert skip[0, 0] == np.float32(4.1)


def test_no_steps_is_the_predictive_branch():
    noisy = noisy_batch()
    backend = FakeBackend()
    np.testing.assert_array_equal(run(noisy, 0, backend=backend)[0], noisy[:, :2] * np.float32(0.7))
    assert not backend.calls


def test_alpha_one_keeps_the_predictive_magnitude():
    noisy = noisy_batch()
    np.testing.assert_allclose(run(noisy, 2, 1.0)[0], noisy[:, :2] * 0.7, atol=1e-5)
