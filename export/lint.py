"""Precision lint: which layers run in half and which in float32, proved without a GPU.

python export/lint.py engines/NAME [--json]

In a strongly typed network the types of the graph are the types of the engine. The lint infers the
type of every tensor of the ONNX graph, holds them against the rules below, and then has
TensorRT-RTX's parser read the graph, where it is installed, and compares: every node must have
become layers of the types that the graph says.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

if not __package__:  # run as a plain script: the checkout is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dvpd.export.lint_state import MOVES, size_tables, state_faults
from dvpd.export.trt_api import TrtApi
from dvpd.runtime import command
from dvpd.runtime.errors import BackendError, ManifestError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import CausalSpec, graph_io

# Sums over many values, and functions whose result or whose argument leaves half's range.
STATISTICS = {
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceMin",
    "ReduceMax", "ReduceLogSum", "ReduceLogSumExp", "GlobalAveragePool", "GlobalMaxPool",
    "GlobalLpPool", "CumSum",
}  # fmt: skip
NORMS = {
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization",
    "MeanVarianceNormalization", "LRN",
}  # fmt: skip
EXPONENTIALS = {
    "Exp", "Log", "Softplus", "Softmax", "LogSoftmax", "Hardmax", "Pow", "Mish", "Elu", "Selu",
    "Celu", "Gelu", "Sin", "Cos", "Sqrt", "Reciprocal",
}  # fmt: skip
PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
NAMES: dict[int, str] = {
    TensorProto.FLOAT16: "half",
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.BFLOAT16: "bfloat16",
}
TRT_NAMES = {"HALF": "half", "FLOAT": "float32", "BF16": "bfloat16"}
# TensorRT layers that hold a statistic or an exponential, for the walk over the parsed network.
TRT_FLOAT32 = {"REDUCE", "SOFTMAX", "CUMULATIVE", "NORMALIZATION", "LRN", "RAGGED_SOFTMAX"}
MAX_OPSET = 20  # of TensorRT 10.3 (JetPack 6.1)
PAIR = 2


@dataclass(frozen=True)
class Fault:
    """One thing that must not be.

    Attributes:
        rule: Short name of the rule.
        node: The node, "name (operator)".
        text: What is wrong and what to do.
    """

    rule: str
    node: str
    text: str


@dataclass
class Lint:
    """What the lint found in one graph.

    Attributes:
        graph: "predictive" or "score".
        counts: Operator -> type -> number of nodes.
        islands: Module -> operators that run in float32 there, of a half graph.
        faults: Everything that must not be.
        trt: Version of TensorRT-RTX that read the graph; None if it is not installed.
        trt_layers: Its layer types -> type -> number; shape arithmetic is "integer".
        confirmed: Nodes whose types its layers confirm, of all nodes with a float type.
    """

    graph: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    islands: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    trt: str | None = None
    trt_layers: dict[str, dict[str, int]] = field(default_factory=dict)
    confirmed: tuple[int, int] = (0, 0)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    types = {t.name: t.data_type for t in model.graph.initializer}
    for values in (model.graph.input, model.graph.output, model.graph.value_info):
        types |= {v.name: v.type.tensor_type.elem_type for v in values}
    return types


def _title(node: onnx.NodeProto) -> str:
    return f"{node.name or (node.output[0] if node.output else '?')} ({node.op_type})"


def lint_graph(
    model: onnx.ModelProto, graph: str, precision: str, causal: CausalSpec | None = None
) -> Lint:
    """Check the types of one graph.

    Args:
        model: The graph.
        graph: "predictive" or "score".
        precision: "fp32" or "fp16".
        causal: The manifest's, of a causal model.

    Raises:
        ManifestError: Types cannot be inferred; nothing can be proved of such a graph.
    """
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ManifestError(f"the {graph} graph's types cannot be inferred: {first}") from None
    types, found = _types(model), Lint(graph)
    makers = {o: node for node in model.graph.node for o in node.output}
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)

    tables = size_tables(model)

    def add(rule: str, node: onnx.NodeProto, text: str) -> None:
        found.faults.append(Fault(rule, _title(node), text))

    counts: dict[str, Counter[str]] = defaultdict(Counter)
    islands: dict[str, Counter[str]] = defaultdict(Counter)
    for node in model.graph.node:
        kind = _float_type(node, types)
        counts[node.op_type][kind] += 1
        if precision == "fp16" and kind == "float32" and node.op_type not in MOVES | {"Cast"}:
            islands[node.name.rpartition("/")[0] or "-"][node.op_type] += 1
        unknown = [n for n in (*node.input, *node.output) if n and types.get(n, 0) == 0]
        if unknown:
            add("untyped", node, f"the type of {unknown[0]} is not known; nothing is proved of it")
        over_time = node.op_type == "MatMul" and not tables.isdisjoint(node.input)
        _check_node(node, kind, precision, types, makers, over_time, add)
        if node.op_type == "Cast":
            _check_cast(node, types, users, add)
    _check_constants(model, found)
    _check_versions(model, found)
    _check_ends(model, graph, precision, types, found, causal)
    if causal is not None and precision == "fp16":
        found.faults += [Fault(*row) for row in state_faults(model, types, makers, users)]
    found.counts = {op: dict(c) for op, c in sorted(counts.items())}
    found.islands = {name: dict(c) for name, c in sorted(islands.items())}
    return found


def _float_type(node: onnx.NodeProto, types: dict[str, int]) -> str:
    """The float type that a node computes in; "integer" if it has none."""
    values = [NAMES[types[n]] for n in (*node.input, *node.output) if types.get(n) in NAMES]
    if node.op_type == "Cast" and len(values) == PAIR:
        return " -> ".join(values)
    for kind in ("float64", "bfloat16", "half", "float32"):  # the odd one decides
        if kind in values:
            return kind
    return "integer"


def _check_node(
    node: onnx.NodeProto,
    kind: str,
    precision: str,
    types: dict[str, int],
    makers: dict[str, onnx.NodeProto],
    over_time: bool,
    add: Any,
) -> None:
    op = node.op_type
    if "float64" in kind:
        add("float64", node, "float64 has no place in an engine; TensorRT would drop it silently")
    if "bfloat16" in kind:
        add("bfloat16", node, "the graphs are float32 and half; Orin's bfloat16 is no gain")
    floats = {types[n] for n in node.input if types.get(n) in NAMES}
    if len(floats) > 1:
        mixed = ", ".join(sorted(NAMES[t] for t in floats))
        add("mixed", node, f"takes {mixed} at once, which a strongly typed network refuses")
    if kind == "half":
        if op in STATISTICS or over_time:  # a product with a table of decays is a running sum
            add("statistic", node, "a sum or extremum in half; cast its input to float32")
        elif op in NORMS or op == "LayerNormalization":
            stash = {a.name: a.i for a in node.attribute}.get("stash_type", TensorProto.FLOAT)
            if op != "LayerNormalization" or stash != TensorProto.FLOAT:
                add("norm", node, "its statistics are in half; cast, or LayerNormalization with "
                    "stash_type float32")  # fmt: skip
        elif op in EXPONENTIALS:
            add("exponential", node, "leaves half's range or digits; cast its input to float32")
    if kind == "float32" and precision == "fp16" and op in PRODUCTS and not over_time:
        add("slow", node, "a product in float32 in an fp16 graph; its weights belong in half")
    if precision == "fp32" and "half" in kind:
        add("half", node, "half in an fp32 graph")
    if kind == "float32" and op in STATISTICS:
        _check_square(node, types, makers, add)


def _check_square(
    node: onnx.NodeProto, types: dict[str, int], makers: dict[str, onnx.NodeProto], add: Any
) -> None:
    """A sum in float32 is too late if the squares it sums have been made in half."""
    source = makers.get(node.input[0])
    while source is not None and source.op_type in MOVES | {"Cast"}:
        source = makers.get(source.input[0])
    if source is None or types.get(source.output[0]) != TensorProto.FLOAT16:
        return
    twice = source.op_type == "Mul" and len(set(source.input)) < PAIR
    if twice or source.op_type == "Pow":
        add("square", source, "squares in half overflow at 256; cast before squaring")


def _check_cast(
    node: onnx.NodeProto,
    types: dict[str, int],
    users: dict[str, list[onnx.NodeProto]],
    add: Any,
) -> None:
    """A cast must lead to something that needs it, not back."""
    here, there = types.get(node.input[0]), types.get(node.output[0])
    if here == there:
        add("cast", node, "casts to the type that is there")
        return
    if here not in NAMES or there not in NAMES:
        return
    # Everything that the cast leads to, through operators that only move values.
    heads, ends = [node.output[0]], []
    while heads:
        for user in users[heads.pop()]:
            if user.op_type in MOVES:
                heads.extend(user.output)
            else:
                ends.append(user)
    back = [user for user in ends if user.op_type == "Cast" and types[user.output[0]] == here]
    if back and len(back) == len(ends):
        add("ping-pong", node, f"{NAMES[here]} -> {NAMES[there]} and back at {_title(back[0])} "
            "with nothing in between")  # fmt: skip


def _check_constants(model: onnx.ModelProto, found: Lint) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            found.faults.append(Fault("float64", tensor.name, "a weight in float64"))
        elif tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            values = onnx.numpy_helper.to_array(tensor)
            if not np.isfinite(values).all():
                text = "a weight is not finite: too large for half?"
                found.faults.append(Fault("weight", tensor.name, text))


def _check_versions(model: onnx.ModelProto, found: Lint) -> None:
    """What TensorRT 10.3 (JetPack 6.1) does not read."""
    for entry in model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            text = f"operators of {entry.domain}: TensorRT reads standard ones only"
            found.faults.append(Fault("version", "graph", text))
        elif entry.version > MAX_OPSET:
            text = f"opset {entry.version}; TensorRT 10.3 reads 9 to {MAX_OPSET}"
            found.faults.append(Fault("version", "graph", text))
    for node in model.graph.node:
        axes = 3  # fourth input of Pad
        if node.op_type == "Pad" and len(node.input) > axes and node.input[axes]:
            text = "Pad with an axes input needs TensorRT 10.4"
            found.faults.append(Fault("version", _title(node), text))


def _check_ends(
    model: onnx.ModelProto,
    graph: str,
    precision: str,
    types: dict[str, int],
    found: Lint,
    causal: CausalSpec | None,
) -> None:
    """Inputs and outputs have the contract's types."""
    names = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
    have = {v.name for v in (*model.graph.input, *model.graph.output)}
    for specs in graph_io(graph, precision, causal):
        for spec in specs:
            if spec.name not in have or types[spec.name] != names[spec.dtype]:
                text = f"the contract has {spec.dtype} {spec.name}"
                found.faults.append(Fault("signature", spec.name, text))


