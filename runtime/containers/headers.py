"""Containers with a length in a fixed header: AU, NIST SPHERE, VOC, AVR, PSION."""

from __future__ import annotations

import re
import struct

from .chunks import place_data
from .view import MAX_CHUNKS, STREAMED_32, Part, Raw, Segment, View


def read_au(view: View, offset: int) -> Part:
    """Sun AU, of either byte order."""
    order = ">" if view.at(offset, 4) == b".snd" else "<"
    part = Part("AU", offset)
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
    part.end = place_data(part, view, offset + skip, size, raw, STREAMED_32, follows)
    return part


def read_nist(view: View, offset: int) -> Part:
    """NIST SPHERE."""
    text = view.at(offset, 1 << 14).decode("latin-1")
    found = dict(re.findall(r"^(\w+) -\w+ (\S+)", text, re.MULTILINE))
    part = Part("NIST", view.size)
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


def read_voc(view: View, offset: int) -> Part:
    """Creative Voice."""
    part = Part("VOC", view.size)
    place = offset + int.from_bytes(view.at(offset + 20, 2), "little")
    for _ in range(MAX_CHUNKS):
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


def read_avr(view: View, offset: int) -> Part:
    """Audio Visual Research."""
    head = view.at(offset, 30)
    part = Part("AVR", view.size)
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


def read_wve(view: View, offset: int) -> Part:
    """PSION WVE."""
    part = Part("WVE", view.size)
    claimed = int.from_bytes(view.at(offset + 18, 4), "big")
    if claimed > (there := view.size - offset - 32):
        part.faults.append(f"promises {claimed} samples, {there} are there: the file is truncated")
    elif claimed:
        part.end = offset + 32 + claimed
    part.segments.append(Segment(offset, part.end - offset))
    return part


def read_lengthless(view: View, offset: int) -> Part:
    """A format that promises no length: what is there is the recording."""
    part = Part("other", view.size)
    part.segments.append(Segment(offset, view.size - offset))
    part.notes.append("this format stores no length that is checked here: a cut would not show")
    return part
