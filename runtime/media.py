"""What libsndfile does not read (m4a, mp4, webm, aac, wma and more), through PyAV where it is there.

PyAV (the extra ``media``) brings the decoders of ffmpeg. Without it the error names the ffmpeg
command that makes a file which can be read.
"""

from __future__ import annotations

import importlib
import importlib.util
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arrays import FloatArray
from .errors import SALVAGE, InputError, RecordingError, raise_interrupt

# First bytes of what ffmpeg reads and libsndfile does not: (offset, bytes).
_MAGIC = (
    (4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"wide"), (0, b"\x1a\x45\xdf\xa3"),
    (0, b"\x30\x26\xb2\x75"), (0, b"#!AMR"), (0, b"ADIF"), (0, b"FLV\x01"), (0, b"MAC "),
    (0, b"wvpk"), (0, b"TTA1"), (0, b".RMF"), (0, b"OggS"), (0, b"RIFF"), (0, b"\x0b\x77"),
)  # fmt: skip
_SHORT_BY_S = 0.1  # durations in these containers are rounded, and encoders pad
_WHOLE_SHARE = 0.005


def _is_media(path: Path) -> bool:
    try:
        with open(path, "rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    adts = len(head) > 3 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
    return adts or any(head[at : at + len(magic)] == magic for at, magic in _MAGIC)


def _av() -> Any | None:
    if importlib.util.find_spec("av") is None:
        return None
    av: Any = importlib.import_module("av")
    av.logging.set_level(None)  # one line of ours says it
    return av


def _open(av: Any, path: Path) -> Any:
    container = av.open(str(path))
    if not container.streams.audio:
        container.close()
        raise InputError(f"{path}: holds no sound; give a recording")
    return container


def probe(path: Path) -> tuple[int, int, str] | None:
    """Rate (Hz), channels and codec of a file's first audio stream.

    Args:
        path: The file.

    Returns:
        None if it is nothing that ffmpeg would read.

    Raises:
        InputError: It needs PyAV, which is not installed, or PyAV cannot read it.
    """
    if not _is_media(path):
        return None
    av = _av()
    if av is None:
        raise InputError(
            f"{path}: not a readable format without PyAV: pip install 'dvpd[media]', or "
            f"ffmpeg -i {_quoted(path)} {_quoted(path.with_suffix('.wav'))} and give that file"
        )
    try:
        with _open(av, path) as container:
            context = container.streams.audio[0].codec_context
            return int(context.sample_rate), int(context.channels), str(context.name).upper()
    except InputError:
        raise
    except Exception as error:  # PyAV has an exception for each of ffmpeg's codes
        raise_interrupt(error)
        raise InputError(f"{path}: not a readable recording ({_reason(error)})") from None


def read_blocks(path: Path, gaps: list[str], salvage: bool) -> Iterator[FloatArray]:
    """Decode a file's first audio stream.

    Args:
        path: The file.
        gaps: Gets what is missing, in words, if ``salvage``.
        salvage: Whether damage is read over.

    Yields:
        float32 [n, n_channels].

    Raises:
        InputError: The file is damaged or shorter than it promises.
    """
    av = _av()
    if av is None:
        raise InputError(f"{path}: needs PyAV: pip install 'dvpd[media]'")
    done, failed = 0, None
    try:
        with _open(av, path) as container:
            stream = container.streams.audio[0]
            context = stream.codec_context
            rate, n_channels = int(context.sample_rate), int(context.channels)
            promised_s = _promised_s(stream)
            resampler = av.AudioResampler("flt", context.layout, rate)
            decoder = _frames(av, container, stream)
            for frame in decoder:
                if isinstance(frame, str):
                    failed = failed or f"is damaged near second {done / rate:.2f} ({frame})"
                    if not salvage:
                        break
                    continue
                for piece in resampler.resample(frame):
                    block = piece.to_ndarray().reshape(-1, n_channels)
                    done += len(block)
                    yield block
    except InputError:
        raise
    except Exception as error:  # likewise
        raise_interrupt(error)
        failed = f"breaks off after {done} samples ({_reason(error)})"
        promised_s, rate = 0.0, 1
    short_s = promised_s - done / rate
    if failed is None and short_s > max(_SHORT_BY_S, _WHOLE_SHARE * promised_s):
        failed = (
            f"promises {promised_s:.2f} s, {done / rate:.2f} s are there: the file is truncated"
        )
    if failed is not None:
        if not salvage:
            raise RecordingError(f"{path}: {failed}", SALVAGE)
        gaps.append(failed)


def read_texts(path: Path) -> dict[str, str]:
    """A file's tags, in lower case.

    Args:
        path: The file.
    """
    if (av := _av()) is None:
        return {}
    with _open(av, path) as container:
        found = {**container.metadata, **container.streams.audio[0].metadata}
    return {str(name).lower(): str(text) for name, text in found.items()}


def _promised_s(stream: Any) -> float:
    """Length of a stream as its container says (s); 0 if it does not."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return float(stream.container.duration or 0) / 1e6


def _frames(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames; what a damaged packet raises comes as text between them."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            yield "a damaged packet"
        try:
            yield from packet.decode()
        except av.error.InvalidDataError as error:
            yield _reason(error)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
