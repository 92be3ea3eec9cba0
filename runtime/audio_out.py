"""Recordings out: WAV, FLAC and OGG through libsndfile, in the input's format where that exists.

Files are written in blocks, and appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from . import media, tags
from .arrays import FloatArray
from .audio_in import AudioInfo
from .audio_segment import opened, reason_of, sf_reason
from .containers import SAMPLE_BYTES, Layout
from .errors import InputError, raise_interrupt
from .files import WholeFile, check_free

logger = logging.getLogger("dvpd")

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


@functools.cache  # soundfile asks the library for every subtype there is, each time
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
            "%s: its output is written as %s, since %s",
            info.path,  # the output may have a name of its own until it is whole
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
        raise InputError(f"{target}: {reason_of(error)}") from None
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
    with opened(info.path, segment) as file:
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
        found = tags.collect(info.path, layout, lambda: read_texts(info), container)
        if info.part is None or not (found.chunks or found.blocks):
            return found
        # marks are counted from the recording's beginning, which the part lacks
        return tags.Extras(info.path, read_texts(info), left=("what is more than a text tag",))
    except OSError as error:
        raise InputError(f"{info.path}: {reason_of(error)}") from None


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
            raise InputError(f"{target}: cannot write here ({reason_of(error)})") from None
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
                f"{sample_rate} Hz ({sf_reason(error)})"
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
            raise InputError(
                f"{self._target}: {reason_of(error)}; nothing was left there"
            ) from None

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
            raise InputError(f"{self._target}: cannot write ({sf_reason(error)})") from None
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
            raise InputError(f"{self._target}: cannot write ({sf_reason(error)})") from None
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
            raise InputError(f"{self._target}: cannot write ({reason_of(error)})") from None
        finally:
            self._discard()

    def _check_written(self) -> None:
        self._stream.seek(0)
        try:
            # libsndfile reads the file itself where it can: callbacks take longer
            own = os.name == "posix"
            with soundfile.SoundFile(
                self._stream.fileno() if own else self._recording, closefd=not own
            ) as file:
                frames = file.frames
        except (soundfile.SoundFileError, RuntimeError) as error:
            self._raise_os_error()
            raise InputError(
                f"{self._target}: cannot be read back ({sf_reason(error)}); nothing was left there"
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
