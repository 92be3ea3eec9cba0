"""Speed, memory and energy of every engine, backend and precision on this machine.

    python benchmarks/rtf.py                                  # all engines and installed backends
    python benchmarks/rtf.py engines/dvpd-tiny --backend ort --json a.json --html a.html
    python benchmarks/rtf.py --compare a.json b.json          # what is significantly faster
    dvpd benchmark --report report.json                       # one file to send back; see board.py
    python benchmarks/rtf.py engines/dvpd-tiny --assert "rtf<0.5" --assert "p99_ms<900 @ steps=3"

Cases (engine x backend x window x batch x steps) are timed interleaved, in a new order every
round, after a warm-up and a pause in which idle threads of other engines stop spinning. What is
timed is one window from waveform to waveform, by the runtime's own front end and sampler. A case
that fails is a row that says why. Also ``dvpd benchmark``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import machine, meters
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.backends.base import Backend
from dvpd.runtime.backends.choose import BACKENDS, cpu_quota, installed, open_backend
from dvpd.runtime.engines import find_engines
from dvpd.runtime.errors import DvpdError, InputError
from dvpd.runtime.files import sha256_file, write_whole
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.noise import frame_noise
from dvpd.runtime.schedule import sampler_steps
from dvpd.runtime.spec import FRAME_MULTIPLE, MIN_FRAMES
from dvpd.runtime.tensorrt.gpus import cuda_device_count
from dvpd.runtime.window import decode, denoise, encode

SCHEMA = "dvpd-rtf-1"
SETTLE_S = 0.05  # idle threads of the engine before spin for a while and would share the cores
WARM_UP_ROUNDS = 2
PERCENTILES = (50, 90, 95, 99)
COLD_WINDOW_S = 2.048
ENERGY_S = 1.0  # a case runs at least so long under the meters
PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13", "torch",
)  # fmt: skip
TIMED = (
    "one window of audio at 16 kHz, waveform in memory to waveform in memory: STFT and "
    "compression, the predictive call, the score calls, noise and fusion, inverse STFT; no file, "
    "no resampling, no window overlap"
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """What is timed as one row.

    Attributes:
        engine: Name of the engine folder or checkpoint.
        backend: Backend name; "torch" for a checkpoint.
        device: Device asked for.
        frames: T.
        batch: Windows in one call.
        steps: Calls of the score network.
    """

    engine: str
    backend: str
    device: str
    frames: int
    batch: int
    steps: int


@dataclass
class Loaded:
    """An open backend, or why it is not."""

    path: Path
    backend_name: str
    device: str
    backend: Backend | None = None
    manifest: Manifest | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """Name in the report."""
        return self.path.name if self.path.is_dir() else self.path.stem

    @property
    def key(self) -> tuple[str, str, str]:
        """Engine, backend and device."""
        return self.name, self.backend_name, self.device


class StageClock:
    """A backend that notes how long each call took (s).

    One that runs the whole sampler on its device (one CUDA graph) is let do so.
    """

    def __init__(self, inner: Backend) -> None:
        """Wrap ``inner``."""
        self.inner = inner
        self.name, self.device = inner.name, inner.device
        self.predictive_s = 0.0
        self.score_s: list[float] = []
        self.sampler_s: float | None = None
        if hasattr(inner, "run_sampler"):
            self.run_sampler = self._run_sampler

    def _run_sampler(self, *arrays: Any, **settings: Any) -> FloatArray:
        start = time.perf_counter()
        result: FloatArray = self.inner.run_sampler(*arrays, **settings)  # type: ignore[attr-defined]
        self.sampler_s = time.perf_counter() - start
        return result

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """See ``Backend.predict``."""
        start = time.perf_counter()
        result = self.inner.predict(noisy)
        self.predictive_s += time.perf_counter() - start
        return result

    def score(self, *arrays: Any) -> FloatArray:
        """See ``Backend.score``."""
        start = time.perf_counter()
        result = self.inner.score(*arrays)
        self.score_s.append(time.perf_counter() - start)
        return result

    def close(self) -> None:
        """Left to the owner of the inner backend."""


@dataclass
class Timing:
    """Seconds of one run: in all and by stage.

    Where the device ran the whole sampler at once, ``sampler`` is its time and the calls have none.
    """

    total: float
    stft: float
    predictive: float
    score: list[float]
    sampler: float | None
    fusion: float
    istft: float


def enhance_windows(
    backend: Backend, manifest: Manifest, wavs: FloatArray, steps: int, seed: int = 0
) -> tuple[FloatArray, Timing]:
    """Enhance a batch of windows as ``Enhancer`` does each of them, and time the stages.

    Args:
        backend: The two networks.
        manifest: Front end and sampler.
        wavs: float32 [B, L] at the model's rate, none silent.
        steps: Calls of the score network.
        seed: Seed of the noise, shared by the batch.

    Returns:
        float32 [B, L], and the seconds that it took.

    Raises:
        BackendError: A network failed.
    """
    signal = manifest.signal
    clock = StageClock(backend)
    begin = time.perf_counter()
    peaks = np.abs(wavs).max(axis=1)
    scaled = (wavs.astype(np.float64) / peaks[:, None]).astype(np.float32)
    noisy, n_frames = encode(scaled, signal)
    n_padded = noisy.shape[2]
    ready = time.perf_counter()
    schedule = sampler_steps(manifest.sde, manifest.sampler.t_rs, steps) if steps else ()
    clean_ri = denoise(
        clock,
        manifest,
        noisy,
        lambda index: frame_noise(seed, index, 0, n_padded),
        steps=schedule,
    )
    sampled = time.perf_counter()
    decoded = decode(clean_ri, n_frames, wavs.shape[1], signal)
    out = (decoded.astype(np.float64) * peaks[:, None]).astype(np.float32)
    end = time.perf_counter()
    networks = clock.predictive_s + sum(clock.score_s) + (clock.sampler_s or 0.0)
    return out, Timing(
        total=end - begin,
        stft=ready - begin,
        predictive=clock.predictive_s,
        score=clock.score_s,
        sampler=clock.sampler_s,
        fusion=sampled - ready - networks,
        istft=end - sampled,
    )


def frames_of(window_s: float, manifest: Manifest) -> int:
    """Frames of a window of about ``window_s`` seconds that need no padding.

    Raises:
        InputError: It is shorter than the shortest window or longer than a minute.
    """
    frames = round(window_s * manifest.signal.frame_rate_hz / FRAME_MULTIPLE) * FRAME_MULTIPLE
    if not (window_s <= 60 and frames >= MIN_FRAMES):
        raise InputError(
            f"window is {window_s} s; expected {MIN_FRAMES / manifest.signal.frame_rate_hz:.3f} "
            "to 60 s"
        )
    return frames


def make_audio(manifest: Manifest, frames: int, batch: int) -> FloatArray:
    """Noise with the syllable rate of speech, [B, L]; speed does not depend on the content."""
    signal = manifest.signal
    n_samples = (frames - 1) * signal.hop_length
    rng = np.random.default_rng(0)
    t = np.arange(n_samples) / signal.sample_rate
    wavs = 0.1 * rng.standard_normal((batch, n_samples)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
    return wavs.astype(np.float32)


# ------------------------------------------------------------------------------------------------
# Opening


def variants(name: str, only_device: str | None) -> list[tuple[str, str]]:
    """Backend and device pairs to measure for a backend's name."""
    if only_device is not None:
        return [(name, only_device)]
    if name == "ort":
        if cuda_device_count() == 0:
            return [("ort", "cpu")]
        tensorrt = "TensorrtExecutionProvider" in _ort_providers()
        return [("ort", "cpu"), ("ort", "cuda")] + [("ort", "tensorrt")] * tensorrt
    return [(name, "cpu" if name == "openvino" else "auto")]


