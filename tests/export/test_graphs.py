"""What the exported graphs are made of: names, types, sizes, operators."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto

from dvpd.runtime.manifest import Manifest, check_metadata
from dvpd.runtime.spec import GRAPH_NAMES, graph_io

# Standard operators that TensorRT 10.3 parses at opset 18 and that were built with TensorRT-RTX.
ALLOWED = set(
    "Add Cast Concat Conv Cos DepthToSpace Div Gather Gemm LeakyRelu Log MatMul Max Mul Pad "
    "ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Sigmoid Sin Slice Split Sub Tanh "
    "Transpose Unsqueeze".split()
)
# Operators whose arguments of shape, axes or bounds must be constants, from this input on.
CONSTANT_FROM = {"Reshape": 1, "Slice": 1, "Split": 1, "Pad": 1, "Unsqueeze": 1, "Gather": 1}
NODES = {"predictive": 700, "score": 920}  # of the small configuration
TYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}


@pytest.fixture(params=[(p, g) for p in ("fp32", "fp16") for g in GRAPH_NAMES], ids="-".join)
def exported(request):
    precision, name = request.param
    engine = request.getfixturevalue(precision)
    path = engine.folder / engine.manifest.graphs[name].file
    return engine, precision, name, onnx.load(str(path))


def test_signature_is_the_contract(exported):
    _, precision, name, model = exported
    for specs, values in zip(
        graph_io(name, precision), (model.graph.input, model.graph.output), strict=True
    ):
        assert [v.name for v in values] == [s.name for s in specs]
        for spec, value in zip(specs, values, strict=True):
            tensor = value.type.tensor_type
            assert TYPES[tensor.elem_type] == spec.dtype
            for want, dim in zip(spec.shape, tensor.shape.dim, strict=True):
                if isinstance(want, str):
                    assert dim.dim_param == want
                elif want is not None:
                    assert dim.dim_value == want


def test_operators_are_on_the_list(exported):
    *_, model = exported
    assert {node.op_type for node in model.graph.node} <= ALLOWED
    assert {node.domain for node in model.graph.node} == {""}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert not any(t.external_data for t in model.graph.initializer)


def test_no_size_is_computed_at_run_time(exported):
    *_, model = exported
    constants = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if (first := CONSTANT_FROM.get(node.op_type)) is not None:
            assert set(node.input[first:]) <= constants, node.name


def test_no_float64_and_types_follow_the_precision(exported):
    _, precision, _, model = exported
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    types |= {v.name: v.type.tensor_type.elem_type for v in model.graph.output}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    allowed = {TensorProto.FLOAT, TensorProto.INT64}
    assert set(types.values()) <= allowed | (
        {TensorProto.FLOAT16} if precision == "fp16" else set()
    )
    for node in model.graph.node:
        if precision == "fp16" and node.op_type in ("Conv", "Gemm", "MatMul"):
            assert {types[i] for i in node.input} == {TensorProto.FLOAT16}, node.name
        if node.op_type in (
            "ReduceMean",
            "ReduceSum",
            "ReduceMin",
            "ReduceMax",
            "Log",
            "Sin",
            "Cos",
        ):
            assert types[node.input[0]] == TensorProto.FLOAT, node.name
        if node.op_type in ("Add", "Mul", "Sub", "Div", "Concat", "Max"):
            assert len({types[i] for i in node.input}) == 1, node.name


def test_few_nodes(exported):
    _, precision, name, model = exported
    casts = sum(node.op_type == "Cast" for node in model.graph.node)
    assert precision == "fp16" or casts == 0
    assert len(model.graph.node) - casts <= NODES[name]


def test_activations_follow_their_convolution(exported):
    # engines apply them inside the convolution only where nothing stands between the two
    *_, model = exported
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    fused = [
        makers[node.input[0]]
        for node in model.graph.node
        if node.op_type in ("Relu", "LeakyRelu", "Sigmoid")
    ]
    assert fused.count("Conv") >= len(fused) // 2


def test_metadata_is_complete(exported):
    engine, precision, name, model = exported
    metadata = {p.key: p.value for p in model.metadata_props}
    check_metadata(metadata, engine.manifest, name)
    read = Manifest.load(engine.folder)
    assert read.to_dict() == engine.manifest.to_dict()
    assert read.precision == precision
    singles = {f"{g}.single" for g in GRAPH_NAMES if precision == "fp32"}
    assert set(read.verify_graphs(engine.folder)) == {*GRAPH_NAMES, *singles}
    assert read.parameters["total"] == sum(p.numel() for p in engine.model.parameters())
    total = read.macs_per_second["predictive"] + 3 * read.macs_per_second["score"]
    assert read.macs_per_second["total"] == total > 0
    assert read.parity["waveform_snr_db"] >= (80 if precision == "fp32" else 35)
