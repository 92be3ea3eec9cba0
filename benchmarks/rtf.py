"""Speed, memory and energy of every engine, backend and precision on this machine.

    python benchmarks/rtf.py                                  # all engines and installed backends
    python benchmarks/rtf.py engines/dvpd-tiny --backend ort --json a.json --html a.html
    python benchmarks/rtf.py --compare a.json b.json          # what is significantly faster
    dvpd benchmark --report report.json                       # one file to send back; see board.py
    python benchmarks/rtf.py engines/dvpd-tiny --assert "rtf<0.5" --assert "p99_ms<900 @ steps=3"

An engine takes about a minute (``--seconds``): where that is too short, every case is still run, in
fewer rounds, and the report says so. Cases (engine x backend x window x batch x steps) are timed interleaved, in a new order every
round, after a warm-up and a pause in which idle threads of other engines stop spinning. What is
timed is one window from waveform to waveform, by the runtime's own front end and sampler. A case
that fails is a row that says why. Also ``dvpd benchmark``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import machine, meters
from dvpd.benchmarks.common.machine import now, versions
from dvpd.benchmarks.common.timing import (
    SETTLE_S,
    WARM_UP_ROUNDS,
    Case,
    Loaded,
    Row,
    audio_s_of,
    enhance_windows,
    frames_of,
    load,
    make_audio,
    measure_energy,
    time_interleaved,
    variants,
)
from dvpd.runtime import command
from dvpd.runtime.backends.choose import BACKENDS, ON_REQUEST, cpu_quota, installed
from dvpd.runtime.engines import find_engine, find_window_engines
from dvpd.runtime.errors import DvpdError, InputError, UsageError, one_line
from dvpd.runtime.files import sha256_file, write_whole
from dvpd.runtime.progress import show_status

SCHEMA = "dvpd-rtf-1"
PERCENTILES = (50, 90, 95, 99)
COLD_WINDOW_S = 2.048
BUDGET_S = 60.0  # of an engine, on all its backends
STEPS = (1, 0, 3, 2)  # the first, which runs both graphs, is the base case of every engine
COLD_SHARE = 0.25  # of the budget: for fresh processes
TIMED = (
    "one window of audio at 16 kHz, waveform in memory to waveform in memory: STFT and "
    "compression, the predictive call, the score calls, noise and fusion, inverse STFT; no file, "
    "no resampling, no window overlap"
)

Say = Callable[[str], None]


def summarise(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    manifest = row.loaded.manifest
    case = asdict(row.case)
    result: dict[str, Any] = {
        **case,
        "model": manifest.name if manifest else row.loaded.name,
        "precision": manifest.precision if manifest else None,
        "window_s": None,
        "status": "ok" if row.error is None else "failed",
        "error": row.error,
    }
    if manifest is not None and row.case.frames:
        result["window_s"] = round(audio_s_of(row) / row.case.batch, 4)
    if row.error is not None or not row.timings:
        return result
    totals = np.array([t.total for t in row.timings]) * 1e3
    audio_s = audio_s_of(row)
    p50 = float(np.percentile(totals, 50))

    def median_ms(values: Sequence[float]) -> float:
        return 1e3 * statistics.median(values)

    return {
        **result,
        "runs": len(totals),
        "samples_ms": [round(float(x), 4) for x in totals],
        "latency_ms": {
            **{f"p{p}": float(np.percentile(totals, p)) for p in PERCENTILES},
            "max": float(totals.max()),
            "mean": float(totals.mean()),
        },
        "rtf": p50 / 1e3 / audio_s,
        "rtf_p95": float(np.percentile(totals, 95)) / 1e3 / audio_s,
        "audio_s_per_s": audio_s / (p50 / 1e3),
        "stages_ms": {
            "stft": median_ms([t.stft for t in row.timings]),
            "predictive": median_ms([t.predictive for t in row.timings]),
            "score": [
                median_ms(values) for values in zip(*(t.score for t in row.timings), strict=True)
            ],
            "sampler": (
                None
                if row.timings[0].sampler is None
                else median_ms([t.sampler or 0.0 for t in row.timings])
            ),
            "fusion": median_ms([t.fusion for t in row.timings]),
            "istft": median_ms([t.istft for t in row.timings]),
        },
        "energy": row.energy,
    }


# ------------------------------------------------------------------------------------------------
# Fresh processes


def run_cold(path: Path, backend: str, device: str, threads: int, started: float) -> dict[str, Any]:
    """The child of ``measure_cold``: load, enhance one window, say what it took.

    Args:
        path: Engine folder or checkpoint.
        backend: Backend name.
        device: Device.
        threads: CPU threads.
        started: ``time.time()`` of the parent just before it started this process.

    Raises:
        BackendError: It cannot be opened or run.
    """
    from dvpd.runtime.errors import BackendError

    imported = time.time()
    loaded = load(path, backend, device, threads)
    if loaded.backend is None or loaded.manifest is None:
        raise BackendError(loaded.error or "not opened")
    opened = time.time()
    wavs = make_audio(loaded.manifest, frames_of(COLD_WINDOW_S, loaded.manifest), 1)
    begin = time.time()
    enhance_windows(loaded.backend, loaded.manifest, wavs, loaded.manifest.sampler.n_steps)
    end = time.time()
    return {
        "steps": loaded.manifest.sampler.n_steps,
        "start_s": imported - started,
        "load_s": opened - imported,
        "first_window_s": end - begin,
        "cold_start_s": end - started - (begin - opened),
        "peak_rss_mib": machine.peak_rss_mib(),
        "gpu_mib": meters.gpu_memory_mib(os.getpid()),
    }


def measure_cold(
    items: Sequence[Loaded],
    threads: int,
    repeats: int,
    progress: Say,
    budget_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Cold start, load time and memory of each item in fresh processes, interleaved; medians.

    Args:
        items: What is opened.
        threads: CPU threads.
        repeats: Processes of each.
        progress: Receives what is being done.
        budget_s: No round but the first is begun that would end after so many seconds.
        clock: Seconds; a test's own.
    """
    begin = clock()
    results: list[list[dict[str, Any]]] = [[] for _ in items]
    errors: list[str | None] = [item.error for item in items]
    for repeat in range(repeats):
        # as long as the mean round before it
        if repeat and (clock() - begin) * (repeat + 1) / repeat > budget_s:
            break
        for i, item in enumerate(items):
            if errors[i] is not None:
                continue
            progress(f"fresh processes, round {repeat + 1} of {repeats}: {' '.join(item.key)}")
            command = [
                sys.executable, str(Path(__file__).resolve()), str(item.path), "--backend",
                item.backend_name, "--device", item.device, "--threads", str(threads), "--cold",
            ]  # fmt: skip
            try:
                done = subprocess.run(
                    [*command, repr(time.time())], capture_output=True, text=True, timeout=600,
                    check=False,
                )  # fmt: skip
                answer = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
            except (subprocess.TimeoutExpired, ValueError) as error:
                answer, done = {"error": one_line(error)}, None
            if "cold_start_s" in answer:
                results[i].append(answer)
                continue
            text = done.stderr.strip().splitlines()[-1:] if done is not None else []
            code = f"exit code {done.returncode}" if done is not None else "no answer"
            errors[i] = answer.get("error") or (text[0] if text else code)
    rows = []
    for item, found, problem in zip(items, results, errors, strict=True):
        row: dict[str, Any] = {
            "engine": item.name,
            "backend": item.backend_name,
            "device": item.device,
            "status": "ok" if problem is None else "failed",
            "error": problem,
        }
        if problem is None and found:
            row |= {"processes": len(found), "steps": found[0].pop("steps")}
            for key in found[0]:
                values = [x[key] for x in found if x[key] is not None]
                row[key] = statistics.median(values) if values else None
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------------
# The whole


