"""What the exported graphs cost, from the ONNX files and their inferred shapes alone.

No engine runs and torch is not needed: arithmetic by module and operator, bytes, the largest set
of live activations. The names of modules and operators are those of ``dvpd/macs.py``, which counts
the PyTorch model; the two must agree exactly (``benchmarks/macs.py`` says whether they do).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpd.runtime.errors import InputError
from dvpd.runtime.manifest import SINGLE, Manifest
from dvpd.runtime.spec import FRAME_MULTIPLE, GRAPH_NAMES, MIN_FRAMES, N_FREQS, TLB_SHAPE

CONVOLUTION, MATRIX, PRODUCT = "convolution", "matrix product", "elementwise product"
ROOT = "net."  # the export's wrapper around a branch

_ELEMENTWISE = {
    "Add": "add", "Sub": "subtract", "Div": "divide", "Neg": "negate", "Max": "maximum",
    "Sum": "add", "Sigmoid": "sigmoid", "Relu": "relu", "LeakyRelu": "leaky relu",
    "Tanh": "tanh", "Exp": "exp", "Log": "log", "Sin": "sin", "Cos": "cos", "Sqrt": "sqrt",
    "Softplus": "softplus",
}  # fmt: skip
_REDUCTIONS = {
    "ReduceMean": "mean", "ReduceSum": "sum", "ReduceMin": "min", "ReduceMax": "max",
    "LayerNormalization": "layer norm",
}  # fmt: skip
# These move or convert data, and compute nothing.
_MOVES = {
    "Slice", "Concat", "Split", "Transpose", "Pad", "Gather", "Cast", "DepthToSpace",
    "SpaceToDepth", "Expand", "Where",
}  # fmt: skip
# These change a shape alone: no engine moves a byte.
_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity"}

Key = tuple[str, str]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class NodeCost:
    """What one node does in one call.

    Attributes:
        kind: ONNX operator type.
        groups: Groups of a convolution, 1 for all else.
        macs: Multiply-accumulates of a convolution or matrix product.
        operations: Other arithmetic: elements written, of reductions elements read.
        inputs: Activations that it reads.
        outputs: Activations that it writes.
        weight_bytes: Constants that it reads.
        half: Whether what it writes is half precision.
        view: Whether it changes a shape alone.
    """

    kind: str
    groups: int
    macs: int
    operations: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_bytes: int
    half: bool
    view: bool


@dataclass(frozen=True)
class GraphCosts:
    """Costs of one call of one graph.

    Attributes:
        macs: Multiply-accumulates by (module, operator).
        elementwise: Other arithmetic by (module, operator): elements written, of reductions
            elements read.
        bytes_moved: Bytes by module if every node reads its inputs from memory and writes its
            outputs: what a runtime without fusion moves.
        bytes_least: Inputs, outputs and weights once: what a perfectly fused one moves.
        peak_activation_bytes: Largest sum of tensors that are alive together, nodes in file order,
            inputs included, weights not.
        weight_bytes: Constants of the graph.
        weights: Their number, integers left out.
        nodes: Nodes by operator type.
        outputs: Shapes of the outputs.
        work: Every node, in file order.
        tensors: Every activation -> (elements, bytes), inputs and outputs included.
    """

    macs: Counter[Key]
    elementwise: Counter[Key]
    bytes_moved: Counter[str]
    bytes_least: int
    peak_activation_bytes: int
    weight_bytes: int
    weights: int
    nodes: dict[str, int]
    outputs: dict[str, Shape]
    work: tuple[NodeCost, ...]
    tensors: dict[str, tuple[int, int]]

    @property
    def total_macs(self) -> int:
        """All multiply-accumulates."""
        return sum(self.macs.values())


def _load(path: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise InputError("counting a graph needs onnx: pip install onnx") from None
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf raises its own types
        raise InputError(f"{path}: not a readable ONNX file ({error})") from None


def graph_costs(path: Path, shapes: Mapping[str, Sequence[int]]) -> GraphCosts:
    """Count one graph.

    Args:
        path: The ONNX file.
        shapes: Sizes of every input.

    Raises:
        InputError: The file cannot be read, an input's sizes are missing, a shape cannot be
            inferred, or an operator is not known to the counter.
    """
    model = _load(path)
    import onnx

    graph = model.graph
    del graph.value_info[:]
    for value in graph.input:
        if value.name not in shapes:
            raise InputError(f"{path}: no sizes given for the input {value.name}")
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, shapes[value.name]))
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise InputError(f"{path}: shapes cannot be inferred ({error})") from None
    sizes: dict[str, Shape] = {}
    width: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        sizes[value.name] = tuple(d.dim_value for d in kind.shape.dim)
        width[value.name] = _item_bytes(kind.elem_type)
        if any(d.WhichOneof("value") != "dim_value" for d in kind.shape.dim):
            raise InputError(f"{path}: the shape of {value.name} is not known after inference")
    constants = {x.name for x in graph.initializer}
    floats = 0
    for x in graph.initializer:
        sizes[x.name], width[x.name] = tuple(x.dims), _item_bytes(x.data_type)
        if x.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            floats += math.prod(x.dims)

    def n_bytes(name: str) -> int:
        return math.prod(sizes[name]) * width[name] if name else 0

    macs: Counter[Key] = Counter()
    other: Counter[Key] = Counter()
    moved: Counter[str] = Counter()
    work = []
    for node in graph.node:
        module = node.name.rpartition("/")[0]
        module = module.removeprefix(ROOT) if module != ROOT[:-1] else ""
        costs = _cost(node, sizes, path)
        for operator, count in costs:
            product = operator in (CONVOLUTION, MATRIX, PRODUCT)
            (macs if product else other)[module, operator] += count
        work.append(_node_cost(node, costs, constants, n_bytes, width[node.output[0]]))
        if node.op_type not in _VIEWS:
            moved[module] += sum(n_bytes(name) for name in (*node.input, *node.output))
    ends = {x.name for x in (*graph.input, *graph.output)}
    weight_bytes = sum(n_bytes(name) for name in constants)
    return GraphCosts(
        macs=macs,
        elementwise=other,
        bytes_moved=moved,
        bytes_least=weight_bytes + sum(n_bytes(name) for name in ends),
        peak_activation_bytes=_peak(graph, n_bytes, constants),
        weight_bytes=weight_bytes,
        weights=floats,
        nodes=dict(sorted(Counter(node.op_type for node in graph.node).items())),
        outputs={value.name: sizes[value.name] for value in graph.output},
        work=tuple(work),
        tensors={
            name: (math.prod(size), n_bytes(name))
            for name, size in sizes.items()
            if name not in constants
        },
    )


def _node_cost(
    node: Any, costs: Sequence[tuple[str, int]], constants: set[str], n_bytes: Any, item_bytes: int
) -> NodeCost:
    heavy = [count for operator, count in costs if operator in (CONVOLUTION, MATRIX)]
    return NodeCost(
        kind=node.op_type,
        groups=next((a.i for a in node.attribute if a.name == "group"), 1),
        macs=sum(heavy),
        operations=sum(count for _, count in costs) - sum(heavy),
        inputs=tuple(dict.fromkeys(x for x in node.input if x and x not in constants)),
        outputs=tuple(x for x in node.output if x),
        weight_bytes=sum(n_bytes(x) for x in node.input if x in constants),
        half=item_bytes == 2,
        view=node.op_type in _VIEWS,
    )


def _item_bytes(kind: int) -> int:
    import onnx

    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _cost(node: Any, sizes: Mapping[str, Shape], path: Path) -> list[tuple[str, int]]:
    """(operator, count) pairs of one node."""
    kind = node.op_type
    n_out = math.prod(sizes[node.output[0]])
    if kind == "Conv":
        bias = [("add", n_out)] if len(node.input) > 2 else []
        return [(CONVOLUTION, n_out * math.prod(sizes[node.input[1]][1:])), *bias]
    if kind == "MatMul":
        return [(MATRIX, n_out * sizes[node.input[0]][-1])]
    if kind == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        depth = sizes[node.input[0]][0 if transposed else 1]
        bias = [("add", n_out)] if len(node.input) > 2 else []
        return [(MATRIX, n_out * depth), *bias]
    if kind == "Mul":
        return [(PRODUCT, n_out)]
    if kind in _ELEMENTWISE:
        passes = len(node.input) - 1 if kind == "Sum" else 1
        return [(_ELEMENTWISE[kind], n_out * passes)]
    if kind in _REDUCTIONS:
        return [(_REDUCTIONS[kind], math.prod(sizes[node.input[0]]))]
    if kind in _MOVES or kind in _VIEWS:
        return []
    raise InputError(f"{path}: the counter does not know the operator {kind} ({node.name})")


def _peak(graph: Any, n_bytes: Any, constants: set[str]) -> int:
    """Largest sum of live activations, bytes; a view shares the memory of what it shows."""
    owner: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in _VIEWS:
            owner[node.output[0]] = owner.get(node.input[0], node.input[0])

    def held(names: Any) -> set[str]:
        return {owner.get(name, name) for name in names if name and name not in constants}

    last_use: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        last_use.update(dict.fromkeys(held(node.input), i))
    last_use.update(dict.fromkeys(held(x.name for x in graph.output), len(graph.node)))
    alive = held(x.name for x in graph.input)
    peak = 0
    for i, node in enumerate(graph.node):
        alive |= held(node.output)
        peak = max(peak, sum(n_bytes(name) for name in alive))
        alive = {name for name in alive if last_use.get(name, -1) > i}
    return peak


def engine_costs(
    folder: Path, n_frames: int, batch: int = 1, *, single: bool = False
) -> dict[str, GraphCosts]:
    """Costs of one call of each of an engine's two graphs.

    Args:
        folder: An engine folder.
        n_frames: T, a multiple of 4, at least 32.
        batch: B.
        single: Of the graphs for one recording (B is 1), which CPUs run.

    Returns:
        "predictive" and "score" -> costs.

    Raises:
        InputError: The sizes are not allowed, the engine has no such graphs, or a graph cannot be
            counted.
        ManifestError: The folder is incomplete or damaged.
    """
    if n_frames < MIN_FRAMES or n_frames % FRAME_MULTIPLE or batch < 1:
        raise InputError(
            f"n_frames is {n_frames}, batch {batch}; expected a multiple of {FRAME_MULTIPLE}, at "
            f"least {MIN_FRAMES}, and a batch of at least 1"
        )
    manifest = Manifest.load(folder)
    if manifest.causal is not None:
        raise InputError(
            f"{folder}: a causal model, whose graphs read sizes at run time; its costs are those of the "
            "PyTorch counter alone (dvpd.macs, and macs_per_second in the manifest)"
        )
    if single and not (manifest.single and batch == 1):
        raise InputError(f"{folder}: batch is {batch}; it has no graphs for that as single ones")
    paths = manifest.verify_graphs(folder)
    first, second = (paths[graph + SINGLE * single] for graph in GRAPH_NAMES)
    predictive = graph_costs(first, {"noisy": (batch, 3, n_frames, N_FREQS)})
    score = graph_costs(second, score_shapes(predictive, n_frames, batch))
    return dict(zip(GRAPH_NAMES, (predictive, score), strict=True))


def score_shapes(predictive: GraphCosts, n_frames: int, batch: int) -> dict[str, Shape]:
    """Sizes of the score graph's inputs; the features are the predictive graph's outputs."""
    return {
        "xt": (batch, 1, n_frames, N_FREQS),
        "t": (batch,),
        **{k: v for k, v in predictive.outputs.items() if k.startswith("feat_")},
        "tlb_skip": TLB_SHAPE,
        "tlb_backbone": TLB_SHAPE,
    }
