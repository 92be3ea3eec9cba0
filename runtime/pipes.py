"""Standard input and output as recordings, and samples without a header.

What comes through a pipe is kept in a temporary file, as the level of the whole recording must be
known before its first sample can be enhanced: memory does not grow, the first samples leave when
the last have come.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import soundfile
from numpy.typing import NDArray

from .arrays import FloatArray
from .audio import (
    MAX_RATE_HZ,
    MIN_RATE_HZ,
    OUTPUT_FORMATS,
    AudioInfo,
    AudioWriter,
    check_paths,
    check_suffix,
    collect_extras,
    encode,
    limited,
    output_format,
)
from .containers import FORMATS, RAW_FORMATS, SAMPLE_BYTES, Raw
from .errors import InputError
from .spec import MAX_CHANNELS

PIPE = "-"
_CODES = {"FLOAT": 3, "DOUBLE": 3, "ALAW": 6, "ULAW": 7}
_COPY_BYTES = 1 << 20


def parse_raw(text: str) -> Raw:
    """Read a description of headerless samples.

    Args:
        text: RATE,CHANNELS,FORMAT, such as "48000,1,s16"; formats by ffmpeg's names (s16, s16le,
            s24be, f32, ulaw, ...), little-endian where they do not say.

    Raises:
        InputError: It is none.
    """
    parts = text.replace(" ", "").lower().split(",")
    try:
        rate, channels = int(parts[0]), int(parts[1])
        subtype, endian = parse_format(parts[2] if len(parts) == 3 else "")
    except (ValueError, IndexError):  # InputError is a ValueError
        raise InputError(
            f"{text!r} is no RATE,CHANNELS,FORMAT, such as 48000,1,s16; formats: {FORMATS}"
        ) from None
    if not (MIN_RATE_HZ <= rate <= MAX_RATE_HZ and 1 <= channels <= MAX_CHANNELS):
        raise InputError(
            f"{text!r}: expected {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz and 1 to {MAX_CHANNELS} channels"
        )
    return Raw(rate, channels, subtype, endian)


def parse_format(name: str) -> tuple[str, str]:
    """How samples without a header are coded.

    Args:
        name: ffmpeg's name, such as "s16" or "f32be".

    Returns:
        libsndfile's encoding, and "LITTLE" or "BIG".

    Raises:
        InputError: It is none that is known.
    """
    base = name[:-2] if name.endswith(("le", "be")) else name
    if base not in RAW_FORMATS:
        raise InputError(f"format is {name!r}; expected one of {FORMATS}")
    return RAW_FORMATS[base], "BIG" if name.endswith("be") else "LITTLE"


def from_raw(data: bytes, raw: Raw) -> FloatArray:
    """Samples of bytes without a header, float32 [n, n_channels]; integers within [-1, 1].

    Args:
        data: Whole frames.
        raw: How they are coded.
    """
    wav: FloatArray
    wav, _ = soundfile.read(
        io.BytesIO(data),
        dtype="float32",
        always_2d=True,
        samplerate=raw.sample_rate,
        channels=raw.n_channels,
        format="RAW",
        subtype=raw.subtype,
        endian=raw.endian,
    )
    return wav


def to_raw(block: FloatArray, raw: Raw) -> tuple[memoryview, int]:
    """Bytes of samples without a header, and how many values were beyond full scale.

    Args:
        block: float32 [n, n_channels].
        raw: How they are to be coded.
    """
    beyond = 0
    if raw.subtype not in ("FLOAT", "DOUBLE"):
        block, beyond = limited(block)
    data = io.BytesIO()
    samples: NDArray[Any] = encode(block, raw.subtype)
    soundfile.write(data, samples, raw.sample_rate, raw.subtype, endian=raw.endian, format="RAW")
    return data.getbuffer(), beyond


@contextlib.contextmanager
def _renamed(path: str, name: str) -> Iterator[None]:
    """Messages of the runtime call a file by the name that its user knows."""

    def rename(record: logging.LogRecord) -> bool:
        record.msg, record.args = record.getMessage().replace(path, name), ()
        return True

    logger = logging.getLogger("dvpd")
    logger.addFilter(rename)
    try:
        yield
    finally:
        logger.removeFilter(rename)


@contextlib.contextmanager
def spooled_input() -> Iterator[Path]:
    """Keep what comes through standard input in a temporary file; messages call it standard input.

    Yields:
        Its path.

    Raises:
        InputError: There is no standard input, it is a terminal, or the disk is full.
    """
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or sys.stdin.isatty():
        raise InputError("standard input: no recording comes in; give a file, or pipe one")
    try:
        with tempfile.TemporaryDirectory(prefix="dvpd-") as folder:
            path = Path(folder) / "stdin"
            with open(path, "xb") as out:
                shutil.copyfileobj(stream, out, _COPY_BYTES)
            with _renamed(str(path), "standard input"):
                yield path
    except OSError as error:
        raise InputError(
            f"standard input: cannot be kept in {tempfile.gettempdir()} "
            f"({error.strerror or error}); set TMPDIR to a folder with more space"
        ) from None


class Sink(Protocol):
    """Where the bytes of a recording go while they are computed."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Take bytes; returns how many."""
        ...


