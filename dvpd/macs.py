"""Multiply-accumulates of the PyTorch model, every product counted.

A dispatch counter: convolutions and matrix products are counted from the shapes that reach the
kernels, in whatever module they are, so the attention's products count too. Elementwise products
(gates, LISA's shifted multiply-adds, folded norms) are counted apart, one for each output.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .layers import fold_batch_norms
from .model import DVPD
from .runtime.spec import N_FREQS, SamplerSpec, SignalSpec

COUNT_FRAMES = 500  # 4 s of audio; the count grows linearly with the frames
_ELEMENTWISE = {"aten.mul", "aten.div", "aten.add", "aten.sub"}


@dataclass
class Macs:
    """Counts of one call, by operator."""

    products: Counter[str] = field(default_factory=Counter)
    elementwise: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All multiply-accumulates of convolutions and matrix products."""
        return sum(self.products.values())


class MacCounter(TorchDispatchMode):
    """Counts multiply-accumulates of what runs inside it."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.macs = Macs()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` and count it."""
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        if name == "aten.convolution":
            weight: Tensor = args[1]
            self.macs.products[name] += out.numel() * weight[0].numel()
        elif name in ("aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm"):
            a: Tensor = args[1] if name in ("aten.addmm", "aten.baddbmm") else args[0]
            self.macs.products[name] += out.numel() * a.shape[-1]
        elif name in _ELEMENTWISE and isinstance(out, Tensor):
            self.macs.elementwise[name] += out.numel()
        return out


@torch.no_grad()
def count_calls(model: DVPD, n_frames: int = COUNT_FRAMES) -> tuple[Macs, Macs]:
    """MACs of one predictive and one score call on ``n_frames`` frames (a multiple of 4).

    The model's batch norms are folded as at inference; ``model`` itself is not changed.
    """
    folded = DVPD(model.config)
    folded.load_state_dict(model.state_dict())
    fold_batch_norms(folded.eval())
    noisy = torch.zeros(1, 3, n_frames, N_FREQS)
    with MacCounter() as first:
        _, feats = folded.predictive(noisy)
    ones = torch.ones(2, 2)
    with MacCounter() as second:
        folded.score(noisy[:, :1], torch.full((1,), 0.12), feats, ones, ones)
    return first.macs, second.macs


def macs_per_second(model: DVPD, n_steps: int = SamplerSpec.n_steps) -> dict[str, int]:
    """MACs per second of audio: "predictive", "score" (one call) and "total"."""
    signal = SignalSpec()
    predictive, score = count_calls(model)
    scale = signal.sample_rate / signal.hop_length / COUNT_FRAMES
    p, s = round(predictive.total * scale), round(score.total * scale)
    return {"predictive": p, "score": s, "total": p + n_steps * s}


def parameter_counts(model: DVPD) -> dict[str, int]:
    """Trained parameters: "predictive", "score" and "total"."""
    p = sum(x.numel() for x in model.predictive.parameters())
    s = sum(x.numel() for x in model.score.parameters())
    return {"predictive": p, "score": s, "total": p + s}
