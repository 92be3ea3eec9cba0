"""Containers of chunks: RIFF WAVE, RF64, Wave64, AIFF and AIFF-C, 8SVX, CAF."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .view import MAX_CHUNKS, SAMPLE_BYTES, STREAMED_32, STREAMED_64, TAGS, Part, Raw, Segment, View


def _is_chunk_id(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _chunks(
    view: View, offset: int, order: str, wide: bool = False
) -> Iterator[tuple[bytes, int, int]]:
    """(id, first byte, claimed size) of the chunks of an IFF or CAF file, while they look so."""
    head = struct.calcsize(f"{order}4sq" if wide else f"{order}4sI")
    for _ in range(MAX_CHUNKS):
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


def place_data(
    part: Part,
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


def read_wav(view: View, offset: int) -> Part:
    """RIFF WAVE, RIFX, RF64 and BW64."""
    order = ">" if view.at(offset, 4) == b"RIFX" else "<"
    long = view.at(offset, 4) in (b"RF64", b"BW64")
    part = Part("WAV", offset)
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
            streamed = STREAMED_64 if wide else STREAMED_32
            follows = _is_chunk_id(view.at(first, 4)) and _fits(view, first, order)
            end = place_data(part, view, first, claimed, raw, streamed, follows, block)
            if claimed != size or end - first != size:  # the walk cannot go on by its own sizes
                end += end & 1 if claimed < STREAMED_32 else 0
                rest = Part("WAV", end)
                _more_chunks(view, end, order, rest)
                part.chunks += rest.chunks
                end = rest.end
                break
        else:
            if data_seen and first + size > view.size:
                if view.at(first - 8, 11).startswith(TAGS):
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


def _more_chunks(view: View, offset: int, order: str, part: Part) -> None:
    """Chunks after the samples, as far as they fit in the file."""
    for name, first, size in _chunks(view, offset, order):
        if name in (b"RIFF", b"RF64", b"FORM", b"OggS", b"fLaC") or first + size > view.size:
            return
        part.chunks.append((name, first, size))
        part.end = min(first + size + (size & 1), view.size)


def read_w64(view: View, offset: int) -> Part:
    """Sony's Wave64."""
    part = Part("W64", offset)
    place, raw = offset + 40, None
    for _ in range(MAX_CHUNKS):
        head = view.at(place, 24)
        if len(head) < 24 or head[:16] == W64_RIFF:
            break
        size = struct.unpack("<Q", head[16:])[0]
        if size < 24:
            part.faults.append(f"its chunk at byte {place} has the size {size}")
            break
        if head.startswith(b"fmt "):
            raw = _wav_raw(view.at(place + 24, min(size - 24, 64)), "<")
        if head.startswith(b"data"):
            place = place_data(part, view, place + 24, size - 24, raw, STREAMED_64 - 64, size > 24)
            place += -(place - offset) % 8
        else:
            place += size + -size % 8
    part.end = min(place, view.size)
    return part


W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
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


def read_aiff(view: View, offset: int) -> Part:
    """AIFF, AIFF-C, 8SVX and 16SV."""
    kind = {b"8SVX": "SVX", b"16SV": "SVX"}.get(view.at(offset + 8, 4), "AIFF")
    part = Part(kind, offset)
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
            end = place_data(part, view, first, size, None, STREAMED_32, True)
            end += size & 1
        elif name == b"SSND":
            skip = int.from_bytes(view.at(first, 4), "big")
            skip = 8 + (skip if skip < 1 << 16 else 0)
            follows = _is_chunk_id(view.at(first, 4))
            end = place_data(
                part, view, first + skip, max(size - skip, 0), raw, STREAMED_32, follows
            )
            end += (end - first) & 1
    part.end = min(end, view.size)
    return part


_CAF_CODES = {
    (b"lpcm", 8, False): "PCM_S8", (b"lpcm", 16, False): "PCM_16", (b"lpcm", 24, False): "PCM_24",
    (b"lpcm", 32, False): "PCM_32", (b"lpcm", 32, True): "FLOAT", (b"lpcm", 64, True): "DOUBLE",
    (b"ulaw", 8, False): "ULAW", (b"alaw", 8, False): "ALAW",
}  # fmt: skip


def read_caf(view: View, offset: int) -> Part:
    """Core Audio Format."""
    part = Part("CAF", offset)
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
            claimed = STREAMED_64 if size == -1 else max(size - 4, 0)
            follows = _is_chunk_id(view.at(first + 4, 4))
            end = place_data(part, view, first + 4, claimed, raw, STREAMED_64, follows)
            if claimed == STREAMED_64 or size == 0:
                break
    part.end = end
    return part
