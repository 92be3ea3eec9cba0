"""LISA: lightweight image-based spectro-awareness, the local part of a stage (paper Eq. 2).

Three branches with dilations d = 3, 5, 7, each a dynamic stripe along frequency, then one along
time; the taps come from the global mean of the module's input, one kernel for each of four groups
of channels (paper: W_d = tanh(Conv1x1(GAP(E)))). A stripe is

    L(x) = sum_k w_k shift(x, (k - 1) d)         reflect padding
    y = l1 * L(x) + l2 * x                       per channel

so with the weights known everything is linear, and all scalars (group kernels, l1, l2, the join's
gamma) are multiplied together before they meet the map. The axis means of the public reference
are linear too; they enter once, with one learned weight a channel and axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .causal import BlockMean, Grid, Stateful
from .layers import ConvNorm

DILATIONS = (3, 5, 7)
TAPS = 3
GROUPS = 4
LEAK = 0.2


class LISA(nn.Module):
    """Dynamic stripes, joined, 1x1, norm, leaky ReLU: [B, C, T, F] -> same shape.

    Attributes:
        shifted: Whether the stripes are shifted multiply-adds in training, too.
        single: Whether the input is always one recording (a batch of 1), as in the graphs for CPUs;
            not for training.
    """

    shifted = False
    single = False

    centre: Tensor

    def __init__(self, channels: int, norm: str) -> None:
        """Make the module; ``channels`` must be a multiple of 4."""
        super().__init__()
        if channels % GROUPS:
            raise ValueError(f"LISA needs a multiple of {GROUPS} channels, got {channels}")
        n = len(DILATIONS)
        self.kernels = nn.Linear(channels, n * 2 * TAPS * GROUPS)
        self.l1 = nn.Parameter(torch.full((n, 2, 1, channels), 0.5))  # [d, (F, T), tap, C]
        self.l2 = nn.Parameter(torch.ones(n, 2, 1, channels))
        self.gamma = nn.Parameter(torch.zeros(n, 1, channels))
        self.beta = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.mean_weight = nn.Parameter(torch.zeros(2, 1, channels, 1, 1))  # of mean over F, T
        self.register_buffer("centre", torch.tensor([[0.0], [1.0], [0.0]]), persistent=False)
        self.out = ConvNorm(channels, channels, norm=norm)

    def taps(self, x: Tensor) -> Tensor:
        """Dynamic taps [18, B, C] of ``x`` [B, C, T, F], every scalar folded in.

        The first axis runs over dilation, then (F, T), then tap.
        """
        return self._taps(x.float().mean((2, 3)).to(x.dtype)).transpose(0, 1)

    def _taps(self, mean: Tensor) -> Tensor:
        """`taps` from the input's global ``mean`` [B, C], as [B, 18, C]; more axes between stay."""
        w = torch.tanh(self.kernels(mean)).unflatten(-1, (-1, GROUPS, 1))  # [B, 18, G, 1]
        scale, shift = self.scales()
        out: Tensor = (scale * w + shift).flatten(-2)
        return out

    def scales(self) -> tuple[Tensor, Tensor]:
        """What the kernels are multiplied by, and what is added, [18, G, C / G] each."""
        # gamma belongs to the second stripe (along T)
        join = torch.stack([torch.ones_like(self.gamma), self.gamma], dim=1)  # [d, 2, 1, C]
        scale = (join * self.l1).expand(-1, -1, TAPS, -1).reshape(-1, GROUPS, self._width)
        shift = (join * self.l2 * self.centre).reshape(-1, GROUPS, self._width)
        return scale, shift

    @property
    def _width(self) -> int:
        return self.gamma.shape[-1] // GROUPS

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to ``x`` [B, C, T, F]."""
        c = x.shape[1]
        rows = x.float().mean(3, keepdim=True)  # [B, C, T, 1]
        taps = self._taps(rows.mean((2, 3)).to(x.dtype))  # [B, 18, C]
        mean_f = rows.to(x.dtype)
        mean_t = x.float().mean(2, keepdim=True).to(x.dtype)  # [B, C, 1, F]
        if self.single:
            y = stripes_single(x, taps.reshape(-1, c), self.beta.reshape(c))
        else:
            y = self.beta * x
        y = y + (self.mean_weight[0] * mean_f + self.mean_weight[1] * mean_t)
        if self.training and not self.shifted:
            y = stripes_conv(x, taps.transpose(0, 1)[..., None, None], y)
        elif not self.single:  # one split of the channel axis hands out all 18 taps
            y = stripes(x, taps.reshape(-1, taps.shape[1] * c, 1, 1).split(c, dim=1), y)
        return nn.functional.leaky_relu(self.out(y), LEAK)


def stripes(x: Tensor, taps: Sequence[Tensor], y: Tensor) -> Tensor:
    """Add the three branches' stripes of ``x`` [B, C, T, F] to ``y``, as shifted multiply-adds.

    ``taps`` are 18 tensors [B, C, 1, 1] in the order of `LISA.taps`. This form has a dynamic batch
    in ONNX, where a convolution fixes its number of groups.
    """
    n_bins, reach = x.shape[-1], DILATIONS[-1]
    padded = nn.functional.pad(x, (reach,) * 4, mode="reflect")  # [B, C, T + 14, F + 14]
    centre = padded[..., reach : reach + n_bins]
    for i, d in enumerate(DILATIONS):
        w = taps[6 * i : 6 * i + 6]
        left = padded[..., reach - d : reach - d + n_bins]
        right = padded[..., reach + d : reach + d + n_bins]
        z = w[0] * left + w[1] * centre + w[2] * right  # [B, C, T + 14, F]
        later = z[:, :, reach + d : d - reach] if d < reach else z[:, :, reach + d :]
        y = y + w[3] * z[:, :, reach - d : -reach - d]
        y = y + w[4] * z[:, :, reach:-reach] + w[5] * later
    return y


def stripes_conv(x: Tensor, taps: Tensor, y: Tensor) -> Tensor:
    """The same as `stripes` by one dilated depthwise convolution a branch; ``taps`` [18, B, C, 1, 1].

    A stripe along T after one along F is the outer product of their taps.
    """
    b, c = x.shape[:2]
    outer = outer_kernels(taps.flatten(1))
    reach = DILATIONS[-1]
    padded = nn.functional.pad(x, (reach,) * 4, mode="reflect")
    padded = padded.reshape(1, b * c, *padded.shape[2:])
    function = _DilatedSum.apply if x.device.type == "cpu" else _dilated_sum
    return y + function(padded, outer).reshape(x.shape)


def stripes_single(x: Tensor, taps: Tensor, beta: Tensor) -> Tensor:
    """``beta`` [C] times ``x`` [1, C, T, F] plus its stripes, for one recording; ``taps`` [18, C].

    As `stripes_conv`, with what ``beta`` adds in the middle of the first branch's kernels: the map is
    read three times, and by convolutions alone.
    """
    middle = torch.zeros(len(DILATIONS), 1, TAPS, TAPS)
    middle[0, :, TAPS // 2, TAPS // 2] = 1.0
    kernels = outer_kernels(taps) + middle.to(x) * beta.reshape(-1, 1, 1)
    padded = nn.functional.pad(x, (DILATIONS[-1],) * 4, mode="reflect")
    return _dilated_sum(padded, kernels)


def outer_kernels(taps: Tensor) -> Tensor:
    """Taps [18, N] of N maps -> kernels [d, N, T, F]: the outer products of the two stripes' taps."""
    along = taps.reshape(len(DILATIONS), 2, TAPS, -1).transpose(2, 3)  # [d, (F, T), N, tap]
    out: Tensor = along[:, 1].unsqueeze(-1) * along[:, 0].unsqueeze(-2)
    return out


