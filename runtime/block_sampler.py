"""A causal model's networks and sampler on the next frames of one or several streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from .arrays import FloatArray
from .backends.base import Row, StreamBackend, join_rows
from .backends.blocks import BlockResult
from .manifest import BlockPoint
from .sampler import TINY
from .schedule import InitialState, SamplerStep
from .spec import TlbFactors

Draw = Callable[[int, int, int], FloatArray]  # (draw, first frame, frames) -> noise [T, F]
FADE_FRAMES = 16  # over which steps that return come in


class Lane:
    """What the networks keep of one channel of one stream.

    Attributes:
        draw: Noise by absolute frame of the output.
        first_frame: Frames taken in.
        predictive: State of the predictive branch; None at the start.
        scores: State of each step; None where it begins.
        waiting: Noisy spectra [3, T, F] that wait for the look-ahead.
        n_steps: Steps of the last block; None before the first.
        faded: Frames since steps returned, up to ``FADE_FRAMES``.
        faded_from: Steps before they returned.
    """

    def __init__(self, draw: Draw, lookahead_frames: int, n_freqs: int) -> None:
        """Start a stream."""
        self.draw, self.first_frame = draw, 0
        self.waiting = np.zeros((3, lookahead_frames, n_freqs), np.float32)
        self.n_steps: int | None = None
        self.forget()

    def forget(self) -> None:
        """Let the states begin anew."""
        self.predictive: Row | None = None
        self.scores: list[Row | None] = []
        self.faded, self.faded_from = FADE_FRAMES, 0

    @property
    def rows(self) -> list[Row]:
        """The states that there are."""
        return [row for row in (self.predictive, *self.scores) if row is not None]

    def part_from(self, stacks: set[int], backend: StreamBackend) -> None:
        """Copy this lane's part out of some states, so that those of others are let go.

        Args:
            stacks: Their ids.
            backend: Whose they are.
        """

        def own(row: Row | None) -> Row | None:
            if row is None or id(row.stack) not in stacks:
                return row
            return Row(join_rows(backend, [row]), 0, 1)

        self.predictive, self.scores = own(self.predictive), [own(row) for row in self.scores]

    def late(self, noisy: FloatArray) -> FloatArray:
        """The frames [3, T, F] that belong to the output, when ``noisy`` [3, T, F] comes in."""
        n_wait = self.waiting.shape[1]
        return (
            np.concatenate([self.waiting, noisy], axis=1)[:, : noisy.shape[1]] if n_wait else noisy
        )

    def take(self, noisy: FloatArray) -> None:
        """Count frames [3, T, F] that were processed, or passed."""
        n_wait = self.waiting.shape[1]
        self.first_frame += noisy.shape[1]
        if n_wait:
            self.waiting = np.concatenate([self.waiting, noisy], axis=1)[:, -n_wait:].copy()

    def noise(self, index: int, n_frames: int) -> FloatArray:
        """Noise [T, F] of a draw for the next frames of the output; zeros before the first."""
        first = self.first_frame - self.waiting.shape[1]
        begun = max(0, min(-first, n_frames))
        z = np.zeros((n_frames, self.waiting.shape[2]), np.float32)
        if begun < n_frames:
            z[begun:] = self.draw(index, first + begun, n_frames - begun)
        return z


def _magnitude(ri: FloatArray) -> FloatArray:
    """[B, 2, T, F] -> [B, 1, T, F]."""
    magnitude: FloatArray = np.sqrt(np.square(ri).sum(axis=1, keepdims=True))
    return magnitude


class BlockSampler:
    """Both networks and the sampler on the next frames of one or several streams.

    Of each network call its own state is kept: the predictive branch's and one for every step.
    """

    def __init__(
        self,
        backend: StreamBackend,
        *,
        start: InitialState,
        steps: Sequence[SamplerStep],
        alpha: float,
        tlb: TlbFactors,
        lookahead_frames: int = 0,
        lock: AbstractContextManager[Any] | None = None,
        fewer: Mapping[int, Sequence[SamplerStep]] | None = None,
    ) -> None:
        """Wrap the networks.

        Args:
            backend: The two networks.
            start: Coefficients of the first state.
            steps: Coefficients of the reverse steps; none for the predictive branch alone.
            alpha: Weight of the predictive magnitude in the fusion.
            tlb: Factors of the score network.
            lookahead_frames: By how many frames what leaves is later than what enters.
            lock: Held while the networks run, where several streams share a backend.
            fewer: Coefficients for smaller numbers of steps that a call may ask for.
        """
        self.backend, self.start, self.alpha = backend, start, alpha
        self.tlb, self.lookahead_frames = tlb, lookahead_frames
        self.n_steps = len(steps)
        self._plans = {0: (), **(fewer or {}), self.n_steps: tuple(steps)}
        self._lock = lock or nullcontext()

    def push(
        self, lanes: Sequence[Lane], noisy: FloatArray, n_steps: int | None = None
    ) -> FloatArray:
        """The next frames; nothing has changed if it fails.

        Where more steps are taken than for a lane's block before, they come in over
        ``FADE_FRAMES``, and the states of those that were left out begin anew.

        Args:
            lanes: Of the B streams.
            noisy: float32 [B, 3, T, 257], T a multiple of 4.
            n_steps: Steps; None for all.

        Returns:
            float32 [B, 2, T, 257]: the estimate, ``lookahead_frames`` late; frames before the
            first are zero.

        Raises:
            BackendError: A network failed.
        """
        with self._lock:
            return self._push(lanes, noisy, self.n_steps if n_steps is None else n_steps)

    def _push(self, lanes: Sequence[Lane], noisy: FloatArray, n_steps: int) -> FloatArray:
        n_frames, steps = noisy.shape[2], self._plans[n_steps]
        late = noisy
        if self.lookahead_frames:
            late = np.stack([lane.late(x) for lane, x in zip(lanes, noisy, strict=True)])
        noise = self._noise(lanes, n_steps, n_frames)
        rows: list[list[Row | None]] = [[lane.predictive for lane in lanes]]
        rows += [[self._score_row(lane, index) for lane in lanes] for index in range(n_steps)]
        states = [join_rows(self.backend, row) for row in rows]
        fades = [self._fade(lane, n_steps) for lane in lanes]
        fading = any(begun < FADE_FRAMES for begun, _ in fades)
        run: Any = getattr(self.backend, "run_block", self._call_by_call)  # see BlockBackend
        result: BlockResult = run(
            noisy, late, noise, states, start=self.start, steps=steps, alpha=self.alpha,
            tlb=self.tlb, parts=fading and n_steps > 0,
        )  # fmt: skip
        fused = result.fused
        if fading and n_steps:
            fused = self._faded(result, late, noise, fades)
        for i, lane in enumerate(lanes):
            own: list[Row | None] = [Row(state, i, len(lanes)) for state in result.states]
            lane.predictive, lane.scores = own[0], own[1:]
            begun, lane.faded_from = fades[i]
            lane.faded = min(begun + n_frames, FADE_FRAMES) if n_steps else FADE_FRAMES
            lane.n_steps = n_steps
            lane.take(noisy[i])
        return fused

    @staticmethod
    def _noise(lanes: Sequence[Lane], n_steps: int, n_frames: int) -> FloatArray:
        """What the steps draw for each lane, [steps, B, 1, T, F]; channels of a stream share it."""
        n_freqs = lanes[0].waiting.shape[2]
        noise = np.empty((n_steps, len(lanes), 1, n_frames, n_freqs), np.float32)
        for index in range(n_steps):
            drawn: dict[tuple[Any, int], FloatArray] = {}
            for i, lane in enumerate(lanes):
                key = lane.draw, lane.first_frame
                if key not in drawn:
                    drawn[key] = lane.noise(index, n_frames)
                noise[index, i, 0] = drawn[key]
        return noise

    def _call_by_call(
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
        parts: bool,
    ) -> BlockResult:
        """As ``BlockBackend.run_block``, of a backend that has the two networks alone."""
        f32 = np.float32
        y = late[:, 2:3]
        if len(steps) == 1:
            (step,), given = steps, f32(start.w_y) * y + f32(start.std) * noise[0]
            both: Any = getattr(self.backend, "both_next", None)  # see JointBackend
            point = BlockPoint(step.t, start.w_x0)
            if both is not None and (done := both(noisy, given, states, point, tlb)) is not None:
                clean_ri, sigma_z, states = done
                mag_p = _magnitude(clean_ri)
                mean = f32(step.a) * (f32(start.w_x0) * mag_p + given)
                mean += f32(step.b) * y + f32(step.e) * sigma_z
                fused = self._fusion(clean_ri, mag_p, mean)
                return BlockResult(fused, tuple(states), clean_ri, sigma_z)
        clean_ri, feats, predictive = self.backend.predict_next(noisy, states[0])
        if not steps:
            return BlockResult(clean_ri, (predictive,))
        after, first = [predictive], None
        mag_p = _magnitude(clean_ri)
        xt = f32(start.w_x0) * mag_p + f32(start.w_y) * y + f32(start.std) * noise[0]
        mean, factors = xt, tlb.arrays()
        for index, step in enumerate(steps):
            t = np.full(noisy.shape[0], step.t, np.float32)
            sigma_z, state = self.backend.score_next(xt, t, feats, *factors, states[1 + index])
            after.append(state)
            first = sigma_z if first is None else first
            mean = f32(step.a) * xt + f32(step.b) * y + f32(step.e) * sigma_z
            if index + 1 < len(steps):
                xt = mean + f32(step.n) * noise[index + 1]
        return BlockResult(self._fusion(clean_ri, mag_p, mean), tuple(after), clean_ri, first)

    def _fusion(self, clean_ri: FloatArray, mag_p: FloatArray, mean: FloatArray) -> FloatArray:
        f32 = np.float32
        mag = f32(self.alpha) * mag_p + f32(1.0 - self.alpha) * np.maximum(mean, f32(0.0))
        fused = clean_ri * (mag / np.maximum(mag_p, TINY))
        return fused.astype(np.float32, copy=False)

    @staticmethod
    def _score_row(lane: Lane, index: int) -> Row | None:
        return lane.scores[index] if index < len(lane.scores) else None

    @staticmethod
    def _fade(lane: Lane, n_steps: int) -> tuple[int, int]:
        """How far a lane's steps have come in, in frames, and how many there were before."""
        if lane.n_steps is not None and n_steps > lane.n_steps:
            return 0, lane.n_steps
        if lane.n_steps is not None and n_steps < lane.n_steps:
            return FADE_FRAMES, lane.faded_from
        return lane.faded, lane.faded_from

    def _faded(
        self,
        result: BlockResult,
        late: FloatArray,
        noise: FloatArray,
        fades: Sequence[tuple[int, int]],
    ) -> FloatArray:
        """The estimate where steps have returned: what it would be with those before, going over."""
        clean_ri, sigma_z = result.clean_ri, result.sigma_z
        assert clean_ri is not None  # as asked for
        assert sigma_z is not None
        f32, fused = np.float32, result.fused.copy()
        place = np.arange(fused.shape[2], dtype=np.float32) + f32(0.5)
        fewer: dict[int, FloatArray] = {0: clean_ri}
        if 1 in self._plans and len(noise) > 1:  # the same first call, the last of one
            (only,), start, y = self._plans[1], self.start, late[:, 2:3]
            mag_p = _magnitude(clean_ri)
            xt = f32(start.w_x0) * mag_p + f32(start.w_y) * y + f32(start.std) * noise[0]
            mean = f32(only.a) * xt + f32(only.b) * y + f32(only.e) * sigma_z
            fewer[1] = self._fusion(clean_ri, mag_p, mean)
        for i, (begun, before) in enumerate(fades):
            share = np.minimum((f32(begun) + place) / f32(FADE_FRAMES), f32(1.0))[:, None]
            low = fewer.get(before, clean_ri)[i]
            fused[i] = low + (fused[i] - low) * share
        return fused