def make_cases(
    items: Sequence[Loaded],
    windows_s: Sequence[float],
    batches: Sequence[int],
    steps: Sequence[int],
    grid: bool,
) -> list[Row]:
    """Rows to time: each axis alone around its first value, or the whole grid.

    An item that could not be opened is one row that says why.
    """
    plans: list[tuple[float, int, int]] = []
    for window in windows_s:
        for batch in batches:
            for n in steps:
                away = (window != windows_s[0]) + (batch != batches[0]) + (n != steps[0])
                if grid or away <= 1:
                    plans.append((window, batch, n))
    rows = []
    for item in items:
        if item.manifest is None or item.error is not None:
            case = Case(*item.key, 0, batches[0], steps[0])
            rows.append(Row(case, item, error=item.error))
            continue
        for window, batch, n in plans:
            frames = frames_of(window, item.manifest)
            rows.append(Row(Case(*item.key, frames, batch, n), item))
    return rows


def network_costs(items: Sequence[Loaded], frames: int) -> tuple[dict[str, Any], str | None]:
    """Arithmetic and bytes of each engine's graphs for the roofline; or why there are none."""
    try:
        from dvpd.benchmarks.common.graph_costs import engine_costs
    except ImportError as error:
        return {}, str(error)
    table: dict[str, Any] = {}
    for item in items:
        if item.name in table or not item.path.is_dir() or item.error is not None:
            continue
        try:
            costs = engine_costs(item.path, frames)
        except DvpdError as error:
            return table, str(error)
        table[item.name] = {
            "frames": frames,
            **{
                graph: {
                    "macs": c.total_macs,
                    "operations": 2 * c.total_macs + sum(c.elementwise.values()),
                    "bytes_moved": sum(c.bytes_moved.values()),
                    "bytes_least": c.bytes_least,
                    "peak_activation_bytes": c.peak_activation_bytes,
                }
                for graph, c in costs.items()
            },
        }
    return table, None


