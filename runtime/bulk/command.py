"""``dvpd enhance`` for a folder or a manifest: its checks, its summary, its results."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import IO, Any

from .. import command
from ..backends.choose import MAX_WORKERS, cpu_quota, on_cpu, physical_cores
from ..chain import make_settings
from ..engines import find_engine
from ..errors import InputError, UsageError, one_line
from ..files import WholeFile
from ..manifest import Manifest
from ..options import chosen_steps, resolve_tlb
from ..pipes import parse_raw
from ..progress import Progress
from . import places
from .cluster import check_address, joined, work_there
from .here import work_here
from .journal import FOLDER, Journal
from .lanes import check_batch, n_lanes, serve_lanes
from .lines import manifest_plan
from .options import HUNG_S
from .plan import Plan, folder_plan
from .pool import Pool
from .run import PARTS, Rules, Run
from .scores import open_scorer
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
    with command.usage():
        root, out = _folders(args)
        options = _options(args, manifest)
        if args.dnsmos:
            open_scorer(Path(args.dnsmos))  # what is wrong with it is said now
        if args.manifest:
            plan = manifest_plan(Path(args.manifest), root, out)
        else:
            plan = folder_plan(root, out, args.glob or [], args.recursive)
        plan.check_targets()
    for text in [*plan.notes, *(entry["error"] for entry in plan.refused())]:
        command.say(text)
    batch: int = args.batch or 1
    # one watch a process: the lanes of a batch would wind each other's
    hung_s = 0.0 if batch > 1 else HUNG_S if args.hung_after is None else args.hung_after
    n_jobs = _n_jobs(args, folder, plan)
    threads = args.threads if args.ray else _threads(args, n_jobs)
    engine = Engine(
        folder, args.backend, args.device, threads, args.tf32, options, hung_s=hung_s, batch=batch,
        flush=bool(args.ray), dnsmos=Path(args.dnsmos) if args.dnsmos else None,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        ray = stack.enter_context(joined(args.ray)) if args.ray else None
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{out}: cannot be made ({error.strerror or error})") from None
        rules = Rules(args.overwrite, args.skip_existing, args.resume)
        journal = stack.enter_context(Journal(out, Path(args.journal) if args.journal else None))
        refused = _refused(rules, journal, out)
        if refused is None:
            progress = stack.enter_context(Progress("enhance"))

            def say(text: str) -> None:
                progress.close()  # above the bar
                command.say(text)

            settings = _settings(args, manifest, options)
            run = Run(journal, plan, settings, rules, out / FOLDER / PARTS, say)
            if ray is None:
                serving = serve_lanes if batch > 1 else serve
                with Pool(n_jobs, engine, serving, n_lanes(batch)) as pool:
                    work_here(run, pool, progress)
            else:
                n_jobs = work_there(run, ray, engine, args.jobs, [root, out], progress)
            results, n_unjudged = _write_results(run, out)
            if args.dnsmos and n_unjudged:
                say(
                    f"{results}: has no scores of {n_unjudged} outputs, which were made before without "
                    "--dnsmos; --overwrite without --resume makes them again"
                )
    if refused is not None:
        raise refused
    return _summary(args, run, n_jobs, results, time.monotonic() - started)


def _folders(args: argparse.Namespace) -> tuple[Path, Path]:
    root, out = places.place(args.input[0]), places.place(args.output)
    if len(args.input) == 1 and not places.is_there(root):
        raise InputError(f"{root}: No such file or directory; expected a folder of recordings")
    if args.journal and Path(args.journal).exists() and not Path(args.journal).is_dir():
        raise InputError(f"{args.journal}: is no folder; --journal names one, which may be missing")
    if args.ray:
        check_address(args.ray)
    if len(args.input) != 1 or not _is_dir(root):
        raise InputError(
            f"{args.input[0]}: --recursive, --glob, --manifest, --jobs, --batch, --skip-existing, "
            "--resume, --journal, --hung-after, --dnsmos, --ray and URLs need one folder as IN (with "
            "--manifest, where its paths begin)"
        )
    if places.is_there(out) and not _is_dir(out):
        raise InputError(f"{out}: is no folder; the recordings of a folder go to a folder")
    if args.output == "-":
        raise InputError("-: the recordings of a folder go to a folder, not to standard output")
    if places.identity(root) == places.identity(out):
        raise InputError(f"{out}: is the folder of the recordings; choose another")
    if places.is_remote(out) and not args.journal:
        raise InputError(f"{out}: --journal DIR must say where on this machine its journal lies")
    if args.overwrite and args.skip_existing:
        raise InputError("--overwrite and --skip-existing exclude each other")
    if (args.batch or 1) > 1 and (args.ray or args.hung_after):
        raise InputError(
            "--batch excludes --ray and --hung-after: an engine on a cluster computes one window at "
            "a time, and recordings that share a process are not watched"
        )
    if args.manifest and (args.glob or args.recursive):
        raise InputError("--manifest names the recordings: --glob and --recursive choose nothing")
    return root, out


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except Exception as error:  # each storage has its own
        raise InputError(f"{path}: {one_line(error)}") from None


def _refused(rules: Rules, journal: Journal, out: Path) -> UsageError | None:
    """What can be said against the job, seen from the journal."""
    if rules.resume:
        return None
    if others := journal.others():
        return UsageError(
            f"{out}: {' and '.join(others.values())} is at work here: --resume shares the job"
        )
    if journal.begun and not (rules.overwrite or rules.skip_existing):
        return UsageError(
            f"{out}: has the journal of an earlier job: --resume goes on with it, --overwrite does "
            f"all again (the journal is {journal.folder})"
        )
    return None


def _n_jobs(args: argparse.Namespace, folder: Path, plan: Plan) -> int:
    """Processes: as asked, or on a CPU one for each core, which serves more than threads in a call."""
    if args.jobs:
        return int(args.jobs)
    if args.batch or args.threads or args.ray or not on_cpu(args.backend, args.device, folder):
        return 1
    return max(1, min(physical_cores(), MAX_WORKERS, plan.left()[0]))


def _threads(args: argparse.Namespace, n_jobs: int) -> int | None:
    """CPU threads of each engine: the usual number, or what is left of the CPUs to each."""
    threads: int | None = args.threads
    if threads is not None or n_jobs == 1:
        return threads
    return max(1, cpu_quota() // n_jobs)


def _options(args: argparse.Namespace, manifest: Manifest) -> dict[str, Any]:
    if (args.batch or 1) > 1:
        check_batch(manifest)
    steps, tlb = chosen_steps(args.steps, args.quality), resolve_tlb(args.tlb, manifest.tlb_presets)
    # what no recording could be enhanced with is said once
    make_settings(manifest, args.seed, steps, args.alpha, tlb, phase_rounds=args.phase_rounds)
    return {
        "seed": args.seed,
        "steps": steps,
        "alpha": args.alpha,
        "tlb": tlb,
        "phase_rounds": args.phase_rounds,
        "mix": args.mix,
        "attenuation_limit_db": args.max_attenuation,
        "salvage": args.salvage,
        "raw": parse_raw(args.raw) if args.raw else None,
    }


def _settings(
    args: argparse.Namespace, manifest: Manifest, options: dict[str, Any]
) -> dict[str, Any]:
    """What decides the outputs beside the recordings, as JSON holds it."""
    raw, sampler = options["raw"], manifest.sampler
    usual = {"steps": sampler.n_steps, "alpha": sampler.alpha, "phase_rounds": sampler.phase_rounds}
    plain = options | {
        **{name: options[name] if options[name] is not None else usual[name] for name in usual},
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


def _write_results(run: Run, out: Path) -> tuple[Path, int]:
    """Write the results; returns where, and how many outputs have no scores of DNSMOS."""
    path = out / RESULTS
    if places.is_remote(path):
        with path.open("w", encoding="utf-8") as stream:  # appears when it is closed
            return path, _write_lines(run, stream)
    with WholeFile(path, overwrite=True) as whole:
        with open(whole.path, "w", encoding="utf-8") as stream:
            n_unjudged = _write_lines(run, stream)
        whole.commit()
    return path, n_unjudged


def _write_lines(run: Run, stream: IO[str]) -> int:
    n_unjudged = 0
    for entry in run.results():
        stream.write(json.dumps(entry) + "\n")
        n_unjudged += entry["state"] == "done" and "dnsmos_ovrl" not in entry
    return n_unjudged


def _summary(
    args: argparse.Namespace, run: Run, n_jobs: int, results: Path, elapsed_s: float
) -> int:
    counts, opened = run.counts, run.opened
    failed = counts.failed + run.plan.n_refused
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
            "jobs": n_jobs,
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
