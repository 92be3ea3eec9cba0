"""``dvpd enhance`` for a folder or a manifest: its checks, its summary, its results."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from .. import command
from ..backends.choose import cpu_quota
from ..engines import find_engine
from ..errors import InputError
from ..files import WholeFile
from ..manifest import Manifest
from ..options import chosen_steps, resolve_tlb
from ..pipes import parse_raw
from ..progress import Progress
from .journal import FOLDER, Journal
from .lanes import n_lanes, serve_lanes
from .lines import manifest_plan
from .plan import Plan, check_targets, folder_plan
from .pool import Pool
from .run import Rules, Run
from .worker import Engine, serve

RESULTS = "dvpd-results.jsonl"


def enhance_many(args: argparse.Namespace) -> int:
    """Run ``dvpd enhance`` for a folder or a manifest.

    Args:
        args: What was parsed.

    Returns:
        The exit code.
    """
    started = time.monotonic()
    folder = find_engine(args.model)
    manifest = Manifest.load(folder)
    try:
        root, out = _folders(args)
        options = _options(args, manifest)
        if args.manifest:
            plan = manifest_plan(Path(args.manifest), root, out)
        else:
            plan = folder_plan(root, out, args.glob or [], args.recursive)
        check_targets(plan.jobs)
    except InputError as error:
        return command.report(error, args, command.EXIT_USAGE)
    for text in [*plan.notes, *(entry["error"] for entry in plan.refused)]:
        command.say(text)
    batch: int = args.batch or 1
    engine = Engine(folder, args.backend, args.device, _threads(args), args.tf32, options, batch)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror or error})") from None
    rules = Rules(args.overwrite, args.skip_existing, args.resume)
    with Journal(out) as journal:
        try:
            _check_rules(rules, journal, out)
        except InputError as error:
            return command.report(error, args, command.EXIT_USAGE)
        serving = serve_lanes if batch > 1 else serve
        pool = Pool(args.jobs or 1, engine, serving, n_lanes(batch))
        with pool, Progress("enhance") as progress:

            def say(text: str) -> None:
                progress.close()  # above the bar
                command.say(text)

            run = Run(journal, _settings(args, manifest, options), rules, pool, say)
            run.work(run.first_look(plan.jobs), progress)
        results = _write_results(run, plan, out)
    return _summary(args, run, plan, results, time.monotonic() - started)


def _folders(args: argparse.Namespace) -> tuple[Path, Path]:
    if len(args.input) != 1 or not Path(args.input[0]).is_dir():
        raise InputError(
            f"{args.input[0]}: --recursive, --glob, --manifest, --jobs, --batch, --skip-existing and "
            "--resume need one folder as IN (with --manifest, where its paths begin)"
        )
    root, out = Path(args.input[0]), Path(args.output)
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"{out}: is no folder; the recordings of a folder go to a folder")
    if args.output == "-":
        raise InputError("-: the recordings of a folder go to a folder, not to standard output")
    if out.exists() and os.path.samefile(root, out):
        raise InputError(f"{out}: is the folder of the recordings; choose another")
    if args.overwrite and args.skip_existing:
        raise InputError("--overwrite and --skip-existing exclude each other")
    if args.manifest and (args.glob or args.recursive):
        raise InputError("--manifest names the recordings: --glob and --recursive choose nothing")
    return root, out


def _check_rules(rules: Rules, journal: Journal, out: Path) -> None:
    if rules.resume:
        return
    if others := journal.others():
        raise InputError(
            f"{out}: {' and '.join(others.values())} is at work here: --resume shares the job"
        )
    if journal.begun and not (rules.overwrite or rules.skip_existing):
        raise InputError(
            f"{out}: has the journal of an earlier job: --resume goes on with it, --overwrite does "
            f"all again (the journal is {out / FOLDER})"
        )


def _threads(args: argparse.Namespace) -> int | None:
    """CPU threads of each engine: the usual number, or what is left of the CPUs to each."""
    threads: int | None = args.threads
    n_jobs = args.jobs or 1
    if threads is not None or n_jobs == 1:
        return threads
    return max(1, cpu_quota() // n_jobs)


def _options(args: argparse.Namespace, manifest: Manifest) -> dict[str, Any]:
    return {
        "seed": args.seed,
        "steps": chosen_steps(args.steps, args.quality),
        "alpha": args.alpha,
        "tlb": resolve_tlb(args.tlb, manifest.tlb_presets),
        "mix": args.mix,
        "attenuation_limit_db": args.max_attenuation,
        "salvage": args.salvage,
        "raw": parse_raw(args.raw) if args.raw else None,
    }


def _settings(
    args: argparse.Namespace, manifest: Manifest, options: dict[str, Any]
) -> dict[str, Any]:
    """What decides the outputs beside the recordings, as JSON holds it."""
    raw = options["raw"]
    plain = options | {
        "tlb": dataclasses.asdict(options["tlb"]),
        "raw": None if raw is None else dataclasses.asdict(raw),
    }
    graphs = manifest.hashes
    engine = {"backend": args.backend, "device": args.device, "tf32": args.tf32}
    if (
        args.batch or 1
    ) > 1:  # rounding may depend on it; absent as in journals before it was there
        engine["batch"] = args.batch
    return {**plain, **engine, "graphs": graphs}


def _write_results(run: Run, plan: Plan, out: Path) -> Path:
    path = out / RESULTS
    with WholeFile(path, overwrite=True) as whole:
        with open(whole.path, "w", encoding="utf-8") as stream:
            for entry in run.results(plan.jobs, plan.refused):
                stream.write(json.dumps(entry) + "\n")
        whole.commit()
    return path


def _summary(
    args: argparse.Namespace, run: Run, plan: Plan, results: Path, elapsed_s: float
) -> int:
    counts, opened = run.counts, run.pool.opened
    failed = counts.failed + len(plan.refused)
    if args.json:
        table = {
            "done": counts.done,
            "done_before": counts.before,
            "skipped": counts.skipped,
            "failed": failed,
            "left": counts.left,
            "duration_s": counts.seconds,
            "seconds": elapsed_s,
            "rtf": elapsed_s / counts.seconds if counts.seconds else None,
            "jobs": args.jobs or 1,
            "results": str(results),
            **opened,
        }
        print(json.dumps(table))
    else:
        where = f", {opened['backend']} on {opened['device']}" if opened else ""
        speed = f" (real-time factor {elapsed_s / counts.seconds:.3f})" if counts.seconds else ""
        parts = {"done": counts.done, "done before": counts.before, "skipped": counts.skipped}
        parts |= {"failed": failed, "left": counts.left}
        print("files:   " + ", ".join(f"{n} {name}" for name, n in parts.items() if n))
        print(f"audio:   {_long(counts.seconds)} in {_long(elapsed_s)}{speed}{where}")
        print(f"results: {results}")
    if run.stopped:
        command.say(run.stopped)
    return command.EXIT_FAILED if failed or counts.left else command.EXIT_DONE


def _long(seconds: float) -> str:
    """A length in words: seconds, or hours from one on."""
    return f"{seconds:.1f} s" if seconds < 3600.0 else f"{seconds / 3600.0:.2f} h"
