"""The enhancement network: a 3-level U-Net of stages, each ODAM, LISA, ODAM (paper Fig. 2C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .causal import BlockExtremes, Grid
from .config import ModelConfig
from .fanc import compressed_bins, split_bin
from .layers import ConvNorm
from .lisa import LISA, CausalLISA, DualPath
from .odam import ODAM
from .tlb import band_index, scale_backbone, scale_skip

Hook = Callable[[int, Tensor], Tensor]


class Stage(nn.Module):
    """ODAM -> LISA (-> ODAM), [B, C, T, F] -> same shape."""

    def __init__(self, config: ModelConfig, level: int) -> None:
        """Make a stage of U-Net level 0, 1 or 2."""
        super().__init__()
        c = config.channels << level
        block = (c, round(c * config.ffn_factor), config.state, config.heads)
        grid = Grid.at(level) if config.causal else None
        self.first = ODAM(*block, scan=config.scan, norm=config.norm, grid=grid)
        self.local: nn.Module
        if config.local == "dual_path":
            self.local = DualPath(c, config.norm, config.causal)
        else:
            self.local = CausalLISA(c, config.norm, grid) if grid else LISA(c, config.norm)
        self.second = (
            ODAM(*block, scan=config.scan, norm=config.norm, grid=grid)
            if config.blocks == 2
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the stage."""
        out: Tensor = self.second(self.local(self.first(x)))
        return out


class Down(nn.Module):
    """Convolution C -> C/2, then pixel unshuffle: [B, C, T, F] -> [B, 2C, T/2, F/2]."""

    def __init__(self, channels: int, norm: str, causal: bool = False) -> None:
        """Make the step for ``channels`` input channels."""
        super().__init__()
        self.conv = ConvNorm(channels, channels // 2, 3, norm=norm, causal=causal)

    def forward(self, x: Tensor) -> Tensor:
        """Halve both axes."""
        return nn.functional.pixel_unshuffle(self.conv(x), 2)


class Up(nn.Module):
    """Pixel shuffle, then convolution: [B, 2C, T, F] -> [B, C, 2T, 2F]."""

    def __init__(self, channels: int, norm: str, causal: bool = False) -> None:
        """Make the step for ``channels`` output channels."""
        super().__init__()
        self.conv = ConvNorm(channels // 2, channels, 3, norm=norm, causal=causal)

    def forward(self, x: Tensor) -> Tensor:
        """Double both axes."""
        out: Tensor = self.conv(nn.functional.pixel_shuffle(x, 2))
        return out


class UNet(nn.Module):
    """enc1, enc2, bottleneck, dec2, dec1; skips are added at dec2 and dec1."""

    band1: Tensor
    band2: Tensor

    def __init__(self, config: ModelConfig, bottleneck_stages: int) -> None:
        """Make the network; the diffusion branch has two bottleneck stages."""
        super().__init__()
        c, norm, causal = config.channels, config.norm, config.causal
        bins, split = compressed_bins(config.encoder), split_bin(config.encoder)
        # TLB's bands on the outer level and on the one below it
        self.register_buffer("band1", band_index(bins, split), persistent=False)
        self.register_buffer("band2", band_index(bins // 2, split // 2), persistent=False)
        self.enc1, self.enc2 = Stage(config, 0), Stage(config, 1)
        self.down1, self.down2 = Down(c, norm, causal), Down(2 * c, norm, causal)
        self.bottleneck = nn.Sequential(*(Stage(config, 2) for _ in range(bottleneck_stages)))
        self.up2, self.up1 = Up(2 * c, norm, causal), Up(c, norm, causal)
        self.dec2, self.dec1 = Stage(config, 1), Stage(config, 0)
        self.extremes1 = BlockExtremes(Grid.at(0)) if causal else None
        self.extremes2 = BlockExtremes(Grid.at(1)) if causal else None

    def forward(
        self,
        x: Tensor,
        after_stage: Hook | None = None,
        tlb_skip: Tensor | None = None,
        tlb_backbone: Tensor | Sequence[None] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the network on ``x`` [B, C, T, F], T and F multiples of 4.

        ``after_stage(i, x)`` replaces the output of stage i = 1..5 (the interaction); skips are
        taken before it. Returns the last output and the five stage outputs (before the hook).
        """
        hook = after_stage or (lambda _, y: y)
        skip1 = self.enc1(x)  # [B, C, T, F]
        skip2 = self.enc2(self.down1(hook(1, skip1)))  # [B, 2C, T/2, F/2]
        deep = self.bottleneck(self.down2(hook(2, skip2)))  # [B, 4C, T/4, F/4]
        up = self.up2(hook(3, deep))
        s1, s2 = skip1, skip2
        if tlb_skip is not None:
            s1 = scale_skip(skip1, tlb_skip[0], self.band1)
            s2 = scale_skip(skip2, tlb_skip[1], self.band2)
        if tlb_backbone is not None:
            up = scale_backbone(up, tlb_backbone[1], self.band2, self.extremes2)
        dec2 = self.dec2(up + s2)
        up = self.up1(hook(4, dec2))
        if tlb_backbone is not None:
            up = scale_backbone(up, tlb_backbone[0], self.band1, self.extremes1)
        dec1 = self.dec1(up + s1)
        return hook(5, dec1), [skip1, skip2, deep, dec2, dec1]
