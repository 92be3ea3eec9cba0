"""What both GPU checks work with: a model and its inputs, its kernels, the device, rows that are JSON."""

from __future__ import annotations

import copy
import json
import logging
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dvpd.model import DVPD
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.doctor import processor_name
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.noise import frame_noise
from dvpd.runtime.window import decode, denoise, encode
from dvpd.torch_backend import TorchBackend, need_checkpoint

BATCHES = (1, 2, 4, 8, 16, 32, 64)
COPY_BYTES = 1 << 30  # of the copy that measures the memory's bandwidth


def read_model(folder: Path) -> tuple[Manifest, DVPD]:
    """Manifest and model of an engine folder; its checkpoint may lie in the folder beside it.

    The package safetensors is optional.
    """
    manifest = Manifest.load(folder)
    path = need_checkpoint(folder, manifest.checkpoint_sha256)
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
        """Prepare ``wav`` [L], the same for the whole ``batch``; the sampler takes a step at least."""
        signal = manifest.signal
        self.steps = manifest.sampler.score_steps
        self.manifest, self.length = manifest, len(wav)
        self.peak = float(np.abs(wav).max())
        scaled = (wav / self.peak).astype(np.float32)
        one, self.n_frames = encode(scaled[None], signal)
        self.noisy = np.repeat(one, batch, 0)
        n_padded = one.shape[2]
        self.noise = [frame_noise(0, i, 0, n_padded) for i in range(self.steps)]
        self.audio_s = batch * len(wav) / signal.sample_rate

    def repeated(self, batch: int) -> Work:
        """The first recording ``batch`` times."""
        many = copy.copy(self)
        many.noisy = np.repeat(self.noisy[:1], batch, 0)
        many.audio_s = batch * self.length / self.manifest.signal.sample_rate
        return many

    def run(self, backend: Any) -> FloatArray:
        """One call of the whole sampler."""
        sde, sampler = self.manifest.sde, self.manifest.sampler
        steps = sampler.steps(sde, self.steps)
        return denoise(backend, self.manifest, self.noisy, lambda i: self.noise[i], steps=steps)

    def wav(self, out: FloatArray) -> FloatArray:
        """Waveform [L] of the first of a batch."""
        wav = decode(out[:1], self.n_frames, self.length, self.manifest.signal)[0]
        scaled: FloatArray = (wav * self.peak).astype(np.float32)
        return scaled


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
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]  # exported, though its stub does not say so
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


def finite(value: Any) -> Any:
    """``value`` for JSON: numbers that are not finite, which JSON has not, become null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def reason(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def describe(device: str) -> dict[str, Any]:
    """The machine and the versions that decide its figures."""
    on_gpu = device != "cpu"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        "kind": "cuda" if on_gpu else "cpu",
        "system": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "threads": torch.get_num_threads(),
    }


@contextmanager
def heard_warnings() -> Iterator[list[str]]:
    """What the package warns of inside, such as a capture that failed or a batch that was halved."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Listener(logging.WARNING)
    log = logging.getLogger("dvpd")
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)
