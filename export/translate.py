"""From a traced program (torch.export) to a plain ONNX graph.

The exporter in torch decomposes, retraces and optimises a program for longer than it takes to
trace it, and leaves shape arithmetic in the graph. This translation keeps the traced operators:
each becomes one to three ONNX nodes, whatever depends on weights alone is computed here, and a
Reshape gets a constant shape (0 copies an axis, one -1), so that no size is ever read at run time
and none can be fixed by accident. Types are never promoted: two different ones in an operator are
an error, which is what a strongly typed engine wants to see.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

OPSET = 18
IR_VERSION = 9  # ONNX 1.14 and later; TensorRT 10.3 and ONNX Runtime 1.18 read it
_END = 2**31 - 1
_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}
Value = Any  # name of an ONNX tensor (str), constant (Tensor), number, or a sequence of these
Emitter = Callable[..., Value]


class UnsupportedOperator(Exception):
    """The model uses something that this translation, or the graphs' contract, has no place for."""


def _sizes(node: Node) -> list[Any]:
    return list(node.meta["val"].shape)


def _static(size: Any) -> int | None:
    """The size as a number, or None where it is dynamic."""
    if isinstance(size, torch.SymInt) and size.node.expr.is_number:
        return int(size.node.expr)
    return size if isinstance(size, int) else None


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are one expression; a comparison would put a guard on the program."""
    return str(a) == str(b)


def reshape_spec(before: Sequence[Any], after: Sequence[Any]) -> list[int]:
    """Constant argument of a Reshape from one (partly dynamic) shape to another.

    Args:
        before: Sizes of the input; ints or symbolic.
        after: Sizes of the output.

    Returns:
        For each axis its size, 0 (as in the input) or -1 (what is left, once at most).

    Raises:
        UnsupportedOperator: Two axes would have to be computed at run time.
    """
    spec = []
    for axis, size in enumerate(after):
        number = _static(size)
        if number is not None:
            spec.append(number)
        elif axis < len(before) and _same(before[axis], size):
            spec.append(0)
        else:
            spec.append(-1)
    if spec.count(-1) > 1:
        raise UnsupportedOperator(f"reshape of {list(before)} to {list(after)}: two dynamic sizes")
    return spec


class Translator:
    """State of one translation; `translate` is the way in."""

    def __init__(self, program: ExportedProgram) -> None:
        """Prepare the translation of ``program``."""
        self.program = program
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Tensor] = {}
        self.values: dict[Node, Value] = {}
        self.slices: dict[
            str, tuple[str, list[tuple[int, int, int, int]]]
        ] = {}  # what each is cut from
        self._known: dict[Any, str] = {}
        self._names: set[str] = set()
        self._node: Node | None = None

    # What emitters use.

    def emit(self, op: str, *inputs: Value, n_outputs: int = 1, **attributes: Any) -> Any:
        """Append a node, or find the equal one; returns its output's name (names, if many)."""
        names = [self.name(value) for value in inputs]
        key = (op, tuple(names), n_outputs, repr(sorted(attributes.items())))
        if key not in self._known:
            assert self._node is not None
            base = self._unique(self._node.name if n_outputs == 1 else f"{self._node.name}_0")
            outputs = [base] + [self._unique(f"{self._node.name}_{i}") for i in range(1, n_outputs)]
            stack = self._node.meta.get("nn_module_stack") or {"": ("", None)}
            path = str(next(reversed(stack.values()))[0]).replace("L['self'].", "")
            self.nodes.append(
                helper.make_node(op, names, outputs, name=f"{path}/{base}", **attributes)
            )
            self._known[key] = "\n".join(outputs)
        outputs = self._known[key].split("\n")
        return outputs[0] if n_outputs == 1 else outputs

    def name(self, value: Value) -> str:
        """The tensor name of a value; constants become initialisers, equal ones the same."""
        if isinstance(value, str):
            return value
        if not isinstance(value, Tensor):
            raise UnsupportedOperator(f"{self._where()}: {value!r} is no tensor")
        if value.dtype not in _TYPES:
            raise UnsupportedOperator(f"{self._where()}: a constant is {value.dtype}")
        array = value.detach().cpu().contiguous()
        key = (array.dtype, tuple(array.shape), array.numpy().tobytes())
        if key not in self._known:
            name = self._unique(f"const_{len(self.constants)}")
            self._known[key] = name
            self.constants[name] = array
        return self._known[key]

    def ints(self, values: Sequence[int]) -> Tensor:
        """A constant of indices or sizes."""
        return torch.tensor(list(values), dtype=torch.int64)

    @property
    def out(self) -> Tensor:
        """The (fake) tensor that the current operator returns: its dtype and sizes."""
        assert self._node is not None
        return cast(Tensor, self._node.meta["val"])

    def shape(self, position: int = 0) -> list[Any]:
        """Sizes of the current operator's tensor argument at ``position``."""
        assert self._node is not None
        return _sizes(cast(Node, self._node.args[position]))

    def dtype(self, position: int) -> torch.dtype | None:
        """Type of the current operator's argument; None for a number."""
        assert self._node is not None
        arg = self._node.args[position]
        return cast(torch.dtype, arg.meta["val"].dtype) if isinstance(arg, Node) else None

    def _where(self) -> str:
        return f"{self._node.name} ({self._node.target})" if self._node is not None else "graph"

    def _unique(self, wanted: str) -> str:
        name, n = wanted, 0
        while name in self._names:
            n += 1
            name = f"{wanted}_{n}"
        self._names.add(name)
        return name

    # The walk.

    def run(
        self,
        inputs: Mapping[str, Sequence[int | str]],
        outputs: Mapping[str, Sequence[int | str]],
        name: str,
    ) -> onnx.ModelProto:
        """Translate the whole program; see `translate`."""
        self._names.update(inputs)
        self._names.update(outputs)
        signature = self.program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        lifted = signature.inputs_to_lifted_tensor_constants
        free = iter(inputs)
        graph_inputs, results = [], []
        for node in self.program.graph.nodes:
            self._node = node
            if node.op == "placeholder":
                if node.name in stored:
                    key = stored[node.name]
                    state = self.program.state_dict
                    self.values[node] = state[key] if key in state else self.program.constants[key]
                elif node.name in lifted:
                    self.values[node] = self.program.constants[lifted[node.name]]
                elif (tensor_name := next(free, None)) is not None:  # after them: the tracer's own
                    self.values[node] = tensor_name
                    graph_inputs.append(self._info(tensor_name, node, inputs[tensor_name]))
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                results = list(cast(Sequence[Node], node.args[0]))
        if len(results) != len(outputs) or len(graph_inputs) != len(inputs):
            raise UnsupportedOperator("the program's inputs or outputs are not those asked for")
        graph_outputs = []
        renamed: dict[str, str] = {}
        for node, (tensor_name, sizes) in zip(results, outputs.items(), strict=True):
            source = self.name(self.values[node])
            if source in inputs or source in renamed:  # a tensor has one name
                source = renamed.get(source, source)
                self.nodes.append(
                    helper.make_node("Identity", [source], [tensor_name], tensor_name)
                )
            else:
                self._rename(source, tensor_name)
                renamed[source] = tensor_name
            graph_outputs.append(self._info(tensor_name, node, sizes))
        self._drop_unused(set(outputs))
        used = {tensor for node in self.nodes for tensor in node.input}
        initialisers = [
            onnx.numpy_helper.from_array(tensor.numpy(), constant)
            for constant, tensor in self.constants.items()
            if constant in used
        ]
        graph = helper.make_graph(self.nodes, name, graph_inputs, graph_outputs, initialisers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def _call(self, node: Node) -> Value:
        target = node.target
        if target is operator.getitem:
            source, index = cast(tuple[Node, int], node.args)
            return self.values[source][index]
        if isinstance(node.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat)):
            # None is a size at run time: an error only if an operator needs it.
            return _static(node.meta["val"])
        args = torch.fx.map_arg(node.args, lambda n: self.values[n])
        kwargs = torch.fx.map_arg(node.kwargs, lambda n: self.values[n])
        if target in _IDENTITY:
            return args[0]
        if target is torch.ops.aten._assert_tensor_metadata.default:
            return None
        leaves: list[Any] = torch.utils._pytree.tree_leaves((args, kwargs))
        if not any(isinstance(leaf, str) for leaf in leaves) and not any(
            leaf is None and isinstance(arg, Node)
            for leaf, arg in zip(args, node.args, strict=True)
        ):
            with torch.no_grad():  # weights alone decide this value
                return cast(Any, target)(*args, **kwargs)
        if target not in _EMITTERS:
            raise UnsupportedOperator(f"{self._where()}: no translation for this operator")
        return _EMITTERS[target](self, *args, **kwargs)

    def _info(self, name: str, node: Node, sizes: Sequence[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, _TYPES[node.meta["val"].dtype], list(sizes))

    def _rename(self, old: str, new: str) -> None:
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new

    def _drop_unused(self, needed: set[str]) -> None:
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]


