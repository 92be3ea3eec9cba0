"""What a result writes, and what it shows in a notebook: players and spectrograms.

NumPy and the standard library alone: a light installation has no plotting package.
"""

from __future__ import annotations

import base64
import html
import io
import logging
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from .audio import AudioInfo, AudioWriter, output_format
from .errors import InputError

FloatArray = NDArray[np.float32]
logger = logging.getLogger("dvpd")

SHOWN_S = 30  # of a waveform in a notebook, which keeps what it shows in its file
N_FFT, HOP = 512, 128
MAX_COLUMNS = 900  # of a spectrogram's picture
FLOOR_DB = 70.0  # below the loudest bin: black
# Dark to bright, evenly spaced: readable in grey, too.
_COLOURS = np.array(
    [[0, 0, 4], [80, 18, 123], [182, 54, 121], [251, 136, 97], [252, 253, 191]], np.float64
)


def save(wav: FloatArray, sample_rate: int, path: str | Path) -> Path:
    """Write a waveform; see ``Enhanced.save``.

    Args:
        wav: float32 [L] or [L, n_channels].
        sample_rate: Its rate (Hz).
        path: The file.

    Raises:
        InputError: It cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target}: is a directory; give a file name")
    columns = wav.reshape(len(wav), -1)
    given = AudioInfo(target, sample_rate, columns.shape[1], len(columns), "WAV", "FLOAT")
    container, subtype = output_format(given, target)
    real = Path(os.path.realpath(target))
    with AudioWriter(real, sample_rate, columns.shape[1], container, subtype) as writer:
        writer.write(columns)
        writer.commit()
    if writer.n_clipped:
        logger.warning(
            "%s: %d values beyond full scale were limited, as %s holds no more; .wav keeps them",
            target, writer.n_clipped, subtype,
        )  # fmt: skip
    return target


def level_db(wav: FloatArray, hop: int = HOP) -> FloatArray:
    """Power spectrogram in dB, [n_freqs, n_frames], low frequencies first.

    Args:
        wav: float32 [L].
        hop: Samples from one frame to the next.
    """
    padded = np.pad(wav, (0, max(0, N_FFT - len(wav))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::hop]
    spec = np.fft.rfft(frames * np.hanning(N_FFT).astype(np.float32), axis=1)
    shown: FloatArray = (10 * np.log10(np.square(np.abs(spec)) + 1e-20)).astype(np.float32).T
    return shown


def png(rgb: NDArray[np.uint8]) -> bytes:
    """A picture as PNG (RFC 2083: three chunks, rows without a filter).

    Args:
        rgb: uint8 [height, width, 3], the top row first.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    height, width, _ = rgb.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rgb.reshape(height, -1)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def spectrogram_png(db: FloatArray, top_db: float) -> bytes:
    """A spectrogram's picture, high frequencies on top.

    Args:
        db: From ``level_db``.
        top_db: Level of the brightest colour; ``FLOOR_DB`` below it is black.
    """
    db = db[::-1, :: -(-db.shape[1] // MAX_COLUMNS)]
    place = np.clip(1 + (db - top_db) / FLOOR_DB, 0, 1) * (len(_COLOURS) - 1)
    marks = np.arange(len(_COLOURS))
    rgb = np.stack([np.interp(place, marks, _COLOURS[:, c]) for c in range(3)], axis=-1)
    return png(rgb.astype(np.uint8))


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _player(wav: FloatArray, sample_rate: int, full_scale: float) -> str:
    stream = io.BytesIO()
    soundfile.write(stream, wav / full_scale, sample_rate, format="WAV", subtype="PCM_16")
    return _data("audio/wav", stream.getvalue())


def page(title: str, wavs: Mapping[str, FloatArray], sample_rate: int) -> str:
    """HTML with a player and a spectrogram for each waveform, which needs nothing from outside.

    The first ``SHOWN_S`` seconds are shown, all with one gain and one scale of colours, so that
    what is quieter sounds and looks so.

    Args:
        title: A line above them.
        wavs: Name -> float32 [L] or [L, n_channels].
        sample_rate: Their rate (Hz).
    """
    parts = {name: wav[: SHOWN_S * sample_rate] for name, wav in wavs.items()}
    largest = max((float(np.abs(wav).max(initial=0.0)) for wav in parts.values()), default=0.0)
    full_scale = max(largest, 1.0)  # what is quiet stays quiet
    levels = {
        name: level_db(wav.reshape(len(wav), -1).mean(axis=1) / np.float32(full_scale))
        for name, wav in parts.items()
    }
    top_db = max((float(db.max()) for db in levels.values()), default=0.0)
    cut = any(len(wav) > SHOWN_S * sample_rate for wav in wavs.values())
    note = f"; the first {SHOWN_S} s are shown" if cut else ""
    cells = "".join(
        f"<figure style='margin:0;min-width:0'><figcaption>{html.escape(name)}: "
        f"{len(parts[name]) / sample_rate:.1f} s, 0 to {sample_rate / 2000:g} kHz upwards</figcaption>"
        f"<audio controls preload='metadata' src='{_player(parts[name], sample_rate, full_scale)}'>"
        f"</audio><br><img alt='spectrogram of {html.escape(name)}, 0 to {sample_rate / 2000:g} kHz' "
        f"style='width:100%;max-width:420px;height:160px' "
        f"src='{_data('image/png', spectrogram_png(levels[name], top_db))}'></figure>"
        for name in parts
    )
    return (
        f"<div><code>{html.escape(title)}</code>{note}"
        f"<div style='display:flex;flex-wrap:wrap;gap:1em'>{cells}</div></div>"
    )
