"""Ogg (RFC 3533)."""

from __future__ import annotations

import struct
import zlib

from .view import TAGS, Part, Segment, View

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of RFC 3533: not reflected, from zero; zlib's of the bits in reverse."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")


def read_ogg(view: View, offset: int) -> Part:
    """One link of a chain: from its first pages to where another one begins."""
    part = Part("OGG", offset)
    place, counts = offset, dict[int, int]()  # stream -> its last page
    ended = set[int]()
    body = False
    while True:
        head = view.at(place, 27)
        if not head:
            break
        if head[:4] != b"OggS" or len(head) < 27:
            if (place > offset and head.startswith(TAGS)) or view.blank(place):
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
