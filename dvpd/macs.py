"""Multiply-accumulates, other arithmetic, bytes and parameters of the PyTorch model.

A dispatch counter: convolutions and matrix products are counted from the shapes that reach the
kernels, in whatever module they are, so the attention's products count too; so does every
elementwise product (gates, LISA's shifted multiply-adds). Batch norms fold into convolutions at
inference and cost nothing. ``benchmarks/common/graph_costs.py`` counts the exported graphs from their
own shapes; the two agree exactly, module by module (``benchmarks/macs.py``).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .causal import advance
from .model import DVPD
from .runtime.spec import FRAME_MULTIPLE, N_FREQS, SamplerSpec, SignalSpec

COUNT_FRAMES = 1000  # long enough that what does not grow with time is lost in it
CONVOLUTION, MATRIX, PRODUCT = "convolution", "matrix product", "elementwise product"
aten = torch.ops.aten

# Elements written by one pass over memory, by the name that the graph counter uses too.
_ELEMENTWISE = {
    "add": "add", "sub": "subtract", "div": "divide", "neg": "negate", "clamp_min": "maximum",
    "sigmoid": "sigmoid", "relu": "relu", "leaky_relu": "leaky relu", "tanh": "tanh",
    "exp": "exp", "log": "log", "sin": "sin", "cos": "cos", "sqrt": "sqrt",
    "softplus": "softplus", "gelu": "gelu", "_prelu_kernel": "prelu", "elu": "elu",
}  # fmt: skip
# Elements read by a reduction.
_REDUCTIONS = {"mean": "mean", "sum": "sum", "amin": "min", "amax": "max"}
# Norms: elements normalised.
_NORMS = {
    "_native_batch_norm_legit_no_training": "batch norm",
    "native_batch_norm": "batch norm",
    "cudnn_batch_norm": "batch norm",
    "native_layer_norm": "layer norm",
    "native_group_norm": "group norm",
}

Key = tuple[str, str]  # (module, operator)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in torch.utils._pytree.tree_leaves(values) if isinstance(x, Tensor))


class MacCounter(TorchDispatchMode):
    """Counts the arithmetic of what runs inside it.

    Attributes:
        macs_by_module: Multiply-accumulates by (module, operator); the module is "" without a
            model.
        elementwise: Other arithmetic by (module, operator): elements written, of reductions and
            norms elements read.
        folded: Multiply-accumulates by (module, operator) of values that depend on weights alone:
            part of ``macs_by_module``, done once at export.
        folded_elementwise: The same for ``elementwise``.
        bytes_moved: Bytes that the operators read and write by module, no two of them fused;
            views cost nothing.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        """Start at zero; with ``model``, counts are kept by its submodules' names."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.macs_by_module: Counter[Key] = Counter()
        self.elementwise: Counter[Key] = Counter()
        self.folded: Counter[Key] = Counter()
        self.folded_elementwise: Counter[Key] = Counter()
        self.bytes_moved: Counter[str] = Counter()
        self._model = model
        self._stack = [""]
        self._hooks: list[Any] = []
        # Tensors computed from weights alone, kept alive so that no id comes twice.
        self._constants: dict[int, Tensor] = {}

    def __enter__(self) -> MacCounter:
        """Start counting."""
        if self._model is not None:
            for tensor in (*self._model.parameters(), *self._model.buffers()):
                self._constants[id(tensor)] = tensor
            for name, module in self._model.named_modules():
                self._hooks.append(module.register_forward_pre_hook(self._enter(name)))
                self._hooks.append(module.register_forward_hook(lambda *_: self._leave()))
        super().__enter__()  # type: ignore[no-untyped-call]  # torch has no types for it
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch has no types for it
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._constants.clear()
        self._stack = [""]

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda *_: self._stack.append(name)

    def _leave(self) -> None:
        self._stack.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` and count it."""
        out = func(*args, **(kwargs or {}))
        inputs = list(_tensors((args, kwargs)))
        constant = self._model is not None and all(id(x) in self._constants for x in inputs)
        if constant:
            self._constants.update((id(x), x) for x in _tensors(out))
        elif not func.is_view:
            tensors = (*inputs, *_tensors(out))
            self.bytes_moved[self._stack[-1]] += sum(x.numel() * x.element_size() for x in tensors)
        for operator, count in _cost(func.overloadpacket._qualified_op_name, args, out):
            product = operator in (CONVOLUTION, MATRIX, PRODUCT)
            key = (self._stack[-1], operator)
            (self.macs_by_module if product else self.elementwise)[key] += count
            if constant:
                (self.folded if product else self.folded_elementwise)[key] += count
        return out

    @property
    def macs(self) -> Counter[str]:
        """Multiply-accumulates by operator."""
        return by_operator(self.macs_by_module)

    @property
    def total(self) -> int:
        """All multiply-accumulates."""
        return sum(self.macs_by_module.values())


