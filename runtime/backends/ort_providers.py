"""Options of ONNX Runtime's providers for NVIDIA GPUs, and where they keep what they build."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import BackendError
from ..tensorrt.onnx_inputs import Profile, graph_inputs


def _device(index: int) -> dict[str, str]:
    """Which GPU; the first is every provider's own choice.

    Since version 1.26 ONNX Runtime warns at each session that names a device of its own providers,
    as it looks for it among plug-ins first.
    """
    return {"device_id": str(index)} if index else {}


def cuda_options(index: int, tf32: bool) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider.

    Convolution algorithms are looked up, not timed: the provider's default tries all of them for
    every new shape (seconds at each recording's last window) and gains nothing at the others
    (github.com/PaddlePaddle/PaddleX/pull/5057). TF32 is on there by default.

    Args:
        index: The GPU's.
        tf32: Whether float32 products may be rounded to TF32.
    """
    return {
        **_device(index),
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(tf32)),
    }


def engine_cache(graph_sha256: str, kind: str = "ort-tensorrt") -> Path:
    """Folder of the user's alone for the engines that a provider builds of one graph.

    Engines are executable code: a folder that others can write to is refused.

    Args:
        graph_sha256: Hash of the graph.
        kind: Which provider's.

    Raises:
        BackendError: The folder cannot be made, or is not the user's alone.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "dvpd" / kind / graph_sha256[:16]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError as error:
        raise BackendError(
            f"{folder}: no folder for TensorRT's engines ({error}); set XDG_CACHE_HOME to a folder "
            "that can be written"
        ) from None
    if os.name == "posix" and (state.st_uid != os.geteuid() or state.st_mode & 0o022):
        raise BackendError(
            f"{folder} belongs to or can be written by somebody else, and the engines in it are "
            "executable code; remove it, or set XDG_CACHE_HOME to a folder of your own"
        )
    return folder


def tensorrt_options(path: Path, sha256: str, precision: str, index: int) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider for one graph.

    One engine for the sizes of the default ``Profile``, kept on disk. The provider has no strongly
    typed networks: of an fp16 graph TensorRT chooses the types of its layers itself. Nor has it an
    option against TF32: NVIDIA_TF32_OVERRIDE=0 in the environment turns it off for the process.

    Args:
        path: The graph.
        sha256: Its hash.
        precision: "fp32" or "fp16".
        index: The GPU's.

    Raises:
        BackendError: There is no place for the engines.
        ManifestError: The graph's inputs cannot be read.
    """
    shapes = Profile().shapes(graph_inputs(path))
    cache = str(engine_cache(sha256))
    options = {
        **_device(index),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": cache,
        "trt_fp16_enable": str(precision == "fp16"),
    }
    for i, kind in enumerate(("min", "opt", "max")):
        options[f"trt_profile_{kind}_shapes"] = ",".join(
            f"{name}:{'x'.join(str(size) for size in rows[i])}" for name, rows in shapes.items()
        )
    return options
