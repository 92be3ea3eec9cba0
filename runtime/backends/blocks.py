"""A causal model's block as one call: the sampler on the device, where the states stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..arrays import FloatArray
from ..manifest import BlockPoint
from ..schedule import InitialState, SamplerStep
from ..spec import TlbFactors
from .base import StreamBackend


@dataclass(frozen=True)
class BlockResult:
    """What a backend made of the next frames of B streams.

    Attributes:
        fused: float32 [B, 2, T, 257]: the estimate.
        states: The predictive branch's, then each step's; opaque, as those of ``StreamBackend``.
        clean_ri: float32 [B, 2, T, 257]: the predictive branch's estimate, where it was asked for.
        sigma_z: float32 [B, 1, T, 257]: the first step's noise, likewise.
    """

    fused: FloatArray
    states: tuple[Any, ...]
    clean_ri: FloatArray | None = None
    sigma_z: FloatArray | None = None


class BlockBackend(StreamBackend, Protocol):
    """A backend that computes a block with all its steps in one go; ``BlockSampler`` prefers that."""

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
        """Compute what ``BlockSampler`` does with the two networks, in one go.

        What ``states`` holds stays as it is.

        Args:
            noisy: float32 [B, 3, T, 257], T a multiple of 4.
            late: float32 [B, 3, T, 257]: the frames that the output is of; without look-ahead
                ``noisy`` itself.
            noise: float32 [steps, B, 1, T, 257]: what the sampler draws, in order.
            states: Of the predictive branch and of each step; None where all streams begin.
            start: Coefficients of the first state.
            steps: Coefficients of the reverse steps; none for the predictive branch alone.
            alpha: Weight of the predictive magnitude.
            tlb: Factors of the score network.
            parts: Whether ``clean_ri`` and ``sigma_z`` are wanted, too.

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """


class JointBackend(StreamBackend, Protocol):
    """A backend that has both networks in one graph, for blocks that fit it."""

    def both_next(
        self,
        noisy: FloatArray,
        given: FloatArray,
        states: Sequence[Any],
        point: BlockPoint,
        tlb: TlbFactors,
    ) -> tuple[FloatArray, FloatArray, tuple[Any, Any]] | None:
        """What ``predict_next`` and ``score_next`` return for the next frames, in one call.

        Args:
            noisy: float32 [B, 3, T, 257], T a multiple of 4.
            given: float32 [B, 1, T, 257]: the diffused magnitude but for the part
                of the predictive one.
            states: Of both networks; None at the start.
            point: Time, and weight of that part.
            tlb: Factors of the score network.

        Returns:
            clean_ri, sigma_z and the next states; None where the two calls must be made.

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """
