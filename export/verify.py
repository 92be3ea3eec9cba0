"""Every installed backend on the same speech and noise; the report is kept beside the engine.

python export/verify.py engines/NAME [--backends torch,torch-half,onnx,ort,openvino,...]

The reference is the PyTorch model in float32 where its checkpoint is found, else ONNX Runtime on
the fp32 engine of the same checkpoint. Without a current report the runtime warns.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

if not __package__:  # run as a plain script: the checkout is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dvpd.export.figures import (
    calls,
    error_of_range,
    runtime_waveform,
    snr_db,
    speech,
    stream_waveform,
    synthetic_speech,
    with_score,
)
from dvpd.runtime import command, stft
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.backends.base import FEAT_NAMES, Backend, LoadOptions, StreamBackend
from dvpd.runtime.backends.choose import BACKENDS, installed, open_backend
from dvpd.runtime.doctor import processor_name
from dvpd.runtime.engines import VERIFICATION_FORMAT, find_checkpoint
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import BackendError, DvpdError, InputError, UsageError
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import VERIFICATION_NAME, BlockPoint, Manifest
from dvpd.runtime.progress import Steps
from dvpd.runtime.spec import (
    FRAME_MULTIPLE,
    N_FEATS,
    NEXT_STATE,
    PREDICTIVE_INPUTS,
    STATE,
    TLB_PRESETS,
    TlbFactors,
    padded_frames,
)

Say = Callable[[str], None]
# Contract, as for an export: float32 differs by rounding only, half keeps about three digits.
MAX_ERROR_OF_RANGE = {"fp32": 1e-4, "fp16": 2e-2}
MIN_SNR_DB = {"fp32": 80.0, "fp16": 35.0}
# A silent recording has no signal to relate an error to; against full scale it is inaudible.
MAX_SILENT_DB = {"fp32": -100.0, "fp16": -60.0}
MAX_PESQ_DIFFERENCE = {"fp32": 0.005, "fp16": 0.05}
DEFAULT_S = 1.0  # of each recording (s); the reference evaluator takes seconds for it
WORST_NODES = 5
NODE_FRAMES = 64
SLOW = ("onnx", "torch-half")  # left out of PESQ, which needs a whole recording
# Half convolutions of torch take minutes on processors without them; onnx says the same of the
# graph itself. Only where it is named.
ON_DEMAND = ("torch-half",)
BATCH = "-batch"  # behind a backend's name: with the graphs of a dynamic batch on a CPU, too
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Verification:
    """Figures of one engine folder; JSON-ready.

    Attributes:
        engine: Name, version, precision.
        graphs: SHA-256 of each graph: a report of others does not count.
        reference: What everything was compared with.
        speech: The recording that the cases are made of.
        seconds: Length of each case (s).
        machine: Processor and versions of what took part.
        outputs: Backend -> tensor -> largest error as a part of its range.
        waveform_snr_db: Backend -> case -> SNR against the reference, same noise (dB).
        silent_db: Backend -> largest error on silence against full scale (dB).
        pesq: Backend -> PESQ of the enhanced example, and what that is above the reference.
        nodes: Graph -> case -> worst nodes in true half arithmetic (fp16 engines).
        half_peak: Graph -> case -> node with the largest half value.
        skipped: Backend -> why it did not take part.
        failures: One line for each figure out of bounds.
        day: When.
    """

    engine: dict[str, str]
    graphs: dict[str, str]
    reference: str
    speech: str
    seconds: float
    machine: dict[str, str]
    outputs: dict[str, dict[str, float | None]] = field(default_factory=dict)
    waveform_snr_db: dict[str, dict[str, float | None]] = field(default_factory=dict)
    silent_db: dict[str, float] = field(default_factory=dict)
    pesq: dict[str, dict[str, float]] = field(default_factory=dict)
    nodes: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    half_peak: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    day: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The value of verification.json."""
        table = {"format": VERIFICATION_FORMAT, "passed": not self.failures}
        return table | asdict(self)


