"""Growing: the larger model computes what the smaller one does, and everything in it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dvpd.checkpoint import load_checkpoint, load_model, save_checkpoint
from dvpd.config import Config, ModelConfig, load_toml
from dvpd.grow import channel_places, grow, main
from dvpd.model import DVPD
from dvpd.runtime.errors import InputError

SMALL = ModelConfig(name="small", channels=8, blocks=1, state=4, embedding=8, decoder_channels=4)
LARGE = replace(SMALL, name="large", channels=16, blocks=2, ffn_factor=3.0, decoder_channels=8)
TOLERANCE = 2e-5  # of values of about one, float32 sums in another order


def _trained(config: ModelConfig) -> DVPD:
    """A model none of whose weights, biases or statistics is at its start."""
    torch.manual_seed(1)
    model = DVPD(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point() and "frequencies" not in name:
                value.add_(0.2 * torch.randn_like(value))
    return model


def _run(model: DVPD) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    noisy = 0.3 * torch.randn(2, 3, 32, 257, generator=draw)
    xt, t = torch.randn(2, 1, 32, 257, generator=draw), torch.tensor([0.12, 0.05])
    with torch.no_grad():
        clean_ri, feats = model.predictive(noisy)
        return [clean_ri, model.score(xt, t, feats)]


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 16},
        {"channels": 24},
        {"blocks": 2},
        {"ffn_factor": 3.0},
        {"decoder_channels": 8},
    ],
)
def test_one_change_computes_the_same(change: dict[str, float]) -> None:
    small = _trained(SMALL)
    for a, b in zip(_run(small), _run(grow(small, replace(SMALL, **change))), strict=True):
        assert (a - b).abs().max() <= TOLERANCE * a.abs().max()


def test_all_at_once_computes_the_same() -> None:
    small = _trained(SMALL)
    for a, b in zip(_run(small), _run(grow(small, LARGE)), strict=True):
        assert (a - b).abs().max() <= TOLERANCE * a.abs().max()


def test_every_new_weight_learns_within_three_steps() -> None:
    """A zero in front of a zero would never get a gradient."""
    model = grow(_trained(SMALL), LARGE).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(5)
    for _ in range(4):
        noisy = 0.3 * torch.randn(2, 3, 32, 257, generator=draw)
        clean_ri, feats = model.predictive(noisy)
        sigma_z = model.score(noisy[:, 2:], torch.tensor([0.1, 0.05]), feats)
        target = torch.randn(clean_ri.shape, generator=draw)
        loss = (clean_ri - target).square().mean() + (sigma_z - target[:, :1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = {
        n: int((p == before[n]).sum())
        for n, p in model.named_parameters()
        if p.numel() > 1 and (p == before[n]).float().mean() > 0.02
    }
    assert not still


def test_shuffles_keep_the_order() -> None:
    """Places of 2C channels after an unshuffle are those of C/2 channels before it."""
    for old, new in ((8, 12), (16, 24), (8, 16)):
        wide = torch.zeros(1, new, 4, 4)
        wide[:, channel_places(old, new)] = 1.0
        after = torch.nn.functional.pixel_unshuffle(wide, 2)[0, :, 0, 0]
        assert after.nonzero()[:, 0].tolist() == channel_places(4 * old, 4 * new).tolist()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"channels": 4}, "model.channels is 4; expected at least 8"),
        ({"channels": 12}, "model.channels is 12; expected a multiple of 8"),
        ({"decoder_channels": 6}, "model.decoder_channels is 6; expected a multiple of 4"),
        ({"state": 8}, "model.state is 8; expected 4"),
        ({"local": "dual_path"}, "model.local is 'dual_path'; expected 'lisa'"),
    ],
)
def test_refuses(change: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        grow(_trained(SMALL), replace(LARGE, **change))


def test_layer_norm_does_not_grow() -> None:
    small = replace(SMALL, norm="layer")
    with pytest.raises(InputError, match="'linear' with 'batch'"):
        grow(DVPD(small), replace(LARGE, norm="layer"))


def test_command(tmp_path, capsys) -> None:
    small = _trained(SMALL)
    save_checkpoint(tmp_path / "small.safetensors", small.state_dict(), Config(model=SMALL))
    (tmp_path / "large.toml").write_text(
        '[model]\nname = "large"\nchannels = 16\nstate = 4\nembedding = 8\ndecoder_channels = 4\n'
    )
    out = tmp_path / "grown.safetensors"
    arguments = [str(tmp_path / "small.safetensors"), str(tmp_path / "large.toml"), "-o"]
    assert main([*arguments, str(out)]) == 0
    assert "parameters" in capsys.readouterr().out
    config, model = load_model(out)
    assert config.model == load_toml(tmp_path / "large.toml").model
    for a, b in zip(_run(small), _run(model), strict=True):
        assert (a - b).abs().max() <= TOLERANCE * a.abs().max()
    assert main([*arguments, arguments[0]]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert load_checkpoint(arguments[0])[0].model == SMALL


def test_the_shipped_sizes_fit() -> None:
    configs = "dvpd/configs"
    tiny, base = (load_toml(f"{configs}/{n}.toml").model for n in ("tiny", "base"))
    assert grow(DVPD(tiny), base).config == base
