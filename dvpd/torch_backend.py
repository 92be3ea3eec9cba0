"""The model in PyTorch behind the runtime's interface: ``Enhancer.open(folder, backend="torch")``.

The reference for correctness on any GPU, and the way to run where TensorRT is missing. On CUDA the
whole sampler is captured as one CUDA graph for each shape; elsewhere the same function runs call by
call.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .layers import fold_batch_norms
from .model import DVPD
from .runtime.arrays import FloatArray
from .runtime.backends.base import (
    PREDICT_OUT,
    SCORE_OUT,
    check_output,
    check_predict,
    check_score,
)
from .runtime.engines import checkpoints_near, find_checkpoint
from .runtime.errors import BackendError, InputError, ManifestError
from .runtime.schedule import InitialState, SamplerStep
from .runtime.spec import PRECISIONS, TlbFactors
from .torch_device import MemoryFull
from .torch_stream import StreamCalls, coefficient_table, diffused

logger = logging.getLogger("dvpd")


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


class TorchBackend(StreamCalls):
    """A model in PyTorch; see ``TorchDevice`` and, of a causal one, ``StreamCalls``.

    Attributes:
        name: "torch".
    """

    name = "torch"

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

    def _sampler(
        self,
        factors: Sequence[Tensor | None],
        noisy: Tensor,
        noise: Tensor,
        coefficients: Tensor,
        times: Tensor,
    ) -> Tensor:
        clean_ri: Tensor
        clean_ri, feats = self._predictive(noisy)
        if not len(noise):
            return clean_ri

        def score(i: int, xt: Tensor) -> Tensor:
            sigma_z: Tensor = self._score(xt, times[i], feats, *factors)
            return sigma_z

        return diffused(clean_ri, noisy[:, 2:3], noise, coefficients, score)

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
        coefficients = coefficient_table(start, steps, alpha)
        out = np.empty((batch, 2, n_frames, noisy.shape[3]), np.float32)
        first = 0
        while first < batch:
            count = min(batch - first, self._max_batch or batch)
            part = slice(first, first + count)
            times = np.array([step.t for step in steps], np.float32)[:, None].repeat(count, 1)
            arrays = (noisy[part], noise[:, part], coefficients, times)
            try:
                out[part] = self._guarded(partial(self._run, arrays, tlb))
            except MemoryFull as error:
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
        given = [self._to(array) for array in (*arrays, *factors) if array is not None]

        def work(noisy: Tensor, noise: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            coefficients, times, *some = rest
            scales = self._filled(factors, some)
            return (self._sampler(scales, noisy, noise, coefficients, times).float(),)

        key = (*given[0].shape, len(given[1]), *(f is not None for f in factors))
        (out,) = self._replayed(key, work, given)
        array: FloatArray = out.cpu().numpy()
        return array


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
