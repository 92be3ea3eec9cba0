"""A larger model that starts as a smaller trained one: ``python -m dvpd.grow CKPT CONFIG.toml -o OUT``.

Every layer outside the attention's products works on each channel by itself after its
convolution (batch norm, sigmoid gates, LISA's taps), so a trained network can be laid into a wider
and deeper one without a change of what it computes (Net2Net, arXiv 1511.05641; here with zeros
instead of copies, so that nothing has to be distinguished later):

- old channels keep their weights and hear nothing from new ones: those weights start at zero;
- new channels start with the fresh model's random weights and hear the old ones: the zeros in
  front of them get a gradient from the first step on;
- a stage's second ODAM block starts as the identity, as it does in every fresh model.

TLB factors other than one are the exception: their map is a mean over all channels.

An offline model may become a causal one on the way (`fit_weights`); that one computes something
else, and is a start for training. A causal one may get look-ahead: it computes the same, later.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import load_model, save_checkpoint
from .config import ModelConfig, load_toml
from .fanc import F_DILATIONS
from .lisa import DILATIONS, GROUPS, TAPS
from .model import DVPD
from .runtime import command
from .runtime.errors import InputError, UsageError

# What must be the same in both: a new slot or feature would change what the old ones do.
FIXED = ("state", "embedding", "encoder", "local", "fi_gate", "scan", "norm")
STEM = "predictive.encoder.stem.conv.weight"  # hears what look-ahead adds
GROWING = ("channels", "blocks", "ffn_factor", "decoder_channels")


def channel_places(old: int, new: int) -> Tensor:
    """Where ``old`` channels lie among ``new`` ones, [old] of indices.

    Within each of LISA's groups the old ones come first. Pixel shuffles keep this order: they
    split a channel's index at its lowest digits.
    """
    if old % GROUPS or new % GROUPS:
        return torch.arange(old)
    index = torch.arange(old)
    width, wider = old // GROUPS, new // GROUPS
    return index // width * wider + index % width


def _places(name: str, axis: int, old: int, new: int) -> Tensor:
    if name.endswith(".mix.weight") and axis == 1:  # parallel branches, concatenated
        low_band = ".bands.0." in name
        n = len(F_DILATIONS) + low_band
        index = torch.arange(old)
        return index // (old // n) * (new // n) + index % (old // n)
    return channel_places(old, new)


def check_growth(old: ModelConfig, new: ModelConfig) -> None:
    """Refuse what cannot start as the smaller model.

    Raises:
        InputError: Something shrinks, or a key of ``FIXED`` differs; the message names all.
    """
    wrong = [
        f"model.{key} is {getattr(new, key)!r}; expected {getattr(old, key)!r}"
        for key in FIXED
        if getattr(new, key) != getattr(old, key)
    ]
    wrong += [
        f"model.{key} is {getattr(new, key)!r}; expected at least {getattr(old, key)!r}"
        for key in GROWING
        if getattr(new, key) < getattr(old, key)
    ]
    # Half of the channels, at the shuffles, must still lie in LISA's groups.
    wrong += [
        f"model.{key} is {value}; expected a multiple of {step}"
        for config in (old, new)
        for key, step in (("channels", 2 * GROUPS), ("decoder_channels", GROUPS))
        if (value := getattr(config, key)) % step
    ]
    if old.scan != "linear" or old.norm != "batch":
        wrong.append(
            f"model.scan is {old.scan!r} and model.norm {old.norm!r}; only 'linear' with 'batch' grows"
        )
    if old.causal and not new.causal:
        wrong.append("model.causal is False; expected True: a causal model stays one")
    if wrong:
        raise InputError("the model cannot be grown: " + "; ".join(wrong))


def fit_weights(
    model: DVPD, weights: Mapping[str, Tensor], *, was_causal: bool
) -> dict[str, Tensor]:
    """Weights of the same architecture for ``model``, which may be causal where theirs was not.

    A kernel's centre tap in time becomes the last one, the present frame; what was to its right comes
    before the rest, as the oldest. Otherwise every layer would delay what it passes on. LISA's taps
    move likewise. What only a causal network has stays as ``model`` has it. Frames that come with more
    look-ahead are heard through zeros first.

    Args:
        model: What the weights are for.
        weights: By name.
        was_causal: Whether they are of a causal network.
    """
    weights = {**weights, STEM: _fit_stem(weights[STEM], model.state_dict()[STEM].shape[1])}
    if was_causal or not model.config.causal:
        return weights
    fitted = {}
    for name, value in weights.items():
        if value.ndim == 4 and value.shape[2] > 1:  # [out, in, T, F]
            value = value.roll(value.shape[2] // 2, 2)
        elif ".kernels." in name:  # rows: dilation, (F, T), tap, group
            rows = value.unflatten(0, (len(DILATIONS), 2, TAPS, GROUPS)).clone()
            rows[:, 1] = rows[:, 1].roll(1, 1)
            value = rows.flatten(0, 3)
        fitted[name] = value
    own = model.state_dict()
    return {**fitted, **{name: own[name] for name in own if name.endswith(".scan.forget")}}


def _fit_stem(weight: Tensor, c_in: int) -> Tensor:
    """The first convolution [out, in, T, F] with another number of inputs; new ones begin at zero."""
    new = max(0, c_in - weight.shape[1])
    return nn.functional.pad(weight, (0, 0, 0, 0, 0, new))[:, :c_in]


@torch.no_grad()
def grow(small: DVPD, config: ModelConfig) -> DVPD:
    """A model of ``config`` that computes what ``small`` does, as far as both are causal or neither.

    Args:
        small: The trained model.
        config: The larger architecture; what is new is drawn from torch's generator.

    Raises:
        InputError: As `check_growth`.
    """
    check_growth(small.config, config)
    model = DVPD(config)
    bridge = replace(small.config, causal=config.causal, lookahead_blocks=config.lookahead_blocks)
    source = fit_weights(DVPD(bridge), small.state_dict(), was_causal=small.config.causal)
    for name, value in model.state_dict().items():
        old = source.get(name)
        if old is None:  # a second block
            continue
        if old.shape == value.shape:
            value.copy_(old)
            continue
        places = [
            torch.arange(n) if n == m else _places(name, axis, n, m)
            for axis, (n, m) in enumerate(zip(old.shape, value.shape, strict=True))
        ]
        if name.endswith(".weight") and old.ndim > 1:  # [out, in, ...] of a convolution or product
            value[places[0]] = 0.0
        value[torch.meshgrid(*places, indexing="ij")] = old
    return model.train(small.training)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="dvpd.grow", description="Lay a trained model into a larger one."
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="the smaller model, .safetensors")
    parser.add_argument("config", metavar="CONFIG", help="TOML file of the larger one")
    parser.add_argument("-o", "--out", required=True, help="checkpoint to write, for --init")
    parser.add_argument("--seed", type=command.whole(0), default=0, help="of the new weights")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _grow)


def _grow(args: argparse.Namespace) -> int:
    out = Path(args.out)
    if out.exists() and out.samefile(args.checkpoint):
        raise UsageError(f"{out} is the smaller model itself; choose another --out")
    old, small = load_model(args.checkpoint)
    config = load_toml(args.config)
    if config.signal != old.signal:
        raise InputError(f"{args.config} has another [signal]: {config.signal}, {old.signal}")
    torch.manual_seed(args.seed)
    model = grow(small, config.model)
    save_checkpoint(
        out,
        model.state_dict(),
        replace(config, sampler=old.sampler),
        {"grown_from": old.model.name},
    )
    count = sum(p.numel() for p in model.parameters())
    before = sum(p.numel() for p in small.parameters())
    sys.stdout.write(f"{out}: {before} -> {count} parameters\n")
    return 0


if __name__ == "__main__":
    command.leave(main())
