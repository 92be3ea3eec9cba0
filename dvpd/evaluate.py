"""Quality on a set of pairs: ``python -m dvpd.evaluate MODEL --set DIR``.

MODEL is a checkpoint (.safetensors, run in PyTorch) or an engine folder (run by the runtime);
both go through the runtime's own front end, sampler and noise. The noisy input, the predictive
branch alone and the full sampler are measured in one pass.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from .metrics import METRICS, SAMPLE_RATE, summarise
from .runtime.backend import Backend
from .runtime.enhancer import Enhancer
from .runtime.errors import BackendError, DvpdError, InputError
from .runtime.spec import GRAPH_NAMES, TLB_PRESETS, GraphFile, Manifest, SamplerSpec

FloatArray = NDArray[np.float32]
AUDIO = (".flac", ".wav", ".ogg")
Progress = Callable[[int, int], None]


class TorchBackend:
    """A model in PyTorch behind the runtime's ``Backend`` protocol.

    Attributes:
        name: "torch".
        device: torch device.
    """

    name = "torch"

    def __init__(self, model: Any, device: str = "cpu") -> None:
        """Wrap a ``dvpd.model.DVPD`` in eval mode."""
        self.model, self.device = model, device

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """See ``Backend.predict``."""
        import torch

        with torch.inference_mode():
            clean_ri, feats = self.model.predictive(torch.from_numpy(noisy).to(self.device))
        return _finite(clean_ri.float().cpu().numpy()), feats

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """See ``Backend.score``."""
        import torch

        arrays = (torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for a in (xt, t))
        # Factors of one are the identity: None is the same, and faster.
        factors = (
            None if np.all(a == 1.0) else torch.from_numpy(a).to(self.device)
            for a in (tlb_skip, tlb_backbone)
        )
        with torch.inference_mode():
            sigma_z = self.model.score(*arrays, list(feats), *factors)
        return _finite(sigma_z.float().cpu().numpy())

    def close(self) -> None:
        """Nothing to release."""


def _finite(array: FloatArray) -> FloatArray:
    if not np.isfinite(array).all():
        raise BackendError("the model's output is not finite")
    return array


class SharedPrediction:
    """A backend that remembers its last predictions, so that a second sampler reuses them.

    Attributes:
        name: The inner backend's name.
        device: Its device.
    """

    def __init__(self, inner: Backend) -> None:
        """Wrap a backend."""
        self.inner = inner
        self.name, self.device = inner.name, inner.device
        self._known: dict[bytes, tuple[FloatArray, Sequence[Any]]] = {}

    def forget(self) -> None:
        """Drop what is remembered (call it between recordings)."""
        self._known.clear()

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """See ``Backend.predict``."""
        key = hashlib.blake2b(np.ascontiguousarray(noisy)).digest()
        if key not in self._known:
            self._known[key] = self.inner.predict(noisy)
        return self._known[key]

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """See ``Backend.score``."""
        return self.inner.score(xt, t, feats, tlb_skip, tlb_backbone)

    def close(self) -> None:
        """Release the inner backend."""
        self.inner.close()


def torch_enhancer(model: Any, config: Any, device: str = "cpu") -> Enhancer:
    """The runtime around a model in PyTorch.

    Args:
        model: ``dvpd.model.DVPD`` in eval mode.
        config: Its ``dvpd.config.Config``.
        device: torch device the model is on.
    """
    nothing = MappingProxyType({})
    manifest = Manifest(
        name=config.model.name,
        version="0",
        signal=config.signal,
        sde=config.sde,
        sampler=config.sampler,
        tlb_presets=TLB_PRESETS,
        precision="fp32",
        opset=0,
        exporter=nothing,
        checkpoint_sha256="0" * 64,
        graphs={name: GraphFile(f"{name}.onnx", "0" * 64) for name in GRAPH_NAMES},
        parameters=nothing,
        macs_per_second=nothing,
        parity=nothing,
    )
    return Enhancer(manifest, SharedPrediction(TorchBackend(model, device)))


def open_model(
    path: str | Path, backend: str = "auto", device: str = "auto", threads: int | None = None
) -> Enhancer:
    """A checkpoint or an engine folder as an ``Enhancer`` that shares predictions.

    Args:
        path: .safetensors file, or engine folder.
        backend: For an engine folder, see ``Enhancer.open``.
        device: See ``Enhancer.open``; for a checkpoint a torch device, "auto" for CUDA if there.
        threads: CPU threads; None for a sensible number.

    Raises:
        DvpdError: It cannot be opened.
    """
    if Path(path).is_dir():
        enhancer = Enhancer.open(path, backend, device, threads)
        return Enhancer(enhancer.manifest, SharedPrediction(enhancer.backend), enhancer.window_plan)
    import torch

    from .checkpoint import load_model

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config, model = load_model(path)
    return torch_enhancer(model.to(device), config, device)


@dataclass(frozen=True)
class PairFile:
    """One pair of a test set: its name, both files, and what was done to it ("" if unknown)."""

    name: str
    noisy: Path
    clean: Path
    group: str


def find_pairs(folder: str | Path) -> list[PairFile]:
    """Pairs below ``noisy/`` and ``clean/``, matched by name without suffix.

    If ``folder/../pairs.tsv`` has a line for a pair, its ``degradation`` becomes the group.

    Args:
        folder: Folder of a test set.

    Raises:
        InputError: A folder is missing or empty, or a file has no partner.
    """
    root = Path(folder)
    sides = []
    for side in ("noisy", "clean"):
        if not (root / side).is_dir():
            raise InputError(f"{root / side} is not a folder; expected noisy/ and clean/")
        files = sorted(p for p in (root / side).iterdir() if p.suffix.lower() in AUDIO)
        sides.append({p.stem: p for p in files})
    noisy, clean = sides
    if alone := sorted(set(noisy) ^ set(clean)):
        raise InputError(
            f"{root}: {len(alone)} files lack a partner of the same name, such as {alone[0]}"
        )
    if not noisy:
        raise InputError(f"{root} holds no {', '.join(AUDIO)} pairs")
    groups: dict[str, str] = {}
    table = root.parent / "pairs.tsv"
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                if row.get("set") == root.name:
                    groups[Path(row["file"]).stem] = row.get("degradation") or ""
    return [PairFile(n, noisy[n], clean[n], groups.get(n, "")) for n in sorted(noisy)]


def read_pair(pair: PairFile) -> tuple[FloatArray, FloatArray]:
    """Noisy and clean waveform [L] of a pair.

    Args:
        pair: Which pair.

    Raises:
        InputError: A file is unreadable, not 16 kHz mono, or the lengths differ.
    """
    wavs = []
    for path in (pair.noisy, pair.clean):
        try:
            wav, rate = sf.read(str(path), dtype="float32", always_2d=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        if rate != SAMPLE_RATE or wav.shape[1] != 1:
            raise InputError(f"{path}: {rate} Hz, {wav.shape[1]} channels; expected 16 kHz mono")
        wavs.append(wav[:, 0])
    if len(wavs[0]) != len(wavs[1]):
        raise InputError(f"{pair.name}: noisy has {len(wavs[0])} samples, clean {len(wavs[1])}")
    return wavs[0], wavs[1]


def enhance_pair(
    enhancer: Enhancer, noisy: FloatArray, *, steps: int, alpha: float | None, seed: int = 0
) -> dict[str, FloatArray]:
    """Outputs of one recording by system: "noisy", "predictive" and, if steps > 0, "full".

    Args:
        enhancer: From ``open_model`` or ``torch_enhancer``.
        noisy: [L] at 16 kHz.
        steps: Calls of the score network.
        alpha: Weight of the predictive magnitude; None for the model's.
        seed: Seed of the sampler's noise.
    """
    outputs = {"noisy": noisy, "predictive": enhancer.enhance(noisy, SAMPLE_RATE, steps=0).wav}
    if steps:
        outputs["full"] = enhancer.enhance(
            noisy, SAMPLE_RATE, steps=steps, alpha=alpha, seed=seed
        ).wav
    if isinstance(enhancer.backend, SharedPrediction):
        enhancer.backend.forget()
    return outputs


def measure(
    clean: FloatArray, outputs: dict[str, FloatArray], metrics: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Figures by system and metric."""
    return {
        system: {name: METRICS[name](clean, wav) for name in metrics}
        for system, wav in outputs.items()
    }


