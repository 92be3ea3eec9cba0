"""A causal model's next block of one stream in one call of ONNX Runtime: both networks, one step.

The state is not one tensor here but the graph's own, in memory that is bound once: no splitting, no
joining, nothing allocated. `BlockState` turns it into the one tensor of the other graphs and back,
so that a stream may go on with those at any block.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import FloatArray
from ..errors import ManifestError
from ..manifest import BlockFile, BlockPoint
from ..spec import BLOCK_STATES, FRAME_MULTIPLE, GRAPH_NAMES, N_FREQS, CausalSpec, TlbFactors

Make = Callable[[FloatArray], Any]  # an OrtValue of an array
MAX_BINDINGS = 256  # kept, two for each stream as a rule


@dataclass(frozen=True, eq=False)
class _Memory:
    """The tensors of one network's state."""

    values: list[Any]


class BlockState:
    """One network's state after a block; its memory is used again when nobody holds it any more."""

    def __init__(self, memory: _Memory, origin: BlockState | None = None) -> None:
        """Take ``memory``; ``origin`` is the state before, whose memory may be free after it."""
        self.memory = memory
        self.before = origin.memory if origin is not None else None

    def numpy(self) -> FloatArray:
        """The state as the other graphs have it, float32 [1, S]."""
        parts = [value.numpy().reshape(1, -1) for value in self.memory.values]
        return np.concatenate(parts, axis=1)


def as_array(state: Any) -> Any:
    """A state as the other graphs take it."""
    return state.numpy() if isinstance(state, BlockState) else state


class _Pool:
    """Memory for the states of one network."""

    def __init__(self, make: Make, shapes: Sequence[tuple[int, ...]]) -> None:
        self._make, self.shapes = make, shapes
        self._free: list[_Memory] = []

    def take(self, origin: BlockState | None = None) -> BlockState:
        """Memory that nobody holds, that of the state before last if it can be: it is bound already."""
        wanted = origin.before if origin is not None else None
        if wanted in self._free:
            self._free.remove(wanted)
            memory = wanted
        elif self._free:
            memory = self._free.pop()
        else:
            memory = _Memory([self._make(np.zeros(shape, np.float32)) for shape in self.shapes])
        assert memory is not None
        state = BlockState(memory, origin)
        weakref.finalize(state, self._free.append, memory)
        return state

    def fill(self, flat: FloatArray | None) -> BlockState:
        """A state from the one tensor [1, S] of the other graphs; None is zeros."""
        state, first = self.take(), 0
        for value, shape in zip(state.memory.values, self.shapes, strict=True):
            size = math.prod(shape)
            part = np.zeros(size, np.float32) if flat is None else flat[0, first : first + size]
            value.update_inplace(np.ascontiguousarray(part.reshape(shape), np.float32))
            first += size
        return state


class OrtBlock:
    """The graph of one block in a session."""

    def __init__(self, session: Any, make: Make, block: BlockFile, causal: CausalSpec) -> None:
        """Check the graph.

        Args:
            session: Of the graph, on a CPU.
            make: Makes an ``OrtValue`` of an array.
            block: What the manifest says of it.
            causal: The manifest's.

        Raises:
            ManifestError: The graph does not fit the manifest.
        """
        self._session, self._lock = session, threading.Lock()
        self._t, self._w_x0 = np.float32(block.t), np.float32(block.w_x0)
        shape = (1, 1, FRAME_MULTIPLE, N_FREQS)
        wanted = {"noisy": (1, 3, *shape[2:]), "given": shape}
        inputs = {value.name: tuple(value.shape) for value in session.get_inputs()}
        outputs = {value.name: tuple(value.shape) for value in session.get_outputs()}
        self._names, pools = [], []
        for name, graph in zip(BLOCK_STATES, GRAPH_NAMES, strict=True):
            names = [key for key in inputs if key.startswith(f"{name}.")]
            shapes = [inputs[key] for key in names]
            if sum(map(math.prod, shapes)) != causal.state_size[graph]:
                raise ManifestError(f"{block.file}: the parts of {name} are not the state's size")
            wanted |= dict(zip(names, shapes, strict=True))
            self._names.append(names)
            pools.append(_Pool(make, shapes))
        after = {f"next_{key}": size for key, size in wanted.items() if "state." in key}
        after |= {"clean_ri": (1, 2, *shape[2:]), "sigma_z": shape}
        if inputs != wanted or outputs != after:
            raise ManifestError(
                f"{block.file}: its inputs or outputs are not those of a block's graph: export the "
                "engine again"
            )
        self._pools = pools
        self._given = {key: make(np.zeros(wanted[key], np.float32)) for key in ("noisy", "given")}
        self._made = {
            key: make(np.zeros(after[key], np.float32)) for key in ("clean_ri", "sigma_z")
        }
        self._bindings: dict[tuple[_Memory, ...], Any] = {}

    def fits(self, noisy: FloatArray, point: BlockPoint, tlb: TlbFactors) -> bool:
        """Whether the graph computes these frames."""
        return (
            noisy.shape[0] == 1
            and noisy.shape[2] == FRAME_MULTIPLE
            and (np.float32(point.t), np.float32(point.w_x0)) == (self._t, self._w_x0)
            and tlb == TlbFactors()
        )

    def run(
        self, noisy: FloatArray, given: FloatArray, states: Sequence[Any]
    ) -> tuple[FloatArray, FloatArray, tuple[BlockState, BlockState]]:
        """One block; arguments and results as of ``JointBackend.both_next``.

        What ``states`` holds stays as it is.
        """
        with self._lock:
            before = [
                state if isinstance(state, BlockState) else pool.fill(state)
                for state, pool in zip(states, self._pools, strict=True)
            ]
            after = [pool.take(state) for state, pool in zip(before, self._pools, strict=True)]
            self._given["noisy"].update_inplace(np.ascontiguousarray(noisy))
            self._given["given"].update_inplace(np.ascontiguousarray(given))
            self._session.run_with_iobinding(self._binding(before, after))
            # Copies: what ``numpy`` returns is the memory that the next call writes to.
            clean_ri, sigma_z = (value.numpy().copy() for value in self._made.values())
        return clean_ri, sigma_z, (after[0], after[1])

    def _binding(self, before: Sequence[BlockState], after: Sequence[BlockState]) -> Any:
        """The memory of a call, bound once."""
        key = tuple(state.memory for state in (*before, *after))
        if key not in self._bindings:
            if len(self._bindings) >= MAX_BINDINGS:
                self._bindings.clear()
            binding = self._session.io_binding()
            for name, value in self._given.items():
                binding.bind_ortvalue_input(name, value)
            for name, value in self._made.items():
                binding.bind_ortvalue_output(name, value)
            for names, old, new in zip(self._names, before, after, strict=True):
                for name, left, right in zip(
                    names, old.memory.values, new.memory.values, strict=True
                ):
                    binding.bind_ortvalue_input(name, left)
                    binding.bind_ortvalue_output(f"next_{name}", right)
            self._bindings[key] = binding
        return self._bindings[key]
