"""A model on a torch device: its errors, its precision, and captured work."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .model import DVPD
from .runtime.arrays import FloatArray
from .runtime.errors import BackendError

logger = logging.getLogger("dvpd")

WARM_UP_RUNS = 3  # before a capture: libraries choose their algorithms and allocate
MAX_GRAPHS = 8  # shapes kept, with TLB and without; a recording needs two
MAX_STREAM_GRAPHS = 24  # 1 to 64 streams with the steps asked for, with one and with none


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Whether CUDA may round float32 products to TF32 inside; torch lets convolutions by default.

    Args:
        allowed: Whether it may.
    """
    parts: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    name: str = "allow_tf32"
    inside: bool | str = allowed
    try:
        before = [getattr(part, name) for part in parts]
    except RuntimeError:  # the application has used torch 2.9's other settings: never both
        parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # made at run time
        name, inside = "fp32_precision", "tf32" if allowed else "ieee"
        before = [getattr(part, name) for part in parts]
    try:
        for part in parts:
            setattr(part, name, inside)
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            setattr(part, name, value)


@dataclass
class Captured:
    """Work that was captured, and the tensors that it reads and writes."""

    graph: Any
    inputs: tuple[Tensor, ...]
    out: tuple[Tensor, ...]


Work = Callable[..., tuple[Tensor, ...]]


class MemoryFull(BackendError):
    """The GPU's memory is full."""


def find_device(device: str) -> torch.device:
    """A device by its name, if this machine has it.

    Args:
        device: As torch names it: "cpu", "cuda", "cuda:1", ...; "auto" for a GPU where one is.

    Raises:
        BackendError: There is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise BackendError(f"device {device!r} is unknown; expected cpu, cuda or cuda:N") from None
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"device {device} asked for, but this torch {torch.__version__} finds no CUDA: "
            "install a torch built for the driver's CUDA, or use device cpu"
        )
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device {device} is not there; this machine has {torch.cuda.device_count()}"
        )
    return kind


class TorchDevice:
    """A model on a device.

    Attributes:
        device: torch device.
        capture: Whether the sampler is captured on CUDA; False for a comparison.
    """

    def __init__(
        self, model: DVPD, device: str = "cpu", *, compiled: bool = False, tf32: bool = False
    ) -> None:
        """Wrap a model.

        Args:
            model: In eval mode, from ``prepare`` or as it is.
            device: Where it is to run.
            compiled: Whether both branches go through torch.compile (minutes, once for each shape).
            tf32: Whether CUDA may round float32 products to TF32.

        Raises:
            BackendError: The device is not there, or its memory is full.
        """
        kind = find_device(device)
        self.device, self._device, self.capture = device, kind, True
        self._tf32 = tf32
        self.model: DVPD | None = self._guarded(lambda: model.to(kind))
        self._predictive: Callable[..., Any] = self.model.predictive
        self._score: Callable[..., Any] = self.model.score
        if compiled:
            self._predictive = torch.compile(self._predictive, dynamic=False)
            self._score = torch.compile(self._score, dynamic=False)
        self._known: OrderedDict[tuple[Hashable, ...], Captured | None] = OrderedDict()
        self._max_graphs = MAX_STREAM_GRAPHS if model.config.causal else MAX_GRAPHS
        self._max_batch: int | None = None  # once memory ran out
        self._sizes: Mapping[str, int] | None = None  # of a causal model's states

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Run ``work``; what CUDA raises becomes a BackendError."""
        try:
            with torch.inference_mode(), tf32_allowed(self._tf32):
                return work()
        except torch.OutOfMemoryError as error:
            raise MemoryFull(f"GPU memory is full: {str(error).splitlines()[0]}") from None
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise BackendError(f"torch failed on {self.device} ({first})") from error

    def _open_model(self) -> DVPD:
        if self.model is None:
            raise BackendError("this backend is closed")
        return self.model

    def _to(self, array: Any) -> Tensor:
        if isinstance(array, Tensor):
            return array.to(self._device)
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _factors(self, *arrays: FloatArray) -> list[Tensor | None]:
        # Factors of one are the identity: None is the same, and faster.
        return [None if np.all(a == 1.0) else self._to(a) for a in arrays]

    @staticmethod
    def _filled(factors: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Other tensors in the places of those factors that are not None."""
        left = iter(tensors)
        return [None if factor is None else next(left) for factor in factors]

    @property
    def _captures(self) -> bool:
        return self._device.type == "cuda" and self.capture

    def _replayed(
        self, key: tuple[Hashable, ...], work: Work, given: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """What ``work`` makes of tensors on the device; captured where that is possible.

        Args:
            key: Of the shapes and all else that decides what is captured.
            work: A function of tensors that reads back no size and no number.
            given: Its tensors.

        Returns:
            Its results; those of a captured graph are written over by the next call.
        """
        if not self._captures:
            return work(*given)
        if key not in self._known:
            while len(self._known) >= self._max_graphs:
                self._known.popitem(last=False)
            self._known[key] = self._captured(work, given)
        self._known.move_to_end(key)
        captured = self._known[key]
        if captured is None:
            return work(*given)
        for static, value in zip(captured.inputs, given, strict=True):
            static.copy_(value)
        captured.graph.replay()
        return captured.out

    def _captured(self, work: Work, given: Sequence[Tensor]) -> Captured | None:
        """Capture ``work`` for tensors like these; None, said once, where that fails."""
        inputs = tuple(tensor.clone() for tensor in given)
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP_RUNS):
                    work(*inputs)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            try:
                # Another thread may allocate or synchronise meanwhile, as data loaders do.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    out = work(*inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                first = str(error).strip().splitlines()[0]
                logger.warning("the sampler cannot be captured (%s): it runs call by call", first)
                return None
        return Captured(graph, inputs, out)

    def close(self) -> None:
        """Release the model and the captured graphs."""
        self._known.clear()
        self.model = None