def lint_network(path: Path, model: onnx.ModelProto, found: Lint, api: TrtApi) -> None:
    """Walk the network that TensorRT parses from a graph, and hold it against the graph's types.

    Args:
        path: The graph's file.
        model: The graph.
        found: What `lint_graph` found; completed here.
        api: The parser.

    Raises:
        BackendError: TensorRT does not read the graph.
    """
    model = onnx.shape_inference.infer_shapes(model)
    types, network = _types(model), api.parse(path).network
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    by_node: dict[str, list[tuple[str, set[str]]]] = defaultdict(list)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        ends = [layer.get_input(k) for k in range(layer.num_inputs)]
        ends += [layer.get_output(k) for k in range(layer.num_outputs)]
        kinds = {TRT_NAMES.get(t.dtype.name) for t in ends if t is not None} - {None}
        floats = {str(kind) for kind in kinds}
        name = layer.type.name
        counts[name][" / ".join(sorted(floats)) or "integer"] += 1
        match = re.fullmatch(r"\[ONNX Layer: (.*)\]", layer.metadata)
        if match:
            by_node[match[1]].append((name, floats))
        if "half" in floats and name in TRT_FLOAT32:
            text = f"TensorRT-RTX {api.version} has made a {name} layer in half of it"
            found.faults.append(Fault("parsed", layer.name, text))
    confirmed = total = 0
    for node in model.graph.node:
        kind = _float_type(node, types)
        if kind == "integer":
            continue
        total += 1
        want = set(kind.split(" -> "))
        layers = by_node.get(node.name, [])
        got = set().union(*(floats for _, floats in layers)) if layers else set()
        if got == want:
            confirmed += 1
        elif layers:
            text = f"TensorRT-RTX {api.version} computes it in {sorted(got)}, the graph in {kind}"
            found.faults.append(Fault("parsed", _title(node), text))
    found.trt, found.confirmed = api.version, (confirmed, total)
    found.trt_layers = {name: dict(c) for name, c in sorted(counts.items())}


