"""A differentiable ESTOI (Jensen & Taal 2016) on the spectra that the network works with.

Third-octave band envelopes are cut into segments of 384 ms, each band's course over a segment is
brought to zero mean and unit norm, then each frame's bands are: ESTOI is the mean correlation of
the frames of both signals. Neither a gain nor a fixed filter of a whole segment changes it. Apart
from the original: 32 ms windows every 8 ms at 16 kHz in place of 25.6 ms every 12.8 ms at 10 kHz,
and segments 64 ms apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..runtime.spec import SAMPLE_RATE, SignalSpec
from ..spectral import SIGNAL, linear_power
from .measure import SpectralMeasure, on_device

BANDS = 15
LOWEST_HZ = 150.0  # centre of the first third of an octave
SEGMENT_S = 0.384
_STRIDE_S = 0.064
_ACTIVE_DB = -40.0  # a frame this far below the target's loudest one is a pause, and left out
_SILENT = 1e-6  # a frame's power below which nothing is heard
_EPS = 1e-8


def _third_octaves(signal: SignalSpec, sample_rate: int) -> np.ndarray:
    """Bins -> bands [F, K]: the share of each bin's width that lies in each band."""
    spacing = sample_rate / signal.n_fft
    centres = np.arange(signal.n_fft // 2 + 1) * spacing
    bands = LOWEST_HZ * 2.0 ** (np.arange(BANDS) / 3.0)
    low, high = bands * 2.0 ** (-1 / 6), bands * 2.0 ** (1 / 6)
    bottom, top = centres[:, None] - spacing / 2, centres[:, None] + spacing / 2
    overlap = np.minimum(top, high) - np.maximum(bottom, low)
    matrix: np.ndarray = np.maximum(overlap, 0.0) / spacing
    return matrix


class EstoiEstimate(SpectralMeasure):
    """ESTOI of each item, about 0 to 1."""

    matrix: Tensor

    @staticmethod
    def tables(signal: SignalSpec, sample_rate: int) -> Mapping[str, np.ndarray]:
        """See `SpectralMeasure`."""
        return {"matrix": _third_octaves(signal, sample_rate)}

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Compare compressed spectra.

        Args:
            estimate: [B, 2, T, F].
            target: Clean, [B, 2, T, F].

        Returns:
            [B]; 1 at equality, and where the target has less than 384 ms of speech.
        """
        e_power, t_power = (linear_power(x, self.signal) for x in (estimate, target))  # [B, T, F]
        e_bands, t_bands = (
            ((x @ self.matrix) + _EPS).sqrt() for x in (e_power, t_power)
        )  # [B, T, K]
        frames = t_bands.shape[1]
        rate = self.sample_rate / self.signal.hop_length
        length, stride = round(SEGMENT_S * rate), max(round(_STRIDE_S * rate), 1)
        if frames < length:
            return estimate.new_ones(len(estimate))
        level = t_power.sum(-1)  # [B, T]
        loudest = level.amax(1, keepdim=True)
        active = (level > 10.0 ** (_ACTIVE_DB / 10.0) * loudest) & (loudest > _SILENT)
        # Speech frames first, in their order: segments run over them as if there were no pauses.
        order = torch.argsort((~active).to(torch.uint8), dim=1, stable=True)[..., None]
        e_bands, t_bands = (
            x.gather(1, order.expand_as(x)).unfold(1, length, stride) for x in (e_bands, t_bands)
        )  # [B, S, K, N]
        starts = torch.arange(t_bands.shape[1], device=active.device) * stride
        whole = (starts + length <= active.sum(1, keepdim=True)).float()  # [B, S]
        correlation = (_normal(e_bands) * _normal(t_bands)).sum(2).mean(2)  # [B, S]
        count = whole.sum(1)
        mean = (correlation * whole).sum(1) / count.clamp_min(1.0)
        return torch.where(count > 0, mean, 1.0)


def estoi_estimate(
    estimate: Tensor, target: Tensor, signal: SignalSpec = SIGNAL, sample_rate: int = SAMPLE_RATE
) -> Tensor:
    """`EstoiEstimate` of compressed spectra [B, 2, T, F]: [B], about 0 to 1."""
    value: Tensor = on_device(EstoiEstimate, estimate.device, signal, sample_rate)(estimate, target)
    return value


def _normal(bands: Tensor) -> Tensor:
    """Zero mean and unit norm over time, then over the bands."""
    for dim in (3, 2):
        bands = bands - bands.mean(dim, keepdim=True)
        bands = bands / (bands.square().sum(dim, keepdim=True) + _EPS).sqrt()
    return bands


def estoi_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - ESTOI over the batch.

    Args:
        estimate: [B, 2, T, F].
        target: [B, 2, T, F].
    """
    return (1.0 - estoi_estimate(estimate, target)).mean()
