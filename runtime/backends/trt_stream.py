"""TensorRT on live streams: the states stay on the device, a block is one CUDA graph.

Streams come and go, so the number of those that are computed together changes all the time: shapes
are made for 1, 2, 4, 8 ... streams, and a batch in between leaves places empty. A state is copied
from its own memory to the shape's and back, on the device, around the captured graph; so a call that
fails has changed nothing, and streams may be together in any order the next time.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import FloatArray
from ..errors import InputError
from ..schedule import InitialState, SamplerStep
from ..spec import FRAME_MULTIPLE, N_FREQS, NEXT_STATE, STATE, CausalSpec, TlbFactors
from .base import PREDICT_OUT, SCORE_OUT, Row, check_output, check_predict, check_score
from .blocks import BlockResult
from .cuda import Block, Cuda
from .trt import TrtBackend

FLOAT_BYTES = 4
SPARE = (
    4  # pieces of memory of a size that are kept for the next states: all of a block with 3 steps
)


def _places(count: int) -> int:
    """The smallest power of two that is not below ``count``."""
    return 1 << (count - 1).bit_length()


class StateMemory:
    """Device memory of states; what is let go is used again, for no block may wait for an allocation."""

    def __init__(self, cuda: Cuda) -> None:
        """Start without any.

        Args:
            cuda: The device.
        """
        self._cuda, self._lock, self._closed = cuda, threading.Lock(), False
        self._spare: dict[int, list[Block]] = {}

    def take(self, n_floats: int) -> Block:
        """Memory for one array of floats.

        Raises:
            DeviceMemoryError: There is no room.
        """
        with self._lock:
            spare = self._spare.get(n_floats)
            if spare:
                return spare.pop()
        return Block(self._cuda, {STATE: ((n_floats,), "float32")})

    def give(self, n_floats: int, block: Block) -> None:
        """Take back what ``take`` gave; nothing is freed here, for a stream may be capturing."""
        with self._lock:
            if not self._closed:
                self._spare.setdefault(n_floats, []).append(block)
                return
        block.free()

    def trim(self, keep: int = SPARE) -> None:
        """Free what is beyond ``keep`` of each size; nothing is at work on the device."""
        with self._lock:
            surplus = [block for spare in self._spare.values() for block in spare[keep:]]
            self._spare = {n: spare[:keep] for n, spare in self._spare.items() if spare[:keep]}
        for block in surplus:
            block.free()

    def close(self) -> None:
        """Free everything that nobody holds; the rest as it is let go."""
        self.trim(0)
        with self._lock:
            self._closed = True


class State:
    """States of several streams on the device.

    Attributes:
        count: Streams.
        size: Floats of each.
        pointer: Address of the first.
    """

    def __init__(self, memory: StateMemory, count: int, size: int) -> None:
        """Take memory; it is given back when nobody holds this any more."""
        self.count, self.size = count, size
        n_floats = _places(count) * size
        block = memory.take(n_floats)
        self.pointer = block[STATE]
        weakref.finalize(self, memory.give, n_floats, block)

    @property
    def stride(self) -> int:
        """Bytes of one stream's."""
        return self.size * FLOAT_BYTES


