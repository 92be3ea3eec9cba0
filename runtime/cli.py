"""The command line: ``dvpd enhance``, ``build``, ``benchmark``, ``predict-device``, ``doctor``.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed (some files,
in a batch), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from .backends.choose import BACKENDS
from .errors import DvpdError, InputError
from .noise import SEED_MAX
from .tensorrt.options import add_build_options

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
# Commands with a parser of their own: module and help.
_BENCHMARKS = {
    "benchmark": ("dvpd.benchmarks.rtf", "measure speed, memory and energy on this machine"),
    "predict-device": (
        "dvpd.benchmarks.predict_device",
        "estimate speed and memory on a device that is not at hand",
    ),
}
_BAR_AFTER_S = 2.0
_BAR_EVERY_S = 0.2
_BAR_WIDTH = 30


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in [{low}, {high}]")
        return value

    return parse


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1]")
    return value


def build_parser(prog: str = "dvpd") -> argparse.ArgumentParser:
    """Build the parser of all commands.

    Args:
        prog: Program name in help and messages.
    """
    parser = argparse.ArgumentParser(prog=prog, description="Speech enhancement with DVPD.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    enhance = commands.add_parser(
        "enhance",
        help="enhance a recording",
        description="Enhance a recording; rate, channels, length and encoding come back as they "
        "were. Several inputs go to an output folder.",
    )
    enhance.add_argument("input", nargs="+", metavar="IN", help="WAV, FLAC or OGG recording")
    enhance.add_argument(
        "output", metavar="OUT", help=".wav, .flac, .ogg or .opus file, or an existing folder"
    )
    enhance.add_argument(
        "--model",
        metavar="ENGINE_DIR",
        help="engine folder (default: $DVPD_ENGINE, else engines/dvpd-base or dvpd-tiny)",
    )
    enhance.add_argument(
        "--backend", choices=["auto", *BACKENDS], default="auto", help="inference engine"
    )
    enhance.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:N, tensorrt (ort's provider), gpu, npu (openvino) or auto",
    )
    enhance.add_argument("--threads", type=_whole(1, 4096), metavar="N", help="CPU threads")
    enhance.add_argument(
        "--tf32",
        action="store_true",
        help="let a GPU round the float32 products of an fp32 engine to TF32: faster",
    )
    enhance.add_argument(
        "--steps",
        type=_whole(0, 1000),
        metavar="N",
        help="diffusion steps; 0: predictive branch alone (default: the model's, 3)",
    )
    enhance.add_argument(
        "--alpha",
        type=_fraction,
        metavar="A",
        help="weight of the predictive magnitude, 0 to 1 (default: the model's, 0.4)",
    )
    enhance.add_argument(
        "--tlb",
        metavar="PRESET|JSON",
        help="severe, moderate, mild, none, or "
        '{"skip": [[1, 1], [1, 1]], "backbone": [[1, 1], [1, 1]]}',
    )
    enhance.add_argument(
        "--seed", type=_whole(0, SEED_MAX), default=0, metavar="N", help="noise seed (default: 0)"
    )
    enhance.add_argument("--json", action="store_true", help="print one JSON object")
    enhance.set_defaults(run=_enhance)

    build = commands.add_parser(
        "build",
        help="build TensorRT plans for an engine folder",
        description="Build TensorRT plans beside an engine folder's graphs; valid ones are kept. "
        "On a Jetson this takes minutes, once.",
    )
    add_build_options(build)
    build.set_defaults(run=_build)

    # No prefix character: every word after the command belongs to the module's own parser.
    for name, (_, text) in _BENCHMARKS.items():
        outside = commands.add_parser(name, help=text, add_help=False, prefix_chars="\0")
        outside.add_argument("words", nargs="*")
        outside.set_defaults(run=_benchmark)

    doctor = commands.add_parser(
        "doctor",
        help="say what this machine can run and what is missing",
        description="Say what this machine can run, what is missing, and the cure. Exits with 1 "
        "when no backend can run or no engine folder is usable.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)
    return parser


class _Bar:
    """A progress bar on stderr: only on a terminal, only when it takes over two seconds."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._started = self._drawn = time.monotonic()
        self._visible = False
        self._terminal = sys.stderr.isatty()

    def __call__(self, fraction: float) -> None:
        now = time.monotonic()
        if not self._terminal or now - self._started < _BAR_AFTER_S:
            return
        if now - self._drawn < _BAR_EVERY_S and fraction < 1.0:
            return
        self._drawn, self._visible = now, True
        filled = round(_BAR_WIDTH * fraction)
        left_s = (now - self._started) * (1.0 - fraction) / max(fraction, 1e-6)
        bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
        line = f"\r{self._label} [{bar}] {fraction:4.0%} {left_s:5.0f} s left"
        print(line, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._visible:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _say(message: object) -> None:
    print(f"dvpd: {' '.join(str(message).split())}", file=sys.stderr)


def _targets(inputs: list[str], output: str) -> list[tuple[str, Path]]:
    """Pair inputs and outputs; a folder takes each input's name."""
    folder = Path(output)
    if len(inputs) == 1 and not folder.is_dir():
        return [(inputs[0], folder)]
    if not folder.is_dir():
        raise InputError(f"{output}: several inputs need an existing folder as output")
    pairs = [(name, folder / Path(name).name) for name in inputs]
    names = [target.name for _, target in pairs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several inputs are called {doubled[0]}; they would share one output")
    return pairs


def _enhance(args: argparse.Namespace) -> int:
    from .engines import default_engine
    from .enhancer import Enhancer, resolve_tlb
    from .manifest import Manifest

    def fail(error: DvpdError, code: int) -> int:
        _say(error)
        if args.json:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        return code

    try:
        folder = Path(args.model) if args.model else default_engine()
        manifest = Manifest.load(folder)
    except DvpdError as error:
        return fail(error, EXIT_FAILED)
    try:
        pairs = _targets(args.input, args.output)
        tlb = resolve_tlb(args.tlb, manifest.tlb_presets)
    except InputError as error:
        return fail(error, EXIT_USAGE)
    try:
        enhancer = Enhancer.open(folder, args.backend, args.device, args.threads, tf32=args.tf32)
    except DvpdError as error:
        return fail(error, EXIT_FAILED)
    results: list[dict[str, Any]] = []
    failed = 0
    with enhancer:
        for source, target in pairs:
            bar = _Bar(Path(source).name)
            try:
                done = enhancer.enhance_file(
                    source,
                    target,
                    seed=args.seed,
                    steps=args.steps,
                    alpha=args.alpha,
                    tlb=tlb,
                    progress=bar,
                )
            except DvpdError as error:
                bar.close()
                failed += 1
                _say(error)
                results.append({"input": source, "error": str(error), "kind": type(error).__name__})
                continue
            bar.close()
            results.append(
                {
                    "input": source,
                    "output": str(done.path),
                    "sample_rate": done.sample_rate,
                    "channels": done.n_channels,
                    "samples": done.n_samples,
                    "duration_s": done.duration_s,
                    "container": done.container,
                    "subtype": done.subtype,
                    "seconds": done.seconds,
                    "rtf": done.rtf,
                    "nfe": done.nfe,
                    "clipped": done.n_clipped,
                    "backend": enhancer.backend.name,
                    "device": enhancer.backend.device,
                    "model": enhancer.manifest.name,
                    "model_version": enhancer.manifest.version,
                    "precision": enhancer.manifest.precision,
                    "seed": args.seed,
                }
            )
            if not args.json:
                clipped = f", {done.n_clipped} values limited" if done.n_clipped else ""
                print(
                    f"{done.path}: {done.duration_s:.2f} s of audio in {done.seconds:.2f} s "
                    f"(real-time factor {done.rtf:.3f}), {done.nfe} network calls a window, "
                    f"{enhancer.backend.name} on {enhancer.backend.device}{clipped}",
                    flush=True,
                )
    if args.json:
        single = len(pairs) == 1
        print(json.dumps(results[0] if single else {"files": results, "failed": failed}))
    return EXIT_FAILED if failed else EXIT_DONE


def _build(args: argparse.Namespace) -> int:
    # Builders are no part of the light runtime: the module is looked up only for this command.
    builder = importlib.import_module("dvpd.export.build_engine")
    return int(builder.run(args))


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import examine, render

    report = examine()
    print(json.dumps(report) if args.json else render(report))
    return EXIT_DONE if report["ready"] else EXIT_FAILED


def _benchmark(args: argparse.Namespace) -> int:
    # outside the light runtime: imported by name when asked for
    module = importlib.import_module(_BENCHMARKS[args.command][0])
    try:
        return int(module.main(args.words, prog=f"dvpd {args.command}"))
    except SystemExit as stop:  # argparse has said why, or has shown its help
        return EXIT_DONE if stop.code in (None, 0) else EXIT_USAGE


def _terminate(number: int, frame: FrameType | None) -> None:
    # Unwinds the stack, so that unfinished files are removed.
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None, prog: str = "dvpd") -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None for those of the process.
        prog: Program name in help and messages.

    Returns:
        0 done, 1 failed, 2 wrong usage.
    """
    try:
        args = build_parser(prog).parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return EXIT_DONE if stop.code in (None, 0) else EXIT_USAGE
    log = logging.getLogger("dvpd")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("dvpd: %(message)s"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    previous = None
    try:
        # Raises ValueError outside the main thread, where no signal arrives anyway.
        previous = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:
        pass
    try:
        run: Callable[[argparse.Namespace], int] = args.run
        return run(args)
    except DvpdError as error:
        _say(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        _say("interrupted; unfinished files were removed")
        return EXIT_FAILED
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    raise SystemExit(main())
