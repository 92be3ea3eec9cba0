"""A causal model's layers for exactly one block of one stream, in as few graph nodes as they take.

On a block of four frames a CPU's time is the number of nodes, not of products. The layers of
`dvpd` are written for any number of streams and blocks: tables that are made at run time, axes that
have size 1, shifted multiply-adds. `one_block` exchanges what the layers compute with for
the forms below while a graph is traced. They read and write the same state in the same order, so a
stream may change between both kinds of graphs at any block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from dvpd.causal import (
    EXTREME_BLOCKS,
    MEAN_DECAY,
    BlockClock,
    BlockExtremes,
    BlockMean,
    Memory,
    Stateful,
    remembering,
)
from dvpd.config import Config
from dvpd.fanc import F_DILATIONS, BandEncoder
from dvpd.interaction import Interaction
from dvpd.lisa import DILATIONS, LEAK, TAPS, CausalLISA
from dvpd.model import DVPD
from dvpd.odam import KEY_FLOOR, CausalLinearScan, Mixer
from dvpd.runtime.files import sha256_file
from dvpd.runtime.manifest import BLOCK_FILE, BlockFile, BlockPoint, Manifest
from dvpd.runtime.spec import BLOCK_STATES, FRAME_MULTIPLE, N_FREQS

from .graphs import quick_tracing
from .single import save_sharing
from .translate import translate

REACH = DILATIONS[-1]
SHARE_NONE = -1e4  # its exponential is zero
FACTORS = (None, (None, None))  # TLB's, all one


class BlockMemory(Memory):
    """A state as the tensors that the layers ask for, in the order in which they do."""

    def __init__(self, parts: Sequence[Tensor] | None = None) -> None:
        """Hand out ``parts``; without them zeros, whose shapes are noted in ``shapes``."""
        super().__init__(None, chunk=None)
        self._parts = None if parts is None else iter(parts)
        self.shapes: list[tuple[int, ...]] = []

    def recall(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The next part, [1, *shape]."""
        return self.part(1, *shape)

    def part(self, *shape: int) -> Tensor:
        """The next part in this shape."""
        self.shapes.append(shape)
        return torch.zeros(shape) if self._parts is None else next(self._parts)

    def keep(self, value: Tensor) -> None:
        """Note what the next call will ask for."""
        self._kept.append(value)

    @property
    def kept(self) -> list[Tensor]:
        """The state after the call, part by part."""
        return self._kept


def _extended(layer: Stateful, x: Tensor, frames: int) -> Tensor:
    """As `Stateful.extended`; what is kept is cut from ``x`` where that is enough."""
    own = x.shape[2]
    y = torch.cat([layer.recall(x, x.shape[1], frames, x.shape[3]), x], dim=2)
    source = y if own < frames else x
    layer.keep(source if source.shape[2] == frames else source[:, :, -frames:])
    return y


def _part(layer: Stateful, *shape: int) -> Tensor:
    assert isinstance(layer.memory, BlockMemory)
    return layer.memory.part(*shape)


def _clock(clock: BlockClock, like: Tensor, _: Any) -> tuple[Tensor, None, Tensor]:
    """One over W, [1, 1, 1, 1], and W, [1, 1]."""
    weight = MEAN_DECAY * _part(clock, 1, 1, 1, 1) + 1.0
    clock.keep(weight)
    return torch.reciprocal(weight), None, weight.reshape(1, 1)


def _mean(mean: BlockMean, x: Tensor) -> Tensor:
    """[1, C, T, F] -> [1, C, 1, F]."""
    own = x.mean(2, keepdim=True) if x.shape[2] > 1 else x
    return _advance_mean(mean, own)


def _advance_mean(mean: BlockMean, own: Tensor) -> Tensor:
    """The running mean with the block's own, [1, C, 1, F] each."""
    inverse = mean.clock.of(own, 1)[0]
    total = own + MEAN_DECAY * mean.recall(own, *own.shape[1:])
    mean.keep(total)
    out: Tensor = total * inverse
    return out


def _extremes(extremes: BlockExtremes, x: Tensor) -> tuple[Tensor, Tensor]:
    """Only for the state: the factors are one, and nobody asks for the values."""
    both = torch.cat([x, -x], dim=1).amax((2, 3)).unsqueeze(2)  # [1, 2, 1]
    before = extremes.recall(x, 2, EXTREME_BLOCKS)
    extremes.keep(torch.cat([before[:, :, 1:], both], dim=2))
    return x, x