def _cost(name: str, args: tuple[Any, ...], out: Any) -> Iterator[tuple[str, int]]:
    """(operator, count) pairs of one call of the operator ``name``, such as "aten::mul"."""
    name = name.removeprefix("aten::")
    name = name[:-1] if name.endswith("_") else name  # in place: the same arithmetic
    if name == "convolution":
        x, weight, bias, transposed = args[0], args[1], args[2], args[6]
        # transposed: every input element meets every tap
        yield CONVOLUTION, (x if transposed else out).numel() * math.prod(weight.shape[1:])
        if bias is not None:
            yield "add", out.numel()
    elif name in ("mm", "bmm"):
        yield MATRIX, out.numel() * args[0].shape[-1]
    elif name in ("addmm", "baddbmm"):
        yield MATRIX, out.numel() * args[1].shape[-1]
        yield "add", out.numel()
    elif name in ("mv", "dot"):
        yield MATRIX, args[0].numel()
    elif name == "mkldnn_rnn_layer":  # one layer and direction of an LSTM on a CPU
        x, w_input, w_hidden = args[:3]
        yield MATRIX, x.shape[0] * x.shape[1] * (w_input.numel() + w_hidden.numel())
    elif name.startswith("_scaled_dot_product"):
        q, k, v = args[:3]
        yield MATRIX, q.numel() * k.shape[-2] + q[..., :1].numel() * k.shape[-2] * v.shape[-1]
    elif name == "mul" and isinstance(out, Tensor):
        yield PRODUCT, out.numel()
    elif name == "silu":
        yield "sigmoid", out.numel()
        yield PRODUCT, out.numel()
    elif name in _ELEMENTWISE:
        yield _ELEMENTWISE[name], out.numel()
    elif name in _REDUCTIONS:
        yield _REDUCTIONS[name], args[0].numel()
    elif name in _NORMS:
        yield _NORMS[name], args[0].numel()


def by_operator(table: Counter[Key]) -> Counter[str]:
    """Sums of a (module, operator) table by operator."""
    result: Counter[str] = Counter()
    for (_, operator), count in table.items():
        result[operator] += count
    return result


def by_module(table: Counter[Key], depth: int) -> Counter[str]:
    """Sums of a (module, operator) table by the first ``depth`` parts of the module's name."""
    result: Counter[str] = Counter()
    for (module, _), count in table.items():
        result[".".join(module.split(".")[:depth])] += count
    return result


def counted_frames(model: DVPD) -> int:
    """Frames of the calls that figures are counted from: a long one, or a causal model's block."""
    return FRAME_MULTIPLE if model.config.causal else COUNT_FRAMES


@torch.no_grad()
def count_calls(model: DVPD, n_frames: int | None = None) -> tuple[MacCounter, MacCounter]:
    """Costs of one predictive and one score call on ``n_frames`` frames (a multiple of 4).

    By default `counted_frames`: a causal model is counted block by block, as a stream calls it.

    Modules are named as in the branch, such as "encoder.stem.conv". Nothing is computed: shapes
    alone run through a copy of the model.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError("count_calls: model is in training mode; call model.eval()")
    n_frames = counted_frames(model) if n_frames is None else n_frames
    model = copy.deepcopy(model).to("meta")
    noisy = torch.empty(1, 3, n_frames, N_FREQS, device="meta")
    factors = torch.empty(2, 2, device="meta")
    t = torch.empty(1, device="meta")

    def run(network: nn.Module, *inputs: Any) -> tuple[MacCounter, Any]:
        with MacCounter(network) as counter:
            if model.config.causal:
                return counter, advance(network, None, *inputs)[0]
            return counter, network(*inputs)

    first, (_, feats) = run(model.predictive, noisy)
    second, _ = run(model.score, noisy[:, :1], t, feats, factors, factors)
    return first, second


def macs_per_second(
    model: DVPD, signal: SignalSpec | None = None, n_steps: int = SamplerSpec.n_steps
) -> dict[str, int]:
    """MACs for a second of audio: "predictive", "score" (one call each) and "total".

    Args:
        model: In eval mode.
        signal: For the frame rate.
        n_steps: Calls of the score branch in the total.
    """
    predictive, score = count_calls(model)
    scale = (signal or SignalSpec()).frame_rate_hz / counted_frames(model)
    p, s = round(predictive.total * scale), round(score.total * scale)
    return {"predictive": p, "score": s, "total": p + n_steps * s}


def parameter_counts(model: DVPD) -> dict[str, int]:
    """Trained parameters: "predictive", "score" and "total"."""
    p = sum(x.numel() for x in model.predictive.parameters())
    s = sum(x.numel() for x in model.score.parameters())
    return {"predictive": p, "score": s, "total": p + s}
