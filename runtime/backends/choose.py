"""The choice between the inference engines that are installed, and opening one."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checks import check_whole
from ..errors import BackendError, InputError, raise_interrupt
from ..manifest import BLOCK, Manifest
from ..tensorrt.gpus import cuda_device_count
from .base import Backend, LoadOptions
from .single import graphs_for

logger = logging.getLogger("dvpd")

FIX_NO_ENGINE = "pip install 'dvpd[cpu]' (ONNX Runtime) or pip install 'dvpd[openvino]'"


def _open_ort(options: LoadOptions) -> Backend:
    from .ort import OrtBackend

    return OrtBackend(options)


def _open_openvino(name: str) -> Callable[[LoadOptions], Backend]:
    def load(options: LoadOptions) -> Backend:
        from .openvino import OpenVinoBackend

        return OpenVinoBackend(options, name=name)

    return load


def _open_trt(name: str) -> Callable[[LoadOptions], Backend]:
    def load(options: LoadOptions) -> Backend:
        from .trt import TrtBackend
        from .trt_stream import TrtStreamBackend

        kind = TrtBackend if options.manifest.causal is None else TrtStreamBackend
        return kind(options, name)

    return load


def _open_torch(options: LoadOptions) -> Backend:
    # By name: the runtime itself stays free of torch.
    module = importlib.import_module("...torch_backend", __package__)
    backend: Backend = module.open_checkpoint(options)
    return backend


# Backend name -> (module to import, extra that installs it, loader).
BACKENDS: dict[str, tuple[str, str, Callable[[LoadOptions], Backend]]] = {
    "ort": ("onnxruntime", "dvpd[cpu]", _open_ort),
    "openvino": ("openvino", "dvpd[openvino]", _open_openvino("openvino")),
    "tensorrt": ("tensorrt", "dvpd[trt]", _open_trt("tensorrt")),
    "tensorrt-rtx": ("tensorrt_rtx", "dvpd[rtx]", _open_trt("tensorrt-rtx")),
}
# The PyTorch model needs a checkpoint beside the graphs: only on request, never by "auto".
TORCH = ("torch", "dvpd[train]", _open_torch)
# It rounds, so its output is another one: on request, too.
BF16 = "openvino-bf16"
ON_REQUEST = {
    "torch": TORCH,
    BF16: ("openvino", "dvpd[openvino]", _open_openvino(BF16)),
}
BLOCK_ENGINES = (("ort", "cpu"),)  # whose causal models run both networks on a block in one call
GPU_ONLY = ("tensorrt", "tensorrt-rtx")
ONE_FOR_BLOCKS = ("ort", "openvino")  # measured: threads would only wait for each other
MAX_WORKERS = 4  # each holds the maps of a window: 150 MB for 512 frames of dvpd-base


def _loaders() -> dict[str, tuple[str, str, Callable[[LoadOptions], Backend]]]:
    return BACKENDS | ON_REQUEST


def installed(name: str) -> bool:
    """Whether a backend's engine can be imported; it is not imported here.

    Args:
        name: Backend name.
    """
    return importlib.util.find_spec(_loaders()[name][0]) is not None


def cpu_quota() -> int:
    """CPUs that this process may use: affinity, limited by a container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        pass
    return count


def default_threads() -> int | None:
    """Threads to ask for when the caller does not say; None leaves it to the engine.

    Engines choose one thread per physical core, but do not see a container's quota.
    """
    allowed = cpu_quota()
    return allowed if allowed < (os.cpu_count() or 1) else None


def usual_threads(manifest: Manifest, name: str, device: str) -> int | None:
    """As ``default_threads``, for a model: a causal one's blocks are too little work to be shared.

    Args:
        manifest: Of the model.
        name: Backend.
        device: Device.
    """
    if manifest.causal is not None and name in ONE_FOR_BLOCKS and device == "cpu":
        return 1
    return default_threads()


def physical_cores() -> int:
    """Cores that this process may use: two threads of one core share its arithmetic."""
    usable = set(range(os.cpu_count() or 1))
    if hasattr(os, "sched_getaffinity"):
        usable = os.sched_getaffinity(0)
    cores = set()
    for cpu in usable:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(path.read_text(encoding="ascii"))
        except OSError:  # another system
            cores.add(str(cpu))
    return min(len(cores), cpu_quota())


def share_threads(threads: int) -> tuple[int, int]:
    """How many windows a CPU computes at a time, and the threads of each.

    Args:
        threads: Of all of them.
    """
    workers = min(threads, MAX_WORKERS)
    return workers, threads // workers


def _candidates(name: str, device: str, folder: Path) -> list[tuple[str, str]]:
    """Backend and device pairs in the order in which "auto" tries them."""
    names = [n for n in BACKENDS if installed(n)] if name == "auto" else [name]
    if name == "auto":  # TensorRT where somebody has built its plans
        names = [n for n in names if n not in GPU_ONLY or any(folder.glob(f"*.{n}-*.plan"))]
    if not names:
        raise BackendError(f"no inference engine is installed: {FIX_NO_ENGINE}")
    if device != "auto":
        if name != "auto":
            return [(name, device)]
        if device.startswith(("tensorrt", "rtx")):  # ONNX Runtime's providers; the others say so
            return [("ort" if "ort" in names else names[0], device)]
        if device.startswith("cuda"):
            return [(n, device) for n in _cuda_order(names)] or [(names[0], device)]
        return [(n, device) for n in _cpu_order(names)]
    if name in GPU_ONLY:
        return [(name, "cuda")]
    if name == BF16:
        return [(name, "cpu")]
    pairs: list[tuple[str, str]] = []
    if cuda_device_count() > 0:
        pairs = [(n, "cuda") for n in _cuda_order(names)]
    return pairs + [(n, "cpu") for n in _cpu_order(names)]