def lint_engine(folder: str | Path, parser: bool = True) -> list[Lint]:
    """Lint both graphs of an engine folder.

    Args:
        folder: The engine folder.
        parser: Whether TensorRT-RTX's parser is asked, too, where it is installed.

    Raises:
        ManifestError: The folder is damaged, or a graph's types cannot be inferred.
    """
    manifest = Manifest.load(folder)
    api = None
    if parser:
        try:
            api = TrtApi("tensorrt-rtx")
        except BackendError:
            pass  # the report says that it was not asked
    results = []
    paths = manifest.verify_graphs(folder)
    for graph, path in ((name, paths[name]) for name in manifest.graphs):  # those for GPUs
        model = onnx.load(str(path))
        found = lint_graph(model, graph, manifest.precision, manifest.causal)
        if api is not None:
            lint_network(path, model, found, api)
        results.append(found)
    return results


def _table(counts: dict[str, dict[str, int]], title: str) -> list[str]:
    kinds = sorted({kind for row in counts.values() for kind in row})
    width = max(map(len, (*counts, title)))
    columns = [max(len(kind), 5) for kind in kinds]
    head = "  ".join(f"{k:>{w}s}" for k, w in zip(kinds, columns, strict=True))
    lines = [f"  {title:{width}s}  {head}"]
    for name, row in counts.items():
        cells = (f"{row.get(k, '-'):>{w}}" for k, w in zip(kinds, columns, strict=True))
        lines.append(f"  {name:{width}s}  {'  '.join(cells)}")
    return lines


