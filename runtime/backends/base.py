"""The interface of every inference engine, and the checks that all of them make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..arrays import FloatArray
from ..errors import BackendError, InputError, NonFiniteError
from ..manifest import Manifest
from ..schedule import InitialState, SamplerStep
from ..spec import (
    FRAME_MULTIPLE,
    MIN_FRAMES,
    N_FEATS,
    PREDICTIVE_INPUTS,
    SCORE_OUTPUTS,
    STATE,
    CausalSpec,
    TensorSpec,
    TlbFactors,
    predictive_outputs,
    score_inputs,
)


class Backend(Protocol):
    """The two networks on one device.

    Attributes:
        name: Backend name, such as "ort".
        device: Device in use, such as "cpu".
    """

    name: str
    device: str

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """Run the predictive graph.

        Args:
            noisy: float32 [B, 3, T, 257], T a multiple of 4, at least 32.

        Returns:
            float32 [B, 2, T, 257], and the feats: opaque, to be handed to ``score`` as they are.

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """Run the score graph.

        Args:
            xt: float32 [B, 1, T, 257], state of the diffusion.
            t: float32 [B], diffusion time.
            feats: What ``predict`` returned for the same B and T.
            tlb_skip: float32 [2, 2].
            tlb_backbone: float32 [2, 2].

        Returns:
            float32 [B, 1, T, 257]: sigma z.

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """

    def close(self) -> None:
        """Release the engine; later calls raise BackendError."""


class EstimateBackend(Backend, Protocol):
    """A backend that computes less where nobody takes a step; ``predicted`` asks for it."""

    def estimate(self, noisy: FloatArray) -> FloatArray:
        """Run the predictive graph for its first output alone.

        Args:
            noisy: float32 [B, 3, T, 257], as for ``predict``.

        Returns:
            float32 [B, 2, T, 257].

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """


def predicted(backend: Backend, noisy: FloatArray) -> FloatArray:
    """The predictive branch's spectrum, from a backend that may have a shorter way to it.

    Args:
        backend: The two networks.
        noisy: float32 [B, 3, T, 257].

    Returns:
        float32 [B, 2, T, 257].

    Raises:
        InputError: Wrong dtype or shape.
        BackendError: The engine failed or returned non-finite values.
    """
    estimate: Any = getattr(backend, "estimate", None)  # see EstimateBackend
    if estimate is None:
        return backend.predict(noisy)[0]
    clean_ri: FloatArray = estimate(noisy)
    return clean_ri


class StreamBackend(Protocol):
    """The two networks of a causal model on one device; states are opaque, None starts a stream.

    Attributes:
        name: Backend name, such as "ort".
        device: Device in use, such as "cpu".
    """

    name: str
    device: str

    def predict_next(self, noisy: FloatArray, state: Any) -> tuple[FloatArray, Sequence[Any], Any]:
        """Run the predictive graph on the next frames of B streams.

        Args:
            noisy: float32 [B, 3, T, 257], T a multiple of 4.
            state: What the call before returned; None at the start.

        Returns:
            float32 [B, 2, T, 257], the feats for ``score_next``, and the next state.

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """

    def score_next(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
        state: Any,
    ) -> tuple[FloatArray, Any]:
        """Run the score graph on the frames of the last ``predict_next``.

        Args:
            xt: float32 [B, 1, T, 257], state of the diffusion.
            t: float32 [B], diffusion time.
            feats: What ``predict_next`` returned.
            tlb_skip: float32 [2, 2].
            tlb_backbone: float32 [2, 2].
            state: What the same step's call before returned; None at the start.

        Returns:
            float32 [B, 1, T, 257]: sigma z, and the next state.

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """


class SamplerBackend(Backend, Protocol):
    """A backend that runs the whole sampler on its device; ``sampler.sample`` prefers that."""

    def run_sampler(
        self,
        noisy: FloatArray,
        noise: FloatArray,
        *,
        start: InitialState,
        steps: Sequence[SamplerStep],
        alpha: float,
        tlb: TlbFactors,
    ) -> FloatArray:
        """Compute what ``sampler.sample`` does, in one go.

        Args:
            noisy: float32 [B, 3, T, 257].
            noise: float32 [steps, B, 1, T, 257]: what the sampler draws, in order.
            start: Coefficients of the first state.
            steps: Coefficients of the reverse steps; none for the predictive branch alone.
            alpha: Weight of the predictive magnitude.
            tlb: Factors of the score network.

        Returns:
            float32 [B, 2, T, 257].

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """


