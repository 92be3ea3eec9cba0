"""What is heard where nobody speaks, and what became of the speech, 16 kHz mono NumPy in.

Level taken from speechless stretches, its unsteadiness, words lost, the level of speech by band, and
hiss above the band edge of narrow-band recordings. Speech is where the set says so, else where the
clean side has energy; without a clean side, where the output has. A figure that is not defined (no
speechless stretch, no speech, nothing there to lower) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import InputError
from ..runtime.spec import SAMPLE_RATE
from ..runtime.taken import CAP_DB, NOTHING_DB

Wav = NDArray[np.floating]
Intervals = tuple[tuple[int, int], ...]  # [start, end) in samples

GUARD = SAMPLE_RATE // 2  # a speechless stretch is this far from speech: no tails, no breath
BLOCK = SAMPLE_RATE // 2
WORD = SAMPLE_RATE // 10
LOST_DB = 10.0
WORD_RANGE_DB = 20.0  # below the level of speech: what is softer is no word but its tail
FLOOR_DB = -120.0
# Of full scale: speech at -23 dB is listened to at about 65 dB SPL, which puts this at 18, below the
# noise of a quiet room (25 to 30). What lies under it is not heard to jump.
INAUDIBLE_DB = -70.0
SEAM_FADE = 8 * 128  # half the runtime's cross-fade
BANDS_KHZ = ((0, 1), (1, 2), (2, 4), (4, 8))
BAND_RANGE_DB = 70.0  # below the speech: a band without speech, no level to keep
N_FFT, HOP = 512, 256

# Energy detector: how far below the loudest half second speech may be. What comes back of the noise
# is to count as a pause in an output, so that speech must be louder there (``OUTPUT_RANGE_DB``).
CLEAN_RANGE_DB = 40.0
_FRAME = SAMPLE_RATE // 50
_BRIDGE = 3 * SAMPLE_RATE // 10
_SHORTEST = SAMPLE_RATE // 20
_PAD = SAMPLE_RATE // 20

# Band edge: the spectrum falls by so much within 0.4 kHz and stays down.
EDGE_DB, EDGE_KHZ, _STEP_KHZ = 20.0, (2.5, 7.2), (0.6, 0.2)

_IN_PAUSES = ("pause_lowered", "pause_worst", "pause_loudest", "pause_jump")
_SPEECH_BANDS, _LOUD_BANDS = (
    tuple(f"{kind}_{low}_{high}" for low, high in BANDS_KHZ) for kind in ("speech", "loud")
)
LEVEL_MEASURES = (*_IN_PAUSES, "words_lost", "speech_level", *_SPEECH_BANDS, "hiss")
PAUSE_MEASURES = (*LEVEL_MEASURES, "pesq_speech", "estoi_speech")
BLIND_MEASURES = (*_IN_PAUSES, "pause_share", "loud_level", *_LOUD_BANDS, "hiss")


def decibels(power: NDArray[np.floating] | float) -> NDArray[np.float64]:
    """10 log10 of a power, at least ``FLOOR_DB``."""
    level: NDArray[np.float64] = 10.0 * np.log10(
        np.maximum(np.asarray(power, np.float64), 10.0 ** (FLOOR_DB / 10.0))
    )
    return level


def block_levels(wav: Wav, block: int = BLOCK) -> NDArray[np.float64]:
    """RMS level (dB of full scale) of whole blocks from the start, [L // block].

    Args:
        wav: [L].
        block: Samples of one.
    """
    whole = np.asarray(wav[: len(wav) // block * block], np.float64).reshape(-1, block)
    return decibels(np.mean(whole**2, axis=1))


def find_speech(wav: Wav, range_db: float = CLEAN_RANGE_DB) -> Intervals:
    """Where a recording without noise has speech, by its energy.

    Frames of 20 ms within ``range_db`` of the loudest half second; gaps under 0.3 s are bridged,
    bursts under 50 ms left out, 50 ms added at each end.

    Args:
        wav: [L] at 16 kHz.
        range_db: ``CLEAN_RANGE_DB``, or ``runtime.taken.OUTPUT_RANGE_DB`` for what a model made.

    Returns:
        Intervals in order; none for digital silence.
    """
    level = block_levels(wav, _FRAME)
    power = np.convolve(10.0 ** (level / 10.0), np.ones(25) / 25, "same") if len(level) else level
    if not len(level) or (top := float(decibels(power.max()))) <= NOTHING_DB:
        return ()
    active = level > max(top - range_db, NOTHING_DB)
    found: list[list[int]] = []
    for start, end in _runs(active):
        if found and (start - found[-1][1]) * _FRAME < _BRIDGE:
            found[-1][1] = end
        else:
            found.append([start, end])
    return tuple(
        (max(a * _FRAME - _PAD, 0), min(b * _FRAME + _PAD, len(wav)))
        for a, b in found
        if (b - a) * _FRAME >= _SHORTEST
    )


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def check_intervals(speech: Sequence[tuple[int, int]], length: int, name: str) -> None:
    """Refuse intervals that a recording does not have.

    Args:
        speech: [start, end) in samples.
        length: Samples of the recording.
        name: What it is called in the message.

    Raises:
        InputError: One is empty, before the start or beyond the end, or before the one before.
    """
    last = 0
    for start, end in speech:
        if not last <= start < end <= length:
            raise InputError(
                f"{name}: speech from sample {start} to {end}; expected intervals in order within "
                f"the {length} samples of the recording"
            )
        last = end


def speech_mask(
    speech: Sequence[tuple[int, int]], length: int, guard: int = 0
) -> NDArray[np.bool_]:
    """Samples [L] within ``guard`` samples of speech."""
    mask = np.zeros(length, np.bool_)
    for start, end in speech:
        mask[max(start - guard, 0) : end + guard] = True
    return mask


def _whole_blocks(mask: NDArray[np.bool_], block: int) -> NDArray[np.bool_]:
    """Blocks from the start that lie wholly in ``mask``."""
    whole: NDArray[np.bool_] = np.asarray(
        mask[: len(mask) // block * block].reshape(-1, block).all(axis=1)
    )
    return whole


def _mean_level(wav: Wav, where: NDArray[np.bool_]) -> float:
    return float(decibels(float(np.mean(np.asarray(wav, np.float64)[where] ** 2))))


def _pauses(noisy: Wav, estimate: Wav, silent: NDArray[np.bool_], loudness: float) -> list[float]:
    """Lowered by, worst tenth, loudest block, jump; ``silent`` [L]: far from speech."""
    blocks = _whole_blocks(silent, BLOCK)
    before, after = (block_levels(wav)[blocks] for wav in (noisy, estimate))
    if not len(before) or (level := _mean_level(noisy, silent)) <= NOTHING_DB:
        return [float("nan")] * 4
    counted = before > NOTHING_DB  # at least one: their mean is
    lowered = np.minimum((before - after)[counted], CAP_DB) if counted.any() else np.array([np.nan])
    # What lies so far below speech (or below the noise, where nobody speaks) is not heard to jump.
    audible = np.maximum(after, max(loudness, level) - CAP_DB)
    low, high = np.percentile(audible, (10, 90))
    return [
        min(level - _mean_level(estimate, silent), CAP_DB),
        float(np.percentile(lowered, 10)),
        min(float(before.max() - after.max()), CAP_DB),
        float(high - low),
    ]


def _spectra(wav: Wav) -> NDArray[np.float64]:
    """Power [frames, N_FFT // 2 + 1] of Hann windows; a short recording is padded to one."""
    padded = np.pad(np.asarray(wav, np.float64), (0, max(N_FFT - len(wav), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    window = np.hanning(N_FFT + 1)[:-1]
    return np.asarray(np.abs(np.fft.rfft(frames * window, axis=1)) ** 2)


def _frames(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Frames of ``_spectra`` that lie wholly in ``mask`` [L]."""
    padded = np.pad(mask, (0, max(N_FFT - len(mask), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    whole: NDArray[np.bool_] = np.asarray(frames.all(axis=1))
    return whole


_KHZ = np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT / 1000.0


def _bands(power: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Power [..., bins] summed over each of ``BANDS_KHZ``."""
    return [power[..., (_KHZ >= low) & (_KHZ < high)].sum(axis=-1) for low, high in BANDS_KHZ]


def _gain(before: float, after: float) -> float:
    return max(float(10.0 * np.log10(max(after, 1e-30) / before)), -CAP_DB)


def band_edge(power: NDArray[np.float64]) -> float | None:
    """Where a narrow-band recording ends.

    Args:
        power: Mean power spectrum [N_FFT // 2 + 1].

    Returns:
        kHz: the frequency with the deepest fall of ``EDGE_DB`` and more, of the mean of the 0.4 kHz
        that end 0.2 kHz below it to the highest level from 0.2 kHz above it; None where there is no
        such fall.
    """
    smooth = np.convolve(power, np.ones(3) / 3.0, "same")
    level = 10.0 * np.log10(smooth + 1e-30)
    far, near = _STEP_KHZ
    best, edge = EDGE_DB, None
    for khz in _KHZ[(_KHZ >= EDGE_KHZ[0]) & (_KHZ <= EDGE_KHZ[1])]:
        below = level[(_KHZ >= khz - far) & (_KHZ < khz - near)].mean()
        if (fall := float(below - level[khz + near <= _KHZ].max())) > best:
            best, edge = fall, float(khz)
    return edge


def _hiss(source: NDArray[np.float64], output: NDArray[np.float64]) -> float:
    """Power of ``output`` above the band edge of ``source`` against that below it, dB."""
    edge = band_edge(source.mean(axis=0)) if source.any() else None
    total = output.sum(axis=0)
    if edge is None or not total.any():
        return float("nan")
    above = edge + _STEP_KHZ[1] <= _KHZ
    return float(10.0 * np.log10(max(total[above].sum(), 1e-30) / max(total[~above].sum(), 1e-30)))


def _speech(clean: Wav, estimate: Wav, spoken: NDArray[np.bool_], loudness: float) -> list[float]:
    """Words lost in %, level overall and by band, hiss; ``spoken`` [L]: where somebody speaks."""
    nan = float("nan")
    blocks = _whole_blocks(spoken, WORD)
    before, after = (block_levels(wav, WORD)[blocks] for wav in (clean, estimate))
    words = before > loudness - WORD_RANGE_DB
    lost = 100.0 * float(np.mean((before - after)[words] > LOST_DB)) if words.any() else nan
    frames = _frames(spoken)
    source, output = (_spectra(wav)[frames] for wav in (clean, estimate))
    floor = float(source.sum()) * 10.0 ** (-BAND_RANGE_DB / 10.0)
    bands = [
        _gain(float(p), float(q)) if p > floor else nan
        for p, q in zip(_bands(source.sum(axis=0)), _bands(output.sum(axis=0)), strict=True)
    ]
    overall = max(_mean_level(estimate, spoken) - loudness, -CAP_DB)
    return [lost, overall, *bands, _hiss(source, output)]


def measure_levels(
    noisy: Wav, clean: Wav, estimate: Wav, speech: Sequence[tuple[int, int]] | None = None
) -> dict[str, float]:
    """Levels in the pauses and of the speech of one recording.

    Args:
        noisy: What the model was given, [L] at 16 kHz.
        clean: [L].
        estimate: What the model made of it, [L].
        speech: Where somebody speaks, [start, end) in samples; None to find it in ``clean``.

    Returns:
        ``LEVEL_MEASURES`` -> figure, NaN where it is not defined:

        * pause_lowered: level of the noisy input minus that of the estimate over all samples half
          a second and more away from speech, dB, at most 60;
        * pause_worst: 10th percentile of the same over half-second blocks (of a grid that begins
          with the recording);
        * pause_loudest: loudest block of the noisy input minus loudest block of the estimate, dB;
        * pause_jump: 90th minus 10th percentile of the blocks' level in the estimate, dB; levels
          more than 60 dB below speech and noise count as that;
        * words_lost: of the 0.1 s blocks within 20 dB of the level of speech, those that the
          estimate has more than 10 dB lower, %;
        * speech_level: level of the estimate minus that of the clean side where somebody speaks,
          dB; speech_0_1 ... speech_4_8 by band in kHz. Noise that stays counts as level;
        * hiss: power of the estimate above the band edge of a narrow-band clean side against that
          below it, where somebody speaks, dB.

    Raises:
        InputError: Lengths differ, or ``speech`` does not fit.
    """
    if not noisy.shape == clean.shape == estimate.shape or clean.ndim != 1 or not len(clean):
        raise InputError(
            f"noisy is {list(noisy.shape)}, clean {list(clean.shape)}, estimate "
            f"{list(estimate.shape)}; expected equal [L]"
        )
    if speech is None:
        speech = find_speech(clean)
    else:
        check_intervals(speech, len(clean), "speech")
    spoken = speech_mask(speech, len(clean))
    loudness = _mean_level(clean, spoken) if spoken.any() else FLOOR_DB
    silent = ~speech_mask(speech, len(clean), GUARD)
    figures = _pauses(noisy, estimate, silent, loudness)
    if loudness > NOTHING_DB:
        figures += _speech(clean, estimate, spoken, loudness)
    else:
        figures += [float("nan")] * (len(LEVEL_MEASURES) - len(figures))
    return dict(zip(LEVEL_MEASURES, figures, strict=True))


def measure_blind(noisy: Wav, estimate: Wav, speech: Sequence[tuple[int, int]]) -> dict[str, float]:
    """The same without a clean recording.

    Noise that comes back louder than 25 dB below the speech passes for speech, and a talker that
    much quieter for noise: nothing here can tell them apart.

    Args:
        noisy: What the model was given, [L] at 16 kHz.
        estimate: What the model made of it, [L].
        speech: ``find_speech`` of an output, the same for all that are compared.

    Returns:
        ``BLIND_MEASURES`` -> figure, NaN where it is not defined: those of ``measure_levels``, and

        * pause_share: speechless stretches, % of the recording;
        * loud_level: level of the estimate minus that of the noisy input in the tenth of the frames
          that is loudest in the noisy input, dB; loud_0_1 ... loud_4_8 by band in kHz, each in its
          own loudest tenth;
        * hiss: above the band edge of the noisy input.

    Raises:
        InputError: Lengths differ, or ``speech`` does not fit.
    """
    if noisy.shape != estimate.shape or noisy.ndim != 1 or not len(noisy):
        raise InputError(
            f"noisy is {list(noisy.shape)}, estimate {list(estimate.shape)}; expected equal [L]"
        )
    check_intervals(speech, len(noisy), "speech")
    spoken = speech_mask(speech, len(noisy))
    silent = ~speech_mask(speech, len(noisy), GUARD)
    loudness = _mean_level(estimate, spoken) if spoken.any() else FLOOR_DB
    share = 100.0 * float(np.mean(silent))
    source, output = _spectra(noisy), _spectra(estimate)
    kept = []
    for p, q in zip(
        [source.sum(axis=1), *_bands(source)], [output.sum(axis=1), *_bands(output)], strict=True
    ):
        loud = p >= np.quantile(p, 0.9)
        heard = float(p[loud].mean()) > source.sum(axis=1).mean() * 10.0 ** (-BAND_RANGE_DB / 10.0)
        kept.append(_gain(p[loud].sum(), q[loud].sum()) if heard else float("nan"))
    pauses = _pauses(noisy, estimate, silent, loudness)
    frames = _frames(spoken)
    hiss = _hiss(source[frames], output[frames])
    return dict(zip(BLIND_MEASURES, [*pauses, share, *kept, hiss], strict=True))


def seam_steps(
    wav: Wav,
    seams: Sequence[int],
    speech: Sequence[tuple[int, int]],
    reach: int = BLOCK + SEAM_FADE,
) -> NDArray[np.float64]:
    """Steps of the level where windows meet in a pause.

    Args:
        wav: What a model made of a recording, [L] at 16 kHz.
        seams: Middles of the cross-fades, in samples.
        speech: Where somebody speaks, [start, end) in samples.
        reach: How far from a seam the half seconds end that are compared.

    Returns:
        Of each seam with silence that far on both sides, dB, [n]. Levels under ``INAUDIBLE_DB`` count
        as that.
    """
    silent = ~speech_mask(speech, len(wav), GUARD)
    steps = []
    for seam in seams:
        first, last = seam - reach, seam + reach
        if first < 0 or last > len(wav) or not silent[first:last].all():
            continue
        sides = wav[first : first + BLOCK], wav[last - BLOCK : last]
        before, after = (max(float(block_levels(side)[0]), INAUDIBLE_DB) for side in sides)
        steps.append(abs(after - before))
    return np.array(steps)


def over_utterances(
    measure: Callable[[Wav, Wav], float],
    clean: Wav,
    estimate: Wav,
    speech: Sequence[tuple[int, int]] | None = None,
) -> float:
    """Mean of a measure over the utterances of a recording; NaN where none has it.

    Args:
        measure: (clean [l], estimate [l]) -> figure, NaN where it is not defined.
        clean: [L] at 16 kHz.
        estimate: [L].
        speech: See ``measure_levels``.
    """
    intervals = find_speech(clean) if speech is None else speech
    figures = [measure(clean[a:b], estimate[a:b]) for a, b in intervals]
    defined = [figure for figure in figures if np.isfinite(figure)]
    return float(np.mean(defined)) if defined else float("nan")
