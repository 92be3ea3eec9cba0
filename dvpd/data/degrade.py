"""Degradations: small pure functions on float32 waveforms [L] at 16 kHz.

Nothing here draws anything: every parameter is explicit, and the same input gives the same
output. Each keeps the length and the alignment: filters act on the spectrum with a real gain
(zero phase), and the resamplers and the codec have no delay. Families and ranges: paper Table 6,
and the public synthesiser of the ICASSP 2024 Speech Signal Improvement (SIG) Challenge.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft
import soundfile as sf
import soxr
from numpy.typing import NDArray

from ..runtime.errors import InputError
from ..runtime.spec import SAMPLE_RATE

Wav = NDArray[np.float32]
Gain = Callable[[Wav], Wav]  # frequencies (Hz) -> amplitude factors

RESAMPLERS = ("sinc", "cubic", "linear", "hold")

_FILTER_TAIL = 1024  # zeros against the wrap-around of a filter's ringing (samples)
_RAMP = 160  # a change of gain takes 10 ms (samples)
_LEVEL_BLOCK = 32  # the expander's level is taken every 2 ms (samples)
_RELEASE_DB_PER_S = 86.86  # a level that falls by 1 / e in 100 ms
_SILENCE_DB = -120.0
CODEC_RATE = 8000
_PHASER_STAGES = 6


def rms(wav: Wav) -> float:
    """Root mean square."""
    return float(np.sqrt(np.dot(wav, wav) / max(len(wav), 1)))


def db_to_gain(level_db: float) -> float:
    """Decibels to an amplitude factor."""
    return float(10.0 ** (level_db / 20.0))


def fit_length(wav: Wav, count: int) -> Wav:
    """Cut or zero-pad at the end to ``count`` samples."""
    return wav[:count] if len(wav) >= count else np.pad(wav, (0, count - len(wav)))


# --- noise and level ------------------------------------------------------------------------------


def noise_gain(speech: Wav, noise: Wav, snr_db: float) -> float:
    """Factor for ``noise`` that sets the ratio of mean powers to ``snr_db`` (dB); 0 if it is silent."""
    level = rms(noise)
    return rms(speech) / level * db_to_gain(-snr_db) if level > 1e-7 else 0.0


def add_noise(speech: Wav, noise: Wav, snr_db: float) -> Wav:
    """Speech plus noise at a ratio of mean powers (dB)."""
    return speech + noise * np.float32(noise_gain(speech, noise, snr_db))


def change_gain(wav: Wav, first: int, last: int, gain_db: float) -> Wav:
    """Change the level of samples ``first`` ... ``last`` (dB), with ramps of 10 ms."""
    places = np.array([first - _RAMP, first, last, last + _RAMP])
    at = np.arange(len(wav))
    level = np.interp(at, places, [0.0, gain_db, gain_db, 0.0]).astype(np.float32)
    return wav * np.float32(10.0) ** (level / np.float32(20.0))


def expand(wav: Wav, ratio: float, threshold_db: float) -> Wav:
    """Downward expander: a level x dB below the threshold comes out ``ratio`` x dB below it.

    The level is the RMS of 2 ms; it rises at once and falls with 100 ms.

    Args:
        wav: [L].
        ratio: At least 1.
        threshold_db: Above this nothing changes (dB relative to full scale, RMS).
    """
    blocks = -(-len(wav) // _LEVEL_BLOCK)
    squares = fit_length(wav, blocks * _LEVEL_BLOCK).reshape(blocks, _LEVEL_BLOCK) ** 2
    level = 10.0 * np.log10(squares.mean(axis=1) + 10.0 ** (_SILENCE_DB / 10.0))
    # max over the past of (level then, less the release since): a running maximum of a tilted level
    tilt = np.arange(blocks) * (_RELEASE_DB_PER_S * _LEVEL_BLOCK / SAMPLE_RATE)
    level = np.maximum.accumulate(level + tilt) - tilt
    gain_db = (ratio - 1.0) * np.minimum(level - threshold_db, 0.0)
    centres = (np.arange(blocks) + 0.5) * _LEVEL_BLOCK
    curve = np.interp(np.arange(len(wav)), centres, gain_db)
    out: Wav = wav * (10.0 ** (curve / 20.0)).astype(np.float32)
    return out


def quantile_level(wav: Wav, quantile: float) -> float:
    """The level that ``quantile`` of |wav| stay below (from every fourth sample)."""
    return float(np.quantile(np.abs(wav[::4]), quantile))


def clip(wav: Wav, limit: float) -> Wav:
    """Hard clipping at +- ``limit``; a limit of 0 changes nothing (silence has no level)."""
    return np.clip(wav, -np.float32(limit), np.float32(limit)) if limit > 0 else wav


def tanh_drive(wav: Wav, drive_db: float) -> Wav:
    """Soft saturation tanh(g x) / g: what is small passes, peaks are pressed towards 1 / g."""
    gain = np.float32(db_to_gain(drive_db))
    out: Wav = np.tanh(gain * wav) / gain
    return out


def reduce_bits(wav: Wav, bits: int) -> Wav:
    """Round to a fixed-point grid of ``bits`` bits over [-1, 1)."""
    steps = np.float32(2.0 ** (bits - 1))
    out: Wav = np.clip(np.rint(wav * steps), -steps, steps - 1) / steps
    return out


# --- filters --------------------------------------------------------------------------------------


def spectral_gain(wav: Wav, *gains: Gain) -> Wav:
    """Filter with real gains over frequency, so without delay.

    Args:
        wav: [L].
        *gains: Each maps frequencies (Hz) to amplitude factors; they multiply.
    """
    if not gains:
        return wav
    size = scipy.fft.next_fast_len(len(wav) + _FILTER_TAIL, real=True)
    spec = scipy.fft.rfft(wav, size)
    freqs = np.arange(len(spec), dtype=np.float32) * np.float32(SAMPLE_RATE / size)
    for gain in gains:
        spec *= gain(freqs)
    out: Wav = scipy.fft.irfft(spec, size)[: len(wav)].astype(np.float32, copy=False)
    return out


def lowpass_gain(freqs: Wav, cutoff_hz: float, order: int) -> Wav:
    """Amplitude of a Butterworth low-pass: -3 dB at the cut-off."""
    ratio = np.minimum(freqs / np.float32(cutoff_hz), np.float32(20.0))
    out: Wav = np.float32(1.0) / np.sqrt(np.float32(1.0) + ratio ** np.float32(2 * order))
    return out


def highpass_gain(freqs: Wav, cutoff_hz: float, order: int) -> Wav:
    """Amplitude of a Butterworth high-pass, the low-pass's power complement."""
    ratio = np.minimum(freqs / np.float32(cutoff_hz), np.float32(20.0)) ** np.float32(order)
    out: Wav = ratio / np.sqrt(np.float32(1.0) + ratio * ratio)
    return out


