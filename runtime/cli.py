"""The command line: ``dvpd enhance``, ``stream``, ``live``, ``build``, ``benchmark``, ``doctor`` and more.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed (some files,
in a batch), 2 wrong usage, 130 and the like when a signal ended it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import cli_demo, cli_live, cli_serve, cli_stream, command
from .backends.choose import open_backend
from .bulk.options import add_bulk_options, is_bulk
from .cli_options import (
    add_engine_options,
    add_steps_options,
    between,
    decibels,
    fraction,
    whole,
)
from .command import EXIT_DONE, EXIT_FAILED, say
from .containers import Raw
from .errors import InputError, UsageError, raise_interrupt
from .manifest import Manifest
from .progress import Progress
from .spec import MAX_PHASE_ROUNDS, OUTPUT_SUFFIXES, SEED_MAX
from .tensorrt.options import add_build_options

if TYPE_CHECKING:
    from .backends.base import Backend
    from .enhancer import EnhancedFile, Enhancer

SHELLS = ("bash", "zsh", "tcsh")
PIPE = "-"
# Commands with a parser of their own: module and help.
_OUTSIDE = {
    "benchmark": ("dvpd.benchmarks.rtf", "measure speed, memory and energy on this machine"),
    "predict-device": (
        "dvpd.benchmarks.predict_device",
        "estimate speed and memory on a device that is not available",
    ),
    "export-hub": (
        "dvpd.export.hub_folder",
        "write an engine as a folder for the Hugging Face Hub",
    ),
}


def build_parser(prog: str = "dvpd") -> argparse.ArgumentParser:
    """Build the parser of all commands.

    Args:
        prog: Program name in help and messages.
    """
    parser = argparse.ArgumentParser(prog=prog, description="Speech enhancement with DVPD.")
    parser.add_argument("--version", action="version", version=command.version_text())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    enhance = commands.add_parser(
        "enhance",
        help="enhance a recording",
        description="Enhance a recording; rate, channels, length and encoding come back as they "
        "were. Several inputs, or those of a folder, go to an output folder. Nothing is replaced "
        "without --overwrite.",
    )
    enhance.add_argument(
        "input",
        nargs="+",
        metavar="IN",
        help="recording: WAV, FLAC, OGG, MP3, AIFF and more, with PyAV also m4a, webm, aac; "
        "-: standard input; or a folder of recordings",
    )
    enhance.add_argument(
        "output",
        metavar="OUT",
        help=".wav, .flac, .ogg or .opus file, or an existing folder; -: standard output, as WAV",
    )
    enhance.add_argument(
        "--overwrite", action="store_true", help="replace a file that is there already"
    )
    enhance.add_argument(
        "--salvage",
        action="store_true",
        help="enhance what can be decoded of a damaged recording, and say what is missing",
    )
    enhance.add_argument(
        "--raw",
        metavar="RATE,CHANNELS,FORMAT",
        help="samples without a header, such as 48000,1,s16; also for OUT -",
    )
    enhance.add_argument(
        "--mix",
        type=fraction,
        default=1.0,
        metavar="M",
        help="share of the enhanced sound, 0 to 1 (default: 1); the rest is the recording itself",
    )
    enhance.add_argument(
        "--max-attenuation",
        type=decibels,
        metavar="DB",
        help="lower nothing by more than this (dB)",
    )
    add_engine_options(enhance)
    enhance.add_argument(
        "--low-memory",
        action="store_true",
        help="on a CPU, compute one window at a time: half of the memory, a little slower",
    )
    add_steps_options(enhance, "the model's: 0 in those that ship for recordings, 1 in live ones")
    enhance.add_argument(
        "--alpha",
        type=fraction,
        metavar="A",
        help="weight of the predictive magnitude, 0 to 1 (default: the model's; 0.7 in those that ship)",
    )
    enhance.add_argument(
        "--tlb",
        metavar="PRESET|JSON",
        help="severe, moderate, mild, none, or "
        '{"skip": [[1, 1], [1, 1]], "backbone": [[1, 1], [1, 1]]}',
    )
    enhance.add_argument(
        "--phase-rounds",
        type=whole(0, MAX_PHASE_ROUNDS),
        metavar="N",
        help="how often the phase is brought nearer to the magnitude, 0 to 100 (default: the model's; "
        "2 in dvpd-base and dvpd-tiny)",
    )
    enhance.add_argument(
        "--seed",
        type=whole(0, SEED_MAX),
        default=0,
        metavar="N",
        help="seed of the noise that steps begin with (default: 0)",
    )
    enhance.add_argument("--json", action="store_true", help="print one JSON object")
    add_bulk_options(enhance, whole(1, 1 << 20), between(0.0, 1e9, "s"))
    enhance.set_defaults(run=_enhance)

    cli_stream.add_parser(commands)
    cli_live.add_parser(commands)
    cli_serve.add_parser(commands)
    cli_demo.add_parser(commands)

    build = commands.add_parser(
        "build",
        help="build TensorRT plans for an engine folder",
        description="Build TensorRT plans beside an engine folder's graphs; valid ones are kept. "
        "On a Jetson this takes minutes, once.",
    )
    add_build_options(build)
    build.set_defaults(run=_build)

    # No prefix character: every word after the command belongs to the module's own parser.
    for name, (_, text) in _OUTSIDE.items():
        outside = commands.add_parser(name, help=text, add_help=False, prefix_chars="\0")
        outside.add_argument("words", nargs="*")
        outside.set_defaults(run=_outside)

    doctor = commands.add_parser(
        "doctor",
        help="say what this machine can run and what is missing",
        description="Say what this machine can run, what is missing, and the fix. Exits with 1 "
        "when no backend can run or no engine folder is usable.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)

    completion = commands.add_parser(
        "completion",
        help="print a script that completes the commands in a shell",
        description="Print a completion script; bash: dvpd completion bash > "
        "~/.local/share/bash-completion/completions/dvpd",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_completion)
    return parser


def _targets(inputs: list[str], output: str) -> list[tuple[str, str]]:
    """Pair inputs and outputs; a folder takes each input's name."""
    folder = Path(output)
    if len(inputs) == 1 and (output == PIPE or not folder.is_dir()):
        return [(inputs[0], output)]
    if not folder.is_dir():
        raise InputError(f"{output}: several inputs need an existing folder as output")
    if PIPE in inputs:
        raise InputError("standard input needs a file or - as output, and no other input beside it")
    from .audio import target_in

    pairs = [(name, str(target_in(folder, name))) for name in inputs]
    targets = [target for _, target in pairs]
    if doubled := sorted({name for name in targets if targets.count(name) > 1}):
        sources = " and ".join(source for source, target in pairs if target == doubled[0])
        raise InputError(f"{sources} would share the output {doubled[0]}; enhance them one by one")
    for source, target in pairs:
        if Path(source).suffix.lower() != Path(target).suffix.lower():
            say(f"{source}: cannot be written in its own format; it becomes {target}")
    return pairs