class PipeWriter:
    """Write a recording of a known length to a stream that cannot be sought in."""

    def __init__(self, info: AudioInfo, raw: Raw | None, stream: Sink | None = None) -> None:
        """Write the header.

        Args:
            info: The recording that comes in; rate, channels and length are those that go out.
            raw: How the samples are coded if there is to be no header.
            stream: Where to; None for standard output.

        Raises:
            InputError: There is no standard output, or it is a terminal.
        """
        self._owned: BinaryIO | None = None
        if stream is None:
            stream = self._owned = _stdout()
        self._stream: Sink = stream
        self.n_clipped = 0
        if raw is not None:
            self.container, self.subtype = "RAW", raw.subtype
        else:
            self.container, self.subtype = output_format(info, Path("stdout.wav"))
        endian = "LITTLE" if raw is None else raw.endian
        self._raw = Raw(info.sample_rate, info.n_channels, self.subtype, endian)
        if raw is None:
            self._put(_wav_header(info, self.subtype))

    def __enter__(self) -> PipeWriter:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the stream."""
        if self._owned is not None:
            with contextlib.suppress(OSError):
                self._owned.close()

    def write(self, block: FloatArray) -> None:
        """Append samples; see ``AudioWriter.write``."""
        data, beyond = to_raw(block, self._raw)
        self.n_clipped += beyond
        self._put(data)

    def commit(self) -> None:
        """Nothing: what was written is with the reader already."""

    def _put(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            raise InputError(f"standard output: {error.strerror or error}") from None


def _stdout() -> BinaryIO:
    try:
        if sys.stdout.isatty():
            raise InputError("standard output: is a terminal; give a file, or pipe it somewhere")
        sys.stdout.flush()
        # A copy, unbuffered: nothing is left over for Python to write at its end.
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    except (OSError, AttributeError) as error:
        raise InputError(f"standard output: cannot be written ({error})") from None


def _wav_header(info: AudioInfo, subtype: str) -> bytes:
    """The header of a WAV file whose length is known; RF64 beyond 4 GiB."""
    width = SAMPLE_BYTES[subtype]
    align = width * info.n_channels
    size = align * info.n_samples
    rate = info.sample_rate
    fmt = struct.pack(
        "<HHIIHH", _CODES.get(subtype, 1), info.n_channels, rate, rate * align, align, 8 * width
    )
    body = b"fmt " + struct.pack("<I", len(fmt)) + fmt
    if subtype in _CODES:
        body += b"fact" + struct.pack("<II", 4, min(info.n_samples, 0xFFFFFFFF))
    total = 4 + len(body) + 8 + size
    if total < 0xFFFFFFFF:
        return (
            b"RIFF" + struct.pack("<I", total) + b"WAVE" + body + b"data" + struct.pack("<I", size)
        )
    ds64 = struct.pack("<IQQQI", 28, total + 36, size, info.n_samples, 0)
    wide = struct.pack("<I", 0xFFFFFFFF)
    return b"RF64" + wide + b"WAVE" + b"ds64" + ds64 + body + b"data" + wide


def open_output(
    info: AudioInfo, target: str | Path | Sink, raw: Raw | None, overwrite: bool
) -> tuple[AudioWriter | PipeWriter, tuple[str, ...]]:
    """The output of a recording, and what of its extras it cannot carry."""
    if not isinstance(target, (str, Path)):
        return PipeWriter(info, raw, target), ()
    if str(target) == PIPE:
        return PipeWriter(info, raw), ()
    check_suffix(Path(target))
    real = check_paths(info.path, Path(target), overwrite=overwrite)
    extras = collect_extras(info, OUTPUT_FORMATS[real.suffix.lower()][0])
    container, subtype = output_format(info, real, extras.n_bytes)
    writer = AudioWriter(
        real,
        info.sample_rate,
        info.n_channels,
        container,
        subtype,
        extras=extras,
        overwrite=overwrite,
    )
    return writer, extras.left
