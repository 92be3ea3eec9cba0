"""Recordings in and out: WAV, FLAC and OGG through libsndfile, rates through soxr.

Files are read and written in blocks, so that their length does not matter. An output file
appears whole or not at all; an input file is never opened for writing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from .errors import InputError

FloatArray = NDArray[np.float32]
logger = logging.getLogger("dvpd")

MAX_CHANNELS = 64
MIN_RATE_HZ = 1000
MAX_RATE_HZ = 768000
BLOCK_SAMPLES = 1 << 18  # values of all channels together: 1 MiB of float32

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
_SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "ULAW": 1, "ALAW": 1}
_OPUS_RATES_HZ = (8000, 12000, 16000, 24000, 48000)
_WIDER = {"PCM_32": "PCM_24", "FLOAT": "PCM_24", "DOUBLE": "PCM_24", "PCM_U8": "PCM_S8"}


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header says.

    Attributes:
        path: The file.
        sample_rate: Samples a second (Hz).
        n_channels: Channels.
        n_samples: Samples in each channel.
        container: libsndfile's major format, such as "WAV".
        subtype: libsndfile's encoding, such as "PCM_16".
    """

    path: Path
    sample_rate: int
    n_channels: int
    n_samples: int
    container: str
    subtype: str

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.n_samples / self.sample_rate


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _sf_reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(str(text).split())


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


