"""What engines/build_with_trtexec.sh asks: names, shapes and sidecars of plans.

``python -m dvpd.runtime.tensorrt.trtexec_helper flags|check|gpu|seal``; needs neither TensorRT nor onnx.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dvpd.runtime import command

from ..errors import BackendError, InputError, ManifestError
from ..files import sha256_file
from ..manifest import Manifest
from ..spec import GRAPH_NAMES
from .caches import timing_cache_path
from .gpus import Target, cuda_driver
from .onnx_inputs import graph_inputs
from .options import add_profile_options, chosen_profile
from .plans import install_plan, load_plan, plan_spec


def build_parser() -> argparse.ArgumentParser:
    """The command line of the trtexec script's helper."""
    parser = argparse.ArgumentParser(
        prog="plans", description="Names, shapes and sidecars of plans, for build_with_trtexec.sh."
    )
    parser.add_argument("action", choices=("flags", "check", "gpu", "seal"))
    parser.add_argument("folder", nargs="?", type=Path, metavar="ENGINE_DIR")
    parser.add_argument("--graph", choices=GRAPH_NAMES, help="which graph")
    parser.add_argument("--trt-version", metavar="V", help="TensorRT's version, such as 10.3.0")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="the plan that trtexec wrote")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long it took")
    add_profile_options(parser)
    return parser


def _local_target() -> Target:
    driver = cuda_driver()
    if driver is None or not driver.gpus:
        raise BackendError(
            "no NVIDIA GPU with a working driver: TensorRT builds plans on the machine that runs "
            "them (TensorRT-RTX builds elsewhere, too: --backend tensorrt-rtx --target portable)"
        )
    return Target(driver.gpus[0].name, driver.gpus[0].compute_capability)


def main(argv: list[str] | None = None) -> int:
    """Run the helper; returns 0 done, 1 failed (for ``check``: no usable plan), 2 wrong usage."""
    parser = build_parser()
    return command.run(parser, argv, lambda args: _act(parser, args))


def _act(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.action == "gpu":
        target = _local_target()
        print(f"{target.name} {target.compute_capability}")
        return
    if args.folder is None or args.graph is None:
        parser.error(f"{args.action} needs ENGINE_DIR and --graph")
    manifest = Manifest.load(args.folder)
    onnx = manifest.verify_graphs(args.folder)[args.graph]
    profile = chosen_profile(args, manifest)
    if args.trt_version is None:
        parser.error(f"{args.action} needs --trt-version")
    spec = plan_spec(manifest, args.graph, "tensorrt", args.trt_version, _local_target(), profile)
    if args.action == "flags":
        table = profile.shapes(graph_inputs(onnx))
        for i, which in enumerate(("min", "opt", "max")):
            shapes = (f"{name}:{'x'.join(map(str, s[i]))}" for name, s in table.items())
            print(f"--{which}Shapes={','.join(shapes)}")
        cache = timing_cache_path(spec)
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        print(f"--timingCacheFile={cache}")
        if spec.precision == "fp32":
            print("--noTF32")
        return
    if args.action == "check":
        load_plan(args.folder, spec)
        print(args.folder / spec.file)
        return
    if args.plan is None:
        parser.error("seal needs --plan")
    built = {"tool": "trtexec", "version": args.trt_version, "seconds": args.seconds}
    try:
        data = args.plan.read_bytes()
    except OSError as error:
        raise InputError(f"{args.plan}: {error.strerror}") from None
    if sha256_file(onnx) != spec.onnx_sha256:
        raise ManifestError(f"{onnx}: changed while its plan was built; build again")
    print(install_plan(args.folder, spec, data, built))


if __name__ == "__main__":
    command.leave(main())
