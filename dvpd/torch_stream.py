"""A causal model on a torch device: states that stay there, a block that is captured as one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .causal import advance
from .model import causal_spec
from .runtime.arrays import FloatArray
from .runtime.backends.base import (
    PREDICT_OUT,
    SCORE_OUT,
    Row,
    check_output,
    check_predict,
    check_score,
)
from .runtime.backends.blocks import BlockResult
from .runtime.errors import InputError
from .runtime.sampler import TINY
from .runtime.schedule import InitialState, SamplerStep
from .runtime.spec import FRAME_MULTIPLE, SignalSpec, TlbFactors
from .torch_device import TorchDevice


def coefficient_table(
    start: InitialState, steps: Sequence[SamplerStep], alpha: float
) -> FloatArray:
    """The sampler's coefficients, float32 [steps + 2, 4]: of the start, of each step, of the end."""
    rows = [(start.w_x0, start.w_y, start.std, 0.0)]
    rows += [(step.a, step.b, step.e, step.n) for step in steps]
    return np.array([*rows, (alpha, 1.0 - alpha, 0.0, 0.0)], np.float32)


def diffused(
    clean_ri: Tensor,
    y: Tensor,
    noise: Tensor,
    coefficients: Tensor,
    score: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """runtime/sampler.py on tensors that are on the device; no size or number is read back.

    Args:
        clean_ri: [B, 2, T, F], of the predictive branch.
        y: Noisy magnitude [B, 1, T, F].
        noise: [steps, B, 1, T, F].
        coefficients: See ``coefficient_table``.
        score: (step, x_t) -> sigma z [B, 1, T, F].

    Returns:
        [B, 2, T, F].
    """
    mag_p = clean_ri.square().sum(1, keepdim=True).sqrt()
    start, *steps, last = coefficients
    xt = start[0] * mag_p + start[1] * y + start[2] * noise[0]
    for i, step in enumerate(steps):
        xt = step[0] * xt + step[1] * y + step[2] * score(i, xt)
        if i + 1 < len(steps):  # the last mean is the result
            xt = xt + step[3] * noise[i + 1]
    mag = last[0] * mag_p + last[1] * xt.clamp_min(0.0)
    fused: Tensor = clean_ri * (mag / mag_p.clamp_min(float(TINY)))
    return fused


def padded(tensor: Tensor, axis: int, places: int) -> Tensor:
    """A batch with zeros behind it, up to so many places."""
    missing = places - tensor.shape[axis]
    if not missing:
        return tensor
    shape = (*tensor.shape[:axis], missing, *tensor.shape[axis + 1 :])
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)


class StreamCalls(TorchDevice):
    """What a causal model's streams call; see ``runtime.backends.blocks.BlockBackend``."""

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

    def run_block(
        self,
        noisy: FloatArray,
        late: FloatArray,
        noise: FloatArray,
        states: Sequence[Any],
        *,
        start: InitialState,
        steps: Sequence[SamplerStep],
        alpha: float,
        tlb: TlbFactors,
        parts: bool = False,
    ) -> BlockResult:
        """A block with all its steps, on CUDA as one graph; see ``BlockBackend.run_block``."""
        sizes = check_predict(noisy, FRAME_MULTIPLE)
        check_predict(late, FRAME_MULTIPLE)
        self._open_model()
        table = coefficient_table(start, steps, alpha)
        times = np.array([step.t for step in steps], np.float32)[:, None].repeat(sizes["B"], 1)
        arrays = (noisy, late, noise, times)
        work = partial(self._run_block, arrays, table, states, tlb, parts and bool(steps))
        result: BlockResult = self._guarded(work)
        check_output(PREDICT_OUT, result.fused, sizes, "the sampler (torch)")
        return result

    def _run_block(
        self,
        arrays: Sequence[FloatArray],
        table: FloatArray,
        states: Sequence[Any],
        tlb: TlbFactors,
        parts: bool,
    ) -> BlockResult:
        batch, n_steps = len(arrays[0]), len(table) - 2
        # Streams come and go: shapes for 1, 2, 4, 8 ... of them are captured, not one for each number.
        places = 1 << (batch - 1).bit_length() if self._captures else batch
        given = [padded(self._to(x), int(i > 1), places) for i, x in enumerate(arrays)]
        given += [padded(self._begun(i, state, batch), 0, places) for i, state in enumerate(states)]
        # Factors of one, too: without them a score state would be shorter, and another at a later call.
        given += [self._to(x) for x in (table, *tlb.arrays())]

        def work(noisy: Tensor, late: Tensor, noise: Tensor, times: Tensor, *rest: Tensor) -> Any:
            before, (coefficients, *scales) = rest[: n_steps + 1], rest[n_steps + 1 :]
            network = self._open_model()
            (clean_ri, feats), after = advance(network.predictive, before[0], noisy)
            kept: list[Tensor] = [after]
            sigmas: list[Tensor] = []

            def score(i: int, xt: Tensor) -> Tensor:
                sigma_z, after = advance(network.score, before[1 + i], xt, times[i], feats, *scales)
                kept.append(after)
                sigmas.append(sigma_z.float())
                return sigmas[-1]

            fused = clean_ri = clean_ri.float()
            if n_steps:
                fused = diffused(clean_ri, late[:, 2:3], noise, coefficients, score)
            return (*kept, fused, clean_ri, *sigmas[:1])

        key = ("block", places, given[0].shape[2], n_steps)
        out = self._replayed(key, work, given)
        # Of a captured graph they are written over by its next call.
        kept = tuple(state[:batch].clone() for state in out[: n_steps + 1])
        fused, *more = (x[:batch].cpu().numpy() for x in out[n_steps + 1 :][: 3 if parts else 1])
        return BlockResult(fused, kept, *more)

    def _begun(self, index: int, state: Any, batch: int) -> Tensor:
        """A state to go on with; zeros at the start."""
        if state is not None:
            return self._to(state)
        if self._sizes is None:
            causal = causal_spec(self._open_model(), SignalSpec())
            if causal is None:
                raise InputError(
                    "this model hears whole recordings and has no state; expected a causal one (live)"
                )
            self._sizes = causal.state_size
        size = self._sizes["score" if index else "predictive"]
        return torch.zeros(batch, size, device=self._device)
