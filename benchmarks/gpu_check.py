"""One run that says what a GPU does with this model: ``python benchmarks/gpu_check.py --json FILE``.

Correctness of fp32 and fp16 against the CPU's fp32 waveform, latency of one window, throughput by
batch, call by call against captured, memory, energy, the floor that bandwidth and arithmetic set,
and kernels a window. Needs torch and NumPy and files of this checkout, no network; what cannot be
measured here is null with its reason. It runs on a CPU, too, with what applies there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

if not __package__:  # run as a plain script: the checkout is not installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dvpd.model import DVPD
from dvpd.runtime.noise import frame_noise
from dvpd.runtime.sampler import sample
from dvpd.runtime.schedule import initial_state, sampler_steps
from dvpd.runtime.spec import Manifest, TlbFactors
from dvpd.runtime.stft import compress, decompress, istft, stft
from dvpd.torch_backend import TorchBackend, prepare

FloatArray = NDArray[np.float32]
ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1
CLIP = Path(__file__).with_name("gpu_clip.npz")
WINDOW_FRAMES = 256  # 255 hops of 128 samples at 16 kHz: 2.04 s
BATCHES = (1, 2, 4, 8, 16, 32, 64)
COPY_BYTES, MATRIX = 1 << 30, 8192


def read_model(folder: Path) -> tuple[Manifest, DVPD]:
    """Manifest and model of an engine folder that has its checkpoint; safetensors is optional."""
    manifest = Manifest.load(folder)
    path = next(folder.glob("*.safetensors"))
    try:
        from dvpd.checkpoint import load_model
    except ModuleNotFoundError:  # the format: length, JSON header, little-endian tensors
        from dvpd.config import complete_from_dict

        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        config = complete_from_dict(json.loads(header.pop("__metadata__")["config"]))
        types = {"F32": np.float32, "I64": np.int64, "F64": np.float64, "F16": np.float16}
        state = {}
        for name, entry in header.items():
            first, end = (8 + size + at for at in entry["data_offsets"])
            array = np.frombuffer(data[first:end], types[entry["dtype"]]).copy()
            state[name] = torch.from_numpy(array.reshape(entry["shape"]))
        model = DVPD(config.model)
        model.load_state_dict(state)
        return manifest, model.eval()
    return manifest, load_model(path)[1]


class Work:
    """Inputs of one call of the sampler, and the waveform that comes of it."""

    def __init__(self, manifest: Manifest, wav: FloatArray, batch: int = 1) -> None:
        """Prepare ``wav`` [L], the same for the whole ``batch``."""
        signal = manifest.signal
        self.manifest, self.length = manifest, len(wav)
        self.peak = float(np.abs(wav).max())
        features = compress(stft((wav / self.peak).astype(np.float32), signal), signal)
        self.n_frames = features.shape[1]
        padded = -(-self.n_frames // 4) * 4
        self.noisy = np.zeros((batch, 3, padded, signal.n_freqs), np.float32)
        self.noisy[:, :, : self.n_frames] = features
        self.noise = [frame_noise(0, i, 0, padded) for i in range(manifest.sampler.n_steps)]
        self.audio_s = batch * len(wav) / signal.sample_rate

    def run(self, backend: Any) -> FloatArray:
        """One call of the whole sampler."""
        spec = self.manifest
        return sample(
            backend,
            self.noisy,
            start=initial_state(spec.sde, spec.sampler.t_rs),
            steps=sampler_steps(spec.sde, spec.sampler.t_rs, spec.sampler.n_steps),
            alpha=spec.sampler.alpha,
            tlb=TlbFactors(),
            draw=lambda i: self.noise[i],
        )

    def wav(self, out: FloatArray) -> FloatArray:
        """Waveform [L] of the first of a batch."""
        spec = decompress(out[0, :, : self.n_frames], self.manifest.signal)
        wav: FloatArray = (istft(spec, self.length, self.manifest.signal) * self.peak).astype(
            np.float32
        )
        return wav


def snr_db(reference: FloatArray, wav: FloatArray) -> float:
    """Signal to error ratio (dB)."""
    error = np.square(wav.astype(np.float64) - reference).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(error, 1e-30)))


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


def floor(device: str, manifest: Manifest, n_bytes: int, window_s: float) -> dict[str, Any]:
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
    there = torch.empty_like(here)
    bandwidth = 2 * size / best(lambda: there.copy_(here))
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        if on_gpu or name == "fp32":
            a = torch.randn(n, n, device=device).to(dtype)
            rates[name] = n**3 / best(lambda m=a: m @ m)
    macs = float(manifest.macs_per_second["total"]) * window_s
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
    return predictive + n_steps * (branches["score"] + 2 * plane + kept)


def kernels(backend: TorchBackend, work: Work) -> dict[str, Any]:
    """Operations (CPU) or kernels (CUDA) of one window run call by call, and the longest ones."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.device(backend.device).type == "cuda"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    before, backend.capture = backend.capture, False
    work.run(backend)
    with profile(activities=kinds) as found:
        work.run(backend)
    backend.capture = before
    rows: dict[str, list[float]] = {}
    for event in found.events():
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        if is_kernel != on_gpu:
            continue
        took = event.device_time_total if on_gpu else event.self_cpu_time_total
        rows.setdefault(event.name, []).append(float(took))
    top = sorted(rows.items(), key=lambda item: -sum(item[1]))[:25]
    return {
        "kind": "kernels and copies" if on_gpu else "operations",
        "count": sum(map(len, rows.values())),
        "busy_ms": sum(map(sum, rows.values())) / 1e3,
        "longest": [{"name": n[:120], "count": len(t), "ms": sum(t) / 1e3} for n, t in top],
    }


