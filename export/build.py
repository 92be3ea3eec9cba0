"""From a checkpoint to a verified engine folder: the graphs and their manifest."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import dvpd
from dvpd.checkpoint import load_model
from dvpd.config import Config
from dvpd.macs import macs_per_second, parameter_counts
from dvpd.model import DVPD, causal_spec
from dvpd.runtime.backends.base import LoadOptions
from dvpd.runtime.backends.ort import OrtBackend
from dvpd.runtime.errors import DvpdError, InputError, ParityError, UsageError
from dvpd.runtime.files import sha256_file
from dvpd.runtime.manifest import (
    BLOCK_FILE,
    MANIFEST_NAME,
    SINGLE,
    VERIFICATION_NAME,
    GraphFile,
    Manifest,
    manifest_to_metadata,
)
from dvpd.runtime.spec import GRAPH_NAMES, PRECISIONS, TLB_PRESETS
from dvpd.torch_backend import prepare

from . import parity
from .block import write_block
from .figures import with_score
from .graphs import build_graph
from .single import pays, write_single
from .translate import OPSET, UnsupportedOperator, count_ops

Say = Callable[[str], None]
# Every check is a few seconds of one core; threads that wait for each other on a busy machine took
# six times as long.
THREADS = 1


def default_folder(config: Config, precision: str) -> Path:
    """engines/NAME, or engines/NAME-fp16, in the current folder."""
    return Path("engines") / (config.model.name + ("" if precision == "fp32" else f"-{precision}"))


def untrained(model: DVPD) -> bool:
    """Whether the score network is as it was made: its last layer starts at zero."""
    return not model.score.decoder.last.weight.any()


def _quiet(_: str) -> None:
    pass


def _check_not_another(folder: Path, digest: str, name: str) -> None:
    """Refuse a folder that nobody named and that holds the engine of another checkpoint.

    Args:
        folder: The default one.
        digest: SHA-256 of the checkpoint.
        name: The model's.

    Raises:
        InputError: It does.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return
    try:
        found = Manifest.load(folder).checkpoint_sha256
    except DvpdError:
        found = ""
    if found != digest:
        raise InputError(
            f"{folder} holds the engine of another checkpoint; name a folder with -o (-o {folder} to "
            f"replace that one). The checkpoint's name is {name!r}: train with --set model.name=..., and "
            "the engine is called so"
        )