def _ort_providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def load(path: Path, backend: str, device: str, threads: int) -> Loaded:
    """Open one engine on one backend; a failure is kept as its text."""
    loaded = Loaded(path, backend, device)
    try:
        if backend == "torch":
            loaded.manifest, loaded.backend = _open_torch(path, device, threads)
        else:
            loaded.manifest = Manifest.load(path)
            loaded.backend = open_backend(path, loaded.manifest, backend, device, threads)
    except Exception as error:  # engines raise types of their own: a row, never a crash
        loaded.error = _one_line(error)
    return loaded


def _open_torch(path: Path, device: str, threads: int) -> tuple[Manifest, Backend]:
    from dvpd.quality.models import SharedBackend, open_model

    enhancer = open_model(path, device=device, threads=threads)
    shared = enhancer.backend
    # the wrapper remembers predictions, which would leave the predictive call out of the time
    return enhancer.manifest, shared.inner if isinstance(shared, SharedBackend) else shared


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, DvpdError) else f"{type(error).__name__}: {text}"


# ------------------------------------------------------------------------------------------------
# Measuring


@dataclass
class Row:
    """A case and what was measured of it."""

    case: Case
    loaded: Loaded
    timings: list[Timing] = field(default_factory=list)
    error: str | None = None
    energy: dict[str, Any] | None = None