def translate(
    program: ExportedProgram,
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    name: str,
) -> onnx.ModelProto:
    """The ONNX model of a traced program.

    Args:
        program: What `torch.export.export` returned, weights inside.
        inputs: Names of the inputs in order, with their sizes (a string for a dynamic one).
        outputs: The same for the outputs.
        name: Name of the graph.

    Raises:
        UnsupportedOperator: An operator, a type or a run-time size has no translation.
    """
    return Translator(program).run(inputs, outputs, name)


aten = torch.ops.aten
_IDENTITY = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
}
_EMITTERS: dict[Any, Emitter] = {}


def _emits(*targets: Any) -> Callable[[Emitter], Emitter]:
    def register(emitter: Emitter) -> Emitter:
        _EMITTERS.update(dict.fromkeys(targets, emitter))
        return emitter

    return register


def _unary(target: Any, op: str) -> None:
    _EMITTERS[target] = lambda e, x: e.emit(op, x)


for _target, _op in (
    (aten.relu.default, "Relu"),
    (aten.sigmoid.default, "Sigmoid"),
    (aten.tanh.default, "Tanh"),
    (aten.exp.default, "Exp"),
    (aten.log.default, "Log"),
    (aten.sin.default, "Sin"),
    (aten.cos.default, "Cos"),
    (aten.neg.default, "Neg"),
    (aten.sqrt.default, "Sqrt"),
    (aten.softplus.default, "Softplus"),
    (aten.reciprocal.default, "Reciprocal"),
):
    _unary(_target, _op)


