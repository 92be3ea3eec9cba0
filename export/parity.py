"""Parity of the exported graphs with the PyTorch model, on speech; every figure is returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dvpd import sde as torch_sde
from dvpd import spectral
from dvpd.causal import advance
from dvpd.config import Config
from dvpd.model import DVPD
from dvpd.quality.models import torch_enhancer
from dvpd.runtime import stft
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.backends.base import Backend, StreamBackend
from dvpd.runtime.backends.blocks import JointBackend
from dvpd.runtime.errors import ParityError
from dvpd.runtime.manifest import BlockPoint
from dvpd.runtime.spec import BLOCK_STATES, FRAME_MULTIPLE, TLB_PRESETS, TlbFactors, padded_frames

from .figures import (
    CALLS,
    error_of_range,
    runtime_waveform,
    snr_db,
    speech,
    stream_waveform,
    synthetic_speech,
    with_score,
)

__all__ = [
    "Report",
    "error_of_range",
    "require",
    "snr_db",
    "speech",
    "synthetic_speech",
    "verify",
    "verify_block",
]

# Contract: float32 graphs differ from PyTorch by rounding only; half keeps about three digits.
MAX_ERROR_OF_RANGE = 1e-4
MIN_SNR_DB = {"fp32": 80.0, "fp16": 35.0}
LENGTHS = (32, 76, 128)  # frames; three different quarters, the first the smallest allowed
BATCHES = (1, 2)
HARDEST = "severe"  # the TLB preset with the largest gains: the hardest case for half
BLOCKS = 12  # that the graph of one block is compared on
WAV_S = 1.5  # speech for the whole chain (s)


@dataclass
class Report:
    """Figures of one verification.

    Attributes:
        errors: Largest error of each output over all sizes, as a part of the output's range.
        frames: Of the calls that were compared.
        waveform_snr_db: SNR of the graphs' waveform against PyTorch float32, same noise (dB).
        half_snr_db: The same for the model in true half arithmetic (fp16 only).
        half_max: Largest magnitude met in half arithmetic; 65504 is the end of the range.
        failures: One line for each figure out of bounds.
    """

    errors: dict[str, float] = field(default_factory=dict)
    frames: tuple[int, ...] = LENGTHS
    waveform_snr_db: float = float("nan")
    half_snr_db: float | None = None
    half_max: float | None = None
    failures: list[str] = field(default_factory=list)

    def as_dict(self, source: str) -> dict[str, Any]:
        """What the manifest holds of it."""
        table: dict[str, Any] = {
            "reference": "pytorch fp32, onnxruntime cpu",
            "speech": source,
            "frames": list(self.frames),
            "batches": list(BATCHES),
            "max_error_of_range": {k: float(f"{v:.3g}") for k, v in self.errors.items()},
            "waveform_snr_db": round(self.waveform_snr_db, 1),
        }
        if self.half_snr_db is not None and self.half_max is not None:
            table["half_snr_db"] = round(self.half_snr_db, 1)
            table["half_max"] = round(self.half_max, 1)
        return table

    def text(self) -> str:
        """One line of figures."""
        worst = max(self.errors, key=lambda k: self.errors[k])
        line = (
            f"largest error {self.errors[worst]:.1e} of the range ({worst}), "
            f"waveform SNR {self.waveform_snr_db:.1f} dB"
        )
        if self.half_snr_db is not None:
            line += f", in half arithmetic {self.half_snr_db:.1f} dB, peak {self.half_max:.0f}"
        return line


class _HalfRange(TorchDispatchMode):
    """Watches every half-precision result for overflow; sigmoid would hide an infinity."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.peak = 0.0
        self.first: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "empty" in str(func):  # memory that nothing has been written to yet
            return out
        # Where shapes alone are computed, there is nothing to watch.
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if (
                isinstance(value, Tensor)
                and value.dtype == torch.float16
                and value.numel()
                and not value.is_meta
            ):
                peak = float(value.float().abs().max())
                if not np.isfinite(peak) and self.first is None:
                    self.first = str(func)
                self.peak = max(self.peak, peak)
        return out


def _torch_waveform(
    model: DVPD, config: Config, wav: FloatArray, noise: Sequence[FloatArray], tlb: TlbFactors
) -> FloatArray:
    noisy = _padded(spectral.compressed_noisy(torch.from_numpy(wav)[None], config.signal))
    skip, backbone = (torch.from_numpy(a) for a in tlb.arrays())
    ri, _ = torch_sde.sample(
        model,
        noisy,
        [torch.from_numpy(z) for z in noise],
        sde=config.sde,
        sampler=config.sampler,
        tlb_skip=skip,
        tlb_backbone=backbone,
    )
    out = spectral.istft_from_compressed(ri, len(wav), config.signal)
    return np.asarray(out[0].numpy(), dtype=np.float32)


