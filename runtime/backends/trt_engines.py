"""TensorRT's side of the backend: plans, the sampler's own graphs, execution contexts, compiled kernels."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError
from ..spec import GRAPH_NAMES, N_FREQS, NEXT_STATE, STATE
from ..tensorrt.caches import kernel_cache_path, read_kernel_cache, write_kernel_cache
from ..tensorrt.gpus import Gpu
from ..tensorrt.onnx_inputs import Profile, graph_inputs
from ..tensorrt.plans import (
    PlanError,
    find_plans,
    load_plan,
    plan_spec,
    read_sidecar,
    set_builder_flags,
)
from ..tensorrt.versions import MODULES, release
from .base import LoadOptions
from .cuda import DeviceMemoryError
from .signature import GraphTensor, check_signature

logger = logging.getLogger("dvpd")

SMALL_GRAPHS = ("start", "step", "finish")


@dataclass
class Engine:
    """A loaded plan, its tensors' types, and which of them are inputs."""

    name: str
    engine: Any
    dtypes: dict[str, str]
    inputs: tuple[str, ...]


def import_package(name: str) -> Any:
    """TensorRT's Python package.

    Args:
        name: "tensorrt" or "tensorrt-rtx".

    Raises:
        BackendError: It does not load.
    """
    try:
        return importlib.import_module(MODULES[name])
    except Exception as error:  # a package without its libraries raises whatever it likes
        raise BackendError(f"{MODULES[name]} does not load ({error})") from None