def probe(path: str | Path) -> AudioInfo:
    """Read and check a recording's header.

    Args:
        path: The file.

    Raises:
        InputError: Missing, unreadable, not a regular file, empty, corrupt, or a header that no
            recording has.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a directory; give a recording (WAV, FLAC or OGG)")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: is not a regular file; give a recording on disk")
        with open(path, "rb") as stream:
            if not stream.read(1):
                raise InputError(f"{path}: is an empty file (0 bytes)")
    except OSError as error:
        raise InputError(f"{path}: {_reason(error)}") from None
    except ValueError as error:  # a NUL in the name; InputError is a ValueError too
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path!r}: not a file name ({error})") from None
    try:
        with soundfile.SoundFile(str(path)) as file:
            info = AudioInfo(
                path, file.samplerate, file.channels, file.frames, file.format, file.subtype
            )
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        # TypeError: a headerless format asks for its rate and channels.
        raise InputError(
            f"{path}: not a readable WAV, FLAC or OGG recording ({_sf_reason(error)})"
        ) from None
    if not 1 <= info.n_channels <= MAX_CHANNELS:
        raise InputError(
            f"{path}: header says {info.n_channels} channels; expected 1 to {MAX_CHANNELS}"
        )
    if not MIN_RATE_HZ <= info.sample_rate <= MAX_RATE_HZ:
        raise InputError(
            f"{path}: header says {info.sample_rate} Hz; expected {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz"
        )
    if info.n_samples < 1:
        raise InputError(f"{path}: holds no samples")
    return info


def read_blocks(info: AudioInfo) -> Iterator[FloatArray]:
    """Read a recording from its beginning.

    Args:
        info: From ``probe``.

    Yields:
        float32 [n, n_channels]; integers are scaled to [-1, 1).

    Raises:
        InputError: The file cannot be decoded, or ends before its header says.
    """
    size = max(1, BLOCK_SAMPLES // info.n_channels)
    done = 0
    try:
        with soundfile.SoundFile(str(info.path)) as file:
            while done < info.n_samples:
                block = file.read(min(size, info.n_samples - done), "float32", always_2d=True)
                if not len(block):
                    break
                done += len(block)
                yield block
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise InputError(
            f"{info.path}: damaged after {done} of {info.n_samples} samples ({_sf_reason(error)})"
        ) from None
    if done < info.n_samples:
        raise InputError(
            f"{info.path}: ends after {done} of {info.n_samples} samples; the file is truncated"
        )


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


def output_format(info: AudioInfo, path: Path) -> tuple[str, str]:
    """Container and encoding for an enhanced recording: the input's own, where they exist.

    Args:
        info: The input.
        path: The output; its suffix decides the container.

    Returns:
        libsndfile's major format and subtype.

    Raises:
        InputError: Unknown suffix, or a rate or channel count the container cannot hold.
    """
    suffix = path.suffix.lower()
    if suffix not in OUTPUT_FORMATS:
        raise InputError(
            f"{path}: unknown suffix {suffix!r}; expected one of {', '.join(OUTPUT_FORMATS)}"
        )
    container, fallback = OUTPUT_FORMATS[suffix]
    if container == "WAV" and info.container in _WAV_FAMILY:
        container = info.container
    subtype = info.subtype
    if suffix == ".opus":
        subtype = "OPUS"
    if any(part in subtype for part in _BLOCK_CODED):
        subtype = fallback
    if not soundfile.check_format(container, subtype):
        wider = _WIDER.get(subtype, fallback)
        subtype = wider if soundfile.check_format(container, wider) else fallback
    if subtype == "OPUS" and info.sample_rate not in _OPUS_RATES_HZ:
        raise InputError(
            f"{path}: Opus holds {', '.join(map(str, _OPUS_RATES_HZ))} Hz, the recording has "
            f"{info.sample_rate} Hz; write .wav, .flac or .ogg (Vorbis) instead"
        )
    if container == "FLAC" and info.n_channels > 8:
        raise InputError(f"{path}: FLAC holds 8 channels, the recording has {info.n_channels}")
    size = (
        info.n_samples
        * info.n_channels
        * _SAMPLE_BYTES.get(subtype, 8 if subtype == "DOUBLE" else 4)
    )
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


def check_paths(source: Path, target: Path) -> Path:
    """Check an output path against its input.

    Args:
        source: The input, which exists.
        target: The output.

    Returns:
        The output with symbolic links resolved: a link keeps pointing where it points.

    Raises:
        InputError: Same file (also by link), a directory, not a regular file, or no such folder.
    """
    real = Path(os.path.realpath(target))
    try:
        if real.exists():
            if os.path.samefile(source, real):
                raise InputError(
                    f"{target}: output and input are the same file; inputs are never changed: "
                    "choose another name"
                )
            if real.is_dir():
                raise InputError(f"{target}: is a directory; give a file name")
            if not real.is_file():
                raise InputError(f"{target}: exists and is not a regular file")
        elif not real.parent.is_dir():
            raise InputError(f"{target}: folder {real.parent} does not exist; create it first")
    except OSError as error:
        raise InputError(f"{target}: {_reason(error)}") from None
    return real


class _RecordingFile:
    """A file whose OSErrors are kept: libsndfile's callbacks cannot pass them on."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is not None:
            return 0
        rest = memoryview(data)
        try:
            while rest:  # a disk that fills up takes a part first and says why next time
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            self.error = error
        return len(data) - len(rest)

    def read(self, count: int) -> bytes:
        return self._stream.read(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._stream.seek(offset, whence)
        except OSError as error:
            self.error = error
            return -1

    def tell(self) -> int:
        return self._stream.tell()

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.error = error


class AudioWriter:
    """Write a recording that appears whole or not at all.

    The samples go to a temporary file in the same folder; ``commit`` flushes it to the disk and
    renames it. Leaving the context without ``commit`` removes it.
    """

    def __init__(
        self, target: Path, sample_rate: int, n_channels: int, container: str, subtype: str
    ) -> None:
        """Create the temporary file.

        Args:
            target: Final path, symbolic links resolved.
            sample_rate: Samples a second (Hz).
            n_channels: Channels.
            container: From ``output_format``.
            subtype: From ``output_format``.

        Raises:
            InputError: The folder cannot be written, or the format refuses rate or channels.
        """
        self._target = target
        self._floating = subtype in _FLOATING
        self.n_clipped = 0
        self._temp = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
        try:
            # Unlike a mkstemp file, it gets the permissions that the user's umask asks for.
            fd = os.open(self._temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666)
        except OSError as error:
            raise InputError(f"{target}: cannot write here ({_reason(error)})") from None
        # Unbuffered: a full disk is reported by the write that met it.
        self._stream = os.fdopen(fd, "r+b", buffering=0)
        self._recording = _RecordingFile(self._stream)
        try:
            self._file = soundfile.SoundFile(
                self._recording, "w", sample_rate, n_channels, subtype, format=container
            )
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
        with contextlib.suppress(OSError):
            os.unlink(self._temp)

    def _raise_os_error(self) -> None:
        if (error := self._recording.error) is not None:
            raise InputError(f"{self._target}: {_reason(error)}; nothing was left there") from None

    def write(self, block: FloatArray) -> None:
        """Append samples.

        Args:
            block: float32 [n, n_channels]. Integer encodings hold [-1, 1): values beyond are
                limited and counted in ``n_clipped``; floating ones keep them.

        Raises:
            InputError: The disk is full or the file cannot be written.
        """
        if not self._floating:
            beyond = int(np.count_nonzero(np.abs(block) > 1.0))
            if beyond:
                self.n_clipped += beyond
                block = np.clip(block, -1.0, 1.0)
        try:
            self._file.write(block)
        except (soundfile.SoundFileError, RuntimeError, AssertionError) as error:
            # AssertionError: soundfile's own check that everything was written.
            self._raise_os_error()
            raise InputError(f"{self._target}: cannot write ({_sf_reason(error)})") from None
        self._raise_os_error()

    def commit(self) -> None:
        """Finish the file, flush it to the disk and give it its name.

        Raises:
            InputError: The disk is full or the file cannot be renamed; nothing is left behind.
        """
        try:
            self._file.close()
        except (soundfile.SoundFileError, RuntimeError) as error:
            self._raise_os_error()
            raise InputError(f"{self._target}: cannot write ({_sf_reason(error)})") from None
        self._raise_os_error()
        try:
            os.fsync(self._stream.fileno())
            if self._target.exists():  # an overwritten file keeps its permissions
                os.chmod(self._temp, stat.S_IMODE(self._target.stat().st_mode))
            self._stream.close()
            os.replace(self._temp, self._target)
        except OSError as error:
            self._discard()
            raise InputError(f"{self._target}: cannot write ({_reason(error)})") from None
        _sync_folder(self._target.parent)


_O_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows alone


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where the system can; elsewhere it is merely atomic."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