def check_array(
    spec: TensorSpec, value: object, sizes: dict[str, int], least: int = MIN_FRAMES
) -> None:
    """Check one array against its description; dynamic sizes are collected and compared.

    Args:
        spec: The description.
        value: The array.
        sizes: Sizes of "B" and "T" met so far; new ones are added.
        least: Least number of frames.

    Raises:
        InputError: Not an array, or another dtype or shape.
    """

    def differs(end: str = "") -> InputError:  # texts only then: live sound comes every 32 ms
        wanted = f"{spec.dtype} [{', '.join('?' if s is None else str(s) for s in spec.shape)}]"
        got = f"{type(value).__name__}; expected an array,"
        if isinstance(value, np.ndarray):
            got = f"{value.dtype} {list(value.shape)}; expected"
        return InputError(f"{spec.name} is {got} {wanted}{end}")

    if not isinstance(value, np.ndarray) or value.ndim != len(spec.shape):
        raise differs()
    if value.dtype != spec.dtype:
        raise differs(": cast it with .astype")
    for size, want in zip(value.shape, spec.shape, strict=True):
        expected = sizes.setdefault(want, size) if isinstance(want, str) else want
        if size < 1 or (expected is not None and size != expected):
            raise differs(f" with {sizes} and no empty axis")
    n_frames = sizes["T"] if "T" in spec.shape else least
    if n_frames < least or n_frames % FRAME_MULTIPLE:
        raise InputError(
            f"{spec.name} has T = {n_frames} frames; expected a multiple of {FRAME_MULTIPLE}, at "
            f"least {least}: pad with zeros and crop after"
        )


def check_predict(noisy: object, least: int = MIN_FRAMES) -> dict[str, int]:
    """Check the input of ``predict`` and return its sizes "B" and "T".

    Args:
        noisy: The array.
        least: Least number of frames; a causal model takes a block of four.

    Raises:
        InputError: Wrong dtype or shape.
    """
    sizes: dict[str, int] = {}
    check_array(PREDICTIVE_INPUTS[0], noisy, sizes, least)
    return sizes


def check_score(
    xt: object,
    t: object,
    feats: Sequence[Any],
    tlb_skip: object,
    tlb_backbone: object,
    least: int = MIN_FRAMES,
) -> dict[str, int]:
    """Check the inputs of ``score`` but the opaque feats' contents; return sizes "B" and "T".

    Args:
        xt: State.
        t: Times.
        feats: What ``predict`` returned.
        tlb_skip: Factors.
        tlb_backbone: Factors.
        least: Least number of frames.

    Raises:
        InputError: Wrong dtype, shape or number of feats.
    """
    sizes: dict[str, int] = {}
    by_name = {spec.name: spec for spec in score_inputs()}
    check_array(by_name["xt"], xt, sizes, least)
    check_array(by_name["t"], t, sizes)
    check_array(by_name["tlb_skip"], tlb_skip, sizes)
    check_array(by_name["tlb_backbone"], tlb_backbone, sizes)
    if len(feats) != N_FEATS:
        raise InputError(f"score got {len(feats)} feats; expected the {N_FEATS} of predict")
    return sizes


def score_feeds(
    xt: FloatArray,
    t: FloatArray,
    feats: Sequence[Any],
    tlb_skip: FloatArray,
    tlb_backbone: FloatArray,
    least: int = MIN_FRAMES,
) -> tuple[dict[str, int], dict[str, Any]]:
    """What the score graph is fed with, checked as by ``check_score``.

    Returns:
        Sizes "B" and "T", and the inputs by name.

    Raises:
        InputError: As ``check_score``.
    """
    sizes = check_score(xt, t, feats, tlb_skip, tlb_backbone, least)
    feeds = {"xt": np.ascontiguousarray(xt), "t": t, **dict(zip(FEAT_NAMES, feats, strict=True))}
    return sizes, {**feeds, "tlb_skip": tlb_skip, "tlb_backbone": tlb_backbone}


def check_output(spec: TensorSpec, value: object, sizes: dict[str, int], source: str) -> FloatArray:
    """Check what an engine returned.

    Args:
        spec: The description.
        value: The array.
        sizes: Sizes of "B" and "T" of the call.
        source: Graph and backend, for the message.

    Raises:
        BackendError: Wrong dtype or shape, or a non-finite value.
    """
    try:
        check_array(spec, value, dict(sizes), FRAME_MULTIPLE)
    except InputError as error:
        raise BackendError(f"{source} returned a wrong tensor: {error}") from None
    array: FloatArray = value  # type: ignore[assignment]  # checked above
    if not bool(np.isfinite(array).all()):
        raise NonFiniteError(
            f"{source} returned non-finite values in {spec.name}; nothing was written: try another "
            "backend or the fp32 engine, and report the recording"
        )
    return array