def recordings(wav: FloatArray, rate: int, seconds: float) -> dict[str, FloatArray]:
    """The cases: one stretch of speech at several levels, [L] each.

    The runtime scales every recording to a peak of 1; here the graphs get the levels as they are,
    which is harder.

    Args:
        wav: Speech at ``rate``, peak 1.
        rate: Model's rate (Hz).
        seconds: Length (s).
    """
    length = min(int(seconds * rate), len(wav))
    energy = np.cumsum(np.square(wav, dtype=np.float64))
    start = int(np.argmax(energy[length - 1 :] - np.r_[0.0, energy[: len(wav) - length]]))
    part = wav[start : start + length]
    part = part / np.abs(part).max()
    cases = {
        "speech": part,
        "loud": 4.0 * part,  # 12 dB beyond full scale
        "quiet": 1e-3 * part,  # -60 dB
        "clipped": np.clip(10.0 * part, -1.0, 1.0),
        "silent": np.zeros_like(part),
    }
    return {name: case.astype(np.float32) for name, case in cases.items()}


def find_float_engine(folder: Path, manifest: Manifest) -> Path | None:
    """The fp32 engine of the same checkpoint: this folder or a sibling."""
    for candidate in [folder, *sorted(p.parent for p in folder.parent.glob("*/manifest.json"))]:
        try:
            other = Manifest.load(candidate)
        except DvpdError:
            continue
        if other.precision == "fp32" and other.checkpoint_sha256 == manifest.checkpoint_sha256:
            return candidate
    return None


def torch_backend(checkpoint: Path, half: bool = False) -> Backend:
    """The model in PyTorch, in float32 as trained or folded and in half as exported.

    Args:
        checkpoint: Its checkpoint.
        half: Whether in true half arithmetic.
    """
    from dvpd.checkpoint import load_model
    from dvpd.torch_backend import TorchBackend, prepare

    _, model = load_model(checkpoint)
    backend: Backend = TorchBackend(prepare(model, "fp16") if half else model)
    return backend


def available(folder: Path, manifest: Manifest) -> dict[str, str | None]:
    """Backend -> None if it can take part here, else why not."""
    checkpoint = find_checkpoint(folder, manifest.checkpoint_sha256)
    torch_missing = None if checkpoint else "no checkpoint of this engine beside it"
    for module in ("torch", "onnx"):
        if importlib.util.find_spec(module) is None:
            torch_missing = f"{module} is not installed: dvpd[export]"
    half = None if manifest.precision == "fp16" else "the engine is fp32"
    table: dict[str, str | None] = {
        "torch": torch_missing,
        "torch-half": half or torch_missing,
        "onnx": half or (torch_missing if torch_missing and "installed" in torch_missing else None),
    }
    for name in BACKENDS:
        table[name] = None if installed(name) else f"not installed: {BACKENDS[name][1]}"
    if manifest.single:  # a CPU runs those; the others are for batches and GPUs
        table |= {name + BATCH: table[name] for name in ("ort", "openvino")}
    return table


@contextmanager
def opened(name: str, folder: Path, manifest: Manifest) -> Iterator[Backend]:
    """One of the backends, closed afterwards."""
    if name in ("torch", "torch-half"):
        checkpoint = find_checkpoint(folder, manifest.checkpoint_sha256)
        if checkpoint is None:
            raise BackendError(f"{name}: no checkpoint of this engine beside it")
        backend = torch_backend(checkpoint, name == "torch-half")
    elif name == "onnx":
        from dvpd.export.half import ReferenceBackend

        paths = manifest.verify_graphs(folder)
        options = LoadOptions(paths["predictive"], paths["score"], manifest, "cpu", 1)
        backend = ReferenceBackend(options)
    elif name.endswith(BATCH):
        backend = open_backend(folder, replace(manifest, single={}), name.removesuffix(BATCH))
    else:
        backend = open_backend(folder, manifest, name)
    try:
        yield backend
    finally:
        backend.close()


def _array(value: Any) -> NDArray[Any]:
    """A feat of any backend as a NumPy array."""
    if hasattr(value, "numpy"):  # torch tensor, OrtValue
        value = value.numpy()
    return np.asarray(value, np.float32)


