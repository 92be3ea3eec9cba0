"""A differentiable loudness disturbance in the shape of PESQ (ITU-T P.862, section 10).

Both spectra become loudness densities on a Bark scale; what differs by more than a quarter of the
smaller one disturbs, what was added disturbs more than what is missing, and short bursts weigh
more than their mean. Both are first brought to the same listening level, and the target to the
estimate's mean response over time, within 20 dB: PESQ forgives what a linear filter does, and so
speech whose upper half is missing. Left out of P.862: time alignment (training pairs are aligned)
and the compensation of slow gain. The bands and the hearing threshold are closed formulas
(Traunmueller 1990, Terhardt 1979), not the standard's tables. The sums that P.862 subtracts from
4.5 come out in units of raw MOS; over recordings they follow PESQ (correlation about -0.85, without
the compensation of the response -0.73; a test holds a floor).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.spec import SAMPLE_RATE, SignalSpec
from ..spectral import SIGNAL, linear_power
from .measure import SpectralMeasure, on_device

LISTENING_LEVEL_DB = 79.0  # P.862: active speech is presented at this SPL
BAND_BARK = 0.5
SYMMETRIC_WEIGHT, ASYMMETRIC_WEIGHT = 0.1, 0.0309  # P.862.1: MOS = 4.5 - 0.1 d - 0.0309 d_asym
_EXPONENT = 0.23  # Zwicker's loudness
_SONE = 0.29  # makes a 40 dB tone at 1 kHz one sone with these bands and this threshold
_DEAD_ZONE = 0.25
_LARGEST = 45.0  # of a frame's disturbance
_WINDOW_FRAMES = 40  # 320 ms at 125 frames a second
_SPEECH_HZ = (300.0, 3000.0)
_RESPONSE_FLOOR = 1e3  # added to a band's mean power where responses are compared
_EPS = 1e-6
_AUDIBLE = 1e-7  # a frame's power in the speech bins below which a signal counts as silent


def bark(freqs_hz: np.ndarray) -> np.ndarray:
    """Critical-band rate z(f) in Bark (Traunmueller 1990, Eq. 6)."""
    return 26.81 * freqs_hz / (1960.0 + freqs_hz) - 0.53


def hearing_threshold_db(freqs_hz: np.ndarray) -> np.ndarray:
    """Threshold in quiet, dB SPL (Terhardt 1979)."""
    khz = np.maximum(freqs_hz, 20.0) / 1000.0
    level: np.ndarray = 3.64 * khz**-0.8 - 6.5 * np.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4
    return level


def _bands(signal: SignalSpec, sample_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bins -> bands [F, K], threshold of each band (power, 0 dB = 1) [K], speech bins [F]."""
    spacing = sample_rate / signal.n_fft
    centres = np.arange(signal.n_fft // 2 + 1) * spacing
    first, last = bark(np.array([spacing / 2.0, sample_rate / 2.0]))
    count = round((last - first) / BAND_BARK)
    edges = np.linspace(first, last, count + 1)
    low = bark(np.maximum(centres - spacing / 2, 0.0))[:, None]
    high = bark(centres + spacing / 2)[:, None]
    overlap = np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])
    matrix = np.maximum(overlap, 0.0) / (high - low)  # a bin's power is shared by its bands
    middle = (edges[1:] + edges[:-1]) / 2
    # the inverse of bark()
    middle_hz = 1960.0 * (middle + 0.53) / (26.28 - middle)
    threshold = 10.0 ** (hearing_threshold_db(middle_hz) / 10.0)
    speech = (centres >= _SPEECH_HZ[0]) & (centres <= _SPEECH_HZ[1])
    return matrix, threshold, speech