def check_whole(causal: CausalSpec | None) -> None:
    """Refuse ``predict`` and ``score`` of a causal model, whose graphs need the state of a stream.

    ONNX Runtime would miss an input; OpenVINO takes an empty tensor in its place, and fails inside or
    ends the process.

    Args:
        causal: The manifest's.

    Raises:
        InputError: The model is causal.
    """
    if causal is not None:
        raise InputError(
            "this model is causal: predict and score were called, which hand on no state; use "
            "predict_next and score_next"
        )


def stream_state(causal: CausalSpec | None, graph: str, batch: int, state: Any) -> Any:
    """The state to go on with: what was given, or zeros at the start of the streams.

    Args:
        causal: The manifest's.
        graph: "predictive" or "score".
        batch: Streams.
        state: What the call before returned, or None.

    Raises:
        InputError: The model hears whole recordings, or the state is of another number of streams.
    """
    if causal is None:
        raise InputError(
            "this model hears whole recordings and has no state; expected a causal one (live)"
        )
    size = causal.state_size[graph]
    if state is None:
        return np.zeros((batch, size), np.float32)
    if isinstance(state, np.ndarray):
        check_array(TensorSpec(STATE, "float32", (batch, size)), state, {})
    return state


@dataclass(frozen=True)
class Row:
    """One stream's part of the state of several.

    Attributes:
        stack: What a backend returned for ``count`` streams.
        index: Which of them.
        count: How many.
    """

    stack: Any
    index: int
    count: int


class JoiningBackend(StreamBackend, Protocol):
    """A backend that joins the states of streams itself, where they lie."""

    def join_states(self, rows: Sequence[Row | None]) -> Any:
        """The state of streams that were apart; those that are None begin with zeros.

        Args:
            rows: One a stream; not all are None.
        """


def join_rows(backend: StreamBackend, rows: Sequence[Row | None]) -> Any:
    """The state of several streams; not copied where they were together before.

    Args:
        backend: Whose they are.
        rows: One a stream; None where it begins.

    Returns:
        What the backend takes; None if all begin.
    """
    known = [row for row in rows if row is not None]
    if not known:
        return None
    first = known[0]
    if len(known) == len(rows) == first.count and all(
        row.stack is first.stack and row.index == i for i, row in enumerate(known)
    ):
        return first.stack
    join: Any = getattr(backend, "join_states", None)  # see JoiningBackend
    if join is not None:
        return join(rows)
    arrays = [None if row is None else _on_host(row.stack)[row.index] for row in rows]
    some = next(array for array in arrays if array is not None)
    return np.stack([np.zeros_like(some) if array is None else array for array in arrays])


def _on_host(stack: Any) -> FloatArray:
    host: FloatArray = stack if isinstance(stack, np.ndarray) else stack.numpy()
    return host


FEAT_NAMES = tuple(f"feat_{i}" for i in range(N_FEATS))
PREDICT_OUT = predictive_outputs()[0]
SCORE_OUT = SCORE_OUTPUTS[0]


@dataclass(frozen=True)
class LoadOptions:
    """What a backend needs to load an engine folder.

    Attributes:
        predictive: Path of the predictive graph, its hash already verified.
        score: Path of the score graph, likewise.
        manifest: The folder's manifest.
        device: Requested device; never "auto".
        threads: CPU threads, or None for the engine's own choice.
        tf32: Whether a GPU may round float32 products to TF32.
        workers: Windows that a CPU computes at a time, and the threads of each.
        block: Path of a causal model's graph of one block, likewise; None where it is not used.
        with_steps: Whether steps are known to come, so that both graphs are loaded at once.
    """

    predictive: Path
    score: Path
    manifest: Manifest
    device: str
    threads: int | None
    tf32: bool = False
    workers: tuple[int, int] = (1, 1)
    block: Path | None = None
    with_steps: bool = False

    @property
    def for_a_worker(self) -> LoadOptions | None:
        """Those of the networks that several threads call at a time; None where none do."""
        count, each = self.workers
        whole = self.manifest.causal is None  # blocks of a stream follow one another
        return replace(self, threads=each, workers=(1, 1)) if whole and count > 1 else None
