"""The signal front end in NumPy: centred STFT, its inverse, and power-law compression.

It equals ``torch.stft(center=True, pad_mode="reflect")`` with a periodic Hann window; the torch
form lives in ``dvpd.spectral`` and a test binds the two. Sums run in float64, results are
complex64 or float32, frames come before bins ([..., T, F]).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .arrays import ComplexArray, FloatArray
from .errors import InputError
from .spec import SignalSpec

_BLOCK_FRAMES = 256  # bounds the float64 work space near 1 MB


def _blocks(n_frames: int) -> Iterator[slice]:
    """Frames that are computed at a time."""
    for first in range(0, n_frames, _BLOCK_FRAMES):
        yield slice(first, first + _BLOCK_FRAMES)


@lru_cache(maxsize=8)
def hann_periodic(length: int) -> NDArray[np.float64]:
    """Periodic Hann window, float64 [length], read-only.

    Args:
        length: Window length (samples).
    """
    window: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / length)
    window.setflags(write=False)
    return window


def stft(wav: NDArray[np.floating], signal: SignalSpec) -> ComplexArray:
    """Centred short-time Fourier transform.

    Args:
        wav: [L] samples, L >= 1. Fewer than n_fft / 2 + 1 samples cannot be reflected: such a
            signal is first extended with zeros to that length (``istft`` crops them again).
        signal: Front-end constants.

    Returns:
        complex64 [T, F], T = 1 + max(L, n_fft / 2 + 1) // hop_length.

    Raises:
        InputError: ``wav`` is empty or not one-dimensional.
    """
    if wav.ndim != 1 or wav.size == 0:
        raise InputError(f"stft got shape {list(wav.shape)}; expected [L] with L >= 1")
    half = signal.n_fft // 2
    if wav.size <= half:
        wav = np.concatenate([wav, np.zeros(half + 1 - wav.size, wav.dtype)])
    padded = np.pad(wav, half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, signal.n_fft)[:: signal.hop_length]
    spec = np.empty((frames.shape[0], signal.n_freqs), np.complex64)
    window = hann_periodic(signal.n_fft)
    for block in _blocks(len(spec)):
        spec[block] = np.fft.rfft(frames[block] * window, axis=-1)
    return spec


def istft(spec: NDArray[np.complexfloating], n_samples: int, signal: SignalSpec) -> FloatArray:
    """Inverse of ``stft``: overlap-add with the window, divided by the summed squared window.

    Args:
        spec: complex [T, F].
        n_samples: Length L to return (samples).
        signal: Front-end constants.

    Returns:
        float32 [L].

    Raises:
        InputError: Wrong number of bins, or too few frames for ``n_samples``.
    """
    if spec.ndim != 2 or spec.shape[1] != signal.n_freqs:
        raise InputError(f"istft got shape {list(spec.shape)}; expected [T, {signal.n_freqs}]")
    n_frames, hop = spec.shape[0], signal.hop_length
    if n_samples < 1 or n_frames < signal.n_frames(n_samples):
        raise InputError(
            f"istft got {n_frames} frames for {n_samples} samples; expected at least "
            f"{signal.n_frames(max(n_samples, 1))} frames and 1 sample"
        )
    window = hann_periodic(signal.n_fft)
    overlap = signal.n_fft // hop
    # Rows of one hop: frame m adds its part p to row m + p.
    total = np.zeros((n_frames + overlap - 1, hop))
    norm = np.zeros_like(total)
    squared = (window**2).reshape(overlap, hop)
    for first in range(0, n_frames, _BLOCK_FRAMES):
        block = np.fft.irfft(spec[first : first + _BLOCK_FRAMES], n=signal.n_fft, axis=-1) * window
        parts = block.reshape(-1, overlap, hop)
        for p in range(overlap):
            rows = slice(first + p, first + p + parts.shape[0])
            total[rows] += parts[:, p]
            norm[rows] += squared[p]
    half = signal.n_fft // 2
    cut = slice(half, half + n_samples)
    # The last n_samples % hop samples sit under the tail of the last windows, never at norm 0.
    wav: FloatArray = (total.reshape(-1)[cut] / norm.reshape(-1)[cut]).astype(np.float32)
    return wav


def compress(spec: NDArray[np.complexfloating], signal: SignalSpec) -> FloatArray:
    """Power-law compression: magnitude f * |X|^p, phase kept (model input).

    Args:
        spec: complex [T, F].
        signal: Front-end constants.

    Returns:
        float32 [3, T, F]: real part, imaginary part, magnitude of the compressed spectrum.
        A bin of magnitude 0 gives zeros.
    """
    out = np.empty((3, *spec.shape), np.float32)
    for frames in _blocks(len(spec)):
        part = spec[frames]
        mag = np.abs(part)
        # x^(p-1) would be infinite at 0; a zero bin has no phase to keep.
        safe = np.where(mag > 0.0, mag, 1.0)
        compressed = signal.compress_factor * safe**signal.compress_exponent * (mag > 0.0)
        gain = compressed / safe
        out[:, frames] = part.real * gain, part.imag * gain, compressed
    return out


def decompress(spec_ri: NDArray[np.floating], signal: SignalSpec) -> ComplexArray:
    """Inverse of ``compress`` for a real and imaginary part.

    Args:
        spec_ri: [2, T, F], compressed.
        signal: Front-end constants.

    Returns:
        complex64 [T, F]; zeros stay zeros.
    """
    spec = np.empty(spec_ri.shape[1:], np.complex64)
    # |X| / mag = f^(-1/p) mag^(1/p - 1): no division by the magnitude, so 0 needs no guard.
    inverse = 1.0 / signal.compress_exponent
    for frames in _blocks(len(spec)):
        real, imag = spec_ri[:, frames].astype(np.float64)
        mag = np.sqrt(real**2 + imag**2)
        # Values beyond float32 become infinite here and are refused by the caller.
        with np.errstate(over="ignore", invalid="ignore"):
            gain = signal.compress_factor**-inverse * mag ** (inverse - 1.0)
            spec[frames] = (real + 1j * imag) * gain
    return spec
