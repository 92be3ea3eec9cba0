"""Where the time of the two graphs goes, on ONNX Runtime and OpenVINO, on this CPU.

    python benchmarks/profile_graphs.py engines/dvpd-tiny --threads 2 --frames 256

The engines are timed interleaved in one run: predictive and score calls of every engine in turn,
medians over the rounds; at batch 1 the graphs for one recording as well as those with a dynamic
batch. The result is seconds of work per second of audio for 1 predictive and 3 score calls. Then
each graph is profiled by operator.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.runtime import command
from dvpd.runtime.backends.openvino import shared_core
from dvpd.runtime.errors import InputError, UsageError
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import SINGLE
from dvpd.runtime.spec import N_FREQS, SignalSpec

SCORE_CALLS = 3
ENGINES = ("onnxruntime", "openvino")
WARM_UP_ROUNDS = 3
SETTLE_S = 0.05  # idle threads of the engine before spin for a while and would share the cores

Feeds = dict[str, NDArray[Any]]
Call = Callable[[], Any]


def _ort_session(path: Path, threads: int, profile_prefix: str | None = None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # as the runtime does
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _ov_request(path: Path, threads: int, profile: bool = False) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": profile,
    }
    return shared_core().compile_model(str(path), "CPU", settings).create_infer_request()


def make_feeds(folder: Path, n_frames: int, batch: int, threads: int) -> tuple[Feeds, Feeds]:
    """Random inputs of both graphs; the features are the predictive graph's own."""
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((batch, 3, n_frames, N_FREQS), dtype=np.float32) * 0.1
    session = _ort_session(folder / "predictive.onnx", threads)
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"noisy": noisy}), strict=True))
    score = {k: v for k, v in outputs.items() if k.startswith("feat_")}
    score["xt"] = np.abs(noisy[:, 2:3])
    score["t"] = np.full(batch, 0.12, np.float32)
    score["tlb_skip"] = score["tlb_backbone"] = np.ones((2, 2), np.float32)
    return {"noisy": noisy}, score


def graph_files(folder: Path, batch: int) -> dict[str, tuple[Path, Path]]:
    """An engine's predictive and score graph with a dynamic batch, and at batch 1 the single ones."""
    kinds = {"dynamic": "", "single": SINGLE} if batch == 1 else {"dynamic": ""}
    found = {
        k: (folder / f"predictive{e}.onnx", folder / f"score{e}.onnx") for k, e in kinds.items()
    }
    return {kind: paths for kind, paths in found.items() if paths[0].is_file()}


def _calls(
    engine: str, paths: Sequence[Path], feeds: tuple[Feeds, Feeds], threads: int
) -> list[Call]:
    calls: list[Call] = []
    for path, feed in zip(paths, feeds, strict=True):
        if engine == "onnxruntime":
            session = _ort_session(path, threads)
            calls.append(partial(session.run, None, feed))
        else:
            request = _ov_request(path, threads)
            calls.append(partial(request.infer, feed, share_inputs=True))
    return calls


def time_engines(
    engines: Sequence[str],
    folders: Sequence[Path],
    n_frames: int,
    batch: int,
    threads: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Median milliseconds of every engine, folder and kind of graphs, interleaved.

    A row's ratios are medians over the rounds of its time for 1 + 3 and 1 + 1 calls and that of the
    dynamic graphs in the same engine and round.
    """
    rows: list[tuple[str, str, str, list[Call]]] = []
    for folder in folders:
        feeds = make_feeds(folder, n_frames, batch, threads)
        for engine in engines:
            for kind, paths in graph_files(folder, batch).items():
                rows.append((engine, folder.name, kind, _calls(engine, paths, feeds, threads)))
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in rows]
    for i in range(WARM_UP_ROUNDS + rounds):
        for (*_, calls), kept in zip(rows, times, strict=True):
            time.sleep(SETTLE_S)
            for call, values in zip(calls, kept, strict=True):
                start = time.perf_counter()
                call()
                if i >= WARM_UP_ROUNDS:
                    values.append(1e3 * (time.perf_counter() - start))
    audio_s = batch * n_frames / SignalSpec().frame_rate_hz
    out = []
    first: tuple[list[float], list[float]] = ([], [])
    for (engine, model, kind, _), (predictive, score) in zip(rows, times, strict=True):
        if kind == "dynamic":
            first = predictive, score
        p, s = statistics.median(predictive), statistics.median(score)
        total = 1e-3 * (p + SCORE_CALLS * s) / audio_s
        out.append(
            {
                "engine": engine,
                "model": model,
                "graphs": kind,
                "predictive_ms": round(p, 2),
                "score_ms": round(s, 2),
                "seconds_per_audio_second": round(total, 4),
                "ratios": [
                    round(_ratio((predictive, score), first, calls), 3)
                    for calls in (SCORE_CALLS, 1)
                ],
            }
        )
    return out


def _ratio(
    times: tuple[list[float], list[float]], first: tuple[list[float], list[float]], calls: int
) -> float:
    """Median over the rounds of two rows' times for 1 predictive and some score calls."""
    mine, other = ([p + calls * s for p, s in zip(*row, strict=True)] for row in (times, first))
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))