def _binary(target: Any, op: str) -> None:
    def emitter(e: Translator, a: Value, b: Value) -> Value:
        types = {e.dtype(i) for i in range(2)} - {None}
        if len(types) > 1:
            raise UnsupportedOperator(f"{e._where()}: operands are {types}")
        a, b = (
            torch.tensor(v, dtype=e.out.dtype) if isinstance(v, (int, float)) else v for v in (a, b)
        )
        return e.emit(op, a, b)

    _EMITTERS[target] = emitter


for _target, _op in (
    (aten.add.Tensor, "Add"),
    (aten.sub.Tensor, "Sub"),
    (aten.mul.Tensor, "Mul"),
    (aten.div.Tensor, "Div"),
    (aten.matmul.default, "MatMul"),
    (aten.maximum.default, "Max"),
):
    _binary(_target, _op)


def _compared(target: Any, op: str) -> None:
    def emitter(e: Translator, a: Value, b: Value) -> Value:
        kind = e.dtype(0)
        return e.emit(op, a, torch.tensor(b, dtype=kind) if isinstance(b, (int, float)) else b)

    _EMITTERS[target] = emitter


for _target, _op in (
    (aten.ge.Tensor, "GreaterOrEqual"),
    (aten.ge.Scalar, "GreaterOrEqual"),
    (aten.gt.Scalar, "Greater"),
):
    _compared(_target, _op)


@_emits(aten.rsub.Scalar)
def _rsub(e: Translator, x: Value, a: float, alpha: float = 1) -> Value:
    if alpha != 1:
        raise UnsupportedOperator(f"{e._where()}: alpha is {alpha}")
    return e.emit("Sub", torch.tensor(a, dtype=e.out.dtype), x)


@_emits(aten.arange.default)
def _arange(e: Translator, end: Any, **_: Any) -> Value:
    """0 ... end - 1, the one place where a size is read at run time: causal graphs' tables."""
    assert e._node is not None
    zero, one = torch.tensor(0), torch.tensor(1)
    return e.emit("Range", zero, _size(e, e._node.args[0]), one)


