"""ONNX Runtime: its CPU, CUDA, TensorRT and RTX providers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import FloatArray
from ..errors import BackendError, InputError, ManifestError
from ..manifest import BLOCK, BlockPoint, check_metadata
from ..spec import ESTIMATE, FRAME_MULTIPLE, NEXT_STATE, STATE, TlbFactors
from ..tensorrt.onnx_inputs import Profile
from ..wire_format import keep_outputs
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
from .ort_arena import share_arena
from .ort_block import OrtBlock, as_array
from .ort_providers import cuda_options, engine_cache, tensorrt_options
from .ort_rtx import rtx_device, rtx_options
from .signature import GraphTensor, check_signature, said
from .single import each_recording, is_single, verify_again, wait_for_steps

logger = logging.getLogger("dvpd")

# Both at once: they own the same files, and removing one leaves the other broken.
UNINSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu"
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


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


def ort_conflict() -> str | None:
    """The complaint if what imports is files of onnxruntime and of onnxruntime-gpu, else None.

    The two packages own the same files: whichever was installed last has overwritten the other. Where
    it did so wholly the module works as that package; where not, its parts belong to different ones.
    """
    # Not importlib.metadata: it takes a tenth of a short command's imports.
    spec = importlib.util.find_spec("onnxruntime")
    names = []
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        with contextlib.suppress(OSError):  # in a zip, say
            names += os.listdir(Path(place).parent)
    records = [name for name in names if name.endswith(".dist-info")]
    if not all(
        any(record.startswith(f"{package}-") for record in records)
        for package in ("onnxruntime", "onnxruntime_gpu")
    ):
        return None
    if _of_one_piece():
        return None
    return (
        "onnxruntime and onnxruntime-gpu are both installed and have overwritten each other in "
        f"part: {UNINSTALL}, then install one of them"
    )


def _of_one_piece() -> bool:
    """Whether the compiled part of the onnxruntime that imports is what its Python files name."""
    try:
        import onnxruntime
        from onnxruntime.capi import build_and_package_info as named

        compiled = onnxruntime.get_version_string()
        has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        for_gpu = named.package_name == "onnxruntime-gpu"
    except Exception:  # a damaged install raises whatever it likes
        return False
    return bool(compiled == named.__version__ and has_cuda == for_gpu)


def preload_libraries(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from their wheels, where this ONNX Runtime knows how (1.21).

    Its CUDA provider finds only what the system's loader finds; pip's libraries are not among it.
    What is missing shows when the provider is asked for, so nothing is raised here.

    Args:
        onnxruntime: The package.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):  # it prints what it misses; stdout is for results
            preload()
    except Exception as error:  # likewise
        said.write(str(error))
    if said.getvalue().strip():
        logger.debug("preload_dlls: %s", " ".join(said.getvalue().split()))


def _package() -> Any:
    if (conflict := ort_conflict()) is not None:
        raise BackendError(conflict)
    try:
        import onnxruntime
    except Exception as error:  # a damaged or partial install raises whatever it likes
        raise BackendError(
            f"onnxruntime does not import ({_first_line(error)}): pip install --force-reinstall "
            "onnxruntime"
        ) from None
    return onnxruntime


class OrtBackend:
    """The two graphs in ONNX Runtime.

    On a GPU the feats stay on the device between ``predict`` and ``score``.
    """

    name = "ort"

    def __init__(self, options: LoadOptions) -> None:
        """Load both graphs; with the first step, where the model takes none by default.

        Until then there is the predictive graph without its features, for ``estimate``.

        Args:
            options: Verified paths, manifest, device ("cpu"; "cuda", "tensorrt" or "rtx", also with
                ":N") and threads.

        Raises:
            BackendError: Broken installation, or the device is not there.
            ManifestError: A graph does not fit the contract or the manifest.
        """
        onnxruntime = _package()
        self._ort, self._causal = onnxruntime, options.manifest.causal
        self._options, self._opening = options, threading.Lock()
        self._parts: OrtBackend | None = None
        available: list[str] = onnxruntime.get_available_providers()
        match = re.fullmatch(r"(cpu|cuda|tensorrt|rtx)(?::(\d+))?", options.device)
        if match is None or (match[1] == "cpu" and match[2]):
            raise BackendError(
                f"backend ort has no device {options.device!r}; it knows cpu, cuda, cuda:N, "
                f"tensorrt, tensorrt:N, rtx and rtx:N (providers here: {', '.join(available)})"
            )
        self._index = int(match[2] or 0)
        self._on_gpu = match[1] != "cpu"
        self._profile = Profile() if match[1] in ("tensorrt", "rtx") else None
        self.device, self._single = options.device, is_single(options)
        # Of the plug-in nobody says that outputs may stay with it: they come to the host.
        self._bound = match[1] in ("cuda", "tensorrt")
        self._rtx: Any = None
        if match[1] == "rtx":
            self._wanted, self._rtx = rtx_device(onnxruntime, self._index)
        else:
            self._wanted = {
                "cpu": "CPUExecutionProvider",
                "cuda": "CUDAExecutionProvider",
                "tensorrt": "TensorrtExecutionProvider",
            }[match[1]]
        if self._rtx is None and self._wanted not in available:
            raise BackendError(
                f"device {options.device} asked for, but this ONNX Runtime has only "
                f"{', '.join(available)}: {UNINSTALL}, then pip install 'dvpd[gpu]'; or use device "
                "cpu"
            )
        if self._bound:
            preload_libraries(onnxruntime)
        now = {"predictive": options.predictive, "score": options.score}
        if options.block is not None:
            now[BLOCK] = options.block
        self._later: dict[str, Path] = {}
        if wait_for_steps(options):
            self._later, now = now, {ESTIMATE: options.predictive}

        # Half of a short command's time: on two cores, beside each other.
        with ThreadPoolExecutor(1 if self._on_gpu or options.threads == 1 else 2) as pool:
            sessions = pool.map(self._begin, now, now.values())
            self._sessions: dict[str, Any] = dict(zip(now, sessions, strict=True))
        self._block: OrtBlock | None = None
        for graph, session in self._sessions.items():
            if graph == BLOCK:
                self._block = self._open_block(session)
            else:
                self._check(graph, session)

    def _begin(self, graph: str, path: Path) -> Any:
        """A session of a graph."""
        settings = self._settings(graph)
        if graph == ESTIMATE:
            return self._load_estimate(path, settings)
        if self._rtx is None:
            providers = {"providers": self._providers(graph, path)}
        else:
            cache = engine_cache(self._options.manifest.graphs[graph].sha256, "ort-rtx")
            settings.add_provider_for_devices([self._rtx], rtx_options(path, cache))
            providers = {}
        return self._load(graph, path, settings, providers)

    def _check(self, graph: str, session: Any) -> None:
        """Refuse a graph that is not the one that the manifest describes."""
        outputs = _tensors(session.get_outputs())
        if graph == ESTIMATE:  # the others are there in an older ONNX Runtime alone
            outputs = [tensor for tensor in outputs if tensor.name == PREDICT_OUT.name]
        check_signature(
            graph,
            self._options.manifest.precision,
            _tensors(session.get_inputs()),
            outputs,
            self._causal,
            self._single,
        )
        metadata = session.get_modelmeta().custom_metadata_map
        check_metadata(metadata, self._options.manifest, said(graph))

    def _session(self, graph: str) -> Any:
        """The session of a graph; one that nobody needed so far is loaded."""
        session = self._sessions.get(graph)
        if session is None:
            with self._opening:
                session = self._sessions.get(graph)
                if session is None and graph in self._later:
                    verify_again(self._options, graph)
                    session = self._begin(graph, self._later[graph])
                    self._check(graph, session)
                    self._sessions[graph] = session
        if session is None:
            raise BackendError("this backend is closed")
        return session

    def _open_block(self, session: Any) -> OrtBlock:
        """The graph of both networks on one block."""
        manifest = self._options.manifest
        check_metadata(session.get_modelmeta().custom_metadata_map, manifest, BLOCK)
        assert manifest.block is not None  # as there is a path
        assert manifest.causal is not None  # as there is such a graph
        make = self._ort.OrtValue.ortvalue_from_numpy
        return OrtBlock(session, make, manifest.block, manifest.causal)

    def _settings(self, graph: str) -> Any:
        """Of the session of a graph."""
        settings, levels = self._ort.SessionOptions(), self._ort.GraphOptimizationLevel
        # Blocked layouts pay on large maps; on a block's they cost more nodes than they save time.
        settings.graph_optimization_level = (
            levels.ORT_ENABLE_EXTENDED if graph == BLOCK else levels.ORT_ENABLE_ALL
        )
        settings.log_severity_level = 3  # errors only: they are raised with their text as well
        if self._options.threads is not None:
            settings.intra_op_num_threads = self._options.threads
        # Each graph has its own threads: those of the last call would spin on the cores of the
        # next one (the first score call of a window took 20 to 50 % longer, on two cores).
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        if not self._on_gpu and self._causal is None and share_arena():
            settings.add_session_config_entry("session.use_env_allocators", "1")
            # It would take one block for all maps of a call, beside what is free in the arena.
            settings.enable_mem_pattern = False
        return settings

    def _providers(self, graph: str, path: Path) -> list[Any]:
        """The provider that was asked for, and those that take what it does not."""
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._on_gpu:
            cuda = cuda_options(self._index, self._options.tf32)
            providers.insert(0, ("CUDAExecutionProvider", cuda))
        if self._profile is not None:
            manifest = self._options.manifest
            sha256 = manifest.graphs[graph].sha256
            choice = tensorrt_options(path, sha256, manifest.precision, self._index)
            providers.insert(0, (self._wanted, choice))
            if not any(Path(choice["trt_engine_cache_path"]).glob("*.engine")):
                logger.warning("TensorRT builds its engine of %s: minutes, once", path.name)
        return providers

    def _load_estimate(self, path: Path, settings: Any) -> Any:
        """A session of the predictive graph without the feats; of all of it where that fails."""
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
        try:
            model = keep_outputs(path.read_bytes(), (PREDICT_OUT.name,))
            return self._ort.InferenceSession(model, settings, providers=[self._wanted])
        except Exception as error:  # before 1.21 it finds no weights of a graph that is no file
            logger.debug("%s: not without the feats: %s", path, _first_line(error))
        return self._load(ESTIMATE, path, self._settings(ESTIMATE), {"providers": [self._wanted]})

    def _load(self, graph: str, path: Path, settings: Any, providers: dict[str, Any]) -> Any:
        try:
            session = self._ort.InferenceSession(str(path), settings, **providers)
        except Exception as error:  # the library raises many types, all of its own
            if self._on_gpu:
                raise BackendError(
                    f"ONNX Runtime cannot start on {self.device} ({_first_line(error)})"
                ) from None
            raise ManifestError(
                f"{path}: ONNX Runtime {self._ort.__version__} refuses the {said(graph)} graph "
                f"({_first_line(error)}); export the engine again, or update onnxruntime"
            ) from None
        if session.get_providers()[0] != self._wanted:
            # ONNX Runtime would go on with the next provider and say nothing.
            if self._rtx is not None:
                raise BackendError(
                    f"device {self.device} asked for, but ONNX Runtime fell back to "
                    f"{session.get_providers()[0]}; use another device"
                )
            libraries = "TensorRT, CUDA" if self._profile is not None else "CUDA"
            raise BackendError(
                f"device {self.device} asked for, but ONNX Runtime could not load its {libraries} "
                f"libraries and fell back to {session.get_providers()[0]}: install the {libraries} "
                f"and cuDNN versions that onnxruntime-gpu {self._ort.__version__} names, or use "
                "another device"
            )
        return session

    def _run_each(
        self, graph: str, outputs: list[str], inputs: dict[str, Any], keep: frozenset[str]
    ) -> list[Any]:
        """Run a graph on a batch, or the graph for one recording on each of it."""
        rows = [
            self._run(graph, outputs, one, keep) for one in each_recording(inputs, self._single)
        ]
        if len(rows) == 1:
            return rows[0]
        return [np.concatenate(values) for values in zip(*rows, strict=True)]

    def _run(
        self, graph: str, outputs: list[str], inputs: dict[str, Any], keep: frozenset[str]
    ) -> list[Any]:
        """Run a graph; outputs named in ``keep`` stay where the device put them."""
        session = self._session(graph)
        try:
            if not self._bound:
                return list(session.run(outputs, inputs))
            binding = session.io_binding()
            for name, value in inputs.items():
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, np.ascontiguousarray(value))
                else:
                    binding.bind_ortvalue_input(name, value)
            for name in outputs:
                if name in keep:
                    binding.bind_output(name, "cuda", self._index)
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
                f"ONNX Runtime failed in the {said(graph)} graph on {self.device} ({_first_line(error)})"
            ) from error

    @property
    def concurrent(self) -> bool:
        """Whether windows can be computed from any number of threads at a time."""
        return not self._on_gpu and self._causal is None

    def for_workers(self) -> tuple[Backend, int]:
        """Both graphs without threads of their own; see ``WorkersBackend``."""
        alone = self._options.for_a_worker
        if alone is None:
            return self, 1
        with self._opening:
            if self._parts is None and self._sessions:
                self._parts = OrtBackend(alone)
        return self._parts or self, self._options.workers[0]

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """Run the predictive graph; see ``Backend.predict``."""
        check_whole(self._causal)
        sizes = check_predict(noisy)
        if self._profile is not None and not self._profile.holds(sizes["T"], sizes["B"]):
            raise InputError(
                f"noisy has {sizes['T']} frames and batch {sizes['B']}; TensorRT's engine holds "
                f"{self._profile.frames[0]} to {self._profile.frames[2]} frames and batches up to "
                f"{self._profile.batch[2]}: use shorter windows, or device cuda"
            )
        names = ["clean_ri", *FEAT_NAMES]
        clean_ri, *feats = self._run_each(
            "predictive", names, {"noisy": noisy}, frozenset(FEAT_NAMES)
        )
        return check_output(PREDICT_OUT, clean_ri, sizes, "the predictive graph (ort)"), feats

    def estimate(self, noisy: FloatArray) -> FloatArray:
        """Run the predictive graph without its features; see ``EstimateBackend.estimate``."""
        if ESTIMATE not in self._sessions:
            return self.predict(noisy)[0]
        sizes = check_predict(noisy)
        (clean_ri,) = self._run_each(ESTIMATE, [PREDICT_OUT.name], {"noisy": noisy}, frozenset())
        return check_output(PREDICT_OUT, clean_ri, sizes, "the predictive graph (ort)")

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
        (sigma_z,) = self._run_each("score", ["sigma_z"], inputs, frozenset())
        return check_output(SCORE_OUT, sigma_z, sizes, "the score graph (ort)")

    def predict_next(self, noisy: FloatArray, state: Any) -> tuple[FloatArray, Sequence[Any], Any]:
        """Run the predictive graph on the next frames; see ``StreamBackend.predict_next``."""
        sizes = check_predict(noisy, FRAME_MULTIPLE)
        inputs = {
            "noisy": noisy,
            STATE: stream_state(self._causal, "predictive", len(noisy), as_array(state)),
        }
        names = ["clean_ri", *FEAT_NAMES, NEXT_STATE]
        keep = frozenset((*FEAT_NAMES, NEXT_STATE))
        clean_ri, *feats, after = self._run("predictive", names, inputs, keep)
        source = "the predictive graph (ort)"
        return check_output(PREDICT_OUT, clean_ri, sizes, source), feats, after

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
        inputs[STATE] = stream_state(self._causal, "score", len(xt), as_array(state))
        sigma_z, after = self._run(
            "score", ["sigma_z", NEXT_STATE], inputs, frozenset((NEXT_STATE,))
        )
        return check_output(SCORE_OUT, sigma_z, sizes, "the score graph (ort)"), after

    def both_next(
        self,
        noisy: FloatArray,
        given: FloatArray,
        states: Sequence[Any],
        point: BlockPoint,
        tlb: TlbFactors,
    ) -> tuple[FloatArray, FloatArray, tuple[Any, Any]] | None:
        """Run both graphs on the next block as one; see ``JointBackend.both_next``."""
        sizes = check_predict(noisy, FRAME_MULTIPLE)
        if self._block is None or not self._block.fits(noisy, point, tlb):
            return None
        try:
            clean_ri, sigma_z, after = self._block.run(noisy, given, states)
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed in the {BLOCK} graph on {self.device} ({_first_line(error)})"
            ) from error
        source = "the block graph (ort)"
        clean_ri = check_output(PREDICT_OUT, clean_ri, sizes, source)
        return clean_ri, check_output(SCORE_OUT, sigma_z, sizes, source), after

    def close(self) -> None:
        """Release the sessions."""
        with self._opening:
            self._later.clear()
            self._sessions.clear()
            self._block = None
            if self._parts is not None:
                self._parts.close()
