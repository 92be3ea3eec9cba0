"""The sampler's arithmetic between the network calls as three tiny ONNX graphs.

They are the steps of ``runtime/sampler.py`` (paper Algorithm 1) for engines that run the whole
sampler on one device; float32 throughout, and no size or coefficient is fixed, so they are the same
for every model. The runtime ships them as files (runtime/graphs/), as it needs no onnx:

python export/sampler_graph.py [-o runtime/graphs]

| graph | inputs | outputs |
|---|---|---|
| start | ``noisy`` [B, 3, T, 257], ``clean_ri`` [B, 2, T, 257], ``noise`` [B, 1, T, 257], ``coefficients`` [4] = w_x0, w_y, std, 0 | ``mag_p``, ``xt`` [B, 1, T, 257] |
| step | ``noisy``, ``xt``, ``sigma_z``, ``noise``, ``coefficients`` = a, b, e, n | ``xt_next`` |
| finish | ``clean_ri``, ``mag_p``, ``xt``, ``coefficients`` = alpha, 1 - alpha, 0, 0 | ``fused`` [B, 2, T, 257] |

The last step's n is 0, so that its ``xt_next`` is the mean.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if not __package__:  # run as a plain script: the checkout is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dvpd.runtime import command
from dvpd.runtime.files import write_whole
from dvpd.runtime.sampler import TINY
from dvpd.runtime.spec import N_FREQS

OPSET = 17  # the oldest that every supported TensorRT reads
IR_VERSION = 9
CHANNELS = {"noisy": 3, "clean_ri": 2, "fused": 2}  # all others have one


class _Graph:
    """Nodes and constants of one graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: object, dtype: type) -> str:
        self.constants[name] = numpy_helper.from_array(np.array(value, dtype), name)
        return name

    def node(self, kind: str, inputs: list[str], output: str) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output))
        return output

    def cut(self, source: str, axis: int, index: int, output: str) -> str:
        """One slice of ``source`` along ``axis``, the axis kept."""
        names = [
            self.constant(f"const_{value}", [value], np.int64) for value in (index, index + 1, axis)
        ]
        return self.node("Slice", [source, *names], output)

    def weighted(self, terms: list[tuple[int, str]], output: str) -> str:
        """sum_i coefficients[i] * term_i, added in order."""
        total = ""
        for i, (index, term) in enumerate(terms):
            scalar = self.cut("coefficients", 0, index, f"k{index}")  # [1] broadcasts
            last = i + 1 == len(terms)
            product = self.node("Mul", [scalar, term], output if last and not i else f"p{index}")
            total = (
                self.node("Add", [total, product], output if last else f"s{i}") if i else product
            )
        return total


def build(name: str) -> onnx.ModelProto:
    """One of the three graphs.

    Args:
        name: "start", "step" or "finish".

    Raises:
        KeyError: Another name.
    """
    inputs, outputs = {
        "start": (("noisy", "clean_ri", "noise"), ("mag_p", "xt")),
        "step": (("noisy", "xt", "sigma_z", "noise"), ("xt_next",)),
        "finish": (("clean_ri", "mag_p", "xt"), ("fused",)),
    }[name]
    graph = _Graph()
    if name != "finish":
        graph.cut("noisy", 1, 2, "y")
    if name == "start":
        graph.node("Mul", ["clean_ri", "clean_ri"], "square")
        graph.cut("square", 1, 0, "real")
        graph.cut("square", 1, 1, "imag")
        graph.node("Add", ["real", "imag"], "power")
        graph.node("Sqrt", ["power"], "mag_p")
        graph.weighted([(0, "mag_p"), (1, "y"), (2, "noise")], "xt")
    elif name == "step":
        graph.weighted([(0, "xt"), (1, "y"), (2, "sigma_z"), (3, "noise")], "xt_next")
    else:
        graph.node("Relu", ["xt"], "mag_d")
        graph.weighted([(0, "mag_p"), (1, "mag_d")], "mag")
        tiny = graph.constant("tiny", TINY, np.float32)
        graph.node("Max", ["mag_p", tiny], "guarded")  # a zero bin has no phase and stays zero
        graph.node("Div", ["mag", "guarded"], "gain")
        graph.node("Mul", ["clean_ri", "gain"], "fused")

    def value(tensor: str) -> onnx.ValueInfoProto:
        shape: list[str | int | None] = ["B", CHANNELS.get(tensor, 1), "T", N_FREQS]
        return helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shape)

    coefficients = helper.make_tensor_value_info("coefficients", TensorProto.FLOAT, [4])
    made = helper.make_graph(
        graph.nodes,
        f"dvpd_sampler_{name}",
        [*map(value, inputs), coefficients],
        [*map(value, outputs)],
        list(graph.constants.values()),
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    model.producer_name = "dvpd"
    onnx.checker.check_model(model, full_check=True)
    return model


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="sampler_graph", description="Write the sampler's small graphs for the runtime."
    )
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("-o", "--out", type=Path, default=root / "runtime" / "graphs")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the three files; returns the exit status."""
    return command.run(build_parser(), argv, _write)


def _write(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("start", "step", "finish"):
        write_whole(args.out / f"{name}.onnx", build(name).SerializeToString(deterministic=True))


if __name__ == "__main__":
    command.leave(main())