def _hashes(item: Loaded) -> dict[str, str]:
    if item.path.is_file():
        return {"checkpoint": sha256_file(item.path)}
    return {} if item.manifest is None else {k: g.sha256 for k, g in item.manifest.graphs.items()}


def run(args: argparse.Namespace, say: Say = lambda _: None) -> dict[str, Any]:
    """Measure what the arguments ask for; the report as JSON.

    Args:
        args: From ``build_parser``.
        say: Receives what is being done.

    Raises:
        InputError: Nothing can be measured, or an argument is out of range.
    """
    threads = args.threads[0] if args.threads else cpu_quota()
    load_before = machine.load_average()
    paths = [Path(p) for p in args.engines] or find_window_engines()
    if not paths:
        raise InputError("no engine folder found: give one, or python export/to_onnx.py writes one")
    items, not_run = _open_all(paths, args.backend, args.device, threads, say)
    say("peak arithmetic and memory bandwidth")
    peak = machine.peak(threads)
    watch = machine.CpuWatch()
    rows = make_cases(items, args.windows, args.batch, args.steps or STEPS, args.grid)
    say(f"{len(rows)} cases")
    cold_share = COLD_SHARE if args.cold_runs else 0.0
    budget_s = args.seconds * len({item.name for item in items})
    time_interleaved(
        rows, min_runs=args.runs, min_seconds=args.case_seconds, watch=watch,
        budget_s=(1 - cold_share) * budget_s,
        progress=lambda done, total: say(f"timing: {done} of {total} cases have enough runs"),
    )  # fmt: skip
    warnings = watch.warnings()
    others = watch.others_share()
    found, absent = meters.find_meters()
    idle = measure_energy(rows, found)
    for meter in found:
        meter.close()
    for item in items:
        if item.backend is not None:
            item.backend.close()
    processes = []
    if args.cold_runs:
        processes = measure_cold(items, threads, args.cold_runs, say, cold_share * budget_s)
    warnings += cut_short(args, rows, processes)
    base = [r.case.frames for r in rows if r.error is None]
    costs, no_costs = network_costs(items, base[0]) if base else ({}, None)
    if no_costs:
        warnings.append(f"no roofline: {no_costs}")
    load_after = machine.load_average()
    usable = cpu_quota()
    if load_before and load_before[0] > 0.3 * usable:
        warnings.append(
            f"load average was {load_before[0]} on {usable} cores before the measurement began"
        )
    return {
        "schema": SCHEMA,
        "created": now(),
        "machine": machine.machine(),
        "protocol": _protocol(args, threads, items, watch, load_before, load_after, others),
        "peak": peak,
        "meters": {"found": [m.name for m in found], "absent": absent, "idle_watts": idle},
        "warnings": warnings,
        "not_run": not_run,
        "costs": costs,
        "rows": [summarise(row) for row in rows],
        "processes": processes,
    }


