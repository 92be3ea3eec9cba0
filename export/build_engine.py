"""Engine folder -> TensorRT plans beside its graphs, one for each graph, with sidecars.

python export/build_engine.py engines/NAME [--backend tensorrt|tensorrt-rtx] [--target sm89]

Needs the TensorRT package and the light runtime; neither torch nor onnx.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a plain script: the checkout is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dvpd.export.trt_api import TrtApi
from dvpd.runtime import command
from dvpd.runtime.engines import find_engine
from dvpd.runtime.errors import BackendError, UsageError
from dvpd.runtime.files import write_whole
from dvpd.runtime.hub import PREFIX
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.progress import Steps
from dvpd.runtime.spec import GRAPH_NAMES
from dvpd.runtime.tensorrt.caches import timing_cache_path
from dvpd.runtime.tensorrt.onnx_inputs import Profile, graph_inputs
from dvpd.runtime.tensorrt.options import add_build_options, chosen_profile
from dvpd.runtime.tensorrt.plans import (
    PlanError,
    PlanSpec,
    check_writable,
    folder_lock,
    install_plan,
    load_plan,
    plan_spec,
    remove_leftovers,
)
from dvpd.runtime.tensorrt.versions import INSTALL, MODULES

Say = Callable[[str], None]
logger = logging.getLogger("dvpd")


@dataclass(frozen=True)
class Built:
    """One plan.

    Attributes:
        graph: "predictive" or "score".
        path: The plan.
        reused: Whether it was there already and valid.
        seconds: Time of the build (s); 0 if reused.
        size_bytes: Length of the plan.
        key: Its key.
    """

    graph: str
    path: Path
    reused: bool
    seconds: float
    size_bytes: int
    key: str


def choose_backend() -> str:
    """The builder to use where none is named.

    Raises:
        BackendError: None is installed.
    """
    for name, module in MODULES.items():
        if importlib.util.find_spec(module) is not None:
            return str(name)
    ways = "; ".join(f"{name}: {INSTALL[name]}" for name in MODULES)
    raise BackendError(f"neither TensorRT nor TensorRT-RTX is installed; {ways}")


def build_engines(
    folder: str | Path,
    *,
    backend: str | None = None,
    target: str | None = None,
    profile: Profile | None = None,
    force: bool = False,
    tf32: bool = False,
    api: TrtApi | None = None,
    printer: Steps | None = None,
) -> list[Built]:
    """Build the plans of both graphs, or keep those that are valid.

    Args:
        folder: An engine folder.
        backend: "tensorrt" or "tensorrt-rtx"; None for the one that is installed.
        target: "local", "portable" or such as "sm89"; None for the builder's usual one.
        profile: Sizes that the plans accept; None for the default.
        force: Build even if valid plans are there.
        tf32: Whether products of fp32 graphs may be rounded to TF32.
        api: The builder, already opened.
        printer: Receives what goes on; None for silence.

    Returns:
        One entry for each graph.

    Raises:
        InputError: An option is out of range, or the folder cannot be written to.
        ManifestError: The folder is incomplete or damaged.
        BackendError: The builder is missing or refuses a graph; nothing is left behind.
    """
    root = Path(folder)
    manifest = Manifest.load(root)
    sizes = profile or Profile.usual(manifest.causal is not None)
    sizes.check(manifest.causal is not None)
    paths = manifest.verify_graphs(root)
    builder = api or TrtApi(backend or choose_backend())
    goal = builder.target(target)
    say: Say = (lambda _: None) if printer is None else printer.say
    say(
        f"{builder.name} {builder.version}, Python {platform.python_version()}, target {goal.name}"
        f" (compute {goal.compute_capability}), {manifest.precision} graphs of {root}"
    )

    def waiting(seconds: float) -> None:
        if printer is not None:
            printer.progress(f"another builder is at work on {root}; waiting {seconds:.0f} s")

    results = []
    with folder_lock(root, waiting):
        remove_leftovers(root)
        for graph in GRAPH_NAMES:
            spec = plan_spec(manifest, graph, builder.name, builder.version, goal, sizes, tf32)
            found = None if force else _valid(root, spec, say)
            if found is None:
                check_writable(root)
                found = _build(builder, root, paths[graph], spec, say, printer)
            results.append(found)
    return results


def _valid(folder: Path, spec: PlanSpec, say: Say) -> Built | None:
    """The plan that is there, if it can be used; else the reason is said."""
    try:
        data, sidecar = load_plan(folder, spec)
    except PlanError as error:
        say(f"{spec.graph}: to be built: {error.reason}")
        return None
    say(f"{spec.graph}: {spec.file} is valid, kept")
    return Built(spec.graph, folder / spec.file, True, 0.0, len(data), sidecar.spec.key)


def _build(
    api: TrtApi, folder: Path, onnx: Path, spec: PlanSpec, say: Say, printer: Steps | None
) -> Built:
    begin = time.monotonic()
    inputs = graph_inputs(onnx)
    shapes = spec.profile.shapes(inputs)
    parsed = api.parse(onnx)
    api.check_inputs(parsed, inputs, onnx)
    say(
        f"{spec.graph}: {parsed.network.num_layers} layers parsed in "
        f"{time.monotonic() - begin:.1f} s, building for frames {spec.profile.frames}, batch "
        f"{spec.profile.batch}"
    )

    def progress(phase: str, part: float) -> None:
        if printer is not None:
            printer.progress(f"{spec.graph}: {phase or 'building'} ({part:.0%})")

    cache = timing_cache_path(spec)
    known = cache.read_bytes() if api.name == "tensorrt" and cache.is_file() else None
    exact = spec.precision == "fp32" and not spec.tf32
    data, learnt = api.build(parsed, shapes, spec.target, known, progress, exact=exact)
    seconds = time.monotonic() - begin
    path = install_plan(
        folder,
        spec,
        data,
        {"tool": "export/build_engine.py", "version": api.version, "seconds": round(seconds, 1)},
    )
    if learnt is not None:
        _keep_timing_cache(cache, learnt)
    say(f"{spec.graph}: {path.name}, {len(data) / 2**20:.1f} MiB in {seconds:.1f} s")
    return Built(spec.graph, path, False, seconds, len(data), spec.key)


def _keep_timing_cache(path: Path, data: bytes) -> None:
    """Only saves time: where it cannot be kept, that is said and nothing more."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        logger.warning("%s: the timing cache cannot be kept (%s)", path, error.strerror)


