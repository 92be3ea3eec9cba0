"""The causal network: its parallel form, its state form, and what it must not hear."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import SMALL, set_weights

from dvpd.causal import BlockMean, Grid, Memory, advance, remembering
from dvpd.config import ModelConfig, load_toml
from dvpd.grow import channel_places, fit_weights, grow
from dvpd.macs import count_calls, macs_per_second
from dvpd.model import DVPD, causal_spec
from dvpd.odam import KEY_FLOOR, CausalLinearScan
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
    out, state = [], None
    for part in noisy.split([64, *[536] * 7, 64], dim=2):
        (clean, _), state = advance(model.predictive, state, part)
        out.append(clean)
    clean = torch.cat(out, dim=2)
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


@torch.no_grad()
def test_centre_taps_become_the_present_frame():
    offline, model = DVPD(SMALL).eval(), make()
    set_weights(offline)
    weights = fit_weights(model, offline.state_dict(), was_causal=False)
    model.load_state_dict(weights)
    before, after = (m.predictive.encoder.stem.conv.weight for m in (offline, model))
    assert torch.equal(after[:, :, 2], before[:, :, 1])  # the present frame
    assert torch.equal(after[:, :, 1], before[:, :, 0])
    assert torch.equal(after[:, :, 0], before[:, :, 2])  # what came next is the oldest now
    first, second = (m.predictive.unet.enc1.local.kernels.bias for m in (offline, model))
    first, second = (b.unflatten(0, (3, 2, 3, 4)) for b in (first, second))
    assert torch.equal(second[:, 0], first[:, 0])  # stripes along frequency stay
    assert torch.equal(second[:, 1], first[:, 1].roll(1, 1))
    assert set(weights) == set(model.state_dict())
    again = fit_weights(model, weights, was_causal=True)
    assert all(torch.equal(again[name], value) for name, value in weights.items())


@torch.no_grad()
def test_an_impulse_is_delayed_by_no_layer_that_was_moved():
    """A convolution that passes its centre on still passes on the present frame."""
    offline, model = DVPD(SMALL).eval(), make()
    for m in offline.modules():
        if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] == 3:
            m.weight.zero_()
            m.weight[:, :, 1] = 1.0
    model.load_state_dict(fit_weights(model, offline.state_dict(), was_causal=False))
    x = torch.zeros(1, 3, 16, 257)
    x[:, :, 8] = 1.0
    heard = model.predictive.encoder.stem.conv(x).abs().amax((0, 1, 3))
    assert heard.nonzero().flatten().tolist() == [8]


def test_an_offline_model_grows_into_a_larger_causal_one():
    small = DVPD(SMALL).eval()
    set_weights(small)
    bridge = replace(SMALL, causal=True)
    wide = grow(small, replace(bridge, channels=16, lookahead_blocks=1))
    same = DVPD(bridge).eval()
    same.load_state_dict(fit_weights(same, small.state_dict(), was_causal=False))
    name = "predictive.encoder.stem.conv.weight"
    places = channel_places(8, 16)
    heard, ahead = wide.state_dict()[name][places].split((3, 3), dim=1)
    assert torch.equal(heard, same.state_dict()[name])
    assert not ahead.any()  # the frame that is given out; its weights begin at zero
    with pytest.raises(InputError, match="a causal model stays one"):
        grow(wide, replace(SMALL, channels=16))


@torch.no_grad()
def test_thirty_minutes_stay_bounded_and_equal_to_the_parallel_form():
    """A toy of one level's parts: the means, the attention and the extremes."""
    generator = torch.Generator().manual_seed(0)
    scan, mean = CausalLinearScan(4, 4).eval(), BlockMean(Grid.at(0))
    x = torch.rand(1, 225_000, 2, 4, generator=generator)  # 30 minutes, two bins
    states, out, largest = [None, None], ([], []), 0.0
    for part in x.split(4500, dim=1):
        y, states[0] = advance(scan, states[0], part)
        m, states[1] = advance(mean, states[1], part.permute(0, 3, 1, 2))
        out[0].append(y)
        out[1].append(m)
        largest = max(largest, float(states[0].abs().max()))
    assert largest <= 1.0 + 1e-4  # means of values up to one, and the share that is filled
    assert float(states[1].abs().max()) < 70  # about 63 blocks of 32 ms in 2 s
    whole = scan(x[:, :9000]), mean(x[:, :9000].permute(0, 3, 1, 2))
    assert error(torch.cat(out[0], 1)[:, :9000], whole[0]) < 1e-5
    assert error(torch.cat(out[1], 2)[:, :, :2250], whole[1]) < 1e-5
    # A stream that starts late knows the same after a while: nothing has drifted.
    late = mean(x[:, -9000:].permute(0, 3, 1, 2))
    assert error(out[1][-1][:, :, -100:], late[:, :, -100:]) < 1e-4


