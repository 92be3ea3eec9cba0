"""The model in PyTorch behind the runtime's interface: ``Enhancer.open(folder, backend="torch")``.

The reference for correctness on any GPU, and the way to run where TensorRT is missing. On CUDA the
whole sampler is captured as one CUDA graph for each shape; elsewhere the same function runs call by
call.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .causal import advance
from .layers import fold_batch_norms
from .model import DVPD
from .runtime.arrays import FloatArray
from .runtime.backends.base import (
    PREDICT_OUT,
    SCORE_OUT,
    Row,
    check_output,
    check_predict,
    check_score,
)
from .runtime.engines import checkpoints_near, find_checkpoint
from .runtime.errors import BackendError, InputError, ManifestError
from .runtime.sampler import TINY
from .runtime.schedule import InitialState, SamplerStep
from .runtime.spec import FRAME_MULTIPLE, PRECISIONS, TlbFactors

logger = logging.getLogger("dvpd")

WARM_UP_RUNS = 3  # before a capture: libraries choose their algorithms and allocate
MAX_GRAPHS = 8  # shapes kept, with TLB and without; a recording needs two


def prepare(model: DVPD, precision: str = "fp32") -> DVPD:
    """A copy for inference: batch norms folded, weights in ``precision``; as in the exported graphs.

    In fp16 the time embedding's frequencies stay float32; the forward passes hold the other float32
    parts themselves.

    Args:
        model: In any mode.
        precision: "fp32" or "fp16".

    Raises:
        InputError: Another precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norms(copied)
    if precision == "fp16":
        frequencies = copied.score.embedding.frequencies
        copied.half()
        copied.score.embedding.frequencies = frequencies
    return copied


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
class _Captured:
    """A captured sampler and the tensors that it reads and writes."""

    graph: Any
    inputs: tuple[Tensor, ...]
    out: Tensor