def _dilated_sum(padded: Tensor, kernels: Tensor) -> Tensor:
    """Sum over dilations d of the depthwise 3x3 convolutions of ``padded`` with ``kernels[d]``.

    Args:
        padded: [1, N, T + 14, F + 14].
        kernels: [3, N, 3, 3].

    Returns:
        [1, N, T, F].
    """
    n, reach = padded.shape[1], DILATIONS[-1]
    total: Tensor | None = None
    for kernel, d in zip(kernels, DILATIONS, strict=True):
        inner = padded[..., reach - d : d - reach or None, reach - d : d - reach or None]
        part = nn.functional.conv2d(inner, kernel.unsqueeze(1), dilation=d, groups=n)
        total = part if total is None else total + part
    assert total is not None  # there are dilations
    return total


class _DilatedSum(torch.autograd.Function):
    """`_dilated_sum` with a backward pass of forward convolutions and products.

    oneDNN's own backward pass of a dilated depthwise convolution has no fast path on CPUs: 140 ms
    where the forward pass takes 2 (64 maps of 192 x 128, one AVX2 core).
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]  # torch has no types for it; under autocast, too
    def forward(ctx: Any, padded: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(padded, kernels)
        return _dilated_sum(padded, kernels)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]  # torch has no types for it
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        padded, kernels = ctx.saved_tensors
        n, reach = padded.shape[1], DILATIONS[-1]
        frames, bins = grad.shape[2:]
        grad = grad.contiguous()
        grad_padded = grad_kernels = None
        if ctx.needs_input_grad[0]:
            # The adjoint of each convolution is one with the mirrored kernel over zero padding.
            wide = nn.functional.pad(grad, (2 * reach,) * 4)
            grad_padded = torch.zeros_like(padded)
            for kernel, d in zip(kernels.flip(2, 3), DILATIONS, strict=True):
                cut, spare = 2 * (reach - d), reach - d
                inner = wide[..., cut : wide.shape[2] - cut, cut : wide.shape[3] - cut]
                part = nn.functional.conv2d(inner, kernel.unsqueeze(1), dilation=d, groups=n)
                grad_padded[..., spare : spare + part.shape[2], spare : spare + part.shape[3]] += (
                    part
                )
        if ctx.needs_input_grad[1]:
            grad_kernels = torch.empty_like(kernels)
            for i, d in enumerate(DILATIONS):
                for row in range(TAPS):
                    for column in range(TAPS):
                        top, left = reach + (row - 1) * d, reach + (column - 1) * d
                        shifted = padded[..., top : top + frames, left : left + bins]
                        grad_kernels[i, :, row, column] = (grad * shifted).sum((0, 2, 3))
        return grad_padded, grad_kernels


class CausalLISA(Stateful, LISA):
    """LISA whose time stripes reach from the present frame to 2 d frames before it.

    The identity is on the present frame. A block's taps come from the running mean until its end and
    act on the frames before it, too. With taps that are constant in a block the two stripes can be
    exchanged: the one along time comes first here, and nothing is computed twice.
    """

    def __init__(self, channels: int, norm: str, grid: Grid) -> None:
        """Make the module; ``channels`` must be a multiple of 4."""
        super().__init__(channels, norm)
        self.mean = BlockMean(grid)
        centre = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # along F, T; taps oldest first
        self.register_buffer("centre", centre[..., None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to ``x`` [B, C, T, F]."""
        c, grid = x.shape[1], self.mean.grid
        rows = x.float().mean(3, keepdim=True).to(x.dtype)  # [B, C, T, 1]
        mean_t = self.mean(x)  # [B, C, J, F]
        taps = self._taps(mean_t.float().mean(3).to(x.dtype).transpose(1, 2))  # [B, J, 18, C]
        taps = taps.flatten(2).transpose(1, 2)[..., None, None]  # [B, 18 C, J, 1, 1]
        y = grid.blocks(self.beta * x + self.mean_weight[0] * rows)  # [B, C, J, frames, F]
        y = y + (self.mean_weight[1] * mean_t).unsqueeze(3)
        past = self.extended(x, 2 * DILATIONS[-1])
        y = stripes_by_block(past, taps.split(c, dim=1), y, grid)
        return nn.functional.leaky_relu(self.out(y.flatten(2, 3)), LEAK)