def test_costs_of_a_causal_model_are_those_of_its_blocks():
    offline, model = DVPD(SMALL).eval(), make()
    ours, theirs = macs_per_second(model), macs_per_second(offline)
    first, _ = count_calls(model)
    assert ours["predictive"] == round(first.total * 125 / 4)
    assert 1.0 < ours["total"] / theirs["total"] < 1.5


@pytest.mark.parametrize("blocks", [1, 3])
def test_look_ahead_begins_as_the_network_without_it(blocks):
    plain, ahead = make(), make(lookahead_blocks=blocks)
    ahead.load_state_dict(fit_weights(ahead, plain.state_dict(), was_causal=True))
    noisy = spectra(48)
    before = torch.nn.functional.pad(noisy, (0, 0, 4 * blocks, 0))  # the wait, in silence
    with torch.no_grad():
        for one, other in zip(parallel(ahead, noisy), parallel(plain, before), strict=True):
            assert error(one, other[:, :, 4 * blocks :]) < 1e-6
    # What is ahead is learnt from the first step on.
    sum(x.square().mean() for x in parallel(ahead, noisy)).backward()
    grad = ahead.predictive.encoder.stem.conv.weight.grad
    assert float(grad[:, 3:].abs().max()) > 0.01 * float(grad[:, :3].abs().max())
    back = fit_weights(plain, ahead.state_dict(), was_causal=True)
    assert all(torch.equal(back[name], value) for name, value in plain.state_dict().items())
    wide = grow(plain, replace(ahead.config, channels=16))
    name, places = "predictive.encoder.stem.conv.weight", channel_places(8, 16)
    assert torch.equal(wide.state_dict()[name][places], ahead.state_dict()[name])


def stepwise(scan: CausalLinearScan, u: torch.Tensor) -> torch.Tensor:
    """The scan over time frame by frame, as its docstring has it."""
    k, q = scan._time_keys(u)
    w = torch.sigmoid(scan.forget) * k
    mean, total, out = 0.0, 0.0, []
    for t in range(u.shape[1]):
        share = w[:, t, :, None]
        mean = (1 - share) * mean + share * u[:, t].flatten(1)[:, None]
        total = (1 - w[:, t]) * total + w[:, t]
        asked = q[:, t] / (total + KEY_FLOOR)
        out.append(torch.einsum("bn,bnv->bv", asked, mean))
    return torch.stack(out, 1).unflatten(2, u.shape[2:])


@pytest.mark.parametrize("frames", [20, 64, 100])
def test_chunks_at_once_are_the_recurrence(frames):
    torch.manual_seed(0)
    scan = CausalLinearScan(4, 4)
    torch.nn.init.uniform_(scan.forget, -4.0, 1.0)
    u = torch.randn(2, frames, 6, 4)
    torch.testing.assert_close(scan._along_time(u), stepwise(scan, u), rtol=1e-4, atol=1e-5)


def test_what_is_compiled_of_the_scan_does_not_grow_with_the_crop():
    scan, counts = CausalLinearScan(4, 4), []

    def backend(graph, _inputs):
        counts.append(len(graph.graph.nodes))
        return graph.forward

    for frames in (64, 512):
        torch._dynamo.reset()
        torch.compile(scan, backend=backend, fullgraph=True, dynamic=False)(
            torch.randn(1, frames, 6, 4)
        )
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("layer", "rounded"), [("scan", False), ("scan", True), ("mean", False)])
@torch.no_grad()
def test_a_stream_in_half_does_not_drift_unless_its_state_is_half(layer, rounded):
    """What is summed is summed in float32; a state that is rounded to half loses what blocks add."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    whole: torch.nn.Module = BlockMean(Grid.at(0))
    if layer == "scan":
        whole = CausalLinearScan(8, 8).eval()
        whole.time_key.bias.fill_(-2.0)  # keys of about a tenth, as trained ones
    half = copy.deepcopy(whole).half()
    whole.load_state_dict(half.state_dict())
    states = [None, None]
    ratios = []
    for _ in range(800):  # 26 s
        # As inside the network: after a ReLU, so that the sums are far from zero.
        level = 3.0 + torch.rand(1, generator=generator)
        x = (level * torch.rand(1, 4, 4, 8, generator=generator)).half()
        outputs = []
        for i, network in enumerate((whole, half)):
            with remembering(network, Memory(states[i])) as memory:
                outputs.append(network(x.float() if i == 0 else x).float())
            states[i] = memory.next_state
        if rounded:
            states[1] = states[1].half().float()
        want, got = outputs
        ratios.append(float(10 * torch.log10(want.square().sum() / (want - got).square().sum())))
    begin, *_, end = (np.mean(part) for part in np.array_split(ratios, 10))
    assert (end > begin - 3 and end > 60) is not rounded, (begin, end)