def run(args: argparse.Namespace) -> int:
    """What ``dvpd build`` does with the options of ``add_build_options``.

    Args:
        args: The parsed command line.

    Returns:
        0 done.

    Raises:
        DvpdError: See ``build_engines``.
    """
    name = str(args.folder)
    if name.startswith(PREFIX):
        repository = name.removeprefix(PREFIX).partition("@")[0]
        raise UsageError(
            f"{name}: plans are built in a folder of yours, not in the Hub's cache: `hf download "
            f"{repository} --local-dir DIR`, then `dvpd build DIR`"
        )
    folder = find_engine(name)
    manifest = Manifest.load(folder)
    with command.usage():
        profile = chosen_profile(args, manifest)
    printer = Steps()
    try:
        built = build_engines(
            folder,
            backend=args.backend,
            target=args.target,
            profile=profile,
            force=args.force,
            tf32=args.tf32,
            printer=printer,
        )
    finally:
        printer.close()
    if args.json:
        rows: list[dict[str, Any]] = [asdict(plan) | {"path": str(plan.path)} for plan in built]
        print(json.dumps({"plans": rows}))
    else:
        for plan in built:
            print(plan.path)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="build_engine", description="Build TensorRT plans beside an engine folder's graphs."
    )
    add_build_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    return command.run(build_parser(), argv, run)


if __name__ == "__main__":
    command.leave(main())
