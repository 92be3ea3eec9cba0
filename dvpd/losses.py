"""Training losses (paper appendix D), on compressed spectra [B, 2, T, F] and waveforms [B, L].

Every term is zero at equality and has a finite gradient everywhere, digital silence included.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from .config.train import TrainConfig
from .runtime.spec import SignalSpec
from .spectral import SIGNAL, Dft, istft_from_compressed, linear_power, magnitude
from .training.intelligibility import EstoiEstimate
from .training.perceptual import LoudnessDisturbance

PHASE_FLOOR = 1e-3  # compressed magnitude below which a bin has no phase; speech stays above it
_SDR_LIMIT_DB = 30.0
# Power of a bin's uncompressed spectrum that counts as silence: about 75 dB under loud speech of full
# scale (RMS -20 dB), whose bins have 2 in the mean.
SILENCE_POWER = 5e-8
_NEIGHBOURS = 4  # frames beside speech are left out (32 ms, what its windows reach)
_SILENCE_BINS = 16  # of a band
_MR_STFT = ((256, 64), (512, 128), (1024, 256))  # (n_fft, hop) in samples


def anti_wrap(delta: Tensor) -> Tensor:
    """|delta - 2 pi round(delta / 2 pi)|: the distance of two phases, in [0, pi] (Ai & Ling 2023)."""
    return (delta - (2.0 * math.pi) * torch.round(delta / (2.0 * math.pi))).abs()


def phase_difference(estimate: Tensor, target: Tensor) -> Tensor:
    """Phase of ``estimate`` minus that of ``target``, modulo 2 pi.

    One arc tangent of estimate * conj(target). Bins where either has no phase give 0, and no
    gradient.

    Args:
        estimate: [B, 2, T, F].
        target: [B, 2, T, F].

    Returns:
        [B, T, F] in radians.
    """
    e_r, e_i = estimate.unbind(1)
    t_r, t_i = target.unbind(1)
    floor = PHASE_FLOOR**2
    defined = (e_r.square() + e_i.square() > floor) & (t_r.square() + t_i.square() > floor)
    real = torch.where(defined, e_r * t_r + e_i * t_i, 1.0)
    imag = torch.where(defined, e_i * t_r - e_r * t_i, 0.0)
    return torch.atan2(imag, real)


def phase_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Instantaneous phase + group delay + instantaneous angular frequency, anti-wrapped.

    Differences of wrapped phases along frequency (group delay) and time (angular frequency) are
    right modulo 2 pi, which is all that ``anti_wrap`` needs.

    Args:
        estimate: [B, 2, T, F].
        target: [B, 2, T, F].
    """
    delta = phase_difference(estimate, target)
    instantaneous = anti_wrap(delta).mean()
    group_delay = anti_wrap(delta.diff(dim=-1)).mean()
    frequency = anti_wrap(delta.diff(dim=-2)).mean()
    return instantaneous + group_delay + frequency


def score_loss(sigma_z: Tensor, z: Tensor, std: Tensor) -> Tensor:
    """Denoising score matching: mean((network / sigma - z)^2).

    Args:
        sigma_z: The network's output [B, 1, T, F].
        z: The noise drawn [B, 1, T, F].
        std: sigma(t), [B, 1, 1, 1].
    """
    return (sigma_z / std - z).square().mean()


def si_sdr_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Negative scale-invariant SDR in tens of dB, limited to 30 dB; 0 for silent targets.

    Args:
        estimate: [B, L].
        target: [B, L].
    """
    energy = target.square().sum(-1, keepdim=True)
    projected = (estimate * target).sum(-1, keepdim=True) / (energy + 1e-8) * target
    return _limited_ratio(projected, estimate - projected, energy[..., 0])


def snr_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Negative SNR in tens of dB, limited to 30 dB; 0 for silent targets.

    Speech that is lowered by 2 dB has an SNR of 14 dB, however clean it is.

    Args:
        estimate: [B, L].
        target: [B, L].
    """
    return _limited_ratio(target, estimate - target, target.square().sum(-1))


def _limited_ratio(wanted: Tensor, residual: Tensor, energy: Tensor) -> Tensor:
    power, rest = wanted.square().sum(-1), residual.square().sum(-1)
    soft = 10.0 ** (-_SDR_LIMIT_DB / 10.0)
    ratio = (power + 1e-8) / (rest + soft * power + 1e-8)
    return -torch.where(energy > 1e-4, torch.log10(ratio), 0.0).sum() / len(wanted)


