"""What an audio file promises, held against the bytes that are there.

libsndfile answers a file that was cut, or that holds several recordings, with as many samples as it
finds in the first: without an error. Here the file's own structure is read first: ``examine`` says
where the recordings lie in it, how many samples each one promises, and what contradicts that.

Streaming writers cannot go back to fill in a length; their placeholders (0, or as good as the
largest number) promise nothing, and such a file is read to its end.

Formats: RIFF WAVE, RF64 (EBU Tech 3306), Sony Wave64, AIFF and AIFF-C, 8SVX, AU, CAF, FLAC
(RFC 9639), Ogg (RFC 3533), MPEG audio (ISO 11172-3) with Xing headers, NIST SPHERE, VOC, AVR, PSION.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

_BLOCK = 1 << 18
_MAX_CHUNKS = 10000
_MAX_SEGMENTS = 1000
# Streaming writers put one of these for a size: ffmpeg all ones, sox 0x7FFFF000 and 0x7F000000,
# arecord 0x7FFFFFFF or 0x80000000, GStreamer and recorders that crashed 0.
_STREAMED_32 = 0x7F000000
_STREAMED_64 = 1 << 62
# Tags that may follow any recording.
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN", b"3DI")


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
class _Part:
    """What a reader of one format finds from an offset on."""

    kind: str
    end: int  # first byte after it
    segments: list[Segment] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chunks: list[tuple[bytes, int, int]] = field(default_factory=list)
    rate_bytes: int = 0  # bytes of a second, where that is known


def examine(stream: BinaryIO, size: int) -> Layout | None:
    """Read a file's structure.

    Args:
        stream: The file, open for reading.
        size: Its bytes.

    Returns:
        The layout; None if it is no format that is known here.
    """
    view = View(stream, size)
    whole: _Part | None = None
    offset = 0
    while offset < size and (whole is None or len(whole.segments) < _MAX_SEGMENTS):
        part = _read_part(view, offset)
        if part is None:
            break
        if whole is None:
            whole = part
        else:
            if part.kind != whole.kind:
                whole.faults.append(f"a {part.kind} recording follows at byte {offset}")
                offset = size
                break
            whole.segments += part.segments
            whole.faults += part.faults
            whole.chunks = []  # positions in them would be wrong
        offset = part.end
    if whole is None:
        return None
    _judge_rest(view, offset, whole)
    if any(segment.n_samples != 0 for segment in whole.segments):  # an empty one says nothing
        whole.segments = [s for s in whole.segments if s.n_samples != 0]
    return Layout(
        whole.kind,
        tuple(whole.segments),
        tuple(whole.faults),
        tuple(dict.fromkeys(whole.notes)),
        tuple(whole.chunks),
    )


def _judge_rest(view: View, offset: int, whole: _Part) -> None:
    rest = view.size - offset
    if rest <= 0 or view.at(offset, 12).startswith(_TAGS) or view.blank(offset):
        return
    text = f"{rest} bytes from byte {offset} on belong to no recording"
    (whole.faults if rest >= max(whole.rate_bytes, 4096) else whole.notes).append(text)


def _read_part(view: View, offset: int) -> _Part | None:
    head = view.at(offset, 40)
    for known, reader in _READERS:
        if known(head):
            return reader(view, offset)
    if head[:3] == b"ID3":  # before FLAC and MPEG audio
        after = offset + _id3_bytes(head)
        if view.at(after, 4) == b"fLaC":
            return _flac(view, after)
        return _mpeg(view, offset)
    if _mpeg_frame(head) is not None:
        return _mpeg(view, offset)
    return None


# ---- chunks: WAV, RF64, Wave64, AIFF, 8SVX, CAF


def _is_chunk_id(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _chunks(
    view: View, offset: int, order: str, wide: bool = False
) -> Iterator[tuple[bytes, int, int]]:
    """(id, first byte, claimed size) of the chunks of an IFF or CAF file, while they look so."""
    head = struct.calcsize(f"{order}4sq" if wide else f"{order}4sI")
    for _ in range(_MAX_CHUNKS):
        data = view.at(offset, head)
        if len(data) < head:
            return
        name, size = struct.unpack(f"{order}4sq" if wide else f"{order}4sI", data)
        if not _is_chunk_id(name):
            return
        yield name, offset + head, size
        if size < 0:
            return
        offset += head + size + (0 if wide else size & 1)


def _data(
    part: _Part,
    view: View,
    first: int,
    claimed: int,
    raw: Raw | None,
    streamed: int,
    follows: bool,
    block: int = 1,
) -> int:
    """Add the segment of a data chunk; return the first byte after what it holds.

    Args:
        part: Gets the segment or the fault.
        view: The file.
        first: First byte of the samples.
        claimed: Bytes that the header promises.
        raw: How the samples are coded, if that is simple.
        streamed: Sizes from here on are placeholders if the file is shorter.
        follows: Whether a chunk follows that an empty data chunk would be followed by.
        block: Bytes that are decoded together: of half a block nothing comes out but noise.
    """
    there = view.size - first
    start = part.end  # where the file's own header begins
    if raw is not None:
        part.rate_bytes = raw.frame_bytes * raw.sample_rate
    if (claimed == 0 and there > 0 and not follows) or (claimed > there and claimed >= streamed):
        size = there
        n_samples = None if raw is None else size // raw.frame_bytes
        if raw is not None:
            part.segments.append(Segment(first, size, n_samples, raw))
        else:
            part.segments.append(Segment(start, view.size - start))
        return first + size
    if claimed > there:
        if raw is not None:
            part.faults.append(
                f"promises {claimed // raw.frame_bytes} samples, {there // raw.frame_bytes} are "
                f"there ({there} of {claimed} bytes): the file is truncated"
            )
        else:
            part.faults.append(
                f"promises {claimed} bytes of samples, {there} are there: the file is truncated"
            )
        if raw is not None:  # some headers that promise more than there is are refused
            part.segments.append(Segment(first, there, there // raw.frame_bytes, raw))
            return first + there
    size = min(claimed, there)
    n_samples = None if raw is None else size // raw.frame_bytes
    whole = size - (size % block if claimed > there else 0)
    part.segments.append(Segment(start, first + whole - start, n_samples))
    return first + size


_WAV_CODES = {
    (1, 8): "PCM_U8", (1, 16): "PCM_16", (1, 24): "PCM_24", (1, 32): "PCM_32", (3, 32): "FLOAT",
    (3, 64): "DOUBLE", (6, 8): "ALAW", (7, 8): "ULAW",
}  # fmt: skip


def _wav_raw(fmt: bytes, order: str) -> Raw | None:
    """The plain encoding that a fmt chunk describes; None for any other."""
    if len(fmt) < 16:
        return None
    code, channels, rate, _, align, bits = struct.unpack_from(f"{order}HHIIHH", fmt)
    if code == 0xFFFE and len(fmt) >= 26:
        code = struct.unpack_from(f"{order}H", fmt, 24)[0]
    subtype = _WAV_CODES.get((code, bits))
    if subtype is None or channels * SAMPLE_BYTES[subtype] != align or not channels or not rate:
        return None
    return Raw(rate, channels, subtype, "LITTLE" if order == "<" else "BIG")


def _wav(view: View, offset: int) -> _Part:
    order = ">" if view.at(offset, 4) == b"RIFX" else "<"
    long = view.at(offset, 4) in (b"RF64", b"BW64")
    part = _Part("WAV", offset)
    raw, sizes, data_seen, end, block = None, (0, 0), False, offset + 12, 1
    for name, first, size in _chunks(view, offset + 12, order):
        if name in (b"RIFF", b"RF64", b"RIFX", b"FORM", b"OggS", b"fLaC", b"BW64"):
            break  # the next recording
        if name == b"ds64":
            table = view.at(first, 16)
            sizes = struct.unpack("<QQ", table) if len(table) == 16 else (0, 0)
        elif name == b"fmt ":
            raw = _wav_raw(view.at(first, min(size, 64)), order)
            block = max(
                1, int.from_bytes(view.at(first + 12, 2), "big" if order == ">" else "little")
            )
        elif name == b"data":
            if data_seen:
                part.faults.append(f"a second data chunk begins at byte {first - 8}")
                break
            data_seen = True
            wide = long and size == 0xFFFFFFFF
            claimed = sizes[1] if wide else size
            streamed = _STREAMED_64 if wide else _STREAMED_32
            follows = _is_chunk_id(view.at(first, 4)) and _fits(view, first, order)
            end = _data(part, view, first, claimed, raw, streamed, follows, block)
            if claimed != size or end - first != size:  # the walk cannot go on by its own sizes
                end += end & 1 if claimed < _STREAMED_32 else 0
                rest = _Part("WAV", end)
                _more_chunks(view, end, order, rest)
                part.chunks += rest.chunks
                end = rest.end
                break
        else:
            if data_seen and first + size > view.size:
                if view.at(first - 8, 11).startswith(_TAGS):
                    break
                part.notes.append(f"ends inside its {name.decode().strip()} chunk (no samples)")
            else:
                part.chunks.append((name, first, size))
        end = min(first + size + (size & 1), view.size)
    part.end = min(end, view.size)
    return part


def _fits(view: View, offset: int, order: str) -> bool:
    head = view.at(offset, 8)
    return len(head) == 8 and offset + 8 + struct.unpack(f"{order}I", head[4:])[0] <= view.size


def _more_chunks(view: View, offset: int, order: str, part: _Part) -> None:
    """Chunks after the samples, as far as they fit in the file."""
    for name, first, size in _chunks(view, offset, order):
        if name in (b"RIFF", b"RF64", b"FORM", b"OggS", b"fLaC") or first + size > view.size:
            return
        part.chunks.append((name, first, size))
        part.end = min(first + size + (size & 1), view.size)


def _w64(view: View, offset: int) -> _Part:
    part = _Part("W64", offset)
    place, raw = offset + 40, None
    for _ in range(_MAX_CHUNKS):
        head = view.at(place, 24)
        if len(head) < 24 or head[:16] == _W64_RIFF:
            break
        size = struct.unpack("<Q", head[16:])[0]
        if size < 24:
            part.faults.append(f"its chunk at byte {place} has the size {size}")
            break
        if head.startswith(b"fmt "):
            raw = _wav_raw(view.at(place + 24, min(size - 24, 64)), "<")
        if head.startswith(b"data"):
            place = _data(part, view, place + 24, size - 24, raw, _STREAMED_64 - 64, size > 24)
            place += -(place - offset) % 8
        else:
            place += size + -size % 8
    part.end = min(place, view.size)
    return part


_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_AIFF_CODES = {
    (b"NONE", 8): ("PCM_S8", "BIG"), (b"NONE", 16): ("PCM_16", "BIG"),
    (b"NONE", 24): ("PCM_24", "BIG"), (b"NONE", 32): ("PCM_32", "BIG"),
    (b"twos", 16): ("PCM_16", "BIG"), (b"sowt", 16): ("PCM_16", "LITTLE"),
    (b"sowt", 24): ("PCM_24", "LITTLE"), (b"sowt", 32): ("PCM_32", "LITTLE"),
    (b"fl32", 32): ("FLOAT", "BIG"), (b"FL32", 32): ("FLOAT", "BIG"),
    (b"fl64", 64): ("DOUBLE", "BIG"), (b"FL64", 64): ("DOUBLE", "BIG"),
}  # fmt: skip


def _comm_raw(comm: bytes) -> Raw | None:
    if len(comm) < 18:
        return None
    channels, _, bits, power, mantissa = struct.unpack(">HIHHQ", comm[:18])
    exponent = (power & 0x7FFF) - 16383 - 63
    rate = mantissa * 2.0**exponent if -200 < exponent < 0 else 0.0
    code = _AIFF_CODES.get((comm[18:22] or b"NONE", bits))
    if code is None or not channels or not 1 <= rate < 1 << 31:
        return None
    return Raw(round(rate), channels, *code)


def _aiff(view: View, offset: int) -> _Part:
    kind = {b"8SVX": "SVX", b"16SV": "SVX"}.get(view.at(offset + 8, 4), "AIFF")
    part = _Part(kind, offset)
    # The description may follow the samples: it is looked for first.
    found = list(_chunks(view, offset + 12, ">"))
    comm = next((view.at(at, min(n, 22)) for name, at, n in found if name == b"COMM"), b"")
    raw, end = _comm_raw(comm), offset + 12
    for name, first, size in found:
        if name in (b"FORM", b"RIFF"):
            break
        end = min(first + size + (size & 1), view.size)
        if name not in (b"BODY", b"SSND", b"COMM", b"FVER"):
            part.chunks.append((name, first, size))
        if name == b"BODY":
            end = _data(part, view, first, size, None, _STREAMED_32, True)
            end += size & 1
        elif name == b"SSND":
            skip = int.from_bytes(view.at(first, 4), "big")
            skip = 8 + (skip if skip < 1 << 16 else 0)
            follows = _is_chunk_id(view.at(first, 4))
            end = _data(part, view, first + skip, max(size - skip, 0), raw, _STREAMED_32, follows)
            end += (end - first) & 1
    part.end = min(end, view.size)
    return part


_CAF_CODES = {
    (b"lpcm", 8, False): "PCM_S8", (b"lpcm", 16, False): "PCM_16", (b"lpcm", 24, False): "PCM_24",
    (b"lpcm", 32, False): "PCM_32", (b"lpcm", 32, True): "FLOAT", (b"lpcm", 64, True): "DOUBLE",
    (b"ulaw", 8, False): "ULAW", (b"alaw", 8, False): "ALAW",
}  # fmt: skip


def _caf(view: View, offset: int) -> _Part:
    part = _Part("CAF", offset)
    raw, end = None, offset + 8
    for name, first, size in _chunks(view, offset + 8, ">", wide=True):
        if name == b"caff":
            break
        end = min(first + max(size, 0), view.size)
        if name == b"desc" and size >= 32 and len(head := view.at(first, 32)) == 32:
            rate, code, flags, _, _, channels, bits = struct.unpack(">d4sIIIII", head)
            subtype = _CAF_CODES.get((code, bits, code == b"lpcm" and bool(flags & 1)))
            if subtype is not None and 1 <= rate < 1 << 31 and 0 < channels < 1 << 16:
                little = code == b"lpcm" and flags & 2
                raw = Raw(round(rate), channels, subtype, "LITTLE" if little else "BIG")
        elif name == b"data":
            claimed = _STREAMED_64 if size == -1 else max(size - 4, 0)
            follows = _is_chunk_id(view.at(first + 4, 4))
            end = _data(part, view, first + 4, claimed, raw, _STREAMED_64, follows)
            if claimed == _STREAMED_64 or size == 0:
                break
    part.end = end
    return part


# ---- formats with a length in a fixed header


def _au(view: View, offset: int) -> _Part:
    order = ">" if view.at(offset, 4) == b".snd" else "<"
    part = _Part("AU", offset)
    head = view.at(offset, 24)
    if len(head) < 24:
        part.end = view.size
        return part
    skip, size, code, rate, channels = struct.unpack(f"{order}IIIII", head[4:24])
    subtype = {
        1: "ULAW", 2: "PCM_S8", 3: "PCM_16", 4: "PCM_24", 5: "PCM_32", 6: "FLOAT", 7: "DOUBLE",
        27: "ALAW",
    }.get(code)  # fmt: skip
    raw = None
    if subtype is not None and 0 < channels < 1 << 16 and rate:
        raw = Raw(rate, channels, subtype, "BIG" if order == ">" else "LITTLE")
    if not 24 <= skip <= view.size - offset:
        part.end = view.size
        part.segments.append(Segment(offset, view.size - offset))
        return part
    follows = view.at(offset + skip, 4) == head[:4]
    part.end = _data(part, view, offset + skip, size, raw, _STREAMED_32, follows)
    return part


def _nist(view: View, offset: int) -> _Part:
    text = view.at(offset, 1 << 14).decode("latin-1")
    found = dict(re.findall(r"^(\w+) -\w+ (\S+)", text, re.MULTILINE))
    part = _Part("NIST", view.size)
    try:
        skip = int(text[8:16])
        n_samples, width = int(found["sample_count"]), int(found.get("sample_n_bytes", 2))
        claimed = n_samples * int(found.get("channel_count", 1)) * width
    except (KeyError, ValueError):
        part.notes.append("stores no length that could be checked")
        claimed, skip = 0, 0
    there = view.size - offset - skip
    if claimed > there and "shorten" not in found.get("sample_coding", ""):
        part.faults.append(
            f"promises {claimed} bytes of samples, {there} are there: the file is truncated"
        )
    elif claimed and found.get("sample_coding", "pcm") == "pcm":
        part.end = offset + skip + claimed
    part.segments.append(Segment(offset, part.end - offset))
    return part


def _voc(view: View, offset: int) -> _Part:
    part = _Part("VOC", view.size)
    place = offset + int.from_bytes(view.at(offset + 20, 2), "little")
    for _ in range(_MAX_CHUNKS):
        head = view.at(place, 4)
        if not head or head[0] == 0:
            part.end = min(place + 1, view.size)  # the terminator is optional
            break
        size = int.from_bytes(head[1:], "little")
        if len(head) < 4 or place + 4 + size > view.size:
            part.faults.append(
                f"promises {size} bytes from byte {place + 4} on, {view.size - place - 4} are "
                "there: the file is truncated"
            )
            break
        place += 4 + size
    part.segments.append(Segment(offset, part.end - offset))
    return part


def _avr(view: View, offset: int) -> _Part:
    head = view.at(offset, 30)
    part = _Part("AVR", view.size)
    if len(head) == 30:
        stereo, bits = struct.unpack(">hH", head[12:16])
        n_samples = struct.unpack(">I", head[26:30])[0]
        claimed = n_samples * (2 if stereo else 1) * (bits // 8)
        if claimed > (there := view.size - offset - 128):
            part.faults.append(
                f"promises {claimed} bytes of samples, {there} are there: the file is truncated"
            )
        elif claimed:
            part.end = offset + 128 + claimed
    part.segments.append(Segment(offset, part.end - offset))
    return part


def _wve(view: View, offset: int) -> _Part:
    part = _Part("WVE", view.size)
    claimed = int.from_bytes(view.at(offset + 18, 4), "big")
    if claimed > (there := view.size - offset - 32):
        part.faults.append(f"promises {claimed} samples, {there} are there: the file is truncated")
    elif claimed:
        part.end = offset + 32 + claimed
    part.segments.append(Segment(offset, part.end - offset))
    return part


def _lengthless(view: View, offset: int) -> _Part:
    part = _Part("other", view.size)
    part.segments.append(Segment(offset, view.size - offset))
    part.notes.append("this format stores no length that is checked here: a cut would not show")
    return part


# ---- FLAC


def _flac(view: View, offset: int) -> _Part:
    part = _Part("FLAC", view.size)
    info = view.at(offset + 8, 34)
    if view.at(offset + 4, 1)[:1] not in (b"\x00", b"\x80") or len(info) < 34:
        part.segments.append(Segment(offset, view.size - offset))  # libFLAC says what is wrong
        return part
    n_samples = int.from_bytes(info[13:18], "big") & 0xFFFFFFFFF
    place = offset + 4
    for _ in range(_MAX_CHUNKS):
        head = view.at(place, 4)
        if len(head) < 4:
            break
        place += 4 + int.from_bytes(head[1:], "big")
        if head[0] & 0x80:
            break
    part.end = _next_flac(view, place)
    size = part.end - offset
    if view.size - part.end == 0 and view.at(view.size - 128, 3) == b"TAG":
        size -= 128  # libFLAC takes an ID3v1 tag for a damaged frame
    part.segments.append(Segment(offset, size, n_samples or None))
    return part


def _next_flac(view: View, offset: int) -> int:
    """Where another FLAC stream begins, else the end of the file."""
    while (found := view.find(b"fLaC", offset)) >= 0:
        if view.at(found + 4, 4) in (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22"):
            return found
        offset = found + 1
    return view.size


# ---- Ogg

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of RFC 3533: not reflected, from zero; zlib's of the bits in reverse."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")


def _ogg(view: View, offset: int) -> _Part:
    """One link of a chain: from its first pages to where another one begins."""
    part = _Part("OGG", offset)
    place, counts = offset, dict[int, int]()  # stream -> its last page
    ended = set[int]()
    body = False
    while True:
        head = view.at(place, 27)
        if not head:
            break
        if head[:4] != b"OggS" or len(head) < 27:
            if (place > offset and head.startswith(_TAGS)) or view.blank(place):
                break
            found = view.find(b"OggS", place + 1)
            until = found if found >= 0 else view.size
            if len(head) == 27 or found >= 0:
                part.faults.append(f"{until - place} bytes from byte {place} on are no Ogg page")
            else:
                part.faults.append(f"ends inside the page at byte {place}: truncated")
            place = until
            if found < 0:
                break
            continue
        flags = head[5]
        serial, number = struct.unpack("<II", head[14:22])
        lacing = view.at(place + 27, head[26])
        size = 27 + head[26] + sum(lacing)
        page = view.at(place, size)
        if len(lacing) < head[26] or len(page) < size:
            part.faults.append(f"ends inside the page at byte {place}: the file is truncated")
            place = view.size
            break
        if flags & 2 and body:
            break  # the next link
        if _ogg_checksum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(head[22:26], "little"):
            what = "not a readable Ogg stream: " if place == offset else ""
            part.faults.append(f"{what}the page at byte {place} is damaged (checksum)")
        elif serial in counts and number != (counts[serial] + 1) & 0xFFFFFFFF:
            part.faults.append(f"pages {counts[serial] + 1} to {number - 1} are missing")
        counts[serial] = number
        body = body or not flags & 2
        if flags & 4:
            ended.add(serial)
        place += size
    if not part.faults and set(counts) - ended:
        part.faults.append("lacks its last page: the file is truncated, or was never finished")
    part.end = place
    part.segments.append(Segment(offset, place - offset))
    return part


# ---- MPEG audio

_MPEG_RATES = (44100, 48000, 32000)
_MPEG_KBPS = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # fmt: skip


@dataclass(frozen=True)
class _Frame:
    size: int
    rate: int
    layer: int
    mono: bool
    xing: int  # where a Xing header would begin


def _mpeg_frame(head: bytes) -> _Frame | None:
    """The frame that begins with a header; None if it is none, or of free format."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    kbps_index, rate_index = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or kbps_index in (0, 15) or rate_index == 3:
        return None
    low = version != 3  # MPEG 2 and 2.5
    rate = _MPEG_RATES[rate_index] >> (0, 1, 2)[(3, 2, 0).index(version)]
    kbps = _MPEG_KBPS[2 if low else 1, layer][kbps_index]
    padding = head[2] >> 1 & 1
    if layer == 1:
        size = (12000 * kbps // rate + padding) * 4
    else:
        size = (72000 if layer == 3 and low else 144000) * kbps // rate + padding
    mono = head[3] >> 6 == 3
    side = (9 if mono else 17) if low else (17 if mono else 32)
    return _Frame(size, rate, layer, mono, 4 + side)


def _id3_bytes(head: bytes) -> int:
    if len(head) < 10:
        return len(head)
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _resync(view: View, offset: int) -> int:
    """Where the next two frames in a row begin, or an ID3 tag; the end if nowhere."""
    while (found := view.find(b"\xff", offset)) >= 0:
        frame = _mpeg_frame(view.at(found, 4))
        if frame is not None and _mpeg_frame(view.at(found + frame.size, 4)) is not None:
            return found
        offset = found + 1
    return view.size


def _mpeg(view: View, offset: int) -> _Part | None:
    """One stream: from a tag or a Xing header to where another one begins."""
    part = _Part("MPEG", view.size)
    place = offset
    if view.at(place, 3) == b"ID3":
        place += _id3_bytes(view.at(place, 10))
    first = _mpeg_frame(view.at(place, 4))
    if first is None:
        if place == offset:
            return None
        place = _resync(view, place)
        first = _mpeg_frame(view.at(place, 4))
        if first is None:
            return None
    if place == offset and view.size > place + first.size:  # two in a row, or anything might be one
        if _mpeg_frame(view.at(place + first.size, 4)) is None:
            return None
    start, promised, count = place, _xing(view, place, first), 0
    begin = place + first.size if promised is not None else place
    place = begin
    while place < view.size:
        head = view.at(place, 10)
        frame = _mpeg_frame(head)
        if frame is not None and (frame.layer, frame.rate) == (first.layer, first.rate):
            if count and _xing(view, place, frame) is not None:
                break  # another encoder's first frame
            if place + frame.size > view.size:
                part.faults.append(f"ends inside the frame at byte {place}: truncated")
                place = view.size
                break
            count += 1
            place += frame.size
            continue
        if head[:3] == b"ID3" or frame is not None:
            break  # another file, or another rate
        if head.startswith(_TAGS) or view.blank(place):
            place = view.size
            break
        after = _resync(view, place)
        if after >= view.size:
            break  # _judge_rest says what is left
        part.faults.append(f"{after - place} bytes from byte {place} on are no MPEG frame")
        place = after
    if promised is not None and promised > count:
        part.faults.append(f"promises {promised} frames, {count} are there: the file is truncated")
    prefix = b""
    if count and (not promised or promised < count):
        # The decoder estimates a length without a Xing header, and stops there.
        start, prefix = begin, _xing_frame(view.at(begin, 4), count)
    part.end = place
    part.rate_bytes = first.size * 40
    part.segments.append(Segment(start, place - start, prefix=prefix))
    return part


def _xing_frame(header: bytes, count: int) -> bytes:
    """A silent frame that says how many follow, like the one of a header; empty for layers 1, 2."""
    for index in range(8, 15):  # the first size that it fits in
        frame = _mpeg_frame(
            head := header[:2] + bytes([index << 4 | header[2] & 0x0C]) + header[3:4]
        )
        if frame is not None and frame.layer == 3 and frame.size >= frame.xing + 12:
            body = head + bytes(frame.xing - 4) + b"Xing" + struct.pack(">II", 1, count)
            return body.ljust(frame.size, b"\0")
    return b""


def _xing(view: View, place: int, frame: _Frame) -> int | None:
    """Frames that a Xing or Info header promises; 0 where it does not say; None without one."""
    head = view.at(place + frame.xing, 12)
    if frame.layer != 3 or head[:4] not in (b"Xing", b"Info") or len(head) < 12:
        return None
    return int.from_bytes(head[8:12], "big") if head[7] & 1 else 0


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[View, int], _Part | None]], ...] = (
    (lambda h: h[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and h[8:12] == b"WAVE", _wav),
    (lambda h: h[:16] == _W64_RIFF, _w64),
    (lambda h: h[:4] == b"FORM" and h[8:12] in (b"AIFF", b"AIFC", b"8SVX", b"16SV"), _aiff),
    (lambda h: h[:4] == b"caff", _caf),
    (lambda h: h[:4] in (b".snd", b"dns."), _au),
    (lambda h: h[:4] == b"fLaC", _flac),
    (lambda h: h[:4] == b"OggS", _ogg),
    (lambda h: h[:7] == b"NIST_1A", _nist),
    (lambda h: h[:19] == b"Creative Voice File", _voc),
    (lambda h: h[:4] == b"2BIT", _avr),
    (lambda h: h[:15] == b"ALawSoundFile**", _wve),
    (
        lambda h: h.startswith((b"PVF1", b" paf", b"fap ", b"MATLAB 5.0", b"Extended Instrument:"))
        or h[:4] in (b"\x64\xa3\x01\x00", b"\x64\xa3\x02\x00", b"\x64\xa3\x03\x00",
                     b"\x00\x01\xa3\x64", b"\x00\x02\xa3\x64", b"\x00\x03\xa3\x64"),
        _lengthless,
    ),
)  # fmt: skip


def raw_layout(raw: Raw, size: int) -> Layout:
    """The layout of headerless samples.

    Args:
        raw: How they are coded.
        size: Bytes.
    """
    notes: tuple[str, ...] = ()
    if rest := size % raw.frame_bytes:
        notes = (f"its last {rest} bytes are no whole sample and were left out",)
    n_samples = size // raw.frame_bytes
    return Layout("RAW", (Segment(0, n_samples * raw.frame_bytes, n_samples, raw),), (), notes)
