"""STFT and power-law compression in torch, the counterpart of ``runtime/stft.py``.

16 kHz, 512-point periodic Hann window, hop 128, centred, reflect padding: 257 bins, 125 frames a
second. Compression: magnitude m -> factor * m^exponent, phase kept. A parity test binds the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .runtime.spec import SignalSpec

SIGNAL = SignalSpec()
POWER_FLOOR = 1e-12  # of a compressed |X|^2: keeps the gradient of its root finite at zero
LINEAR_POWER_FLOOR = 1e-24  # of an uncompressed |X|^2: far below the quantisation of 24-bit audio


def stft(wav: Tensor, signal: SignalSpec = SIGNAL) -> Tensor:
    """Complex spectrum [B, T, F] of ``wav`` [B, L], with T = 1 + L // hop frames."""
    window = torch.hann_window(signal.n_fft, periodic=True, dtype=wav.dtype, device=wav.device)
    spec = torch.stft(
        wav, signal.n_fft, signal.hop_length, window=window, center=True, pad_mode="reflect",
        return_complex=True,
    )  # fmt: skip
    return spec.transpose(1, 2)


def istft(spec: Tensor, length: int, signal: SignalSpec = SIGNAL) -> Tensor:
    """Waveform [B, length] of a complex spectrum [B, T, F]."""
    real = spec.real.dtype
    window = torch.hann_window(signal.n_fft, periodic=True, dtype=real, device=spec.device)
    return torch.istft(
        spec.transpose(1, 2), signal.n_fft, signal.hop_length, window=window, center=True,
        length=length,
    )  # fmt: skip


def compress(wav: Tensor, signal: SignalSpec = SIGNAL) -> Tensor:
    """Compressed spectrum [B, 2, T, F] (real, imaginary) of ``wav`` [B, L]."""
    spec = torch.view_as_real(stft(wav, signal)).movedim(-1, 1)
    power = spec.square().sum(1, keepdim=True).clamp_min(LINEAR_POWER_FLOOR)
    return spec * (signal.compress_factor * power ** ((signal.compress_exponent - 1) / 2))


def compressed_noisy(wav: Tensor, signal: SignalSpec = SIGNAL) -> Tensor:
    """The networks' input [B, 3, T, F]: compressed real, imaginary and magnitude."""
    ri = compress(wav, signal)
    return torch.cat([ri, magnitude(ri)], dim=1)


def magnitude(ri: Tensor) -> Tensor:
    """Magnitude [B, 1, T, F] of ``ri`` [B, 2, T, F], with a finite gradient at zero."""
    return ri.square().sum(1, keepdim=True).add(POWER_FLOOR).sqrt()


def linear_power(ri: Tensor, signal: SignalSpec = SIGNAL) -> Tensor:
    """Power |X|^2 [B, T, F] of the uncompressed spectrum, from ``ri`` [B, 2, T, F]."""
    root = 1.0 / signal.compress_exponent
    power = ri.float().square().sum(1) + POWER_FLOOR
    return power**root * signal.compress_factor ** (-2.0 * root)


def istft_from_compressed(ri: Tensor, length: int, signal: SignalSpec = SIGNAL) -> Tensor:
    """Undo the compression of ``ri`` [B, 2, T, F] and return the waveform [B, length]."""
    ri = ri.float()
    power = ri.square().sum(1, keepdim=True).clamp_min(POWER_FLOOR)
    # |X| = (m / factor)^(1 / exponent), so X = ri / m * |X|
    root = 1 / signal.compress_exponent
    gain = power ** ((root - 1) / 2) / signal.compress_factor**root
    spec = torch.view_as_complex((ri * gain).movedim(1, -1).contiguous())
    return istft(spec, length, signal)