def stripes_by_block(x: Tensor, taps: Sequence[Tensor], y: Tensor, grid: Grid) -> Tensor:
    """Add the three branches' causal stripes of ``x`` to ``y`` [B, C, J, frames, F].

    Args:
        x: [B, C, 14 + T, F], 14 frames of the past in front.
        taps: 18 tensors [B, C, J, 1, 1] in the order of `LISA.taps`, along T from the oldest.
        y: What they are added to.
        grid: Frames of a block.
    """
    n_bins, reach, past = x.shape[-1], DILATIONS[-1], 2 * DILATIONS[-1]
    padded = nn.functional.pad(x, (reach, reach, 0, 0), mode="reflect")  # [B, C, 14 + T, F + 14]
    present = grid.blocks(padded[:, :, past:])
    for i, d in enumerate(DILATIONS):
        w = taps[6 * i : 6 * i + 6]
        before, oldest = (grid.blocks(padded[:, :, past - age : -age]) for age in (d, 2 * d))
        z = w[3] * oldest + w[4] * before + w[5] * present  # [B, C, J, frames, F + 14]
        y = y + w[0] * z[..., reach - d : reach - d + n_bins]
        y = y + w[1] * z[..., reach : reach + n_bins]
        y = y + w[2] * z[..., reach + d : reach + d + n_bins]
    return y


class DualPath(nn.Module):
    """The ablation in LISA's place: a plain depthwise pass along frequency, then along time."""

    def __init__(self, channels: int, norm: str, causal: bool = False) -> None:
        """Make the module."""
        super().__init__()
        self.intra = ConvNorm(channels, channels, (1, 7), groups=channels, norm=norm)
        self.inter = ConvNorm(channels, channels, (7, 1), groups=channels, norm=norm, causal=causal)
        self.out = ConvNorm(channels, channels, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to ``x`` [B, C, T, F]."""
        y = x + torch.relu(self.intra(x))
        y = y + torch.relu(self.inter(y))
        return nn.functional.leaky_relu(self.out(y), LEAK)