def _padded(noisy: Tensor) -> Tensor:
    n_frames = noisy.shape[2]
    return torch.nn.functional.pad(noisy, (0, 0, 0, padded_frames(n_frames) - n_frames))


def _compare_outputs(
    model: DVPD, config: Config, backend: Backend, noisy: FloatArray, precision: str, report: Report
) -> None:
    """Each output of both graphs at every length and batch; each graph on PyTorch's inputs."""
    rng = np.random.default_rng(1)
    factors = list(TLB_PRESETS.values())
    half = np.float16 if precision == "fp16" else np.float32
    for i, (n_frames, batch) in enumerate((t, b) for t in LENGTHS for b in BATCHES):
        first = [int(rng.integers(0, noisy.shape[2] - n_frames)) for _ in range(batch)]
        x = np.concatenate([noisy[:, :, f : f + n_frames] for f in first])
        z = rng.standard_normal((batch, 1, n_frames, x.shape[3]), np.float32)
        t = (config.sampler.t_rs * rng.uniform(0.3, 1.0, batch)).astype(np.float32)
        xt = x[:, 2:3] + np.float32(0.2) * z
        skip, backbone = factors[i % len(factors)].arrays()
        with torch.no_grad():
            clean, feats = model.predictive(torch.from_numpy(x))
            sigma_z = model.score(
                torch.from_numpy(xt),
                torch.from_numpy(t),
                feats,
                torch.from_numpy(skip),
                torch.from_numpy(backbone),
            )
        got_clean, got_feats = backend.predict(x)
        feats_in = [np.ascontiguousarray(f.numpy().astype(half)) for f in feats]
        got_sigma = backend.score(xt, t, feats_in, skip, backbone)
        pairs = {"clean_ri": (clean, got_clean), "sigma_z": (sigma_z, got_sigma)}
        pairs |= {f"feat_{k}": (f, got_feats[k]) for k, f in enumerate(feats)}
        for name, (want, got) in pairs.items():
            error = error_of_range(want.numpy(), np.asarray(got))
            report.errors[name] = max(report.errors.get(name, 0.0), error)


def _compare_stream(
    model: DVPD, config: Config, backend: Backend, noisy: FloatArray, precision: str, report: Report
) -> None:
    """Outputs and states of a causal model's graphs, call after call with the states before."""
    live = cast(StreamBackend, backend)
    rng = np.random.default_rng(1)
    half = np.float16 if precision == "fp16" else np.float32
    for batch, preset in zip(BATCHES, ("none", "severe"), strict=True):
        states: list[Any] = [None] * 4
        first = [int(rng.integers(0, noisy.shape[2] - sum(CALLS))) for _ in range(batch)]
        factors = TLB_PRESETS[preset].arrays()
        t = (config.sampler.t_rs * rng.uniform(0.3, 1.0, batch)).astype(np.float32)
        for n_frames in CALLS:
            x = np.concatenate([noisy[:, :, f : f + n_frames] for f in first])
            first = [f + n_frames for f in first]
            xt = x[:, 2:3] + np.float32(0.2) * rng.standard_normal(x[:, 2:3].shape, np.float32)
            given = [torch.from_numpy(a) for a in (xt, t, *factors)]
            with torch.no_grad():
                (clean, feats), states[0] = advance(
                    model.predictive, states[0], torch.from_numpy(x)
                )
                sigma_z, states[1] = advance(model.score, states[1], *given[:2], feats, *given[2:])
            got_clean, got_feats, states[2] = live.predict_next(x, states[2])
            feats_in = [np.ascontiguousarray(f.numpy().astype(half)) for f in feats]
            got_sigma, states[3] = live.score_next(xt, t, feats_in, *factors, states[3])
            pairs = {"clean_ri": (clean, got_clean), "sigma_z": (sigma_z, got_sigma)}
            pairs |= {f"feat_{k}": (f, got_feats[k]) for k, f in enumerate(feats)}
            pairs |= {k: (states[i], states[2 + i]) for i, k in enumerate(BLOCK_STATES)}
            for name, (want, got) in pairs.items():
                error = error_of_range(want.numpy(), np.asarray(got))
                report.errors[name] = max(report.errors.get(name, 0.0), error)


