"""CSIG, CBAK and COVL: composite measures of Hu & Loizou (2008), 16 kHz.

"Evaluation of objective quality measures for speech enhancement", IEEE TASLP 16(1), Table IV's
regressions on PESQ, the log-likelihood ratio (LLR), the weighted spectral slope (WSS, Klatt 1982)
and segmental SNR. As in every table of this field since SEGAN, the PESQ is the wide-band MOS-LQO,
although the regression was fitted to narrow-band raw PESQ. Conventions are those of Loizou's
MATLAB code, which the public Python versions (CMGAN, MP-SENet) follow: 30 ms frames every 7.5 ms,
the last frame left out, the worst 5 % of frames of LLR and WSS left out, floats in [-1, 1].

Two things to know when comparing figures. pysepm does not divide by 32768 before the floor of the
WSS, and so comes to larger WSS and lower scores (CSIG by 0.2 in the mean of our dev pairs). And
frames whose clean speech is constant, such as digital silence, have no all-pole model: the public
versions return what rounding leaves (a log ratio near 25) or NaN, here LLR leaves them out.
"""

from __future__ import annotations

import numpy as np

from ..runtime.arrays import DoubleArray
from ..runtime.spec import SAMPLE_RATE

FRAME = 480  # 30 ms
SKIP = 120
N_FFT = 1024  # the power of two not below two frames
LPC_ORDER = 16
KEEP = 0.95  # share of frames kept, the best ones
SNR_RANGE_DB = (-10.0, 35.0)
MIN_SAMPLES = FRAME + SKIP  # fewer leave no frame
_EPS = float(np.spacing(1.0))  # added to both signals: digital silence has a spectrum, too
_MAX_RATIO = 1000.0  # LLR's ratio where the estimate is constant and rounding leaves no model

# Critical bands: centres and widths in Hz. Above 120 Hz each centre lies one width, the mean of
# its own and the next, further up.
_CENTRES_HZ = np.array(
    "50 120 190 260 330 400 470 540 617.372 703.378 798.717 904.128 1020.38 1148.3 1288.72 1442.54 "
    "1610.7 1794.16 1993.93 2211.08 2446.71 2701.97 2978.04 3276.17 3597.63".split(),
    np.float64,
)
_WIDTHS_HZ = np.array(
    "70 70 70 70 70 70 70 77.3724 86.0056 95.3398 105.411 116.256 127.914 140.423 153.823 168.154 "
    "183.457 199.776 217.153 235.631 255.255 276.072 298.126 321.465 346.136".split(),
    np.float64,
)
_K_MAX, _K_LOCAL = 20.0, 1.0  # Klatt's weights of the global and the nearest peak
_ENERGY_FLOOR = 1e-10


def _frames(wav: DoubleArray) -> DoubleArray:
    """Windowed frames [n, FRAME]."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1, FRAME + 1) / (FRAME + 1))
    return np.lib.stride_tricks.sliding_window_view(wav, FRAME)[::SKIP][:-1] * window


def _best(values: DoubleArray) -> float:
    return float(np.sort(values)[: round(len(values) * KEEP)].mean())


def _lpc(frames: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Autocorrelation [n, P + 1] and prediction-error filter [n, P + 1] (Levinson-Durbin)."""
    lags = np.stack(
        [(frames[:, : FRAME - k] * frames[:, k:]).sum(axis=1) for k in range(LPC_ORDER + 1)], axis=1
    )
    a = np.zeros_like(lags)
    a[:, 0] = 1.0
    error = lags[:, 0].copy()
    for i in range(1, LPC_ORDER + 1):
        reflection = -(a[:, :i] * lags[:, i:0:-1]).sum(axis=1) / error
        a[:, 1 : i + 1] += reflection[:, None] * a[:, i - 1 :: -1][:, :i]
        error *= 1.0 - reflection**2
    return lags, a


def log_likelihood_ratio(clean: DoubleArray, estimate: DoubleArray) -> float:
    """LLR: how much worse the estimate's all-pole model predicts the clean speech.

    Args:
        clean: float64 [L], at least ``MIN_SAMPLES``.
        estimate: float64 [L].

    Returns:
        0 for equal spectra; mean over the best 95 % of the frames that have a model, not limited
        to 2. NaN if none has.
    """
    frames = np.lib.stride_tricks.sliding_window_view(clean, FRAME)[::SKIP][:-1]
    modelled = frames.max(axis=1) > frames.min(axis=1)
    if not modelled.any():
        return float("nan")
    with np.errstate(all="ignore"):  # estimates without a model are handled below
        lags, a_clean = _lpc(_frames(clean + _EPS)[modelled])
        _, a_estimate = _lpc(_frames(estimate + _EPS)[modelled])
        index = np.abs(np.subtract.outer(np.arange(LPC_ORDER + 1), np.arange(LPC_ORDER + 1)))
        toeplitz = lags[:, index]
        top, bottom = (np.einsum("ni,nij,nj->n", a, toeplitz, a) for a in (a_estimate, a_clean))
        ratio = top / bottom
    ratio = np.where(np.isfinite(ratio) & (ratio > 0.0), ratio, _MAX_RATIO)
    return _best(np.log(ratio))


