"""Recordings in: WAV, FLAC, OGG and more through libsndfile, other media through PyAV.

Files are read in blocks, so that their length does not matter; an input file is never opened for
writing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from . import media
from .arrays import FloatArray
from .audio_segment import Sequential, opened, reason_of, sf_reason
from .blocks import part_of
from .containers import Layout, Raw, Segment, examine, raw_layout
from .errors import SALVAGE, InputError, RecordingError, raise_interrupt
from .spec import MAX_CHANNELS

logger = logging.getLogger("dvpd")

MIN_RATE_HZ = 1000
MAX_RATE_HZ = 768000
BLOCK_SAMPLES = 1 << 16  # values of all channels together: 256 KiB of float32


@dataclass(frozen=True)
class AudioInfo:
    """A recording that can be read.

    Attributes:
        path: The file.
        sample_rate: Samples a second (Hz).
        n_channels: Channels.
        n_samples: Samples in each channel that reading it yields.
        container: libsndfile's major format, such as "WAV"; "MEDIA" if PyAV decodes it.
        subtype: libsndfile's encoding, such as "PCM_16", or PyAV's name of the codec.
        layout: Where the recording lies in the file; None if PyAV decodes it.
        salvaged: Whether damage is to be read over.
        gaps: What is missing of a damaged recording, in words.
        part: First sample and number of samples, if not all of it is read (``cut``).
    """

    path: Path
    sample_rate: int
    n_channels: int
    n_samples: int
    container: str
    subtype: str
    layout: Layout | None = None
    salvaged: bool = False
    gaps: tuple[str, ...] = ()
    part: tuple[int, int] | None = None

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.n_samples / self.sample_rate


def check_rate(sample_rate: object) -> int:
    """Return the sample rate as an int.

    Args:
        sample_rate: Samples a second (Hz).

    Raises:
        InputError: Not a whole number in [1000, 768000].
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise InputError(f"sample_rate is {sample_rate!r}; expected a whole number of Hz")
    if not MIN_RATE_HZ <= sample_rate <= MAX_RATE_HZ:
        raise InputError(
            f"sample_rate is {sample_rate} Hz; expected {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz"
        )
    return int(sample_rate)


def probe(path: str | Path, *, raw: Raw | None = None, salvage: bool = False) -> AudioInfo:
    """Read and check a recording's structure, and count its samples.

    What the file promises is held against what is there (``containers``). Where it promises no
    length, it is decoded once to count.

    Args:
        path: The file.
        raw: How its samples are coded if it has no header.
        salvage: Whether a damaged recording is to be read as far as it goes; what is missing is
            logged and kept in ``gaps``.

    Raises:
        InputError: Missing, unreadable, not a regular file, empty, corrupt, truncated, or a header
            that no recording has.
    """
    path = Path(path)
    size = check_file(path)
    try:
        with open(path, "rb") as stream:
            layout = raw_layout(raw, size) if raw else examine(stream, size)
    except OSError as error:
        raise InputError(f"{path}: {reason_of(error)}") from None
    if layout is None or not layout.segments:
        return _probe_media(path, None, salvage)
    if layout.faults and not salvage:
        more = f" (and {len(layout.faults) - 1} more)" if len(layout.faults) > 1 else ""
        raise RecordingError(f"{path}: {layout.faults[0]}{more}", SALVAGE)
    for note in layout.notes:
        logger.warning("%s: %s", path, note)
    try:
        heads = [_head(path, segment) for segment in layout.segments]
    except InputError as error:
        return _probe_media(path, error, salvage)
    rate, n_channels, container, subtype = heads[0]
    if other := next((head for head in heads if head[:2] != heads[0][:2]), None):
        raise InputError(
            f"{path}: holds several recordings, of {rate} Hz and {n_channels} channels and of "
            f"{other[0]} Hz and {other[1]} channels; split it"
        )
    info = AudioInfo(
        path,
        rate,
        n_channels,
        0,
        "WAV" if container == "RAW" else container,
        subtype,
        layout,
        salvage,
        layout.faults if salvage else (),
    )
    _check_header(info)
    if len(layout.segments) > 1:
        logger.info("%s: %d recordings in one file, read one after another", path, len(heads))
    return _counted(info)