def _size(e: Translator, node: Any) -> Value:
    """A size that is computed at run time, a scalar."""
    if not isinstance(node, Node):
        return torch.tensor(int(node))
    if node.target is aten.sym_size.int:
        x, axis = cast(tuple[Node, int], node.args)
        if x in e.values:
            return e.emit("Gather", e.emit("Shape", e.values[x]), torch.tensor(axis))
        # Of an input that only the tracer has: a fraction of a size that the graph has.
        size = node.meta["val"].node.expr
        for known, name in e.values.items():
            for axis, other in enumerate(_sizes(known) if known.op == "placeholder" else ()):
                times = other.node.expr / size if isinstance(other, torch.SymInt) else None
                if isinstance(name, str) and times is not None and times.is_Integer:
                    whole = e.emit("Gather", e.emit("Shape", name), torch.tensor(axis))
                    return e.emit("Div", whole, torch.tensor(int(times)))
        raise UnsupportedOperator(f"{e._where()}: no input has a multiple of {size}")
    operators = {operator.floordiv: "Div", operator.mul: "Mul", operator.add: "Add"}
    if node.target not in operators:
        raise UnsupportedOperator(f"{e._where()}: a size from {node.target}")
    return e.emit(operators[node.target], *(_size(e, arg) for arg in node.args))