class Engines:
    """Both plans and the three small graphs, loaded.

    Attributes:
        trt: The package.
        profile: Sizes that both plans hold.
    """

    def __init__(self, options: LoadOptions, name: str, trt: Any, gpu: Gpu) -> None:
        """Check everything that needs no TensorRT, then load; the device is current.

        Args:
            options: Verified paths and manifest.
            name: "tensorrt" or "tensorrt-rtx".
            trt: The package.
            gpu: What the device is.

        Raises:
            BackendError: No usable plan; the message has the fix.
            ManifestError: A plan does not fit the contract.
        """
        self.name, self.trt = name, trt
        self._options = options
        self._errors: list[str] = []
        self._log = self._make_log()
        self._kernels = kernel_cache_path(str(self.trt.__version__), gpu)
        self._kernel_cache: Any = None  # of TensorRT-RTX, shared by all contexts
        self._kernels_read = b""
        folder = options.predictive.parent
        # Bytes and sidecars of both are checked before TensorRT sees either.
        plans = {graph: self._plan(folder, graph, gpu) for graph in GRAPH_NAMES}
        self.profile = _common(plan[1] for plan in plans.values())
        self._runtime = self.trt.Runtime(self._log)
        self._engines = {g: self._deserialize(g, data) for g, (data, _) in plans.items()}
        for graph in GRAPH_NAMES:
            self._check(self._engines[graph])
        for graph in SMALL_GRAPHS:
            self._engines[graph] = self._deserialize(graph, self._build_small(graph))

    def dtypes(self, graph: str) -> dict[str, str]:
        """NumPy dtype name of each of a graph's tensors."""
        return self._engines[graph].dtypes

    def close(self) -> None:
        """Release the engines; every context of theirs is gone."""
        self._engines.clear()
        self._kernel_cache = None

    def _make_log(self) -> Any:
        trt, errors = self.trt, self._errors

        class Log(trt.ILogger):  # type: ignore[name-defined,misc]  # loaded at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.append(" ".join(message.split()))
                    del errors[:-8]

        return Log()

    def failure(self, what: str) -> BackendError:
        """An error with the last things that TensorRT said.

        Args:
            what: What it did, or did not do.
        """
        said = "; ".join(dict.fromkeys(self._errors[-3:])) or "it gave no reason"
        self._errors.clear()
        kind = DeviceMemoryError if "out of memory" in said.lower() else BackendError
        return kind(f"{self.name} {self.trt.__version__} {what}: {said}")

    def _plan(self, folder: Path, graph: str, gpu: Gpu) -> tuple[bytes, Profile]:
        """The plan to use for a graph: the most specific one that passes every check."""
        reasons, found = [], []
        for path in find_plans(folder):
            if not path.name.startswith(f"{graph}.{self.name}-"):
                continue
            try:
                spec = read_sidecar(path).spec
                if release(spec.version) != release(str(self.trt.__version__)):
                    raise PlanError(
                        f"built by {self.name} {release(spec.version)}, here is "
                        f"{self.trt.__version__}"
                    )
                if why := spec.target.why_unfit(gpu):
                    raise PlanError(why)
                if spec.tf32 and not self._options.tf32:
                    raise PlanError("its float32 products are rounded to TF32 (built with --tf32)")
                portable = spec.target.compute_capability == "portable"
                found.append(((portable, spec.tf32 != self._options.tf32, path.name), spec))
            except PlanError as error:
                reasons.append(f"{path.name}: {error.reason}")
        for (*_, name), spec in sorted(found, key=lambda item: item[0]):
            wanted = plan_spec(
                self._options.manifest, graph, self.name, str(self.trt.__version__), spec.target,
                spec.profile, spec.tf32,
            )  # fmt: skip
            try:
                data, sidecar = load_plan(folder, wanted, exact_profile=False)
                return data, sidecar.spec.profile
            except PlanError as error:
                reasons.append(f"{name}: {error.reason}")
        problems = "; ".join(reasons) or "there is none"
        raise BackendError(
            f"{folder}: no usable {self.name} plan of the {graph} graph ({problems}): build it: dvpd "
            f"build {folder} --backend {self.name}"
        )

    def _deserialize(self, graph: str, data: bytes) -> Engine:
        trt = self.trt
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self.failure(f"refuses the plan of the {graph} graph")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        dtypes = {n: np.dtype(trt.nptype(engine.get_tensor_dtype(n))).name for n in names}
        inputs = (n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        return Engine(graph, engine, dtypes, tuple(inputs))

    def _check(self, engine: Engine) -> None:
        sides: tuple[list[GraphTensor], list[GraphTensor]] = ([], [])
        for name, dtype in engine.dtypes.items():
            shape = (None if s < 0 else int(s) for s in engine.engine.get_tensor_shape(name))
            sides[name not in engine.inputs].append(GraphTensor(name, dtype, tuple(shape)))
        manifest = self._options.manifest
        check_signature(engine.name, manifest.precision, *sides, manifest.causal)

    def _build_small(self, graph: str) -> bytes:
        """Compile one of the sampler's own graphs, for this GPU and the plans' profile."""
        trt, path = self.trt, Path(__file__).parent.parent / "graphs" / f"{graph}.onnx"
        builder = trt.Builder(self._log)
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse(path.read_bytes()):
            raise self.failure(f"cannot parse {path.name}")
        config = builder.create_builder_config()
        set_builder_flags(trt, config, self.name, exact=True)
        profile = builder.create_optimization_profile()
        for name, shapes in self.profile.shapes(graph_inputs(path)).items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
        data = builder.build_serialized_network(network, config)
        if data is None:
            raise self.failure(f"builds no plan of {path.name}")
        return bytes(data)

    def context(self, graph: str, shapes: Mapping[str, Sequence[int]]) -> tuple[Any, int]:
        """A context with its input shapes set, and the scratch memory that it needs (bytes).

        Args:
            graph: Whose.
            shapes: Shape of each of its inputs, at least.

        Raises:
            BackendError: TensorRT refuses.
        """
        engine = self._engines[graph]
        context = engine.engine.create_execution_context(self._context_settings(engine.engine))
        if context is None:
            raise self.failure(f"makes no execution context of the {graph} graph")
        for name in engine.inputs:
            if not context.set_input_shape(name, tuple(shapes[name])):
                raise self.failure(f"refuses {name} {list(shapes[name])} in the {graph} graph")
        if missing := context.infer_shapes():
            raise self.failure(f"lacks shapes of {missing} in the {graph} graph")
        return context, int(context.update_device_memory_size_for_shapes())

    def _context_settings(self, engine: Any) -> Any:
        """What ``create_execution_context`` takes: who allocates, and on RTX what is compiled when.

        TensorRT-RTX compiles kernels for a shape beside the first calls and runs slower ones that
        fit every shape meanwhile: a graph captured then would hold the slow ones for good.
        """
        trt, strategy = self.trt, self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.name != "tensorrt-rtx":
            return strategy
        settings = engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(strategy)
        settings.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        if self._kernel_cache is None:
            self._kernel_cache = settings.create_runtime_cache()
            self._load_kernels()
        if self._kernel_cache is not None:
            settings.set_runtime_cache(self._kernel_cache)
        return settings

    def _load_kernels(self) -> None:
        """Compiled kernels of earlier processes; they only save time."""
        if self._kernel_cache is None:
            return
        try:
            self._kernels_read = read_kernel_cache(self._kernels) or b""
        except PlanError as error:
            logger.warning("compiled kernels are not used: %s", error)
            return
        if self._kernels_read and not self._kernel_cache.deserialize(self._kernels_read):
            logger.info("%s: of another driver or GPU: compiling again", self._kernels)
            self._kernels_read = b""

    def keep_kernels(self) -> None:
        """Write the compiled kernels down for later processes, where there are new ones."""
        if self._kernel_cache is None:
            return
        data = bytes(self._kernel_cache.serialize())
        if data == self._kernels_read:
            return
        try:
            write_kernel_cache(self._kernels, data)
        except OSError as error:
            logger.warning("%s: compiled kernels cannot be kept (%s)", self._kernels, error)

    def shapes(self, batch: int, n_frames: int, graph: str) -> dict[str, tuple[int, ...]]:
        """Shapes of every tensor of a graph but the feats, whose channels and bins its engine knows.

        Args:
            batch: Recordings, or streams.
            n_frames: Frames.
            graph: Which.
        """
        table: dict[str, tuple[int, ...]] = {
            "noisy": (batch, 3, n_frames, N_FREQS),
            "t": (batch,),
            "coefficients": (4,),
            "tlb_skip": (2, 2),
            "tlb_backbone": (2, 2),
        }
        table["clean_ri"] = table["fused"] = (batch, 2, n_frames, N_FREQS)
        for name in ("noise", "xt", "mag_p", "sigma_z", "xt_next"):
            table[name] = (batch, 1, n_frames, N_FREQS)
        causal = self._options.manifest.causal
        if causal is not None and graph in causal.state_size:
            table[STATE] = table[NEXT_STATE] = (batch, causal.state_size[graph])
        return table

    def enqueue(self, context: Any, graph: str, addresses: Mapping[str, int], stream: int) -> None:
        """Put a call onto a stream.

        Args:
            context: Of the graph.
            graph: Which.
            addresses: Of every tensor.
            stream: CUDA's handle.

        Raises:
            BackendError: TensorRT refuses.
        """
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self.failure(f"refuses the address of {name} in the {graph} graph")
        if not context.execute_async_v3(stream):
            raise self.failure(f"failed in the {graph} graph")


def _common(profiles: Iterable[Profile]) -> Profile:
    """Sizes that all profiles hold."""
    first, second = profiles
    sides = []
    for name in ("frames", "batch"):
        a, b = getattr(first, name), getattr(second, name)
        low, high = max(a[0], b[0]), min(a[2], b[2])
        if low > high:
            raise BackendError(f"the two plans share no {name} ({a}, {b}): build both again")
        sides.append((low, min(max(a[1], low), high), high))
    return Profile(sides[0], sides[1])