@dataclass(frozen=True)
class _Case:
    """One recording with its noise."""

    wav: FloatArray
    noise: list[FloatArray]
    noisy: FloatArray


def _case(manifest: Manifest, wav: FloatArray) -> _Case:
    signal = manifest.signal
    noisy = stft.compress(stft.stft(wav, signal), signal)[None]
    n_frames = padded_frames(noisy.shape[2])
    noisy = np.pad(noisy, ((0, 0), (0, 0), (0, n_frames - noisy.shape[2]), (0, 0)))
    rng = np.random.default_rng(2)
    shape = (1, 1, n_frames, signal.n_freqs)
    noise = [rng.standard_normal(shape, np.float32) for _ in range(manifest.sampler.n_steps)]
    return _Case(wav, noise, noisy)


def _outputs(backend: Backend, manifest: Manifest, case: _Case) -> dict[str, NDArray[Any]]:
    """Every output of both graphs; the score graph on this backend's own feats."""
    tlb = TLB_PRESETS["severe"].arrays()  # the largest gains
    xt = case.noisy[:, 2:3] + np.float32(0.2) * case.noise[0]
    t = np.array([manifest.sampler.t_rs / 2], np.float32)
    if manifest.causal is None:
        alone: Any = getattr(backend, "estimate", None)  # see EstimateBackend
        clean_ri, feats = backend.predict(case.noisy)
        outputs = _named(clean_ri, backend.score(xt, t, feats, *tlb), feats)
        return outputs | {"estimate": clean_ri if alone is None else alone(case.noisy)}
    live = cast(StreamBackend, backend)
    heard: Any = None
    diffused: Any = None
    tables = []
    for part in calls(case.noisy.shape[2]):
        clean_ri, feats, heard = live.predict_next(case.noisy[:, :, part], heard)
        sigma_z, diffused = live.score_next(xt[:, :, part], t, feats, *tlb, diffused)
        tables.append(_named(clean_ri, sigma_z, feats))
    outputs = {
        name: np.concatenate([table[name] for table in tables], axis=2) for name in tables[0]
    }
    return outputs | (_blocks(live, manifest.block, case) if manifest.block is not None else {})


def _blocks(backend: StreamBackend, point: BlockPoint, case: _Case) -> dict[str, NDArray[Any]]:
    """Outputs block by block as live sound has them: in one call where the backend has a graph for it."""
    states: Sequence[Any] = (None, None)
    t, tlb = np.array([point.t], np.float32), TlbFactors()
    both: Any = getattr(backend, "both_next", None)  # see JointBackend
    tables = []
    for first in range(0, case.noisy.shape[2], FRAME_MULTIPLE):
        part = slice(first, first + FRAME_MULTIPLE)
        noisy = np.ascontiguousarray(case.noisy[:, :, part])
        given = np.float32(0.2) * case.noise[0][:, :, part]
        done = both(noisy, given, states, point, tlb) if both is not None else None
        if done is None:
            clean_ri, feats, heard = backend.predict_next(noisy, states[0])
            magnitude = np.sqrt(np.square(clean_ri).sum(axis=1, keepdims=True))
            xt = np.float32(point.w_x0) * magnitude + given
            sigma_z, diffused = backend.score_next(xt, t, feats, *tlb.arrays(), states[1])
            done = clean_ri, sigma_z, (heard, diffused)
        states = done[2]
        tables.append({"block_clean_ri": done[0], "block_sigma_z": done[1]})
    return {name: np.concatenate([table[name] for table in tables], axis=2) for name in tables[0]}


def _named(
    clean_ri: FloatArray, sigma_z: FloatArray, feats: Sequence[Any]
) -> dict[str, NDArray[Any]]:
    """Outputs of a call by name."""
    table = {"clean_ri": clean_ri, "sigma_z": sigma_z}
    return table | {f"feat_{i}": _array(feats[i]) for i in range(N_FEATS)}


@dataclass
class _Run:
    """What one backend returned for every case; None where it failed."""

    outputs: dict[str, NDArray[Any]] | None
    waveforms: dict[str, FloatArray | None]
    enhanced: FloatArray | None
    errors: list[str]


