"""OpenVINO: CPU, and Intel GPU or NPU where its runtime finds one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..arrays import FloatArray
from ..errors import BackendError, ManifestError
from ..manifest import check_metadata
from ..spec import ESTIMATE, FRAME_MULTIPLE, NEXT_STATE, STATE
from .base import (
    FEAT_NAMES,
    PREDICT_OUT,
    SCORE_OUT,
    Backend,
    LoadOptions,
    check_output,
    check_predict,
    check_whole,
    score_feeds,
    stream_state,
)
from .signature import GraphTensor, check_signature, said
from .single import each_recording, is_single, verify_again, wait_for_steps

BLOCK = ".block"  # behind a graph's name: its sizes fixed to the next block of one stream
_DTYPES = {"f32": "float32", "f16": "float16", "f64": "float64"}


@lru_cache(maxsize=1)
def shared_core() -> Any:
    """The process's one OpenVINO core, never released.

    Every core gives its thread another alternate signal stack and puts back the one before it when
    it is released. Cores that are not released in reverse order leave a stack that is no longer
    mapped, and the next signal with a Python handler (Ctrl-C, a child that ends) is a segmentation
    fault. Seen with 2026.4.

    Raises:
        Exception: Whatever a damaged installation raises.
    """
    import openvino

    return openvino.Core()


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _tensors(ports: Sequence[Any]) -> list[GraphTensor]:
    return [
        GraphTensor(
            port.get_any_name(),
            _DTYPES.get(port.get_element_type().get_type_name(), str(port.get_element_type())),
            tuple(
                None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()
            ),
        )
        for port in ports
    ]


def _check_bf16(core: Any, options: LoadOptions) -> None:
    """Refuse bfloat16 where it was not measured, or would be float32 without a word."""
    manifest = options.manifest
    if manifest.causal is not None or manifest.precision != "fp32":
        kind = "causal" if manifest.causal is not None else manifest.precision
        raise BackendError(
            f"{manifest.name} is {kind}; openvino-bf16 takes fp32 engines that hear whole "
            "recordings: use backend openvino or ort"
        )
    able = options.device == "cpu" and "BF16" in core.get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    )
    if not able:
        raise BackendError(
            f"openvino-bf16 needs a CPU with AMX or AVX-512 BF16, which {options.device} here is "
            "not: use backend openvino or ort"
        )


class OpenVinoBackend:
    """The two graphs in OpenVINO.

    As "openvino-bf16" it rounds what it multiplies to bfloat16 (8 bits).
    """

    def __init__(self, options: LoadOptions, calls: int = 1, name: str = "openvino") -> None:
        """Load and compile both graphs; some with the first step, as in ``OrtBackend``.

        Args:
            options: Verified paths, manifest, device ("cpu", "gpu", "npu") and threads.
            calls: Made at a time, on a CPU; each has as many threads.
            name: "openvino" or "openvino-bf16".

        Raises:
            BackendError: Broken installation, or the device is not there or cannot do it.
            ManifestError: A graph does not fit the contract.
        """
        try:
            core = shared_core()
        except Exception as error:  # a damaged or partial install raises whatever it likes
            raise BackendError(
                f"openvino does not import ({_first_line(error)}): pip install --force-reinstall "
                "openvino"
            ) from None
        self.name = name
        available: list[str] = core.available_devices
        device = options.device.upper()
        self._single = is_single(options)
        self._feat_sizes: dict[str, list[int]] = {}
        # "GPU" stands for GPU.0, GPU.1, ...
        if not any(name == device or name.startswith(device + ".") for name in available):
            raise BackendError(
                f"backend openvino has no device {options.device!r} here; available: "
                f"{', '.join(name.lower() for name in available) or 'none'}"
            )
        if bf16 := name == "openvino-bf16":
            _check_bf16(core, options)
        self.device, self._causal = options.device, options.manifest.causal
        self._options, self._opening = options, threading.Lock()
        self._parts: OpenVinoBackend | None = None
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Not the default, which on CPUs with AMX is bfloat16.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        }
        if device == "CPU" and options.threads is not None:
            config["INFERENCE_NUM_THREADS"] = options.threads * calls
        if calls > 1:
            config["NUM_STREAMS"] = calls
        self._core, self._config, self._calls = core, config, calls
        # A request holds one call; whoever finds none waits.
        self._requests: dict[str, SimpleQueue[Any]] = {}
        now = {"predictive": options.predictive, "score": options.score}
        self._later: dict[str, Path] = {}
        if wait_for_steps(options):
            self._later, now = now, {ESTIMATE: options.predictive}
        for graph, path in now.items():
            self._requests[graph] = self._begin(graph, path)

    def _begin(self, graph: str, path: Path) -> SimpleQueue[Any]:
        """The requests of a graph."""
        compiled = self._load(self._core, graph, path, self._options, self._config)
        requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self._calls):
            requests.put(compiled.create_infer_request())
        return requests

    def _of(self, graph: str) -> SimpleQueue[Any]:
        """The requests of a graph; one that nobody needed so far is loaded."""
        requests = self._requests.get(graph)
        if requests is None:
            with self._opening:
                requests = self._requests.get(graph)
                if requests is None and graph in self._later:
                    verify_again(self._options, graph)
                    requests = self._requests[graph] = self._begin(graph, self._later[graph])
        if requests is None:
            raise BackendError("this backend is closed")
        return requests

    def _load(
        self, core: Any, graph: str, path: Path, options: LoadOptions, config: dict[str, Any]
    ) -> Any:
        try:
            model = core.read_model(str(path))
        except Exception as error:  # the library raises RuntimeError and its own types
            raise ManifestError(
                f"{path}: OpenVINO refuses the {said(graph)} graph ({_first_line(error)}); export the "
                "engine again, or update openvino"
            ) from None
        if graph == ESTIMATE:
            for port, result in zip(model.outputs, model.get_results(), strict=True):
                if port.get_any_name() != PREDICT_OUT.name:
                    model.remove_result(result)
        check_signature(
            graph,
            options.manifest.precision,
            _tensors(model.inputs),
            _tensors(model.outputs),
            options.manifest.causal,
            self._single,
        )
        if self._causal is not None:
            self._requests[graph + BLOCK] = self._load_block(core, graph, path, config)
        # Releases that do not pass the metadata on leave this check to the verified hash.
        if model.has_rt_info("framework"):
            stored = model.get_rt_info("framework").value
            check_metadata(
                {key: str(getattr(item, "value", item)) for key, item in stored.items()},
                options.manifest,
                said(graph),
            )
        try:
            return core.compile_model(model, self.device.upper(), config)
        except Exception as error:
            raise BackendError(
                f"OpenVINO cannot compile the {said(graph)} graph for {self.device} "
                f"({_first_line(error)})"
            ) from None

    def _run(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
        requests = self._of(graph)
        request = requests.get()
        try:
            # Outputs are copied: a request reuses its memory, and callers may keep feats.
            results = request.infer(inputs, share_inputs=True, share_outputs=False)
            return {port.get_any_name(): value for port, value in results.items()}
        except Exception as error:
            raise BackendError(
                f"OpenVINO failed in the {said(graph)} graph on {self.device} ({_first_line(error)})"
            ) from error
        finally:
            requests.put(request)

    def for_workers(self) -> tuple[Backend, int]:
        """Both graphs with a request for each worker; see ``WorkersBackend``."""
        count, alone = self._options.workers[0], self._options.for_a_worker
        if alone is None:
            return self, 1
        with self._opening:
            if self._parts is None and self._requests:
                self._parts = OpenVinoBackend(alone, count, self.name)
        return self._parts or self, count

    def _load_block(self, core: Any, graph: str, path: Path, config: dict[str, Any]) -> Any:
        """A request for the next block of one stream, of sizes that are known.

        It takes half the time of the one for any sizes, which plans each call anew. The predictive
        graph comes first: it knows the sizes of the feats.
        """
        model = core.read_model(str(path))
        sizes = dict(self._feat_sizes)
        for port in model.inputs:
            first, *rest = port.get_partial_shape()  # dynamic beside the batch: frames
            fixed = [FRAME_MULTIPLE if size.is_dynamic else size.get_length() for size in rest]
            batch = 1 if first.is_dynamic else first.get_length()
            sizes.setdefault(port.get_any_name(), [batch, *fixed])
        try:
            model.reshape({name: sizes[name] for name in (p.get_any_name() for p in model.inputs)})
            found = {
                name: [*port.get_shape()] for port in model.outputs for name in port.get_names()
            }
            self._feat_sizes = {name: found[name] for name in FEAT_NAMES if name in found}
            return core.compile_model(model, self.device.upper(), config).create_infer_request()
        except Exception as error:
            raise BackendError(
                f"OpenVINO cannot compile the {graph} graph for blocks on {self.device} "
                f"({_first_line(error)})"
            ) from None

    def _run_next(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run a causal graph; the next block of one stream in the request of its size."""
        frames: FloatArray = next(iter(inputs.values()))
        one = frames.shape[0] == 1 and frames.shape[2] == FRAME_MULTIPLE
        request: Any = self._requests.get(graph + BLOCK) if one else None
        if request is None:
            return self._run(graph, inputs)
        try:
            results = request.infer(inputs, share_inputs=True, share_outputs=False)
            return {name: value for port, value in results.items() for name in port.get_names()}
        except Exception as error:
            raise BackendError(
                f"OpenVINO failed in the {graph} graph on {self.device} ({_first_line(error)})"
            ) from error

    def _run_each(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run a graph on a batch, or the graph for one recording on each of it."""
        rows = [self._run(graph, one) for one in each_recording(inputs, self._single)]
        if len(rows) == 1:
            return rows[0]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """Run the predictive graph; see ``Backend.predict``."""
        check_whole(self._causal)
        sizes = check_predict(noisy)
        results = self._run_each("predictive", {"noisy": np.ascontiguousarray(noisy)})
        source = "the predictive graph (openvino)"
        clean_ri = check_output(PREDICT_OUT, results["clean_ri"], sizes, source)
        return clean_ri, [results[name] for name in FEAT_NAMES]

    def estimate(self, noisy: FloatArray) -> FloatArray:
        """Run the predictive graph without its features; see ``EstimateBackend.estimate``."""
        if ESTIMATE not in self._requests:
            return self.predict(noisy)[0]
        sizes = check_predict(noisy)
        results = self._run_each(ESTIMATE, {"noisy": np.ascontiguousarray(noisy)})
        source = "the predictive graph (openvino)"
        return check_output(PREDICT_OUT, results[PREDICT_OUT.name], sizes, source)

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """Run the score graph; see ``Backend.score``."""
        check_whole(self._causal)
        sizes, inputs = score_feeds(xt, t, feats, tlb_skip, tlb_backbone)
        results = self._run_each("score", inputs)
        return check_output(SCORE_OUT, results["sigma_z"], sizes, "the score graph (openvino)")

    def predict_next(self, noisy: FloatArray, state: Any) -> tuple[FloatArray, Sequence[Any], Any]:
        """Run the predictive graph on the next frames; see ``StreamBackend.predict_next``."""
        sizes = check_predict(noisy, FRAME_MULTIPLE)
        before = stream_state(self._causal, "predictive", len(noisy), state)
        inputs = {"noisy": np.ascontiguousarray(noisy), STATE: before}
        results = self._run_next("predictive", inputs)
        source = "the predictive graph (openvino)"
        clean_ri = check_output(PREDICT_OUT, results["clean_ri"], sizes, source)
        return clean_ri, [results[name] for name in FEAT_NAMES], results[NEXT_STATE]

    def score_next(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
        state: Any,
    ) -> tuple[FloatArray, Any]:
        """Run the score graph on the next frames; see ``StreamBackend.score_next``."""
        sizes, inputs = score_feeds(xt, t, feats, tlb_skip, tlb_backbone, FRAME_MULTIPLE)
        inputs[STATE] = stream_state(self._causal, "score", len(xt), state)
        results = self._run_next("score", inputs)
        source = "the score graph (openvino)"
        return check_output(SCORE_OUT, results["sigma_z"], sizes, source), results[NEXT_STATE]

    def close(self) -> None:
        """Release the requests."""
        with self._opening:
            self._later.clear()
            self._requests.clear()
            if self._parts is not None:
                self._parts.close()