def verify_block(
    model: DVPD, config: Config, backend: Backend, point: BlockPoint, wav: FloatArray
) -> dict[str, float]:
    """Compare a causal model's graph of one block with ``model``, block after block.

    Args:
        model: As in `verify`.
        config: Its config.
        backend: As `JointBackend`, the graph loaded.
        point: What the graph is for.
        wav: As in `verify`.

    Returns:
        Largest errors of the outputs and of the states as a part of their range.

    Raises:
        ParityError: One is out of bounds, or the backend does not use the graph.
    """
    live, rng = cast(JointBackend, backend), np.random.default_rng(1)
    noisy = stft.compress(stft.stft(wav, config.signal), config.signal)[None]
    t, factors = torch.tensor([point.t]), torch.ones(2, 2)
    wanted: list[Tensor | None] = [None, None]
    got: Sequence[Any] = (None, None)
    errors: dict[str, float] = {}
    for first in range(0, BLOCKS * FRAME_MULTIPLE, FRAME_MULTIPLE):
        x = np.ascontiguousarray(noisy[:, :, first : first + FRAME_MULTIPLE])
        given = np.float32(0.2) * rng.standard_normal(x[:, :1].shape, np.float32)
        with torch.no_grad():
            (clean, feats), wanted[0] = advance(model.predictive, wanted[0], torch.from_numpy(x))
            xt = point.w_x0 * clean.square().sum(1, keepdim=True).sqrt() + torch.from_numpy(given)
            sigma, wanted[1] = advance(model.score, wanted[1], xt, t, feats, factors, factors)
        done = live.both_next(x, given, got, point, TlbFactors())
        if done is None:
            raise ParityError("the graph of one block was not used for a block of one stream")
        got = done[2]
        for name, want, value in (
            ("clean_ri", clean, done[0]),
            ("sigma_z", sigma, done[1]),
            *zip(BLOCK_STATES, wanted, got, strict=True),
        ):
            assert want is not None
            array = value if isinstance(value, np.ndarray) else value.numpy()
            errors[name] = max(errors.get(name, 0.0), error_of_range(want.numpy(), array))
    for name, error in errors.items():
        if not error <= MAX_ERROR_OF_RANGE:
            raise ParityError(
                f"the graph of one block differs from the model: {name} by {error:.2e} of its range; "
                f"at most {MAX_ERROR_OF_RANGE:.0e}"
            )
    return errors


def verify(
    model: DVPD,
    config: Config,
    backend: Backend,
    precision: str,
    wav: FloatArray,
    half_model: DVPD | None = None,
) -> Report:
    """Compare the graphs that ``backend`` has loaded with ``model``.

    Args:
        model: The PyTorch model in float32 and eval mode, as trained (norms not folded).
        config: Its config.
        backend: The graphs.
        precision: "fp32" or "fp16"; sets the tolerances.
        wav: Speech at the model's rate, peak 1, some seconds.
        half_model: For fp16: the folded half-precision model, run in true half arithmetic.

    Returns:
        All figures; ``failures`` is empty if every one is within its bound.
    """
    config = with_score(config)
    report = Report(frames=CALLS if config.model.causal else LENGTHS)
    noisy = stft.compress(stft.stft(wav, config.signal), config.signal)[None]
    compare = _compare_stream if config.model.causal else _compare_outputs
    compare(model, config, backend, noisy, precision, report)
    bound = MAX_ERROR_OF_RANGE if precision == "fp32" else float("inf")
    for name, error in report.errors.items():
        if not error <= bound or not np.isfinite(error):
            report.failures.append(f"{name}: error {error:.2e} of the range; at most {bound:.0e}")
    short = wav[: int(WAV_S * config.signal.sample_rate)]
    n_frames = padded_frames(config.signal.n_frames(len(short)))
    rng = np.random.default_rng(2)
    noise = [
        rng.standard_normal((1, 1, n_frames, config.signal.n_freqs), np.float32)
        for _ in range(config.sampler.n_steps)
    ]
    tlb = TLB_PRESETS[HARDEST]

    def reference(torch_model: DVPD) -> FloatArray:
        if not config.model.causal:
            return _torch_waveform(torch_model, config, short, noise, tlb)
        wrapped = torch_enhancer(torch_model, config)
        return stream_waveform(wrapped.backend, wrapped.manifest, short, noise, tlb)

    want = reference(model)
    lowest = MIN_SNR_DB[precision]
    if config.model.causal:
        manifest = torch_enhancer(model, config).manifest
        got = stream_waveform(backend, manifest, short, noise, tlb)
    else:
        got = runtime_waveform(backend, config, short, noise, tlb)
    report.waveform_snr_db = snr_db(want, got)
    if not report.waveform_snr_db >= lowest:
        report.failures.append(
            f"waveform SNR {report.waveform_snr_db:.1f} dB; at least {lowest:.0f} dB"
        )
    if half_model is not None:
        with _HalfRange() as watched:
            got = reference(half_model)
        report.half_snr_db, report.half_max = snr_db(want, got), watched.peak
        if watched.first is not None:
            report.failures.append(f"half precision overflows, first in {watched.first}")
        if not report.half_snr_db >= lowest:
            report.failures.append(
                f"waveform SNR in half arithmetic {report.half_snr_db:.1f} dB; at least "
                f"{lowest:.0f} dB"
            )
    return report


def require(report: Report) -> None:
    """Raise if a figure is out of bounds.

    Raises:
        ParityError: With every figure that is.
    """
    if report.failures:
        raise ParityError("the graphs differ from the model: " + "; ".join(report.failures))
