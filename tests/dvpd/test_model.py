from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dvpd.config import ModelConfig, load_toml
from dvpd.layers import fold_batch_norms
from dvpd.macs import MacCounter, macs_per_second, parameter_counts
from dvpd.model import DVPD

CONFIGS = Path(__file__).parents[2] / "dvpd" / "configs"
GOLDEN = Path(__file__).parents[1] / "assets" / "golden_small.npz"
FLOAT32 = 2e-4  # relative to the output's range: two orders of summation in float32


def inputs(batch: int = 1, n_frames: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    wave = torch.sin(torch.arange(batch * 3 * n_frames * 257, dtype=torch.float64) * 0.013)
    noisy = (0.3 * wave).float().reshape(batch, 3, n_frames, 257)
    return noisy, torch.full((batch,), 0.12)


def both(model, noisy, t, **tlb):
    clean, feats = model.predictive(noisy)
    return clean, model.score(noisy[:, 2:3], t, feats, **tlb)


@pytest.mark.parametrize(("file", "params", "gmacs"), [
    ("base.toml", (610_000, 1_900_000), (2.41, 10.2)),
    ("tiny.toml", (610_000 / 3, 1_900_000 / 3), (2.41 / 4, 10.2 / 4)),
])  # fmt: skip
def test_size_budgets_with_every_product_counted(file, params, gmacs):
    model = DVPD(load_toml(CONFIGS / file).model).eval()
    count, macs = parameter_counts(model), macs_per_second(model)
    assert count["predictive"] <= params[0]
    assert count["total"] <= params[1]
    assert macs["predictive"] <= gmacs[0] * 1e9
    assert macs["total"] <= gmacs[1] * 1e9
    assert macs["total"] == macs["predictive"] + 3 * macs["score"]


def test_the_counter_counts_what_a_hand_count_does():
    conv, linear = torch.nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.nn.Linear(5, 7)
    with torch.no_grad(), MacCounter() as counter:
        y = conv(torch.zeros(1, 4, 8, 5))  # 6 x 8 x 5 outputs of (4 / 2) x 9 products
        linear(y)  # 6 x 8 rows of 5 x 7
        (y @ y.transpose(-1, -2)) * 2.0  # 6 x 8 x 8 outputs of 5, then as many elementwise
    assert counter.macs == {
        "convolution": 240 * 18,
        "matrix product": 48 * 35 + 384 * 5,
        "elementwise product": 384,
    }


@torch.no_grad()
def test_shapes_of_all_outputs(small_model):
    noisy, t = inputs(2, 36)
    clean, feats = small_model.predictive(noisy)
    assert clean.shape == (2, 2, 36, 257)
    widths = [(8, 36, 128), (8, 36, 128), (16, 18, 64), (32, 9, 32), (16, 18, 64), (8, 36, 128)]
    assert [tuple(f.shape[1:]) for f in feats] == widths
    assert small_model.score(noisy[:, 2:3], t, feats).shape == (2, 1, 36, 257)


@torch.no_grad()
def test_an_untrained_model_returns_its_input(small_config):
    model = DVPD(small_config).eval()
    noisy, t = inputs()
    clean, sigma_z = both(model, noisy, t)
    assert torch.equal(clean, noisy[:, :2])
    assert torch.equal(sigma_z, noisy[:, 2:3])


@torch.no_grad()
def test_a_batch_of_two_equals_two_single_runs(small_model):
    noisy, t = inputs(2)
    together = both(small_model, noisy, t)
    for i in range(2):
        alone = both(small_model, noisy[i : i + 1], t[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            assert (a[i : i + 1] - b).abs().max() < FLOAT32 * b.abs().max()


@torch.no_grad()
def test_tlb_at_ones_is_no_tlb_and_each_factor_acts(small_model):
    noisy, t = inputs()
    _, plain = both(small_model, noisy, t)
    ones = torch.ones(2, 2)
    _, same = both(small_model, noisy, t, tlb_skip=ones, tlb_backbone=ones)
    assert torch.equal(plain, same)
    seen = []
    for name in ("tlb_skip", "tlb_backbone"):
        for level in range(2):
            for band in range(2):
                factors = {"tlb_skip": ones.clone(), "tlb_backbone": ones.clone()}
                factors[name][level, band] = 3.0
                _, y = both(small_model, noisy, t, **factors)
                change = (y - plain).abs()
                assert change.max() > 1e-4
                seen.append(change)
    for i in range(len(seen)):
        for j in range(i):
            assert (seen[i] - seen[j]).abs().max() > 1e-6  # no two factors do the same


@torch.no_grad()
def test_outer_tlb_factors_act_in_their_band(small_model):
    """The outer skip meets dec1 directly: look at what enters that stage, bin by bin."""
    noisy, t = inputs()
    entered = []
    hook = small_model.score.unet.dec1.register_forward_pre_hook(
        lambda _, args: entered.append(args[0].clone())
    )
    try:
        for name in ("tlb_skip", "tlb_backbone"):
            for band, inside in ((0, slice(0, 64)), (1, slice(64, 128))):
                for value in (1.0, 2.0):
                    factors = {"tlb_skip": torch.ones(2, 2), "tlb_backbone": torch.ones(2, 2)}
                    factors[name][0, band] = value
                    both(small_model, noisy, t, **factors)
                change = (entered[-1] - entered[-2]).abs().amax((0, 1, 2))
                outside = torch.ones(128, dtype=torch.bool)
                outside[inside] = False
                assert change[inside].max() > 1e-3
                assert change[outside].max() == 0
    finally:
        hook.remove()


@torch.no_grad()
def test_folding_the_norms_changes_nothing(small_model):
    model = small_model
    noisy, t = inputs()
    before = both(model, noisy, t)
    names = sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    after = both(fold_batch_norms(model), noisy, t)
    assert names > 0
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    for a, b in zip(before, after, strict=True):
        assert (a - b).abs().max() < FLOAT32 * a.abs().max()


def test_folding_needs_eval_mode(small_config):
    with pytest.raises(ValueError, match=r"model\.eval"):
        fold_batch_norms(DVPD(small_config).train())


ABLATIONS = [
    {"encoder": "uniform"},
    {"fi_gate": False},
    {"local": "dual_path"},
    {"scan": "ssd"},
    {"norm": "layer"},
    {"blocks": 2},
]


@pytest.mark.parametrize("change", ABLATIONS, ids=lambda c: "-".join(map(str, *c.items())))
def test_ablations_run_and_train(small_config, change):
    model = DVPD(replace(small_config, **change)).train()
    noisy, t = inputs(2)
    clean, sigma_z = both(model, noisy, t)
    assert clean.shape == (2, 2, 32, 257)
    assert sigma_z.shape == (2, 1, 32, 257)
    # a few steps towards zero: the loss falls and every weight that is used gets a gradient
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(4):
        clean, sigma_z = both(model, noisy, t)
        loss = clean.square().mean() + sigma_z.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == []


@torch.no_grad()
def test_golden_outputs_of_a_small_model(small_model):
    """Fixed weights by formula; a change of the architecture or its numerics shows here."""
    noisy, t = inputs()
    factors = {"tlb_skip": torch.tensor([[2.0, 0.5], [1.5, 0.8]]),
               "tlb_backbone": torch.tensor([[1.5, 1.0], [2.5, 1.2]])}  # fmt: skip
    clean, sigma_z = both(small_model, noisy, t, **factors)
    golden = np.load(GOLDEN)
    for name, value in (("clean_ri", clean), ("sigma_z", sigma_z)):
        expected = golden[name]
        got = value.numpy()[:, :, ::5, ::9]
        assert np.abs(expected).max() > 0.1
        assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()


def test_default_config_is_the_shipped_base():
    assert load_toml(CONFIGS / "base.toml").model == ModelConfig()
