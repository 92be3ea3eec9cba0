"""Three counters of the same model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx
import pytest
import torch

from dvpd.benchmarks import macs
from dvpd.benchmarks.common.graph_costs import engine_costs, graph_costs
from dvpd.config import Config, ModelConfig
from dvpd.macs import MacCounter, count_calls
from dvpd.model import DVPD
from dvpd.runtime.errors import InputError, ManifestError, ParityError

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "engines" / "dvpd-tiny"
FP16 = ROOT / "engines" / "dvpd-tiny-fp16"


@pytest.fixture(scope="module")
def tiny():
    return macs.count(TINY, 256)


def test_counters_agree_and_ptflops_is_explained_to_the_last_operation(tiny):
    assert set(tiny.calls) == {"predictive", "score"}  # both counters ran; count() compares them
    for graph in tiny.graphs:
        assert macs.differences(tiny.calls[graph], tiny.graphs[graph]) == []
        terms = tiny.ptflops[graph]
        assert terms["unexplained"] == 0
        assert 0 < terms["ptflops"] < terms["every product"]
    assert tiny.graphs["predictive"].total_macs == tiny.ptflops["predictive"]["every product"]


def test_a_disagreement_is_named(tiny):
    costs = tiny.graphs["predictive"]
    less = costs.macs.copy()
    less["encoder.stem.conv", "convolution"] -= 5
    lines = macs.differences(tiny.calls["predictive"], dataclasses.replace(costs, macs=less))
    assert len(lines) == 1
    assert lines[0].startswith("encoder.stem.conv, convolution: PyTorch ")


def test_a_graph_of_another_model_is_refused():
    config = Config(model=ModelConfig(channels=8, blocks=1))
    with pytest.raises(ParityError, match="two counters disagree: predictive: "):
        macs.count_model(config, DVPD(config.model).eval(), 64, TINY)


def test_counters_agree_on_another_architecture(other_graphs, monkeypatch):
    """A model without an engine folder: its graphs are made for the count (here: handed out)."""
    model, folder = other_graphs
    traced = []

    def ready(prepared, graph, precision):
        traced.append((prepared.config, graph, precision))
        return onnx.load(str(folder / f"{graph}.onnx"))

    monkeypatch.setattr("dvpd.export.graphs.build_graph", ready)
    config = Config(model=model)
    counted = macs.count_model(config, DVPD(model).eval(), 32, None)  # raises if they differ
    assert traced == [(model, graph, "fp32") for graph in ("predictive", "score")]
    assert counted.ptflops["score"]["unexplained"] == 0


def test_precision_changes_bytes_and_not_arithmetic():
    fp32, fp16 = engine_costs(TINY, 64), engine_costs(FP16, 64)
    for graph in fp32:
        assert fp32[graph].macs == fp16[graph].macs
        assert fp32[graph].elementwise == fp16[graph].elementwise
        ratio = fp16[graph].peak_activation_bytes / fp32[graph].peak_activation_bytes
        assert 0.45 < ratio < 0.7


def test_costs_grow_with_batch_and_time():
    one, more = engine_costs(TINY, 64), engine_costs(TINY, 128, batch=3)
    for graph in one:
        assert more[graph].total_macs == pytest.approx(6 * one[graph].total_macs, rel=0.01)
        assert more[graph].weights == one[graph].weights


def test_the_graph_walk_counts_what_a_hand_count_does(tmp_path):
    import numpy as np

    node, floats = onnx.helper.make_node, onnx.TensorProto.FLOAT
    constants = [
        onnx.numpy_helper.from_array(np.zeros((6, 2, 3, 3), np.float32), "w"),
        onnx.numpy_helper.from_array(np.zeros(6, np.float32), "b"),
        onnx.numpy_helper.from_array(np.array([0, 6, -1]), "flat"),
        onnx.numpy_helper.from_array(np.zeros((40, 7), np.float32), "m"),
    ]
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], name="net.a/c", group=2, pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"], name="net.a/r"),
        node("Reshape", ["r", "flat"], ["f"], name="net/f"),
        node("MatMul", ["f", "m"], ["p"], name="net.b/p"),
        node("Mul", ["p", "p"], ["y"], name="net.b/y"),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", floats, ["B", 4, 8, 5])], [info("y", floats, ["B", 6, 7])], constants
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    path = tmp_path / "g.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    costs = graph_costs(path, {"x": (2, 4, 8, 5)})
    assert costs.macs == {
        ("a", "convolution"): 2 * 240 * 18,
        ("b", "matrix product"): 2 * 42 * 40,
        ("b", "elementwise product"): 84,
    }
    assert costs.elementwise == {("a", "add"): 480, ("a", "relu"): 480}
    assert costs.weights == 108 + 6 + 280
    # x, c | c, r | f is r | r, p | p, y: the Relu holds two maps of 480 values
    assert costs.peak_activation_bytes == 4 * (480 + 480)
    x_c, c_r = 320 + 480 + 108 + 6, 960
    assert costs.bytes_moved == {"a": 4 * (x_c + c_r), "b": 4 * (480 + 280 + 84 + 3 * 84)}
    assert costs.outputs == {"y": (2, 6, 7)}
    with pytest.raises(InputError, match="no sizes given for the input x"):
        graph_costs(path, {})


def test_an_unknown_operator_is_an_error_not_a_zero(tmp_path):
    info = onnx.helper.make_tensor_value_info
    tensors = [info(n, onnx.TensorProto.FLOAT, [4]) for n in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Erf", ["x"], ["y"], name="net/e")], "g", tensors[:1], tensors[1:]
    )
    path = tmp_path / "g.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=9), path)
    with pytest.raises(InputError, match="does not know the operator Erf"):
        graph_costs(path, {"x": (4,)})


def test_what_weights_alone_decide_is_kept_apart():
    model = torch.nn.Linear(4, 4)

    def forward(x):
        return x @ (model.weight * 2.0)

    x = torch.ones(3, 4)
    with torch.no_grad(), MacCounter(model) as counter:
        forward(x)
    assert counter.macs == {"matrix product": 48, "elementwise product": 16}
    assert counter.folded == {("", "elementwise product"): 16}


def test_recurrent_and_attention_layers_are_counted():
    lstm = torch.nn.LSTM(5, 7, batch_first=True).eval()
    q = torch.zeros(2, 3, 11, 4)
    with torch.no_grad(), MacCounter() as counter:
        lstm(torch.zeros(2, 13, 5))
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.macs["matrix product"] == 2 * 13 * 4 * 7 * (5 + 7) + 2 * 2 * 3 * 11 * 11 * 4


def test_counting_leaves_the_model_as_it_was():
    model = DVPD(ModelConfig(channels=8, blocks=1)).eval()
    count_calls(model, 32)
    assert next(model.parameters()).device.type == "cpu"
    assert not any(module._forward_hooks for module in model.modules())


def test_command_line(tmp_path, capsys):
    out = tmp_path / "costs.json"
    assert macs.main([str(TINY), "--frames", "64", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "agree exactly" in text
    assert "| MP-SENet (paper) | P | 2.26 | - | 34.58 |" in text
    (entry,) = json.loads(out.read_text())
    assert entry["counters_agree"] is True
    by_operator = entry["calls"]["score"]["macs_by_operator"]
    assert sum(by_operator.values()) == entry["calls"]["score"]["macs"]


def test_bad_input_is_one_line(tmp_path, capsys):
    assert macs.main([str(TINY), "--frames", "33"]) == 1
    assert "multiple of 4" in capsys.readouterr().err
    with pytest.raises(ManifestError):
        macs.count(tmp_path, 64)
