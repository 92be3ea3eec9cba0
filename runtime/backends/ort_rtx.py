"""ONNX Runtime's RTX provider: a plug-in of its own package, with TensorRT-RTX inside.

Source: NVIDIA, TensorRT-RTX-EP-ABI (installation, integration guide); ONNX Runtime, plug-in providers.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ..errors import BackendError
from ..tensorrt.onnx_inputs import Profile, graph_inputs

PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
INSTALL = "pip install 'dvpd[ort-rtx]'"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def rtx_device(onnxruntime: Any, index: int) -> tuple[str, Any]:
    """Register the plug-in, once in a process, and choose one of its GPUs.

    Args:
        onnxruntime: The package.
        index: The GPU's, among those that the plug-in can use.

    Returns:
        The provider's name and the device, as ``add_provider_for_devices`` takes it.

    Raises:
        BackendError: The package, the driver or the GPU is not there.
    """
    try:
        plugin = importlib.import_module(PACKAGE)
    except ModuleNotFoundError:
        raise BackendError(
            f"device rtx needs the package onnxruntime-ep-nv-tensorrt-rtx: {INSTALL} (CUDA 13; for "
            "CUDA 12 onnxruntime-ep-nv-tensorrt-rtx-cu12)"
        ) from None
    except Exception as error:  # it loads its libraries: whatever they raise
        raise BackendError(f"{PACKAGE} does not import ({_first_line(error)}): {INSTALL}") from None
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise BackendError(
            f"device rtx needs onnxruntime 1.24 or newer, this is {onnxruntime.__version__}: pip "
            "install -U onnxruntime"
        )
    name: str = plugin.get_ep_name()
    if not _devices(onnxruntime, name):
        try:
            onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # the library's own types; also when it is registered already
            if "already" not in str(error):
                raise BackendError(
                    f"ONNX Runtime cannot load its RTX provider ({_first_line(error)}): it needs "
                    "NVIDIA's driver for an RTX GPU; `nvidia-smi` shows whether it is there"
                ) from None
    found = _devices(onnxruntime, name)
    if index >= len(found):
        raise BackendError(
            f"device rtx:{index} asked for, but the RTX provider finds {len(found)} GPUs; it takes "
            "GeForce and workstation RTX, Ampere (30xx) or later: use another device"
        )
    return name, found[index]


def _devices(onnxruntime: Any, name: str) -> list[Any]:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]


def rtx_options(path: Path, cache: Path) -> dict[str, str]:
    """Options of the provider for one graph: sizes of the default ``Profile``, kernels kept on disk.

    Args:
        path: The graph.
        cache: Folder of the user's alone.

    Raises:
        ManifestError: The graph's inputs cannot be read.
    """
    shapes = Profile().shapes(graph_inputs(path))
    options = {"nv_runtime_cache_path": str(cache)}
    for i, kind in enumerate(("min", "opt", "max")):
        options[f"nv_profile_{kind}_shapes"] = ",".join(
            f"{name}:{'x'.join(str(size) for size in rows[i])}" for name, rows in shapes.items()
        )
    return options