def _run(
    backend: Backend,
    manifest: Manifest,
    cases: dict[str, _Case],
    example: FloatArray | None,
) -> _Run:
    result = _Run(None, {}, None, [])
    try:
        result.outputs = _outputs(backend, manifest, cases["speech"])
    except BackendError as error:
        result.errors.append(f"outputs: {error}")
    waveform = runtime_waveform if manifest.causal is None else stream_waveform
    for name, case in cases.items():
        try:
            wave = waveform(backend, manifest, case.wav, case.noise, TLB_PRESETS["severe"])
            result.waveforms[name] = wave
        except BackendError as error:
            result.waveforms[name] = None
            result.errors.append(f"{name}: {error}")
    if example is not None:
        try:
            enhancer = Enhancer(manifest, backend)
            result.enhanced = enhancer.enhance(example, manifest.signal.sample_rate).wav
        except BackendError as error:
            result.errors.append(f"example: {error}")
    return result


def _finite(value: float, digits: str) -> float | None:
    return float(f"{value:{digits}}") if np.isfinite(value) else None


def _compare(name: str, got: _Run, want: _Run, report: Verification) -> None:
    """Figures of one backend against the reference, and what is out of bounds."""
    precision = report.engine["precision"]
    fail = report.failures.append
    for text in got.errors:
        fail(f"{name}: {text}")
    if got.outputs is not None and want.outputs is not None:
        errors = {k: error_of_range(want.outputs[k], v) for k, v in got.outputs.items()}
        report.outputs[name] = {k: _finite(v, ".3g") for k, v in errors.items()}
        for tensor, error in errors.items():
            if not error <= MAX_ERROR_OF_RANGE[precision]:
                fail(
                    f"{name}: {tensor} differs by {error:.1e} of its range; at most "
                    f"{MAX_ERROR_OF_RANGE[precision]:.0e}"
                )
    report.waveform_snr_db[name] = {}
    for case, wave in got.waveforms.items():
        reference = want.waveforms[case]
        if wave is None or reference is None:
            continue
        if case == "silent":
            difference = float(np.abs(wave - reference).max())
            level = 20 * float(np.log10(max(difference, 1e-10)))
            report.silent_db[name] = round(level, 1)
            if not level <= MAX_SILENT_DB[precision]:
                fail(
                    f"{name}: silence differs by {level:.1f} dB of full scale; at most "
                    f"{MAX_SILENT_DB[precision]:.0f} dB"
                )
            continue
        ratio = snr_db(reference, wave)
        report.waveform_snr_db[name][case] = _finite(ratio, ".1f")
        if not ratio >= MIN_SNR_DB[precision]:
            fail(
                f"{name}: {case} has a waveform SNR of {ratio:.1f} dB; at least "
                f"{MIN_SNR_DB[precision]:.0f} dB"
            )


def _pesq(name: str, got: _Run, want: _Run, clean: FloatArray, report: Verification) -> None:
    if got.enhanced is None or want.enhanced is None:
        return
    from dvpd.quality.metrics import pesq_wb

    score, reference = pesq_wb(clean, got.enhanced), pesq_wb(clean, want.enhanced)
    report.pesq[name] = {"score": round(score, 4), "difference": round(score - reference, 4)}
    most = MAX_PESQ_DIFFERENCE[report.engine["precision"]]
    if not abs(score - reference) <= most:
        report.failures.append(
            f"{name}: PESQ differs by {score - reference:.3f}; at most {most:.3f}"
        )


