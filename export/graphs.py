"""The two networks as ONNX graphs: folding, precision, tracing with dynamic B and T."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from dvpd.causal import advance
from dvpd.fanc import compressed_bins
from dvpd.lisa import LISA
from dvpd.model import DVPD, causal_spec
from dvpd.runtime.spec import (
    FRAME_MULTIPLE,
    MIN_FRAMES,
    N_FEATS,
    N_FREQS,
    CausalSpec,
    SignalSpec,
    graph_io,
)

from .translate import translate

TRACE_BATCH = 2  # 0 and 1 are special to the tracer
TRACE_FRAMES = 64
MAX_BATCH, MAX_FRAMES = 1024, 1 << 20  # bounds for the tracer; the graph itself has none
FEAT_DIVISORS = (1, 1, 2, 4, 2, 1)  # frames of feat_i: T divided by this


def count_in_blocks(frames: int, quarter: int) -> None:
    """Tell the tracer that T is four times another size, which every other one then has as a factor.

    Otherwise a block of 4 frames becomes T // (T // 4), and every layer wraps another division
    around it: proving things about these took most of a trace.

    Args:
        frames: T.
        quarter: T / 4.
    """
    torch._check(frames == FRAME_MULTIPLE * quarter)


class PredictiveGraph(nn.Module):
    """The predictive branch with flat outputs; a causal one with a state."""

    def __init__(self, model: DVPD) -> None:
        """Wrap the branch of ``model``."""
        super().__init__()
        self.net = model.predictive

    def forward(
        self, noisy: Tensor, state: Tensor | None = None, quarter: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """``noisy`` -> clean_ri, feat_0 ... feat_5 (, next_state).

        ``quarter``, T/4 values, is for the tracer alone, as no other input has that size.
        """
        if quarter is not None:
            count_in_blocks(noisy.shape[2], quarter.shape[0])
        if state is not None:
            (clean_ri, feats), after = advance(self.net, state, noisy, chunk=None)
            return (clean_ri, *feats, after)
        clean_ri, feats = self.net(noisy)
        return (clean_ri, *feats)


class ScoreGraph(nn.Module):
    """The score branch with flat inputs, in the order of the graph's."""

    def __init__(self, model: DVPD) -> None:
        """Wrap the branch of ``model``."""
        super().__init__()
        self.net, self.causal = model.score, model.config.causal

    def forward(self, xt: Tensor, t: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """``rest``: feat_0 ... feat_5, tlb_skip, tlb_backbone (, state)."""
        count_in_blocks(xt.shape[2], rest[FEAT_DIVISORS.index(FRAME_MULTIPLE)].shape[2])
        if self.causal:
            *feats, tlb_skip, tlb_backbone, state = rest
            given = (xt, t, feats, tlb_skip, tlb_backbone)
            return advance(self.net, state, *given, chunk=None)
        *feats, tlb_skip, tlb_backbone = rest
        return (self.net(xt, t, feats, tlb_skip, tlb_backbone),)


@contextmanager
def quick_tracing() -> Iterator[None]:
    """Switch off a cache that costs the tracer twice what it saves when sizes are symbolic."""
    import torch._dynamo.config as dynamo_config

    known = hasattr(dynamo_config, "fake_tensor_cache_enabled")
    before = getattr(dynamo_config, "fake_tensor_cache_enabled", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own deprecations
        try:
            if known:
                setattr(dynamo_config, "fake_tensor_cache_enabled", False)  # noqa: B010
            yield
        finally:
            if known:
                setattr(dynamo_config, "fake_tensor_cache_enabled", before)  # noqa: B010


def _sizes(
    graph: str, precision: str, model: DVPD, causal: CausalSpec | None, single: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Names and sizes of the graph's inputs and outputs, dynamic ones as "B", "T", "T/2", "T/4"."""
    batch = 1 if single else "B"
    c, bins = model.config.channels, compressed_bins(model.config.encoder)
    result: list[dict[str, Any]] = []
    for specs in graph_io(graph, precision, causal):
        table: dict[str, Any] = {}
        for spec in specs:
            table[spec.name] = tuple(batch if size == "B" else size for size in spec.shape)
            if spec.name.startswith("feat_"):
                d = FEAT_DIVISORS[int(spec.name[-1])]
                table[spec.name] = (batch, c * d, "T" if d == 1 else f"T/{d}", bins // d)
        result.append(table)
    return result[0], result[1]


@contextmanager
def _single(model: DVPD, single: bool) -> Iterator[None]:
    """Let the layers know that the batch is 1."""
    layers = [module for module in model.modules() if isinstance(module, LISA)]
    try:
        for layer in layers:
            layer.single = single
        yield
    finally:
        for layer in layers:
            layer.single = False


def build_graph(
    model: DVPD, graph: str, precision: str, *, single: bool = False
) -> onnx.ModelProto:
    """One network as an ONNX model, without metadata.

    Args:
        model: What `prepare` returned for the same ``precision``.
        graph: "predictive" or "score".
        precision: "fp32" or "fp16".
        single: Whether the batch is fixed at 1, for CPUs: LISA's stripes are then convolutions with
            weights of run time, which ONNX has for a fixed number of maps alone. Not for a causal
            model.

    Raises:
        UnsupportedOperator: The configuration uses an operator without translation.
    """
    causal = causal_spec(model, SignalSpec())
    inputs, outputs = _sizes(graph, precision, model, causal, single)
    quarter = torch.export.Dim(
        "T4", min=1 if causal else MIN_FRAMES // FRAME_MULTIPLE, max=MAX_FRAMES // FRAME_MULTIPLE
    )
    frames = {1: 4 * quarter, 2: 2 * quarter, 4: quarter}
    n = 1 if single else TRACE_BATCH
    each = {} if single else {0: torch.export.Dim("B", min=1, max=MAX_BATCH)}
    noisy = torch.rand(n, 3, TRACE_FRAMES, N_FREQS)
    full = {**each, 2: frames[1]}
    state = torch.rand(n, causal.state_size[graph] if causal else 1)
    args: tuple[Tensor | None, ...]
    shapes: Any
    wrapper: nn.Module
    if graph == "predictive":
        wrapper = PredictiveGraph(model)
        args = (noisy, state if causal else None, torch.rand(TRACE_FRAMES // FRAME_MULTIPLE))
        shapes = (full, each if causal else None, {0: quarter})
    else:
        half = torch.float16 if precision == "fp16" else torch.float32
        sizes = [inputs[f"feat_{i}"] for i in range(N_FEATS)]
        feats = [
            torch.rand(n, s[1], TRACE_FRAMES // d, s[3], dtype=half)
            for s, d in zip(sizes, FEAT_DIVISORS, strict=True)
        ]
        ones = torch.ones(2, 2)
        wrapper = ScoreGraph(model)
        args = (
            noisy[:, :1].contiguous(),
            torch.full((n,), 0.1),
            *feats,
            ones,
            ones.clone(),
        )
        rest = tuple({**each, 2: frames[d]} for d in FEAT_DIVISORS)
        shapes = (full, each, (*rest, None, None))
        if causal:
            args = (*args, state)
            shapes = (full, each, (*rest, None, None, each))
    with quick_tracing(), _single(model, single), torch.no_grad():
        program = torch.export.export(wrapper.eval(), args, dynamic_shapes=shapes, strict=False)
        return translate(program, inputs, outputs, f"dvpd_{graph}")
