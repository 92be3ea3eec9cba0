"""Batches of training pairs, mixed by background processes, always in the same order."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

PREFETCH_BATCHES = 4


class PairSource(Protocol):
    """Anything that makes a training pair from three numbers."""

    def pair(
        self, seed: int, epoch: int, index: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Noisy and clean waveform, [L] each."""


class _Pairs(Dataset[tuple[NDArray[np.float32], NDArray[np.float32]]]):
    def __init__(self, source: PairSource, seed: int, epoch_crops: int) -> None:
        self.source, self.seed, self.epoch_crops = source, seed, epoch_crops

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        epoch, place = divmod(index, self.epoch_crops)
        return self.source.pair(self.seed, epoch, place)


class _InOrder(Sampler[list[int]]):
    """Every batch's crops in order; of each batch only part ``rank`` of ``size`` equal ones."""

    def __init__(self, first: int, batch_size: int, rank: int, size: int) -> None:
        part = batch_size // size
        self.first, self.step, self.part = first + rank * part, batch_size, part

    def __iter__(self) -> Iterator[list[int]]:
        index = self.first
        while True:
            yield list(range(index, index + self.part))
            index += self.step


def _stack(items: list[Any]) -> tuple[Tensor, Tensor]:
    noisy, clean = zip(*items, strict=True)
    return torch.from_numpy(np.stack(noisy)), torch.from_numpy(np.stack(clean))


def _quiet_worker(_: int) -> None:
    # Ctrl-C, torchrun and service managers signal the whole process group: only the trainer decides
    # when to stop, and then ends its workers. A second SIGTERM is meant for the worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def batches(
    source: PairSource,
    *,
    seed: int,
    batch_size: int,
    epoch_crops: int,
    first_crop: int = 0,
    workers: int = 1,
    rank: int = 0,
    size: int = 1,
    pin_memory: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (noisy, clean), float32 [B / size, L] each.

    Args:
        source: Makes the pairs.
        seed: Seed of the run.
        batch_size: Crops in a batch, B.
        epoch_crops: Crops that count as an epoch.
        first_crop: Where to start, in crops since the beginning of the run.
        workers: Background processes; 0 mixes in this one. The order does not depend on it.
        rank: Which part of each batch is wanted.
        size: Number of parts; it must divide ``batch_size``.
        pin_memory: Put the batches where a GPU copies them from in the background.
    """
    context = "fork" if workers and "fork" in multiprocessing.get_all_start_methods() else None
    loader = DataLoader(
        _Pairs(source, seed, epoch_crops),
        batch_sampler=_InOrder(first_crop, batch_size, rank, size),
        num_workers=workers,
        collate_fn=_stack,
        worker_init_fn=_quiet_worker if workers else None,
        prefetch_factor=PREFETCH_BATCHES if workers else None,
        multiprocessing_context=context,
        pin_memory=pin_memory,
        # The loader draws a base seed from torch's global generator; ours keeps that untouched.
        generator=torch.Generator().manual_seed(seed),
    )
    return iter(loader)
