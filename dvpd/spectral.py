"""STFT and power-law compression in torch, the counterpart of ``runtime/stft.py``.

16 kHz, 512-point periodic Hann window, hop 128, centred, reflect padding: 257 bins, 125 frames a
second. Compression: magnitude m -> factor * m^exponent, phase kept. A parity test binds the two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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


class Dft(nn.Module):
    """STFT and inverse as products with the DFT's bases; equal to ``torch.stft`` and ``torch.istft``.

    Centred frames, reflect padding, periodic Hann window. Nothing is read from the device, and no
    tensor is made from host data: the bases are buffers.
    """

    analysis: Tensor
    synthesis: Tensor
    squares: Tensor

    def __init__(self, n_fft: int, hop: int, dtype: torch.dtype = torch.float32) -> None:
        """Make the bases.

        Args:
            n_fft: Points of a frame.
            hop: Samples between frames; a divisor of ``n_fft / 2``.
            dtype: Of the products. Where float32 products may run in TF32 (10 bits), float64: their
                rounding would bury the bins that lie 60 dB below the loudest.
        """
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        if n_fft % (2 * hop):
            raise ValueError(f"hop is {hop}; expected a divisor of n_fft / 2 = {n_fft // 2}")
        window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
        bins = torch.arange(n_fft // 2 + 1)
        # The product of whole numbers modulo n_fft: the angles are exact to the last bit.
        turn = (torch.arange(n_fft)[:, None] * bins % n_fft).double() * (2.0 * math.pi / n_fft)
        bases = torch.stack([turn.cos(), -turn.sin()], dim=1)  # [n_fft, 2, F]
        bases[:, 1, 0] = bases[:, 1, -1] = 0.0  # the imaginary part of a real signal's outer bins
        twice = torch.where((bins == 0) | (bins == n_fft // 2), 1.0, 2.0) / n_fft
        windowed = bases * window[:, None, None]
        tables = {
            "analysis": windowed.flatten(1),  # [n_fft, 2 F]
            "synthesis": (windowed * twice).flatten(1).T,  # [2 F, n_fft]
            "squares": window.square().reshape(1, 1, -1, hop),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.to(dtype).contiguous(), persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """Spectrum [B, 2, T, F] (real, imaginary) of ``wav`` [B, L], with T = 1 + L // hop frames."""
        frames, reach = 1 + wav.shape[-1] // self.hop, self.n_fft // 2
        count = self.n_fft // self.hop
        padded = nn.functional.pad(wav[:, None], (reach, reach), mode="reflect")[:, 0]
        padded = padded[:, : (frames + count - 1) * self.hop]
        rows = padded.unflatten(-1, (-1, self.hop))  # [B, T + n - 1, hop]
        taken = torch.cat([rows[:, i : i + frames] for i in range(count)], dim=-1)
        spec = taken.to(self.analysis.dtype) @ self.analysis  # [B, T, 2 F]
        out: Tensor = spec.to(wav.dtype).unflatten(-1, (2, -1)).transpose(1, 2)
        return out

    def inverse(self, spec: Tensor, length: int) -> Tensor:
        """Waveform [B, length] of ``spec`` [B, 2, T, F]."""
        rows = spec.transpose(1, 2).flatten(2).to(self.synthesis.dtype) @ self.synthesis
        rows = rows.unflatten(-1, (-1, self.hop))  # [B, T, n, hop]
        start = self.n_fft // 2
        wav, weight = (
            _overlap_add(x)[:, start : start + length]
            for x in (rows, self.squares.expand(1, rows.shape[1], -1, -1))
        )
        wav = (wav / weight).to(spec.dtype)
        return nn.functional.pad(wav, (0, length - wav.shape[-1]))


def _overlap_add(rows: Tensor) -> Tensor:
    """Frames of n hops, each a hop after the one before: [B, T, n, hop] -> [B, (T + n - 1) hop]."""
    last = rows.shape[2] - 1
    shifted = [nn.functional.pad(r, (0, 0, i, last - i)) for i, r in enumerate(rows.unbind(2))]
    return sum(shifted[1:], shifted[0]).flatten(1)


def _parts(wav: Tensor, signal: SignalSpec, dft: Dft | None) -> Tensor:
    if dft is not None:
        spec: Tensor = dft(wav)
        return spec
    return torch.view_as_real(stft(wav, signal)).movedim(-1, 1)


def compress(wav: Tensor, signal: SignalSpec = SIGNAL, dft: Dft | None = None) -> Tensor:
    """Compressed spectrum [B, 2, T, F] (real, imaginary) of ``wav`` [B, L].

    Args:
        wav: [B, L].
        signal: STFT and compression.
        dft: The signal's transform as products, or None for an FFT.
    """
    spec = _parts(wav, signal, dft)
    power = spec.square().sum(1, keepdim=True).clamp_min(LINEAR_POWER_FLOOR)
    return spec * (signal.compress_factor * power ** ((signal.compress_exponent - 1) / 2))


def compressed_noisy(wav: Tensor, signal: SignalSpec = SIGNAL, dft: Dft | None = None) -> Tensor:
    """The networks' input [B, 3, T, F]: compressed real, imaginary and magnitude; see `compress`."""
    ri = compress(wav, signal, dft)
    return torch.cat([ri, magnitude(ri)], dim=1)


def magnitude(ri: Tensor) -> Tensor:
    """Magnitude [B, 1, T, F] of ``ri`` [B, 2, T, F], with a finite gradient at zero."""
    return ri.square().sum(1, keepdim=True).add(POWER_FLOOR).sqrt()


def linear_power(ri: Tensor, signal: SignalSpec = SIGNAL) -> Tensor:
    """Power |X|^2 [B, T, F] of the uncompressed spectrum, from ``ri`` [B, 2, T, F]."""
    root = 1.0 / signal.compress_exponent
    power = ri.float().square().sum(1) + POWER_FLOOR
    out: Tensor = power**root * signal.compress_factor ** (-2.0 * root)
    return out


def istft_from_compressed(
    ri: Tensor, length: int, signal: SignalSpec = SIGNAL, dft: Dft | None = None
) -> Tensor:
    """Undo the compression of ``ri`` [B, 2, T, F] and return the waveform [B, length].

    Args:
        ri: [B, 2, T, F].
        length: Samples.
        signal: STFT and compression.
        dft: The signal's transform as products, or None for an FFT.
    """
    ri = ri.float()
    power = ri.square().sum(1, keepdim=True).clamp_min(POWER_FLOOR)
    # |X| = (m / factor)^(1 / exponent), so X = ri / m * |X|
    root = 1 / signal.compress_exponent
    gain = power ** ((root - 1) / 2) / signal.compress_factor**root
    if dft is not None:
        return dft.inverse(ri * gain, length)
    spec = torch.view_as_complex((ri * gain).movedim(1, -1).contiguous())
    return istft(spec, length, signal)
