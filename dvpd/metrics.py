"""Speech quality measures of one recording, 16 kHz mono NumPy in, a number out.

PESQ and ESTOI come from their public implementations (``pesq``, ``pystoi``), imported on use.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .runtime.errors import InputError

SAMPLE_RATE = 16000
Wav = NDArray[np.floating]


def _checked(clean: Wav, estimate: Wav) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if clean.ndim != 1 or clean.shape != estimate.shape or not len(clean):
        raise InputError(
            f"clean is {list(clean.shape)}, estimate {list(estimate.shape)}; expected equal [L]"
        )
    if not (np.isfinite(clean).all() and np.isfinite(estimate).all()):
        raise InputError("clean or estimate holds values that are not finite")
    return clean.astype(np.float64), estimate.astype(np.float64)


def si_sdr(clean: Wav, estimate: Wav) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019), means removed.

    Args:
        clean: [L].
        estimate: [L].

    Returns:
        dB; NaN where the clean signal is silent, infinite where the estimate is a multiple of it.

    Raises:
        InputError: Shapes differ, or values are not finite.
    """
    s, e = _checked(clean, estimate)
    s, e = s - s.mean(), e - e.mean()
    energy = float(s @ s)
    if energy <= 0.0:
        return float("nan")
    target = (float(s @ e) / energy) * s
    residual = e - target
    with np.errstate(divide="ignore"):
        return float(10.0 * (np.log10(target @ target) - np.log10(residual @ residual)))


def pesq_wb(clean: Wav, estimate: Wav) -> float:
    """Wide-band PESQ (ITU-T P.862.2), MOS-LQO 1.04 to 4.64.

    Args:
        clean: [L] at 16 kHz.
        estimate: [L] at 16 kHz.

    Returns:
        The score; NaN where PESQ finds no utterance.

    Raises:
        InputError: Shapes differ, or values are not finite.
    """
    import pesq

    s, e = _checked(clean, estimate)
    if not np.any(e):
        return float("nan")
    try:
        return float(pesq.pesq(SAMPLE_RATE, s.astype(np.float32), e.astype(np.float32), "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return float("nan")


def estoi(clean: Wav, estimate: Wav) -> float:
    """Extended short-time objective intelligibility, about 0 to 1.

    Args:
        clean: [L] at 16 kHz.
        estimate: [L] at 16 kHz.

    Returns:
        The score; NaN where less than 0.4 s of speech is found.

    Raises:
        InputError: Shapes differ, or values are not finite.
    """
    from pystoi import stoi

    s, e = _checked(clean, estimate)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Not enough STFT frames")
        try:
            return float(stoi(s, e, SAMPLE_RATE, extended=True))
        except RuntimeWarning:
            return float("nan")


METRICS: dict[str, Callable[[Wav, Wav], float]] = {
    "pesq": pesq_wb,
    "estoi": estoi,
    "si_sdr": si_sdr,
}


@dataclass(frozen=True)
class Summary:
    """One measure over many recordings.

    Attributes:
        mean: Mean.
        std: Standard deviation over recordings.
        low: Lower end of the 95 % bootstrap interval of the mean.
        high: Its upper end.
        n: Recordings counted.
        lost: Recordings for which the measure is not defined.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int
    lost: int


def summarise(values: list[float], *, draws: int = 2000, seed: int = 0) -> Summary:
    """Mean, spread and a percentile-bootstrap interval; values that are not finite are left out.

    Args:
        values: One number a recording.
        draws: Bootstrap samples.
        seed: Their seed.
    """
    array = np.asarray(values, np.float64)
    good = array[np.isfinite(array)]
    if not len(good):
        nan = float("nan")
        return Summary(nan, nan, nan, nan, 0, len(array))
    rng = np.random.default_rng(seed)
    means = good[rng.integers(len(good), size=(draws, len(good)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Summary(
        mean=float(good.mean()),
        std=float(good.std(ddof=1)) if len(good) > 1 else 0.0,
        low=float(low),
        high=float(high),
        n=len(good),
        lost=len(array) - len(good),
    )