class LoudnessDisturbance(SpectralMeasure):
    """Symmetric and asymmetric disturbance of each item, in units of raw MOS."""

    matrix: Tensor
    threshold: Tensor
    speech: Tensor

    @staticmethod
    def tables(signal: SignalSpec, sample_rate: int) -> Mapping[str, np.ndarray]:
        """See `SpectralMeasure`."""
        names = ("matrix", "threshold", "speech")
        return dict(zip(names, _bands(signal, sample_rate), strict=True))

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Compare compressed spectra.

        Args:
            estimate: [B, 2, T, F].
            target: Clean, [B, 2, T, F].

        Returns:
            [B]; 0 at equality and for silent targets.
        """
        e_power, t_power = (linear_power(x, self.signal) for x in (estimate, target))  # [B, T, F]
        # The listening level, from the frames that carry speech.
        level = (t_power * self.speech).sum(-1)  # [B, T]
        active = level > 1e-3 * level.amax(1, keepdim=True)
        share = (self.speech * active[..., None]) / active.sum(1).clamp_min(1)[
            :, None, None
        ]  # [B, T, F]
        audible = (t_power * share).sum((1, 2)) > _AUDIBLE
        presented = 10.0 ** (LISTENING_LEVEL_DB / 10.0)

        def present(power: Tensor) -> Tensor:  # at the listening level, each on its own
            mean = (power * share).sum((1, 2), keepdim=True).clamp_min(_AUDIBLE)
            shown: Tensor = (power * (presented / mean)) @ self.matrix
            return shown  # [B, T, K]

        e_bark, t_bark = present(e_power), present(t_power)
        # The target through the estimate's mean response, within 20 dB (P.862, 10.2.4). It is held fixed: with
        # a gradient the loss falls where the estimate makes whole bands quieter.
        frames = active[..., None] / active.sum(1).clamp_min(1)[:, None, None]  # [B, T, 1]
        e_mean, t_mean = ((x * frames).sum(1, keepdim=True) for x in (e_bark, t_bark))  # [B, 1, K]
        response = (e_mean.detach() + _RESPONSE_FLOOR) / (t_mean + _RESPONSE_FLOOR)
        t_bark = t_bark * response.clamp(0.01, 100.0)

        def loudness(power: Tensor) -> Tensor:
            grown = (0.5 + 0.5 * power / self.threshold) ** _EXPONENT
            return _SONE * (self.threshold / 0.5) ** _EXPONENT * (grown - 1.0).clamp_min(0.0)

        e_loud, t_loud = loudness(e_bark), loudness(t_bark)
        raw = (e_loud - t_loud).abs()
        disturbance = (raw - _DEAD_ZONE * torch.minimum(e_loud, t_loud)).clamp_min(0.0)
        ratio = ((e_bark + 50.0) / (t_bark + 50.0)).clamp_min(_EPS) ** 1.2
        asymmetry = torch.where(ratio < 3.0, 0.0, ratio.clamp_max(12.0)).detach()
        count = self.matrix.shape[1]
        width = BAND_BARK
        symmetric = _root(width * count * (width * disturbance.square()).sum(-1))
        asymmetric = (width * disturbance * asymmetry).sum(-1)
        # Quiet frames weigh a little more (P.862, 10.2.7).
        weight = ((t_bark.sum(-1) + 1e5) / 1e7) ** -0.04
        total = estimate.new_zeros(len(estimate))
        for frames, factor in ((symmetric, SYMMETRIC_WEIGHT), (asymmetric, ASYMMETRIC_WEIGHT)):
            frames = (frames * weight).clamp_max(_LARGEST)
            size = min(_WINDOW_FRAMES, frames.shape[1])
            pooled = nn.functional.avg_pool1d(frames[:, None] ** 6, size, max(size // 2, 1))
            windows = _root(pooled[:, 0], 6)
            total = total + factor * _root(windows.square().mean(1))
        return torch.where(audible, total, 0.0)


def loudness_disturbance(
    estimate: Tensor, target: Tensor, signal: SignalSpec = SIGNAL, sample_rate: int = SAMPLE_RATE
) -> Tensor:
    """`LoudnessDisturbance` of compressed spectra [B, 2, T, F]: [B] in units of raw MOS."""
    value: Tensor = on_device(LoudnessDisturbance, estimate.device, signal, sample_rate)(
        estimate, target
    )
    return value


def _root(value: Tensor, order: int = 2) -> Tensor:
    """The root of a value >= 0, with a finite gradient at 0."""
    root: Tensor = (value + _EPS) ** (1 / order) - _EPS ** (1 / order)
    return root


def perceptual_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean of ``loudness_disturbance`` over the batch.

    Args:
        estimate: [B, 2, T, F].
        target: [B, 2, T, F].
    """
    return loudness_disturbance(estimate, target).mean()
