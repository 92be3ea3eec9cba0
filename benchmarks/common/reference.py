"""The CPU's float32 waveforms of the shipped weights, carried along for machines that are lent for a short time.

``gpu_reference.npz`` holds them, each under a key made of everything that decides it, so that one of
other weights is not found. Needs NumPy alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.errors import InputError
from dvpd.runtime.manifest import Manifest

CLIP = Path(__file__).with_name("gpu_clip.npz")
REFERENCE = Path(__file__).with_name("gpu_reference.npz")
FORMAT = 1
WINDOW_FRAMES = 256  # 255 hops of 128 samples at 16 kHz: 2.04 s
FIX = "python benchmarks/gpu_check.py --make-reference"


def clip_window(manifest: Manifest, n_frames: int = WINDOW_FRAMES) -> FloatArray:
    """The start of a noisy recording that fills ``n_frames`` frames, float32 [L]."""
    with np.load(CLIP) as clip:
        noisy = clip["noisy"][: (n_frames - 1) * manifest.signal.hop_length]
    window: FloatArray = noisy.astype(np.float32) / 32768
    return window


def reference_key(manifest: Manifest, n_frames: int = WINDOW_FRAMES) -> str:
    """What decides the CPU's waveform, in hex: weights, sampler, front end, recording, seed 0."""
    table = {
        "format": FORMAT,
        "checkpoint": manifest.checkpoint_sha256,
        # the whole chain, whatever the engine does by default
        "sampler": {**asdict(manifest.sampler), "n_steps": manifest.sampler.score_steps},
        "sde": asdict(manifest.sde),
        "signal": asdict(manifest.signal),
        "window": hashlib.sha256(clip_window(manifest, n_frames).tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def read_reference(
    manifest: Manifest, n_frames: int = WINDOW_FRAMES, path: Path = REFERENCE
) -> FloatArray:
    """The carried waveform [L] of these weights.

    Args:
        manifest: Of the engine.
        n_frames: Frames of the window.
        path: The file.

    Raises:
        InputError: It is missing, damaged, or of other weights; the message has the command.
    """
    try:
        with np.load(path) as found:
            names, key = found["names"].tolist(), reference_key(manifest, n_frames)
            if key in found.files:
                wav: FloatArray = found[key]
                return wav
    except FileNotFoundError:
        raise InputError(f"{path.name} is missing: {FIX}") from None
    except Exception as error:  # zip and npy readers raise types of their own
        raise InputError(f"{path.name} cannot be read ({error}): {FIX}") from None
    known = "of other weights" if manifest.name in names else "of another model"
    raise InputError(f"{path.name} is stale: {known} than {manifest.name} has now: {FIX}")
