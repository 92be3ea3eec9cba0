"""Parameters and multiply-accumulates of a model, counted rather than computed by formula."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dvpd.model import DVPD
from dvpd.runtime.spec import N_FREQS, SignalSpec

aten = torch.ops.aten
COUNT_FRAMES = 1000  # long enough that what does not grow with time is lost in it


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the products of convolutions, matrix products and elementwise multiplications."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and count its products."""
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", None)
        if packet is aten.convolution:
            self.macs += out.numel() * math.prod(args[1].shape[1:])
        elif packet in (aten.mm, aten.bmm):
            self.macs += out.numel() * args[0].shape[-1]
        elif packet is aten.addmm:
            self.macs += out.numel() * args[1].shape[-1]
        elif packet is aten.mul and isinstance(out, Tensor):
            self.macs += out.numel()
        return out


def parameter_counts(model: DVPD) -> dict[str, int]:
    """Trained parameters of each branch and of both."""
    counts = {
        "predictive": sum(p.numel() for p in model.predictive.parameters()),
        "score": sum(p.numel() for p in model.score.parameters()),
    }
    return {**counts, "total": sum(counts.values())}


def macs_per_second(model: DVPD, signal: SignalSpec, n_steps: int) -> dict[str, int]:
    """Multiply-accumulates for a second of audio, by branch and for one enhancement.

    Args:
        model: Folded, as `prepare` returns it in float32.
        signal: For the frame rate.
        n_steps: Calls of the score branch in the total.

    Returns:
        "predictive", "score" (one call each) and "total" (1 + ``n_steps`` calls), every product
        counted.
    """
    model = model.float().to("meta")
    seconds = COUNT_FRAMES / signal.frame_rate_hz
    noisy = torch.empty(1, 3, COUNT_FRAMES, N_FREQS, device="meta")
    factors = torch.empty(2, 2, device="meta")
    with torch.no_grad(), MacCounter() as counter:
        _, feats = model.predictive(noisy)
    predictive = round(counter.macs / seconds)
    with torch.no_grad(), MacCounter() as counter:
        model.score(noisy[:, :1], torch.empty(1, device="meta"), feats, factors, factors)
    score = round(counter.macs / seconds)
    return {"predictive": predictive, "score": score, "total": predictive + n_steps * score}
