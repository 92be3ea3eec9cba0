"""A recording of a file, opened in libsndfile as if it were a file of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import soundfile

from .containers import Segment
from .errors import InputError, raise_interrupt


def reason_of(error: OSError) -> str:
    """The system's words for an error."""
    return error.strerror or str(error)


def sf_reason(error: Exception) -> str:
    """libsndfile's words for an error, in one line."""
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(str(text).split())[:200]


class _Window:
    """The bytes of one segment as a file; libsndfile's callbacks cannot pass exceptions on."""

    def __init__(self, stream: BinaryIO, segment: Segment) -> None:
        self._stream, self._prefix = stream, segment.prefix
        self._first = segment.first - len(segment.prefix)
        self._size = segment.size + len(segment.prefix)
        self._place = 0
        self.error: BaseException | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = (0, self._place, self._size)[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, count: int) -> bytes:
        count = max(0, min(count, self._size - self._place))
        if self._place < len(self._prefix):
            data = self._prefix[self._place : self._place + count]
            self._place += len(data)
            return data
        try:
            self._stream.seek(self._first + self._place)
            data = self._stream.read(count)
        except (OSError, KeyboardInterrupt) as error:
            self.error = error
            return b""
        self._place += len(data)
        return data

    def write(self, data: bytes) -> int:
        raise AssertionError("inputs are never written")


class Sequential(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A sound file that is read from its beginning: soundfile seeks after every read otherwise.

    FLAC from a pipe and damaged files cannot be sought in.
    """

    def seekable(self) -> bool:
        """Whether it can be sought in: never."""
        return False


@contextlib.contextmanager
def opened(path: Path, segment: Segment, kind: type = Sequential) -> Iterator[Any]:
    """A segment, open in libsndfile.

    Raises:
        InputError: It cannot be opened.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            window = _Window(stream, segment)
            options: dict[str, Any] = {}
            source: Any = window
            if (raw := segment.raw) is not None:
                options = {
                    "format": "RAW",
                    "samplerate": raw.sample_rate,
                    "channels": raw.n_channels,
                    "subtype": raw.subtype,
                    "endian": raw.endian,
                }
            elif os.name == "posix" and segment == Segment(0, _size(stream), segment.n_samples):
                source = stream.fileno()  # without callbacks it is faster, and no signal gets lost
                options = {"closefd": False}
            try:
                file = kind(source, **options)
            except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
                # TypeError: a headerless format asks for its rate and channels.
                if window.error is not None:
                    raise window.error from None
                raise InputError(f"{path}: not a readable recording ({sf_reason(error)})") from None
            with file:
                yield file
                if window.error is not None:
                    raise window.error
                raise_interrupt()
    except OSError as error:
        raise InputError(f"{path}: {reason_of(error)}") from None


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size
