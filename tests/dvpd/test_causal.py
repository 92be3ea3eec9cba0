"""The causal network: its parallel form, its state form, and what it must not hear."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import SMALL, set_weights

from dvpd.causal import advance
from dvpd.config import ModelConfig, load_toml
from dvpd.model import DVPD, causal_spec
from dvpd.runtime.errors import InputError
from dvpd.runtime.spec import SignalSpec

CAUSAL = replace(SMALL, causal=True)
TLB = (torch.tensor([[2.0, 0.5], [1.5, 1.0]]), torch.tensor([[1.5, 1.0], [2.0, 0.9]]))
VARIANTS = {
    "no look-ahead": {},
    "one block": {"lookahead_blocks": 1},
    "three blocks": {"lookahead_blocks": 3},
    "ablations": {"local": "dual_path", "encoder": "uniform", "fi_gate": False, "blocks": 2},
}


def make(**changes) -> DVPD:
    model = DVPD(replace(CAUSAL, **changes))
    set_weights(model)
    return model.eval()


def spectra(n_frames: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    ri = 0.3 * torch.randn(batch, 2, n_frames, 257, generator=torch.Generator().manual_seed(seed))
    return torch.cat([ri, ri.square().sum(1, keepdim=True).sqrt()], dim=1)


def parallel(model, noisy, tlb=TLB):
    clean, feats = model.predictive(noisy)
    t = torch.full((len(noisy),), 0.12)
    return clean, model.score(noisy[:, 2:3], t, feats, *tlb)


def streamed(model, noisy, sizes, tlb=TLB):
    """The same block by block, moved back by the look-ahead."""
    late = 4 * model.config.lookahead_blocks
    noisy, xt = (
        torch.nn.functional.pad(x, (0, 0, *pad))
        for x, pad in ((noisy, (0, late)), (noisy[:, 2:3], (late, 0)))
    )
    states = [None, None]
    t = torch.full((len(noisy),), 0.12)
    out, first = ([], []), 0
    for size in [*sizes, *[4] * (late // 4)]:
        part = slice(first, first + size)
        (clean, feats), states[0] = advance(model.predictive, states[0], noisy[:, :, part])
        sigma_z, states[1] = advance(model.score, states[1], xt[:, :, part], t, feats, *tlb)
        out[0].append(clean)
        out[1].append(sigma_z)
        first += size
    return [torch.cat(x, dim=2)[:, :, late:] for x in out]


def error(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_any_split_into_blocks_equals_the_parallel_form(changes):
    model, rng = make(**changes), np.random.default_rng(1)
    noisy = spectra(88)
    whole = parallel(model, noisy)
    cuts = [np.sort(rng.choice(np.arange(1, 22), n, replace=False)) * 4 for n in (0, 3, 21)]
    for cut in cuts:
        parts = streamed(model, noisy, np.diff([0, *cut, 88]).tolist())
        for got, wanted in zip(parts, whole, strict=True):
            assert error(got, wanted) <= 1e-5


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_what_comes_later_changes_nothing_before_its_block(changes):
    model = make(**changes)
    noisy = spectra(72, batch=1)
    before = parallel(model, noisy)
    for first in (24, 44):  # chunks of attention begin at 32 and 64
        changed = noisy.clone()
        changed[:, :, first:] += 1.0
        for a, b in zip(parallel(model, changed), before, strict=True):
            moved = (a != b).any(dim=3)[0, 0].nonzero()[0].item()
            assert moved == first - 4 * model.config.lookahead_blocks


@torch.no_grad()
def test_items_of_a_batch_know_nothing_of_each_other():
    model = make()
    noisy = spectra(40)
    together = streamed(model, noisy, [4, 36])
    for i in range(2):
        alone = streamed(model, noisy[i : i + 1], [4, 36])
        assert max(error(a, b[i : i + 1]) for a, b in zip(alone, together, strict=True)) < 1e-5


@torch.no_grad()
def test_tlb_factors_of_one_are_exactly_the_identity():
    model = make()
    noisy = spectra(40)
    ones = (torch.ones(2, 2), torch.ones(2, 2))
    assert torch.equal(parallel(model, noisy, ones)[1], parallel(model, noisy, (None, None))[1])


@torch.no_grad()
def test_an_untrained_causal_model_returns_its_input():
    model = DVPD(replace(CAUSAL, lookahead_blocks=1)).eval()
    noisy = spectra(32)
    clean, sigma_z = parallel(model, noisy)
    assert torch.equal(clean, noisy[:, :2])
    assert torch.equal(sigma_z, noisy[:, 2:3])


@torch.no_grad()
def test_a_long_pause_makes_it_forget_no_speech():
    model = make()
    speech, silence = spectra(64, batch=1), torch.zeros(1, 3, 3752, 257)  # 30 s
    noisy = torch.cat([speech, silence, speech], dim=2)
    clean = streamed(model, noisy, [64, *[536] * 7, 64])[0]
    again, fresh = clean[:, :, -64:], clean[:, :, :64]
    # The first second has little behind it; from then on the two are treated alike.
    assert error(again[:, :, 32:], fresh[:, :, 32:]) < 0.25


def test_sizes_and_latency_of_the_shipped_architecture():
    config = load_toml("dvpd/configs/live-tiny.toml")
    spec = causal_spec(DVPD(config.model).eval(), SignalSpec())
    assert spec.latency_samples == 896
    assert 4 * spec.state_size["predictive"] < 1.8e6
    assert 4 * spec.state_size["score"] < 2.2e6


@pytest.mark.parametrize(("changes", "text"), [
    ({"causal": True, "scan": "ssd"}, "expected 'linear'"),
    ({"lookahead_blocks": 1}, "without model.causal"),
    ({"causal": True, "lookahead_blocks": -1}, "expected 0 to"),
])  # fmt: skip
def test_what_makes_no_causal_network_is_refused(changes, text):
    with pytest.raises(InputError, match=text):
        ModelConfig(**changes)
