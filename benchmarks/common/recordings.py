"""Long recordings with pauses, made of the tracked clips of tests/assets: the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.errors import InputError
from dvpd.runtime.spec import SAMPLE_RATE

ASSETS = Path(__file__).resolve().parents[2] / "tests" / "assets"
RATE_HZ = SAMPLE_RATE
FADE = RATE_HZ // 2  # where pieces of noise overlap

# The guard's: the pause is longer than a window of the runtime, so that one hears noise alone. Of the
# four clips' noises this one was taken because the weights of November 2026 let it come back (steady
# noise they removed): the pins are an alarm for that fault, not what a model does on average.
LEAD_S, PAUSE_S, END_S = 0.5, 10.0, 3.0
SNR_DB = 5.0
SPEECH_CLIPS, NOISE_CLIP = (0, 1), 3


def read_clip(index: int, folder: Path = ASSETS) -> tuple[FloatArray, FloatArray]:
    """Noisy and clean waveform [L] of a tracked pair.

    Args:
        index: Which, 0 to 3.
        folder: Holds ``clipN_noisy.flac`` and ``clipN_clean.flac``.

    Raises:
        InputError: It is not there.
    """
    import soundfile

    paths = [folder / f"clip{index}_{side}.flac" for side in ("noisy", "clean")]
    if missing := [p.name for p in paths if not p.is_file()]:
        raise InputError(f"{folder} has no {missing[0]}; run this in a checkout")
    noisy, clean = (soundfile.read(path, dtype="float32")[0] for path in paths)
    return noisy, clean


def continuous_noise(piece: FloatArray, length: int) -> FloatArray:
    """Noise [length] of one piece over and over, with fades of equal power where two meet.

    Args:
        piece: [L], more than two fades long.
        length: Samples wanted.

    Raises:
        InputError: ``piece`` is too short.
    """
    if len(piece) <= 2 * FADE:
        raise InputError(f"the noise has {len(piece)} samples; expected more than {2 * FADE}")
    ramp = np.sin(np.linspace(0.0, np.pi / 2, FADE))
    faded = piece.astype(np.float64)
    faded[:FADE] *= ramp
    faded[-FADE:] *= ramp[::-1]
    step = len(piece) - FADE
    out = np.zeros(length + FADE + 2 * len(piece))
    for start in range(0, length + FADE, step):
        out[start : start + len(piece)] += faded
    return out[FADE : FADE + length].astype(np.float32)  # the first fade has no partner


def spaced(
    utterances: Sequence[FloatArray], lead_s: float, pause_s: float, end_s: float
) -> tuple[FloatArray, tuple[tuple[int, int], ...]]:
    """Utterances with pauses between them.

    Args:
        utterances: [l] each.
        lead_s: Silence before the first, s.
        pause_s: Between two, s.
        end_s: After the last, s.

    Returns:
        Waveform [L], and where somebody speaks, [start, end) in samples.
    """
    parts, speech = [np.zeros(round(lead_s * RATE_HZ), np.float32)], []
    at = len(parts[0])
    for i, wav in enumerate(utterances):
        after = end_s if i == len(utterances) - 1 else pause_s
        speech.append((at, at + len(wav)))
        parts += [wav, np.zeros(round(after * RATE_HZ), np.float32)]
        at += len(wav) + len(parts[-1])
    return np.concatenate(parts), tuple(speech)


def with_pauses(
    folder: Path = ASSETS,
) -> tuple[FloatArray, FloatArray, tuple[tuple[int, int], ...]]:
    """Two utterances ten seconds apart in continuous noise, 20 s.

    Args:
        folder: See ``read_clip``.

    Returns:
        Noisy [L], clean [L], and where somebody speaks, [start, end) in samples.

    Raises:
        InputError: The clips are not there.
    """
    clean, speech = spaced([read_clip(i, folder)[1] for i in SPEECH_CLIPS], LEAD_S, PAUSE_S, END_S)
    a, b = read_clip(NOISE_CLIP, folder)
    noise = continuous_noise(a - b, len(clean))
    spoken = np.concatenate([clean[start:end] for start, end in speech])
    gain = np.sqrt(np.mean(np.square(spoken)) / np.mean(np.square(noise)) / 10 ** (SNR_DB / 10))
    return (clean + noise * gain).astype(np.float32), clean, speech