def cut_short(
    args: argparse.Namespace, rows: Sequence[Row], processes: Sequence[dict[str, Any]]
) -> list[str]:
    """What the budget left out, as warnings."""
    more = f"within {args.seconds:g} s an engine; a larger --seconds gives more"
    lines = []
    few = sorted(
        len(row.timings)
        for row in rows
        if row.error is None
        and (
            len(row.timings) < args.runs
            or sum(timing.total for timing in row.timings) < args.case_seconds
        )
    )
    if few:
        span = str(few[0]) if few[0] == few[-1] else f"{few[0]} to {few[-1]}"
        lines.append(
            f"fewer rounds: {len(few)} of {len(rows)} cases have {span} runs, not {args.runs} runs "
            f"and {args.case_seconds:g} s each, {more}; no case was left out"
        )
    fresh = [p["processes"] for p in processes if "processes" in p]
    if fresh and min(fresh) < args.cold_runs:
        lines.append(f"fewer fresh processes: {min(fresh)}, not {args.cold_runs}, {more}")
    return lines


def _protocol(
    args: argparse.Namespace,
    threads: int,
    items: Sequence[Loaded],
    watch: machine.CpuWatch,
    load_before: Any,
    load_after: Any,
    others: float | None,
) -> dict[str, Any]:
    """How it was measured: the block of a report that lets somebody measure it again."""
    return {
        "timed": TIMED,
        "threads": threads,
        "affinity": machine.affinity(),
        "governors": machine.governors(),
        "clocks_mhz": None if watch.clocks is None else list(watch.clocks),
        "nvpmodel": machine.nvpmodel(),
        "versions": versions(),
        "interleaved": True,
        "warm_up_rounds": WARM_UP_ROUNDS,
        "settle_s": SETTLE_S,
        "min_runs": args.runs,
        "min_seconds": args.case_seconds,
        "budget_s": None if math.isinf(args.seconds) else args.seconds,
        "cold_processes": args.cold_runs,
        "cold_window_s": COLD_WINDOW_S,
        "load_before": load_before,
        "load_after": load_after,
        "others_cpu_share": others,
        "git": machine.git_revision(Path(__file__).resolve().parent),
        "graphs": {item.name: _hashes(item) for item in items},
        "note": args.note,
    }