def profile_ort(path: Path, feed: Feeds, threads: int, runs: int = 8) -> dict[str, float]:
    """Milliseconds a run by operator type, from ONNX Runtime's own profile."""
    with tempfile.TemporaryDirectory() as folder:
        session = _ort_session(path, threads, str(Path(folder) / "profile"))
        for _ in range(runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    total: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            total[event["args"]["op_name"]] += event["dur"] / 1e3 / runs
    return dict(total.most_common())


def profile_openvino(path: Path, feed: Feeds, threads: int, runs: int = 8) -> dict[str, float]:
    """Milliseconds a run by operator type, from OpenVINO's performance counters."""
    request = _ov_request(path, threads, profile=True)
    request.infer(feed)
    total: Counter[str] = Counter()
    for _ in range(runs):
        request.infer(feed)
        for item in request.get_profiling_info():
            total[item.node_type] += item.real_time.total_seconds() * 1e3 / runs
    return {k: v for k, v in total.most_common() if v > 0}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="profile_graphs.py", description=__doc__.split("\n")[0])
    parser.add_argument("engines", nargs="+", type=Path, help="folders with the exported graphs")
    parser.add_argument("--frames", type=int, default=256, help="T, a multiple of 4 (256: 2.048 s)")
    parser.add_argument("--batch", type=command.whole(1), default=1)
    parser.add_argument("--threads", type=command.whole(1), default=2)
    parser.add_argument(
        "--rounds", type=command.whole(1), default=15, help="timed rounds after the warm-up"
    )
    parser.add_argument(
        "--top", type=command.whole(0), default=12, help="operators shown; 0 skips profiling"
    )
    parser.add_argument("--json", type=Path, help="write everything here too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _show)


def _show(args: argparse.Namespace) -> int:
    report = run(args)
    print(to_markdown(report, args.top))
    if args.json:
        write_whole(args.json, json.dumps(report, indent=1) + "\n")
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the arguments ask for."""
    if args.frames < 32 or args.frames % 4:
        raise UsageError(f"--frames is {args.frames}; expected a multiple of 4, at least 32")
    for folder in args.engines:
        for name in ("predictive.onnx", "score.onnx"):
            if not (folder / name).is_file():
                raise InputError(f"{folder / name}: not there; export it with export/to_onnx.py")
    import onnx
    import onnxruntime
    import openvino

    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {platform.processor() or platform.platform()}",
        "versions": {"onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__},
        "protocol": {
            "frames": args.frames,
            "batch": args.batch,
            "threads": args.threads,
            "rounds": args.rounds,
            "calls": f"1 predictive + {SCORE_CALLS} score, network calls alone, float32",
            "statistic": "median, engines interleaved",
        },
        "times": time_engines(
            ENGINES, args.engines, args.frames, args.batch, args.threads, args.rounds
        ),
        "operators": [],
    }
    for folder in args.engines if args.top else ():
        feeds = make_feeds(folder, args.frames, args.batch, args.threads)
        files = graph_files(folder, args.batch).values()
        for path, feed in (pair for paths in files for pair in zip(paths, feeds, strict=True)):
            report["operators"].append(
                {
                    "model": folder.name,
                    "graph": path.stem,
                    "nodes": len(onnx.load(path).graph.node),
                    "onnxruntime": profile_ort(path, feed, args.threads),
                    "openvino": profile_openvino(path, feed, args.threads),
                }
            )
    return report


def to_markdown(report: dict[str, Any], top: int) -> str:
    """The report as Markdown tables."""
    p = report["protocol"]
    lines = [
        f"{report['machine']}; {report['versions']}; T = {p['frames']}, B = {p['batch']}, "
        f"{p['threads']} threads; {p['calls']}; {p['statistic']} of {p['rounds']} rounds.",
        "",
        "| model | engine | graphs | predictive, ms | score, ms | s per s of audio "
        "| against dynamic, 1 + 3 calls | 1 + 1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["times"]:
        lines.append(
            f"| {row['model']} | {row['engine']} | {row['graphs']} | {row['predictive_ms']:.1f} "
            f"| {row['score_ms']:.1f} | {row['seconds_per_audio_second']:.3f} "
            f"| {' | '.join(f'{ratio:.2f}' for ratio in row['ratios'])} |"
        )
    for item in report["operators"]:
        lines += ["", f"{item['model']}, {item['graph']} graph, {item['nodes']} nodes, ms a call:"]
        for engine in ENGINES:
            total = sum(item[engine].values())
            shown = ", ".join(f"{k} {v:.1f}" for k, v in list(item[engine].items())[:top])
            lines.append(f"- {engine}: {shown}; all {total:.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    command.leave(main())
