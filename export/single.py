"""The graphs for one recording at a time, which CPUs run; they hold no weights of their own.

The contract's graphs have a dynamic batch, for which ONNX has no convolution with weights of run
time: LISA's stripes are shifted multiply-adds there, each a pass over memory. With a batch of 1
they are three convolutions. The weights are the same, so these graphs point into the files of the
others (ONNX's external data): a tenth of their size, and one hash covers each weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from dvpd.lisa import LISA
from dvpd.model import DVPD
from dvpd.runtime.manifest import SINGLE, Manifest, manifest_to_metadata
from dvpd.runtime.spec import GRAPH_NAMES

from .graphs import build_graph

LEAST_BYTES = 256  # smaller constants stay inside


def pays(model: DVPD, precision: str) -> bool:
    """Whether a model gets graphs for one recording: float32, whole recordings, LISA.

    Half is for GPUs. A causal model has a graph of one block instead (`export/block.py`).

    Args:
        model: The model.
        precision: "fp32" or "fp16".
    """
    has_stripes = any(isinstance(module, LISA) for module in model.modules())
    return precision == "fp32" and has_stripes and not model.config.causal


def share_weights(model: onnx.ModelProto, path: Path) -> None:
    """Let constants of ``model`` point to where the same bytes lie in another graph's file.

    Args:
        model: The graph; changed in place, and to be saved beside the file.
        path: The other graph, its weights inside.
    """
    whole = path.read_bytes()
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        offset = whole.find(tensor.raw_data) if size >= LEAST_BYTES else -1
        if offset < 0:
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", path.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))


def save_sharing(
    graph: onnx.ModelProto, manifest: Manifest, path: Path, others: Iterable[Path]
) -> None:
    """Write a graph with the manifest as metadata, its weights in other graphs' files.

    Args:
        graph: The graph; changed in place.
        manifest: Of the engine.
        path: Where it goes.
        others: Graphs in the same folder, complete.
    """
    graph.producer_name, graph.producer_version = "dvpd", manifest.version
    onnx.helper.set_model_props(graph, manifest_to_metadata(manifest))
    for other in others:
        share_weights(graph, other)
    path.write_bytes(graph.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)


def write_single(model: DVPD, manifest: Manifest, paths: Mapping[str, Path]) -> dict[str, Path]:
    """Write both graphs for one recording beside the others.

    Args:
        model: What `prepare` returned for float32.
        manifest: Of the engine; it becomes the graphs' metadata.
        paths: The contract's graphs, complete.

    Returns:
        "predictive" and "score" -> path.

    Raises:
        UnsupportedOperator: The configuration uses an operator without translation.
    """
    written = {}
    for name in GRAPH_NAMES:
        graph = build_graph(model, name, manifest.precision, single=True)
        written[name] = paths[name].with_name(f"{name}{SINGLE}.onnx")
        save_sharing(graph, manifest, written[name], (paths[name],))
    return written