class Energy:
    """Energy of an NVIDIA card by NVML, or the reason why there is none."""

    def __init__(self) -> None:
        """Look for a meter."""
        from dvpd.benchmarks.meters import find_meters

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


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, as the dictionary that is written."""
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device != "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    manifest, model = read_model(args.engine)
    n_steps = manifest.sampler.n_steps
    with np.load(CLIP) as clip:
        noisy, clean = (clip[k].astype(np.float32) / 32768 for k in ("noisy", "clean"))
    work = Work(manifest, noisy)
    reference = work.wav(work.run(TorchBackend(prepare(model), "cpu")))
    window = noisy[: (WINDOW_FRAMES - 1) * manifest.signal.hop_length]
    energy = Energy()
    report: dict[str, Any] = {
        "format": FORMAT,
        "machine": {
            "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor(),
            "kind": "cuda" if on_gpu else "cpu",
            "system": platform.platform(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if on_gpu else None,
            "threads": torch.get_num_threads(),
        },
        "model": {"name": manifest.name, "steps": n_steps, "window_s": len(window) / 16000},
        "noisy_pesq": pesq_of(clean, noisy),
        "reference_pesq": pesq_of(clean, reference),
        "energy_absent": energy.reason,
        "precisions": {},
    }
    waves = {"reference": reference}
    for precision in args.precisions:
        backend = TorchBackend(prepare(model, precision), device, compiled=args.compile)
        wav = work.wav(work.run(backend))
        waves[precision] = wav
        table: dict[str, Any] = {
            "snr_db": snr_db(reference, wav), "pesq": pesq_of(clean, wav)
        }  # fmt: skip
        one = Work(manifest, window)
        table["latency"] = {}
        for mode in ("captured", "eager") if on_gpu else ("eager",):
            backend.capture = mode == "captured"
            row = timed(lambda b=backend, w=one: w.run(b), args.seconds)
            table["latency"][mode] = row | {"rtf": row["p50_ms"] / 1e3 / one.audio_s}
        backend.capture = True
        table["energy_batch_1"] = energy.of(lambda b=backend, w=one: w.run(b), args.seconds)
        table["kernels"] = kernels(backend, one)
        table["floor"] = floor(
            device, manifest, compulsory_bytes(backend, one, n_steps), one.audio_s
        )
        table["throughput"] = []
        for batch in args.batches:
            many = Work(manifest, window, batch)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            row = timed(lambda b=backend, w=many: w.run(b), args.seconds)
            row |= {"batch": batch, "audio_s_per_s": 1e3 * many.audio_s / row["p50_ms"]}
            row["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
            table["throughput"].append(row)
        backend.close()
        report["precisions"][precision] = table
    report["engines"] = []
    for folder, name, device in engines_at_hand(args.engine, on_gpu):
        row = measure_engine(folder, name, device, Work(manifest, noisy), window, args)
        wav = row.pop("wav", None)
        if wav is not None:
            waves[f"{row['engine']}/{name}/{device}"] = wav
            row |= {"snr_db": snr_db(reference, wav), "pesq": pesq_of(clean, wav)}
        report["engines"].append(row)
    if args.waveforms:
        np.savez_compressed(args.waveforms, **waves)
    return report


def engines_at_hand(folder: Path, on_gpu: bool) -> list[tuple[Path, str, str]]:
    """Engine folder (fp32 and fp16), backend and device of each graph engine that could run."""
    from dvpd.runtime.backend import GPU_ONLY, installed

    found = []
    for each in (folder, folder.with_name(folder.name + "-fp16")):
        if not (each / "manifest.json").is_file():
            continue
        if installed("ort"):
            import onnxruntime

            there = onnxruntime.get_available_providers()
            found.append((each, "ort", "cpu"))
            for device, provider in (
                ("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")
            ):  # fmt: skip
                if on_gpu and provider in there:
                    found.append((each, "ort", device))
        if installed("openvino"):
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
    from dvpd.runtime.backend import open_backend
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
                    took = timed(lambda w=many: w.run(backend), args.seconds)
                except DvpdError as error:  # beyond the engine's profile, or its memory
                    row["throughput"].append({"batch": batch, "error": str(error)})
                    continue
                took |= {"batch": batch, "audio_s_per_s": 1e3 * many.audio_s / took["p50_ms"]}
                row["throughput"].append(took)
        finally:
            backend.close()
    except Exception as error:  # engines raise types of their own: a row, never a crash
        row["error"] = " ".join(str(error).split()) or type(error).__name__
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
    parser.add_argument("--engine", type=Path, default=ROOT / "engines" / "dvpd-tiny")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument(
        "--waveforms", type=Path, metavar="FILE", help="write waveforms (.npz), for PESQ elsewhere"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (2)")
    parser.add_argument("--batches", type=_numbers, help="default: 1 to 64; on a CPU 1")
    parser.add_argument("--compile", action="store_true", help="through torch.compile (minutes)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    from dvpd.runtime.errors import DvpdError

    args = build_parser().parse_args(argv)
    on_cpu = args.device == "cpu" or (args.device == "auto" and not torch.cuda.is_available())
    args.precisions = ("fp32",) if on_cpu else ("fp32", "fp16")
    args.batches = args.batches or ((1,) if on_cpu else BATCHES)
    try:
        report = measure(args)
    except (DvpdError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = json.dumps(report, indent=1, allow_nan=False)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
