"""Speech quality measures of one recording, 16 kHz mono NumPy in, numbers out.

PESQ and ESTOI come from their public implementations (``pesq``, ``pystoi``), imported on use.
CSIG, CBAK and COVL: ``dvpd.quality.composite``; DNSMOS and WV-MOS: ``dvpd.quality.mos``; what is
heard in the pauses: ``dvpd.quality.pauses``.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import BackendError, InputError
from ..runtime.spec import SAMPLE_RATE
from ..runtime.taken import OUTPUT_RANGE_DB
from .composite import composite
from .mos import DNSMOS_NAMES, Dnsmos, WvMos
from .pauses import (
    BLIND_MEASURES,
    LEVEL_MEASURES,
    PAUSE_MEASURES,
    find_speech,
    measure_blind,
    measure_levels,
    over_utterances,
)

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
    if not s.any():
        return float("nan")
    # pystoi adds 1e-16 of NumPy's global noise: seeded, so that equal input gives equal figures.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Not enough STFT frames")
            return float(stoi(s, e, SAMPLE_RATE, extended=True))
    except RuntimeWarning:
        return float("nan")
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _composite(name: str) -> Callable[[Wav, Wav], float]:
    def measure(clean: Wav, estimate: Wav) -> float:
        s, e = _checked(clean, estimate)
        return composite(s, e, pesq_wb(clean, estimate))[name]

    return measure


@dataclass(frozen=True)
class Measure:
    """How one measure is shown.

    Attributes:
        label: Its usual name.
        unit: Its unit, "" for none.
        decimals: Digits worth printing.
        better: 1 where more is better, -1 where less is, 0 where 0 is best.
    """

    label: str
    unit: str = ""
    decimals: int = 3
    better: int = 1


COMPOSITE = ("csig", "cbak", "covl", "llr", "wss", "ssnr")
MEASURES: dict[str, Measure] = {
    "pesq": Measure("PESQ"),
    "estoi": Measure("ESTOI"),
    "si_sdr": Measure("SI-SDR", "dB", 2),
    "csig": Measure("CSIG"),
    "cbak": Measure("CBAK"),
    "covl": Measure("COVL"),
    "llr": Measure("LLR", better=-1),
    "wss": Measure("WSS", decimals=2, better=-1),
    "ssnr": Measure("SSNR", "dB", 2),
    "dnsmos_sig": Measure("DNSMOS SIG"),
    "dnsmos_bak": Measure("DNSMOS BAK"),
    "dnsmos_ovrl": Measure("DNSMOS OVRL"),
    "dnsmos_p808": Measure("DNSMOS P.808"),
    "wv_mos": Measure("WV-MOS"),
    "pause_lowered": Measure("noise lowered", "dB", 1),
    "pause_worst": Measure("worst tenth", "dB", 1),
    "pause_loudest": Measure("loudest 0.5 s", "dB", 1),
    "pause_jump": Measure("jump in pauses", "dB", 1, -1),
    "words_lost": Measure("words lost", "%", 1, -1),
    "speech_level": Measure("speech level", "dB", 1, 0),
    "speech_0_1": Measure("0-1 kHz", "dB", 1, 0),
    "speech_1_2": Measure("1-2 kHz", "dB", 1, 0),
    "speech_2_4": Measure("2-4 kHz", "dB", 1, 0),
    "speech_4_8": Measure("4-8 kHz", "dB", 1, 0),
    "pause_share": Measure("pauses", "%", 0, 0),
    "loud_level": Measure("loudest tenth", "dB", 1, 0),
    "loud_0_1": Measure("0-1 kHz", "dB", 1, 0),
    "loud_1_2": Measure("1-2 kHz", "dB", 1, 0),
    "loud_2_4": Measure("2-4 kHz", "dB", 1, 0),
    "loud_4_8": Measure("4-8 kHz", "dB", 1, 0),
    "hiss": Measure("hiss above band edge", "dB", 1, -1),
    "pesq_speech": Measure("PESQ, utterances"),
    "estoi_speech": Measure("ESTOI, utterances"),
}
# Those that need nothing but the pair.
METRICS: dict[str, Callable[[Wav, Wav], float]] = {
    "pesq": pesq_wb,
    "estoi": estoi,
    "si_sdr": si_sdr,
    **{name: _composite(name) for name in COMPOSITE},
}
# Taken of each utterance; a recording's figure is their mean.
UTTERANCE_MEASURES: dict[str, Callable[[Wav, Wav], float]] = {
    "pesq_speech": pesq_wb,
    "estoi_speech": estoi,
}
DEFAULT_METRICS = ("pesq", "estoi", "si_sdr", "csig", "cbak", "covl")


def choose_metrics(
    names: Iterable[str] | None = None,
    *,
    dnsmos: bool = False,
    wv_mos: bool = False,
    reference: bool = True,
) -> tuple[str, ...]:
    """The measures to take, in the order of ``MEASURES``.

    Args:
        names: Names out of ``MEASURES``, "dnsmos" for its four, "pauses" for all that are about
            pauses and levels; None for ``DEFAULT_METRICS``, the pauses and what there are models
            for.
        dnsmos: Whether the DNSMOS models are given.
        wv_mos: Whether a WV-MOS model is given.
        reference: Whether there are clean recordings.

    Raises:
        InputError: A name is unknown, its model is not given, or it needs a clean recording and
            there is none, or the other way round.
        BackendError: A package that a measure needs is not installed.
    """
    pauses = PAUSE_MEASURES if reference else BLIND_MEASURES
    families = {"dnsmos": DNSMOS_NAMES, "pauses": pauses}
    if names is None:
        wanted = {*DEFAULT_METRICS * reference, *pauses}
        wanted |= {*DNSMOS_NAMES * dnsmos, *("wv_mos",) * wv_mos}
    else:
        wanted = set()
        for name in (name.strip() for name in names):
            if name not in MEASURES and name not in families:
                known = (*MEASURES, *families)
                close = difflib.get_close_matches(name, known, 1, 0.5)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise InputError(f"unknown metric {name!r}; {hint}known: {', '.join(known)}")
            wanted |= set(families.get(name, (name,)))
    possible = {*pauses, *DNSMOS_NAMES, "wv_mos", *(METRICS if reference else ())}
    if wrong := [name for name in MEASURES if name in wanted - possible]:
        raise InputError(
            f"{wrong[0]} is for recordings {'without' if reference else 'with'} a clean one; "
            f"expected some of {', '.join(name for name in MEASURES if name in possible)}"
        )
    if not wanted:
        raise InputError("no metric is asked for; expected one at least")
    for given, needing, option in (
        (dnsmos, DNSMOS_NAMES, "--dnsmos DIR"),
        (wv_mos, ("wv_mos",), "--wv-mos FILE"),
    ):
        if not given and (lacking := sorted(wanted.intersection(needing))):
            raise InputError(f"{lacking[0]} needs its model: {option}")
    for package, asking in (
        ("pesq", ("pesq", *COMPOSITE, "pesq_speech")),
        ("pystoi", ("estoi", "estoi_speech")),
    ):
        if wanted.intersection(asking) and importlib.util.find_spec(package) is None:
            raise BackendError(
                f"the package {package} is not installed: pip install 'dvpd[bench]', or leave out "
                + ", ".join(name for name in asking if name in wanted)
            )
    return tuple(name for name in MEASURES if name in wanted)


class Meter:
    """Takes several measures of a recording, what they share only once.

    Attributes:
        names: The measures.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        dnsmos: str | Path | None = None,
        wv_mos: str | Path | None = None,
        reference: bool = True,
    ) -> None:
        """Load what the measures need.

        Args:
            names: See ``choose_metrics``.
            dnsmos: Folder of the DNSMOS models.
            wv_mos: File of a WV-MOS model.
            reference: Whether there are clean recordings.

        Raises:
            InputError: A name is unknown, or a model is missing or damaged.
            BackendError: A package is missing.
        """
        self.names = choose_metrics(
            names, dnsmos=dnsmos is not None, wv_mos=wv_mos is not None, reference=reference
        )
        self._blind: list[Callable[[Wav], dict[str, float]]] = []
        if dnsmos is not None and set(DNSMOS_NAMES).intersection(self.names):
            self._blind.append(Dnsmos(dnsmos))
        if wv_mos is not None and "wv_mos" in self.names:
            self._blind.append(WvMos(wv_mos))

    def __call__(
        self,
        clean: Wav | None,
        estimate: Wav,
        noisy: Wav | None = None,
        speech: Sequence[tuple[int, int]] | None = None,
    ) -> dict[str, float]:
        """Measure one recording.

        Args:
            clean: [L] at 16 kHz, digital silence where there is no speech; None where there is
                none.
            estimate: [L].
            noisy: What ``estimate`` was made of, [L]; the measures of pauses need it.
            speech: Where somebody speaks, [start, end) in samples; None to find it in ``clean``.

        Returns:
            Name -> figure, in the order of ``names``; NaN where a measure is not defined.

        Raises:
            InputError: Shapes differ, values are not finite, or what a measure needs is lacking.
        """
        figures: dict[str, float] = {}
        if noisy is None and set(self.names).intersection((*LEVEL_MEASURES, *BLIND_MEASURES)):
            raise InputError("the measures of pauses need the noisy input; it was not given")
        if clean is not None:
            figures = self._against(clean, estimate, noisy, speech)
        elif noisy is not None and set(BLIND_MEASURES).intersection(self.names):
            _checked(noisy, estimate)
            where = find_speech(estimate, OUTPUT_RANGE_DB) if speech is None else speech
            figures = measure_blind(noisy, estimate, where)
        for meter in self._blind:
            figures |= meter(estimate)
        return {name: figures[name] for name in self.names}

    def _against(
        self,
        clean: Wav,
        estimate: Wav,
        noisy: Wav | None,
        speech: Sequence[tuple[int, int]] | None,
    ) -> dict[str, float]:
        """What is measured against a clean recording."""
        s, e = _checked(clean, estimate)
        figures: dict[str, float] = {}
        if noisy is not None and set(LEVEL_MEASURES).intersection(self.names):
            figures |= measure_levels(noisy, clean, estimate, speech)
        if not s.any():  # none of the others is defined without speech
            return figures | dict.fromkeys((*METRICS, *UTTERANCE_MEASURES), math.nan)
        for name, measure in UTTERANCE_MEASURES.items():
            if name in self.names:
                figures[name] = over_utterances(measure, clean, estimate, speech)
        if set(COMPOSITE).intersection(self.names):
            figures["pesq"] = pesq_wb(clean, estimate)
            figures |= composite(s, e, figures["pesq"])
        for name in self.names:
            if name in METRICS and name not in figures:
                figures[name] = METRICS[name](clean, estimate)
        return figures


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
        least: The recording with the lowest figure.
        most: That with the highest.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int
    lost: int
    least: float
    most: float


