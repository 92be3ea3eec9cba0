"""A picture of a recording before and after: spectrograms on one scale, and levels over time.

Needs matplotlib (``dvpd[demo-app]``); what a result shows in a notebook by itself does without.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

from .arrays import FloatArray
from .display import FLOOR_DB, HOP, MAX_COLUMNS, level_db

LEVEL_S = 0.05  # over which a level is taken, at least
SILENCE_DB = -100.0


def levels_over_time(wav: FloatArray, sample_rate: int) -> tuple[FloatArray, FloatArray]:
    """Level of a waveform in pieces of ``LEVEL_S``, longer ones where there would be too many.

    Args:
        wav: float32 [L].
        sample_rate: Its rate (Hz).

    Returns:
        Times of the pieces' middles (s) and root mean squares (dB; 0 is a square wave of full
        scale), ``SILENCE_DB`` at least.
    """
    size = max(round(LEVEL_S * sample_rate), -(-len(wav) // MAX_COLUMNS), 1)
    starts = np.arange(0, len(wav), size)
    counts = np.diff(np.append(starts, len(wav)))
    power = np.add.reduceat(np.square(wav.astype(np.float64)), starts) / counts
    level = 10 * np.log10(np.maximum(power, 10 ** (SILENCE_DB / 10)))
    return ((starts + counts / 2) / sample_rate).astype(np.float32), level.astype(np.float32)


def before_after(wavs: Mapping[str, FloatArray], sample_rate: int) -> bytes:
    """The picture, as PNG.

    Args:
        wavs: Name -> float32 [L] or [L, n_channels], whose channels are averaged; all as long.
        sample_rate: Their rate (Hz).
    """
    from matplotlib.figure import Figure  # not pyplot, which is for one thread

    mono = {name: wav.reshape(len(wav), -1).mean(axis=1) for name, wav in wavs.items()}
    length = max(map(len, mono.values()))
    hop = max(HOP, -(-length // MAX_COLUMNS))
    shown = {name: level_db(wav, hop) for name, wav in mono.items()}
    top_db = max(float(db.max()) for db in shown.values())
    extent = (0.0, length / sample_rate, 0.0, sample_rate / 2000)

    figure = Figure(figsize=(8.0, 2.0 * len(mono) + 2.0), layout="constrained")
    axes = figure.subplots(len(mono) + 1, 1, sharex=True)
    for axis, (name, db) in zip(axes, shown.items(), strict=False):
        image = axis.imshow(
            db - top_db, origin="lower", aspect="auto", extent=extent, cmap="magma",
            vmin=-FLOOR_DB, vmax=0.0, interpolation="nearest",
        )  # fmt: skip
        axis.set_title(name, loc="left")
        axis.set_ylabel("kHz")
    figure.colorbar(image, ax=list(axes[:-1]), label="dB", pad=0.01, aspect=40)
    for name, wav in mono.items():
        axes[-1].plot(*levels_over_time(wav, sample_rate), label=name, linewidth=1.0)
    axes[-1].set_ylabel("level, dB")
    axes[-1].set_xlabel("time, s")
    axes[-1].grid(alpha=0.3)
    axes[-1].legend(loc="lower right")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
