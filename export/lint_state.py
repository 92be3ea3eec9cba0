"""What the precision lint asks of a causal graph's state, and of sums over time."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from dvpd.runtime.spec import NEXT_STATE, STATE

MOVES = {
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split",
    "Concat", "Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "Gather",
}  # fmt: skip


def size_tables(model: onnx.ModelProto) -> set[str]:
    """Tensors made of sizes and constants alone, such as decays from block to block.

    Args:
        model: The graph.
    """
    constants, tables = {t.name for t in model.graph.initializer}, set[str]()
    for node in model.graph.node:
        inputs = {name for name in node.input if name}
        if node.op_type == "Shape" or (inputs & tables and inputs <= constants | tables):
            tables.update(node.output)
    return tables


def state_faults(
    model: onnx.ModelProto,
    types: Mapping[str, int],
    makers: Mapping[str, onnx.NodeProto],
    users: Mapping[str, list[onnx.NodeProto]],
) -> list[tuple[str, str, str]]:
    """A part of the state that is computed from itself, call after call, must stay in float32.

    Sums, means and the attention's memory would lose in half what a block adds. Frames that are only
    kept, and moved, come back as they were: they may pass through half.

    Args:
        model: A half graph with a state.
        types: Element type of every tensor.
        makers: Tensor -> the node that makes it.
        users: Tensor -> the nodes that take it.

    Returns:
        Rule, node and text of each fault.
    """
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    slices, joined = users.get(STATE, []), makers.get(NEXT_STATE)
    begins = [constants.get(n.input[1]) if n.op_type == "Slice" else None for n in slices]
    known = [int(begin[0]) for begin in begins if begin is not None]
    parts = joined.input if joined is not None and joined.op_type == "Concat" else []
    if not parts or (len(known), len(slices)) != (len(parts), len(parts)):
        text = "its parts cannot be followed to those of the next one; nothing is proved of them"
        return [("state", STATE, text)]
    faults = []
    ordered = [node for _, node in sorted(zip(known, slices, strict=True), key=lambda p: p[0])]
    for first, part in zip(ordered, parts, strict=True):
        for node in _between(first, part, makers, users):
            if types.get(node.output[0]) == TensorProto.FLOAT16:
                text = "a part of the state is computed from itself through half, block after block"
                title = f"{node.name} ({node.op_type})"
                faults.append(("recurrence", title, text + ": keep float32"))
                break
    return faults


def _between(
    first: onnx.NodeProto,
    last: str,
    makers: Mapping[str, onnx.NodeProto],
    users: Mapping[str, list[onnx.NodeProto]],
) -> list[onnx.NodeProto]:
    """Nodes from ``first`` to the tensor ``last``; none where values are only moved and cast."""
    sources, heads = set[str](), [last]
    while heads:
        name = heads.pop()
        if name not in sources:
            sources.add(name)
            heads += [n for n in makers[name].input if n] if name in makers else []
    path: dict[str, onnx.NodeProto] = {}
    nodes = [first]
    while nodes:
        node = nodes.pop()
        if node.output[0] in path or sources.isdisjoint(node.output):
            continue
        path[node.output[0]] = node
        nodes += [user for name in node.output for user in users.get(name, [])]
    moved = all(node.op_type in MOVES | {"Cast"} for node in path.values())
    return [] if moved else list(path.values())