@lru_cache
def _placement(frames: int) -> Tensor:
    """Where the taps go: [18 + 3, 4 T (15 + T) + 10], zeros and ones.

    The first part is a matrix for each channel from the 14 + T frames and the running mean to rows
    of T frames: the three stripes along time, and what is added to them. The second part are the
    factors of these rows and of the shifted ones. Input rows are `LISA.taps`, beta, the mean's
    weight, and one.
    """
    n, past = len(DILATIONS), 2 * REACH
    columns = past + frames + 1
    along_t = torch.zeros(2 * n * TAPS + 3, n + 1, frames, columns)
    along_f = torch.zeros(2 * n * TAPS + 3, n + 1 + 2 * n)
    for t in range(frames):
        for i, d in enumerate(DILATIONS):
            for tap in range(TAPS):  # from the oldest
                along_t[6 * i + TAPS + tap, i, t, past + t - (TAPS - 1 - tap) * d] = 1.0
        along_t[-3, n, t, past + t] = 1.0
        along_t[-2, n, t, -1] = 1.0
    for i in range(n):
        along_f[6 * i + 1, i] = 1.0
        along_f[6 * i, n + 1 + 2 * i] = along_f[6 * i + 2, n + 2 + 2 * i] = 1.0
    along_f[-1, n] = 1.0
    return torch.cat([along_t.flatten(1), along_f], dim=1)