def _refusal(source: str, target: str, overwrite: bool) -> InputError | None:
    """What can be said against a pair before a model is loaded."""
    from .audio import check_file, check_paths, check_suffix

    try:
        if source != PIPE:
            check_file(Path(source))
        if target != PIPE:
            check_paths(Path(source), Path(target), overwrite=overwrite)
            check_suffix(Path(target))
    except InputError as error:
        return error
    return None


def _begin_opening(
    args: argparse.Namespace,
    folder: Path,
    manifest: Manifest,
    pairs: Sequence[tuple[str, str]],
    steps: int | None,
) -> Callable[[], Backend]:
    """Load the graphs beside what follows, which reads a hundred modules; what waits for them.

    Not where nothing can be done, as far as a look at the names tells.
    """

    def load() -> Backend:
        return open_backend(
            folder, manifest, args.backend, args.device, args.threads, tf32=args.tf32,
            low_memory=args.low_memory, with_steps=bool(steps),
        )  # fmt: skip

    def promises(source: str, target: str) -> bool:
        folder_of, name = os.path.split(target)
        free = args.overwrite or not os.path.lexists(target)
        named = os.path.splitext(name)[1].lower() in OUTPUT_SUFFIXES
        writable = target == PIPE or (free and named and os.path.isdir(folder_of or "."))
        return writable and (source == PIPE or os.path.isfile(source))

    if not any(promises(*pair) for pair in pairs):
        return load
    pool = ThreadPoolExecutor(1, "dvpd-open")
    future = pool.submit(load)
    pool.shutdown(wait=False)
    return future.result