def _open_all(
    paths: Sequence[Path], backend: str, device: str | None, threads: int, say: Say
) -> tuple[list[Loaded], list[dict[str, str]]]:
    """Every engine on every backend; and the backends that are not installed, with what installs them."""
    names = list(BACKENDS) if backend == "all" else backend.split(",")
    known = BACKENDS | ON_REQUEST
    if unknown := sorted(set(names) - set(known)):
        raise InputError(f"backend is {unknown[0]!r}; expected all, or of {', '.join(known)}")
    not_run = [
        {"backend": name, "reason": f"not installed: pip install '{known[name][1]}'"}
        for name in names
        if name != "torch" and not installed(name)
    ]
    if backend != "all" and not_run:
        raise InputError(f"backend {not_run[0]['backend']}: {not_run[0]['reason']}")
    items = []
    for path in paths:
        if path.is_file():
            pairs = [("torch", device or "cpu")]
        else:
            pairs = [
                pair
                for name in names
                if name != "torch" and installed(name)
                for pair in variants(name, device)
            ]
        for pair in pairs:
            say(f"loading {path.name} on {' '.join(pair)}")
            items.append(load(path, *pair, threads))
    if not items:
        raise InputError(
            f"nothing to measure: no backend of {', '.join(names)} can run the engines given; "
            "torch runs checkpoints (.safetensors)"
        )
    return items, not_run


def _numbers(kind: Callable[[str], Any], low: float) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            values = []
        if not values or any(not low <= value < math.inf for value in values):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no comma-separated list of numbers from {low}"
            )
        return list(dict.fromkeys(values))

    return parse


def build_parser(prog: str = "rtf.py") -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Speed, memory and energy of engines on this machine; see the module's text "
        "for the protocol.",
    )
    parser.add_argument(
        "engines", nargs="*", metavar="ENGINE",
        help="engine folders, or checkpoints for torch (default: all under engines/)",
    )  # fmt: skip
    parser.add_argument("--backend", default="all", help="all, or names separated by commas")
    parser.add_argument("--device", help="one device only, such as cpu or cuda")
    parser.add_argument(
        "--threads", type=_numbers(int, 1), metavar="N",
        help="CPU threads (default: usable cores); with --stream a list",
    )  # fmt: skip
    parser.add_argument(
        "--windows", type=_numbers(float, 0.25), default=[2.048, 0.512, 1.024, 4.096, 8.192],
        help="seconds of audio, the first is the base case (default: 2.048,0.512,1.024,4.096,8.192)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=_numbers(int, 1), default=[1, 2, 4],
        help="windows a call, the first is the base case (default: 1,2,4)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=_numbers(int, 0),
        help="score calls, the first is the base case "
        f"(default: {','.join(map(str, STEPS))}; with --stream the model's)",
    )  # fmt: skip
    parser.add_argument(
        "--grid", action="store_true",
        help="every combination, not each axis alone around the base case",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=command.whole(1), default=20, help="runs of each case (default: 20)"
    )
    parser.add_argument(
        "--case-seconds", type=command.number(), default=1.0, metavar="S",
        help="seconds of each case at least (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=command.number(most=math.inf), default=BUDGET_S, metavar="S",
        help="seconds of an engine at most, on all its backends; where they do not suffice there are "
        f"fewer rounds, not fewer cases (default: {BUDGET_S:g}; inf: no limit)",
    )  # fmt: skip
    parser.add_argument(
        "--cold-runs", type=command.whole(0), default=3, metavar="N",
        help="fresh processes for cold start and memory; 0 for none (default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="OUT",
        help="write one file to send back: this, dvpd doctor, plans and parity, nothing private; "
        "a folder gets report.json",
    )  # fmt: skip
    parser.add_argument("--note", default="", help="a sentence for the report, such as the cooling")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the whole report")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write tables")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write one file with plots")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"),
        help="measure nothing: say what differs significantly between two JSON reports",
    )  # fmt: skip
    parser.add_argument(
        "--assert", dest="conditions", action="append", default=[], metavar="CONDITION",
        help='exit with 1 unless every row meets it: "rtf<0.5", "p99_ms<900 @ backend=ort steps=3"',
    )  # fmt: skip
    parser.add_argument(
        "--from-json", type=Path, metavar="IN", help="measure nothing: render or check this report"
    )
    parser.add_argument("--cold", type=float, help=argparse.SUPPRESS)
    _add_stream_options(parser)
    return parser