def _half_nodes(
    folder: Path, manifest: Manifest, cases: dict[str, _Case], report: Verification
) -> None:
    """Worst nodes of both graphs in true half arithmetic, for every case."""
    from dvpd.export import half

    graphs = {name: half.load(path) for name, path in manifest.verify_graphs(folder).items()}
    runs = {name: half.evaluator(graph) for name, graph in graphs.items()}
    t = np.array([manifest.sampler.t_rs / 2], np.float32)
    tlb_skip, tlb_backbone = TLB_PRESETS["severe"].arrays()
    for name, case in cases.items():
        n_frames, before = min(NODE_FRAMES, case.noisy.shape[2]), 0
        states: dict[str, dict[str, NDArray[Any]]] = {graph: {} for graph in graphs}
        if manifest.causal is not None:  # half of the frames is the past of the others
            before = n_frames // 2
            for graph, size in manifest.causal.state_size.items():
                states[graph][STATE] = np.zeros((1, size), np.float32)
        for part in (slice(0, before), slice(before, n_frames)):
            if part.stop == part.start:
                continue
            noisy = np.ascontiguousarray(case.noisy[:, :, part])
            inputs: dict[str, NDArray[Any]] = {PREDICTIVE_INPUTS[0].name: noisy}
            inputs |= states["predictive"]
            feats = list(runs["predictive"].run(list(FEAT_NAMES), inputs))
            xt = noisy[:, 2:3] + np.float32(0.2) * case.noise[0][:, :, part]
            score = {"xt": xt, "t": t, **dict(zip(FEAT_NAMES, feats, strict=True))}
            score |= {"tlb_skip": tlb_skip, "tlb_backbone": tlb_backbone, **states["score"]}
            if part.start < before:
                for graph, values in (("predictive", inputs), ("score", score)):
                    after: Any = runs[graph].run([NEXT_STATE], values)
                    states[graph] = {STATE: after[0]}
        for graph, values in (("predictive", inputs), ("score", score)):
            found = half.node_errors(graphs[graph], values)
            worst = sorted(found, key=lambda n: n.own_snr_db)[:WORST_NODES]
            highest = max(found, key=lambda n: n.peak)
            report.nodes.setdefault(graph, {})[name] = [_rounded(node) for node in worst]
            report.half_peak.setdefault(graph, {})[name] = _rounded(highest)
            if not highest.peak < half.HALF_MAX:
                report.failures.append(
                    f"onnx: {name}: {highest.node} ({highest.operator}) of the {graph} graph "
                    "overflows in half"
                )


def _rounded(node: Any) -> dict[str, Any]:
    table = {k: round(v, 1) if isinstance(v, float) else v for k, v in asdict(node).items()}
    # JSON has no infinity: None is what left half's range.
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in table.items()}


def _example(rate: int) -> tuple[FloatArray, FloatArray] | None:
    """The checkout's noisy example and its clean speech, for PESQ; None without them."""
    if any(importlib.util.find_spec(name) is None for name in ("pesq", "soundfile")):
        return None
    import soundfile

    paths = [ROOT / "examples" / f"{name}.flac" for name in ("noisy", "clean")]
    if not all(path.is_file() for path in paths):
        return None
    pairs = [soundfile.read(path, dtype="float32") for path in paths]
    if any(found != rate for _, found in pairs):
        return None
    return pairs[0][0], pairs[1][0]


