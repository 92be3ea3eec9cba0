"""One interface for every inference engine, and the choice between those that are installed."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import BackendError, InputError, ManifestError, raise_interrupt
from .schedule import InitialState, SamplerStep
from .spec import (
    FRAME_MULTIPLE,
    MIN_FRAMES,
    N_FEATS,
    PREDICTIVE_INPUTS,
    SCORE_OUTPUTS,
    Manifest,
    TensorSpec,
    TlbFactors,
    graph_io,
    predictive_outputs,
    score_inputs,
)

FloatArray = NDArray[np.float32]
logger = logging.getLogger("dvpd")

CURE_NO_ENGINE = "pip install 'dvpd[cpu]' (ONNX Runtime) or pip install 'dvpd[openvino]'"


class Backend(Protocol):
    """The two networks on one device.

    Attributes:
        name: Backend name, such as "ort".
        device: Device in use, such as "cpu".
    """

    name: str
    device: str

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """Run the predictive graph.

        Args:
            noisy: float32 [B, 3, T, 257], T a multiple of 4, at least 32.

        Returns:
            float32 [B, 2, T, 257], and the feats: opaque, to be handed to ``score`` as they are.

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """Run the score graph.

        Args:
            xt: float32 [B, 1, T, 257], state of the diffusion.
            t: float32 [B], diffusion time.
            feats: What ``predict`` returned for the same B and T.
            tlb_skip: float32 [2, 2].
            tlb_backbone: float32 [2, 2].

        Returns:
            float32 [B, 1, T, 257]: sigma z.

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """

    def close(self) -> None:
        """Release the engine; later calls raise BackendError."""


class SamplerBackend(Backend, Protocol):
    """A backend that runs the whole sampler on its device; ``sampler.sample`` prefers that."""

    def run_sampler(
        self,
        noisy: FloatArray,
        noise: FloatArray,
        *,
        start: InitialState,
        steps: Sequence[SamplerStep],
        alpha: float,
        tlb: TlbFactors,
    ) -> FloatArray:
        """Compute what ``sampler.sample`` does, in one go.

        Args:
            noisy: float32 [B, 3, T, 257].
            noise: float32 [steps, B, 1, T, 257]: what the sampler draws, in order.
            start: Coefficients of the first state.
            steps: Coefficients of the reverse steps; none for the predictive branch alone.
            alpha: Weight of the predictive magnitude.
            tlb: Factors of the score network.

        Returns:
            float32 [B, 2, T, 257].

        Raises:
            InputError: Wrong dtype or shape.
            BackendError: The engine failed or returned non-finite values.
        """


def _text(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs)


def check_array(spec: TensorSpec, value: object, sizes: dict[str, int]) -> None:
    """Check one array against its description; dynamic sizes are collected and compared.

    Args:
        spec: The description.
        value: The array.
        sizes: Sizes of "B" and "T" met so far; new ones are added.

    Raises:
        InputError: Not an array, or another dtype or shape.
    """
    wanted = f"{spec.dtype} [{', '.join('?' if s is None else str(s) for s in spec.shape)}]"
    if not isinstance(value, np.ndarray):
        raise InputError(f"{spec.name} is {type(value).__name__}; expected an array, {wanted}")
    got = f"{value.dtype} {list(value.shape)}"
    if value.dtype != spec.dtype:
        raise InputError(f"{spec.name} is {got}; expected {wanted}: cast it with .astype")
    if value.ndim != len(spec.shape):
        raise InputError(f"{spec.name} is {got}; expected {wanted}")
    for size, want in zip(value.shape, spec.shape, strict=True):
        expected = sizes.setdefault(want, size) if isinstance(want, str) else want
        if expected is not None and size != expected:
            raise InputError(f"{spec.name} is {got}; expected {wanted} with {sizes}")
        if size < 1:
            raise InputError(f"{spec.name} is {got}; expected no empty axis")
    n_frames = sizes.get("T", MIN_FRAMES)
    if n_frames < MIN_FRAMES or n_frames % FRAME_MULTIPLE:
        raise InputError(
            f"{spec.name} has T = {n_frames} frames; expected a multiple of {FRAME_MULTIPLE}, at "
            f"least {MIN_FRAMES}: pad with zeros and crop after"
        )


def check_predict(noisy: object) -> dict[str, int]:
    """Check the input of ``predict`` and return its sizes "B" and "T".

    Args:
        noisy: The array.

    Raises:
        InputError: Wrong dtype or shape.
    """
    sizes: dict[str, int] = {}
    check_array(PREDICTIVE_INPUTS[0], noisy, sizes)
    return sizes