def _check_header(info: AudioInfo) -> None:
    if not 1 <= info.n_channels <= MAX_CHANNELS:
        raise InputError(
            f"{info.path}: header says {info.n_channels} channels; expected 1 to {MAX_CHANNELS}"
        )
    if not MIN_RATE_HZ <= info.sample_rate <= MAX_RATE_HZ:
        raise InputError(
            f"{info.path}: header says {info.sample_rate} Hz; expected {MIN_RATE_HZ} to "
            f"{MAX_RATE_HZ} Hz"
        )


def check_file(path: Path) -> int:
    """Check that a path is a regular file that can be read.

    Args:
        path: The file.

    Returns:
        Its size (bytes).

    Raises:
        InputError: It is not.
    """
    try:
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            raise InputError(f"{path}: is a directory; give a recording (WAV, FLAC or OGG)")
        if not stat.S_ISREG(state.st_mode):
            raise InputError(
                f"{path}: is not a regular file; give a recording on disk, or - for a pipe"
            )
        with open(path, "rb") as stream:
            if not stream.read(1):
                raise InputError(f"{path}: is an empty file (0 bytes)")
    except OSError as error:
        raise InputError(f"{path}: {reason_of(error)}") from None
    except ValueError as error:  # a NUL in the name; InputError is a ValueError too
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r}: not a file name ({error})") from None
    return state.st_size


def _probe_media(path: Path, reason: InputError | None, salvage: bool) -> AudioInfo:
    """What libsndfile does not read, PyAV may."""
    found = media.probe(path)
    if found is None:
        if reason is not None:
            raise reason
        raise RecordingError(
            f"{path}: not a readable audio file (it begins as none does)",
            "raw PCM: --raw RATE,CHANNELS,FORMAT, such as --raw 48000,1,s16",
        )
    rate, n_channels, codec = found
    info = AudioInfo(path, rate, n_channels, 0, "MEDIA", codec, None, salvage)
    try:
        _check_header(info)
    except InputError as error:
        raise reason or error from None
    return _counted(info)


def _counted(info: AudioInfo) -> AudioInfo:
    """The recording with the number of samples that reading it yields, and its gaps."""
    gaps: list[str] = list(info.gaps)
    if info.layout is None:
        total = sum(len(block) for block in media.read_blocks(info.path, gaps, info.salvaged))
    else:
        segments = [
            segment
            if segment.n_samples is not None and not info.salvaged
            else replace(segment, n_samples=_count(info, segment, gaps))
            for segment in info.layout.segments
        ]
        info = replace(info, layout=replace(info.layout, segments=tuple(segments)))
        total = sum(segment.n_samples or 0 for segment in segments)
    if total < 1:
        raise InputError(
            f"{info.path}: holds no samples{''.join(f'; {gap}' for gap in gaps)}; expected at least "
            "one: export it again, or leave it out"
        )
    for gap in gaps:
        logger.warning("%s: damaged, and salvaged: %s", info.path, gap)
    return replace(info, n_samples=total, gaps=tuple(gaps))


def _count(info: AudioInfo, segment: Segment, gaps: list[str]) -> int:
    if not info.salvaged:
        return sum(len(block) for block in _decode(info, replace(segment, n_samples=None)))
    total = sum(len(block) for block in _salvage(info, segment, gaps))
    if segment.n_samples is not None and total < segment.n_samples and not gaps:
        gaps.append(f"ends after {total} of {segment.n_samples} samples")
    return total


def _head(path: Path, segment: Segment) -> tuple[int, int, str, str]:
    with opened(path, segment) as file:
        return file.samplerate, file.channels, file.format, file.subtype


_SF_ERRORS = (soundfile.SoundFileError, RuntimeError)


def read_blocks(info: AudioInfo) -> Iterator[FloatArray]:
    """Read a recording from its beginning.

    Args:
        info: From ``probe``.

    Yields:
        float32 [n, n_channels]; integers are scaled to [-1, 1).

    Raises:
        InputError: The file cannot be decoded, or ends before it should.
    """
    yield from (
        _whole_blocks(info) if info.part is None else part_of(_whole_blocks(info), *info.part)
    )


def _whole_blocks(info: AudioInfo) -> Iterator[FloatArray]:
    if info.layout is None:
        yield from media.read_blocks(info.path, [], info.salvaged)
        return
    for segment in info.layout.segments:
        yield from _salvage(info, segment, []) if info.salvaged else _decode(info, segment)