def silence_loss(estimate: Tensor, target: Tensor, signal: SignalSpec = SIGNAL) -> Tensor:
    """What is left where the target is silent, in tens of dB above a floor, over 16 bands.

    Mean of log10(1 + P / P_floor) over the frames without speech (digital silence, or 75 dB under loud
    speech, and no speech beside it), 0 for a crop that has none. A squared error hardly sees noise that is 30 dB
    down; here each dB counts alike until the floor is reached.

    Args:
        estimate: Compressed spectra [B, 2, T, F].
        target: Compressed clean spectra [B, 2, T, F].
        signal: STFT and compression.
    """
    loud = linear_power(target, signal).mean(-1) > SILENCE_POWER  # [B, T]
    reach = 2 * _NEIGHBOURS + 1
    near = torch.nn.functional.max_pool1d(loud.float()[:, None], reach, 1, _NEIGHBOURS)[:, 0]
    silent = 1.0 - near  # [B, T]
    bands = estimate.shape[-1] // _SILENCE_BINS
    power = linear_power(estimate[..., : bands * _SILENCE_BINS], signal)
    power = power.unflatten(-1, (bands, _SILENCE_BINS)).mean(-1)  # [B, T, K]
    level = torch.log10(1.0 + power / SILENCE_POWER).mean(-1)  # [B, T]
    return (level * silent).sum() / silent.numel()


class LossTables(nn.Module):
    """The constants of the losses as buffers: a step makes none and copies none.

    Attributes:
        dft: The inverse transform of waveform losses, or None for an FFT.
        resolutions: The transforms of ``mr_stft_loss``; empty for FFTs.
    """

    def __init__(self, dft: torch.dtype | None = None, signal: SignalSpec = SIGNAL) -> None:
        """Make the tables.

        Args:
            dft: Type of the transforms' products (see `dvpd.spectral.Dft`), or None for FFTs.
            signal: STFT and compression of the spectra that are compared.
        """
        super().__init__()
        self.loudness, self.estoi = LoudnessDisturbance(signal), EstoiEstimate(signal)
        self.dft = Dft(signal.n_fft, signal.hop_length, dft) if dft else None
        self.resolutions = nn.ModuleList(Dft(n, hop, dft) for n, hop in _MR_STFT if dft)


@lru_cache(maxsize=4)
def _tables_on(device: torch.device) -> LossTables:
    with torch.inference_mode(False):
        return LossTables().to(device)


def mr_stft_loss(estimate: Tensor, target: Tensor, tables: LossTables | None = None) -> Tensor:
    """L1 of compressed magnitudes |X|^0.3 at three resolutions, averaged.

    Args:
        estimate: [B, L].
        target: [B, L].
        tables: With the transforms, or None for FFTs.
    """
    total = estimate.new_zeros(())
    for i, (n_fft, hop) in enumerate(_MR_STFT):
        mags = []
        for wav in (estimate, target):
            if tables is not None and len(tables.resolutions):
                power = tables.resolutions[i](wav).square().sum(1)
            else:
                window = torch.hann_window(n_fft, device=estimate.device)
                spec = torch.stft(wav, n_fft, hop, window=window, return_complex=True)
                power = torch.view_as_real(spec).square().sum(-1)
            mags.append((power + 1e-8) ** 0.15)
        total = total + (mags[0] - mags[1]).abs().mean()
    return total / len(_MR_STFT)


def predictive_terms(
    config: TrainConfig,
    estimate: Tensor,
    target: Tensor,
    clean: Tensor,
    tables: LossTables | None = None,
) -> dict[str, Tensor]:
    """The predictive branch's losses by name, unweighted; terms of weight 0 are left out.

    Args:
        config: Weights.
        estimate: The branch's output [B, 2, T, F], float32.
        target: The compressed clean spectrum [B, 2, T, F].
        clean: The clean waveform [B, L].
        tables: On the tensors' device; None for those with FFTs.
    """
    tables = tables or _tables_on(estimate.device)
    terms = {
        "mag": (magnitude(estimate) - magnitude(target)).square().mean(),
        "ri": (estimate - target).square().mean(),
    }
    if config.phase_weight:
        terms["phase"] = phase_loss(estimate, target)
    if config.perceptual_weight:
        terms["perceptual"] = tables.loudness(estimate, target).mean()
    if config.estoi_weight:
        terms["estoi"] = (1.0 - tables.estoi(estimate, target)).mean()
    if config.silence_weight:
        terms["silence"] = silence_loss(estimate, target)
    if config.mr_stft_weight or config.si_sdr_weight or config.snr_weight:
        wav = istft_from_compressed(estimate, clean.shape[-1], dft=tables.dft)
        if config.mr_stft_weight:
            terms["mr_stft"] = mr_stft_loss(wav, clean, tables)
        if config.si_sdr_weight:
            terms["si_sdr"] = si_sdr_loss(wav, clean)
        if config.snr_weight:
            terms["snr"] = snr_loss(wav, clean)
    return terms


def weighted_sum(config: TrainConfig, terms: dict[str, Tensor]) -> Tensor:
    """Sum of the terms, each times its weight ``NAME_weight`` of the config."""
    parts = [getattr(config, f"{name}_weight") * value for name, value in terms.items()]
    return torch.stack(parts).sum()


class PredictiveTerms(nn.Module):
    """`predictive_terms` as a module that owns its tables: a region to compile."""

    def __init__(self, config: TrainConfig, tables: LossTables) -> None:
        """Make the module.

        Args:
            config: Weights.
            tables: The losses' constants.
        """
        super().__init__()
        self.config, self.tables = config, tables

    def forward(self, estimate: Tensor, target: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """See `predictive_terms`."""
        return predictive_terms(self.config, estimate, target, clean, self.tables)