def check_score(
    xt: object, t: object, feats: Sequence[Any], tlb_skip: object, tlb_backbone: object
) -> dict[str, int]:
    """Check the inputs of ``score`` but the opaque feats' contents; return sizes "B" and "T".

    Args:
        xt: State.
        t: Times.
        feats: What ``predict`` returned.
        tlb_skip: Factors.
        tlb_backbone: Factors.

    Raises:
        InputError: Wrong dtype, shape or number of feats.
    """
    sizes: dict[str, int] = {}
    by_name = {spec.name: spec for spec in score_inputs()}
    check_array(by_name["xt"], xt, sizes)
    check_array(by_name["t"], t, sizes)
    check_array(by_name["tlb_skip"], tlb_skip, sizes)
    check_array(by_name["tlb_backbone"], tlb_backbone, sizes)
    if len(feats) != N_FEATS:
        raise InputError(f"score got {len(feats)} feats; expected the {N_FEATS} of predict")
    return sizes


def check_output(spec: TensorSpec, value: object, sizes: dict[str, int], source: str) -> FloatArray:
    """Check what an engine returned.

    Args:
        spec: The description.
        value: The array.
        sizes: Sizes of "B" and "T" of the call.
        source: Graph and backend, for the message.

    Raises:
        BackendError: Wrong dtype or shape, or a non-finite value.
    """
    try:
        check_array(spec, value, dict(sizes))
    except InputError as error:
        raise BackendError(f"{source} returned a wrong tensor: {error}") from None
    array: FloatArray = value  # type: ignore[assignment]  # checked above
    if not bool(np.isfinite(array).all()):
        raise BackendError(
            f"{source} returned non-finite values in {spec.name}; nothing was written: try another "
            "backend or the fp32 engine, and report the recording"
        )
    return array


PREDICT_OUT = predictive_outputs()[0]
SCORE_OUT = SCORE_OUTPUTS[0]


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


def check_signature(
    graph: str,
    precision: str,
    inputs: Sequence[GraphTensor],
    outputs: Sequence[GraphTensor],
) -> None:
    """Check a loaded graph's inputs and outputs against the contract.

    Args:
        graph: "predictive" or "score".
        precision: "fp32" or "fp16".
        inputs: What the engine reports.
        outputs: What the engine reports.

    Raises:
        ManifestError: A name, dtype or shape differs, or B or T is fixed.
    """
    for side, specs, got in zip(
        ("inputs", "outputs"), graph_io(graph, precision), (inputs, outputs), strict=True
    ):
        found = {tensor.name: tensor for tensor in got}
        if set(found) != {spec.name for spec in specs}:
            raise ManifestError(
                f"the {graph} graph has {side} {sorted(found)}; expected {_text(specs)}: it is "
                "not of this version, export the engine again"
            )
        for spec in specs:
            tensor = found[spec.name]
            fits = len(tensor.shape) == len(spec.shape) and all(
                want is None
                or (size is None if isinstance(want, str) else size is None or size == want)
                for size, want in zip(tensor.shape, spec.shape, strict=True)
            )
            if tensor.dtype != spec.dtype or not fits:
                raise ManifestError(
                    f"the {graph} graph's {spec.name} is {tensor.dtype} {list(tensor.shape)}; "
                    f"expected {spec.dtype} {list(spec.shape)} (None or a letter: dynamic): "
                    "export the engine again"
                )


@dataclass(frozen=True)
class LoadOptions:
    """What a backend needs to load an engine folder.

    Attributes:
        predictive: Path of the predictive graph, its hash already verified.
        score: Path of the score graph, likewise.
        manifest: The folder's manifest.
        device: Requested device; never "auto".
        threads: CPU threads, or None for the engine's own choice.
        tf32: Whether a GPU may round float32 products to TF32.
    """

    predictive: Path
    score: Path
    manifest: Manifest
    device: str
    threads: int | None
    tf32: bool = False


def _open_ort(options: LoadOptions) -> Backend:
    from .ort import OrtBackend

    return OrtBackend(options)


def _open_openvino(options: LoadOptions) -> Backend:
    from .ov import OpenVinoBackend

    return OpenVinoBackend(options)


def _open_trt(name: str) -> Callable[[LoadOptions], Backend]:
    def load(options: LoadOptions) -> Backend:
        from .trt import TrtBackend

        return TrtBackend(options, name)

    return load


def _open_torch(options: LoadOptions) -> Backend:
    # By name: the runtime itself stays free of torch.
    module = importlib.import_module("..torch_backend", __package__)
    backend: Backend = module.open_checkpoint(options)
    return backend


# Backend name -> (module to import, extra that installs it, loader).
BACKENDS: dict[str, tuple[str, str, Callable[[LoadOptions], Backend]]] = {
    "ort": ("onnxruntime", "dvpd[cpu]", _open_ort),
    "openvino": ("openvino", "dvpd[openvino]", _open_openvino),
    "tensorrt": ("tensorrt", "dvpd[trt]", _open_trt("tensorrt")),
    "tensorrt-rtx": ("tensorrt_rtx", "dvpd[rtx]", _open_trt("tensorrt-rtx")),
}
# The PyTorch model needs a checkpoint beside the graphs: only on request, never by "auto".
TORCH = ("torch", "dvpd[train]", _open_torch)
GPU_ONLY = ("tensorrt", "tensorrt-rtx")


