"""Whether a loaded graph is the one that the contract describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ManifestError
from ..spec import ESTIMATE, CausalSpec, TensorSpec, graph_io


def _text(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs)


@dataclass(frozen=True)
class GraphTensor:
    """One tensor of a loaded graph, as the engine describes it.

    Attributes:
        name: Tensor name.
        dtype: NumPy dtype name, or the engine's own name where there is none.
        shape: Sizes; None where dynamic.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def said(graph: str) -> str:
    """What messages call a graph: that of the file.

    Args:
        graph: "predictive", "score", "block" or ``ESTIMATE``.
    """
    return "predictive" if graph == ESTIMATE else graph


def check_signature(
    graph: str,
    precision: str,
    inputs: Sequence[GraphTensor],
    outputs: Sequence[GraphTensor],
    causal: CausalSpec | None = None,
    single: bool = False,
) -> None:
    """Check a loaded graph's inputs and outputs against the contract.

    Args:
        graph: "predictive", "score" or ``ESTIMATE``.
        precision: "fp32" or "fp16".
        inputs: What the engine reports.
        outputs: What the engine reports.
        causal: The manifest's.
        single: Whether it is a graph for one recording, where B is 1.

    Raises:
        ManifestError: A name, dtype or shape differs, or a size is fixed that must not be.
    """
    for side, specs, got in zip(
        ("inputs", "outputs"), graph_io(graph, precision, causal), (inputs, outputs), strict=True
    ):
        found = {tensor.name: tensor for tensor in got}
        if set(found) != {spec.name for spec in specs}:
            raise ManifestError(
                f"the {said(graph)} graph has {side} {sorted(found)}; expected {_text(specs)}: it is "
                "not of this version, export the engine again"
            )
        for spec in specs:
            tensor = found[spec.name]
            fits = len(tensor.shape) == len(spec.shape) and all(
                want is None or size is None or size == (1 if single and want == "B" else want)
                for size, want in zip(tensor.shape, spec.shape, strict=True)
            )
            if tensor.dtype != spec.dtype or not fits:
                raise ManifestError(
                    f"the {said(graph)} graph's {spec.name} is {tensor.dtype} {list(tensor.shape)}; "
                    f"expected {spec.dtype} {list(spec.shape)} (None or a letter: dynamic): "
                    "export the engine again"
                )
