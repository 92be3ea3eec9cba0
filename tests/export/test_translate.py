"""The translation on its own: constant shapes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from dvpd.export.graphs import build_graph
from dvpd.export.translate import UnsupportedOperator, reshape_spec, translate
from dvpd.model import DVPD
from dvpd.torch_backend import prepare

BASE = Path(__file__).resolve().parents[2] / "engines" / "dvpd-base"


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


def test_ablations_export(other_graphs):
    """The encoder, the gate, the local branch and the norm of the ablations, all in one model."""
    for graph in ("predictive", "score"):
        onnx.checker.check_model(onnx.load(str(other_graphs[1] / f"{graph}.onnx")))


@pytest.mark.slow
def test_ablations_export_in_half(other_graphs):
    """The score graph has every part that these options change; the gate is in it alone."""
    exported = build_graph(prepare(DVPD(other_graphs[0]), "fp16"), "score", "fp16")
    onnx.checker.check_model(exported)


@pytest.mark.parametrize(("graph", "limit"), [("predictive", 950), ("score", 1200)])
def test_the_shipped_base_is_within_its_budget(graph, limit):
    assert len(onnx.load(str(BASE / f"{graph}.onnx")).graph.node) <= limit


@pytest.mark.parametrize(("graph", "limit"), [("predictive", 670), ("score", 900)])
def test_a_fresh_export_is_within_the_budget_of_one_block(fp32, graph, limit):
    """The shipped base has two blocks, and channels add no nodes: it came from the same translator."""
    assert len(onnx.load(str(fp32.folder / f"{graph}.onnx")).graph.node) <= limit
