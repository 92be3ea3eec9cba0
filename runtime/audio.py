"""Recordings in and out: WAV, FLAC, OGG and more through libsndfile, rates through soxr.

Files are read and written in blocks, so that their length does not matter. An output file
appears whole or not at all; an input file is never opened for writing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from . import media, tags
from .arrays import FloatArray
from .containers import SAMPLE_BYTES, Layout, Raw, Segment, examine, raw_layout
from .errors import InputError, raise_interrupt
from .files import WholeFile, check_free

logger = logging.getLogger("dvpd")

MAX_CHANNELS = 64
MIN_RATE_HZ = 1000
MAX_RATE_HZ = 768000
BLOCK_SAMPLES = 1 << 16  # values of all channels together: 256 KiB of float32

# Suffix -> container and the encoding used when the input's own does not exist there.
OUTPUT_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".oga": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
}
_WAV_FAMILY = ("WAV", "WAVEX", "RF64")
_WAV_LIMIT_BYTES = (1 << 32) - (1 << 16)
# Encodings that pad the recording to whole blocks: the length would not come back.
_BLOCK_CODED = ("ADPCM", "GSM610", "G721", "G723", "DWVW", "MPEG")
# Encodings that hold values beyond full scale.
_FLOATING = ("FLOAT", "DOUBLE", "VORBIS", "OPUS")
_INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_OPUS_RATES_HZ = (8000, 12000, 16000, 24000, 48000)
_WIDER = {"PCM_32": "PCM_24", "FLOAT": "PCM_24", "DOUBLE": "PCM_24", "PCM_U8": "PCM_S8"}


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

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.n_samples / self.sample_rate


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _sf_reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(str(text).split())[:200]


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
        raise InputError(f"{path}: {_reason(error)}") from None
    if layout is None or not layout.segments:
        return _probe_media(path, None, salvage)
    if layout.faults and not salvage:
        more = f" (and {len(layout.faults) - 1} more)" if len(layout.faults) > 1 else ""
        raise InputError(
            f"{path}: {layout.faults[0]}{more}; --salvage (salvage=True) enhances what is there"
        )
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
        raise InputError(f"{path}: {_reason(error)}") from None
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
        raise InputError(
            f"{path}: not a readable audio file (it begins as none does); raw PCM: --raw "
            "RATE,CHANNELS,FORMAT, such as --raw 48000,1,s16"
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
        raise InputError(f"{info.path}: holds no samples" + "".join(f"; {gap}" for gap in gaps))
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


class _Window:
    """The bytes of one segment as a file; libsndfile's callbacks cannot pass exceptions on."""

    def __init__(self, stream: BinaryIO, segment: Segment) -> None:
        self._stream, self._prefix = stream, segment.prefix
        self._first = segment.first - len(segment.prefix)
        self._size = segment.size + len(segment.prefix)
        self._place = 0
        self.error: BaseException | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = (0, self._place, self._size)[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, count: int) -> bytes:
        count = max(0, min(count, self._size - self._place))
        if self._place < len(self._prefix):
            data = self._prefix[self._place : self._place + count]
            self._place += len(data)
            return data
        try:
            self._stream.seek(self._first + self._place)
            data = self._stream.read(count)
        except (OSError, KeyboardInterrupt) as error:
            self.error = error
            return b""
        self._place += len(data)
        return data

    def write(self, data: bytes) -> int:
        raise AssertionError("inputs are never written")


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A sound file that is read from its beginning: soundfile seeks after every read otherwise.

    FLAC from a pipe and damaged files cannot be sought in.
    """

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def _opened(path: Path, segment: Segment, kind: type = _Sequential) -> Iterator[Any]:
    """A segment, open in libsndfile.

    Raises:
        InputError: It cannot be opened.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            window = _Window(stream, segment)
            options: dict[str, Any] = {}
            source: Any = window
            if (raw := segment.raw) is not None:
                options = {
                    "format": "RAW",
                    "samplerate": raw.sample_rate,
                    "channels": raw.n_channels,
                    "subtype": raw.subtype,
                    "endian": raw.endian,
                }
            elif os.name == "posix" and segment == Segment(0, _size(stream), segment.n_samples):
                source = stream.fileno()  # without callbacks it is faster, and no signal gets lost
                options = {"closefd": False}
            try:
                file = kind(source, **options)
            except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
                # TypeError: a headerless format asks for its rate and channels.
                if window.error is not None:
                    raise window.error from None
                raise InputError(
                    f"{path}: not a readable recording ({_sf_reason(error)})"
                ) from None
            with file:
                yield file
                if window.error is not None:
                    raise window.error
                raise_interrupt()
    except OSError as error:
        raise InputError(f"{path}: {_reason(error)}") from None


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def _head(path: Path, segment: Segment) -> tuple[int, int, str, str]:
    with _opened(path, segment) as file:
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
    with _opened(info.path, segment) as file:
        while total is None or done < total:
            count = size if total is None else min(size, total - done)
            try:
                block = file.read(count, "float32", always_2d=True)
            except _SF_ERRORS as error:
                raise InputError(
                    f"{info.path}: damaged or truncated after {done}{of} samples "
                    f"({_sf_reason(error)}); --salvage (salvage=True) enhances what is there"
                ) from None
            raise_interrupt()
            if not len(block):
                break
            done += len(block)
            yield block
    if total is not None and done < total:
        raise InputError(
            f"{info.path}: ends after {done} of {total} samples; the file is truncated: --salvage "
            "(salvage=True) enhances what is there"
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
        kind = _Sequential if not done else soundfile.SoundFile
        with _opened(info.path, segment, kind) as file:
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
            _opened(info.path, segment, soundfile.SoundFile) as t,
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


def check_finite(block: FloatArray, first_sample: int, source: str) -> None:
    """Refuse NaN and infinity.

    Args:
        block: [n, n_channels].
        first_sample: Position of the block in the recording (samples).
        source: File name or "wav", for the message.

    Raises:
        InputError: Names the first such sample and its channel.
    """
    finite = np.isfinite(block)
    if finite.all():
        return
    row, channel = np.argwhere(~finite)[0].tolist()
    value = block[row, channel]
    raise InputError(
        f"{source}: sample {first_sample + row} of channel {channel} is {value}; expected finite "
        "values: repair or cut the recording"
    )


class Resampler:
    """Streamed change of rate that keeps alignment and gives an exact number of samples."""

    def __init__(self, rate_in: int, rate_out: int, n_channels: int) -> None:
        """Start a stream.

        Args:
            rate_in: Rate of what is pushed (Hz).
            rate_out: Rate of what is returned (Hz).
            n_channels: Channels.
        """
        self._stream: Any = None
        if rate_in != rate_out:
            self._stream = soxr.ResampleStream(rate_in, rate_out, n_channels, "float32", "HQ")
        self._n_channels = n_channels
        self._done = 0

    def push(self, block: FloatArray) -> FloatArray:
        """Add samples [n, n_channels] and return what is final, [m, n_channels], m >= 0."""
        if self._stream is None:
            out = block
        else:
            out = self._stream.resample_chunk(np.ascontiguousarray(block))
            out = out.reshape(-1, self._n_channels)
        self._done += len(out)
        return out

    def finish(self, n_samples: int) -> FloatArray:
        """End the stream and return the rest, so that n_samples were returned in all.

        Args:
            n_samples: Exact total. The filter's own total is off by one sample at most; it is
                extended with zeros or cut there.
        """
        rest = np.zeros((0, self._n_channels), np.float32)
        if self._stream is not None:
            rest = self._stream.resample_chunk(rest, last=True).reshape(-1, self._n_channels)
        missing = n_samples - self._done
        if len(rest) < missing:
            zeros = np.zeros((missing - len(rest), self._n_channels), np.float32)
            rest = np.concatenate([rest, zeros])
        return rest[:missing]


def check_suffix(path: Path) -> None:
    """Check that an output's suffix is one that can be written.

    Args:
        path: The output.

    Raises:
        InputError: It is not.
    """
    suffix = path.suffix.lower()
    if suffix not in OUTPUT_FORMATS:
        known = ", ".join(OUTPUT_FORMATS)
        raise InputError(
            f"{path}: unknown suffix {suffix!r}; expected one of {known}: write .wav, and turn it "
            "into what you need with ffmpeg"
        )


def target_in(folder: Path, source: str) -> Path:
    """The output's path in a folder: the input's name, with a suffix that can be written.

    Args:
        folder: The folder.
        source: The input.
    """
    name = Path(source).name
    if Path(name).suffix.lower() in OUTPUT_FORMATS:
        return folder / name
    return folder / (Path(name).stem + ".wav")


def _writable(container: str, subtype: str) -> bool:
    return subtype in soundfile.available_subtypes(container)


def output_format(info: AudioInfo, path: Path, n_extra_bytes: int = 0) -> tuple[str, str]:
    """Container and encoding for an enhanced recording: the input's own, where they exist.

    Args:
        info: The input.
        path: The output; its suffix decides the container.
        n_extra_bytes: Bytes beside the samples.

    Returns:
        libsndfile's major format and subtype.

    Raises:
        InputError: Unknown suffix, or a rate or channel count the container cannot hold.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    container, fallback = OUTPUT_FORMATS[suffix]
    if container == "WAV" and info.container in _WAV_FAMILY:
        container = info.container
    subtype = info.subtype
    if suffix == ".opus":
        subtype = "OPUS"
    if any(part in subtype for part in _BLOCK_CODED):
        subtype = fallback
    if not _writable(container, subtype):
        wider = _WIDER.get(subtype, fallback)
        subtype = wider if _writable(container, wider) else fallback
    if subtype == "OPUS" and info.sample_rate not in _OPUS_RATES_HZ:
        raise InputError(
            f"{path}: Opus holds {', '.join(map(str, _OPUS_RATES_HZ))} Hz, the recording has "
            f"{info.sample_rate} Hz; write .wav, .flac or .ogg (Vorbis) instead"
        )
    if container == "FLAC" and info.n_channels > 8:
        raise InputError(f"{path}: FLAC holds 8 channels, the recording has {info.n_channels}")
    size = info.n_samples * info.n_channels * SAMPLE_BYTES.get(subtype, 4) + n_extra_bytes
    if container in ("WAV", "WAVEX") and size > _WAV_LIMIT_BYTES:
        container = "RF64"
    if subtype != info.subtype:
        logger.info(
            "%s: written as %s, since %s",
            path,
            subtype,
            f"{container} or an exact length excludes {info.subtype}",
        )
    return container, subtype


def check_paths(source: Path, target: Path, *, overwrite: bool = False) -> Path:
    """Check an output path against its input.

    Args:
        source: The input, which exists.
        target: The output.
        overwrite: Whether a file that is there may be replaced.

    Returns:
        The output with symbolic links resolved: a link keeps pointing where it points.

    Raises:
        InputError: Same file (also by link), a directory, not a regular file, a file that may not
            be replaced, or no such folder.
    """
    try:
        real = Path(os.path.realpath(target))
        if real.exists():
            if source.exists() and os.path.samefile(source, real):
                raise InputError(
                    f"{target}: output and input are the same file; inputs are never changed: "
                    "choose another name"
                )
            if real.is_dir():
                raise InputError(f"{target}: is a directory; give a file name")
            if not real.is_file():
                raise InputError(f"{target}: exists and is not a regular file")
            check_free(target, overwrite=overwrite)
        elif not real.parent.is_dir():
            raise InputError(f"{target}: folder {real.parent} does not exist; create it first")
    except OSError as error:
        raise InputError(f"{target}: {_reason(error)}") from None
    return real


def read_texts(info: AudioInfo) -> dict[str, str]:
    """A recording's tags, by libsndfile's names.

    Args:
        info: From ``probe``.
    """
    if info.layout is None:
        return media.read_texts(info.path)
    segment = info.layout.segments[0]
    if len(info.layout.segments) == 1:  # tags may follow the samples
        segment = replace(segment, size=os.stat(info.path).st_size - segment.first)
    with _opened(info.path, segment) as file:
        texts: dict[str, str] = file.copy_metadata()
        return texts


def collect_extras(info: AudioInfo, container: str) -> tags.Extras:
    """What an output can carry of a recording's tags, cue points and broadcast data.

    Args:
        info: From ``probe``.
        container: The output's libsndfile format.
    """
    try:
        layout = info.layout or Layout("MEDIA", ())
        return tags.collect(info.path, layout, read_texts(info), container)
    except OSError as error:
        raise InputError(f"{info.path}: {_reason(error)}") from None


def encode(block: FloatArray, subtype: str) -> NDArray[Any]:
    """Samples as libsndfile is to write them.

    Integers keep the scale they were read with (libsndfile's own floats are off by one in 2^15).

    Args:
        block: float32 [n, n_channels], within [-1, 1] for all but floating encodings.
        subtype: libsndfile's encoding.

    Returns:
        int32 with the value in its upper bits, int16 for the logarithmic ones, or the floats.
    """
    if subtype in ("ULAW", "ALAW"):
        short: NDArray[Any] = np.clip(np.rint(block * 32768.0), -32768, 32767).astype(np.int16)
        return short
    if (bits := _INTEGER_BITS.get(subtype)) is None:
        return block
    full = 2.0 ** (bits - 1)
    values = np.clip(np.rint(block.astype(np.float64) * full), -full, full - 1.0)
    shifted: NDArray[Any] = np.left_shift(values.astype(np.int32), np.int32(32 - bits))
    return shifted


class _RecordingFile:
    """A file whose exceptions are kept: libsndfile's callbacks cannot pass them on."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        if self.error is not None:
            return 0
        rest = memoryview(data)
        try:
            while rest:  # a disk that fills up takes a part first and says why next time
                rest = rest[self._stream.write(rest) :]
        except (OSError, KeyboardInterrupt) as error:
            self.error = error
        return len(data) - len(rest)

    def read(self, count: int) -> bytes:
        return self._stream.read(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._stream.seek(offset, whence)
        except (OSError, KeyboardInterrupt) as error:
            self.error = error
            return -1

    def tell(self) -> int:
        return self._stream.tell()

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, KeyboardInterrupt) as error:
            self.error = error


class AudioWriter:
    """Write a recording that appears whole or not at all.

    The samples go to a temporary file in the same folder; ``commit`` flushes it to the disk and
    renames it. Leaving the context without ``commit`` removes it.
    """

    def __init__(
        self,
        target: Path,
        sample_rate: int,
        n_channels: int,
        container: str,
        subtype: str,
        *,
        extras: tags.Extras | None = None,
        overwrite: bool = False,
    ) -> None:
        """Create the temporary file.

        Args:
            target: Final path, symbolic links resolved.
            sample_rate: Samples a second (Hz).
            n_channels: Channels.
            container: From ``output_format``.
            subtype: From ``output_format``.
            extras: What goes with the samples.
            overwrite: Whether a file that is there may be replaced.

        Raises:
            InputError: The folder cannot be written, a file is there, or the format refuses rate
                or channels.
        """
        self._target = target
        self.container, self.subtype = container, subtype
        self._extras = extras
        self._overwrite = overwrite
        self._done = 0
        self.n_clipped = 0
        self._whole = WholeFile(target, overwrite=overwrite)
        try:
            self._stream = self._whole.open()
        except OSError as error:
            raise InputError(f"{target}: cannot write here ({_reason(error)})") from None
        self._recording = _RecordingFile(self._stream)
        try:
            self._file = soundfile.SoundFile(
                self._recording, "w", sample_rate, n_channels, subtype, format=container
            )
            if extras is not None:
                tags.set_texts(self._file, extras.texts)
        except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
            self._discard()
            self._raise_os_error()
            raise InputError(
                f"{target}: {container} {subtype} cannot hold {n_channels} channels at "
                f"{sample_rate} Hz ({_sf_reason(error)})"
            ) from None

    def __enter__(self) -> AudioWriter:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the temporary file unless it was committed."""
        if not self._stream.closed:
            with contextlib.suppress(soundfile.SoundFileError, RuntimeError, OSError):
                self._file.close()
        self._discard()

    def _discard(self) -> None:
        self._stream.close()
        self._whole.discard()

    def _raise_os_error(self) -> None:
        raise_interrupt(self._recording.error)
        if isinstance(error := self._recording.error, OSError):
            raise InputError(f"{self._target}: {_reason(error)}; nothing was left there") from None

    def write(self, block: FloatArray) -> None:
        """Append samples.

        Args:
            block: float32 [n, n_channels]. Integer encodings hold [-1, 1): values beyond are
                limited and counted in ``n_clipped``; floating ones keep them.

        Raises:
            InputError: The disk is full or the file cannot be written.
        """
        if self.subtype not in _FLOATING:
            block, beyond = limited(block)
            self.n_clipped += beyond
        try:
            self._file.write(encode(block, self.subtype))
        except (soundfile.SoundFileError, RuntimeError, AssertionError) as error:
            # AssertionError: soundfile's own check that everything was written.
            self._raise_os_error()
            raise InputError(f"{self._target}: cannot write ({_sf_reason(error)})") from None
        self._raise_os_error()
        self._done += len(block)

    def commit(self) -> None:
        """Finish the file, flush it to the disk and give it its name.

        Raises:
            InputError: The disk is full, the file cannot be renamed, or does not hold what was
                written; nothing is left behind.
        """
        try:
            self._file.close()
        except (soundfile.SoundFileError, RuntimeError) as error:
            self._raise_os_error()
            raise InputError(f"{self._target}: cannot write ({_sf_reason(error)})") from None
        self._raise_os_error()
        try:
            if self._extras is not None:
                tags.append_chunks(self._stream, self._extras)
            self._check_written()
            self._stream.close()
            if self._extras is not None and self._extras.blocks:
                with WholeFile(self._target, overwrite=self._overwrite) as copy:
                    tags.insert_blocks(self._whole.path, copy.path, self._extras)
                    copy.commit()
            else:
                self._whole.commit()
        except OSError as error:
            raise InputError(f"{self._target}: cannot write ({_reason(error)})") from None
        finally:
            self._discard()

    def _check_written(self) -> None:
        self._stream.seek(0)
        try:
            with soundfile.SoundFile(self._recording) as file:
                frames = file.frames
        except (soundfile.SoundFileError, RuntimeError) as error:
            self._raise_os_error()
            raise InputError(
                f"{self._target}: cannot be read back ({_sf_reason(error)}); nothing was left there"
            ) from None
        if frames != self._done:
            raise InputError(
                f"{self._target}: holds {frames} samples, {self._done} were written; nothing was "
                "left there: write another format, and report this"
            )


def limited(block: FloatArray) -> tuple[FloatArray, int]:
    """Values within full scale, and how many were beyond.

    Args:
        block: float32 [n, n_channels].
    """
    beyond = int(np.count_nonzero(np.abs(block) > 1.0))
    return (np.clip(block, -1.0, 1.0), beyond) if beyond else (block, 0)
