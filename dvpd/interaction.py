"""Frequency-aware interaction: what the diffusion branch takes from the predictive one (Fig. 2D).

joint = sigmoid(Conv1x1(concat(g, p)) + W t_emb)         [B, C, T, F]
prior = sigmoid(Conv1x1(mean over T of p))               [B, C, 1, F], does not depend on t
out   = g + joint * prior * p
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import ConvNorm


class Interaction(nn.Module):
    """One of the six interactions. ``gate=False`` is the ablation without the frequency prior."""

    def __init__(self, channels: int, embedding: int, gate: bool, norm: str) -> None:
        """Make the module; ``embedding`` is the width of the time embedding."""
        super().__init__()
        # the convolution of a concatenation is the sum of two convolutions: no copy
        self.joint_g = ConvNorm(channels, channels, norm=norm)
        self.joint_p = nn.Conv2d(channels, channels, 1, bias=False)
        self.time = nn.Linear(embedding, channels)
        self.prior = nn.Conv2d(channels, channels, 1) if gate else None

    def forward(self, g: Tensor, p: Tensor, embedding: Tensor) -> Tensor:
        """Guide ``g`` [B, C, T, F] by ``p`` of the same shape; ``embedding`` [B, E]."""
        t = self.time(embedding).reshape(-1, g.shape[1], 1, 1)  # [B, C, 1, 1]
        joint = torch.sigmoid(self.joint_g(g) + self.joint_p(p) + t)
        if self.prior is not None:
            mean = p.float().mean(2, keepdim=True).to(p.dtype)  # [B, C, 1, F]
            p = torch.sigmoid(self.prior(mean)) * p
        return g + joint * p