class TorchBackend:
    """A model in PyTorch.

    Attributes:
        name: "torch".
        device: torch device.
        capture: Whether the sampler is captured on CUDA; False for a comparison.
    """

    name = "torch"

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
        kind = torch.device(device)
        if kind.type == "cuda" and not torch.cuda.is_available():
            raise BackendError(
                f"device {device} asked for, but this torch {torch.__version__} finds no CUDA: "
                "install a torch built for the driver's CUDA, or use device cpu"
            )
        if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
            raise BackendError(
                f"device {device} is not there; this machine has {torch.cuda.device_count()}"
            )
        self.device, self._device, self.capture = device, kind, True
        self._tf32 = tf32
        self.model: DVPD | None = self._guarded(lambda: model.to(kind))
        self._predictive: Callable[..., Any] = self.model.predictive
        self._score: Callable[..., Any] = self.model.score
        if compiled:
            self._predictive = torch.compile(self._predictive, dynamic=False)
            self._score = torch.compile(self._score, dynamic=False)
        self._known: OrderedDict[tuple[int, ...], _Captured | None] = OrderedDict()
        self._max_batch: int | None = None  # once memory ran out

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Run ``work``; what CUDA raises becomes a BackendError."""
        try:
            with torch.inference_mode(), tf32_allowed(self._tf32):
                return work()
        except torch.OutOfMemoryError as error:
            raise _Full(f"GPU memory is full: {str(error).splitlines()[0]}") from None
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

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """See ``Backend.predict``."""
        sizes = check_predict(noisy)
        self._open_model()

        def work() -> tuple[FloatArray, Sequence[Tensor]]:
            clean_ri, feats = self._predictive(self._to(noisy))
            return clean_ri.float().cpu().numpy(), feats

        clean_ri, feats = self._guarded(work)
        return check_output(PREDICT_OUT, clean_ri, sizes, "the predictive branch (torch)"), feats

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """See ``Backend.score``."""
        sizes = check_score(xt, t, feats, tlb_skip, tlb_backbone)
        self._open_model()
        factors = self._factors(tlb_skip, tlb_backbone)

        def work() -> FloatArray:
            sigma_z = self._score(self._to(xt), self._to(t), list(feats), *factors)
            array: FloatArray = sigma_z.float().cpu().numpy()
            return array

        return check_output(SCORE_OUT, self._guarded(work), sizes, "the score branch (torch)")

    def predict_next(self, noisy: FloatArray, state: Any) -> tuple[FloatArray, Sequence[Any], Any]:
        """See ``StreamBackend.predict_next``."""
        sizes = check_predict(noisy, FRAME_MULTIPLE)
        network = self._open_model().predictive

        def work() -> tuple[FloatArray, Sequence[Tensor], Tensor]:
            before = None if state is None else self._to(state)
            (clean_ri, feats), after = advance(network, before, self._to(noisy))
            return clean_ri.float().cpu().numpy(), feats, after

        clean_ri, feats, after = self._guarded(work)
        source = "the predictive branch (torch)"
        return check_output(PREDICT_OUT, clean_ri, sizes, source), feats, after

    def score_next(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
        state: Any,
    ) -> tuple[FloatArray, Any]:
        """See ``StreamBackend.score_next``."""
        sizes = check_score(xt, t, feats, tlb_skip, tlb_backbone, FRAME_MULTIPLE)
        network = self._open_model().score

        def work() -> tuple[FloatArray, Tensor]:
            given = [self._to(array) for array in (xt, t, tlb_skip, tlb_backbone)]
            before = None if state is None else self._to(state)
            sigma_z, after = advance(network, before, *given[:2], list(feats), *given[2:])
            return sigma_z.float().cpu().numpy(), after

        sigma_z, after = self._guarded(work)
        return check_output(SCORE_OUT, sigma_z, sizes, "the score branch (torch)"), after

    def join_states(self, rows: Sequence[Row | None]) -> Tensor:
        """See ``JoiningBackend.join_states``."""
        parts = [None if row is None else row.stack[row.index] for row in rows]
        some = next(part for part in parts if part is not None)
        zeros = torch.zeros_like(some)
        return torch.stack([zeros if part is None else part for part in parts])

    def _factors(self, *arrays: FloatArray) -> list[Tensor | None]:
        # Factors of one are the identity: None is the same, and faster.
        return [None if np.all(a == 1.0) else self._to(a) for a in arrays]

    def _sampler(
        self,
        factors: Sequence[Tensor | None],
        noisy: Tensor,
        noise: Tensor,
        coefficients: Tensor,
        times: Tensor,
    ) -> Tensor:
        """runtime/sampler.py on tensors that are on the device; no size or number is read back."""
        n_steps = len(noise)
        clean_ri: Tensor
        clean_ri, feats = self._predictive(noisy)
        if not n_steps:
            return clean_ri
        y = noisy[:, 2:3]  # [B, 1, T, F]
        mag_p = clean_ri.square().sum(1, keepdim=True).sqrt()
        start, *steps, last = coefficients
        xt = start[0] * mag_p + start[1] * y + start[2] * noise[0]
        for i, step in enumerate(steps):
            sigma_z = self._score(xt, times[i], feats, *factors)
            xt = step[0] * xt + step[1] * y + step[2] * sigma_z
            if i + 1 < n_steps:  # the last mean is the result
                xt = xt + step[3] * noise[i + 1]
        mag = last[0] * mag_p + last[1] * xt.clamp_min(0.0)
        fused: Tensor = clean_ri * (mag / mag_p.clamp_min(float(TINY)))
        return fused

    def run_sampler(
        self,
        noisy: Any,
        noise: FloatArray,
        *,
        start: InitialState,
        steps: Sequence[SamplerStep],
        alpha: float,
        tlb: TlbFactors,
    ) -> FloatArray:
        """The whole sampler on the device; see ``backends.base.SamplerBackend.run_sampler``.

        ``noisy`` may be a float32 tensor, on any device. A batch beyond the GPU's memory is run in
        parts.
        """
        self._open_model()
        if isinstance(noisy, Tensor):
            if noisy.dtype != torch.float32:
                raise InputError(f"noisy is {noisy.dtype}; expected torch.float32")
            check_predict(np.broadcast_to(np.float32(0), tuple(noisy.shape)))
        else:
            check_predict(noisy)
        batch, _, n_frames, _ = noisy.shape
        rows = [(start.w_x0, start.w_y, start.std, 0.0)]
        rows += [(step.a, step.b, step.e, step.n) for step in steps]
        rows += [(alpha, 1.0 - alpha, 0.0, 0.0)]
        coefficients = np.array(rows, np.float32)
        out = np.empty((batch, 2, n_frames, noisy.shape[3]), np.float32)
        first = 0
        while first < batch:
            count = min(batch - first, self._max_batch or batch)
            part = slice(first, first + count)
            times = np.array([step.t for step in steps], np.float32)[:, None].repeat(count, 1)
            arrays = (noisy[part], noise[:, part], coefficients, times)
            try:
                out[part] = self._guarded(partial(self._run, arrays, tlb))
            except _Full as error:
                self._known.clear()
                torch.cuda.empty_cache()
                if count == 1:
                    raise
                self._max_batch = count // 2
                logger.warning("%s: going on with batches of %d", error, self._max_batch)
                continue
            first += count
        return check_output(PREDICT_OUT, out, {"B": batch, "T": n_frames}, "the sampler (torch)")

    def _run(self, arrays: tuple[Any, ...], tlb: TlbFactors) -> FloatArray:
        factors = self._factors(*tlb.arrays())
        given = [self._to(array) for array in arrays]
        if self._device.type != "cuda" or not self.capture:
            eager: FloatArray = self._sampler(factors, *given).float().cpu().numpy()
            return eager
        key = (*given[0].shape, len(given[1]), *(f is not None for f in factors))
        if key not in self._known:
            while len(self._known) >= MAX_GRAPHS:
                self._known.popitem(last=False)
            self._known[key] = self._captured(given, factors)
        self._known.move_to_end(key)
        captured = self._known[key]
        if captured is None:
            result: FloatArray = self._sampler(factors, *given).float().cpu().numpy()
            return result
        values = [*given, *(f for f in factors if f is not None)]
        for static, value in zip(captured.inputs, values, strict=True):
            static.copy_(value)
        captured.graph.replay()
        replayed: FloatArray = captured.out.cpu().numpy()
        return replayed

    def _captured(
        self, given: Sequence[Tensor], factors: Sequence[Tensor | None]
    ) -> _Captured | None:
        """Capture the sampler for tensors like these; None, said once, where that fails."""
        inputs = tuple(tensor.clone() for tensor in given)
        scales = [None if factor is None else factor.clone() for factor in factors]
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP_RUNS):
                    self._sampler(scales, *inputs)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            try:
                # Another thread may allocate or synchronise meanwhile, as data loaders do.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    out = self._sampler(scales, *inputs).float()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                first = str(error).strip().splitlines()[0]
                logger.warning("the sampler cannot be captured (%s): it runs call by call", first)
                return None
        return _Captured(graph, (*inputs, *(f for f in scales if f is not None)), out)

    def close(self) -> None:
        """Release the model and the captured graphs."""
        self._known.clear()
        self.model = None


class _Full(BackendError):
    """The GPU's memory is full."""


