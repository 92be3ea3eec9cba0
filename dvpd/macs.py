"""Multiply-accumulates and parameters of the PyTorch model, every product counted.

A dispatch counter: convolutions and matrix products are counted from the shapes that reach the
kernels, in whatever module they are, so the attention's products count too; so does every
elementwise product (gates, LISA's shifted multiply-adds). Batch norms fold into convolutions at
inference and cost nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .model import DVPD
from .runtime.spec import N_FREQS, SamplerSpec, SignalSpec

COUNT_FRAMES = 1000  # long enough that what does not grow with time is lost in it
aten = torch.ops.aten


class MacCounter(TorchDispatchMode):
    """Counts the products of what runs inside it.

    Attributes:
        macs: Multiply-accumulates by operator.
    """

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.macs: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` and count it."""
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is aten.convolution:
            self.macs["convolution"] += out.numel() * math.prod(args[1].shape[1:])
        elif packet in (aten.mm, aten.bmm):
            self.macs["matrix product"] += out.numel() * args[0].shape[-1]
        elif packet in (aten.addmm, aten.baddbmm):
            self.macs["matrix product"] += out.numel() * args[1].shape[-1]
        elif packet is aten.mul and isinstance(out, Tensor):
            self.macs["elementwise product"] += out.numel()
        return out

    @property
    def total(self) -> int:
        """All multiply-accumulates."""
        return sum(self.macs.values())


@torch.no_grad()
def count_calls(model: DVPD, n_frames: int = COUNT_FRAMES) -> tuple[MacCounter, MacCounter]:
    """MACs of one predictive and one score call on ``n_frames`` frames (a multiple of 4).

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError("count_calls: model is in training mode; call model.eval()")
    weight = next(model.parameters())
    noisy = torch.zeros(1, 3, n_frames, N_FREQS, device=weight.device)
    with MacCounter() as first:
        _, feats = model.predictive(noisy)
    ones = torch.ones(2, 2, device=weight.device)
    t = torch.full((1,), 0.12, device=weight.device)
    with MacCounter() as second:
        model.score(noisy[:, :1], t, feats, ones, ones)
    return first, second


def macs_per_second(
    model: DVPD, signal: SignalSpec | None = None, n_steps: int = SamplerSpec.n_steps
) -> dict[str, int]:
    """MACs for a second of audio: "predictive", "score" (one call each) and "total".

    Args:
        model: In eval mode.
        signal: For the frame rate.
        n_steps: Calls of the score branch in the total.
    """
    predictive, score = count_calls(model)
    scale = (signal or SignalSpec()).frame_rate_hz / COUNT_FRAMES
    p, s = round(predictive.total * scale), round(score.total * scale)
    return {"predictive": p, "score": s, "total": p + n_steps * s}


def parameter_counts(model: DVPD) -> dict[str, int]:
    """Trained parameters: "predictive", "score" and "total"."""
    p = sum(x.numel() for x in model.predictive.parameters())
    s = sum(x.numel() for x in model.score.parameters())
    return {"predictive": p, "score": s, "total": p + s}
