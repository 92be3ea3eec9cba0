"""The options of ``dvpd enhance`` for folders and manifests; nothing heavy is imported for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

HUNG_S = 600.0


def add_bulk_options(
    parser: argparse.ArgumentParser, jobs: Callable[[str], int], seconds: Callable[[str], float]
) -> None:
    """Add the options of folders and manifests to ``dvpd enhance``.

    Args:
        parser: Its parser.
        jobs: Reads a number of processes, or of windows.
        seconds: Reads a time.
    """
    many = parser.add_argument_group("a folder IN, its tree kept in the folder OUT")
    many.add_argument("--recursive", action="store_true", help="look into its folders, too")
    many.add_argument(
        "--glob",
        action="append",
        metavar="PATTERN",
        help="file names to take, such as '*.wav'; may be repeated (default: audio suffixes)",
    )
    many.add_argument(
        "--manifest",
        metavar="FILE",
        help='recordings to take, a line of JSON each, {"path": ..., "start": s, "duration": s, '
        '"output": ...}; paths begin in IN, outputs in OUT',
    )
    many.add_argument(
        "--jobs",
        type=jobs,
        metavar="N",
        help="processes, with an engine each (default: on a CPU one for each core, at most 4; else 1)",
    )
    many.add_argument(
        "--batch",
        type=jobs,
        metavar="N",
        help="windows of several recordings that each process computes at a time, for GPUs "
        "(default: 1)",
    )
    many.add_argument(
        "--skip-existing", action="store_true", help="leave outputs that are there already"
    )
    many.add_argument(
        "--resume",
        action="store_true",
        help="go on with the job whose journal is in OUT, or share it with another run",
    )
    many.add_argument(
        "--journal",
        metavar="DIR",
        help="where the journal lies, on a local disk (default: OUT/.dvpd; needed if OUT is a URL)",
    )
    many.add_argument(
        "--hung-after",
        type=seconds,
        metavar="S",
        help="end a process that makes no progress for so long, and set its recording aside the "
        f"second time (default: {HUNG_S:g} s; 0: wait for ever)",
    )
    many.add_argument(
        "--dnsmos",
        metavar="DIR",
        help="judge each output with the models sig_bak_ovr.onnx and model_v8.onnx in DIR; the scores "
        "go to the results",
    )
    many.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="spread the work over a Ray cluster: local, auto or HOST:PORT; --jobs is then the "
        "number of processes on all of it (default: as many as it has CPUs, or GPUs with "
        "--device cuda)",
    )


def is_bulk(args: argparse.Namespace) -> bool:
    """Whether ``dvpd enhance`` was given a folder, or an option for one.

    Args:
        args: What was parsed.
    """
    asked = args.recursive or args.glob or args.manifest or args.jobs or args.batch
    asked = asked or args.skip_existing or args.resume or args.journal or args.ray or args.dnsmos
    asked = (
        asked or args.hung_after is not None or any("://" in p for p in [*args.input, args.output])
    )
    return bool(asked) or (len(args.input) == 1 and Path(args.input[0]).is_dir())
