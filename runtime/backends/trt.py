"""TensorRT and TensorRT-RTX: the whole sampler on the device, captured as one CUDA graph.

A shape (batch, frames, steps) gets its own execution contexts and one allocation for every tensor,
made once. What goes to the device is one copy, what comes back is one copy; ``feat_*`` stay there.
The first call of a shape enqueues the networks and the three small graphs of
``export/sampler_graph.py`` one after the other, the second captures the same calls, later ones
replay them; without capture every call is like the first and gives the same numbers.
"""

from __future__ import annotations

import importlib
import logging
import re
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import FloatArray
from ..errors import BackendError, InputError
from ..schedule import InitialState, SamplerStep
from ..spec import FRAME_MULTIPLE, GRAPH_NAMES, MIN_FRAMES, N_FEATS, N_FREQS, TlbFactors
from ..tensorrt.caches import kernel_cache_path, read_kernel_cache, write_kernel_cache
from ..tensorrt.gpus import Gpu, cuda_driver, why_rtx_unfit
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
from .base import (
    FEAT_NAMES,
    PREDICT_OUT,
    SCORE_OUT,
    GraphTensor,
    LoadOptions,
    check_output,
    check_predict,
    check_score,
    check_signature,
)
from .cuda import (
    Block,
    CaptureError,
    Cuda,
    DeviceArray,
    DeviceLostError,
    DeviceMemoryError,
    device_array,
)

logger = logging.getLogger("dvpd")

SMALL_GRAPHS = ("start", "step", "finish")
MAX_SLOTS = 8  # shapes kept; a recording needs two, its windows' and the last one's


@dataclass
class _Engine:
    """A loaded plan, its tensors' types, and which of them are inputs."""

    name: str
    engine: Any
    dtypes: dict[str, str]
    inputs: tuple[str, ...]


@dataclass
class _Slot:
    """Everything of one shape.

    Attributes:
        batch: Recordings in one call.
        n_frames: Frames.
        n_steps: Calls of the score network.
        host: Pinned memory: inputs, then the output.
        device: All tensors.
        contexts: Execution context of each graph.
        calls: (graph, addresses by tensor) in order.
        n_runs: Calls so far.
        graph: The captured graph, once there.
    """

    batch: int
    n_frames: int
    n_steps: int
    host: Block
    device: Block
    contexts: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    n_runs: int = 0
    graph: Any = None


class _Feats(Sequence[int]):
    """What ``predict`` hands to ``score``: addresses of its own device memory."""

    def __init__(self, block: Block, batch: int, n_frames: int) -> None:
        self.block, self.batch, self.n_frames = block, batch, n_frames
        weakref.finalize(self, block.free)

    def __getitem__(self, index: Any) -> Any:
        return [self.block[name] for name in FEAT_NAMES][index]

    def __len__(self) -> int:
        return N_FEATS