def _interval(values: NDArray[np.float64], draws: int, seed: int) -> tuple[float, float]:
    """Ends of the 95 % percentile-bootstrap interval of the mean."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


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
        return Summary(nan, nan, nan, nan, 0, len(array), nan, nan)
    low, high = _interval(good, draws, seed)
    return Summary(
        mean=float(good.mean()),
        std=float(good.std(ddof=1)) if len(good) > 1 else 0.0,
        low=low,
        high=high,
        n=len(good),
        lost=len(array) - len(good),
        least=float(good.min()),
        most=float(good.max()),
    )


@dataclass(frozen=True)
class Difference:
    """Mean difference of one measure between two systems on the same recordings.

    Attributes:
        mean: Mean of the differences.
        low: Lower end of its 95 % bootstrap interval.
        high: Its upper end.
        n: Recordings for which both are defined.
        significant: Whether the interval leaves out zero.
    """

    mean: float
    low: float
    high: float
    n: int
    significant: bool


def paired(
    values: Sequence[float], others: Sequence[float], *, draws: int = 2000, seed: int = 0
) -> Difference:
    """Paired bootstrap of ``values - others``; recordings without both are left out.

    Args:
        values: One number a recording.
        others: The other system's, in the same order.
        draws: Bootstrap samples.
        seed: Their seed.

    Raises:
        InputError: The lengths differ.
    """
    a, b = np.asarray(values, np.float64), np.asarray(others, np.float64)
    if a.shape != b.shape:
        raise InputError(f"got {a.size} and {b.size} figures; expected one each a recording")
    both = np.isfinite(a) & np.isfinite(b)
    good = a[both] - b[both]
    if not len(good):
        nan = float("nan")
        return Difference(nan, nan, nan, 0, False)
    low, high = _interval(good, draws, seed)
    # One recording, or none that differs, shows no spread: nothing to conclude from.
    significant = bool(len(good) > 1 and (low > 0.0 or high < 0.0))
    return Difference(float(good.mean()), low, high, len(good), significant)