def need_checkpoint(folder: Path, sha256: str) -> Path:
    """Like ``runtime.engines.find_checkpoint``, for whom nothing goes without.

    Args:
        folder: Engine folder.
        sha256: What the manifest says of the checkpoint.

    Raises:
        ManifestError: None of the files there has this hash.
    """
    path = find_checkpoint(folder, sha256)
    if path is None:
        found = ", ".join(near.name for near in checkpoints_near(folder)) or "none"
        raise ManifestError(
            f"{folder}: backend torch needs the checkpoint that it was exported from, a "
            f".safetensors file with SHA-256 {sha256[:12]}..., in this folder or in one beside it; "
            f"found: {found}"
        )
    return path


def open_checkpoint(options: Any) -> TorchBackend:
    """What ``runtime.backends.choose.open_backend`` calls for "torch".

    Args:
        options: ``runtime.backends.base.LoadOptions``; precision is the manifest's.

    Raises:
        BackendError: The device is not there.
        ManifestError: The checkpoint is missing or damaged.
    """
    from .checkpoint import load_model

    if not options.device.startswith(("cpu", "cuda")):
        raise BackendError(f"backend torch has no device {options.device!r}; it knows cpu, cuda:N")
    folder = options.predictive.parent
    path = need_checkpoint(folder, options.manifest.checkpoint_sha256)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    _, model = load_model(path)
    prepared = prepare(model, options.manifest.precision)
    return TorchBackend(prepared, options.device, tf32=options.tf32)