def bandpass_gain(freqs: Wav, low_hz: float, high_hz: float, order: int) -> Wav:
    """Amplitude of a Butterworth band-pass: -3 dB at both ends."""
    return lowpass_gain(freqs, high_hz, order) * highpass_gain(freqs, low_hz, order)


def _biquad_gain(freqs: Wav, centre_hz: float, top: Sequence[float], low: Sequence[float]) -> Wav:
    """|a s^2 + b s + c| of ``top`` over that of ``low``, at s = j f / centre."""
    square = (freqs / np.float32(centre_hz)) ** 2

    def power(a: float, b: float, c: float) -> Wav:
        return (np.float32(c) - np.float32(a) * square) ** 2 + np.float32(b * b) * square

    out: Wav = np.sqrt(power(*top) / power(*low))
    return out


def low_shelf_gain(freqs: Wav, cutoff_hz: float, gain_db: float) -> Wav:
    """Shelf below ``cutoff_hz``, half its gain (dB) there (Audio EQ Cookbook, Q = 1 / sqrt 2)."""
    a = db_to_gain(gain_db / 2.0)
    middle = np.sqrt(2.0 * a)
    return np.float32(a) * _biquad_gain(freqs, cutoff_hz, (1.0, middle, a), (a, middle, 1.0))


