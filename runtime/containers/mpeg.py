"""MPEG audio (ISO 11172-3) with Xing headers."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .view import TAGS, Part, Segment, View

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


def mpeg_frame(head: bytes) -> _Frame | None:
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


def id3_bytes(head: bytes) -> int:
    """Bytes of an ID3v2 tag, from its first ones."""
    if len(head) < 10:
        return len(head)
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _resync(view: View, offset: int) -> int:
    """Where the next two frames in a row begin, or an ID3 tag; the end if nowhere."""
    while (found := view.find(b"\xff", offset)) >= 0:
        frame = mpeg_frame(view.at(found, 4))
        if frame is not None and mpeg_frame(view.at(found + frame.size, 4)) is not None:
            return found
        offset = found + 1
    return view.size


def read_mpeg(view: View, offset: int) -> Part | None:
    """One stream: from a tag or a Xing header to where another one begins."""
    part = Part("MPEG", view.size)
    place = offset
    if view.at(place, 3) == b"ID3":
        place += id3_bytes(view.at(place, 10))
    first = mpeg_frame(view.at(place, 4))
    if first is None:
        if place == offset:
            return None
        place = _resync(view, place)
        first = mpeg_frame(view.at(place, 4))
        if first is None:
            return None
    if place == offset and view.size > place + first.size:  # two in a row, or anything might be one
        if mpeg_frame(view.at(place + first.size, 4)) is None:
            return None
    start, promised, count = place, _xing(view, place, first), 0
    begin = place + first.size if promised is not None else place
    place = begin
    while place < view.size:
        head = view.at(place, 10)
        frame = mpeg_frame(head)
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
        if head.startswith(TAGS) or view.blank(place):
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
        frame = mpeg_frame(
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