def render(found: Lint) -> str:
    """The lint of one graph as text for a terminal.

    Args:
        found: From `lint_engine`.
    """
    lines = [f"{found.graph}: nodes by the type that they compute in"]
    lines += _table(found.counts, "operator")
    if found.islands:
        lines += ["", f"{found.graph}: float32 in the half graph (moves and casts left out)"]
        lines += _table(found.islands, "module")
    if found.trt is not None:
        lines += ["", f"{found.graph}: layers as TensorRT-RTX {found.trt} parses them"]
        lines += _table(found.trt_layers, "layer")
        lines.append(
            f"  {found.confirmed[0]} of {found.confirmed[1]} nodes became layers of exactly the "
            "graph's types; those that the parser folded away cannot be confirmed"
        )
    else:
        lines += ["", "  TensorRT-RTX is not installed: its parser was not asked"]
    lines += ["", f"{found.graph}: {len(found.faults)} faults"]
    lines += [f"  {fault.rule:12s}{fault.node}: {fault.text}" for fault in found.faults]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="lint", description="Prove which layers run in half and which in float32."
    )
    parser.add_argument("folder", metavar="ENGINE_DIR", help="folder with the graphs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 clean, 1 faults or failed, 2 wrong usage."""
    return command.run(build_parser(), argv, _lint)


def _lint(args: argparse.Namespace) -> int:
    results = lint_engine(args.folder)
    if args.json:
        print(json.dumps({"graphs": [asdict(found) for found in results]}))
    else:
        print("\n\n".join(render(found) for found in results))
    return 1 if any(found.faults for found in results) else 0


if __name__ == "__main__":
    command.leave(main())