def high_shelf_gain(freqs: Wav, cutoff_hz: float, gain_db: float) -> Wav:
    """Shelf above ``cutoff_hz``, half its gain (dB) there (Audio EQ Cookbook, Q = 1 / sqrt 2)."""
    a = db_to_gain(gain_db / 2.0)
    middle = np.sqrt(2.0 * a)
    return np.float32(a) * _biquad_gain(freqs, cutoff_hz, (a, middle, 1.0), (1.0, middle, a))


def peak_gain(freqs: Wav, centre_hz: float, gain_db: float, q: float = 5.0) -> Wav:
    """Peak or dip of ``gain_db`` at ``centre_hz`` (Audio EQ Cookbook)."""
    a = db_to_gain(gain_db / 2.0)
    return _biquad_gain(freqs, centre_hz, (1.0, a / q, 1.0), (1.0, 1.0 / (a * q), 1.0))


def microphone_gain(
    freqs: Wav,
    low_shelf: tuple[float, float],
    high_shelf: tuple[float, float],
    peaks: Sequence[tuple[float, float]] = (),
) -> Wav:
    """Response of a poor microphone.

    Args:
        freqs: Frequencies (Hz).
        low_shelf: Cut-off (Hz) and gain (dB).
        high_shelf: Likewise.
        peaks: Centre (Hz) and gain (dB) of each.
    """
    gain = low_shelf_gain(freqs, *low_shelf) * high_shelf_gain(freqs, *high_shelf)
    for peak in peaks:
        gain *= peak_gain(freqs, *peak)
    return gain


def lowpass(wav: Wav, cutoff_hz: float, order: int = 12) -> Wav:
    """Zero-phase Butterworth low-pass."""
    return spectral_gain(wav, lambda f: lowpass_gain(f, cutoff_hz, order))


def highpass(wav: Wav, cutoff_hz: float, order: int = 1) -> Wav:
    """Zero-phase Butterworth high-pass."""
    return spectral_gain(wav, lambda f: highpass_gain(f, cutoff_hz, order))


def bandpass(wav: Wav, low_hz: float, high_hz: float, order: int = 4) -> Wav:
    """Zero-phase Butterworth band-pass."""
    return spectral_gain(wav, lambda f: bandpass_gain(f, low_hz, high_hz, order))


# --- rates, codec, phase --------------------------------------------------------------------------


def through_rate(wav: Wav, rate_hz: float, method: str = "sinc") -> Wav:
    """To another sample rate and back; length and alignment stay.

    Args:
        wav: [L].
        rate_hz: The other rate (Hz), lower or higher than 16 kHz.
        method: "sinc" (band-limited), or what cheap devices do: "cubic", "linear" or "hold"
            (nearest sample), which let images and aliases through.

    Raises:
        InputError: The method is none of these.
    """
    if method == "sinc":
        down = soxr.resample(wav, SAMPLE_RATE, rate_hz, "HQ")
        up = soxr.resample(down, rate_hz, SAMPLE_RATE, "HQ")
        return fit_length(up.astype(np.float32, copy=False), len(wav))
    if method not in RESAMPLERS:
        raise InputError(f"resampler {method!r}; expected one of {', '.join(RESAMPLERS)}")
    step = SAMPLE_RATE / rate_hz
    places = np.arange(int(len(wav) / step) + 2).astype(np.float64) * step
    there = _interpolate(wav, places, method)
    return _interpolate(there, np.arange(len(wav)).astype(np.float64) / step, method)


