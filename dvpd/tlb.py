"""TLB: the training-free lossless boost, eight scalars that reach into the diffusion branch.

Paper section 3.4 and Alg. 1, lines 12-22. ``tlb_skip`` and ``tlb_backbone`` are [2 levels, 2 bands]:
row 0 is the outer level (24 channels), column 0 is below 2 kHz. All ones change nothing, exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .causal import BlockExtremes

FLAT_MAP_FLOOR = 1e-6  # a map without contrast is normalised to zeros


def band_index(n_bins: int, split: int) -> Tensor:
    """For each of ``n_bins`` the column of its factor: 0 below bin ``split``, 1 from there on."""
    return (torch.arange(n_bins) >= split).long()


def scale_skip(skip: Tensor, factors: Tensor, band: Tensor) -> Tensor:
    """Multiply a copy of the skip tensor [B, C, T, F] by its bands' ``factors`` [2] = (low, high).

    ``band`` [F] is from `band_index`, on the tensors' device.
    """
    return skip * factors.float().index_select(0, band).to(skip.dtype)


def scale_backbone(
    x: Tensor, factors: Tensor | None, band: Tensor, past: BlockExtremes | None = None
) -> Tensor:
    """Multiply the decoder tensor ``x`` [B, C, T, F] by (b - 1) m + 1.

    m [B, 1, T, F] is the mean over channels, min-max normalised over the map of each item; ``band``
    as in `scale_skip`. In a causal network ``past`` gives the extremes of the last 2 s instead;
    factors that are None are ones, with which it only hears them.
    """
    mean = x.float().mean(1, keepdim=True)
    if past is not None:
        extremes = past(mean)
        if factors is None:
            return x
        low, high = (e.unsqueeze(3) for e in extremes)  # [B, 1, J, 1, 1]
        blocks = past.grid.blocks(mean)
        m = ((blocks - low) / (high - low).clamp_min(FLAT_MAP_FLOOR)).flatten(2, 3)
    else:
        low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
        m = (mean - low) / (high - low).clamp_min(FLAT_MAP_FLOOR)
    assert factors is not None  # else there is a past
    gain: Tensor = (factors.float().index_select(0, band) - 1) * m + 1
    return x * gain.to(x.dtype)
