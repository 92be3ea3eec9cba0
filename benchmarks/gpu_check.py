"""One run that says what a GPU does with this model: ``python benchmarks/gpu_check.py --json FILE``.

Correctness of fp32 and fp16 against the CPU's fp32 waveform, latency of one window, throughput by
batch, call by call against captured, memory, energy, the floor that bandwidth and arithmetic set,
and kernels a window. Needs torch and NumPy and files of this checkout, no network; what cannot be
measured here is null with its reason. It runs on a CPU, too, with what applies there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not __package__:  # run as a plain script: the checkout is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dvpd.benchmarks.common.gpu_work import (
    BATCHES,
    COPY_BYTES,
    Work,
    describe,
    finite,
    kernels,
    read_model,
    reason,
)
from dvpd.benchmarks.common.reference import CLIP, WINDOW_FRAMES
from dvpd.export.figures import snr_db
from dvpd.runtime import command
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import Manifest
from dvpd.torch_backend import TorchBackend, prepare

ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1
MATRIX = 8192


def pesq_of(clean: FloatArray, wav: FloatArray) -> float | None:
    """Wide-band PESQ; None where the package is missing."""
    try:
        from pesq import pesq
    except ModuleNotFoundError:
        return None
    return float(pesq(16000, clean, wav, "wb"))


def timed(work: Callable[[], Any], seconds: float, least: int = 5) -> dict[str, Any]:
    """Wall-clock times of repeated calls (ms), each ending with its result on the host."""
    work(), work()  # the second captures
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or time.perf_counter() - begin < seconds:
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    p50, p99 = (float(np.percentile(times, p)) for p in (50, 99))
    return {"n": len(times), "p50_ms": p50, "p99_ms": p99, "mean_ms": statistics.fmean(times)}


def floor(
    device: str, manifest: Manifest, n_bytes: int, window_s: float, n_steps: int
) -> dict[str, Any]:
    """Measured bandwidth and matrix rates, and the times that they allow one window."""
    on_gpu = device != "cpu"
    size = COPY_BYTES if on_gpu else COPY_BYTES >> 4
    n = MATRIX if on_gpu else MATRIX >> 3

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(8):
            begin = time.perf_counter()
            work()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return min(times[2:])

    here = torch.ones(size // 4, device=device)
    copy_of = torch.empty_like(here)
    bandwidth = 2 * size / best(lambda: copy_of.copy_(here))
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        if on_gpu or name == "fp32":
            a = torch.randn(n, n, device=device).to(dtype)
            rates[name] = n**3 / best(partial(torch.matmul, a, a))
    per_second = manifest.macs_per_second
    macs = window_s * float(per_second["predictive"] + n_steps * per_second["score"])
    return {
        "bandwidth_gb_s": bandwidth / 1e9,
        "gmac_s": {name: rate / 1e9 for name, rate in rates.items()},
        "window_gmac": macs / 1e9,
        "window_compulsory_mb": n_bytes / 1e6,
        "bytes_ms": 1e3 * n_bytes / bandwidth,
        "macs_ms": {name: 1e3 * macs / rate for name, rate in rates.items()},
        "note": "bytes: weights and each call's inputs and outputs once; what layers exchange is "
        "not counted",
    }


def compulsory_bytes(backend: TorchBackend, work: Work, n_steps: int) -> int:
    """Weights, inputs and outputs of every network call, each once."""
    branches = {
        name: sum(p.numel() * p.element_size() for p in getattr(backend.model, name).parameters())
        for name in ("predictive", "score")
    }
    _, feats = backend.predict(work.noisy)
    kept = sum(f.numel() * f.element_size() for f in feats)
    plane = work.noisy.nbytes // 3
    predictive = branches["predictive"] + 5 * plane + kept
    total: int = predictive + n_steps * (branches["score"] + 2 * plane + kept)
    return total


class Energy:
    """Energy of an NVIDIA card by NVML, or the reason why there is none."""

    def __init__(self) -> None:
        """Look for a meter."""
        from dvpd.benchmarks.common.meters import find_meters

        meters, absent = find_meters()
        self.meter = next((m for m in meters if m.name.startswith("NVML")), None)
        self.reason = None if self.meter else absent.get("NVML", "no meter")

    def of(self, work: Callable[[], Any], seconds: float) -> dict[str, Any] | None:
        """Joules a call and mean watts while ``work`` repeats; None without a meter."""
        if self.meter is None:
            return None
        joules, begin, n = self.meter.joules(), time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            work()
            n += 1
        used, took = self.meter.joules() - joules, time.perf_counter() - begin
        return {"joules_per_call": used / n, "watts": used / took, "calls": n}


class Report:
    """The table that is written, after every part of it: what was measured is never lost.

    Attributes:
        table: The whole.
        unwritten: Why the file could not be written the last time, or None.
    """

    def __init__(self, path: Path | None, table: dict[str, Any]) -> None:
        """Start with ``table``; None writes no file."""
        self.table, self.path = table, path
        self.unwritten: str | None = None

    def part(self, table: dict[str, Any], key: str, work: Callable[[], Any]) -> Any:
        """Put what ``work`` returns under ``key``; what it raises is there as {"error": text}."""
        try:
            value = finite(work())
        except Exception as error:  # libraries raise types of their own: a row, never the end
            value = {"error": reason(error)}
        table[key] = value
        self.save()
        return value

    def text(self) -> str:
        """The table as JSON."""
        return json.dumps(finite(self.table), indent=1, allow_nan=False) + "\n"

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is None:
            return
        try:
            write_whole(self.path, self.text())
            self.unwritten = None
        except OSError as error:
            self.unwritten = f"{self.path}: {error.strerror or error}"


def measure(args: argparse.Namespace) -> Report:
    """Everything, as the report that is written after every part."""
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device != "cpu"
    manifest, model = read_model(args.engine)
    with np.load(CLIP) as clip:
        noisy, clean = (clip[k].astype(np.float32) / 32768 for k in ("noisy", "clean"))
    work = Work(manifest, noisy)
    reference = work.wav(work.run(TorchBackend(prepare(model), "cpu")))
    window = noisy[: (WINDOW_FRAMES - 1) * manifest.signal.hop_length]
    energy = Energy()
    report = Report(args.json, {
        "format": FORMAT,
        "machine": describe(device),
        "model": {
            "name": manifest.name,
            "steps": work.steps,
            "window_s": len(window) / 16000,
        },
        "energy_absent": energy.reason,
        "precisions": {},
        "engines": [],
    })  # fmt: skip
    report.part(report.table, "noisy_pesq", lambda: pesq_of(clean, noisy))
    report.part(report.table, "reference_pesq", lambda: pesq_of(clean, reference))
    waves = {"reference": reference}
    for precision in args.precisions:
        table: dict[str, Any] = {}
        report.table["precisions"][precision] = table
        try:
            backend = TorchBackend(prepare(model, precision), device, compiled=args.compile)
        except Exception as error:  # as in `part`
            table["error"] = reason(error)
            report.save()
            continue
        parity: dict[str, Any] = {}

        def heard(b: TorchBackend = backend, p: str = precision) -> dict[str, Any]:
            waves[p] = work.wav(work.run(b))
            return {"snr_db": snr_db(reference, waves[p]), "pesq": pesq_of(clean, waves[p])}

        table |= report.part(parity, "parity", heard)
        measure_precision(report, table, backend, Work(manifest, window), energy, args)
        backend.close()
    for folder, name, where in engines_available(args.engine, on_gpu, args.cpu_engines):
        row = measure_engine(folder, name, where, Work(manifest, noisy), window, args)
        wav = row.pop("wav", None)
        report.table["engines"].append(row)
        if wav is not None:
            waves[f"{row['engine']}/{name}/{where}"] = wav
            report.part(row, "snr_db", partial(snr_db, reference, wav))
            report.part(row, "pesq", partial(pesq_of, clean, wav))
        report.save()
    if args.waveforms:
        np.savez_compressed(args.waveforms, allow_pickle=False, **waves)
    return report


def measure_precision(
    report: Report, table: dict[str, Any], backend: TorchBackend, one: Work, energy: Energy,
    args: argparse.Namespace,
) -> None:  # fmt: skip
    """Latency, energy, kernels, floor and throughput of an open backend into ``table``."""
    on_gpu = torch.device(backend.device).type == "cuda"

    def latency() -> dict[str, Any]:
        row = timed(lambda: one.run(backend), args.seconds)
        return row | {"rtf": row["p50_ms"] / 1e3 / one.audio_s}

    table["latency"] = {}
    for mode in ("captured", "eager") if on_gpu else ("eager",):
        backend.capture = mode == "captured"
        report.part(table["latency"], mode, latency)
    backend.capture = True
    report.part(table, "energy_batch_1", lambda: energy.of(lambda: one.run(backend), args.seconds))
    report.part(table, "kernels", lambda: kernels(backend, one))
    report.part(table, "floor", lambda: floor(
        backend.device, one.manifest, compulsory_bytes(backend, one, one.steps), one.audio_s, one.steps
    ))  # fmt: skip

    def throughput(batch: int) -> dict[str, Any]:
        many = one.repeated(batch)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        row = timed(lambda: many.run(backend), args.seconds)
        row |= {"batch": batch, "audio_s_per_s": 1e3 * many.audio_s / row["p50_ms"]}
        row["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
        return row

    table["throughput"] = []
    for batch in args.batches:
        row: dict[str, Any] = {}
        value = report.part(row, "row", partial(throughput, batch))
        table["throughput"].append({"batch": batch} | value)
    report.save()


def engines_available(
    folder: Path, on_gpu: bool, on_cpu: bool = False
) -> list[tuple[Path, str, str]]:
    """Engine folder (fp32 and fp16), backend and device of each graph engine that could run.

    On a GPU those of the CPU are left out unless ``on_cpu``: the GPU would wait for them.
    """
    on_cpu = on_cpu or not on_gpu
    from dvpd.runtime.backends.choose import GPU_ONLY, installed

    found = []
    for each in (folder, folder.with_name(folder.name + "-fp16")):
        if not (each / "manifest.json").is_file():
            continue
        if installed("ort"):
            import onnxruntime

            available = onnxruntime.get_available_providers()
            if on_cpu:
                found.append((each, "ort", "cpu"))
            for device, provider in (
                ("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")
            ):  # fmt: skip
                if on_gpu and provider in available:
                    found.append((each, "ort", device))
        if on_cpu and installed("openvino"):
            found.append((each, "openvino", "cpu"))
        found += [
            (each, name, "cuda")
            for name in GPU_ONLY
            if on_gpu and installed(name) and any(each.glob(f"*.{name}-*.plan"))
        ]
    return found


def measure_engine(
    folder: Path, name: str, device: str, work: Work, window: FloatArray, args: argparse.Namespace
) -> dict[str, Any]:
    """One engine's waveform ("wav"), latency and throughput; a failure is its row's "error"."""
    from dvpd.runtime.backends.choose import open_backend
    from dvpd.runtime.errors import DvpdError

    row: dict[str, Any] = {"engine": folder.name, "backend": name, "device": device}
    try:
        manifest = Manifest.load(folder)
        begin = time.perf_counter()
        backend = open_backend(folder, manifest, name, device)
        row["load_s"] = time.perf_counter() - begin
        try:
            row["wav"] = work.wav(work.run(backend))
            one = Work(manifest, window)
            took = timed(lambda: one.run(backend), args.seconds)
            row["latency"] = took | {"rtf": took["p50_ms"] / 1e3 / one.audio_s}
            row["throughput"] = []
            for batch in args.batches if device != "cpu" else (1,):
                many = Work(manifest, window, batch)
                try:
                    took = timed(partial(many.run, backend), args.seconds)
                except DvpdError as error:  # beyond the engine's profile, or its memory
                    row["throughput"].append({"batch": batch, "error": str(error)})
                    continue
                took |= {"batch": batch, "audio_s_per_s": 1e3 * many.audio_s / took["p50_ms"]}
                row["throughput"].append(took)
        finally:
            backend.close()
    except Exception as error:  # engines raise types of their own: a row, never a crash
        row["error"] = reason(error)
    return row


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers >= 1, with commas")
    return found


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "engines", nargs="*", type=Path, metavar="ENGINE",
        help="engine folders: one (dvpd-tiny), with --quick any number (the four shipped ones)",
    )  # fmt: skip
    parser.add_argument("--engine", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--json", type=Path, metavar="FILE",
        help="write the report here, after every part; with --quick append its rows",
    )  # fmt: skip
    parser.add_argument(
        "--waveforms", type=Path, metavar="FILE", help="write waveforms (.npz), for PESQ elsewhere"
    )
    parser.add_argument(
        "--seconds", type=command.number(above=True),
        help="of each measurement (2); with --quick of the whole, start included (120)",
    )  # fmt: skip
    parser.add_argument("--batches", type=_numbers, help="default: 1 to 64; on a CPU 1")
    parser.add_argument(
        "--cpu-engines", action="store_true", help="on a GPU time the CPU's engines, too"
    )
    parser.add_argument("--compile", action="store_true", help="through torch.compile (minutes)")
    quick = parser.add_argument_group("the short check, with limits and an exit code")
    quick.add_argument("--quick", action="store_true", help="two minutes at most; see gpu_quick.py")
    quick.add_argument("--backend", default="torch", help="names with commas (torch)")
    quick.add_argument("--snr-fp32", type=float, default=60.0, metavar="DB", help="at least (60)")
    quick.add_argument("--snr-fp16", type=float, default=35.0, metavar="DB", help="at least (35)")
    quick.add_argument("--rtf", type=float, default=0.002, help="one stream, at most (0.002)")
    quick.add_argument(
        "--throughput", type=float, default=5000.0, metavar="X",
        help="seconds of audio a second of the best batch, at least (5000)",
    )  # fmt: skip
    quick.add_argument(
        "--make-reference", action="store_true",
        help="write the CPU's waveforms of the shipped weights that --quick compares with",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    from dvpd.benchmarks import gpu_quick

    spent_s = gpu_quick.process_age() if argv is None else 0.0
    return command.run(build_parser(), argv, lambda args: _check(args, spent_s))


def _check(args: argparse.Namespace, spent_s: float) -> int:
    from dvpd.benchmarks import gpu_quick

    if args.quick or args.make_reference:
        return gpu_quick.run(args, spent_s)
    if len(args.engines) > 1:
        command.say("several engines need --quick")
        return command.EXIT_USAGE
    args.engine = args.engine or (args.engines or [ROOT / "engines" / "dvpd-tiny"])[0]
    args.seconds = 2.0 if args.seconds is None else args.seconds
    on_cpu = args.device == "cpu" or (args.device == "auto" and not torch.cuda.is_available())
    args.precisions = ("fp32",) if on_cpu else ("fp32", "fp16")
    args.batches = args.batches or ((1,) if on_cpu else BATCHES)
    report = measure(args)
    print(report.text(), end="")
    if report.unwritten:
        command.say(report.unwritten)
    return command.EXIT_FAILED if report.unwritten else command.EXIT_DONE


if __name__ == "__main__":
    command.leave(main())