def _lisa(lisa: CausalLISA, x: Tensor) -> Tensor:
    """The stripes as two products: along time by a band matrix, along frequency over shifted rows."""
    _, c, frames, n_bins = x.shape
    n = len(DILATIONS)
    rows = x.mean(3, keepdim=True)
    mean = lisa.mean(x)  # [1, C, 1, F]
    # `LISA._taps` is scale * w + shift.
    w = torch.tanh(_affine(mean.mean((2, 3)), lisa.kernels.weight, lisa.kernels.bias)).reshape(
        2 * n * TAPS, -1, 1
    )
    scale, shift = lisa.scales()
    place = _placement(frames)
    fixed = torch.cat([shift.flatten(1), lisa.beta.reshape(1, c), lisa.mean_weight[1].reshape(1, c),
                       torch.ones(1, c)])  # fmt: skip
    both = (w * scale).reshape(-1, c).t() @ place[:-3] + fixed.t() @ place
    along_t, along_f = both.split([place.shape[1] - 3 * n - 1, 3 * n + 1], dim=1)
    past = lisa.recall(x, c, 2 * REACH, n_bins)
    known = torch.cat([past, x, mean], dim=2)  # [1, C, 14 + T + 1, F]
    lisa.keep(known[:, :, frames : frames + 2 * REACH])
    z = along_t.reshape(1, c, (n + 1) * frames, -1) @ known  # what is added is the last T rows
    padded = nn.functional.pad(z, (REACH, REACH, 0, 0), mode="reflect")
    shifted = [z]
    for i, d in enumerate(DILATIONS):
        for first in (REACH - d, REACH + d):
            part = padded[:, :, i * frames : (i + 1) * frames]
            shifted.append(part[..., first : first + n_bins])
    stacked = torch.cat(shifted, dim=2).reshape(1, c, 3 * n + 1, frames * n_bins)
    y = (along_f.reshape(1, c, 1, -1) @ stacked).reshape(x.shape)
    y = y + lisa.mean_weight[0] * rows
    return nn.functional.leaky_relu(lisa.out(y), LEAK)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As a linear layer, with the weights as the other graphs hold them."""
    return x @ weight.t() + bias


def _scan(scan: CausalLinearScan, u: Tensor) -> Tensor:
    """``u`` [1, C, T, F] plus what the scan makes of it, [1, T, F, C]."""
    _, c, frames, n_bins = u.shape
    v = u.permute(0, 2, 3, 1)
    weight = torch.cat([scan.freq_key.weight, scan.freq_query.weight])
    bias = torch.cat([scan.freq_key.bias, scan.freq_query.bias])
    keys = torch.sigmoid(nn.functional.linear(v.reshape(-1, c), weight, bias))
    k, q = keys.reshape(1, frames, n_bins, -1).chunk(2, dim=-1)  # [1, T, F, N]
    q = q / (k.sum(2, keepdim=True) + KEY_FLOOR)
    y = q @ (k.transpose(-1, -2) @ v)
    weight = torch.cat([scan.time_key.weight, scan.time_query.weight])
    bias = torch.cat([scan.time_key.bias, scan.time_query.bias])
    keys = torch.sigmoid(_affine(u.mean((0, 3)).t(), weight, bias))  # [T, 2 N]
    k, q = keys.chunk(2, dim=-1)
    n = k.shape[1]
    values = v.reshape(frames, n_bins * c)
    mean, total = _part(scan, n, values.shape[1]), _part(scan, 1, n)
    w = torch.sigmoid(scan.forget) * k
    along = (_one_frame if frames == 1 else _frames)(w, q, values, mean, total)
    scan.keep(along[1])
    scan.keep(along[2])
    return y + along[0].reshape(v.shape)


def _one_frame(
    w: Tensor, q: Tensor, v: Tensor, mean: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    left = 1.0 - w
    total = w + left * total
    mean = left.reshape(-1, 1) * mean + w.reshape(-1, 1) * v
    return v + (q / (total + KEY_FLOOR)) @ mean, mean, total


@lru_cache
def _gaps(frames: int) -> tuple[Tensor, Tensor]:
    """From log(1 - w) to the logarithm of what is left, [T (T + 1), T], and what is added to it.

    Row (t, s) is what frame t still has of frame s; s = T is what was before.
    """
    table = torch.zeros(frames, frames + 1, frames)
    never = torch.zeros(frames, frames + 1, 1)
    for t in range(frames):
        table[t, frames, : t + 1] = 1.0
        for s in range(frames):
            table[t, s, s + 1 : t + 1] = 1.0
            never[t, s] = SHARE_NONE if s > t else 0.0
    return table.flatten(0, 1), never.flatten(0, 1)


def _frames(
    w: Tensor, q: Tensor, v: Tensor, mean: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    frames, n = w.shape
    table, never = _gaps(frames)
    remains = torch.exp(table @ torch.log(1.0 - w) + never).reshape(frames, frames + 1, n)
    share, left = remains.split([frames, 1], dim=1)  # of each frame at t; of what was before
    share = share * w  # [T, T, N]
    z = share.sum(1, keepdim=True) + left * total  # [T, 1, N]
    asked = q.unsqueeze(1) / (z + KEY_FLOOR)
    within = (share * asked).sum(2) + torch.eye(frames)
    y = within @ v + (asked * left).reshape(frames, n) @ mean
    mean = share[-1].t() @ v + left[-1].reshape(n, 1) * mean
    return y, mean, z[-1]


def _mixer(mixer: Mixer, x: Tensor) -> Tensor:
    u = torch.relu(mixer.local(mixer.value(x)))
    y = _scan(cast(CausalLinearScan, mixer.scan), u).permute(0, 3, 1, 2) * torch.sigmoid(
        mixer.gate(x)
    )
    assert mixer.past is not None
    mean = _advance_mean(mixer.past, y.mean((2, 3), keepdim=True))
    out: Tensor = mixer.out(y * torch.sigmoid(mixer.attention(mean)))
    return out


def _interaction(layer: Interaction, g: Tensor, p: Tensor, embedding: Tensor) -> Tensor:
    # The embedding is known: a bias.
    from_p = nn.functional.conv2d(p, layer.joint_p.weight, layer.time(embedding)[0])
    joint = torch.sigmoid(layer.joint_g(g) + from_p)
    if layer.prior is not None and layer.past is not None:
        p = p * torch.sigmoid(layer.prior(layer.past(p)))
    return g + joint * p


def _band(band: BandEncoder, x: Tensor) -> Tensor:
    """All branches as one convolution, the dilated kernels with zeros between their taps."""
    reach, branches = max(F_DILATIONS), [cast(nn.Conv2d, branch) for branch in band.branches]
    weights, biases = [], []
    for branch in branches:
        wide = torch.zeros(*branch.weight.shape[:2], 3, 2 * reach + 1)
        if branch.kernel_size == (1, 1):
            wide[:, :, -1:, reach : reach + 1].copy_(branch.weight)
        else:
            d = branch.dilation[1]
            wide[:, :, :, reach - d : reach + d + 1 : d].copy_(branch.weight)
        weights.append(wide)
        biases.append(cast(Tensor, branch.bias))
    strides = cast(tuple[int, int], branches[0].stride)
    y = nn.functional.conv2d(x, torch.cat(weights), torch.cat(biases), strides, (0, reach))
    out: Tensor = band.mix(torch.relu(y))
    return out


FORMS: dict[type[nn.Module], Callable[..., Any]] = {
    BlockClock: _clock,
    BlockMean: _mean,
    BlockExtremes: _extremes,
    CausalLISA: _lisa,
    Mixer: _mixer,
    Interaction: _interaction,
    BandEncoder: _band,
}


@contextmanager
def one_block(model: nn.Module) -> Iterator[None]:
    """Let a causal model's layers compute by the forms of this file."""
    changed = []
    try:
        for module in model.modules():
            form = FORMS.get(type(module))
            if isinstance(module, Mixer) and not isinstance(module.scan, CausalLinearScan):
                form = None
            if form is not None:
                module.__dict__["forward"] = partial(form, module)
                changed.append((module, "forward"))
            if isinstance(module, Stateful):
                module.__dict__["extended"] = partial(_extended, module)
                changed.append((module, "extended"))
        yield
    finally:
        for module, name in changed:
            del module.__dict__[name]


