"""A phase that suits its magnitude (Griffin and Lim, 1984).

The networks estimate magnitude and phase bin by bin, and no waveform has exactly that spectrum: where
windows overlap, they contradict each other. The spectrum of the waveform they do make has a phase that
neighbouring frames agree on. Its magnitude is a little wrong, and the networks' is put back.
"""

from __future__ import annotations

import numpy as np

from .arrays import ComplexArray, FloatArray
from .spec import SignalSpec
from .stft import istft, stft


def to_waveform(spec: ComplexArray, n_samples: int, signal: SignalSpec, rounds: int) -> FloatArray:
    """The waveform of a spectrum, after rounds that bring its phase nearer to its magnitude.

    Args:
        spec: complex64 [T, F], T as ``signal.n_frames`` counts them.
        n_samples: Samples of the waveform.
        signal: Front-end constants.
        rounds: Each costs an inverse transform and a transform; 0 for the phase as it is.

    Returns:
        float32 [L].

    Raises:
        InputError: See ``istft``.
    """
    wav, magnitude = istft(spec, n_samples, signal), np.abs(spec)
    for _ in range(rounds):
        # Where the waveform has nothing, nothing is put.
        found = stft(wav, signal)[: len(spec)]
        size = np.abs(found)
        gain = np.divide(magnitude, size, out=np.zeros_like(size), where=size > 0.0)
        wav = istft(found * gain, n_samples, signal)
    return wav