def _loaders() -> dict[str, tuple[str, str, Callable[[LoadOptions], Backend]]]:
    return BACKENDS | {"torch": TORCH}


def installed(name: str) -> bool:
    """Whether a backend's engine can be imported; it is not imported here.

    Args:
        name: Backend name.
    """
    return importlib.util.find_spec(_loaders()[name][0]) is not None


def ort_conflict() -> str | None:
    """The complaint if onnxruntime and onnxruntime-gpu share one environment, else None.

    The two packages own the same files: whichever was installed last has overwritten the other,
    and removing one leaves the other broken.
    """
    found = []
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(package)
    if len(found) < 2:
        return None
    return (
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
        "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them"
    )


def cuda_device_count() -> int:
    """NVIDIA GPUs that the driver can open on this machine; 0 without a driver."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
        count = ctypes.c_int(0)
        if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


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


def _candidates(name: str, device: str, folder: Path) -> list[tuple[str, str]]:
    """Backend and device pairs in the order in which "auto" tries them."""
    names = [n for n in BACKENDS if installed(n)] if name == "auto" else [name]
    if name == "auto":  # TensorRT where somebody has built its plans
        names = [n for n in names if n not in GPU_ONLY or any(folder.glob(f"*.{n}-*.plan"))]
    if not names:
        raise BackendError(f"no inference engine is installed: {CURE_NO_ENGINE}")
    if device != "auto":
        if name != "auto":
            return [(name, device)]
        if device.startswith("tensorrt"):  # ONNX Runtime's provider; the others say so
            return [("ort" if "ort" in names else names[0], device)]
        if device.startswith("cuda"):
            return [(n, device) for n in _cuda_order(names)] or [(names[0], device)]
        return [(n, device) for n in _cpu_order(names)]
    if name in GPU_ONLY:
        return [(name, "cuda")]
    pairs: list[tuple[str, str]] = []
    if cuda_device_count() > 0:
        pairs = [(n, "cuda") for n in _cuda_order(names)]
    return pairs + [(n, "cpu") for n in _cpu_order(names)]


def _cuda_order(names: Sequence[str]) -> list[str]:
    return [n for n in (*GPU_ONLY, "torch", "ort") if n in names]


def _cpu_order(names: Sequence[str]) -> list[str]:
    # ONNX Runtime first: with AVX2 it takes a quarter less time than OpenVINO for 2 s windows
    # (benchmarks/results), with AVX-512 it took at most 2 % more.
    return sorted((n for n in names if n not in GPU_ONLY), key=lambda n: n != "ort")


def open_backend(
    folder: str | Path,
    manifest: Manifest,
    name: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    *,
    tf32: bool = False,
) -> Backend:
    """Load an engine folder's two graphs.

    Args:
        folder: The engine folder.
        manifest: Its manifest.
        name: "ort", "openvino", "tensorrt", "tensorrt-rtx", "torch" or "auto".
        device: "cpu", "cuda", "cuda:N" (not openvino), "tensorrt", "tensorrt:N" (ort: its TensorRT
            provider), "gpu", "npu" (openvino) or "auto".
        threads: CPU threads, >= 1; None for a sensible number.
        tf32: Whether a GPU may round the float32 products of an fp32 engine to TF32 (10 bits):
            faster on Ampere and later. TensorRT plans must have been built so (--tf32).

    Raises:
        InputError: Unknown backend name or impossible thread count.
        ManifestError: A graph is missing, damaged, or does not fit the manifest.
        BackendError: The engine or the device is not there; the message says what is.
    """
    if name != "auto" and name not in _loaders():
        raise InputError(f"backend is {name!r}; expected auto, {', '.join(_loaders())}")
    if threads is not None and (
        isinstance(threads, bool) or not isinstance(threads, int) or threads < 1
    ):
        raise InputError(f"threads is {threads!r}; expected a whole number >= 1")
    paths = manifest.verify_graphs(folder)
    if name != "auto" and not installed(name):
        there = [n for n in _loaders() if installed(n)]
        raise BackendError(
            f"backend {name!r} needs the package {_loaders()[name][0]}: pip install "
            f"'{_loaders()[name][1]}'; installed here: {', '.join(there) or 'none'}"
        )
    failures: list[str] = []
    candidates = _candidates(name, device.lower(), Path(folder))
    for backend_name, backend_device in candidates:
        options = LoadOptions(
            predictive=paths["predictive"],
            score=paths["score"],
            manifest=manifest,
            device=backend_device,
            threads=default_threads() if threads is None else threads,
            tf32=tf32,
        )
        try:
            backend = _loaders()[backend_name][2](options)
        except BackendError as error:
            raise_interrupt(error)  # Ctrl-C while an engine loads is no reason to try the next
            failures.append(str(error))
            if len(candidates) > 1:
                logger.warning("%s on %s is not usable: %s", backend_name, backend_device, error)
            continue
        if "auto" in (name, device):
            logger.info("auto chose backend %s on %s", backend.name, backend.device)
        return backend
    raise BackendError("; ".join(failures))
