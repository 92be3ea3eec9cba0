"""Quality on a set of pairs, or of real recordings: ``python -m dvpd.evaluate MODEL --set DIR``.

MODEL is a checkpoint (.safetensors, run in PyTorch) or an engine folder (run by the runtime);
both go through the runtime's own front end, sampler and noise. The noisy input, the predictive
branch alone and any number of samplers are measured in one pass. Recordings without clean ones (a
folder of them instead of noisy/ and clean/) are judged by levels and DNSMOS. The parts are in
``dvpd.quality``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .quality.metrics import MEASURES, Meter, choose_metrics
from .quality.models import (
    SharedBackend,
    System,
    enhance_systems,
    open_model,
    sampler_grid,
    torch_enhancer,
)
from .quality.page import check_plots, render_page
from .quality.pairs import PairFile, find_pairs, read_pair, spread_sample
from .quality.report import (
    FORMAT,
    REPORT_FILES,
    check_folder,
    compare,
    csv_text,
    json_text,
    load_baseline,
    primary_system,
    set_sha256,
    summarise_records,
    versions,
    write_folder,
)
from .quality.run import Task, measure_pair, measure_set
from .quality.tables import families, markdown, plain, ranked
from .runtime import command
from .runtime.backends.choose import BACKENDS, ON_REQUEST, cpu_quota
from .runtime.enhancer import Enhancer
from .runtime.errors import InputError, UsageError
from .runtime.files import sha256_file, write_whole
from .runtime.noise import check_seed
from .runtime.progress import Progress as Bar

__all__ = [
    "PairFile",
    "SharedBackend",
    "System",
    "Task",
    "build_parser",
    "enhance_systems",
    "evaluate_pairs",
    "find_pairs",
    "main",
    "measure_set",
    "open_model",
    "quick_evaluation",
    "read_pair",
    "sampler_grid",
    "summarise_records",
    "torch_enhancer",
]


def evaluate_pairs(
    enhancer: Enhancer,
    pairs: Sequence[PairFile],
    *,
    steps: int = 3,
    seed: int = 0,
    metrics: Sequence[str] = ("pesq", "estoi", "si_sdr"),
) -> list[dict[str, Any]]:
    """Enhance and measure pairs with a model in this process; one record a pair, in order.

    Args:
        enhancer: From ``open_model`` or ``torch_enhancer``.
        pairs: What to measure.
        steps: Calls of the score network; 0 leaves the full sampler out.
        seed: Seed of the sampler's noise.
        metrics: Names out of ``METRICS``.

    Raises:
        DvpdError: A file cannot be read, or the model fails.
    """
    systems = sampler_grid(enhancer.manifest, steps=(steps,))
    meter = Meter(metrics)
    return [measure_pair(enhancer, meter, pair, systems, seed) for pair in pairs]


def quick_evaluation(folder: str | Path, n_files: int) -> Callable[[Any, Any], dict[str, float]]:
    """A dev evaluation for the trainer: PESQ and SI-SDR on a few evenly spaced pairs.

    Args:
        folder: A test set.
        n_files: How many pairs.

    Returns:
        (model, config) -> figures; "score" is the PESQ that selects the best checkpoint: of the
        full sampler (of one step, if the config has none) where the score branch is trained, else of
        the predictive branch.

    Raises:
        InputError: The folder is not a test set.
    """
    chosen = spread_sample(find_pairs(folder), max(n_files, 1))

    def run(model: Any, config: Any) -> dict[str, float]:
        device = str(next(model.parameters()).device)
        steps = 0 if config.train.branches == "predictive" else config.sampler.score_steps
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


def _numbers(kind: type, what: str) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected {what}, several separated by commas"
            ) from None

    return parse


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="dvpd.evaluate",
        description="Measure speech quality on pairs of noisy and clean recordings, or on real "
        "recordings without clean ones: the noisy input, the predictive branch alone and the full "
        "sampler. Exits with 1 when a file failed.",
    )
    parser.add_argument("model", help="checkpoint (.safetensors) or engine folder")
    parser.add_argument(
        "--set",
        required=True,
        dest="folder",
        help="folder with noisy/ and clean/, or with recordings that have no clean side",
    )
    parser.add_argument("--limit", type=int, default=0, help="only so many pairs, evenly spaced")

    out = parser.add_argument_group("what is written")
    out.add_argument("--out", metavar="DIR", help="report folder: JSON, CSV, Markdown, HTML page")
    out.add_argument("--json", metavar="FILE", help="all figures in one file")
    out.add_argument(
        "--worst", type=int, default=5, metavar="N", help="best and worst files to show (5)"
    )
    out.add_argument(
        "--baseline", metavar="FILE", help="report.json of an earlier run, to compare with"
    )

    what = parser.add_argument_group("measures")
    what.add_argument(
        "--metrics",
        type=_names,
        metavar="A,B",
        help=f"out of {', '.join(MEASURES)}; dnsmos for its four, pauses for all about pauses and "
        "levels (default: PESQ, ESTOI, SI-SDR, CSIG, CBAK, COVL, pauses, and what models are given "
        "for; without clean recordings what needs none)",
    )
    what.add_argument("--dnsmos", metavar="DIR", help="folder of sig_bak_ovr.onnx, model_v8.onnx")
    what.add_argument(
        "--wv-mos", metavar="FILE", help="WV-MOS as ONNX or TorchScript: [1, L] at 16 kHz to score"
    )

    grid = parser.add_argument_group(
        "samplers", "several values separated by commas are all measured, in every combination"
    )
    grid.add_argument(
        "--steps",
        type=_numbers(int, "whole numbers"),
        default=(),
        metavar="N",
        help="score calls; 0: predictive alone (default: the model's, 1 where that is 0)",
    )
    grid.add_argument(
        "--alpha",
        type=_numbers(float, "numbers in [0, 1]"),
        default=(),
        metavar="A",
        help="weight of the predictive magnitude; several share the sampler's work",
    )
    grid.add_argument(
        "--t-rs",
        type=_numbers(float, "numbers in (0, 1)"),
        default=(),
        metavar="T",
        help="start time of the sampler",
    )
    grid.add_argument(
        "--tlb",
        type=_names,
        default=(),
        metavar="PRESET",
        help="besides none: severe, moderate, mild, or all (default: off)",
    )
    grid.add_argument("--seed", type=int, default=0, help="seed of the sampler's noise")

    how = parser.add_argument_group("how it runs")
    how.add_argument("--jobs", type=int, metavar="N", help="processes (default: one for each CPU)")
    how.add_argument("--threads", type=int, default=1, help="threads of each process's model (1)")
    how.add_argument(
        "--backend",
        default="auto",
        help=f"auto or {', '.join((*BACKENDS, *ON_REQUEST))} (engine folders)",
    )
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _measure(
    task: Task, pairs: Sequence[PairFile], jobs: int
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    with Bar("measuring") as bar:

        def show(done: int, total: int, failed: int) -> None:
            bar(done / total, f"{done} of {total}" + (f", {failed} failed" if failed else ""))

        return measure_set(task, pairs, jobs, show)


def _run(args: argparse.Namespace) -> int:
    # What can be refused is refused before time is spent.
    pairs = spread_sample(find_pairs(args.folder, alone=True), args.limit)
    reference = pairs[0].clean is not None
    with command.usage():
        metrics = choose_metrics(
            args.metrics,
            dnsmos=args.dnsmos is not None,
            wv_mos=args.wv_mos is not None,
            reference=reference,
        )
        check_seed(args.seed)
    for name in ("worst", "limit"):
        if getattr(args, name) < 0:
            raise UsageError(f"{name} is {getattr(args, name)}; expected 0 or more")
    jobs = cpu_quota() if args.jobs is None else args.jobs
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}; expected at least 1")
    baseline = load_baseline(args.baseline) if args.baseline else None
    if args.out:
        check_plots()
        check_folder(args.out)
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise InputError(f"{Path(args.json).parent} is not a folder; create it first")
    Meter(metrics, args.dnsmos, args.wv_mos, reference)
    task = Task(
        model=args.model,
        backend=args.backend,
        device=args.device,
        threads=args.threads,
        seed=args.seed,
        metrics=metrics,
        dnsmos=args.dnsmos,
        wv_mos=args.wv_mos,
        reference=reference,
    )
    with task.open() as enhancer:
        manifest, backend = enhancer.manifest, enhancer.backend.name
        systems = sampler_grid(
            manifest, steps=args.steps, alphas=args.alpha, tlbs=args.tlb, t_rs=args.t_rs
        )
    task = Task(**{**vars(task), "systems": systems})
    records, failures = _measure(task, pairs, jobs)
    for failure in failures:
        command.say(f"failed: {failure['name']}: {failure['error']}")
    if not records:
        raise InputError(f"none of the {len(pairs)} pairs could be measured; nothing was written")
    report: dict[str, Any] = {
        "format": FORMAT,
        "model": Path(args.model).name,
        "checkpoint_sha256": (
            sha256_file(Path(args.model))
            if Path(args.model).is_file()
            else manifest.checkpoint_sha256
        ),
        "precision": manifest.precision,
        "backend": backend,
        "set": Path(args.folder).absolute().name,
        "reference": reference,
        "set_sha256": set_sha256(records),
        "n_files": len(records),
        "seed": args.seed,
        "primary": primary_system(systems, manifest),
        "settings": {s.name: {k: v for k, v in asdict(s).items() if k != "name"} for s in systems},
        "versions": versions(),
        **summarise_records(records),
        "failures": failures,
        "files": records,
    }
    if baseline is not None:
        report["baseline"] = compare(report, baseline)
    sys.stdout.write(plain(report) + "\n")
    if args.json:
        write_whole(args.json, json_text(report))
    if args.out:
        page = render_page(report, _worst_waveforms(task, pairs, report, args.worst), args.worst)
        texts = (json_text(report), csv_text(report), markdown(report, args.worst), page)
        write_folder(args.out, dict(zip(REPORT_FILES, texts, strict=True)))
    return command.EXIT_FAILED if failures else command.EXIT_DONE


def _worst_waveforms(
    task: Task, pairs: Sequence[PairFile], report: dict[str, Any], count: int
) -> dict[str, dict[str, Any]]:
    """Clean, noisy and enhanced waveforms of the files that gained least, by each kind of measure."""
    by_name = {pair.name: pair for pair in pairs}
    names = [
        record["name"]
        for _, metrics in families(report)
        for _, record in ranked(report, metrics[0])[1][:count]
    ]
    wanted = [by_name[name] for name in dict.fromkeys(names)]
    shown = tuple(s for s in task.systems if s.name == report["primary"])
    result = {}
    with task.open() as enhancer:
        for pair in wanted:
            noisy, clean = read_pair(pair)
            outputs = enhance_systems(enhancer, noisy, shown, task.seed)
            result[pair.name] = {**({} if clean is None else {"clean": clean}), **outputs}
    return result


if __name__ == "__main__":
    command.leave(main())