def verify_engine(
    folder: str | Path,
    backends: Sequence[str] | None = None,
    *,
    wav: str | Path | None = None,
    seconds: float = DEFAULT_S,
    quality: bool = True,
    say: Say = lambda _: None,
) -> Verification:
    """Compare every backend with the reference.

    Args:
        folder: The engine folder.
        backends: Names; None for all that can run.
        wav: Noisy speech; None for the checkout's example, else synthetic.
        seconds: Length of each case (s).
        quality: Whether PESQ is measured, too.
        say: Receives a line for each step.

    Returns:
        All figures; ``failures`` is empty if every one is within its bound.

    Raises:
        InputError: Unknown backend, or the recording cannot be used.
        ManifestError: The folder is damaged.
        BackendError: A backend that was named is not there, there is no reference, or nothing to
            compare with it.
    """
    root = Path(folder)
    shipped = Manifest.load(root)
    manifest = with_score(shipped)
    manifest.verify_graphs(root)
    there = available(root, manifest)
    if unknown := sorted(set(backends or ()) - set(there)):
        raise UsageError(f"backends has {unknown}; expected some of {', '.join(there)}")
    for name in backends or ():
        if (reason := there[name]) is not None:
            raise BackendError(f"backend {name} cannot take part: {reason}")
    for name in ON_DEMAND:
        if not backends and there[name] is None:
            there[name] = "slow: name it with --backends to have it"
    names = list(backends or [name for name, reason in there.items() if reason is None])
    example_path = ROOT / "examples" / "noisy.flac"
    source = wav or (example_path if example_path.is_file() else None)
    rate = manifest.signal.sample_rate
    if source is None:
        sound, origin = synthetic_speech(5 * rate, rate), "synthetic"
    else:
        sound, origin = speech(manifest, source)
    cases = {k: _case(manifest, v) for k, v in recordings(sound, rate, seconds).items()}
    example = _example(rate) if quality else None
    reference, where = _reference(root, manifest, there)
    report = Verification(
        engine={k: getattr(manifest, k) for k in ("name", "version", "precision")},
        graphs=manifest.hashes,
        reference=f"{reference}, float32",
        speech=origin,
        seconds=seconds,
        machine={"processor": processor_name(), "python": platform.python_version()},
        skipped={k: v for k, v in there.items() if v is not None},
        day=time.strftime("%Y-%m-%d", time.gmtime()),
    )
    say(f"reference: {report.reference}")
    example_noisy = None if example is None else example[0]
    with opened(reference, where, Manifest.load(where)) as backend:
        want = _run(backend, manifest, cases, example_noisy)
    if want.errors:
        raise BackendError(f"the reference, {report.reference}, fails: {'; '.join(want.errors)}")
    for name in names:
        if name == reference and where == root:
            report.machine[name] = _version(name)
            continue
        say(name)
        try:
            with opened(name, root, shipped) as backend:  # loaded as an Enhancer loads it
                got = _run(backend, manifest, cases, None if name in SLOW else example_noisy)
        except BackendError as error:
            if backends:
                raise
            report.skipped[name] = str(error)
            continue
        report.machine[name] = _version(name)
        _compare(name, got, want, report)
        if example is not None:
            _pesq(name, got, want, example[1], report)
    if manifest.precision == "fp16" and "onnx" in names:
        say("node by node in half")
        _half_nodes(root, manifest, cases, report)
    if not report.waveform_snr_db:  # could not check is not the same as failed
        raise BackendError(
            f"{folder}: nothing was compared, as no backend beside the reference "
            f"({report.reference}) can run here: pip install 'dvpd[cpu]' or 'dvpd[openvino]'; "
            "nothing was written"
        )
    return report


def _reference(folder: Path, manifest: Manifest, there: dict[str, str | None]) -> tuple[str, Path]:
    """Name of the reference backend, and the engine folder that it loads."""
    if there["torch"] is None:
        return "torch", folder
    engine = find_float_engine(folder, manifest)
    if engine is not None and there["ort"] is None:
        return "ort", engine
    raise BackendError(
        f"{folder}: nothing to compare with: neither the checkpoint of this engine nor an fp32 "
        "engine of it lies beside it; copy one of them there (pip install 'dvpd[export]')"
    )


def _version(name: str) -> str:
    name = name.removesuffix(BATCH)
    module = {"torch-half": "torch"}.get(name) or (BACKENDS[name][0] if name in BACKENDS else name)
    return str(getattr(sys.modules.get(module) or __import__(module), "__version__", "?"))


