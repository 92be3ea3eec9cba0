"""Frequency-aware interaction: what the diffusion branch takes from the predictive one (Fig. 2D).

joint = sigmoid(Conv1x1(concat(g, p)) + W t_emb)         [B, C, T, F]
prior = sigmoid(Conv1x1(mean over T of p))               [B, C, 1, F], does not depend on t
out   = g + joint * prior * p
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .causal import BlockMean, Grid
from .layers import ConvNorm


class Interaction(nn.Module):
    """One of the six interactions. ``gate=False`` is the ablation without the frequency prior."""

    def __init__(
        self, channels: int, embedding: int, gate: bool, norm: str, grid: Grid | None = None
    ) -> None:
        """Make the module; ``embedding`` is the width of the time embedding.

        With a ``grid`` it is causal: the mean over T is then the running one, by block.
        """
        super().__init__()
        # the convolution of a concatenation is the sum of two convolutions: no copy
        self.joint_g = ConvNorm(channels, channels, norm=norm)
        self.joint_p = nn.Conv2d(channels, channels, 1, bias=False)
        self.time = nn.Linear(embedding, channels)
        self.prior = nn.Conv2d(channels, channels, 1) if gate else None
        self.past = BlockMean(grid) if gate and grid else None

    def forward(self, g: Tensor, p: Tensor, embedding: Tensor) -> Tensor:
        """Guide ``g`` [B, C, T, F] by ``p`` of the same shape; ``embedding`` [B, E]."""
        t = self.time(embedding).reshape(-1, g.shape[1], 1, 1)  # [B, C, 1, 1]
        joint = torch.sigmoid(self.joint_g(g) + self.joint_p(p) + t)
        if self.prior is not None and self.past is not None:
            p = self.past.grid.scale(p, torch.sigmoid(self.prior(self.past(p))))
        elif self.prior is not None:
            mean = p.float().mean(2, keepdim=True).to(p.dtype)  # [B, C, 1, F]
            p = torch.sigmoid(self.prior(mean)) * p
        return g + joint * p