def _filters() -> DoubleArray:
    """Gaussian critical-band filters [25, N_FFT / 2], cut off 30 dB down."""
    half, nyquist = N_FFT // 2, SAMPLE_RATE / 2
    centre = np.floor(_CENTRES_HZ / nyquist * half)[:, None]
    width = (_WIDTHS_HZ / nyquist * half)[:, None]
    gain = (_WIDTHS_HZ[0] / _WIDTHS_HZ)[:, None]
    filters = gain * np.exp(-11.0 * ((np.arange(half) - centre) / width) ** 2)
    return np.where(filters > np.exp(-30.0 / (2 * 2.303)), filters, 0.0)


def _slopes_and_weights(wav: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Spectral slope (dB a band) and Klatt's weight, [n, 24] each."""
    # The division is the MATLAB code's; it only places the floor of the energies.
    spectrum = np.abs(np.fft.rfft(_frames(wav + _EPS) / 32768, N_FFT))[:, : N_FFT // 2] ** 2
    energy = 10 * np.log10(np.maximum(spectrum @ _filters().T, _ENERGY_FLOOR))  # [n, 25]
    slope = np.diff(energy, axis=1)
    n_slopes = slope.shape[1]
    position = np.arange(n_slopes)
    # The nearest peak: up to where a rising slope ends, down to where a falling one began.
    up = np.where(slope > 0, n_slopes, position)
    up = np.minimum.accumulate(up[:, ::-1], axis=1)[:, ::-1]  # first band from here not rising
    down = np.maximum.accumulate(np.where(slope > 0, position, -1), axis=1)
    # One band short of the peak on the way up, as in the reference code.
    peak = np.take_along_axis(energy, np.where(slope > 0, up - 1, down + 1), axis=1)
    level = energy[:, :-1]
    weight = _K_MAX / (_K_MAX + energy.max(axis=1, keepdims=True) - level)
    return slope, weight * _K_LOCAL / (_K_LOCAL + peak - level)


def weighted_spectral_slope(clean: DoubleArray, estimate: DoubleArray) -> float:
    """WSS: weighted squared difference of the spectral slopes in 25 critical bands.

    Args:
        clean: float64 [L] in [-1, 1], at least ``MIN_SAMPLES``.
        estimate: float64 [L].

    Returns:
        0 for equal spectra; mean over the best 95 % of frames.
    """
    slope, weight = _slopes_and_weights(clean)
    other_slope, other_weight = _slopes_and_weights(estimate)
    weight = (weight + other_weight) / 2
    return _best((weight * (slope - other_slope) ** 2).sum(axis=1) / weight.sum(axis=1))


def segmental_snr(clean: DoubleArray, estimate: DoubleArray) -> float:
    """Mean SNR of frames in dB, each limited to -10 to 35 dB.

    Args:
        clean: float64 [L], at least ``MIN_SAMPLES``.
        estimate: float64 [L], at the same level as the clean speech: this one hears a gain.
    """
    signal = (_frames(clean) ** 2).sum(axis=1)
    noise = (_frames(clean - estimate) ** 2).sum(axis=1)
    return float(np.clip(10 * np.log10(signal / (noise + _EPS) + _EPS), *SNR_RANGE_DB).mean())


def composite(clean: DoubleArray, estimate: DoubleArray, pesq: float) -> dict[str, float]:
    """The three composite measures and their parts.

    Args:
        clean: float64 [L] at 16 kHz in [-1, 1].
        estimate: float64 [L].
        pesq: Wide-band PESQ of the pair.

    Returns:
        csig (signal distortion), cbak (background), covl (overall), each limited to 1 to 5; llr,
        wss, ssnr (dB). NaN where PESQ is, or for less than 38 ms.
    """
    if len(clean) < MIN_SAMPLES:
        return dict.fromkeys(("csig", "cbak", "covl", "llr", "wss", "ssnr"), float("nan"))
    llr = log_likelihood_ratio(clean, estimate)
    wss = weighted_spectral_slope(clean, estimate)
    ssnr = segmental_snr(clean, estimate)
    scores = {
        "csig": 3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss,
        "cbak": 1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * ssnr,
        "covl": 1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss,
    }
    return {k: float(np.clip(v, 1.0, 5.0)) for k, v in scores.items()} | {
        "llr": llr,
        "wss": wss,
        "ssnr": ssnr,
    }