class BlockGraph(nn.Module):
    """Both branches on one block, at a fixed time and with TLB factors of one.

    Attributes:
        shapes: Of the parts of both branches' states.
    """

    t: Tensor

    def __init__(self, model: DVPD, point: BlockPoint) -> None:
        """Wrap ``model``, inside `one_block`."""
        super().__init__()
        self.model, self.w_x0 = model, point.w_x0
        self.register_buffer("t", torch.tensor([point.t], dtype=torch.float32), persistent=False)
        noisy = torch.zeros(1, 3, FRAME_MULTIPLE, N_FREQS)
        with remembering(model.predictive, BlockMemory()) as heard:
            _, feats = model.predictive(noisy)
        with remembering(model.score, BlockMemory()) as diffused:
            model.score(noisy[:, :1], self.t, feats, *FACTORS)
        self.shapes = [cast(BlockMemory, memory).shapes for memory in (heard, diffused)]

    def forward(self, noisy: Tensor, given: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        """Inputs and outputs as in `build_block`."""
        n = len(self.shapes[0])
        heard, diffused = BlockMemory(state[:n]), BlockMemory(state[n:])
        with remembering(self.model.predictive, heard):
            clean_ri, feats = self.model.predictive(noisy)
        magnitude = clean_ri.square().sum(1, keepdim=True).sqrt()
        xt = self.w_x0 * magnitude + given
        with remembering(self.model.score, diffused):
            sigma_z = self.model.score(xt, self.t, feats, *FACTORS)
        return (clean_ri, sigma_z, *heard.kept, *diffused.kept)


def block_point(config: Config) -> BlockPoint:
    """Where a sampler of one step stands when it calls the score network."""
    start = config.sampler.start(config.sde)
    return BlockPoint(t=start.t, w_x0=start.w_x0)


def build_block(model: DVPD, point: BlockPoint) -> onnx.ModelProto:
    """Both branches of a causal model on one block as an ONNX model, without metadata.

    Inputs: noisy [1, 3, 4, 257]; given [1, 1, 4, 257], what the diffused magnitude is beside ``w_x0``
    times that of the predictive estimate; the parts of the states, state.0 ... and score_state.0 ...
    Outputs: clean_ri, sigma_z, and next_ with the name of every part.

    Args:
        model: What `prepare` returned for float32.
        point: Where the sampler stands.

    Raises:
        UnsupportedOperator: The configuration uses an operator without translation.
    """
    frames, n_freqs = FRAME_MULTIPLE, N_FREQS
    inputs: dict[str, tuple[int, ...]] = {
        "noisy": (1, 3, frames, n_freqs), "given": (1, 1, frames, n_freqs)
    }  # fmt: skip
    outputs = {"clean_ri": (1, 2, frames, n_freqs), "sigma_z": inputs["given"]}
    with quick_tracing(), torch.no_grad(), one_block(model):
        wrapper = BlockGraph(model, point).eval()
        for name, shapes in zip(BLOCK_STATES, wrapper.shapes, strict=True):
            for i, shape in enumerate(shapes):
                inputs[f"{name}.{i}"] = outputs[f"next_{name}.{i}"] = shape
        noisy, given, *state = (torch.rand(shape) for shape in inputs.values())
        program = torch.export.export(wrapper, (noisy, given, state), strict=False)
        return translate(program, inputs, outputs, "dvpd_block")


def write_block(
    model: DVPD, config: Config, manifest: Manifest, paths: Mapping[str, Path]
) -> BlockFile:
    """Write the graph beside the others, whose files hold most of its weights.

    Args:
        model: What `prepare` returned for float32, causal.
        config: Its config.
        manifest: Of the engine; it becomes the graph's metadata.
        paths: The contract's graphs, complete.

    Returns:
        What the manifest says of it.

    Raises:
        UnsupportedOperator: The configuration uses an operator without translation.
    """
    point = block_point(config)
    path = paths["score"].with_name(BLOCK_FILE)
    save_sharing(build_block(model, point), manifest, path, paths.values())
    return BlockFile(path.name, sha256_file(path), point.t, point.w_x0)
