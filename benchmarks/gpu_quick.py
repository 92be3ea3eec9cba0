"""The GPU check for a machine that is lent for a short time: ``gpu_check.py --quick [ENGINE ...]``.

    python benchmarks/gpu_check.py --quick engines/dvpd-base engines/dvpd-base-fp16 --json rows.jsonl
    python benchmarks/gpu_check.py --make-reference        # after the shipped weights changed

Rows of JSON, each printed, appended to the file and synced as it comes: parity with the CPU's float32
waveform, latency of one window call by call and captured, throughput by batch, memory, bandwidth,
kernels a window; of causal engines parity of a live stream and the time of a block of 1, 8 and 64. A row that fails says why and the next one follows; what does not fit into
``--seconds`` is a row that says so; whatever hangs, the process ends then. The last row is the
verdict: the exit code is 0 if every limit was met, 1 if one was missed or could not be measured.

Needs torch and NumPy alone. CPU engines are never timed, and the CPU's waveforms are carried along in
``gpu_reference.npz``, keyed by the checkpoint's hash; where they are missing or of other weights, the
CPU computes them and a row says so.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dvpd.benchmarks.common import gpu_live, gpu_work, reference
from dvpd.benchmarks.common.gpu_work import Work, finite, heard_warnings, reason
from dvpd.benchmarks.common.reference import REFERENCE, WINDOW_FRAMES
from dvpd.export.figures import snr_db
from dvpd.model import DVPD
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.command import EXIT_USAGE, say
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.files import WholeFile
from dvpd.runtime.manifest import Manifest
from dvpd.torch_backend import TorchBackend, prepare

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("dvpd-base", "dvpd-base-fp16", "dvpd-tiny", "dvpd-tiny-fp16")
LIVE = "dvpd-live-tiny"
SECONDS = 120.0
WORKING_PART = 0.9  # of the time; the rest is for the row under way and the verdict
LEAST_RUNS, LEAST_BATCHES = 20, 8
EACH_S = 1.0  # of one measurement, where the time allows


# ------------------------------------------------------------------------------------------------
# The CPU's waveforms


def clip_window(manifest: Manifest) -> FloatArray:
    """The noisy window that every row works on, float32 [L]."""
    return reference.clip_window(manifest, WINDOW_FRAMES)


def compute_reference(manifest: Manifest, model: DVPD) -> FloatArray:
    """The float32 waveform [L] of the CPU."""
    backend = TorchBackend(prepare(model), "cpu")
    work = Work(manifest, clip_window(manifest))
    wav = work.wav(work.run(backend))
    backend.close()
    return wav


def make_reference(folders: Sequence[Path], path: Path) -> list[str]:
    """Write the waveforms of engine folders; returns the models' names.

    Args:
        folders: fp32 engine folders with their checkpoints.
        path: The file.

    Raises:
        DvpdError: A folder cannot be used.
    """
    names, waves = [], {}
    for folder in folders:
        manifest, model = gpu_work.read_model(folder)
        names.append(manifest.name)
        waves[reference.reference_key(manifest, WINDOW_FRAMES)] = compute_reference(manifest, model)
    with WholeFile(path) as whole:
        with whole.open() as stream:
            arrays = {"names": np.array(names), "keys": np.array(list(waves)), **waves}
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        whole.commit()
    return names


# ------------------------------------------------------------------------------------------------
# Rows


class Journal:
    """Rows of JSON, printed and appended as they come.

    Attributes:
        rows: All of them.
        unwritten: Why the file has not got them all, or None.
    """

    def __init__(self, path: Path | None) -> None:
        """Open the file to append to; None prints only."""
        self.rows: list[dict[str, Any]] = []
        self.unwritten: str | None = None
        self._path, self._begin, self._lock = path, time.monotonic(), threading.Lock()

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; a full disk costs the file, never the rows that are printed."""
        row = {"at_s": round(time.monotonic() - self._begin, 2), **row}
        try:
            line = json.dumps(row, allow_nan=False)
        except ValueError:
            row = finite(row) | {"ok": False, "error": "a value is not finite"}
            line = json.dumps(row, allow_nan=False)
        with self._lock:
            self.rows.append(row)
            try:
                print(line, flush=True)
            except OSError as error:
                self._lost("standard output", error)
            if self._path is None:
                return
            try:
                with open(self._path, "a", encoding="utf-8") as stream:
                    stream.write(line + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError as error:
                self._lost(str(self._path), error)

    def _lost(self, where: str, error: OSError) -> None:
        if self.unwritten is None:
            self.unwritten = f"{where}: {error.strerror or error}"
            say(f"rows are lost: {self.unwritten}")


class Check:
    """The journal and the clock.

    Attributes:
        journal: Where rows go.
        seconds: Of the whole.
    """

    def __init__(self, journal: Journal, seconds: float) -> None:
        """Start the clock."""
        self.journal, self.seconds = journal, seconds
        self._end = time.monotonic() + WORKING_PART * seconds

    def left(self) -> float:
        """Seconds for rows that are to come."""
        return self._end - time.monotonic()

    def row(self, kind: str, about: dict[str, Any], work: Callable[[], dict[str, Any]]) -> Any:
        """Write the row of ``work``; returns its values, or None where there are none."""
        head = {"row": kind, **about}
        if self.left() <= 0:
            self.journal.write(head | {"ok": False, "skipped": True, "error": "out of time"})
            return None
        with heard_warnings() as said:
            try:
                values = work()
            except Exception as error:  # libraries raise types of their own: a row, never the end
                self.journal.write(head | {"ok": False, "error": reason(error)})
                return None
        more = {"warnings": list(dict.fromkeys(said))} if said else {}
        self.journal.write(head | {"ok": True} | values | more)
        return values if self.journal.rows[-1]["ok"] else None

    def repeat(
        self, work: Callable[[], Any], seconds: float, least: int | None = None
    ) -> dict[str, Any]:
        """Wall-clock times of calls (ms): ``seconds`` and ``least`` calls, within what is left."""
        least = LEAST_RUNS if least is None else least
        work(), work()  # the second captures
        times: list[float] = []
        begin = time.perf_counter()
        while not times or (
            self.left() > 0 and (len(times) < least or time.perf_counter() - begin < seconds)
        ):
            started = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - started))
        p50, p99 = (float(np.percentile(times, p)) for p in (50, 99))
        return {"n": len(times), "p50_ms": p50, "p99_ms": p99}


