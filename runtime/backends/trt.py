"""TensorRT and TensorRT-RTX: the whole sampler on the device, captured as one CUDA graph.

A shape (batch, frames, steps) gets its own execution contexts and one allocation for every tensor,
made once. What goes to the device is one copy, what comes back is one copy; ``feat_*`` stay there.
The first call of a shape enqueues the networks and the three small graphs of
``export/sampler_graph.py`` one after the other, the second captures the same calls, later ones
replay them; without capture every call is like the first and gives the same numbers.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import FloatArray
from ..errors import BackendError, InputError
from ..schedule import InitialState, SamplerStep
from ..spec import FRAME_MULTIPLE, MIN_FRAMES, N_FREQS, STATE, TlbFactors
from ..tensorrt.gpus import Gpu, cuda_driver, why_rtx_unfit
from .base import (
    FEAT_NAMES,
    PREDICT_OUT,
    SCORE_OUT,
    LoadOptions,
    check_output,
    check_predict,
    check_score,
    check_whole,
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
from .trt_engines import Engines, import_package
from .trt_slots import Feats, Slot, program

logger = logging.getLogger("dvpd")

MAX_SLOTS = 8  # shapes kept; a recording needs two, its windows' and the last one's


class TrtBackend:
    """The two graphs as TensorRT plans.

    Attributes:
        name: "tensorrt" or "tensorrt-rtx".
        device: "cuda:N".
        capture: Whether shapes that come again are captured; False for a comparison.
        max_slots: Shapes kept.
    """

    max_slots = MAX_SLOTS

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
        package = trt or import_package(name)
        self._slots: OrderedDict[tuple[int, int, int], Slot] = OrderedDict()
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
        with self._cuda.current():
            self._engines = Engines(options, name, package, gpu)
            self._stream = self._cuda.stream()
        self.profile = self._engines.profile

    # -- one shape --------------------------------------------------------------------------------

    def _make_slot(self, batch: int, n_frames: int, n_steps: int) -> Slot:
        contexts: dict[str, Any] = {}
        shapes: dict[str, Sequence[int]] = {}
        scratch = 1
        graphs = ("predictive", "start", "score", "step", "finish") if n_steps else ("predictive",)
        for graph in graphs:
            shapes |= self._engines.shapes(batch, n_frames, graph)
            contexts[graph], need = self._engines.context(graph, shapes)
            scratch = max(scratch, need)
            if graph == "predictive":
                for name in FEAT_NAMES:  # the engine knows their channels and bins
                    shapes[name] = tuple(contexts[graph].get_tensor_shape(name))
        inputs: dict[str, tuple[Sequence[int], str]] = {"noisy": (shapes["noisy"], "float32")}
        causal = self._options.manifest.causal
        if causal is not None and causal.lookahead_blocks:  # the frames that the output is of
            inputs["late"] = inputs["noisy"]
        inputs["tlb_skip"] = inputs["tlb_backbone"] = ((2, 2), "float32")
        for i in range(n_steps):
            inputs[f"noise_{i}"] = (shapes["noise"], "float32")
            inputs[f"t_{i}"] = (shapes["t"], "float32")
        inputs["start"] = inputs["finish"] = ((4,), "float32")
        inputs |= {f"step_{i}": ((4,), "float32") for i in range(n_steps)}
        clean_ri: tuple[Sequence[int], str] = (shapes["clean_ri"], "float32")
        one: tuple[Sequence[int], str] = (shapes["xt"], "float32")
        results = {"clean_ri": clean_ri}
        if n_steps:
            results = {"fused": clean_ri}
            if causal is not None:  # what steps that return come in with
                results |= {"clean_ri": clean_ri, "sigma_z_0": one}
        dtypes = self._engines.dtypes("predictive")
        work = {**results, "clean_ri": clean_ri}
        work |= {name: (shapes[name], dtypes[name]) for name in FEAT_NAMES}
        if n_steps:
            work |= {name: one for name in ("mag_p", "xt_0", "xt_1", "sigma_z_0", "sigma_z_1")}
        for i in range(n_steps + 1 if causal is not None else 0):
            size = self._engines.shapes(batch, n_frames, "score" if i else "predictive")[STATE]
            work |= {f"state_{i}": (size, "float32"), f"next_{i}": (size, "float32")}
        work["scratch"] = ((scratch,), "uint8")
        host = Block(self._cuda, inputs | results, pinned=True)
        try:
            device = Block(self._cuda, inputs | work)  # the inputs first: offsets as on the host
        except BackendError:
            host.free()
            raise
        for context in contexts.values():
            context.set_device_memory(device["scratch"], scratch)
        if causal is not None:  # places of a batch that no stream has must hold numbers, too
            host.clear()
            self._cuda.zero(device.base, device.size, self._stream)
        last = next(reversed(inputs))
        n_inputs = host.offsets[last] + host.n_bytes[last]
        slot = Slot(batch, n_frames, n_steps, host, n_inputs, device, contexts)
        slot.calls = list(program(device, n_steps))
        return slot

    def _slot(self, batch: int, n_frames: int, n_steps: int) -> Slot:
        key = (batch, n_frames, n_steps)
        if key not in self._slots:
            while len(self._slots) >= self.max_slots:
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

    def _enqueue_all(self, slot: Slot) -> None:
        for graph, addresses in slot.calls:
            self._engines.enqueue(slot.contexts[graph], graph, addresses, self._stream)

    def _capture(self, slot: Slot) -> None:
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
        check_whole(self._options.manifest.causal)
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

        def work(part: slice) -> None:
            slot = self._slot(part.stop - part.start, n_frames, len(steps))
            self._fill(slot, given, part, noise[:, part], start, steps, alpha, tlb)
            (out[part],) = self._run(slot, 1)

        self._in_parts(batch, work)
        check_output(PREDICT_OUT, out, {"B": batch, "T": n_frames}, f"the sampler ({self.name})")
        return out

    def _in_parts(self, batch: int, work: Callable[[slice], None]) -> None:
        """Call ``work`` with parts of a batch that the plans and the GPU's memory hold."""
        first = 0
        with self._cuda.current():
            while first < batch:
                count = min(batch - first, self._max_batch or self.profile.batch[2])
                try:
                    work(slice(first, first + count))
                except DeviceMemoryError as error:
                    if count <= self.profile.batch[0]:
                        raise
                    self._max_batch = max(count // 2, self.profile.batch[0])
                    logger.warning("%s: going on with batches of %d", error, self._max_batch)
                    continue
                first += count

    def _fill(
        self,
        slot: Slot,
        noisy: Any,
        part: slice,
        noise: FloatArray,
        start: InitialState,
        steps: Sequence[SamplerStep],
        alpha: float,
        tlb: TlbFactors,
    ) -> None:
        """Inputs to the device: one copy from pinned memory; ``noisy`` from where it is."""
        host, cuda, count = slot.host, self._cuda, part.stop - part.start
        host.view("tlb_skip")[...], host.view("tlb_backbone")[...] = tlb.arrays()
        host.view("start")[...] = (start.w_x0, start.w_y, start.std, 0.0)
        host.view("finish")[...] = (alpha, 1.0 - alpha, 0.0, 0.0)
        for i, step in enumerate(steps):
            host.view(f"noise_{i}")[:count] = noise[i]
            host.view(f"t_{i}")[...] = step.t
            host.view(f"step_{i}")[...] = (step.a, step.b, step.e, step.n)
        begin, n_noisy = 0, host.n_bytes["noisy"]
        if isinstance(noisy, DeviceArray):
            cuda.synchronize(noisy.stream)
            source = noisy.pointer + part.start * (n_noisy // slot.batch)
            cuda.copy(slot.device["noisy"], source, n_noisy, self._stream)
            begin = host.offsets["tlb_skip"]
        else:
            host.view("noisy")[:count] = noisy[part]
        cuda.copy(slot.device.base + begin, host.base + begin, slot.n_inputs - begin, self._stream)

    def _run(
        self, slot: Slot, n_results: int, kept: Sequence[tuple[int, int, int]] = ()
    ) -> list[FloatArray]:
        """Enqueue, capture or replay, and wait; views of the first results in pinned memory.

        Args:
            slot: The shape.
            n_results: How many.
            kept: What is copied on the device afterwards: (target, source, bytes).
        """
        self._launch(slot)
        for target, source, n_bytes in kept:
            self._cuda.copy(target, source, n_bytes, self._stream)
        results = [name for name, at in slot.host.offsets.items() if at >= slot.n_inputs]
        for name in results[:n_results]:
            n_bytes = slot.host.n_bytes[name]
            self._cuda.copy(slot.host[name], slot.device[name], n_bytes, self._stream)
        self._cuda.synchronize(self._stream)
        slot.n_runs += 1
        return [slot.host.view(name) for name in results[:n_results]]

    def _launch(self, slot: Slot) -> None:
        # TensorRT wants one plain run before a capture; shapes that do not come again need none.
        if slot.graph is None and self.capture and slot.n_runs:
            self._capture(slot)
        if slot.graph is None:
            self._enqueue_all(slot)
        else:
            self._cuda.call("cudaGraphLaunch", slot.graph, self._stream)

    def _once(
        self,
        graph: str,
        inputs: Mapping[str, FloatArray],
        feats: Feats | None = None,
        states: Mapping[str, int] | None = None,
    ) -> tuple[FloatArray, Feats]:
        """Run one graph by itself, in memory of its own; the plain interface's slow path.

        Args:
            graph: "predictive" or "score".
            inputs: Arrays on the host.
            feats: Of the score graph.
            states: Addresses of a causal model's states.
        """
        result, main = ("clean_ri", "noisy") if graph == "predictive" else ("sigma_z", "xt")
        batch, _, n_frames, _ = inputs[main].shape
        shapes: dict[str, Sequence[int]] = {**self._engines.shapes(batch, n_frames, graph)}
        if feats is not None:
            shapes |= {name: feats.block.shape(name) for name in FEAT_NAMES}
        context, scratch = self._engines.context(graph, shapes)
        arrays: dict[str, tuple[Sequence[int], str]]
        arrays = {n: (v.shape, "float32") for n, v in inputs.items()}
        arrays[result] = (shapes[result], "float32")
        host = Block(self._cuda, arrays, pinned=True)
        try:
            device = Block(self._cuda, arrays | {"scratch": ((max(scratch, 1),), "uint8")})
            try:
                if feats is None:
                    dtypes = self._engines.dtypes(graph)
                    found = {n: (tuple(context.get_tensor_shape(n)), dtypes[n]) for n in FEAT_NAMES}
                    feats = Feats(Block(self._cuda, found), batch, n_frames)
                context.set_device_memory(device["scratch"], max(scratch, 1))
                for name, value in inputs.items():
                    host.view(name)[...] = value
                    self._cuda.copy(device[name], host[name], host.n_bytes[name], self._stream)
                addresses = {n: device[n] for n in (*inputs, result)} | dict(states or {})
                addresses |= {name: feats.block[name] for name in FEAT_NAMES}
                self._engines.enqueue(context, graph, addresses, self._stream)
                self._cuda.copy(host[result], device[result], host.n_bytes[result], self._stream)
                self._cuda.synchronize(self._stream)
                return host.view(result).copy(), feats
            finally:
                del context
                device.free()
        finally:
            host.free()

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """Run the predictive graph; see ``Backend.predict``."""
        check_whole(self._options.manifest.causal)
        sizes = check_predict(noisy)
        self._check_sizes(sizes["B"], sizes["T"])
        with self._cuda.current():
            out, feats = self._once("predictive", {"noisy": noisy})
        return check_output(PREDICT_OUT, out, sizes, f"the predictive graph ({self.name})"), feats

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """Run the score graph; see ``Backend.score``."""
        check_whole(self._options.manifest.causal)
        sizes = check_score(xt, t, feats, tlb_skip, tlb_backbone)
        self._check_sizes(sizes["B"], sizes["T"])
        own = self._own_feats(feats, sizes)
        inputs = {"xt": xt, "t": t, "tlb_skip": tlb_skip, "tlb_backbone": tlb_backbone}
        with self._cuda.current():
            out, _ = self._once("score", inputs, own)
        return check_output(SCORE_OUT, out, sizes, f"the score graph ({self.name})")

    @staticmethod
    def _own_feats(feats: Sequence[Any], sizes: Mapping[str, int]) -> Feats:
        """The feats, if they are of a call of these sizes."""
        if isinstance(feats, Feats) and (feats.batch, feats.n_frames) == (sizes["B"], sizes["T"]):
            return feats
        raise InputError("feats are not what predict of this backend returned for this B and T")

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
                self._engines.keep_kernels()
                self._cuda.call("cudaStreamDestroy", self._stream)
        self._slots.clear()
        self._engines.close()
