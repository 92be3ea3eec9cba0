"""What a recording carries besides its samples: tags, cue points, broadcast data.

WAV to WAV keeps every chunk byte for byte: rate and length come back, so that positions stay
right. FLAC to FLAC keeps comments, pictures and cue sheets likewise. Between other formats the
tags that libsndfile knows are carried over, and what stays behind is named.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .containers import Layout

TEXTS = (
    "title", "copyright", "artist", "comment", "date", "album", "license", "tracknumber", "genre",
)  # fmt: skip
# Chunks that describe the samples' bytes, or nothing.
_OF_THE_SAMPLES = (
    b"fmt ", b"fact", b"data", b"ds64", b"PEAK", b"levl", b"MD5 ", b"JUNK", b"junk", b"FLLR",
    b"PAD ", b"wavl", b"slnt", b"SAUR",
)  # fmt: skip
_TEXT_CHUNKS = (b"NAME", b"AUTH", b"ANNO", b"(c) ")  # AIFF: libsndfile reads them as texts
_CHUNK_NAMES = {
    b"bext": "broadcast data (bext)", b"cue ": "cue points", b"smpl": "loops (smpl)",
    b"iXML": "iXML", b"LIST": "lists", b"MARK": "markers", b"INST": "instrument data",
    b"id3 ": "ID3 tags", b"ID3 ": "ID3 tags",
}  # fmt: skip
_FLAC_COMMENTS, _FLAC_CARRIED = 4, {2: "application data", 5: "a cue sheet", 6: "pictures"}
_MAX_BLOCKS = 1000


@dataclass(frozen=True)
class Extras:
    """What goes with the samples into the output.

    Attributes:
        source: Where the bytes come from.
        texts: Tags by libsndfile's names, for what is not copied byte for byte.
        chunks: WAV chunks to be copied, (id, first byte, bytes).
        blocks: FLAC metadata blocks to be copied, (type, first byte, bytes).
        left: What the output cannot carry, in words.
    """

    source: Path
    texts: dict[str, str] = field(default_factory=dict)
    chunks: tuple[tuple[bytes, int, int], ...] = ()
    blocks: tuple[tuple[int, int, int], ...] = ()
    left: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes that the copies take, at most."""
        return sum(size + 9 for _, _, size in (*self.chunks, *self.blocks))


def collect(
    path: Path, layout: Layout, read_texts: Callable[[], dict[str, str]], container: str
) -> Extras:
    """Find what an output can carry of an input's extras.

    Args:
        path: The input.
        layout: Its structure.
        read_texts: Reads its tags with libsndfile, if they are not copied byte for byte.
        container: The output's libsndfile format.
    """
    if layout.kind == "WAV" and container in ("WAV", "WAVEX", "RF64"):  # its texts are chunks
        return Extras(path, chunks=tuple(c for c in layout.chunks if c[0] not in _OF_THE_SAMPLES))

    def texts() -> dict[str, str]:
        return {name: text for name, text in read_texts().items() if name in TEXTS and text}

    if layout.kind == "FLAC":
        blocks = tuple(_flac_blocks(path, layout.segments[0].first))
        carried = tuple(b for b in blocks if b[0] == _FLAC_COMMENTS or b[0] in _FLAC_CARRIED)
        if container == "FLAC" and len(layout.segments) == 1:
            return Extras(path, blocks=carried)
        left = {_FLAC_CARRIED[kind] for kind, _, _ in carried if kind in _FLAC_CARRIED}
        return Extras(path, texts(), left=tuple(sorted(left)))
    left = {
        _CHUNK_NAMES.get(name, f"its {name.decode('latin-1').strip()} chunk")
        for name, first, size in layout.chunks
        if name not in _OF_THE_SAMPLES + _TEXT_CHUNKS and not _is_info(path, name, first)
    }
    return Extras(path, texts(), left=tuple(sorted(left)))


def _is_info(path: Path, name: bytes, first: int) -> bool:
    """Whether a chunk is a LIST of texts, which libsndfile reads."""
    if name != b"LIST":
        return False
    with open(path, "rb") as stream:
        stream.seek(first)
        return stream.read(4) == b"INFO"


def set_texts(file: Any, texts: dict[str, str]) -> None:
    """Set the tags of a sound file that is about to be written.

    Args:
        file: An open ``soundfile.SoundFile``.
        texts: Tags.
    """
    for name, text in texts.items():
        setattr(file, name, text)


def append_chunks(stream: BinaryIO, extras: Extras) -> None:
    """Append chunks to a finished WAV or RF64 file and correct its size.

    Args:
        stream: The file, open for reading and writing.
        extras: What to copy.

    Raises:
        OSError: The input cannot be read or the output written.
    """
    if not extras.chunks:
        return
    stream.seek(0, os.SEEK_END)
    if stream.tell() & 1:
        _write(stream, b"\0")
    with open(extras.source, "rb") as source:
        for name, first, size in extras.chunks:
            _write(stream, name + struct.pack("<I", size))
            source.seek(first)
            for block in _pieces(source, size):
                _write(stream, block)
            if size & 1:
                _write(stream, b"\0")
    total = stream.seek(0, os.SEEK_END) - 8
    stream.seek(0)
    if stream.read(4) == b"RF64":
        stream.seek(20)
        _write(stream, struct.pack("<Q", total))
    else:
        stream.seek(4)
        _write(stream, struct.pack("<I", total))


def insert_blocks(written: Path, target: Path, extras: Extras) -> None:
    """Copy a finished FLAC file with an input's metadata blocks in place of its comments.

    Args:
        written: The file as libsndfile wrote it.
        target: The copy.
        extras: What to insert.

    Raises:
        OSError: A file cannot be read or written.
    """
    with (
        open(written, "rb") as stream,
        open(extras.source, "rb") as source,
        open(target, "xb") as out,
    ):
        own = list(_flac_blocks(written, 0))
        has_comments = any(kind == _FLAC_COMMENTS for kind, _, _ in extras.blocks)
        kept = [(stream, b) for b in own if not (has_comments and b[0] == _FLAC_COMMENTS)]
        blocks = kept[:1] + [(source, b) for b in extras.blocks] + kept[1:]
        out.write(b"fLaC")
        for index, (origin, (kind, first, size)) in enumerate(blocks):
            last = 0x80 if index == len(blocks) - 1 else 0
            out.write(bytes([kind | last]) + size.to_bytes(3, "big"))
            origin.seek(first)
            for piece in _pieces(origin, size):
                out.write(piece)
        stream.seek(own[-1][1] + own[-1][2])
        shutil.copyfileobj(stream, out, 1 << 20)


def _flac_blocks(path: Path, offset: int) -> Iterator[tuple[int, int, int]]:
    """(type, first byte, bytes) of a FLAC stream's metadata blocks."""
    with open(path, "rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        place = offset + 4
        for _ in range(_MAX_BLOCKS):
            stream.seek(place)
            head = stream.read(4)
            size = int.from_bytes(head[1:], "big")
            if len(head) < 4 or place + 4 + size > end:
                return
            yield head[0] & 0x7F, place + 4, size
            place += 4 + size
            if head[0] & 0x80:
                return


def _pieces(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := stream.read(min(size, 1 << 20))):
        size -= len(piece)
        yield piece


def _write(stream: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # unbuffered: a disk that fills up takes a part first and says why next time
        rest = rest[stream.write(rest) :]