def export_checkpoint(
    checkpoint: str | Path,
    folder: str | Path | None = None,
    precision: str = "fp32",
    verify_wav: str | Path | None = None,
    say: Say = _quiet,
    steps: int | None = None,
) -> tuple[Path, Manifest]:
    """Export ``checkpoint``; the folder's files appear only after every check has passed.

    Args:
        checkpoint: A .safetensors checkpoint.
        folder: Where predictive.onnx, score.onnx and manifest.json go; `default_folder` if None, unless
            that holds the engine of another checkpoint. Other files in it (compiled plans) are left alone.
        precision: "fp32" or "fp16".
        verify_wav: A recording of speech for the checks; without it, test clips or synthetic.
        say: Receives a line for each step.
        steps: Calls of the score network that the engine makes unless it is asked for others, from 0;
            None for the checkpoint's ``sampler.n_steps``, or none where that network was never
            trained. The graphs are the same.

    Returns:
        The folder and its manifest.

    Raises:
        InputError: The checkpoint, precision, folder, recording or steps cannot be used.
        ManifestError: The checkpoint is damaged or its config does not fit.
        ParityError: The graphs do not reproduce the model; nothing is left behind.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    config, model = load_model(checkpoint)
    if untrained(model) and config.sampler.n_steps and steps is None:
        say(
            "the score network was never trained: the engine takes no steps (--steps N asks for some)"
        )
        steps = 0
    if steps is not None:
        config = replace(config, sampler=replace(config.sampler, n_steps=steps))
    target = Path(folder) if folder is not None else default_folder(config, precision)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file; give a folder for the graphs")
    digest = sha256_file(Path(checkpoint))
    own = Path(checkpoint).resolve().parent == target.resolve()  # it lies in the folder
    if folder is None and not own:
        _check_not_another(target, digest, config.model.name)
    wav, source = parity.speech(config, verify_wav)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{temporary}: {error.strerror or error}") from None
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        manifest = _write(temporary, config, model, precision, digest, wav, source, say)
        _install(temporary, target)
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(temporary, ignore_errors=True)
    return target, manifest


def _write(
    folder: Path,
    config: Config,
    model: DVPD,
    precision: str,
    checkpoint_sha256: str,
    wav: Any,
    source: str,
    say: Say,
) -> Manifest:
    """Export into ``folder``, verify, and complete the metadata."""
    graph_model = prepare(model, precision)
    graphs = {}
    nodes: dict[str, int] = {}
    for name in GRAPH_NAMES:
        begin = time.perf_counter()
        try:
            graphs[name] = build_graph(graph_model, name, precision)
        except UnsupportedOperator as error:
            raise InputError(f"this configuration does not export: {error}") from None
        nodes[name] = sum(count_ops(graphs[name]).values())
        say(f"{name}: {nodes[name]} nodes in {time.perf_counter() - begin:.1f} s")
    manifest = Manifest(
        name=config.model.name,
        version=dvpd.__version__,
        signal=config.signal,
        sde=config.sde,
        sampler=config.sampler,
        tlb_presets=TLB_PRESETS,
        precision=precision,
        opset=OPSET,
        exporter={
            "dvpd": dvpd.__version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "nodes": nodes,
        },
        checkpoint_sha256=checkpoint_sha256,
        graphs={name: GraphFile(f"{name}.onnx", "0" * 64) for name in GRAPH_NAMES},
        parameters=parameter_counts(model),
        macs_per_second=macs_per_second(
            prepare(model, "fp32"), config.signal, config.sampler.n_steps
        ),
        parity={},
        causal=causal_spec(model, config.signal),
    )
    paths = _save(folder, graphs, manifest)
    half_model = graph_model if precision == "fp16" else None
    report = _verify(paths, manifest, model, config, wav, say, half_model)
    manifest = replace(manifest, parity=report.as_dict(source))
    paths = _save(folder, graphs, manifest)  # the same graphs, the figures in their metadata
    manifest = replace(manifest, graphs=_described(paths))
    if pays(model, precision):
        say("the same for one recording at a time")
        singles = write_single(graph_model, manifest, paths)
        manifest = replace(manifest, single=_described(singles))
        _verify(singles, manifest, model, config, wav, say)
    if model.config.causal and precision == "fp32":
        say("both for one block of one stream")
        manifest = replace(manifest, block=write_block(graph_model, config, manifest, paths))
        errors = _verify_block(folder, paths, manifest, model, config, wav, say)
        manifest = replace(manifest, parity={**manifest.parity, "block_errors_of_range": errors})
    # which files were compared
    manifest = replace(manifest, parity={**manifest.parity, "graphs": manifest.hashes})
    path = folder / MANIFEST_NAME
    with path.open("w", encoding="utf-8") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    Manifest.load(folder).verify_graphs(folder)
    return manifest


def _described(paths: dict[str, Path]) -> dict[str, GraphFile]:
    return {name: GraphFile(path.name, sha256_file(path)) for name, path in paths.items()}


def _backend(paths: dict[str, Path], manifest: Manifest, block: Path | None = None) -> OrtBackend:
    predictive, score = (paths[name] for name in GRAPH_NAMES)
    both = with_score(manifest)  # loaded at once: the hashes of the files are not known yet
    return OrtBackend(LoadOptions(predictive, score, both, "cpu", THREADS, block=block))


def _verify(
    paths: dict[str, Path],
    manifest: Manifest,
    model: DVPD,
    config: Config,
    wav: Any,
    say: Say,
    half_model: DVPD | None = None,
) -> parity.Report:
    """Compare two graphs with the model; raises where they differ."""
    say("verifying")
    begin = time.perf_counter()
    with closing(_backend(paths, manifest)) as backend:
        report = parity.verify(model, config, backend, manifest.precision, wav, half_model)
    say(f"{report.text()} ({time.perf_counter() - begin:.1f} s)")
    parity.require(report)
    return report


def _verify_block(
    folder: Path,
    paths: dict[str, Path],
    manifest: Manifest,
    model: DVPD,
    config: Config,
    wav: Any,
    say: Say,
) -> dict[str, float]:
    """Compare the graph of one block with the model; raises where they differ."""
    assert manifest.block is not None  # it was just written
    with closing(_backend(paths, manifest, folder / BLOCK_FILE)) as backend:
        errors = parity.verify_block(model, config, backend, manifest.block, wav)
    say(f"largest error {max(errors.values()):.1e} of the range")
    return {name: float(f"{error:.3g}") for name, error in errors.items()}


def _save(folder: Path, graphs: dict[str, onnx.ModelProto], manifest: Manifest) -> dict[str, Path]:
    """Write both graphs with the manifest as metadata, checked."""
    paths = {}
    for name, graph in graphs.items():
        del graph.metadata_props[:]
        graph.producer_name, graph.producer_version = "dvpd", manifest.version
        onnx.helper.set_model_props(graph, manifest_to_metadata(manifest))
        try:
            onnx.checker.check_model(graph, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ParityError(f"the {name} graph is not valid ONNX: {error}") from None
        paths[name] = folder / f"{name}.onnx"
        with paths[name].open("wb") as file:
            file.write(graph.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
    return paths


def _install(source: Path, target: Path) -> None:
    """Move the files of ``source`` to ``target``: the folder whole, or its files as a set.

    Into a folder that is there the manifest goes last: whoever reads in between meets graphs whose
    hash the old manifest does not know, which the runtime refuses. A failure puts the old ones back.
    """
    if not target.exists():
        source.rename(target)
        return
    names = [f"{name}{kind}.onnx" for kind in ("", SINGLE) for name in GRAPH_NAMES]
    names += [BLOCK_FILE, MANIFEST_NAME]
    kept = source / "before"
    kept.mkdir()
    for name in names:
        if (target / name).is_file():
            shutil.copy2(target / name, kept / name)
    try:
        for name in names:
            if (source / name).exists():
                (source / name).replace(target / name)
            else:  # a graph for CPUs that the new engine does not have
                (target / name).unlink(missing_ok=True)
    except OSError:
        for name in names:
            if (kept / name).exists():
                (kept / name).replace(target / name)
            else:
                (target / name).unlink(missing_ok=True)
        raise
    report = target / VERIFICATION_NAME  # of the graphs that were replaced
    for path in (report, report.with_suffix(".md")):
        path.unlink(missing_ok=True)