@_emits(aten.conv2d.default)
def _conv2d(
    e: Translator,
    x: Value,
    weight: Value,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Value:
    # Weights may be computed at run time, of a fixed size: LISA's in the graphs for one recording.
    kernel = [_static(size) for size in e.shape(1)[2:]]
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return e.emit(
        "Conv",
        *inputs,
        kernel_shape=kernel,
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
    )


@_emits(aten.linear.default)
def _linear(e: Translator, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    if len(e.shape()) == 2 and bias is not None:
        return e.emit("Gemm", x, weight, bias, transB=1)
    y = e.emit("MatMul", x, weight.detach().t())
    return y if bias is None else e.emit("Add", y, bias)


@_emits(aten.leaky_relu.default)
def _leaky_relu(e: Translator, x: Value, slope: float = 0.01) -> Value:
    return e.emit("LeakyRelu", x, alpha=float(slope))


@_emits(aten.silu.default)
def _silu(e: Translator, x: Value) -> Value:
    return e.emit("Mul", x, e.emit("Sigmoid", x))


@_emits(aten.square.default)
def _square(e: Translator, x: Value) -> Value:
    return e.emit("Mul", x, x)


@_emits(aten.clamp_min.default)
def _clamp_min(e: Translator, x: Value, floor: float) -> Value:
    return e.emit("Max", x, torch.tensor(floor, dtype=e.out.dtype))


@_emits(aten.layer_norm.default)
def _layer_norm(
    e: Translator,
    x: Value,
    shape: Sequence[int],
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Value:
    return e.emit("LayerNormalization", x, weight, bias, axis=-len(shape), epsilon=eps)


def _reduction(target: Any, op: str) -> None:
    def emitter(
        e: Translator, x: Value, dims: Sequence[int], keepdim: bool = False, dtype: Any = None
    ) -> Value:
        if e.dtype(0) != torch.float32:
            raise UnsupportedOperator(f"{e._where()}: {op} runs in {e.dtype(0)}, not float32")
        rank = len(e.shape())
        return e.emit(op, x, e.ints([d % rank for d in dims]), keepdims=int(keepdim))

    _EMITTERS[target] = emitter


for _target, _op in (
    (aten.mean.dim, "ReduceMean"),
    (aten.sum.dim_IntList, "ReduceSum"),
    (aten.amin.default, "ReduceMin"),
    (aten.amax.default, "ReduceMax"),
):
    _reduction(_target, _op)


@_emits(aten.to.dtype, aten._to_copy.default)
def _to(e: Translator, x: Value, dtype: torch.dtype | None = None, *_: Any, **__: Any) -> Value:
    dtype = e.out.dtype
    return x if e.dtype(0) == dtype else e.emit("Cast", x, to=_TYPES[dtype])


@_emits(
    aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.squeeze.dim,
)  # fmt: skip
def _reshape(e: Translator, x: Value, *_: Any) -> Value:
    return e.emit("Reshape", x, e.ints(reshape_spec(e.shape(), list(e.out.shape))))


@_emits(aten.unsqueeze.default)
def _unsqueeze(e: Translator, x: Value, dim: int) -> Value:
    return e.emit("Unsqueeze", x, e.ints([dim % e.out.dim()]))


def _transposed(e: Translator, x: Value, order: Sequence[int]) -> Value:
    return e.emit("Transpose", x, perm=list(order))


@_emits(aten.permute.default)
def _permute(e: Translator, x: Value, dims: Sequence[int]) -> Value:
    return _transposed(e, x, [d % len(dims) for d in dims])


@_emits(aten.transpose.int)
def _transpose(e: Translator, x: Value, a: int, b: int) -> Value:
    order = list(range(e.out.dim()))
    order[a], order[b] = order[b], order[a]
    return _transposed(e, x, order)


@_emits(aten.t.default)
def _t(e: Translator, x: Value) -> Value:
    return _transposed(e, x, (1, 0))


@_emits(aten.movedim.int)
def _movedim(e: Translator, x: Value, source: int, destination: int) -> Value:
    rank = e.out.dim()
    order = [i for i in range(rank) if i != source % rank]
    order.insert(destination % rank, source % rank)
    return _transposed(e, x, order)


@_emits(aten.cat.default)
def _cat(e: Translator, tensors: Sequence[Value], dim: int = 0) -> Value:
    return e.emit("Concat", *tensors, axis=dim % e.out.dim())


@_emits(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
def _split(e: Translator, x: Value, how: Any, dim: int = 0) -> Value:
    assert e._node is not None
    rank = len(e.shape())
    sizes = [_static(part.shape[dim % rank]) for part in e._node.meta["val"]]
    if any(size is None for size in sizes):
        raise UnsupportedOperator(f"{e._where()}: splits a dynamic axis, {sizes}")
    return e.emit("Split", x, e.ints(cast(list[int], sizes)), n_outputs=len(sizes), axis=dim % rank)


@_emits(aten.slice.Tensor)
def _slice(
    e: Translator,
    x: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    assert e._node is not None
    unknown = [
        arg
        for arg, value in zip(e._node.args[2:], (start, end), strict=False)
        if arg is not None and value is None
    ]
    first, last = start or 0, _END if end is None else min(end, _END)
    if unknown or not isinstance(first, int) or not isinstance(last, int):
        raise UnsupportedOperator(f"{e._where()}: its bounds depend on a dynamic size")
    if (first, last, step) == (0, _END, 1):
        return x
    axis = dim % e.out.dim()
    bounds = [(first, last, axis, step)]
    if x in e.slices and all(axis != other[2] for other in e.slices[x][1]):  # one node for both
        x, earlier = e.slices[x]
        bounds = [*earlier, *bounds]
    y = e.emit("Slice", x, *(e.ints(column) for column in zip(*bounds, strict=True)))
    e.slices[y] = (x, bounds)
    return y


@_emits(aten.select.int)
def _select(e: Translator, x: Value, dim: int, index: int) -> Value:
    position = torch.tensor(index, dtype=torch.int64)
    return e.emit("Gather", x, position, axis=dim % len(e.shape()))


@_emits(aten.unbind.int)
def _unbind(e: Translator, x: Value, dim: int = 0) -> Value:
    count = _static(e.shape()[dim])
    if count is None:
        raise UnsupportedOperator(f"{e._where()}: unbinds a dynamic axis")
    return [_select(e, x, dim, i) for i in range(count)]


@_emits(aten.index_select.default)
def _index_select(e: Translator, x: Value, dim: int, index: Tensor) -> Value:
    return e.emit("Gather", x, index, axis=dim % len(e.shape()))


@_emits(aten.pad.default)
def _pad(
    e: Translator, x: Value, pads: Sequence[int], mode: str = "constant", value: float | None = None
) -> Value:
    rank = e.out.dim()
    before, after = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    names = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    inputs = [x, e.ints(before + after)]
    if mode == "constant":
        inputs.append(torch.tensor(value or 0.0, dtype=e.out.dtype))
    return e.emit("Pad", *inputs, mode=names[mode])


@_emits(aten.pixel_shuffle.default)
def _pixel_shuffle(e: Translator, x: Value, factor: int) -> Value:
    return e.emit("DepthToSpace", x, blocksize=factor, mode="CRD")


@_emits(aten.pixel_unshuffle.default)
def _pixel_unshuffle(e: Translator, x: Value, factor: int) -> Value:
    # SpaceToDepth orders channels block first; the model has them channel first
    _, channels, _, n_bins = e.shape()
    blocks = e.ints([0, channels, -1, factor, n_bins // factor, factor])
    y = _transposed(e, e.emit("Reshape", x, blocks), (0, 1, 3, 5, 2, 4))
    return e.emit("Reshape", y, e.ints([0, channels * factor**2, -1, n_bins // factor]))


def count_ops(model: onnx.ModelProto) -> dict[str, int]:
    """Nodes of ``model`` by operator, most frequent first."""
    names, counts = np.unique([node.op_type for node in model.graph.node], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(names[i]): int(counts[i]) for i in order}
