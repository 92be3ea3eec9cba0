"""Whether TensorRT-RTX parses and builds a graph: it does so without a GPU.

Only a check: the plan is thrown away. It targets the portable profile, whose plans run on every
supported GPU.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx

# frames (min, opt, max) and batch of the profile that is built
FRAMES = (32, 256, 512)
BATCH = (1, 1, 4)


class RtxError(Exception):
    """TensorRT-RTX refuses a graph; the message holds the parser's errors."""


def available() -> bool:
    """Whether tensorrt_rtx is installed."""
    return importlib.util.find_spec("tensorrt_rtx") is not None


def _profile_shape(value: onnx.ValueInfoProto, batch: int, frames: int) -> tuple[int, ...]:
    sizes = {"B": batch, "T": frames, "T/2": frames // 2, "T/4": frames // 4}
    dims = value.type.tensor_type.shape.dim
    return tuple(sizes[d.dim_param] if d.dim_param else d.dim_value for d in dims)


def check_graph(path: str | Path, build: bool = True) -> int:
    """Parse the ONNX file as a strongly typed network and build a plan for it.

    Args:
        path: An exported graph.
        build: False to stop after the parser.

    Returns:
        Size of the plan in bytes, 0 where none was built.

    Raises:
        RtxError: A node does not parse, or no plan comes out.
    """
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise RtxError(f"{path}: TensorRT-RTX {trt.__version__} cannot parse it: {errors}")
    if not build:
        return 0
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for value in onnx.load(str(path), load_external_data=False).graph.input:
        shapes = [_profile_shape(value, b, t) for b, t in zip(BATCH, FRAMES, strict=True)]
        profile.set_shape(value.name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise RtxError(f"{path}: TensorRT-RTX refuses the optimisation profile")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RtxError(f"{path}: TensorRT-RTX {trt.__version__} parses it but builds no plan")
    return int(plan.nbytes)
