"""The precision lint: clean on the shipped graphs, and every planted fault is found."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dvpd.export import lint
from dvpd.export.trt_api import TrtApi
from dvpd.runtime.errors import ManifestError
from dvpd.runtime.manifest import MANIFEST_NAME
from dvpd.runtime.spec import GRAPH_NAMES

ROOT = Path(__file__).resolve().parent.parent.parent
ENGINES = sorted(path.parent for path in ROOT.glob(f"engines/*/{MANIFEST_NAME}"))
HALF = ROOT / "engines" / "dvpd-tiny-fp16" / "predictive.onnx"
FLOAT = ROOT / "engines" / "dvpd-tiny" / "predictive.onnx"
rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: dvpd[rtx]",
)


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], name=f"planted/{op}_{output}", **attributes)


def cast(source, to):
    return node("Cast", [source], f"{source}_{to}", to=getattr(TensorProto, to))


def planted(nodes, constants=(), path=HALF):
    """The graph with ``nodes`` that read its tensors, and what the lint says of it."""
    model = onnx.load(str(path))
    model.graph.node.extend(nodes)
    for name, value in constants:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return lint.lint_graph(model, "predictive", "fp16" if path == HALF else "fp32").faults


@pytest.mark.parametrize("folder", ENGINES, ids=lambda path: path.name)
def test_shipped_engines_are_clean(folder):
    for found in lint.lint_engine(folder):
        assert found.faults == []
        half = "half" in found.counts["Conv"]
        assert half == folder.name.endswith("-fp16")
        kinds = {"float32", "half"} if half else {"float32"}
        if folder.name.startswith("dvpd-live"):
            kinds.add("integer")  # a causal graph reads its number of blocks at run time
        assert {k for row in found.counts.values() for k in row if "->" not in k} <= kinds
        assert bool(found.islands) == half
        if found.trt is not None:
            confirmed, total = found.confirmed
            assert confirmed == total > 500
            assert set(found.trt_layers["REDUCE"]) == {"float32"}
            assert set(found.trt_layers["CONVOLUTION"]) == {"half" if half else "float32"}


AXES = ("axes", np.array([1], np.int64))
REDUCTIONS = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceLogSumExp"]


@pytest.mark.parametrize("op", REDUCTIONS)
def test_statistics_in_half(op):
    (fault,) = planted([node(op, ["feat_0", "axes"], "x")], [AXES])
    assert fault.rule == "statistic"
    assert fault.node == f"planted/{op}_x ({op})"
    assert planted([cast("feat_0", "FLOAT"), node(op, ["feat_0_FLOAT", "axes"], "x")], [AXES]) == []


def test_global_mean_in_half():
    (fault,) = planted([node("GlobalAveragePool", ["feat_0"], "x")])
    assert fault.rule == "statistic"


def test_sum_of_decays_in_half():
    (fault,) = planted([node("CumSum", ["feat_0", "axis"], "x")], [("axis", np.int64(2))])
    assert fault.rule == "statistic"


@pytest.mark.parametrize("op", ["Exp", "Log", "Softplus", "Softmax", "Sqrt", "Mish", "Sin"])
def test_exponentials_in_half(op):
    (fault,) = planted([node(op, ["feat_0"], "x")])
    assert fault.rule == "exponential"
    assert planted([cast("feat_0", "FLOAT"), node(op, ["feat_0_FLOAT"], "x")]) == []


def test_decay_as_a_power_in_half():
    (fault,) = planted([node("Pow", ["decay", "feat_0"], "x")], [("decay", np.float16(0.9))])
    assert fault.rule == "exponential"


def test_norms_in_half():
    scale = [("scale", np.ones(16, np.float16)), ("bias", np.zeros(16, np.float16))]
    (fault,) = planted([node("InstanceNormalization", ["feat_0", "scale", "bias"], "x")], scale)
    assert fault.rule == "norm"
    wide = [("scale", np.ones(128, np.float16))]
    inputs = ["feat_0", "scale"]
    good = node("LayerNormalization", inputs, "x", stash_type=TensorProto.FLOAT)
    assert planted([good], wide) == []
    bad = node("LayerNormalization", inputs, "x", stash_type=TensorProto.FLOAT16)
    (fault,) = planted([bad], wide)
    assert fault.rule == "norm"


def test_norm_whose_squares_are_in_half():
    # the mean is in float32, but what it averages has overflowed before
    nodes = [
        node("Mul", ["feat_0", "feat_0"], "square"),
        cast("square", "FLOAT"),
        node("ReduceMean", ["square_FLOAT", "axes"], "variance"),
    ]
    (fault,) = planted(nodes, [AXES])
    assert fault.rule == "square"
    assert fault.node == "planted/Mul_square (Mul)"


def test_float64():
    rules = [f.rule for f in planted([cast("feat_0", "DOUBLE")])]
    assert rules == ["float64"]
    nodes = [cast("feat_0", "FLOAT"), cast("feat_0_FLOAT", "DOUBLE")]
    nodes.append(node("Mul", ["feat_0_FLOAT_DOUBLE", "two"], "x"))
    faults = planted(nodes, [("two", np.array(2.0))])
    assert {f.rule for f in faults} == {"float64"}
    assert {f.node for f in faults} >= {"two", "planted/Mul_x (Mul)"}
    assert [f.rule for f in planted([], [("unused", np.array(2.0))])] == ["float64"]


def test_bfloat16():
    assert {f.rule for f in planted([cast("feat_0", "BFLOAT16")])} == {"bfloat16"}


def test_casts_that_ping_pong():
    there = cast("feat_0", "FLOAT")
    (fault,) = planted([there, cast("feat_0_FLOAT", "FLOAT16")])
    assert fault.rule == "ping-pong"
    moved = node("Transpose", ["feat_0_FLOAT"], "moved", perm=[0, 2, 3, 1])
    (fault,) = planted([there, moved, cast("moved", "FLOAT16")])
    assert fault.rule == "ping-pong"
    work = node("Add", ["feat_0_FLOAT", "feat_0_FLOAT"], "sum")
    assert planted([there, work, cast("sum", "FLOAT16")]) == []
    (fault,) = planted([cast("feat_0", "FLOAT16")])
    assert fault.rule == "cast"


def test_product_in_float32():
    weight = [("weight", np.ones((1, 3, 1, 1), np.float32))]
    (fault,) = planted([node("Conv", ["noisy", "weight"], "x")], weight)
    assert fault.rule == "slow"
    assert planted([node("Conv", ["noisy", "weight"], "x")], weight, FLOAT) == []


def test_half_in_an_fp32_graph():
    assert {f.rule for f in planted([cast("noisy", "FLOAT16")], (), FLOAT)} == {"half"}


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weight_that_half_cannot_hold(value):
    (fault,) = planted([], [("big", np.array([1, value], np.float16))])
    assert (fault.rule, fault.node) == ("weight", "big")


def test_what_tensorrt_10_3_cannot_read():
    pads = [("pads", np.array([0, 1], np.int64)), ("value", np.float16(0)), ("axes", AXES[1])]
    (fault,) = planted([node("Pad", ["feat_0", "pads", "value", "axes"], "x")], pads)
    assert fault.rule == "version"
    assert "10.4" in fault.text
    model = onnx.load(str(HALF))
    model.opset_import[0].version = 21
    faults = lint.lint_graph(model, "predictive", "fp16").faults
    assert [f.text for f in faults] == ["opset 21; TensorRT 10.3 reads 9 to 20"]


def test_inputs_and_outputs_are_the_contracts():
    model = onnx.load(str(HALF))
    rules = {f.rule for f in lint.lint_graph(model, "predictive", "fp32").faults}
    assert {"signature", "half"} <= rules
    value = next(v for v in model.graph.output if v.name == "feat_3")
    model.graph.output.remove(value)
    (fault,) = lint.lint_graph(model, "predictive", "fp16").faults
    assert (fault.rule, fault.node) == ("signature", "feat_3")


def test_types_that_do_not_fit_are_an_error():
    with pytest.raises(ManifestError, match="types cannot be inferred"):
        planted([node("Add", ["feat_0", "noisy"], "x")])


@rtx
def test_parser_is_asked_about_every_node(tmp_path):
    """A graph whose types in the file are not those that TensorRT builds is found out."""
    model = onnx.load(str(HALF))
    found = lint.lint_graph(model, "predictive", "fp16")
    path = tmp_path / "half.onnx"
    other = onnx.load(str(HALF))
    other.graph.node.extend([node("ReduceMax", ["feat_0", "axes"], "x")])
    other.graph.initializer.append(numpy_helper.from_array(AXES[1], "axes"))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["B", 1, "T", 128])
    other.graph.output.append(value)
    onnx.save(other, str(path))
    lint.lint_network(path, onnx.load(str(FLOAT)), found, TrtApi("tensorrt-rtx"))
    texts = {f.node: f.text for f in found.faults}
    assert "a REDUCE layer in half" in texts["planted/ReduceMax_x"]
    conv = next(text for title, text in texts.items() if "(Conv)" in title)
    assert "computes it in ['half'], the graph in float32" in conv
    assert found.confirmed[0] < found.confirmed[1]


def test_command(capsys, tmp_path):
    assert lint.main([str(HALF.parent)]) == 0
    text = capsys.readouterr().out
    for graph in GRAPH_NAMES:
        assert f"{graph}: nodes by the type that they compute in" in text
        assert f"{graph}: 0 faults" in text
    assert lint.main([str(HALF.parent), "--json"]) == 0
    assert [g["graph"] for g in json.loads(capsys.readouterr().out)["graphs"]] == [*GRAPH_NAMES]
    assert lint.main([str(tmp_path)]) == 1
    assert "dvpd: " in capsys.readouterr().err


def test_faults_end_the_command(capsys, monkeypatch):
    monkeypatch.setattr(lint, "MAX_OPSET", 17)
    assert lint.main([str(HALF.parent)]) == 1
    assert "version     graph: opset 18" in capsys.readouterr().out
