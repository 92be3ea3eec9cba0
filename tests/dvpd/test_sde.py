from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dvpd import sde as torch_sde
from dvpd.runtime import sampler as np_sampler
from dvpd.runtime import schedule
from dvpd.runtime.schedule import SdeSpec
from dvpd.runtime.spec import SamplerSpec, TlbFactors


class TorchBackend:
    """The torch model behind the runtime's protocol."""

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def predict(self, noisy):
        clean, feats = self.model.predictive(torch.from_numpy(noisy))
        return clean.numpy(), feats

    @torch.no_grad()
    def score(self, xt, t, feats, tlb_skip, tlb_backbone):
        tensors = map(torch.from_numpy, (xt, t))
        factors = map(torch.from_numpy, (tlb_skip, tlb_backbone))
        return self.model.score(*tensors, feats, *factors).numpy()

    def close(self):
        pass


@pytest.mark.parametrize("name", ["bbed", "ouve"])
@pytest.mark.parametrize(
    "chosen",
    [
        {"n_steps": 0, "last_step": "exact"},
        {"n_steps": 1, "last_step": "exact"},
        {"n_steps": 3, "last_step": "euler"},
        {"n_steps": 3, "last_step": "exact"},
        {"n_steps": 3, "last_step": "exact", "noise": 0.25},
        {"n_steps": 1, "last_step": "exact", "noise": 0.0},
    ],
)
def test_reference_sampler_equals_the_runtime_s(small_model, name, chosen):
    sde, spec = SdeSpec(name=name), SamplerSpec(**chosen)
    n_steps = spec.n_steps
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((1, 3, 32, 257), dtype=np.float32) * 0.2
    noisy[:, 2] = np.hypot(noisy[:, 0], noisy[:, 1])
    noise = rng.standard_normal((n_steps, 1, 1, 32, 257), dtype=np.float32)
    expected, _ = torch_sde.sample(
        small_model, torch.from_numpy(noisy), list(torch.from_numpy(noise)), sde=sde, sampler=spec
    )
    got = np_sampler.sample(
        TorchBackend(small_model),
        noisy,
        start=schedule.initial_state(sde, spec.t_rs, spec.noise),
        steps=schedule.sampler_steps(sde, spec.t_rs, n_steps, spec.last_step, spec.noise),
        alpha=spec.alpha,
        tlb=TlbFactors(),
        draw=lambda i: noise[i],
    )
    assert np.abs(got).max() > 0.1
    assert np.abs(got - expected.numpy()).max() < 1e-4 * np.abs(got).max()


def test_a_perfect_network_finds_the_clean_magnitude():
    """With sigma z = x_t - mean(x0, y, t), the last mean is the clean magnitude, but for dt's bias."""
    sde, spec = SdeSpec(), SamplerSpec(alpha=0.0, n_steps=12)
    clean = torch.rand(1, 1, 32, 257) + 0.2
    y = clean + 0.3 * torch.rand(1, 1, 32, 257)

    class Oracle:
        def predictive(self, noisy):
            ri = torch.cat([clean, torch.zeros_like(clean)], dim=1)
            return ri, []

        def score(self, xt, t, feats, *_):
            return xt - torch_sde.mean(sde, clean, y, t)

    noisy = torch.cat([y, torch.zeros_like(y), y], dim=1)
    noise = [torch.randn(1, 1, 32, 257) for _ in range(spec.n_steps)]
    out, _ = torch_sde.sample(Oracle(), noisy, noise, sde=sde, sampler=spec)
    start = (y - clean).abs().mean()
    assert (out[:, :1] - clean).abs().mean() < 0.5 * start


def test_mean_and_std_are_the_schedule_s():
    sde = SdeSpec()
    t = torch.tensor([0.12, 0.5])
    assert torch_sde.std(sde, t).shape == (2, 1, 1, 1)
    assert torch_sde.std(sde, t)[0].item() == pytest.approx(0.24663, abs=1e-5)
    x0, y = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    assert torch_sde.mean(sde, x0, y, t)[1].max().item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["bbed", "ouve"])
def test_closed_forms_on_tensors_equal_the_schedule_s(name):
    sde = SdeSpec(name=name)
    t = torch.linspace(0.0005, 0.9995, 4001)
    expected = schedule.std(sde, t.double().numpy())
    np.testing.assert_allclose(torch_sde.std(sde, t).flatten(), expected, rtol=1e-7)
    weight = torch_sde.Marginal(sde).weight(t).flatten()
    np.testing.assert_allclose(weight, schedule.mean_weight(sde, t.double().numpy()), atol=1e-7)


def test_degraded_phase_and_unknown_phase(small_model):
    noisy = torch.randn(1, 3, 32, 257)
    noise = [torch.randn(1, 1, 32, 257) for _ in range(3)]
    out, _ = torch_sde.sample(small_model, noisy, noise, phase="noisy")
    angle = torch.atan2(out[:, 1], out[:, 0]) - torch.atan2(noisy[:, 1], noisy[:, 0])
    loud = out.square().sum(1) > 1e-4
    assert torch.cos(angle)[loud].min() > 0.999
    with pytest.raises(ValueError, match="'predictive' or 'noisy'"):
        torch_sde.sample(small_model, noisy, noise, phase="random")


def test_only_the_last_call_of_the_score_network_is_differentiated(small_model):
    """What the earlier calls do to the result must not reach their weights' gradient."""
    calls = []

    def score(xt, t, feats, skip=None, backbone=None):
        weight = torch.ones((), requires_grad=torch.is_grad_enabled())
        calls.append(weight)
        return 0.1 * weight * xt

    noisy = torch.rand(1, 3, 8, 257)
    noise = [torch.zeros(1, 1, 8, 257)] * 3
    predicted = noisy[:, :2].clone().requires_grad_()
    model = SimpleNamespace(score=score)
    plan = torch_sde.make_plan(SdeSpec(), SamplerSpec())
    fused = torch_sde.reverse(model, noisy, predicted, [], noise, plan)
    fused.sum().backward()
    assert [w.requires_grad for w in calls] == [False, False, True]
    assert calls[-1].grad is not None
    assert calls[-1].grad != 0
    # the prediction's own share of the fusion is left: alpha times the gradient of its magnitude
    m = predicted.detach().square().sum(1, keepdim=True).sqrt()
    expected = SamplerSpec().alpha * predicted.detach() / m
    torch.testing.assert_close(predicted.grad, expected, rtol=1e-4, atol=1e-6)
