"""One window from waveform to waveform: spectrum in, both networks and the sampler, spectrum out.

Everything that enhances, times or checks a window is put together from these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from .arrays import FloatArray
from .backends.base import Backend
from .phase import to_waveform
from .sampler import sample
from .schedule import SamplerStep, SdeSpec
from .spec import SamplerSpec, SignalSpec, TlbFactors, padded_frames
from .stft import compress, decompress, stft

Draw = Callable[[int], FloatArray]  # number of the draw -> noise [T, F], T as padded


class ModelSpec(Protocol):
    """What a manifest and a training config have in common."""

    @property
    def signal(self) -> SignalSpec:
        """The front end."""

    @property
    def sde(self) -> SdeSpec:
        """The diffusion process."""

    @property
    def sampler(self) -> SamplerSpec:
        """Default settings of the sampler."""


def encode(wavs: FloatArray, signal: SignalSpec) -> tuple[FloatArray, int]:
    """The networks' input for a batch of windows.

    Args:
        wavs: float32 [B, L], scaled to at most 1.
        signal: The front end.

    Returns:
        float32 [B, 3, T, F], T padded with zeros to what the graphs take, and the frames before
        that.
    """
    features = np.stack([compress(stft(wav, signal), signal) for wav in wavs])
    return pad(features), features.shape[2]


def pad(features: FloatArray) -> FloatArray:
    """Spectra with frames of zeros after them, up to a number that the graphs take.

    Args:
        features: float32 [B, 3, T, F].

    Returns:
        float32 [B, 3, T', F].
    """
    n_batch, n_channels, n_frames, n_freqs = features.shape
    out = np.zeros((n_batch, n_channels, padded_frames(n_frames), n_freqs), np.float32)
    out[:, :, :n_frames] = features
    return out


def denoise(
    backend: Backend,
    spec: ModelSpec,
    noisy: FloatArray,
    draw: Draw,
    *,
    steps: Sequence[SamplerStep] | None = None,
    alpha: float | None = None,
    tlb: TlbFactors | None = None,
) -> FloatArray:
    """Both networks and the sampler on what ``encode`` returned.

    Args:
        backend: The two networks.
        spec: Process and default sampler.
        noisy: float32 [B, 3, T, F].
        draw: Makes the noise of a draw, shared by the batch.
        steps: Of the reverse process; none for the predictive branch alone. None: the default.
        alpha: Weight of the predictive magnitude; None: the default.
        tlb: Factors of the score network; None for ones.

    Returns:
        float32 [B, 2, T, F].

    Raises:
        BackendError: A network failed.
    """
    sampler = spec.sampler
    if steps is None:
        steps = sampler.steps(spec.sde)
    return sample(
        backend,
        noisy,
        start=sampler.start(spec.sde),
        steps=steps,
        alpha=sampler.alpha if alpha is None else alpha,
        tlb=TlbFactors() if tlb is None else tlb,
        draw=draw,
    )


def decode(
    clean_ri: FloatArray, n_frames: int, n_samples: int, signal: SignalSpec, phase_rounds: int = 0
) -> FloatArray:
    """Waveforms of what ``denoise`` returned.

    Args:
        clean_ri: float32 [B, 2, T, F].
        n_frames: Frames before the padding.
        n_samples: Samples of each waveform.
        signal: The front end.
        phase_rounds: See ``phase.to_waveform``.

    Returns:
        float32 [B, L].
    """
    spectra = (decompress(x[:, :n_frames], signal) for x in clean_ri)
    wavs = [to_waveform(x, n_samples, signal, phase_rounds) for x in spectra]
    return np.stack(wavs).astype(np.float32, copy=False)