def time_interleaved(
    rows: Sequence[Row],
    *,
    min_runs: int,
    min_seconds: float,
    watch: machine.CpuWatch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Time all rows in turn, in a new order every round, until each has enough.

    Args:
        rows: What to time; timings and failures are written into them.
        min_runs: Runs of each row after the warm-up.
        min_seconds: Seconds of each row after the warm-up.
        watch: Looks at the clocks every round.
        progress: Called with (rows finished, rows in all) after every round.
    """
    inputs: dict[tuple[int, int], FloatArray] = {}
    order = random.Random(0)
    active = [row for row in rows if row.error is None]
    warm_up, last_key = WARM_UP_ROUNDS, None
    while active:
        order.shuffle(active)
        for row in active:
            if row.loaded.key != last_key:
                time.sleep(SETTLE_S)
                last_key = row.loaded.key
            assert row.loaded.backend is not None
            assert row.loaded.manifest is not None
            size = (row.case.frames, row.case.batch)
            if size not in inputs:
                inputs[size] = make_audio(row.loaded.manifest, *size)
            try:
                _, timing = enhance_windows(
                    row.loaded.backend, row.loaded.manifest, inputs[size], row.case.steps
                )
            except Exception as error:  # as in `load`: the others go on
                row.error = _one_line(error)
                continue
            if not warm_up:
                row.timings.append(timing)
        warm_up = max(0, warm_up - 1)
        active = [
            row
            for row in active
            if row.error is None
            and (
                len(row.timings) < min_runs
                or sum(timing.total for timing in row.timings) < min_seconds
            )
        ]
        if watch is not None:
            watch.look()
        if progress is not None:
            progress(len(rows) - len(active), len(rows))


def measure_energy(rows: Sequence[Row], found: Sequence[meters.Meter]) -> dict[str, float]:
    """Energy of each row, one after the other; returns the power of the idle machine (W)."""
    idle = {}
    for meter in found:
        with meters.measuring(meter) as reading:
            time.sleep(ENERGY_S)
        idle[meter.name] = reading.joules / reading.seconds
    for row in rows:
        if row.error is not None or not found:
            continue
        assert row.loaded.backend is not None
        assert row.loaded.manifest is not None
        wavs = make_audio(row.loaded.manifest, row.case.frames, row.case.batch)
        per_run = statistics.median(t.total for t in row.timings)
        runs = max(1, round(ENERGY_S / per_run))
        starts = [meter.joules() for meter in found]
        begin = time.perf_counter()
        for _ in range(runs):
            enhance_windows(row.loaded.backend, row.loaded.manifest, wavs, row.case.steps)
        seconds = time.perf_counter() - begin
        audio_s = runs * _audio_s(row)
        row.energy = {
            meter.name: {
                "joules_per_audio_s": (meter.joules() - start) / audio_s,
                "watts": (meter.joules() - start) / seconds,
            }
            for meter, start in zip(found, starts, strict=True)
        }
    return idle


def _audio_s(row: Row) -> float:
    assert row.loaded.manifest is not None
    signal = row.loaded.manifest.signal
    return row.case.batch * (row.case.frames - 1) * signal.hop_length / signal.sample_rate


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
        result["window_s"] = round(_audio_s(row) / row.case.batch, 4)
    if row.error is not None or not row.timings:
        return result
    totals = np.array([t.total for t in row.timings]) * 1e3
    audio_s = _audio_s(row)
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
        "start_s": imported - started,
        "load_s": opened - imported,
        "first_window_s": end - begin,
        "cold_start_s": end - started - (begin - opened),
        "peak_rss_mib": machine.peak_rss_mib(),
        "gpu_mib": meters.gpu_memory_mib(os.getpid()),
    }


def measure_cold(
    items: Sequence[Loaded], threads: int, repeats: int, progress: Say
) -> list[dict[str, Any]]:
    """Cold start, load time and memory of each item in fresh processes, interleaved; medians."""
    results: list[list[dict[str, Any]]] = [[] for _ in items]
    errors: list[str | None] = [item.error for item in items]
    for repeat in range(repeats):
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
                answer, done = {"error": _one_line(error)}, None
            if "cold_start_s" in answer:
                results[i].append(answer)
                continue
            text = done.stderr.strip().splitlines()[-1:] if done is not None else []
            code = f"exit code {done.returncode}" if done is not None else "no answer"
            errors[i] = answer.get("error") or (text[0] if text else code)
    rows = []
    for item, found, error in zip(items, results, errors, strict=True):
        row: dict[str, Any] = {
            "engine": item.name,
            "backend": item.backend_name,
            "device": item.device,
            "status": "ok" if error is None else "failed",
            "error": error,
        }
        if error is None and found:
            row["processes"] = len(found)
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


def now() -> str:
    """Date and time, ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Python and the packages that matter, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
    threads = args.threads or cpu_quota()
    load_before = machine.load_average()
    paths = [Path(p) for p in args.engines] or find_engines()
    if not paths:
        raise InputError("no engine folder found: give one, or python export/to_onnx.py writes one")
    items, not_run = _open_all(paths, args.backend, args.device, threads, say)
    say("peak arithmetic and memory bandwidth")
    peak = machine.peak(threads)
    watch = machine.CpuWatch()
    rows = make_cases(items, args.windows, args.batch, args.steps, args.grid)
    say(f"{len(rows)} cases")
    time_interleaved(
        rows, min_runs=args.runs, min_seconds=args.seconds, watch=watch,
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
    processes = measure_cold(items, threads, args.cold_runs, say) if args.cold_runs else []
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
        "protocol": {
            "timed": TIMED,
            "threads": threads,
            "affinity": sorted(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else None,
            "governors": machine.governors(),
            "clocks_mhz": None if watch.clocks is None else list(watch.clocks),
            "nvpmodel": machine.nvpmodel(),
            "versions": versions(),
            "interleaved": True,
            "warm_up_rounds": WARM_UP_ROUNDS,
            "settle_s": SETTLE_S,
            "min_runs": args.runs,
            "min_seconds": args.seconds,
            "cold_processes": args.cold_runs,
            "cold_window_s": COLD_WINDOW_S,
            "load_before": load_before,
            "load_after": load_after,
            "others_cpu_share": others,
            "git": machine.git_revision(Path(__file__).resolve().parent),
            "graphs": {item.name: _hashes(item) for item in items},
            "note": args.note,
        },
        "peak": peak,
        "meters": {"found": [m.name for m in found], "absent": absent, "idle_watts": idle},
        "warnings": warnings,
        "not_run": not_run,
        "costs": costs,
        "rows": [summarise(row) for row in rows],
        "processes": processes,
    }


def _open_all(
    paths: Sequence[Path], backend: str, device: str | None, threads: int, say: Say
) -> tuple[list[Loaded], list[dict[str, str]]]:
    """Every engine on every backend; and the backends that are not installed, with what installs them."""
    names = list(BACKENDS) if backend == "all" else backend.split(",")
    if unknown := sorted(set(names) - {*BACKENDS, "torch"}):
        raise InputError(
            f"backend is {unknown[0]!r}; expected all, torch, or of {', '.join(BACKENDS)}"
        )
    not_run = [
        {"backend": name, "reason": f"not installed: pip install '{BACKENDS[name][1]}'"}
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
        if not values or any(not value >= low for value in values):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no comma-separated list of numbers from {low}"
            )
        return list(dict.fromkeys(values))

    return parse


def _count(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return value


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
    parser.add_argument("--threads", type=_count, help="CPU threads (default: usable cores)")
    parser.add_argument(
        "--windows", type=_numbers(float, 0.25), default=[2.048, 0.512, 1.024, 4.096, 8.192],
        help="seconds of audio, the first is the base case (default: 2.048,0.512,1.024,4.096,8.192)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=_numbers(int, 1), default=[1, 2, 4],
        help="windows a call, the first is the base case (default: 1,2,4)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=_numbers(int, 0), default=[3, 0, 1, 2],
        help="score calls, the first is the base case (default: 3,0,1,2)",
    )  # fmt: skip
    parser.add_argument(
        "--grid", action="store_true",
        help="every combination, not each axis alone around the base case",
    )  # fmt: skip
    parser.add_argument("--runs", type=_count, default=20, help="runs of each case (default: 20)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="seconds of each case at least (default: 1)"
    )
    parser.add_argument(
        "--cold-runs", type=int, default=3, metavar="N",
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
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "rtf.py") -> int:
    """Run the command line; returns the exit code: 0, or 1 for a failure or a missed condition."""
    args = build_parser(prog).parse_args(argv)
    try:
        if args.cold is not None:
            result = run_cold(
                Path(args.engines[0]), args.backend, args.device, args.threads, args.cold
            )
            print(json.dumps(result))
            return 0
        return _main(args)
    except (DvpdError, OSError) as error:
        print(json.dumps({"error": str(error)}) if args.cold is not None else f"{prog}: {error}",
              file=sys.stdout if args.cold is not None else sys.stderr)  # fmt: skip
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; nothing was written", file=sys.stderr)
        return 1


def _main(args: argparse.Namespace) -> int:
    from dvpd.benchmarks.common import report

    if args.compare:
        a, b = (report.read(path) for path in args.compare)
        print(report.render_comparison(report.compare(a, b), *map(str, args.compare)))
        return 0
    conditions = [report.parse_condition(text) for text in args.conditions]
    if args.report and args.from_json:
        raise InputError("--report measures; it cannot be made from --from-json")
    for path in (args.json, args.markdown, args.html, args.report):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist")
    if args.from_json:
        result = report.read(args.from_json)
    else:
        result = run(args, _say)
        report.validate(result)
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if args.markdown:
        write_whole(args.markdown, report.to_markdown(result))
    if args.html:
        write_whole(args.html, report.to_html(result))
    report.show(result)
    if args.report:
        from dvpd.benchmarks import board

        _say("parity with the CPU's waveform")
        table = board.make(result, [Path(p) for p in args.engines] or find_engines())
        print(f"\n{board.write(args.report, table)}: send this file; nothing in it is private")
    missed = [line for condition in conditions for line in report.check(condition, result)]
    for line in missed:
        print(f"not met: {line}", file=sys.stderr)
    every_failed = all(row["status"] == "failed" for row in result["rows"])
    return 1 if missed or every_failed else 0


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
