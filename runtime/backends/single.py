"""The graphs for one recording at a time: who loads them, and how a batch runs on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..manifest import SINGLE
from ..spec import GRAPH_NAMES
from .base import LoadOptions

WHOLE = ("tlb_skip", "tlb_backbone")  # inputs without a batch


def graphs_for(name: str, device: str, paths: Mapping[str, Path]) -> tuple[Path, Path]:
    """The predictive and the score graph that a backend loads.

    On a CPU a batch is no faster than its recordings one by one, and a graph that holds one alone
    is faster: there it is taken where the engine has it.

    Args:
        name: Backend.
        device: Device.
        paths: What ``Manifest.verify_graphs`` returned.
    """
    ending = SINGLE if device == "cpu" and name in ("ort", "openvino", "openvino-bf16") else ""
    predictive, score = (paths.get(graph + ending, paths[graph]) for graph in GRAPH_NAMES)
    return predictive, score


def is_single(options: LoadOptions) -> bool:
    """Whether the graphs to be loaded are those for one recording at a time."""
    return options.predictive.name in {graph.file for graph in options.manifest.single.values()}


def wait_for_steps(options: LoadOptions) -> bool:
    """Whether both graphs are loaded when somebody asks for a step, and ``ESTIMATE`` at the start.

    Where the model takes none by default, most processes that do not say so never do. As outputs of the
    graph the feats would stay in memory to the end of a call. On a GPU, where loading may take minutes,
    and for live sound, which does not wait, both graphs are ready from the start.

    Args:
        options: Of the backend.
    """
    manifest = options.manifest
    steps = options.with_steps or manifest.sampler.n_steps
    return options.device == "cpu" and manifest.causal is None and not steps


def verify_again(options: LoadOptions, graph: str) -> None:
    """Check a graph's file once more, as it is loaded long after it was checked.

    Args:
        options: Of the backend.
        graph: "predictive" or "score".

    Raises:
        ManifestError: It is gone, or was exchanged since.
    """
    # The weights of a graph for one recording lie in the file of the other one.
    for ending in ("", SINGLE) if is_single(options) else ("",):
        options.manifest.verify_graph(options.score.parent, f"{graph}{ending}")


def each_recording(inputs: Mapping[str, Any], single: bool) -> list[dict[str, Any]]:
    """The calls that a graph is run with: of one for one recording, a call for each of the batch.

    Args:
        inputs: The graph's, the first of them with the batch in front.
        single: Whether it is such a graph.
    """
    batch = len(next(iter(inputs.values()))) if single else 1
    if batch == 1:
        return [dict(inputs)]
    return [
        {name: value if name in WHOLE else value[i : i + 1] for name, value in inputs.items()}
        for i in range(batch)
    ]
