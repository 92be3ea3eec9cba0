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

from collections.abc import Callable
from typing import BinaryIO

from .chunks import W64_RIFF, read_aiff, read_caf, read_w64, read_wav
from .flac import read_flac
from .headers import read_au, read_avr, read_lengthless, read_nist, read_voc, read_wve
from .mpeg import id3_bytes, mpeg_frame, read_mpeg
from .ogg import read_ogg
from .view import (
    FORMATS,
    MAX_SEGMENTS,
    RAW_FORMATS,
    SAMPLE_BYTES,
    TAGS,
    Layout,
    Part,
    Raw,
    Segment,
    View,
)

__all__ = [
    "FORMATS",
    "RAW_FORMATS",
    "SAMPLE_BYTES",
    "Layout",
    "Raw",
    "Segment",
    "View",
    "examine",
    "raw_layout",
]


def examine(stream: BinaryIO, size: int) -> Layout | None:
    """Read a file's structure.

    Args:
        stream: The file, open for reading.
        size: Its bytes.

    Returns:
        The layout; None if it is no format that is known here.
    """
    view = View(stream, size)
    whole: Part | None = None
    offset = 0
    while offset < size and (whole is None or len(whole.segments) < MAX_SEGMENTS):
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


def _judge_rest(view: View, offset: int, whole: Part) -> None:
    rest = view.size - offset
    if rest <= 0 or view.at(offset, 12).startswith(TAGS) or view.blank(offset):
        return
    text = f"{rest} bytes from byte {offset} on belong to no recording"
    (whole.faults if rest >= max(whole.rate_bytes, 4096) else whole.notes).append(text)


def _read_part(view: View, offset: int) -> Part | None:
    head = view.at(offset, 40)
    for known, reader in _READERS:
        if known(head):
            return reader(view, offset)
    if head[:3] == b"ID3":  # before FLAC and MPEG audio
        after = offset + id3_bytes(head)
        if view.at(after, 4) == b"fLaC":
            return read_flac(view, after)
        return read_mpeg(view, offset)
    if mpeg_frame(head) is not None:
        return read_mpeg(view, offset)
    return None


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[View, int], Part | None]], ...] = (
    (lambda h: h[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and h[8:12] == b"WAVE", read_wav),
    (lambda h: h[:16] == W64_RIFF, read_w64),
    (lambda h: h[:4] == b"FORM" and h[8:12] in (b"AIFF", b"AIFC", b"8SVX", b"16SV"), read_aiff),
    (lambda h: h[:4] == b"caff", read_caf),
    (lambda h: h[:4] in (b".snd", b"dns."), read_au),
    (lambda h: h[:4] == b"fLaC", read_flac),
    (lambda h: h[:4] == b"OggS", read_ogg),
    (lambda h: h[:7] == b"NIST_1A", read_nist),
    (lambda h: h[:19] == b"Creative Voice File", read_voc),
    (lambda h: h[:4] == b"2BIT", read_avr),
    (lambda h: h[:15] == b"ALawSoundFile**", read_wve),
    (
        lambda h: h.startswith((b"PVF1", b" paf", b"fap ", b"MATLAB 5.0", b"Extended Instrument:"))
        or h[:4] in (b"\x64\xa3\x01\x00", b"\x64\xa3\x02\x00", b"\x64\xa3\x03\x00",
                     b"\x00\x01\xa3\x64", b"\x00\x02\xa3\x64", b"\x00\x03\xa3\x64"),
        read_lengthless,
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
        notes = (
            f"its last {rest} bytes are no whole frame of {raw.frame_bytes} and were left out",
        )
    n_samples = size // raw.frame_bytes
    return Layout("RAW", (Segment(0, n_samples * raw.frame_bytes, n_samples, raw),), (), notes)
