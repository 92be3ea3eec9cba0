"""The level tracker of ``runtime/level.py`` on batches of training crops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .runtime.level import LEAST, SILENT, release
from .runtime.spec import SignalSpec
from .spectral import SIGNAL


def frame_peaks(wav: Tensor, n_frames: int, signal: SignalSpec = SIGNAL) -> Tensor:
    """Largest magnitude under each frame's window, [B, T] of ``wav`` [B, L]."""
    hop, reach = signal.hop_length, signal.n_fft // 2 // signal.hop_length
    rows = n_frames + reach - 1
    wav = wav.abs()[:, : rows * hop]
    wav = nn.functional.pad(wav, (0, rows * hop - wav.shape[1]))
    peaks = nn.functional.pad(wav.unflatten(1, (-1, hop)).amax(2), (reach, 0))
    return nn.functional.max_pool1d(peaks[:, None], 2 * reach, 1)[:, 0]


def levels(
    wav: Tensor, n_frames: int, gain: Tensor | None = None, signal: SignalSpec = SIGNAL
) -> Tensor:
    """What the frames of a causal network's input are divided by, [B, T].

    Args:
        wav: [B, L].
        n_frames: T.
        gain: [B]: the level as if the waveforms were recorded that much louder, divided by it
            again; it changes what the least level leaves faint. None for ones.
        signal: The front end.
    """
    place = release(signal) * torch.arange(n_frames, device=wav.device, dtype=torch.float64)
    log = torch.log(frame_peaks(wav, n_frames, signal).double().clamp_min(SILENT))
    tracked = torch.exp(torch.cummax(log + place, dim=1).values - place)
    least = LEAST if gain is None else LEAST / gain[:, None].double()
    return tracked.clamp_min(least).to(wav.dtype)


def spectral_gain(level: Tensor, signal: SignalSpec = SIGNAL) -> Tensor:
    """Factor [B, 1, T, 1] of compressed spectra for waveforms divided by ``level`` [B, T]."""
    return (level**-signal.compress_exponent)[:, None, :, None]
