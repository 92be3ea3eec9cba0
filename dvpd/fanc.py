"""FANC: frequency-adaptive non-uniform compression, the way in and out of a branch.

257 bins become 128: 0-2 kHz keeps its 64 bins, 2-4 kHz is halved to 32, above 4 kHz is quartered
to 32 (paper Fig. 2B). The ablation "uniform" replaces it with one convolution of F-stride 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .causal import CausalConv2d, Past
from .layers import ConvNorm

BANDS = ((0, 64, 1), (64, 128, 2), (128, 256, 4))  # first bin, end bin, F-stride
F_DILATIONS = (1, 2, 3)
LEAK = 0.2
UNIFORM_STRIDE, UNIFORM_BINS, UNIFORM_PADDED = 3, 86, 88


def compressed_bins(encoder: str) -> int:
    """Bins after the encoder: 128 for "fanc", 88 for "uniform"."""
    if encoder not in ("fanc", "uniform"):
        raise ValueError(f"encoder is {encoder!r}; it must be 'fanc' or 'uniform'")
    return 128 if encoder == "fanc" else UNIFORM_PADDED


def split_bin(encoder: str) -> int:
    """Index of 2 kHz on the encoder's axis."""
    return 64 if encoder == "fanc" else round(64 / UNIFORM_STRIDE)


class BandEncoder(nn.Module):
    """Parallel dilated 3x3 convolutions (and a 1x1 in the low band), concatenated, mixed by 1x1.

    A ``causal`` one is given two frames of the past before the others.
    """

    def __init__(
        self, c_in: int, channels: int, stride: int, norm: str, causal: bool = False
    ) -> None:
        """Make one band's encoder."""
        super().__init__()
        self.past = 2 * causal
        width = channels // len(F_DILATIONS)
        self.branches = nn.ModuleList(
            nn.Conv2d(c_in, width, 3, stride=(1, stride), padding=(1 - causal, d), dilation=(1, d))
            for d in F_DILATIONS
        )
        if stride == 1:
            self.branches.append(nn.Conv2d(c_in, width, 1))
        self.mix = nn.Conv2d(width * len(self.branches), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, T, F] -> [B, C, T, F / stride]."""
        n = len(F_DILATIONS)
        parts = [branch(x) for branch in self.branches[:n]]
        parts += [branch(x[:, :, self.past :] if self.past else x) for branch in self.branches[n:]]
        out: Tensor = self.mix(torch.relu(torch.cat(parts, dim=1)))
        return out


class FANCEncoder(nn.Module):
    """[B, c_in, T, 257] -> [B, C, T, 128]; the diffusion branch adds a time embedding."""

    def __init__(
        self, c_in: int, channels: int, norm: str, embedding: int = 0, causal: bool = False
    ) -> None:
        """Make the encoder; ``embedding`` is the width of the time embedding, 0 for none."""
        super().__init__()
        self.stem = ConvNorm(c_in, channels, 3, norm=norm, causal=causal)
        self.past = Past() if causal else nn.Identity()
        self.bands = nn.ModuleList(
            BandEncoder(channels, channels, s, norm, causal) for _, _, s in BANDS
        )
        self.time = nn.Linear(embedding, channels) if embedding else None
        self.norm = ConvNorm(channels, channels, norm=norm)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Encode ``x``; ``embedding`` [B, E] in the diffusion branch."""
        x = self.past(nn.functional.leaky_relu(self.stem(x), LEAK))  # [B, C, T, 257]
        parts = [band(x[..., lo:hi]) for band, (lo, hi, _) in zip(self.bands, BANDS, strict=True)]
        y = torch.cat(parts, dim=-1)  # [B, C, T, 128]
        if self.time is not None and embedding is not None:
            y = y + self.time(embedding).reshape(-1, y.shape[1], 1, 1)
        return nn.functional.leaky_relu(self.norm(y), LEAK)


