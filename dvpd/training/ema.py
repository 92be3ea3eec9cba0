"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """A copy of a model whose parameters follow the original's slowly; buffers are copied.

    Attributes:
        model: The averaged copy, in eval mode, without gradients.
    """

    def __init__(self, model: M, decay: float) -> None:
        """Copy the model.

        Args:
            model: The model in training.
            decay: Final decay; it is ramped as min(decay, (1 + n) / (10 + n)).
        """
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        device = next(model.parameters()).device
        self._updates = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def updates(self) -> int:
        """How often it was updated; reads the device."""
        return int(self._updates)

    @updates.setter
    def updates(self, count: int) -> None:
        self._updates.fill_(count)

    @torch.no_grad()
    def update(self, model: nn.Module, skip: Tensor) -> None:
        """Move the average towards the model's present weights; the host reads nothing.

        Args:
            model: The model in training.
            skip: 0-dim, 1.0 where this step must change nothing, else 0.0.
        """
        n, wanted = self._updates, 1.0 - skip
        weight = (1.0 - ((1.0 + n) / (10.0 + n)).clamp_max(self.decay)) * wanted
        mine: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(model.parameters())
        moves = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(moves, weight.to(mine[0].dtype))
        torch._foreach_add_(mine, moves)
        n.add_(wanted)
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
