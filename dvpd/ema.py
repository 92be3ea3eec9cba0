"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Ema:
    """A copy of a model whose parameters follow the original's slowly; buffers are copied.

    Attributes:
        model: The averaged copy, in eval mode, without gradients.
        updates: How often it was updated.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Copy the model.

        Args:
            model: The model in training.
            decay: Final decay; it is ramped as min(decay, (1 + n) / (10 + n)).
        """
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        mine, theirs = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)
        copy_all(self.model.buffers(), model.buffers())


@torch.no_grad()
def copy_all(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy many small tensors, on a GPU in a few kernels rather than in one for each."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        mine, theirs = groups.setdefault(target.dtype, ([], []))
        mine.append(target)
        theirs.append(source)
    for mine, theirs in groups.values():
        torch._foreach_copy_(mine, theirs)
