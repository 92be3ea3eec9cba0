"""Speed and memory of an engine on a device that is not available: an ESTIMATE, not a measurement.

    python benchmarks/predict_device.py orin-nano agx-orin rtx-4090     # the default engine
    python benchmarks/predict_device.py this-machine --engine engines/dvpd-tiny --json a.json
    python benchmarks/predict_device.py --list                          # devices and their sources

Every node of the graphs is put under the device's roofline (Williams et al., 2009): the time of its
arithmetic at an achievable share of the published peak, or of its bytes at an achievable share of
the published bandwidth, whichever is longer, and a cost for each kernel. Two estimates bracket what
an engine makes of it: every node a kernel of its own, and every chain of elementwise nodes and
copies fused into its producer. The central value is their mean times a factor that reports of
``rtf.py`` give: measured over predicted, on machines that were measured. How far those ratios
scatter, and how far the device is from what was measured, sets the error bar. Also
``dvpd predict-device``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common.graph_costs import engine_costs
from dvpd.benchmarks.common.timing import frames_of
from dvpd.benchmarks.predict.calibration import measured, report_files
from dvpd.benchmarks.predict.devices import DEVICES, THIS_MACHINE, device_name, find_device
from dvpd.benchmarks.predict.display import show, show_devices, to_json
from dvpd.benchmarks.predict.estimate import Case, predict
from dvpd.benchmarks.predict.roofline import CALLS, GRAPH
from dvpd.runtime import command
from dvpd.runtime.engines import find_engine
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.progress import show_status

WINDOW_S = 2.048
MAX_STEPS, MAX_BATCH = 1000, 64


def with_precision(folder: Path, precision: str | None) -> Path:
    """The engine folder itself, or its neighbour of another precision.

    Args:
        folder: Engine folder.
        precision: "fp32", "fp16", or None for what the folder holds.

    Raises:
        InputError: There is no such neighbour.
        ManifestError: The folder is incomplete or damaged.
    """
    have = Manifest.load(folder).precision
    if precision in (None, have):
        return folder
    name = folder.resolve().name
    other = name.removesuffix("-fp16") if precision == "fp32" else f"{name}-fp16"
    neighbour = folder.resolve().parent / other
    if not neighbour.is_dir() or Manifest.load(neighbour).precision != precision:
        raise InputError(
            f"{folder} is {have} and there is no {other} beside it: export one with python "
            f"export/to_onnx.py CKPT -o {other} --precision {precision}"
        )
    return neighbour


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text) if text.isdigit() else low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in [{low}, {high}]")
        return value

    return parse


def build_parser(prog: str = "predict_device.py") -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Estimate latency and memory of an engine on devices that are not available, "
        "from the graphs and published figures. Nothing is measured on them; every figure is an "
        "estimate with an error bar.",
    )
    parser.add_argument(
        "devices", nargs="*", metavar="DEVICE",
        help=f"{', '.join(DEVICES)}, or {THIS_MACHINE} (this CPU)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="show the devices and their sources")
    parser.add_argument(
        "--engine", metavar="NAME|DIR",
        help="engine: a name or a folder (default: $DVPD_ENGINE, else engines/dvpd-base or dvpd-tiny)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=["fp32", "fp16"],
        help="take the folder of this precision beside it (default: the folder's own)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=_finite, default=WINDOW_S, metavar="S",
        help=f"seconds of audio (default: {WINDOW_S})",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=_between(0, MAX_STEPS), metavar="N",
        help="score calls (default: the model's)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=_between(1, MAX_BATCH), default=1, metavar="N", help="windows a call"
    )
    parser.add_argument(
        "--launch", choices=[GRAPH, CALLS], default=GRAPH,
        help="the sampler as one CUDA graph, or kernels launched one by one (default: graph)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=_between(1, 4096), metavar="N", help=f"CPU threads of {THIS_MACHINE}"
    )
    parser.add_argument(
        "--calibrate", type=Path, nargs="+", metavar="FILE",
        help="reports of dvpd benchmark --json (default: those in benchmarks/results)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything here too")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "predict_device.py") -> int:
    """Run the command line; returns the exit code.

    Args:
        argv: Arguments without the program's name; None for those of the process.
        prog: Program name in help and messages.
    """
    parser = build_parser(prog)
    return command.run(parser, argv, lambda args: _predict(parser, args))


def _predict(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.devices and not args.list:
        parser.error("name a device, or --list")
    if args.list:
        show_devices()
    if args.devices:
        _run(args)


def _run(args: argparse.Namespace) -> None:
    if args.json is not None and not args.json.resolve().parent.is_dir():
        raise InputError(f"{args.json}: its folder does not exist")
    # a wrong name is said before the graphs are counted, which takes seconds
    names = list(dict.fromkeys(device_name(text) for text in args.devices))
    folder = with_precision(find_engine(args.engine), args.precision)
    manifest = Manifest.load(folder)
    steps = manifest.sampler.n_steps if args.steps is None else args.steps
    case = Case(folder, manifest, frames_of(args.window, manifest), args.batch, steps, args.launch)
    files = args.calibrate if args.calibrate is not None else report_files()
    show_status("counting the graphs of the measured reports")
    found = measured(files, [folder])
    costs = engine_costs(folder, case.frames, case.batch)
    predictions = []
    for name in names:
        show_status(
            name if name in DEVICES else "peak arithmetic and memory bandwidth of this machine"
        )
        predictions.append(predict(find_device(name, args.threads), case, found, costs))
    show_status("")
    if args.json is not None:
        text = json.dumps(to_json(case, predictions, found), indent=1, allow_nan=False)
        write_whole(args.json, text + "\n")
    show(case, predictions, found)


if __name__ == "__main__":
    command.leave(main())
