"""What a graph takes: its inputs, read without the onnx package, and the sizes that a plan accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, ManifestError
from ..spec import FRAME_MULTIPLE, MIN_FRAMES
from ..wire_format import GRAPH_INPUT, MODEL_GRAPH, VALUE_NAME, fields, values_at

Shape = tuple[int, ...]


@dataclass(frozen=True)
class GraphInput:
    """One input of an ONNX graph; sizes are numbers, or names such as "B" and "T/2"."""

    name: str
    shape: tuple[int | str, ...]


def graph_inputs(path: Path) -> tuple[GraphInput, ...]:
    """Inputs of an ONNX graph, read without the onnx package.

    Args:
        path: A graph written by export/to_onnx.py.

    Raises:
        ManifestError: The file is not such a graph.
    """
    # Field numbers of onnx.proto: ValueInfoProto.type 2, TypeProto.tensor_type 1, Tensor.shape 2,
    # TensorShapeProto.dim 1, Dimension.dim_value 1 and .dim_param 2.
    try:
        found = []
        for value in values_at(memoryview(path.read_bytes()), MODEL_GRAPH, GRAPH_INPUT):
            (name,) = values_at(value, VALUE_NAME)
            shape: list[int | str] = []
            for dim in values_at(value, 2, 1, 2, 1):
                sizes = {part.number: part.value for part in fields(dim)}
                shape.append(str(sizes[2], "utf-8") if 2 in sizes else int(sizes[1]))
            found.append(GraphInput(str(name, "utf-8"), tuple(shape)))
    except (OSError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ManifestError(
            f"{path}: inputs cannot be read ({error}); export the engine again"
        ) from None
    if not found:
        raise ManifestError(f"{path}: a graph without inputs; export the engine again")
    return tuple(found)


# Frames and batch: one block of a stream, up to what a file is computed in; up to a pool's batch.
LIVE = (FRAME_MULTIPLE, FRAME_MULTIPLE, 256), (1, 1, 64)


@dataclass(frozen=True)
class Profile:
    """Sizes that a plan accepts: (smallest, tuned for, largest) of frames and of the batch.

    The default holds the runtime's window of 1024 frames. A causal model's usual sizes are ``LIVE``.
    """

    frames: tuple[int, int, int] = (32, 256, 1024)
    batch: tuple[int, int, int] = (1, 1, 4)

    def __post_init__(self) -> None:
        """Refuse sizes that no graph accepts."""
        for name, step, low in (("frames", FRAME_MULTIPLE, FRAME_MULTIPLE), ("batch", 1, 1)):
            sizes = getattr(self, name)
            fits = (
                isinstance(sizes, tuple)
                and len(sizes) == 3
                and all(isinstance(s, int) and not isinstance(s, bool) for s in sizes)
                and list(sizes) == sorted(sizes)
                and all(s >= low and s % step == 0 for s in sizes)
            )
            if not fits:
                raise InputError(
                    f"profile {name} is {sizes!r}; expected min,opt,max in rising order, multiples "
                    f"of {step}, at least {low}"
                )

    def shapes(self, inputs: Sequence[GraphInput]) -> dict[str, tuple[Shape, Shape, Shape]]:
        """Shapes (min, opt, max) of each input.

        Args:
            inputs: The graph's inputs.

        Raises:
            ManifestError: A dynamic size is neither the batch nor a part of the frames.
        """
        table = {}
        for value in inputs:
            rows = []
            for batch, frames in zip(self.batch, self.frames, strict=True):
                sizes = {"B": batch, "T": frames, "T/2": frames // 2, "T/4": frames // 4}
                try:
                    rows.append(tuple(sizes[d] if isinstance(d, str) else d for d in value.shape))
                except KeyError as error:
                    raise ManifestError(
                        f"input {value.name} has a size named {error}; expected "
                        f"{', '.join(sizes)}: export the engine again"
                    ) from None
            table[value.name] = (rows[0], rows[1], rows[2])
        return table

    @classmethod
    def usual(cls, causal: bool) -> Profile:
        """What plans are built for where nobody says it.

        Args:
            causal: Whether it is a causal model's.
        """
        return cls(*LIVE) if causal else cls()

    def check(self, causal: bool) -> None:
        """Refuse calls that a model's graph does not take.

        Args:
            causal: Whether it is a causal model's, which takes single blocks.

        Raises:
            InputError: The smallest call is too short.
        """
        if not causal and self.frames[0] < MIN_FRAMES:
            raise InputError(
                f"profile frames is {self.frames!r}; expected at least {MIN_FRAMES}: this model hears "
                "windows, not blocks"
            )

    def holds(self, n_frames: int, batch: int) -> bool:
        """Whether a call of this size is inside."""
        return (
            self.frames[0] <= n_frames <= self.frames[2]
            and n_frames % FRAME_MULTIPLE == 0
            and self.batch[0] <= batch <= self.batch[2]
        )
