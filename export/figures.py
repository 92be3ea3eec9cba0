"""Figures that every check of a graph shares: errors, speech to test on, waveforms. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.backends.base import Backend, StreamBackend
from dvpd.runtime.block_sampler import BlockSampler, Lane
from dvpd.runtime.errors import InputError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import CausalSpec, TlbFactors
from dvpd.runtime.window import ModelSpec, decode, denoise, encode

S = TypeVar("S", bound=ModelSpec)

MAX_VERIFY_S = 30.0  # read from a recording at most (s)
CALLS = (4, 32, 8, 4)  # frames of a causal model's calls: one block, many, and back


def with_score(spec: S) -> S:
    """``spec`` with a sampler that calls the score network: checks are of both, whatever the default.

    Args:
        spec: A config or a manifest.
    """
    sampler = replace(spec.sampler, n_steps=spec.sampler.score_steps)
    changed: S = replace(cast(Any, spec), sampler=sampler)
    return changed


def snr_db(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Signal-to-noise ratio of ``estimate`` (dB), at most 200; -inf where it is not finite."""
    ref, est = reference.astype(np.float64), estimate.astype(np.float64)
    if not np.isfinite(est).all():
        return float("-inf")
    noise = max(float(np.square(est - ref).sum()), 1e-300)
    return min(200.0, 10 * float(np.log10(max(float(np.square(ref).sum()), 1e-300) / noise)))


def error_of_range(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """Largest absolute error as a part of the reference's range; inf where not finite."""
    if reference.shape != value.shape or not np.isfinite(value).all():
        return float("inf")
    span = float(reference.max() - reference.min())
    return float(np.abs(value.astype(np.float64) - reference).max()) / max(span, 1e-12)


def synthetic_speech(n_samples: int, sample_rate: int) -> FloatArray:
    """A deterministic speech-like signal: voiced syllables and hiss, over a noise floor."""
    rng = np.random.default_rng(0)
    time = np.arange(n_samples) / sample_rate
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    voiced = sum(np.sin(k * phase) / k ** (1 + 0.5 * (k % 3)) for k in range(1, 25))
    syllable = np.clip(np.sin(2 * np.pi * 2.3 * time), 0, 1) ** 0.5
    hiss = np.diff(rng.standard_normal(n_samples + 1)) * np.clip(
        -np.sin(2 * np.pi * 2.3 * time), 0, 1
    )
    wav = syllable * voiced + 0.2 * hiss + 0.05 * rng.standard_normal(n_samples)
    return np.asarray(wav / np.abs(wav).max(), np.float32)


def speech(config: ModelSpec, wav: str | Path | None = None) -> tuple[FloatArray, str]:
    """Mono audio at the model's rate, peak 1, for the checks, and where it is from.

    Args:
        config: A config or a manifest, for the sample rate.
        wav: A recording; without one the checkout's test clips, or synthetic speech.

    Raises:
        InputError: The recording cannot be read.
    """
    rate, needed = config.signal.sample_rate, 5 * config.signal.sample_rate
    assets = Path(__file__).resolve().parent.parent / "tests" / "assets"
    paths = [Path(wav)] if wav else sorted(assets.glob("*_noisy.flac"))
    if not paths:
        return synthetic_speech(needed, rate), "synthetic"
    import soundfile
    import soxr

    parts = []
    for path in paths:
        try:
            with soundfile.SoundFile(str(path)) as file:
                source_rate = file.samplerate
                data = file.read(int(MAX_VERIFY_S * source_rate), dtype="float32", always_2d=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path}: cannot be read as audio ({error})") from None
        parts.append(soxr.resample(data[:, 0], source_rate, rate))
    joined = np.concatenate(parts)
    joined = np.resize(joined, max(len(joined), needed))  # repeats a short recording
    peak = float(np.abs(joined).max())
    if not np.isfinite(peak) or peak == 0:
        raise InputError(f"{paths[0]}: silent or not finite; give a recording of speech")
    return (joined / peak).astype(np.float32), ", ".join(path.name for path in paths)


def runtime_waveform(
    backend: Backend, spec: ModelSpec, wav: FloatArray, noise: Sequence[FloatArray], tlb: TlbFactors
) -> FloatArray:
    """One window through the runtime's sampler, at the amplitude that it has.

    Args:
        backend: The graphs.
        spec: A config or a manifest.
        wav: [L] at the model's rate; the runtime itself would scale it to a peak of 1.
        noise: One draw [1, 1, T, F] for each step, T as padded.
        tlb: Factors of the score network.

    Returns:
        float32 [L].
    """
    noisy, n_frames = encode(wav[None], spec.signal)
    ri = denoise(backend, spec, noisy, lambda i: noise[i], tlb=tlb)
    out: FloatArray = decode(ri, n_frames, len(wav), spec.signal)[0]
    return out


def calls(n_frames: int) -> Iterator[slice]:
    """The frames of a causal model's calls, as long as ``CALLS`` over and over, the last one cut.

    Args:
        n_frames: In all, a multiple of 4.
    """
    first = 0
    for length in cycle(CALLS):
        if first >= n_frames:
            return
        yield slice(first, min(first + length, n_frames))
        first += length


def stream_waveform(
    backend: Backend,
    manifest: Manifest,
    wav: FloatArray,
    noise: Sequence[FloatArray],
    tlb: TlbFactors,
) -> FloatArray:
    """As ``runtime_waveform`` for a causal model: call after call, with the states of the calls before.

    Args:
        backend: The graphs, as a ``StreamBackend``.
        manifest: Of the causal model.
        wav: [L] at the model's rate; the runtime itself would bring it to one level.
        noise: As there.
        tlb: Factors of the score network.

    Returns:
        float32 [L], the delay of the look-ahead taken out.
    """
    sampler, signal = manifest.sampler, manifest.signal
    late = cast(CausalSpec, manifest.causal).lookahead_frames
    noisy, n_frames = encode(wav[None], signal)
    noisy = np.pad(noisy, ((0, 0), (0, 0), (0, late), (0, 0)))
    lane = Lane(lambda i, first, n: noise[i][0, 0, first : first + n], late, signal.n_freqs)
    networks = BlockSampler(
        cast(StreamBackend, backend),
        start=sampler.start(manifest.sde),
        steps=sampler.steps(manifest.sde),
        alpha=sampler.alpha,
        tlb=tlb,
        lookahead_frames=late,
    )
    parts = [networks.push([lane], noisy[:, :, part]) for part in calls(noisy.shape[2])]
    ri = np.concatenate(parts, axis=2)[:, :, late:]
    out: FloatArray = decode(ri, n_frames, len(wav), signal)[0]
    return out
