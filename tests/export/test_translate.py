"""The translation on its own: constant shapes, and what it refuses."""

from __future__ import annotations

import onnx
import pytest
import torch

from dvpd.config import ModelConfig
from dvpd.export.graphs import build_graph
from dvpd.export.translate import UnsupportedOperator, reshape_spec, translate
from dvpd.model import DVPD
from dvpd.torch_backend import prepare

SMALL = ModelConfig(channels=8, blocks=1, decoder_channels=4, embedding=16, state=8)


@pytest.mark.parametrize(
    ("before", "after", "spec"),
    [
        (["b", "t", 8, 4], ["b", "t", 32], [0, 0, 32]),
        (["b", 8, "2*t", 6], ["b", 8, "t", 2, 3, 2], [0, 8, -1, 2, 3, 2]),
        (["b", 12], ["b", 3, 4, 1], [0, 3, 4, 1]),
    ],
)
def test_reshape_spec(before, after, spec):
    assert reshape_spec(before, after) == spec


def test_reshape_of_two_dynamic_sizes_is_refused():
    with pytest.raises(UnsupportedOperator, match="two dynamic sizes"):
        reshape_spec(["b*t", 8], ["b", "t", 8])


class _Odd(torch.nn.Module):
    def forward(self, x):
        return (torch.erfinv(x),)


class _Mixed(torch.nn.Module):
    def forward(self, x):
        return (x + x.half(),)


@pytest.mark.parametrize(
    ("module", "message"), [(_Odd(), "no translation"), (_Mixed(), "operands are")]
)
def test_refuses(module, message):
    program = torch.export.export(module, (torch.zeros(2, 3),))
    with pytest.raises(UnsupportedOperator, match=message):
        translate(program, {"x": (2, 3)}, {"y": (2, 3)}, "odd")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_ablations_export(other_graphs, precision):
    """The encoder, the gate, the local branch and the norm of the ablations, all in one model."""
    config, folder = other_graphs
    for graph in ("predictive", "score"):
        if precision == "fp32":
            exported = onnx.load(str(folder / f"{graph}.onnx"))
        else:
            exported = build_graph(prepare(DVPD(config), precision), graph, precision)
        assert exported.graph.node


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "limit"), [("predictive", 950), ("score", 1200)])
def test_base_is_within_its_budget(graph, limit):
    model = prepare(DVPD(ModelConfig()), "fp32")
    assert len(build_graph(model, graph, "fp32").graph.node) <= limit
