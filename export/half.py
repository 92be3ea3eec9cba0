"""The graphs node by node in true half arithmetic, on a CPU.

ONNX Runtime computes half in float32 on a CPU and hides overflow and rounding. Here onnx's
reference evaluator runs the very file that TensorRT gets: every half tensor is rounded to half,
products add up in float32 as a GPU's do.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.backends.base import (
    FEAT_NAMES,
    PREDICT_OUT,
    SCORE_OUT,
    LoadOptions,
    check_output,
    check_predict,
    check_whole,
    score_feeds,
    stream_state,
)
from dvpd.runtime.spec import FRAME_MULTIPLE, NEXT_STATE, STATE

from .figures import snr_db

HALF_MAX = 65504.0
HALF_MIN = 2.0**-24  # the smallest half above zero


def _rounded(value: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # an overflow stays infinite and is reported as one
        return np.asarray(value).astype(like.dtype)


class MatMul(OpRun):
    """Product in float32, rounded once at the end."""

    op_domain = ""

    def _run(self, a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any]]:
        return (_rounded(np.matmul(a.astype(np.float32), b.astype(np.float32)), a),)


class Gemm(OpRun):
    """a b + c in float32, rounded once at the end."""

    op_domain = ""

    def _run(
        self,
        a: NDArray[Any],
        b: NDArray[Any],
        c: NDArray[Any] | None = None,
        alpha: float = 1.0,
        beta: float = 1.0,
        transA: int = 0,
        transB: int = 0,
    ) -> tuple[NDArray[Any]]:
        left, right = (
            m.astype(np.float32).T if t else m.astype(np.float32)
            for m, t in ((a, transA), (b, transB))
        )
        total = alpha * (left @ right)
        if c is not None:
            total = total + beta * c.astype(np.float32)
        return (_rounded(total, a),)


class Conv(OpRun):
    """Convolution in float32, rounded once at the end; the evaluator's own takes ten times longer."""

    op_domain = ""

    def _run(
        self,
        x: NDArray[Any],
        weight: NDArray[Any],
        bias: NDArray[Any] | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[NDArray[Any]]:
        import torch

        if auto_pad not in ("NOTSET", b"NOTSET") or x.ndim != 4:
            raise NotImplementedError(f"Conv with auto_pad {auto_pad} on {x.ndim} axes")
        top, left, bottom, right = pads or (0, 0, 0, 0)
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        arrays = (padded, weight) if bias is None else (padded, weight, bias)
        tensors: list[Any] = [torch.from_numpy(array.astype(np.float32)) for array in arrays]
        options: dict[str, Any] = {
            "stride": tuple(strides or (1, 1)),
            "dilation": tuple(dilations or (1, 1)),
            "groups": group,
        }
        out = torch.nn.functional.conv2d(*tensors, **options)
        return (_rounded(out.numpy(), x),)


class Sigmoid(OpRun):
    """Without the overflow on the side that is not used."""

    op_domain = ""

    def _run(self, x: NDArray[Any]) -> tuple[NDArray[Any]]:
        small = np.exp(-np.abs(x.astype(np.float32)))
        return (_rounded(np.where(x >= 0, 1, small) / (1 + small), x),)


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """An evaluator for one of the graphs.

    Args:
        model: The graph; half or float32.
    """
    return ReferenceEvaluator(model, new_ops=[MatMul, Gemm, Conv, Sigmoid])


class ReferenceBackend:
    """The two graphs in onnx's reference evaluator; slow, and rounds as a GPU does."""

    name = "onnx"
    device = "cpu"

    def __init__(self, options: LoadOptions) -> None:
        """Load both graphs.

        Args:
            options: Verified paths and manifest.
        """
        paths = {"predictive": options.predictive, "score": options.score}
        self._graphs = {name: evaluator(onnx.load(str(path))) for name, path in paths.items()}
        self._causal = options.manifest.causal

    def _run(self, graph: str, outputs: Sequence[str], inputs: dict[str, Any]) -> list[Any]:
        with np.errstate(over="ignore", invalid="ignore"):  # reported as not finite
            values: Any = self._graphs[graph].run(list(outputs), inputs)
        return list(values)

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """Run the predictive graph; see ``Backend.predict``."""
        check_whole(self._causal)
        sizes = check_predict(noisy)
        clean_ri, *feats = self._run("predictive", ["clean_ri", *FEAT_NAMES], {"noisy": noisy})
        return check_output(PREDICT_OUT, clean_ri, sizes, "the predictive graph (onnx)"), feats

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """Run the score graph; see ``Backend.score``."""
        check_whole(self._causal)
        sizes, inputs = score_feeds(xt, t, feats, tlb_skip, tlb_backbone)
        (sigma_z,) = self._run("score", ["sigma_z"], inputs)
        return check_output(SCORE_OUT, sigma_z, sizes, "the score graph (onnx)")

    def predict_next(self, noisy: FloatArray, state: Any) -> tuple[FloatArray, Sequence[Any], Any]:
        """Run the predictive graph on the next frames; see ``StreamBackend.predict_next``."""
        sizes = check_predict(noisy, FRAME_MULTIPLE)
        before = stream_state(self._causal, "predictive", len(noisy), state)
        names = ["clean_ri", *FEAT_NAMES, NEXT_STATE]
        clean_ri, *feats, after = self._run("predictive", names, {"noisy": noisy, STATE: before})
        source = "the predictive graph (onnx)"
        return check_output(PREDICT_OUT, clean_ri, sizes, source), feats, after

    def score_next(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
        state: Any,
    ) -> tuple[FloatArray, Any]:
        """Run the score graph on the next frames; see ``StreamBackend.score_next``."""
        sizes, inputs = score_feeds(xt, t, feats, tlb_skip, tlb_backbone, FRAME_MULTIPLE)
        inputs[STATE] = stream_state(self._causal, "score", len(xt), state)
        sigma_z, after = self._run("score", ["sigma_z", NEXT_STATE], inputs)
        return check_output(SCORE_OUT, sigma_z, sizes, "the score graph (onnx)"), after

    def close(self) -> None:
        """Nothing to release."""


def float_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph and weights with every half tensor in float32.

    Args:
        model: A half graph; left as it is.
    """
    twin = copy.deepcopy(model)
    for tensor in twin.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            value = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for infos in (twin.graph.input, twin.graph.output):
        for info in infos:
            if info.type.tensor_type.elem_type == TensorProto.FLOAT16:
                info.type.tensor_type.elem_type = TensorProto.FLOAT
    del twin.graph.value_info[:]
    for node in twin.graph.node:
        for attribute in node.attribute:
            half = node.op_type == "Cast" and attribute.name == "to"
            if half and attribute.i == TensorProto.FLOAT16:
                attribute.CopyFrom(helper.make_attribute("to", TensorProto.FLOAT))
    return twin


@dataclass(frozen=True)
class NodeError:
    """How far one node's result in half is from float32 arithmetic on the same weights.

    Attributes:
        node: Name of the node.
        operator: Its operator.
        snr_db: Of its result, everything before it in half, too (dB).
        own_snr_db: Of its result on float32 inputs rounded to half: its own share (dB).
        peak: Largest magnitude; 65504 is the end of half's range.
    """

    node: str
    operator: str
    snr_db: float
    own_snr_db: float
    peak: float


def node_errors(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> list[NodeError]:
    """Every node with a half result, in the graph's order.

    Args:
        model: A half graph.
        inputs: By name, in the graph's types.
    """
    wide = {n: v.astype(np.float32) for n, v in inputs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow is what is looked for
        half: Any = evaluator(model).run(None, dict(inputs), intermediate=True)
        full: Any = evaluator(float_twin(model)).run(None, wide, intermediate=True)
        constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        result = []
        for node in model.graph.node:
            name = node.output[0]
            value = half[name]
            if value.dtype != np.float16 or not value.size:
                continue
            own = _own(model, node, half, full, constants)
            peak = float(np.abs(value.astype(np.float32)).max())
            if np.abs(full[name]).max() < HALF_MIN and peak < HALF_MIN:
                continue  # nothing, in both
            result.append(
                NodeError(
                    node.name,
                    node.op_type,
                    snr_db(full[name], value.astype(np.float32)),
                    snr_db(full[name], own.astype(np.float32)),
                    peak,
                )
            )
    return result


def _own(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    half: Mapping[str, NDArray[Any]],
    full: Mapping[str, NDArray[Any]],
    constants: Mapping[str, NDArray[Any]],
) -> NDArray[Any]:
    """The node alone, on the float32 run's values rounded to the types that it takes."""
    names = [n for n in dict.fromkeys(node.input) if n]
    values = {n: constants[n] if n in constants else full[n].astype(half[n].dtype) for n in names}

    def described(name: str, value: NDArray[Any]) -> onnx.ValueInfoProto:
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        return helper.make_tensor_value_info(name, dtype, None)

    inputs = [described(n, v) for n, v in values.items()]
    outputs = [described(node.output[0], half[node.output[0]])]
    graph = helper.make_graph([node], "one", inputs, outputs)
    alone = helper.make_model(graph, opset_imports=list(model.opset_import))
    alone.ir_version = model.ir_version
    outputs_of: Any = evaluator(alone).run([node.output[0]], values)
    out: NDArray[Any] = outputs_of[0]
    return out


def load(path: Path) -> onnx.ModelProto:
    """An ONNX graph from its file."""
    return onnx.load(str(path))