class TrtStreamBackend(TrtBackend):
    """A causal model's two graphs as TensorRT plans; see ``TrtBackend`` and ``BlockBackend``."""

    max_slots = 24  # 1 to 64 streams with the steps asked for, with one and with none

    def __init__(self, *args: Any, **options: Any) -> None:
        """See ``TrtBackend``."""
        super().__init__(*args, **options)
        causal = self._options.manifest.causal
        if causal is None:
            raise InputError("this model hears whole recordings; expected a causal one (live)")
        self._causal: CausalSpec = causal
        self._memory = StateMemory(self._cuda)

    def _state(self, graph: str, batch: int) -> State:
        return State(self._memory, batch, self._causal.state_size[graph])

    def _known(self, graph: str, batch: int, state: Any) -> State | None:
        """What a call before returned, if it fits."""
        size = self._causal.state_size[graph]
        if state is None:
            return None
        if isinstance(state, State) and (state.count, state.size) == (batch, size):
            return state
        raise InputError(
            f"state is not what a call of the {graph} graph returned here for {batch} streams; "
            "expected that, or None at the start"
        )

    def _begun(self, graph: str, batch: int, state: Any) -> State:
        """The state to go on with; zeros at the start."""
        known = self._known(graph, batch, state)
        if known is None:
            known = self._state(graph, batch)
            self._cuda.zero(known.pointer, batch * known.stride, self._stream)
        return known

    def predict_next(self, noisy: FloatArray, state: Any) -> tuple[FloatArray, Sequence[Any], Any]:
        """The predictive graph by itself, a slow path; see ``StreamBackend.predict_next``."""
        sizes = check_predict(noisy, FRAME_MULTIPLE)
        self._check_sizes(sizes["B"], sizes["T"])
        with self._cuda.current():
            before = self._begun("predictive", sizes["B"], state)
            after = self._state("predictive", sizes["B"])
            addresses = {STATE: before.pointer, NEXT_STATE: after.pointer}
            out, feats = self._once("predictive", {"noisy": noisy}, None, addresses)
        source = f"the predictive graph ({self.name})"
        return check_output(PREDICT_OUT, out, sizes, source), feats, after

    def score_next(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
        state: Any,
    ) -> tuple[FloatArray, Any]:
        """The score graph by itself, a slow path; see ``StreamBackend.score_next``."""
        sizes = check_score(xt, t, feats, tlb_skip, tlb_backbone, FRAME_MULTIPLE)
        self._check_sizes(sizes["B"], sizes["T"])
        own = self._own_feats(feats, sizes)
        inputs = {"xt": xt, "t": t, "tlb_skip": tlb_skip, "tlb_backbone": tlb_backbone}
        with self._cuda.current():
            before = self._begun("score", sizes["B"], state)
            after = self._state("score", sizes["B"])
            addresses = {STATE: before.pointer, NEXT_STATE: after.pointer}
            out, _ = self._once("score", inputs, own, addresses)
        return check_output(SCORE_OUT, out, sizes, f"the score graph ({self.name})"), after

    def join_states(self, rows: Sequence[Row | None]) -> State:
        """See ``JoiningBackend.join_states``; copied on the device."""
        some = next(row.stack for row in rows if row is not None)
        with self._cuda.current():
            joined = State(self._memory, len(rows), some.size)
            n_bytes = joined.stride
            for i, row in enumerate(rows):
                target = joined.pointer + i * n_bytes
                if row is None:
                    self._cuda.zero(target, n_bytes, self._stream)
                else:
                    source = row.stack.pointer + row.index * n_bytes
                    self._cuda.copy(target, source, n_bytes, self._stream)
            self._cuda.synchronize(self._stream)
        return joined

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
        """A block with all its steps as one CUDA graph; see ``BlockBackend.run_block``.

        Batches beyond the profile, or beyond the GPU's memory, are run in parts.
        """
        sizes = check_predict(noisy, FRAME_MULTIPLE)
        batch, n_frames, n_steps = sizes["B"], sizes["T"], len(steps)
        check_predict(late, FRAME_MULTIPLE)
        wanted = (n_steps, batch, 1, n_frames, N_FREQS)
        if late.shape != noisy.shape or noise.shape != wanted or noise.dtype != np.float32:
            raise InputError(
                f"late is {list(late.shape)}, noise {noise.dtype} {list(noise.shape)}; expected "
                f"{list(noisy.shape)} and float32 {list(wanted)}"
            )
        graphs = ["predictive"] + n_steps * ["score"]
        pairs = zip(graphs, states, strict=True)
        before = [self._known(graph, batch, state) for graph, state in pairs]
        self._check_sizes(batch, n_frames, split=True)
        with self._cuda.current():
            self._memory.trim()
            after = [self._state(graph, batch) for graph in graphs]
        two, one = (np.empty((batch, n, n_frames, N_FREQS), np.float32) for n in (2, 1))
        results = [two, np.empty_like(two), one] if parts and n_steps else [two]

        def work(part: slice) -> None:
            count = part.stop - part.start
            slot = self._slot(min(_places(count), self.profile.batch[2]), n_frames, n_steps)
            if "late" in slot.host.offsets:
                slot.host.view("late")[:count] = late[part]
            self._fill(slot, noisy, part, noise[:, part], start, steps, alpha, tlb)
            kept = []
            for i, (old, new) in enumerate(zip(before, after, strict=True)):
                at, n_bytes = part.start * new.stride, count * new.stride
                here, there = slot.device[f"state_{i}"], slot.device[f"next_{i}"]
                if old is None:
                    self._cuda.zero(here, n_bytes, self._stream)
                else:
                    self._cuda.copy(here, old.pointer + at, n_bytes, self._stream)
                kept.append((new.pointer + at, there, n_bytes))
            for array, found in zip(results, self._run(slot, len(results), kept), strict=True):
                array[part] = found[:count]

        self._in_parts(batch, work)
        check_output(PREDICT_OUT, results[0], sizes, f"the sampler ({self.name})")
        return BlockResult(results[0], tuple(after), *results[1:])

    def close(self) -> None:
        """Release everything; states that somebody still holds go with him."""
        super().close()
        self._memory.close()
