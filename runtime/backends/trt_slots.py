"""One shape on the device: its memory, its contexts, and the sampler as calls of graphs."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..spec import N_FEATS, NEXT_STATE, STATE
from .base import FEAT_NAMES
from .cuda import Block


@dataclass
class Slot:
    """Everything of one shape.

    Attributes:
        batch: Recordings in one call.
        n_frames: Frames.
        n_steps: Calls of the score network.
        host: Pinned memory: inputs, then the outputs.
        n_inputs: Bytes of the inputs.
        device: All tensors.
        contexts: Execution context of each graph.
        calls: (graph, addresses by tensor) in order.
        n_runs: Calls so far.
        graph: The captured graph, once there.
    """

    batch: int
    n_frames: int
    n_steps: int
    host: Block
    n_inputs: int
    device: Block
    contexts: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    n_runs: int = 0
    graph: Any = None


class Feats(Sequence[int]):
    """What ``predict`` hands to ``score``: addresses of its own device memory."""

    def __init__(self, block: Block, batch: int, n_frames: int) -> None:
        """Take over the memory of a call.

        Args:
            block: All feats.
            batch: Recordings, or streams.
            n_frames: Frames of the call.
        """
        self.block, self.batch, self.n_frames = block, batch, n_frames
        weakref.finalize(self, block.free)

    def __getitem__(self, index: Any) -> Any:
        """An address, or several."""
        return [self.block[name] for name in FEAT_NAMES][index]

    def __len__(self) -> int:
        """How many there are."""
        return N_FEATS


def program(at: Block, n_steps: int) -> Iterator[tuple[str, dict[str, int]]]:
    """The sampler of runtime/sampler.py as calls: (graph, address of every tensor).

    Args:
        at: Device memory of a shape.
        n_steps: Calls of the score network.
    """

    def states(call: int) -> dict[str, int]:
        if f"state_{call}" not in at.offsets:
            return {}
        return {STATE: at[f"state_{call}"], NEXT_STATE: at[f"next_{call}"]}

    feats = {name: at[name] for name in FEAT_NAMES}
    noisy = at["late" if "late" in at.offsets else "noisy"]
    yield "predictive", {
        "noisy": at["noisy"], "clean_ri": at["clean_ri"], **feats, **states(0)
    }  # fmt: skip
    if not n_steps:
        return
    yield "start", {
        "noisy": noisy, "clean_ri": at["clean_ri"], "noise": at["noise_0"],
        "coefficients": at["start"], "mag_p": at["mag_p"], "xt": at["xt_0"],
    }  # fmt: skip
    for i in range(n_steps):
        now, following = at[f"xt_{i % 2}"], at[f"xt_{(i + 1) % 2}"]
        sigma_z = at[f"sigma_z_{min(i, 1)}"]  # the first step's is kept
        yield "score", {
            "xt": now, "t": at[f"t_{i}"], **feats, "tlb_skip": at["tlb_skip"],
            "tlb_backbone": at["tlb_backbone"], "sigma_z": sigma_z, **states(i + 1),
        }  # fmt: skip
        yield "step", {
            "noisy": noisy, "xt": now, "sigma_z": sigma_z,
            # noise i + 1 follows step i; after the last its factor is 0
            "noise": at[f"noise_{min(i + 1, n_steps - 1)}"],
            "coefficients": at[f"step_{i}"], "xt_next": following,
        }  # fmt: skip
    yield "finish", {
        "clean_ri": at["clean_ri"], "mag_p": at["mag_p"], "xt": at[f"xt_{n_steps % 2}"],
        "coefficients": at["finish"], "fused": at["fused"],
    }  # fmt: skip
