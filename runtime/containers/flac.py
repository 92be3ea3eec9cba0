"""FLAC (RFC 9639)."""

from __future__ import annotations

from .view import MAX_CHUNKS, Part, Segment, View


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
    part.segments.append(Segment(offset, size, n_samples or None))
    return part


def _next_flac(view: View, offset: int) -> int:
    """Where another FLAC stream begins, else the end of the file."""
    while (found := view.find(b"fLaC", offset)) >= 0:
        if view.at(found + 4, 4) in (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22"):
            return found
        offset = found + 1
    return view.size