def watchdog(
    journal: Journal, seconds: float, judge: Callable[[], dict[str, Any]]
) -> threading.Timer:
    """End the process after ``seconds``, whatever hangs, with the verdict on what there is by then."""

    def end() -> None:
        row = judge()
        journal.write(row | {"error": f"ended after {seconds:.1f} s, with a row under way"})
        os._exit(0 if row["ok"] else 1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


# ------------------------------------------------------------------------------------------------
# What is measured


class Subject:
    """An engine folder on one backend."""

    def __init__(self, folder: Path, name: str, device: str) -> None:
        """Read the manifest; ``open`` loads the rest."""
        self.folder, self.name, self.device = folder, name, device
        self.manifest = Manifest.load(folder)
        self.one = Work(self.manifest, clip_window(self.manifest))
        self.backend: Any = None

    @property
    def about(self) -> dict[str, Any]:
        """What names it in a row."""
        return {
            "engine": self.folder.name,
            "precision": self.manifest.precision,
            "backend": self.name,
        }

    def open(self) -> None:
        """Load it.

        Raises:
            DvpdError: It cannot be loaded.
        """
        if self.name == "torch":
            model = gpu_work.read_model(self.folder)[1]
            self.backend = TorchBackend(prepare(model, self.manifest.precision), self.device)
            return
        from dvpd.runtime.backends.choose import open_backend

        self.backend = open_backend(self.folder, self.manifest, self.name, self.device)

    def parity(self, wav: FloatArray, limit: float) -> dict[str, Any]:
        """Distance from the CPU's waveform."""
        self.open()
        snr = snr_db(wav, self.one.wav(self.one.run(self.backend)))
        return {"snr_db": snr, "limit_db": limit, "met": snr >= limit}

    def latency(self, check: Check, mode: str, seconds: float) -> dict[str, Any]:
        """One stream: features on the host to features on the host.

        Raises:
            BackendError: The sampler could not be captured.
        """
        self.backend.capture = mode == "captured"
        with heard_warnings() as said:
            row = check.repeat(lambda: self.one.run(self.backend), seconds)
        if failed := [text for text in said if "cannot be captured" in text]:
            raise BackendError(failed[0])
        return row | {"window_s": self.one.audio_s, "rtf": row["p50_ms"] / 1e3 / self.one.audio_s}

    def throughput(self, check: Check, batch: int, seconds: float) -> dict[str, Any]:
        """Many windows at once; on torch also the device alone, its inputs in place."""
        on_cuda = self.name == "torch" and torch.device(self.device).type == "cuda"
        if on_cuda:
            self.backend._known.clear()  # the memory of the last batch's graph
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.backend.capture = True
        many = self.one.repeated(batch)
        row = check.repeat(lambda: many.run(self.backend), seconds, LEAST_BATCHES)
        row |= {"audio_s_per_s": 1e3 * many.audio_s / row["p50_ms"]}
        if on_cuda:
            row["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
            if (took := replay_seconds(self.backend, batch)) is not None:
                row |= {"device_ms": 1e3 * took, "device_audio_s_per_s": many.audio_s / took}
        return row


def replay_seconds(backend: TorchBackend, batch: int, runs: int = 10) -> float | None:
    """Device time (s) of the graph captured last, replayed back to back; None without one."""
    key, captured = next(reversed(backend._known.items()), ((0,), None))
    if captured is None or key[0] != batch:
        return None
    with torch.cuda.device(backend.device):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(runs):
            captured.graph.replay()
        last.record()
        torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / runs


def bandwidth(device: str) -> dict[str, Any]:
    """Bytes read and written a second by a copy on the device, the best of eight."""
    on_gpu = device != "cpu"
    size = gpu_work.COPY_BYTES if on_gpu else gpu_work.COPY_BYTES >> 4
    here = torch.ones(size // 4, device=device)
    there, times = torch.empty_like(here), []
    for _ in range(10):
        begin = time.perf_counter()
        there.copy_(here)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return {"gb_s": 2 * size / min(times[2:]) / 1e9, "bytes": size}


def count_kernels(subject: Subject) -> dict[str, Any]:
    """Kernels and copies of one window run call by call.

    Raises:
        BackendError: The profiler saw none.
    """
    found = gpu_work.kernels(subject.backend, subject.one)
    if not found["count"]:
        raise BackendError("the profiler saw no kernel: CUPTI is missing or not permitted")
    return found | {"longest": found["longest"][:10]}


def measure(args: argparse.Namespace, check: Check, found: dict[str, Any]) -> None:
    """Every row; into ``found`` goes what the limits are compared with, as it comes."""
    device, on_gpu = args.device, args.device != "cpu"
    check.row("machine", {}, lambda: describe(device))
    check.row("bandwidth", {}, lambda: bandwidth(device))
    subjects: list[Subject] = []
    waves: dict[str, FloatArray] = {}
    live = [folder for folder in args.engines if gpu_live.is_causal(folder)]
    limits = {"fp32": args.snr_fp32, "fp16": args.snr_fp16}
    gpu_live.measure(check, found, live, args.backend.split(","), device, limits)
    for folder in [folder for folder in args.engines if folder not in live]:
        for name in args.backend.split(","):
            about = {"engine": folder.name, "backend": name}
            given: list[Subject] = []

            def start(f: Path = folder, n: str = name, to: list[Subject] = given) -> dict[str, Any]:
                subject = Subject(f, n, device)
                key = subject.manifest.checkpoint_sha256
                origin = {"source": "carried"}
                if key not in waves:
                    waves[key], origin = reference_of(subject)
                to.append(subject)
                found[f"precision {f.name} {n}"] = subject.manifest.precision
                return origin

            check.row("reference", about, start)
            for subject in given:
                limit = args.snr_fp32 if subject.manifest.precision == "fp32" else args.snr_fp16
                wav = waves[subject.manifest.checkpoint_sha256]
                row = check.row("parity", subject.about, partial(subject.parity, wav, limit))
                found[f"parity {subject.folder.name} {name}"] = row
                if subject.backend is not None:
                    subjects.append(subject)
    each = min(EACH_S, 0.5 * check.seconds / max(1, len(subjects) * (2 + len(args.batches))))
    for subject in subjects:
        for mode in ("eager", "captured") if on_gpu else ("eager",):
            row = check.row(
                "latency", subject.about | {"mode": mode},
                partial(subject.latency, check, mode, each),
            )  # fmt: skip
            if row is not None:
                found.setdefault(f"rtf {subject.folder.name} {subject.name}", []).append(row["rtf"])
    # Half precision first: it is what the limit is about, and the time may run out.
    for subject in sorted(subjects, key=lambda s: s.manifest.precision):
        for batch in args.batches:
            row = check.row(
                "throughput", subject.about | {"batch": batch},
                partial(subject.throughput, check, batch, each),
            )  # fmt: skip
            if row is not None:
                best = row.get("device_audio_s_per_s", row["audio_s_per_s"])
                found.setdefault(f"throughput {subject.folder.name} {subject.name}", []).append(
                    best
                )
    for subject in subjects:
        if subject.name == "torch":
            check.row("kernels", subject.about, partial(count_kernels, subject))


def describe(device: str) -> dict[str, Any]:
    """The machine, the versions, and the GPU's memory (MiB)."""
    table = gpu_work.describe(device)
    if device != "cpu":
        free, total = torch.cuda.mem_get_info(device)
        table |= {"memory_free_mib": free / 2**20, "memory_mib": total / 2**20}
    return table


def reference_of(subject: Subject) -> tuple[FloatArray, dict[str, Any]]:
    """The CPU's waveform: the one that is carried, else one computed now, and why."""
    try:
        wav = reference.read_reference(subject.manifest, WINDOW_FRAMES)
        return wav, {"source": "carried"}
    except InputError as error:
        manifest, model = gpu_work.read_model(subject.folder)
        return compute_reference(manifest, model), {"source": "computed now", "why": str(error)}


def verdict(args: argparse.Namespace, found: dict[str, Any]) -> list[str]:
    """The limits that were missed, or that nothing was measured for, in words.

    Speed counts for half precision where it was asked for, and not at all on a CPU.
    """
    missed = []
    names = [(f, n) for f in args.engines for n in args.backend.split(",")]
    halves = [(f, n) for f, n in names if found.get(f"precision {f.name} {n}") == "fp16"]
    for folder, name in names:
        row = found.get(f"parity {folder.name} {name}")
        if row is None:
            missed.append(f"parity of {folder.name} on {name} was not measured")
        elif not row["met"]:
            missed.append(
                f"{folder.name} on {name} is {row['snr_db']:.1f} dB from the CPU's waveform; "
                f"expected at least {row['limit_db']:g}"
            )
    timed = [(f, n) for f, n in halves or names if not gpu_live.is_causal(f)]
    for folder, name in timed if args.device != "cpu" else ():
        for kind, limit, best, better, text in (
            ("rtf", args.rtf, min, operator.le, "at most"),
            ("throughput", args.throughput, max, operator.ge, "at least"),
        ):
            values = found.get(f"{kind} {folder.name} {name}")
            if not values:
                missed.append(f"{kind} of {folder.name} on {name} was not measured")
            elif not better(value := best(values), limit):
                missed.append(
                    f"{kind} of {folder.name} on {name} is {value:.4g}; expected {text} {limit:g}"
                )
    return missed


def verdict_row(
    args: argparse.Namespace, found: dict[str, Any], journal: Journal
) -> dict[str, Any]:
    """The last row: whether every limit was met, and which were not."""
    missed = verdict(args, dict(found))
    if journal.unwritten:
        missed.append(f"rows are lost: {journal.unwritten}")
    limits = "parity" if args.device == "cpu" else "parity, rtf, throughput"
    return {"row": "verdict", "ok": not missed, "limits": limits, "missed": missed}


def process_age() -> float:
    """Seconds since this process began, its imports included; 0 where the system does not say."""
    try:
        # Field 22, and what follows the program's name, which may hold anything.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        return max(0.0, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


def run(args: argparse.Namespace, spent: float = 0.0) -> int:
    """What ``gpu_check.py`` does with --quick and --make-reference.

    Args:
        args: From ``gpu_check.build_parser``.
        spent: Seconds of the time that have gone already.

    Returns:
        The exit status.
    """
    if args.make_reference:
        shipped = [ROOT / "engines" / name for name in ENGINES if not name.endswith("-fp16")]
        names = make_reference(args.engines or shipped, REFERENCE)
        print(f"{REFERENCE}: {', '.join(names)}")
        return 0
    args.seconds = SECONDS if args.seconds is None else args.seconds
    if not (math.isfinite(args.seconds) and args.seconds > 0):
        say(f"--seconds is {args.seconds}; expected a number > 0")
        return EXIT_USAGE
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.engines = args.engines or [ROOT / "engines" / name for name in (*ENGINES, LIVE)]
    args.batches = args.batches or ((1, 2) if args.device == "cpu" else gpu_work.BATCHES)
    journal = Journal(args.json)
    left = max(0.0, args.seconds - spent)
    check = Check(journal, left)
    found: dict[str, Any] = {}

    def judge() -> dict[str, Any]:
        return verdict_row(args, found, journal)

    timer = watchdog(journal, left, judge)
    try:
        measure(args, check, found)
    finally:
        timer.cancel()
    row = judge()
    journal.write(row)
    return 0 if row["ok"] else 1