def markdown(report: Verification) -> str:
    """The report as Markdown.

    Args:
        report: From `verify_engine`.
    """
    engine = report.engine
    lines = [
        f"# Verification of {engine['name']} {engine['version']}, {engine['precision']}",
        "",
        f"{'Passed' if not report.failures else 'FAILED'} on {report.day}; reference: "
        f"{report.reference}; speech: {report.speech}, {report.seconds:g} s a case, same noise, "
        "strongest TLB preset.",
        "",
        *(f"- {k}: {v}" for k, v in report.machine.items()),
        *(f"- {name} graph: SHA-256 {digest}" for name, digest in report.graphs.items()),
        *(f"- {name} did not take part: {reason}" for name, reason in report.skipped.items()),
    ]
    cases = list(dict.fromkeys(c for row in report.waveform_snr_db.values() for c in row))
    lines += ["", "## Waveform: SNR against the reference (dB)", ""]
    lines += _rows(["backend", *cases, "silent: error, dB of full scale"], [
        [name, *(row.get(case, "-") for case in cases), report.silent_db.get(name, "-")]
        for name, row in report.waveform_snr_db.items()
    ])  # fmt: skip
    tensors = list(dict.fromkeys(t for row in report.outputs.values() for t in row))
    lines += ["", "## Outputs: largest error as a part of the range", ""]
    lines += _rows(["output", *report.outputs], [
        [tensor, *(_cell(row.get(tensor)) for row in report.outputs.values())] for tensor in tensors
    ])  # fmt: skip
    if report.pesq:
        lines += ["", "## PESQ of the enhanced example", ""]
        lines += _rows(
            ["backend", "PESQ", "above the reference"],
            [[n, f"{r['score']:.4f}", f"{r['difference']:+.4f}"] for n, r in report.pesq.items()],
        )
    for graph, table in report.nodes.items():
        lines += ["", f"## {graph}, node by node in true half arithmetic", ""]
        lines.append(
            "The node that rounding costs most, alone and with all before it, and the largest value "
            "(half ends at 65504)."
        )
        lines.append("")
        rows = []
        for case, worst in table.items():
            peak = report.half_peak[graph][case]
            rows.append([
                case, f"{worst[0]['node']} ({worst[0]['operator']})", worst[0]["own_snr_db"],
                worst[0]["snr_db"], f"{peak['peak']} in {peak['node']}",
            ])  # fmt: skip
        lines += _rows(["recording", "worst node", "alone, dB", "so far, dB", "peak"], rows)
    if report.failures:
        lines += ["", "## Failures", "", *(f"- {text}" for text in report.failures)]
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _rows(head: list[str], rows: list[list[Any]]) -> list[str]:
    table = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(str, row))} |" for row in table]


def save(report: Verification, folder: str | Path) -> list[Path]:
    """Write verification.json and verification.md into the engine folder.

    Args:
        report: From `verify_engine`.
        folder: The engine folder.

    Raises:
        InputError: The folder cannot be written to.
    """
    base = Path(folder) / VERIFICATION_NAME
    texts = {
        base: json.dumps(report.as_dict(), indent=2, allow_nan=False) + "\n",
        base.with_suffix(".md"): markdown(report),
    }
    for path, text in texts.items():
        try:
            write_whole(path, text)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return list(texts)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="verify", description="Compare every backend with the model, and keep the report."
    )
    parser.add_argument("folder", metavar="ENGINE_DIR", help="folder with the graphs")
    parser.add_argument(
        "--backends",
        metavar="A,B",
        help="torch, torch-half, onnx, ort, ort-batch, ... (default: all that can run but torch-half)",
    )
    parser.add_argument("--wav", metavar="WAV", help="noisy speech (default: the example)")
    parser.add_argument(
        "--seconds", type=float, default=DEFAULT_S, help="length of each case (default: 1)"
    )
    parser.add_argument("--no-quality", action="store_true", help="leave PESQ out")
    parser.add_argument("--dry-run", action="store_true", help="print the report, write nothing")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 passed, 1 failed, 2 wrong usage."""
    return command.run(build_parser(), argv, _verify)


def _verify(args: argparse.Namespace) -> int:
    if not args.seconds >= 0.1:
        command.say(f"--seconds is {args.seconds}; expected at least 0.1")
        return command.EXIT_USAGE
    steps = Steps()
    report = verify_engine(
        args.folder,
        args.backends.split(",") if args.backends else None,
        wav=args.wav,
        seconds=args.seconds,
        quality=not args.no_quality,
        say=steps.say,
    )
    if not args.dry_run:
        for path in save(report, args.folder):
            steps.say(str(path))
    print(json.dumps(report.as_dict()) if args.json else markdown(report), end="")
    return 1 if report.failures else 0


if __name__ == "__main__":
    command.leave(main())