def _decode(info: AudioInfo, segment: Segment) -> Iterator[FloatArray]:
    """A segment's blocks: as many samples as it promises, or all there are."""
    size = max(1, BLOCK_SAMPLES // info.n_channels)
    done, total = 0, segment.n_samples
    of = "" if total is None else f" of {total}"
    with opened(info.path, segment) as file:
        while total is None or done < total:
            count = size if total is None else min(size, total - done)
            try:
                block = file.read(count, "float32", always_2d=True)
            except _SF_ERRORS as error:
                raise RecordingError(
                    f"{info.path}: damaged or truncated after {done}{of} samples "
                    f"({sf_reason(error)})",
                    SALVAGE,
                ) from None
            raise_interrupt()
            if not len(block):
                break
            done += len(block)
            yield block
    if total is not None and done < total:
        raise RecordingError(
            f"{info.path}: ends after {done} of {total} samples; the file is truncated", SALVAGE
        )


_SALVAGE_SAMPLES = 512  # a read that fails loses what it had decoded: short ones
_SALVAGE_TRIES = 256


def _salvage(info: AudioInfo, segment: Segment, gaps: list[str]) -> Iterator[FloatArray]:
    """What can be decoded of a segment; silence where something between is lost.

    Args:
        info: The recording.
        segment: Its segment.
        gaps: Gets what is missing, in words.
    """
    done, limit = 0, None
    while True:
        failed = False
        kind = Sequential if not done else soundfile.SoundFile
        with opened(info.path, segment, kind) as file:
            if not done:
                limit = file.frames if file.frames < 1 << 40 else None
            elif (start := _seek_beyond(file, done, limit or 0, info, segment)) is None:
                gaps.append(f"breaks off after {done} samples" + (f" of {limit}" if limit else ""))
                return
            else:
                gaps.append(
                    f"lacks samples {done} to {start - 1} ({(start - done) / info.sample_rate:.2f} s "
                    "from second "
                    f"{done / info.sample_rate:.2f}): silence stands for them"
                )
                yield np.zeros((start - done, info.n_channels), np.float32)
                done = start
            while True:
                count = _SALVAGE_SAMPLES if limit is None else min(_SALVAGE_SAMPLES, limit - done)
                if count < 1:
                    break
                try:
                    block = file.read(count, "float32", always_2d=True)
                except _SF_ERRORS:
                    failed = True
                    break
                if not len(block):
                    break
                done += len(block)
                yield block
        if not failed:
            return
        if not done or limit is None:
            gaps.append(f"breaks off after {done} samples")
            return


def _seek_beyond(file: Any, done: int, limit: int, info: AudioInfo, segment: Segment) -> int | None:
    """The next sample after ``done`` that can be decoded; the file stands there then."""
    for index in range(1, _SALVAGE_TRIES + 1):
        start = done + 1024 * index
        if start >= limit:
            return None
        with (
            contextlib.suppress(*_SF_ERRORS),
            opened(info.path, segment, soundfile.SoundFile) as t,
        ):
            t.seek(start)
            if len(t.read(1, "float32")):
                file.seek(start)
                return start
    return None


def read_whole(path: str | Path) -> tuple[FloatArray, int]:
    """Read a recording into memory, held against what it promises.

    Args:
        path: The file.

    Returns:
        float32 [n_samples, n_channels], and the rate (Hz).

    Raises:
        InputError: As ``probe`` and ``read_blocks``.
    """
    info = probe(path)
    return np.concatenate(list(read_blocks(info))), info.sample_rate


def read_piece(info: AudioInfo, first: int, count: int) -> FloatArray:
    """Read a part of a recording; the decoder jumps to it where it knows the whole length.

    Args:
        info: From ``probe``.
        first: First sample.
        count: Samples; fewer come back at the recording's end.

    Returns:
        float32 [<= count, n_channels].

    Raises:
        InputError: As ``read_blocks``.
    """
    if info.layout is not None and len(info.layout.segments) == 1:
        with opened(info.path, info.layout.segments[0], soundfile.SoundFile) as file:
            if file.frames == info.n_samples:
                try:
                    file.seek(first)
                    piece: FloatArray = file.read(count, "float32", always_2d=True)
                except _SF_ERRORS as error:
                    raise InputError(f"{info.path}: damaged ({sf_reason(error)})") from None
                return piece
    parts, place = [np.zeros((0, info.n_channels), np.float32)], 0
    for block in read_blocks(info):
        parts.append(block[max(first - place, 0) : max(first + count - place, 0)])
        place += len(block)
        if place >= first + count:
            break
    return np.concatenate(parts)