def _interpolate(wav: Wav, places: NDArray[np.float64], method: str) -> Wav:
    last = len(wav) - 1
    if method == "hold":
        return wav[np.minimum(np.rint(places).astype(np.intp), last)]
    left = np.minimum(places.astype(np.intp), last)
    part = (places - left).astype(np.float32)
    p1, p2 = wav[left], wav[np.minimum(left + 1, last)]
    if method == "linear":
        straight: Wav = p1 + part * (p2 - p1)
        return straight
    p0, p3 = wav[np.maximum(left - 1, 0)], wav[np.minimum(left + 2, last)]
    # Catmull-Rom spline
    curve = np.float32(3.0) * (p1 - p2) + p3 - p0
    bend = np.float32(2.0) * p0 - np.float32(5.0) * p1 + np.float32(4.0) * p2 - p3
    out: Wav = p1 + np.float32(0.5) * part * (p2 - p0 + part * (bend + part * curve))
    return out


def compand(wav: Wav, peak: float) -> Wav:
    """The rounding of a telephone line: 8 bits on the mu-law scale (ITU-T G.711's continuous form).

    Args:
        wav: [L].
        peak: Level of the largest sample on the line, of its full scale, in (0, 1].
    """
    largest = float(np.max(np.abs(wav), initial=0.0))
    if not largest:
        return wav
    line, mu = wav * np.float32(peak / largest), np.float32(255.0)
    steps = np.rint(np.float32(127.0) * np.log1p(mu * np.abs(line)) / np.log1p(mu))
    decoded = np.sign(line) * np.expm1(steps / np.float32(127.0) * np.log1p(mu)) / mu
    out: Wav = (decoded * np.float32(largest / peak)).astype(np.float32, copy=False)
    return out


def gsm(wav: Wav) -> Wav:
    """Through the GSM full-rate codec (06.10) at 8 kHz and back; it has no delay.

    Full scale is full scale of the codec: what lies above +-1 is clipped.
    """
    narrow = soxr.resample(wav, SAMPLE_RATE, CODEC_RATE, "HQ")
    buffer = io.BytesIO()
    coded = np.rint(np.clip(narrow, -1.0, 1.0) * 32767.0).astype(np.int16)
    sf.write(buffer, coded, CODEC_RATE, format="WAV", subtype="GSM610")
    buffer.seek(0)
    decoded, _ = sf.read(buffer, dtype="float32")  # whole frames: zeros may follow
    wide = soxr.resample(decoded[: len(narrow)], CODEC_RATE, SAMPLE_RATE, "HQ")
    return fit_length(wide.astype(np.float32, copy=False), len(wav))


def phaser(wav: Wav, rate_hz: float, depth_octaves: float = 1.0, centre_hz: float = 1300.0) -> Wav:
    """Phaser: the mean of the signal and of its copy through six moving all-passes.

    Notches lie where the all-passes turn by an odd multiple of 180 degrees: at tan(pi f / fs) of
    0.268, 1 and 3.73 times that of the centre.

    Args:
        wav: [L].
        rate_hz: Rate of the movement (Hz).
        depth_octaves: The centre moves by as much up and down.
        centre_hz: Centre of the three notches (Hz).
    """
    time = np.arange(len(wav)) / SAMPLE_RATE
    centre = centre_hz * 2.0 ** (depth_octaves * np.sin(2.0 * np.pi * rate_hz * time))
    turn = np.tan(np.pi * np.minimum(centre, 0.45 * SAMPLE_RATE) / SAMPLE_RATE)
    pole = ((1.0 - turn) / (1.0 + turn)).astype(np.float32)
    shifted = wav
    for _ in range(_PHASER_STAGES):
        # all-pass: y[n] = pole y[n - 1] - pole x[n] + x[n - 1]
        drive = -pole * shifted
        drive[1:] += shifted[:-1]
        shifted = _recurrence(drive, pole)
    return np.float32(0.5) * (wav + shifted)


def _recurrence(drive: Wav, pole: Wav) -> Wav:
    """y[n] = pole[n] y[n - 1] + drive[n] by doubling: |pole| < 1 ends it early."""
    out, carry, step = drive.copy(), pole.copy(), 1
    while step < len(out) and float(np.max(np.abs(carry))) > 1e-8:
        out[step:] += carry[step:] * out[:-step].copy()
        carry[step:] *= carry[:-step].copy()
        carry[:step] = 0.0
        step *= 2
    return out
