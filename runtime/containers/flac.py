"""FLAC (RFC 9639)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .view import MAX_CHUNKS, Part, Segment, View

_HEADER = 16  # bytes of the longest frame header
_SEARCHED = 1 << 16  # bytes at a time
_STREAMINFO = 42  # bytes up to the end of the first metadata block


def read_flac(view: View, offset: int) -> Part:
    """Native FLAC."""
    part = Part("FLAC", view.size)
    info = view.at(offset + 8, 34)
    if view.at(offset + 4, 1)[:1] not in (b"\x00", b"\x80") or len(info) < 34:
        part.segments.append(Segment(offset, view.size - offset))  # libFLAC says what is wrong
        return part
    n_samples = int.from_bytes(info[13:18], "big") & 0xFFFFFFFFF
    place = offset + 4
    for _ in range(MAX_CHUNKS):
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
    there = _samples_there(view, place, part.end) if n_samples else 0
    if there > n_samples:
        part.faults.append(f"promises {n_samples} samples, {there} are there")
        # The decoder stops where the header says: it is to find the right one, without a checksum.
        head = view.at(offset, _STREAMINFO)
        total = (head[21] >> 4 << 36 | there).to_bytes(5, "big")
        right = head[:21] + total + bytes(_STREAMINFO - 26)
        rest = Segment(offset + _STREAMINFO, size - _STREAMINFO, there, prefix=right)
        part.segments.append(rest)
    else:
        part.segments.append(Segment(offset, size, n_samples or None))
    return part


def _next_flac(view: View, offset: int) -> int:
    """Where another FLAC stream begins, else the end of the file."""
    while (found := view.find(b"fLaC", offset)) >= 0:
        if view.at(found + 4, 4) in (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22"):
            return found
        offset = found + 1
    return view.size


class _Frame(NamedTuple):
    """What a frame header says (RFC 9639, section 9.1).

    Attributes:
        variable: Whether ``number`` counts samples; otherwise it counts frames.
        number: Of its first sample, or its own.
        block: Samples in each channel.
    """

    variable: bool
    number: int
    block: int

    def follows(self, other: _Frame) -> bool:
        """Whether this frame comes right after another one."""
        step = other.block if self.variable else 1
        return self.variable == other.variable and self.number == other.number + step


def _samples_there(view: View, first: int, end: int) -> int:
    """Samples up to the end of the last frame that follows another; 0 if there are no two.

    Args:
        view: The file.
        first: Where the frames begin.
        end: First byte after them.
    """
    begin = _frame(view.at(first, _HEADER))
    if begin is None:
        return 0
    # A stream that was cut out of a longer one may keep its numbers.
    before = begin.number if begin.variable else begin.number * begin.block
    later: list[_Frame] = []  # bytes of samples may look like a header: two have to fit together
    for frame in _frames_backwards(view, first, end):
        for last in later:
            if last.follows(frame):
                start = last.number if last.variable else last.number * frame.block
                return start + last.block - before
        later.append(frame)
    return begin.block if later == [begin] else 0


def _frames_backwards(view: View, first: int, end: int) -> Iterator[_Frame]:
    """What looks like a frame header, from the last one to the first."""
    stop = end
    while stop > first:
        start = max(first, stop - _SEARCHED)
        data = view.at(start, min(stop + _HEADER, end) - start)
        place = stop - start
        while (place := data.rfind(b"\xff", 0, place)) >= 0:
            if (frame := _frame(data[place : place + _HEADER])) is not None:
                yield frame
        stop = start


def _frame(head: bytes) -> _Frame | None:
    """The frame that begins with these bytes; None if its header is none, by its checksum, too."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8:
        return None
    size_code, rate_code = head[2] >> 4, head[2] & 15
    if not size_code or rate_code == 15 or head[3] >> 4 > 10 or head[3] & 0x0E == 6 or head[3] & 1:
        return None
    extra = 0  # further bytes of the number, which is coded as UTF-8 codes characters
    while extra < 7 and head[4] & 0x80 >> extra:
        extra += 1
    if extra == 1 or len(head) < 4 + max(extra, 1):
        return None
    number = head[4] & (0x7F >> extra)
    for byte in head[5 : 4 + extra]:
        if byte & 0xC0 != 0x80:
            return None
        number = number << 6 | byte & 0x3F
    place = 4 + max(extra, 1)
    if size_code in (6, 7):
        width = size_code - 5
        block = int.from_bytes(head[place : place + width], "big") + 1
        place += width
    else:
        block = 192 if size_code == 1 else 144 << size_code if size_code < 6 else 1 << size_code
    place += (0, 1, 2, 2)[max(rate_code - 11, 0)]
    if place >= len(head) or _crc8(head[:place]) != head[place]:
        return None
    return _Frame(bool(head[1] & 1), number, block)


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc
