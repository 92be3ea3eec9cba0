"""What readers of containers share: the bytes of a file, and what is found in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

_BLOCK = 1 << 18
MAX_CHUNKS = 10000
MAX_SEGMENTS = 1000
# Streaming writers put one of these for a size: ffmpeg all ones, sox 0x7FFFF000 and 0x7F000000,
# arecord 0x7FFFFFFF or 0x80000000, GStreamer and recorders that crashed 0.
STREAMED_32 = 0x7F000000
STREAMED_64 = 1 << 62
# Tags that may follow any recording.
TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN", b"3DI")

# Samples without a header: ffmpeg's name -> libsndfile's encoding.
RAW_FORMATS = {
    "u8": "PCM_U8", "s8": "PCM_S8", "s16": "PCM_16", "s24": "PCM_24", "s32": "PCM_32",
    "f32": "FLOAT", "f64": "DOUBLE", "ulaw": "ULAW", "mulaw": "ULAW", "alaw": "ALAW",
}  # fmt: skip
FORMATS = f"{', '.join(RAW_FORMATS)}, with be for big-endian"


@dataclass(frozen=True)
class Raw:
    """Samples without a header that anybody needs.

    Attributes:
        sample_rate: Samples a second (Hz).
        n_channels: Channels.
        subtype: libsndfile's encoding, such as "PCM_16".
        endian: "LITTLE" or "BIG".
    """

    sample_rate: int
    n_channels: int
    subtype: str
    endian: str = "LITTLE"

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.n_channels * SAMPLE_BYTES[self.subtype]


SAMPLE_BYTES = {
    "PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8,
    "ULAW": 1, "ALAW": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """One recording in a file.

    Attributes:
        first: Its first byte.
        size: Its bytes.
        n_samples: Samples in each channel that it promises; None where it promises nothing.
        raw: How to decode the bytes without a header; None: libsndfile reads their own.
        prefix: Bytes that the decoder is to find before them.
    """

    first: int
    size: int
    n_samples: int | None = None
    raw: Raw | None = None
    prefix: bytes = b""


@dataclass(frozen=True)
class Layout:
    """What a file consists of.

    Attributes:
        kind: Family of formats, such as "WAV".
        segments: The recordings in it, in order.
        faults: What contradicts what the file promises; empty for a file that is whole.
        notes: What does not keep anybody from reading it, but should be said.
        chunks: Further chunks of a WAV file, (id, first byte, bytes).
    """

    kind: str
    segments: tuple[Segment, ...]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    chunks: tuple[tuple[bytes, int, int], ...] = ()


class View:
    """Random access to a file through one buffered block."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        """Wrap an open file.

        Args:
            stream: Open for reading, seekable.
            size: Bytes that belong to it.
        """
        self._stream = stream
        self.size = size
        self._start, self._data = 0, b""

    def at(self, offset: int, count: int) -> bytes:
        """Bytes from an offset on; fewer come back at the end."""
        count = min(count, self.size - offset)
        if count <= 0 or offset < 0:
            return b""
        start = offset - self._start
        if start < 0 or start + count > len(self._data):
            self._stream.seek(offset)
            self._data = self._stream.read(max(count, _BLOCK))
            self._start, start = offset, 0
        return self._data[start : start + count]

    def find(self, pattern: bytes, offset: int) -> int:
        """Position of a pattern at or after an offset; -1 if there is none."""
        while offset < self.size:
            block = self.at(offset, _BLOCK)
            if (found := block.find(pattern)) >= 0:
                return offset + found
            if offset + len(block) >= self.size or not block:
                return -1
            offset += len(block) - len(pattern) + 1
        return -1

    def blank(self, offset: int) -> bool:
        """Whether only zeros follow."""
        while offset < self.size:
            block = self.at(offset, _BLOCK)
            if not block or block.strip(b"\0"):
                return not block
            offset += len(block)
        return True


@dataclass
class Part:
    """What a reader of one format finds from an offset on."""

    kind: str
    end: int  # first byte after it
    segments: list[Segment] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chunks: list[tuple[bytes, int, int]] = field(default_factory=list)
    rate_bytes: int = 0  # bytes of a second, where that is known