def _enhance(args: argparse.Namespace) -> int:
    if is_bulk(args):
        if args.low_memory:
            raise UsageError(
                "--low-memory was given with a folder or a manifest; expected recordings by name: leave "
                "it away, --jobs 1 --threads 1 computes one window at a time"
            )
        from .bulk.command import enhance_many

        return enhance_many(args)
    from .engines import find_engine, warn_unverified
    from .options import chosen_steps, sampler_choice

    folder = find_engine(args.model)
    manifest = Manifest.load(folder)
    with command.usage():
        if args.json and args.output == PIPE:
            raise UsageError("--json and the output - both need standard output; give a file")
        pairs = _targets(args.input, args.output)
        steps = chosen_steps(args.steps, args.quality)
        tlb = sampler_choice(manifest, steps, args.alpha, args.tlb, args.phase_rounds).tlb
        raw = _parse_raw(args.raw)
    opened = _begin_opening(args, folder, manifest, pairs, steps)
    from .enhancer import Enhancer

    refused = {source: _refusal(source, target, args.overwrite) for source, target in pairs}
    if len(pairs) == 1 and (only := refused[pairs[0][0]]) is not None:
        raise only
    options = {
        "seed": args.seed,
        "steps": steps,
        "alpha": args.alpha,
        "tlb": tlb,
        "phase_rounds": args.phase_rounds,
        "mix": args.mix,
        "attenuation_limit_db": args.max_attenuation,
        "overwrite": args.overwrite,
        "salvage": args.salvage,
        "raw": raw,
    }
    results: list[dict[str, Any]] = []
    failed = 0
    with contextlib.ExitStack() as stack:
        enhancer: Enhancer | None = None
        for source, target in pairs:
            try:
                if (refusal := refused[source]) is not None:
                    raise refusal
                if enhancer is None:  # not for a batch in which nothing can be done
                    enhancer = stack.enter_context(Enhancer(manifest, opened()))
                    warn_unverified(folder, manifest)
            except InputError as error:
                failed += 1
                results.append(_failure(source, error))
                continue
            try:
                with Progress("standard input" if source == PIPE else Path(source).name) as bar:
                    done = _enhance_one(enhancer, source, target, options | {"progress": bar})
            except Exception as error:  # one line for this file; the others go on
                raise_interrupt(error)
                failed += 1
                results.append(_failure(source, error))
                continue
            results.append(_row(enhancer, source, done, args.seed))
            if not args.json:
                tell: Callable[[str], None] = say if target == PIPE else _print
                tell(_sentence(enhancer, done))
            for thing in done.left:
                say(f"{target}: {thing} of {source} could not be carried over")
    if args.json:
        single = len(pairs) == 1
        print(json.dumps(results[0] if single else {"files": results, "failed": failed}))
    return EXIT_FAILED if failed else EXIT_DONE


def _parse_raw(text: str | None) -> Raw | None:
    if not text:
        return None
    from .pipes import parse_raw

    return parse_raw(text)


def _print(text: str) -> None:
    print(text, flush=True)


def _failure(source: str, error: Exception) -> dict[str, Any]:
    say(message := command.explain(error))
    return {"input": source, "error": message, "kind": type(error).__name__}


def _enhance_one(
    enhancer: Enhancer, source: str, target: str, options: dict[str, Any]
) -> EnhancedFile:
    from .pipes import spooled_input

    if source != PIPE:
        return enhancer.enhance_file(source, target, **options)
    with spooled_input() as path:
        try:
            return enhancer.enhance_file(path, target, **options)
        except InputError as error:
            raise InputError(str(error).replace(str(path), "standard input")) from None


def _row(enhancer: Enhancer, source: str, done: EnhancedFile, seed: int) -> dict[str, Any]:
    table = done.table(enhancer)
    return {"input": source, "output": str(done.path), **table, "seed": seed}


def _sentence(enhancer: Enhancer, done: EnhancedFile) -> str:
    clipped = f", {done.n_clipped} values limited" if done.n_clipped else ""
    calls = "1 network call" if done.nfe == 1 else f"{done.nfe} network calls"
    return (
        f"{done.path}: {done.duration_s:.2f} s of audio in {done.seconds:.2f} s "
        f"(real-time factor {done.rtf:.3f}), {calls} a window, "
        f"{enhancer.backend.name} on {enhancer.backend.device}{clipped}"
    )


def _build(args: argparse.Namespace) -> int:
    # Builders are no part of the light runtime: the module is looked up only for this command.
    builder = importlib.import_module("dvpd.export.build_engine")
    return int(builder.run(args))


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import examine, render

    report = examine()
    print(json.dumps(report) if args.json else render(report))
    return EXIT_DONE if report["ready"] else EXIT_FAILED


def _outside(args: argparse.Namespace) -> int:
    # outside the light runtime: imported by name when asked for
    module = importlib.import_module(_OUTSIDE[args.command][0])
    return int(module.main(args.words, prog=f"dvpd {args.command}"))


def _completion(args: argparse.Namespace) -> int:
    shtab = importlib.import_module("shtab")
    print(shtab.complete(build_parser(), args.shell))
    return EXIT_DONE


def main(argv: Sequence[str] | None = None, prog: str = "dvpd") -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None for those of the process.
        prog: Program name in help and messages.

    Returns:
        0 done, 1 failed, 2 wrong usage, 130 interrupted; see ``command.run``.
    """
    return command.run(build_parser(prog), argv, lambda args: args.run(args))


def process(prog: str = "dvpd") -> NoReturn:
    """Run the command line and end the process: what ``dvpd`` on the shell's path is.

    Args:
        prog: Program name in help and messages.
    """
    command.leave(main(prog=prog))


if __name__ == "__main__":
    process()
