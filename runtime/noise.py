"""Gaussian noise by absolute position: a function of (seed, draw, frame, bin) and nothing else.

However a recording is cut, frame m sees the same noise. The stream is defined here, not by a
library's generator of normals (which may change between versions): Philox 4x64-10 with key
(seed, draw), 33 counters a frame, and the Box-Muller transform in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Philox  # NumPy reads it on first use: here beside the graphs
from numpy.typing import NDArray

from .errors import InputError
from .spec import N_FREQS, SEED_MAX

_PAIRS = (N_FREQS + 1) // 2  # one 64-bit word gives two normals
_COUNTERS = -(-_PAIRS // 4)  # Philox yields four words a counter


def check_seed(seed: object) -> int:
    """Return the seed as an int.

    Args:
        seed: A whole number in [0, 2^64).

    Raises:
        InputError: It is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise InputError(f"seed is {seed!r}; expected a whole number in [0, 2^64)")
    if not 0 <= int(seed) <= SEED_MAX:
        raise InputError(f"seed is {seed}; expected a whole number in [0, 2^64)")
    return int(seed)


def frame_noise(seed: int, draw: int, first_frame: int, n_frames: int) -> NDArray[np.float32]:
    """Standard normals for frames first_frame ... first_frame + n_frames - 1.

    Args:
        seed: Whole number in [0, 2^64).
        draw: Index of the draw: 0 for the sampler's first state, i for the noise after step i.
        first_frame: Absolute index of the first frame, >= 0.
        n_frames: Number of frames.

    Returns:
        float32 [n_frames, 257].

    Raises:
        InputError: A number is out of range.
    """
    key = check_seed(seed)
    if draw < 0 or first_frame < 0 or n_frames < 0:
        raise InputError("draw, first_frame and n_frames must not be negative")
    bits = Philox(key=key | draw << 64, counter=first_frame * _COUNTERS)
    words = bits.random_raw(n_frames * _COUNTERS * 4).reshape(n_frames, _COUNTERS * 4)[:, :_PAIRS]
    # (0, 1] keeps the logarithm finite; the largest normal is sqrt(2 * 32 ln 2) = 6.66.
    radius = np.sqrt(-2.0 * np.log(((words >> np.uint64(32)).astype(np.float64) + 1.0) * 2.0**-32))
    angle = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    normals = np.empty((n_frames, _PAIRS, 2), np.float32)
    normals[..., 0] = radius * np.cos(angle)
    normals[..., 1] = radius * np.sin(angle)
    return normals.reshape(n_frames, _PAIRS * 2)[:, :N_FREQS]