class _Inline(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def evaluate_pairs(
    enhancer: Enhancer,
    pairs: Sequence[PairFile],
    *,
    steps: int = 3,
    alpha: float | None = None,
    seed: int = 0,
    jobs: int = 1,
    metrics: Sequence[str] = tuple(METRICS),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Enhance and measure pairs; one record a pair, in order.

    Args:
        enhancer: From ``open_model`` or ``torch_enhancer``.
        pairs: What to measure.
        steps: Calls of the score network; 0 leaves the full sampler out.
        alpha: Weight of the predictive magnitude; None for the model's.
        seed: Seed of the sampler's noise.
        jobs: Processes that measure while this one enhances; 1 measures here.
        metrics: Names out of ``METRICS``.
        progress: Called with (pairs done, pairs in all).

    Raises:
        DvpdError: A file cannot be read, or the model fails.
    """
    # Not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) if jobs > 1 else _Inline() as executor:
        waiting: list[Future[Any]] = []
        for done, pair in enumerate(pairs):
            noisy, clean = read_pair(pair)
            outputs = enhance_pair(enhancer, noisy, steps=steps, alpha=alpha, seed=seed)
            waiting.append(executor.submit(measure, clean, outputs, tuple(metrics)))
            if progress:
                progress(done + 1, len(pairs))
        return [
            {"name": pair.name, "group": pair.group, "figures": future.result()}
            for pair, future in zip(pairs, waiting, strict=True)
        ]


def summarise_records(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Summaries by system and metric over all pairs, and their means by group."""

    def by_system(chosen: list[dict[str, Any]]) -> Iterator[tuple[str, str, list[float]]]:
        for system, figures in chosen[0]["figures"].items():
            for metric in figures:
                yield system, metric, [r["figures"][system][metric] for r in chosen]

    result: dict[str, Any] = {"systems": {}, "groups": {}}
    for system, metric, values in by_system(records):
        result["systems"].setdefault(system, {})[metric] = asdict(summarise(values))
    for group in sorted({r["group"] for r in records} - {""}):
        chosen = [r for r in records if r["group"] == group]
        table: dict[str, Any] = {"n": len(chosen), "systems": {}}
        for system, metric, values in by_system(chosen):
            table["systems"].setdefault(system, {})[metric] = summarise(values, draws=1).mean
        result["groups"][group] = table
    return result


def quick_evaluation(folder: str | Path, n_files: int) -> Callable[[Any, Any], dict[str, float]]:
    """A dev evaluation for the trainer: PESQ and SI-SDR on a few evenly spaced pairs.

    Args:
        folder: A test set.
        n_files: How many pairs.

    Returns:
        (model, config) -> figures; "score" is the PESQ that selects the best checkpoint: of the
        full sampler where the score branch is trained, else of the predictive branch.

    Raises:
        InputError: The folder is not a test set.
    """
    pairs = find_pairs(folder)
    count = min(max(n_files, 1), len(pairs))
    chosen = [pairs[i * len(pairs) // count] for i in range(count)]

    def run(model: Any, config: Any) -> dict[str, float]:
        device = str(next(model.parameters()).device)
        steps = 0 if config.train.branches == "predictive" else config.sampler.n_steps
        enhancer = torch_enhancer(model, config, device)
        records = evaluate_pairs(enhancer, chosen, steps=steps, metrics=("pesq", "si_sdr"))
        systems = summarise_records(records)["systems"]
        figures = {
            f"{metric}_{system}": round(summary["mean"], 4)
            for system, table in systems.items()
            for metric, summary in table.items()
        }
        score = figures["pesq_full" if steps else "pesq_predictive"]
        return {**figures, "score": score if math.isfinite(score) else -math.inf}

    return run


def format_report(report: dict[str, Any]) -> str:
    """The report as a text table."""
    metrics = list(next(iter(report["systems"].values())))
    lines = [f"{report['model']} on {report['set']}: {report['n_files']} pairs"]
    for system, table in report["systems"].items():
        cells = (
            f"{m} {table[m]['mean']:.3f} (sd {table[m]['std']:.3f}, 95 % "
            f"{table[m]['low']:.3f} to {table[m]['high']:.3f})"
            for m in metrics
        )
        lines.append(f"  {system:<11}" + "  ".join(cells))
    for group, part in report["groups"].items():
        lines.append(f"{group} ({part['n']})")
        for system, table in part["systems"].items():
            cells = (f"{m} {table[m]:.3f}" for m in metrics)
            lines.append(f"  {system:<11}" + "  ".join(cells))
    return "\n".join(lines)


def _strict(value: Any) -> Any:
    """JSON knows no NaN: null instead."""
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, report: dict[str, Any]) -> None:
    """Write a report, whole or not at all.

    Args:
        path: File to write.
        report: The report.

    Raises:
        OSError: It cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(_strict(report), file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dvpd.evaluate", description="Measure speech quality.")
    parser.add_argument("model", help="checkpoint (.safetensors) or engine folder")
    parser.add_argument("--set", required=True, dest="folder", help="folder with noisy/ and clean/")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    parser.add_argument("--steps", type=int, default=3, help="score calls; 0: predictive alone")
    parser.add_argument("--alpha", type=float, help="weight of the predictive magnitude")
    parser.add_argument("--t-rs", type=float, help="start time of the sampler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="only so many pairs, evenly spaced")
    parser.add_argument("--jobs", type=int, default=2, help="processes that measure")
    parser.add_argument("--metrics", default=",".join(METRICS), help="comma-separated")
    parser.add_argument("--backend", default="auto", help="ort, openvino or auto (engine folders)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        report = _run(args)
        if args.json:
            write_json(args.json, report)
    except (DvpdError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(format_report(report) + "\n")
    return 0


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{done}/{total}" + "\n" * (done == total))
        sys.stderr.flush()


def _run(args: argparse.Namespace) -> dict[str, Any]:
    metrics = tuple(args.metrics.split(","))
    if unknown := sorted(set(metrics) - set(METRICS)):
        raise InputError(f"unknown metric {unknown[0]!r}; known: {', '.join(METRICS)}")
    pairs = find_pairs(args.folder)
    if args.limit and args.limit < len(pairs):
        pairs = [pairs[i * len(pairs) // args.limit] for i in range(args.limit)]
    with open_model(args.model, args.backend, args.device, args.threads) as enhancer:
        if args.t_rs is not None:
            manifest = enhancer.manifest
            sampler: SamplerSpec = replace(manifest.sampler, t_rs=args.t_rs)
            enhancer.manifest = replace(manifest, sampler=sampler)
        sampler = enhancer.manifest.sampler
        records = evaluate_pairs(
            enhancer,
            pairs,
            steps=args.steps,
            alpha=args.alpha,
            seed=args.seed,
            jobs=args.jobs,
            metrics=metrics,
            progress=_show,
        )
    return {
        "model": Path(args.model).name,
        "set": Path(args.folder).name,
        "n_files": len(pairs),
        "steps": args.steps,
        "alpha": sampler.alpha if args.alpha is None else args.alpha,
        "t_rs": sampler.t_rs,
        "seed": args.seed,
        **summarise_records(records),
        "files": records,
    }


if __name__ == "__main__":
    raise SystemExit(main())