def _add_stream_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "live mode", "one stream block by block; goes with --backend, --device, --threads, --steps, "
        "--grid, --json, --markdown, --assert and --from-json",
    )  # fmt: skip
    group.add_argument("--stream", action="store_true", help="measure live mode instead of windows")
    group.add_argument(
        "--block-ms", type=_numbers(float, 1), default=[10.0, 32.0, 100.0], metavar="MS",
        help="of a call, the first is the base case (default: 10,32,100)",
    )  # fmt: skip
    group.add_argument(
        "--audio-seconds", type=command.number(), default=600.0, metavar="S",
        help="audio of each case (default: 600)",
    )  # fmt: skip
    group.add_argument(
        "--rate", type=command.whole(1), default=16000, metavar="HZ", help="default: 16000"
    )
    group.add_argument(
        "--delay-rates", type=_numbers(int, 1000), default=[8000, 16000, 44100, 48000],
        metavar="HZ", help="where the delay is measured (default: 8000,16000,44100,48000)",
    )  # fmt: skip
    group.add_argument(
        "--real-time", action="store_true", help="wait for each block, as a microphone does"
    )


def main(argv: Sequence[str] | None = None, prog: str = "rtf.py") -> int:
    """Run the command line; returns the exit code: 0, or 1 for a failure or a missed condition."""
    return command.run(build_parser(prog), argv, _main)


def _cold(args: argparse.Namespace) -> int:
    """What a fresh process answers to the one that started it: JSON, whatever happens."""
    try:
        print(json.dumps(
            run_cold(Path(args.engines[0]), args.backend, args.device, args.threads[0], args.cold)
        ))  # fmt: skip
    except (DvpdError, OSError) as error:
        print(json.dumps({"error": str(error)}))
        return command.EXIT_FAILED
    return command.EXIT_DONE


def _engine(text: str) -> Path:
    """An engine folder or a checkpoint.

    Raises:
        InputError: There is none of that name.
    """
    if (path := Path(text)).is_file():
        return path
    path = find_engine(text)
    if not path.exists():
        raise InputError(f"{text}: not there; give an engine folder, or a checkpoint for torch")
    return path


def _main(args: argparse.Namespace) -> int:
    from dvpd.benchmarks.common import comparison, report, report_html

    if args.cold is not None:
        return _cold(args)
    if args.compare and not args.stream:
        a, b = (report.read(path) for path in args.compare)
        print(comparison.render_comparison(comparison.compare(a, b), *map(str, args.compare)))
        return 0
    args.engines = [_engine(text) for text in args.engines]
    if args.report and args.from_json:
        raise UsageError("--report measures; it cannot be made from --from-json")
    for path in (args.json, args.markdown, args.html, args.report):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist")
    for path in (args.json, args.markdown, args.html):
        if path is not None and path.is_dir():  # before minutes are spent
            raise InputError(f"{path}: is a folder; give a file name")
    if args.stream:
        from dvpd.benchmarks import streaming

        return streaming.main(args)
    with command.usage():
        conditions = [comparison.parse_condition(text) for text in args.conditions]
    if args.from_json:
        result = report.read(args.from_json)
    else:
        result = run(args, show_status)
        report.validate(result)
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if args.markdown:
        write_whole(args.markdown, report.to_markdown(result))
    if args.html:
        write_whole(args.html, report_html.to_html(result))
    report.show(result)
    if args.report:
        from dvpd.benchmarks import board

        show_status("parity with the CPU's waveform")
        table = board.make(result, args.engines or find_window_engines())
        print(f"\n{board.write(args.report, table)}: send this file; nothing in it is private")
    missed = [line for condition in conditions for line in comparison.check(condition, result)]
    for line in missed:
        command.say(f"not met: {line}")
    every_failed = all(row["status"] == "failed" for row in result["rows"])
    return 1 if missed or every_failed else 0


if __name__ == "__main__":
    command.leave(main())