class UniformEncoder(nn.Module):
    """Ablation without FANC: one convolution of F-stride 3, 257 -> 86, padded to 88 bins."""

    def __init__(
        self, c_in: int, channels: int, norm: str, embedding: int = 0, causal: bool = False
    ) -> None:
        """Make the encoder; ``embedding`` as in `FANCEncoder`."""
        super().__init__()
        self.stem = ConvNorm(
            c_in, channels, 3, stride=(1, UNIFORM_STRIDE), norm=norm, causal=causal
        )
        self.time = nn.Linear(embedding, channels) if embedding else None
        self.norm = ConvNorm(channels, channels, norm=norm)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """[B, c_in, T, 257] -> [B, C, T, 88]."""
        y = nn.functional.pad(self.stem(x), (0, UNIFORM_PADDED - UNIFORM_BINS))
        if self.time is not None and embedding is not None:
            y = y + self.time(embedding).reshape(-1, y.shape[1], 1, 1)
        return nn.functional.leaky_relu(self.norm(y), LEAK)


def _spread(x: Tensor, factor: int) -> Tensor:
    """Sub-pixel step along F: [B, C r, T, F] -> [B, C, T, F r]."""
    if factor == 1:
        return x
    out: Tensor = x.unflatten(1, (-1, factor)).permute(0, 1, 3, 4, 2).flatten(3)
    return out


class FANCDecoder(nn.Module):
    """Branch output and encoder output [B, C, T, 128] each -> [B, c_out, T, 257].

    The last convolution starts at zero, so that what the decoder adds starts at nothing.
    """

    def __init__(
        self, channels: int, width: int, c_out: int, norm: str, causal: bool = False
    ) -> None:
        """Make the decoder; ``width`` channels at full resolution."""
        super().__init__()
        self.join_out = ConvNorm(channels, channels, norm=norm)
        self.join_enc = nn.Conv2d(channels, channels, 1, bias=False)
        self.past = Past() if causal else nn.Identity()
        self.heads = nn.ModuleList(
            nn.Conv2d(channels, width * s, 3, padding=(1 - causal, 1)) for *_, s in BANDS
        )
        conv = CausalConv2d if causal else nn.Conv2d
        self.last = conv(width, c_out, (3, 2), padding=(1, 1))
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def forward(self, out: Tensor, enc: Tensor) -> Tensor:
        """Decode the branch's output ``out`` together with its encoder's output ``enc``."""
        z = self.past(nn.functional.leaky_relu(self.join_out(out) + self.join_enc(enc), LEAK))
        parts, first = [], 0
        for head, (lo, hi, stride) in zip(self.heads, BANDS, strict=True):
            bins = (hi - lo) // stride
            parts.append(_spread(torch.relu(head(z[..., first : first + bins])), stride))
            first += bins
        last: Tensor = self.last(torch.cat(parts, dim=-1))
        return last  # [B, c_out, T, 257]


class UniformDecoder(nn.Module):
    """The uniform encoder's counterpart: sub-pixel x3 along F, [B, C, T, 88] -> [B, c_out, T, 257]."""

    def __init__(
        self, channels: int, width: int, c_out: int, norm: str, causal: bool = False
    ) -> None:
        """Make the decoder; arguments as in `FANCDecoder`."""
        super().__init__()
        self.join_out = ConvNorm(channels, channels, norm=norm)
        self.join_enc = nn.Conv2d(channels, channels, 1, bias=False)
        conv = CausalConv2d if causal else nn.Conv2d
        self.head = conv(channels, width * UNIFORM_STRIDE, 3, padding=1)
        self.last = conv(width, c_out, (3, 2), padding=(1, 0))  # 258 bins -> 257
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def forward(self, out: Tensor, enc: Tensor) -> Tensor:
        """Decode as `FANCDecoder` does."""
        z = nn.functional.leaky_relu(self.join_out(out) + self.join_enc(enc), LEAK)
        last: Tensor = self.last(
            _spread(torch.relu(self.head(z[..., :UNIFORM_BINS])), UNIFORM_STRIDE)
        )
        return last
