"""ONNX Runtime: CPU and CUDA."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import (
    PREDICT_OUT,
    SCORE_OUT,
    GraphTensor,
    LoadOptions,
    check_output,
    check_predict,
    check_score,
    check_signature,
    ort_conflict,
)
from .errors import BackendError, ManifestError
from .spec import N_FEATS, check_metadata

FloatArray = NDArray[np.float32]

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_FEAT_NAMES = [f"feat_{i}" for i in range(N_FEATS)]


def _tensors(values: Sequence[Any]) -> list[GraphTensor]:
    return [
        GraphTensor(
            value.name,
            _DTYPES.get(value.type, value.type),
            tuple(size if isinstance(size, int) else None for size in value.shape),
        )
        for value in values
    ]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class OrtBackend:
    """The two graphs in ONNX Runtime.

    On CUDA the feats stay on the device between ``predict`` and ``score``.
    """

    name = "ort"

    def __init__(self, options: LoadOptions) -> None:
        """Load both graphs.

        Args:
            options: Verified paths, manifest, device ("cpu", "cuda" or "cuda:N") and threads.

        Raises:
            BackendError: Broken installation, or the device is not there.
            ManifestError: A graph does not fit the contract or the manifest.
        """
        if (conflict := ort_conflict()) is not None:
            raise BackendError(conflict)
        try:
            import onnxruntime
        except Exception as error:  # a damaged or partial install raises whatever it likes
            raise BackendError(
                f"onnxruntime does not import ({_first_line(error)}): pip install --force-reinstall "
                "onnxruntime"
            ) from None
        self._ort = onnxruntime
        there: list[str] = onnxruntime.get_available_providers()
        match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", options.device)
        if match is None or (match[1] == "cpu" and match[2]):
            raise BackendError(
                f"backend ort has no device {options.device!r}; it knows cpu, cuda and cuda:N "
                f"(providers here: {', '.join(there)})"
            )
        self._cuda_index = int(match[2] or 0)
        self._on_cuda = match[1] == "cuda"
        self.device = options.device
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._on_cuda:
            if "CUDAExecutionProvider" not in there:
                raise BackendError(
                    f"device {options.device} asked for, but this ONNX Runtime has only "
                    f"{', '.join(there)}: pip uninstall -y onnxruntime, then pip install "
                    "'dvpd[gpu]'; or use device cpu"
                )
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": self._cuda_index}))
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.log_severity_level = 3  # errors only: they are raised with their text as well
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        self._sessions: dict[str, Any] = {
            "predictive": self._load("predictive", options.predictive, settings, providers),
            "score": self._load("score", options.score, settings, providers),
        }
        for graph, session in self._sessions.items():
            check_signature(
                graph,
                options.manifest.precision,
                _tensors(session.get_inputs()),
                _tensors(session.get_outputs()),
            )
            check_metadata(session.get_modelmeta().custom_metadata_map, options.manifest, graph)

    def _load(self, graph: str, path: Path, settings: Any, providers: list[Any]) -> Any:
        try:
            session = self._ort.InferenceSession(str(path), settings, providers=providers)
        except Exception as error:  # the library raises many types, all of its own
            if self._on_cuda:
                raise BackendError(
                    f"ONNX Runtime cannot start on {self.device} ({_first_line(error)})"
                ) from None
            raise ManifestError(
                f"{path}: ONNX Runtime {self._ort.__version__} refuses the {graph} graph "
                f"({_first_line(error)}); export the engine again, or update onnxruntime"
            ) from None
        if self._on_cuda and session.get_providers()[0] != "CUDAExecutionProvider":
            # ONNX Runtime would go on with the CPU and say nothing.
            raise BackendError(
                f"device {self.device} asked for, but ONNX Runtime could not load its CUDA "
                "libraries and fell back to the CPU: install the CUDA and cuDNN versions that "
                f"onnxruntime-gpu {self._ort.__version__} names, or use device cpu"
            )
        return session

    def _run(
        self, graph: str, outputs: list[str], inputs: dict[str, Any], keep: frozenset[str]
    ) -> list[Any]:
        """Run a graph; outputs named in ``keep`` stay where the device put them."""
        session = self._sessions.get(graph)
        if session is None:
            raise BackendError("this backend is closed")
        try:
            if not self._on_cuda:
                return list(session.run(outputs, inputs))
            binding = session.io_binding()
            for name, value in inputs.items():
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, np.ascontiguousarray(value))
                else:
                    binding.bind_ortvalue_input(name, value)
            for name in outputs:
                if name in keep:
                    binding.bind_output(name, "cuda", self._cuda_index)
                else:
                    binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            values = binding.get_outputs()
            return [
                value if name in keep else value.numpy()
                for name, value in zip(outputs, values, strict=True)
            ]
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed in the {graph} graph on {self.device} ({_first_line(error)})"
            ) from error

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """Run the predictive graph; see ``Backend.predict``."""
        sizes = check_predict(noisy)
        names = ["clean_ri", *_FEAT_NAMES]
        clean_ri, *feats = self._run("predictive", names, {"noisy": noisy}, frozenset(_FEAT_NAMES))
        return check_output(PREDICT_OUT, clean_ri, sizes, "the predictive graph (ort)"), feats

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
        inputs = {
            "xt": xt,
            "t": t,
            **dict(zip(_FEAT_NAMES, feats, strict=True)),
            "tlb_skip": tlb_skip,
            "tlb_backbone": tlb_backbone,
        }
        (sigma_z,) = self._run("score", ["sigma_z"], inputs, frozenset())
        return check_output(SCORE_OUT, sigma_z, sizes, "the score graph (ort)")

    def close(self) -> None:
        """Release both sessions."""
        self._sessions.clear()