def on_cpu(name: str, device: str, folder: Path) -> bool:
    """Whether an engine that is opened in this way can only be on the CPU.

    Args:
        name: Backend, or "auto".
        device: As for ``open_backend``.
        folder: Engine folder.

    Raises:
        BackendError: No engine is installed.
    """
    return all(where == "cpu" for _, where in _candidates(name, device, folder))


def _cuda_order(names: Sequence[str]) -> list[str]:
    return [n for n in (*GPU_ONLY, "torch", "ort") if n in names]


def _cpu_order(names: Sequence[str]) -> list[str]:
    # ONNX Runtime first: with AVX2 it takes a quarter less time than OpenVINO for 2 s windows
    # (benchmarks/results), with AVX-512 it took at most 2 % more, with AMX 1 to 6 % less. To measure
    # both at a first start would take seconds: OpenVINO imports and compiles for as long.
    return sorted((n for n in names if n not in GPU_ONLY), key=lambda n: n != "ort")


def check_causal(manifest: Manifest, name: str, device: str) -> None:
    """Refuse the one engine that does not carry a causal model's state.

    Raises:
        BackendError: Such an engine is asked for.
    """
    if manifest.causal is not None and device.startswith(("tensorrt", "rtx")):
        raise BackendError(
            f"{manifest.name} is a causal model, and {name} on {device} does not carry its state: use "
            "backend tensorrt or tensorrt-rtx, ort on cpu or cuda, openvino, or torch"
        )


def open_backend(
    folder: str | Path,
    manifest: Manifest,
    name: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    *,
    tf32: bool = False,
    low_memory: bool = False,
    with_steps: bool = False,
) -> Backend:
    """Load an engine folder's two graphs.

    Args:
        folder: The engine folder.
        manifest: Its manifest.
        name: "ort", "openvino", "openvino-bf16", "tensorrt", "tensorrt-rtx", "torch" or "auto",
            which chooses none that rounds more than the engine does.
        device: "cpu", "cuda", "cuda:N" (not openvino), "tensorrt", "tensorrt:N", "rtx", "rtx:N" (ort:
            its TensorRT and RTX providers), "gpu", "npu" (openvino) or "auto".
        threads: CPU threads, >= 1; None for a sensible number: see ``usual_threads``.
        tf32: Whether a GPU may round the float32 products of an fp32 engine to TF32 (10 bits):
            faster on Ampere and later. TensorRT plans must have been built so (--tf32).
        low_memory: Whether a CPU computes one window at a time, on all threads: the maps of the
            networks are most of the memory.
        with_steps: Whether steps are known to come: both graphs are loaded at once, and none for the
            estimate alone. They can be asked for in any case.

    Raises:
        InputError: Unknown backend name or impossible thread count.
        ManifestError: A graph is missing, damaged, or does not fit the manifest.
        BackendError: The engine or the device is not there; the message says what is.
    """
    if name != "auto" and name not in _loaders():
        raise InputError(f"backend is {name!r}; expected auto, {', '.join(_loaders())}")
    if threads is not None:
        check_whole("", "threads", threads, 1)
    paths = manifest.verify_graphs(folder)
    if name != "auto" and not installed(name):
        available = [n for n in _loaders() if installed(n)]
        raise BackendError(
            f"backend {name!r} needs the package {_loaders()[name][0]}: pip install "
            f"'{_loaders()[name][1]}'; installed here: {', '.join(available) or 'none'}"
        )
    failures: list[str] = []
    candidates = _candidates(name, device.lower(), Path(folder))
    for backend_name, backend_device in candidates:
        predictive, score = graphs_for(backend_name, backend_device, paths)
        alone = low_memory or backend_device != "cpu"
        usual = usual_threads(manifest, backend_name, backend_device)
        options = LoadOptions(
            predictive=predictive,
            score=score,
            manifest=manifest,
            device=backend_device,
            threads=usual if threads is None else threads,
            tf32=tf32,
            workers=(1, 1) if alone else share_threads(threads or physical_cores()),
            block=paths.get(BLOCK) if (backend_name, backend_device) in BLOCK_ENGINES else None,
            with_steps=with_steps,
        )
        try:
            check_causal(manifest, backend_name, backend_device)
            backend = _loaders()[backend_name][2](options)
        except BackendError as error:
            raise_interrupt(error)  # Ctrl-C while an engine loads is no reason to try the next
            failures.append(str(error))
            if len(candidates) > 1:
                logger.warning("%s on %s is not usable: %s", backend_name, backend_device, error)
            continue
        if name == "auto":
            logger.info("auto chose backend %s on %s", backend.name, backend.device)
        elif device == "auto":
            logger.info("backend %s: auto chose device %s", backend.name, backend.device)
        return backend
    raise BackendError("; ".join(failures))
