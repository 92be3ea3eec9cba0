"""Fast forms of the layers: the same values, gradients and names as the reference's."""

from __future__ import annotations

import copy

import pytest
import torch
from small_model import SMALL, set_weights
from torch import nn
from train_parts import Tones, micro_config

from dvpd.config import Config, complete_old, to_dict
from dvpd.config.train import TrainConfig
from dvpd.model import DVPD
from dvpd.training import fast_kernels
from dvpd.training.fast_kernels import (
    DEPTHWISE_FORMS,
    Pointwise,
    ShiftedDepthwise,
    fastest,
    replace_layers,
)
from dvpd.training.trainer import FREE_KEYS, Trainer

OF_RANGE = 1e-5  # largest error over the largest value, in float64 with its float32 parts
# Seventy layers with kinks magnify the rounding of those parts (2e-4 to 9e-4 were seen in float64; in
# float32 6e-3 between two orders of the same sums).
GRADIENT = 3e-3


def gradients(model: nn.Module, noisy: torch.Tensor) -> tuple[torch.Tensor, dict]:
    given = noisy.clone().requires_grad_()
    clean, feats = model.predictive(given)
    sigma_z = model.score(clean[:, :1], torch.tensor([0.3, 0.7]).double(), feats)
    (clean.square().mean() + sigma_z.square().mean()).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    return torch.cat([clean, sigma_z], 1).detach(), {**grads, "input": given.grad}


@pytest.mark.parametrize("depthwise", DEPTHWISE_FORMS)
@pytest.mark.parametrize("shifted_lisa", [False, True])
def test_values_gradients_and_names_are_the_reference_s(depthwise, shifted_lisa):
    reference = DVPD(SMALL)
    set_weights(reference)
    reference.double()
    fast = replace_layers(copy.deepcopy(reference), depthwise, shifted_lisa)
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in reference.named_parameters()]
    assert list(fast.state_dict()) == list(reference.state_dict())
    left = [m for m in fast.modules() if type(m) is nn.Conv2d]
    assert not any(m.kernel_size == (1, 1) for m in left)
    shifted = any(isinstance(m, ShiftedDepthwise) for m in fast.modules())
    assert shifted == (depthwise == "shifted sums")
    noisy = torch.randn(2, 3, 32, 257, generator=torch.Generator().manual_seed(0)).double()
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    (expected, theirs), (got, mine) = gradients(reference, noisy), gradients(fast, noisy)
    assert (got - expected).abs().max() < OF_RANGE * expected.abs().max()
    whole = torch.cat([g.flatten() for g in theirs.values()]).norm()
    for name, grad in theirs.items():
        assert (mine[name] - grad).norm() < GRADIENT * grad.norm() + 1e-6 * whole, name


def test_a_pointwise_convolution_keeps_channels_last_without_a_copy():
    layer = Pointwise(6, 4, 1)
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, nn.functional.conv2d(x, layer.weight, layer.bias))


def test_shifted_sums_under_autocast_have_its_type():
    layer = ShiftedDepthwise(4, 4, 3, padding=1, groups=4)
    x = torch.randn(1, 4, 6, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), nn.Conv2d.forward(layer, x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected.float(), rtol=2e-2, atol=2e-2)


def test_the_faster_form_is_taken_and_a_failing_one_left_out(monkeypatch, caplog):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("not on this machine")

    x = torch.ones(1, 2, 4, 4)
    times = iter([3.0, 1.0])
    monkeypatch.setattr(fast_kernels, "seconds_of", lambda *_: next(times))
    assert fastest({"a": nn.Identity(), "b": nn.Identity()}, x, TrainConfig()) == "b"
    monkeypatch.undo()
    assert fastest({"a": nn.Identity(), "b": Broken()}, x, TrainConfig()) == "a"
    assert "b: not on this machine" in caplog.text


@pytest.mark.parametrize("depthwise", DEPTHWISE_FORMS)
def test_a_training_with_fast_kernels_is_that_of_the_reference(tmp_path, monkeypatch, depthwise):
    monkeypatch.setattr(fast_kernels, "fastest", lambda forms, *_: depthwise)
    steps = {}
    for kernels in ("reference", "fast"):
        config = micro_config(steps=2, lr=2e-5, kernels=kernels, branches="predictive")
        trainer = Trainer(config, Tones(), tmp_path / kernels)
        weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        trainer.run()
        steps[kernels] = (weights, trainer)
    first, second = (steps[k][0] for k in steps)
    assert all(torch.equal(first[k], second[k]) for k in second)  # measuring draws nothing
    a, b = (steps[k][1].ema.model.state_dict() for k in steps)
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-3, atol=1e-4)
    # a run may go on with the other form
    again = Trainer(
        micro_config(steps=2, lr=2e-5, branches="predictive"), Tones(), tmp_path / "fast"
    )
    again.resume()
    assert again.step == 2


def test_configs_from_before_the_key_mean_the_reference():
    old = to_dict(Config())
    del old["train"]["kernels"]
    assert complete_old(old)["train"]["kernels"] == "reference"
    assert "kernels" in FREE_KEYS