class TrtBackend:
    """The two graphs as TensorRT plans.

    Attributes:
        name: "tensorrt" or "tensorrt-rtx".
        device: "cuda:N".
        capture: Whether shapes that come again are captured; False for a comparison.
    """

    def __init__(
        self,
        options: LoadOptions,
        name: str = "tensorrt",
        *,
        trt: Any = None,
        cuda: Cuda | None = None,
        gpu: Gpu | None = None,
    ) -> None:
        """Load both plans after every check that needs no TensorRT.

        Args:
            options: Verified paths, manifest and device ("cuda" or "cuda:N").
            name: "tensorrt" or "tensorrt-rtx".
            trt: The package; None to import it.
            cuda: The device; None to open it.
            gpu: What the device is; None to ask the driver.

        Raises:
            BackendError: No package, driver, device or usable plan; the message has the fix.
            ManifestError: A plan does not fit the contract.
        """
        match = re.fullmatch(r"cuda(?::(\d+))?", options.device)
        if match is None:
            raise BackendError(
                f"backend {name} has no device {options.device!r}; it knows cuda and cuda:N"
            )
        index = int(match[1] or 0)
        self.name, self.device, self.capture = name, f"cuda:{index}", True
        self._cuda = cuda or Cuda(index)
        self._trt = trt or self._import(name)
        self._errors: list[str] = []
        self._log = self._make_log()
        self._slots: OrderedDict[tuple[int, int, int], _Slot] = OrderedDict()
        self._max_batch: int | None = None  # less than the profile's once memory ran out
        self._closed = False
        self._options = options
        if gpu is None:
            driver = cuda_driver()
            if driver is None or index >= len(driver.gpus):
                raise BackendError("no NVIDIA GPU with a working driver: use device cpu")
            gpu = driver.gpus[index]
        if name == "tensorrt-rtx" and (why := why_rtx_unfit(gpu)):
            raise BackendError(why)
        self._kernels = kernel_cache_path(str(self._trt.__version__), gpu)
        self._kernel_cache: Any = None  # of TensorRT-RTX, shared by all contexts
        self._kernels_read = b""
        folder = options.predictive.parent
        # Bytes and sidecars of both are checked before TensorRT sees either.
        plans = {graph: self._plan(folder, graph, gpu) for graph in GRAPH_NAMES}
        self.profile = _common(plan[1] for plan in plans.values())
        with self._cuda.current():
            self._runtime = self._trt.Runtime(self._log)
            self._engines = {g: self._deserialize(g, data) for g, (data, _) in plans.items()}
            for graph in GRAPH_NAMES:
                self._check(self._engines[graph])
            for graph in SMALL_GRAPHS:
                self._engines[graph] = self._deserialize(graph, self._build_small(graph))
            self._stream = self._cuda.stream()

    @staticmethod
    def _import(name: str) -> Any:
        try:
            return importlib.import_module(MODULES[name])
        except Exception as error:  # a package without its libraries raises whatever it likes
            raise BackendError(f"{MODULES[name]} does not load ({error})") from None

    def _make_log(self) -> Any:
        trt, errors = self._trt, self._errors

        class Log(trt.ILogger):  # type: ignore[name-defined,misc]  # loaded at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.append(" ".join(message.split()))
                    del errors[:-8]

        return Log()

    def _failure(self, what: str) -> BackendError:
        said = "; ".join(dict.fromkeys(self._errors[-3:])) or "it gave no reason"
        self._errors.clear()
        kind = DeviceMemoryError if "out of memory" in said.lower() else BackendError
        return kind(f"{self.name} {self._trt.__version__} {what}: {said}")

    def _plan(self, folder: Path, graph: str, gpu: Gpu) -> tuple[bytes, Profile]:
        """The plan to use for a graph: the most specific one that passes every check."""
        reasons, found = [], []
        for path in find_plans(folder):
            if not path.name.startswith(f"{graph}.{self.name}-"):
                continue
            try:
                spec = read_sidecar(path).spec
                if release(spec.version) != release(str(self._trt.__version__)):
                    raise PlanError(
                        f"built by {self.name} {release(spec.version)}, here is "
                        f"{self._trt.__version__}"
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
                self._options.manifest, graph, self.name, str(self._trt.__version__), spec.target,
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

    def _deserialize(self, graph: str, data: bytes) -> _Engine:
        trt = self._trt
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._failure(f"refuses the plan of the {graph} graph")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        dtypes = {n: np.dtype(trt.nptype(engine.get_tensor_dtype(n))).name for n in names}
        inputs = (n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        return _Engine(graph, engine, dtypes, tuple(inputs))

    def _check(self, engine: _Engine) -> None:
        sides: tuple[list[GraphTensor], list[GraphTensor]] = ([], [])
        for name, dtype in engine.dtypes.items():
            shape = (None if s < 0 else int(s) for s in engine.engine.get_tensor_shape(name))
            sides[name not in engine.inputs].append(GraphTensor(name, dtype, tuple(shape)))
        check_signature(engine.name, self._options.manifest.precision, *sides)

    def _build_small(self, graph: str) -> bytes:
        """Compile one of the sampler's own graphs, for this GPU and the plans' profile."""
        trt, path = self._trt, Path(__file__).parent.parent / "graphs" / f"{graph}.onnx"
        builder = trt.Builder(self._log)
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse(path.read_bytes()):
            raise self._failure(f"cannot parse {path.name}")
        config = builder.create_builder_config()
        set_builder_flags(trt, config, self.name, exact=True)
        profile = builder.create_optimization_profile()
        for name, shapes in self.profile.shapes(graph_inputs(path)).items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
        data = builder.build_serialized_network(network, config)
        if data is None:
            raise self._failure(f"builds no plan of {path.name}")
        return bytes(data)

    # -- one shape --------------------------------------------------------------------------------

    def _context(self, graph: str, shapes: Mapping[str, Sequence[int]]) -> tuple[Any, int]:
        """A context with its input shapes set, and the scratch memory that it needs (bytes)."""
        engine = self._engines[graph]
        context = engine.engine.create_execution_context(self._context_settings(engine.engine))
        if context is None:
            raise self._failure(f"makes no execution context of the {graph} graph")
        for name in engine.inputs:
            if not context.set_input_shape(name, tuple(shapes[name])):
                raise self._failure(f"refuses {name} {list(shapes[name])} in the {graph} graph")
        if missing := context.infer_shapes():
            raise self._failure(f"lacks shapes of {missing} in the {graph} graph")
        return context, int(context.update_device_memory_size_for_shapes())

    def _context_settings(self, engine: Any) -> Any:
        """What ``create_execution_context`` takes: who allocates, and on RTX what is compiled when.

        TensorRT-RTX compiles kernels for a shape beside the first calls and runs slower ones that
        fit every shape meanwhile: a graph captured then would hold the slow ones for good.
        """
        trt, strategy = self._trt, self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
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

    def _keep_kernels(self) -> None:
        if self._kernel_cache is None:
            return
        data = bytes(self._kernel_cache.serialize())
        if data == self._kernels_read:
            return
        try:
            write_kernel_cache(self._kernels, data)
        except OSError as error:
            logger.warning("%s: compiled kernels cannot be kept (%s)", self._kernels, error)

    def _shapes(self, batch: int, n_frames: int) -> dict[str, tuple[int, ...]]:
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
        return table

    def _make_slot(self, batch: int, n_frames: int, n_steps: int) -> _Slot:
        shapes = self._shapes(batch, n_frames)
        contexts, scratch = {}, 1
        graphs = ("predictive", "start", "score", "step", "finish") if n_steps else ("predictive",)
        for graph in graphs:
            contexts[graph], need = self._context(graph, shapes)
            scratch = max(scratch, need)
            if graph == "predictive":
                for name in FEAT_NAMES:  # the engine knows their channels and bins
                    shapes[name] = tuple(contexts[graph].get_tensor_shape(name))
        inputs: dict[str, tuple[Sequence[int], str]] = {"noisy": (shapes["noisy"], "float32")}
        inputs["tlb_skip"] = inputs["tlb_backbone"] = ((2, 2), "float32")
        for i in range(n_steps):
            inputs[f"noise_{i}"] = (shapes["noise"], "float32")
            inputs[f"t_{i}"] = (shapes["t"], "float32")
        inputs["start"] = inputs["finish"] = ((4,), "float32")
        inputs |= {f"step_{i}": ((4,), "float32") for i in range(n_steps)}
        result = "fused" if n_steps else "clean_ri"
        work = {"clean_ri": (shapes["clean_ri"], "float32")}
        dtypes = self._engines["predictive"].dtypes
        work |= {name: (shapes[name], dtypes[name]) for name in FEAT_NAMES}
        if n_steps:
            one = (shapes["xt"], "float32")
            work |= {"mag_p": one, "xt_0": one, "xt_1": one, "sigma_z": one}
            work["fused"] = (shapes["fused"], "float32")
        work["scratch"] = ((scratch,), "uint8")
        host = Block(self._cuda, inputs | {result: work[result]}, pinned=True)
        try:
            device = Block(self._cuda, inputs | work)  # the inputs first: offsets as on the host
        except BackendError:
            host.free()
            raise
        for context in contexts.values():
            context.set_device_memory(device["scratch"], scratch)
        slot = _Slot(batch, n_frames, n_steps, host, device, contexts)
        slot.calls = list(_program(device, n_steps))
        return slot

    def _slot(self, batch: int, n_frames: int, n_steps: int) -> _Slot:
        key = (batch, n_frames, n_steps)
        if key not in self._slots:
            while len(self._slots) >= MAX_SLOTS:
                self._drop(next(iter(self._slots)))
            try:
                self._slots[key] = self._make_slot(*key)
            except DeviceMemoryError:
                if not self._slots:
                    raise
                for known in list(self._slots):  # other shapes may hold what is missing
                    self._drop(known)
                self._slots[key] = self._make_slot(*key)
        self._slots.move_to_end(key)
        return self._slots[key]

    def _drop(self, key: tuple[int, int, int]) -> None:
        slot = self._slots.pop(key)
        if slot.graph is not None and not self._cuda.lost:
            self._cuda.call("cudaGraphExecDestroy", slot.graph)
        slot.contexts.clear()  # before the memory that they work in
        slot.device.free()
        slot.host.free()

    def _enqueue(self, context: Any, graph: str, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._failure(f"refuses the address of {name} in the {graph} graph")
        if not context.execute_async_v3(self._stream):
            raise self._failure(f"failed in the {graph} graph")

    def _enqueue_all(self, slot: _Slot) -> None:
        for graph, addresses in slot.calls:
            self._enqueue(slot.contexts[graph], graph, addresses)

    def _capture(self, slot: _Slot) -> None:
        graphs: list[Any] = []
        try:
            for name, context in slot.contexts.items():
                capturable = getattr(context, "is_stream_capturable", None)  # TensorRT-RTX's
                if capturable is not None and not capturable(self._stream):
                    raise CaptureError(
                        f"{self.name} says that the {name} graph's context allocates as it runs: "
                        "build its plan again"
                    )
            with self._cuda.capturing(self._stream, graphs):
                self._enqueue_all(slot)
            slot.graph = graphs[0]
        except DeviceLostError:
            raise
        except BackendError as error:
            self.capture = False
            logger.warning("the sampler cannot be captured (%s): it runs call by call", error)

    # -- the interface ----------------------------------------------------------------------------

    def _check_sizes(self, batch: int, n_frames: int, *, split: bool = False) -> None:
        if self._closed:
            raise BackendError("this backend is closed")
        low, _, high = self.profile.frames
        if not low <= n_frames <= high:
            raise InputError(
                f"T is {n_frames} frames; these plans hold {low} to {high}: use shorter windows, or "
                f"build others: dvpd build {self._options.predictive.parent} --frames MIN,OPT,MAX"
            )
        few, _, many = self.profile.batch
        if batch < few or (batch > many and not split):
            raise InputError(
                f"B is {batch}; these plans hold {few} to {many}: build others with --batch"
            )

    def run_sampler(
        self,
        noisy: Any,
        noise: FloatArray,
        *,
        start: InitialState,
        steps: Sequence[SamplerStep],
        alpha: float,
        tlb: TlbFactors,
    ) -> FloatArray:
        """The whole sampler on the device; see ``backends.base.SamplerBackend.run_sampler``.

        ``noisy`` may be a float32 array on this device (``__cuda_array_interface__``); it is then
        copied there, not through the host. Batches beyond the profile, or beyond the GPU's memory,
        are run in parts.
        """
        given: Any = noisy
        if hasattr(noisy, "__cuda_array_interface__"):
            given = device_array(noisy, "noisy")
            shape = given.shape
            fits = len(shape) == 4 and shape[0] > 0 and shape[1::2] == (3, N_FREQS)
            if not fits or shape[2] < MIN_FRAMES or shape[2] % FRAME_MULTIPLE:
                raise InputError(
                    f"noisy is {list(shape)}; expected [B, 3, T, {N_FREQS}], T a multiple of "
                    f"{FRAME_MULTIPLE}, at least {MIN_FRAMES}"
                )
            batch, n_frames = int(shape[0]), int(shape[2])
        else:
            sizes = check_predict(noisy)
            batch, n_frames = sizes["B"], sizes["T"]
        wanted = (len(steps), batch, 1, n_frames, N_FREQS)
        if noise.shape != wanted or noise.dtype != np.float32:
            raise InputError(
                f"noise is {noise.dtype} {list(noise.shape)}; expected float32 {list(wanted)}"
            )
        self._check_sizes(batch, n_frames, split=True)
        out = np.empty((batch, 2, n_frames, N_FREQS), np.float32)
        first = 0
        with self._cuda.current():
            while first < batch:
                count = min(batch - first, self._max_batch or self.profile.batch[2])
                part = slice(first, first + count)
                try:
                    slot = self._slot(count, n_frames, len(steps))
                    self._fill(slot, given, part, noise[:, part], start, steps, alpha, tlb)
                    out[part] = self._run(slot)
                except DeviceMemoryError as error:
                    if count <= self.profile.batch[0]:
                        raise
                    self._max_batch = max(count // 2, self.profile.batch[0])
                    logger.warning("%s: going on with batches of %d", error, self._max_batch)
                    continue
                first += count
        check_output(PREDICT_OUT, out, {"B": batch, "T": n_frames}, f"the sampler ({self.name})")
        return out

    def _fill(
        self,
        slot: _Slot,
        noisy: Any,
        part: slice,
        noise: FloatArray,
        start: InitialState,
        steps: Sequence[SamplerStep],
        alpha: float,
        tlb: TlbFactors,
    ) -> None:
        """Inputs to the device: one copy from pinned memory; ``noisy`` from where it is."""
        host, cuda = slot.host, self._cuda
        host.view("tlb_skip")[...], host.view("tlb_backbone")[...] = tlb.arrays()
        host.view("start")[...] = (start.w_x0, start.w_y, start.std, 0.0)
        host.view("finish")[...] = (alpha, 1.0 - alpha, 0.0, 0.0)
        for i, step in enumerate(steps):
            host.view(f"noise_{i}")[...] = noise[i]
            host.view(f"t_{i}")[...] = step.t
            host.view(f"step_{i}")[...] = (step.a, step.b, step.e, step.n)
        inputs = list(host.offsets)[:-1]  # the last is the output
        end = host[inputs[-1]] + host.n_bytes[inputs[-1]] - host.base
        begin, n_noisy = 0, host.n_bytes["noisy"]
        if isinstance(noisy, DeviceArray):
            cuda.synchronize(noisy.stream)
            source = noisy.pointer + part.start * (n_noisy // slot.batch)
            cuda.copy(slot.device["noisy"], source, n_noisy, self._stream)
            begin = host.offsets["tlb_skip"]
        else:
            host.view("noisy")[...] = noisy[part]
        cuda.copy(slot.device.base + begin, host.base + begin, end - begin, self._stream)

    def _run(self, slot: _Slot) -> FloatArray:
        """Enqueue, capture or replay, and wait; a view of pinned memory."""
        # TensorRT wants one plain run before a capture; shapes that do not come again need none.
        if slot.graph is None and self.capture and slot.n_runs:
            self._capture(slot)
        if slot.graph is None:
            self._enqueue_all(slot)
        else:
            self._cuda.call("cudaGraphLaunch", slot.graph, self._stream)
        result = list(slot.host.offsets)[-1]
        n_bytes = slot.host.n_bytes[result]
        self._cuda.copy(slot.host[result], slot.device[result], n_bytes, self._stream)
        self._cuda.synchronize(self._stream)
        slot.n_runs += 1
        return slot.host.view(result)

    def _once(
        self, graph: str, inputs: dict[str, Any], outputs: dict[str, Any], sizes: dict[str, int]
    ) -> tuple[FloatArray, Block | None]:
        """Run one graph by itself, in memory of its own; the plain interface's slow path."""
        shapes = self._shapes(sizes["B"], sizes["T"])
        feats = inputs.pop("feats", None)
        if feats is not None:
            known = {n: tuple(feats.block._arrays[n][0]) for n in FEAT_NAMES}
            shapes |= known
        context, scratch = self._context(graph, shapes)
        kept: Block | None = None
        result = next(iter(outputs))
        arrays = {n: (v.shape, "float32") for n, v in inputs.items()}
        arrays |= {result: (shapes[result], "float32"), "scratch": ((max(scratch, 1),), "uint8")}
        host = Block(self._cuda, {n: a for n, a in arrays.items() if n != "scratch"}, pinned=True)
        try:
            device = Block(self._cuda, arrays)
            try:
                if graph == "predictive":
                    dtypes = self._engines[graph].dtypes
                    kept = Block(
                        self._cuda,
                        {n: (tuple(context.get_tensor_shape(n)), dtypes[n]) for n in FEAT_NAMES},
                    )
                context.set_device_memory(device["scratch"], max(scratch, 1))
                for name, value in inputs.items():
                    host.view(name)[...] = value
                    self._cuda.copy(device[name], host[name], host.n_bytes[name], self._stream)
                source = kept if kept is not None else feats.block
                addresses = {n: device[n] for n in (*inputs, result)}
                self._enqueue(context, graph, addresses | {n: source[n] for n in FEAT_NAMES})
                self._cuda.copy(host[result], device[result], host.n_bytes[result], self._stream)
                self._cuda.synchronize(self._stream)
                return host.view(result).copy(), kept
            finally:
                del context
                device.free()
        finally:
            host.free()

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """Run the predictive graph; see ``Backend.predict``."""
        sizes = check_predict(noisy)
        self._check_sizes(sizes["B"], sizes["T"])
        with self._cuda.current():
            out, block = self._once("predictive", {"noisy": noisy}, {"clean_ri": None}, sizes)
        source = f"the predictive graph ({self.name})"
        assert block is not None  # the predictive graph's own
        return check_output(PREDICT_OUT, out, sizes, source), _Feats(block, sizes["B"], sizes["T"])

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """Run the score graph; see ``Backend.score``."""
        sizes = check_score(xt, t, feats, tlb_skip, tlb_backbone)
        self._check_sizes(sizes["B"], sizes["T"])
        if not isinstance(feats, _Feats) or (feats.batch, feats.n_frames) != (
            sizes["B"],
            sizes["T"],
        ):
            raise InputError("feats are not what predict of this backend returned for this B and T")
        inputs = {"xt": xt, "t": t, "tlb_skip": tlb_skip, "tlb_backbone": tlb_backbone}
        with self._cuda.current():
            out, _ = self._once("score", {**inputs, "feats": feats}, {"sigma_z": None}, sizes)
        return check_output(SCORE_OUT, out, sizes, f"the score graph ({self.name})")

    def close(self) -> None:
        """Release graphs, contexts, memory and engines."""
        if self._closed:
            return
        self._closed = True
        if not self._cuda.lost:
            with self._cuda.current():
                self._cuda.synchronize(self._stream)
                for key in list(self._slots):
                    self._drop(key)
                self._keep_kernels()
                self._cuda.call("cudaStreamDestroy", self._stream)
        self._slots.clear()
        self._engines.clear()
        self._kernel_cache = None


def _program(at: Block, n_steps: int) -> Any:
    """The sampler of runtime/sampler.py as calls: (graph, address of every tensor)."""
    feats = {name: at[name] for name in FEAT_NAMES}
    yield "predictive", {"noisy": at["noisy"], "clean_ri": at["clean_ri"], **feats}
    if not n_steps:
        return
    yield "start", {
        "noisy": at["noisy"], "clean_ri": at["clean_ri"], "noise": at["noise_0"],
        "coefficients": at["start"], "mag_p": at["mag_p"], "xt": at["xt_0"],
    }  # fmt: skip
    for i in range(n_steps):
        now, following = at[f"xt_{i % 2}"], at[f"xt_{(i + 1) % 2}"]
        yield "score", {
            "xt": now, "t": at[f"t_{i}"], **feats, "tlb_skip": at["tlb_skip"],
            "tlb_backbone": at["tlb_backbone"], "sigma_z": at["sigma_z"],
        }  # fmt: skip
        yield "step", {
            "noisy": at["noisy"], "xt": now, "sigma_z": at["sigma_z"],
            # noise i + 1 follows step i; after the last its factor is 0
            "noise": at[f"noise_{min(i + 1, n_steps - 1)}"],
            "coefficients": at[f"step_{i}"], "xt_next": following,
        }  # fmt: skip
    yield "finish", {
        "clean_ri": at["clean_ri"], "mag_p": at["mag_p"], "xt": at[f"xt_{n_steps % 2}"],
        "coefficients": at["finish"], "fused": at["fused"],
    }  # fmt: skip


def _common(profiles: Any) -> Profile:
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
