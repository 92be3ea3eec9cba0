"""All recordings of one kind, decoded once, in one int16 array.

The array lives in a cache folder and is memory-mapped: a second run starts at once, and worker
processes share its pages.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import soxr
from numpy.typing import NDArray

from ..runtime.audio import read_whole
from ..runtime.errors import InputError
from ..runtime.files import WholeFile, write_whole
from ..runtime.spec import DATA_SUFFIXES, SAMPLE_RATE

_OTHER_AUDIO = frozenset(".mp3 .m4a .mp4 .aac .wma .aif .aiff .au .caf .w64 .oga .wave".split())
POOL_FORMAT = 1
_LOST_SHARE = 0.02  # more undecodable files than this and something else is wrong
STALE_S = 3600.0  # since the last write of a file that nobody finishes any more

logger = logging.getLogger("dvpd")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pool:
    """Recordings at 16 kHz, back to back.

    Attributes:
        samples: int16 [total]; memory-mapped when it comes from a cache.
        offsets: int64 [n + 1]; recording i is samples[offsets[i] : offsets[i + 1]].
        source: int64 [n], index into ``sources``.
        sources: Names of the folders the recordings came from.
        names: Name of each recording, where they are known.
    """

    samples: NDArray[np.int16]
    offsets: NDArray[np.int64]
    source: NDArray[np.int64]
    sources: tuple[str, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.source)

    @property
    def hours(self) -> float:
        """Length of all recordings together (h)."""
        return float(self.offsets[-1]) / SAMPLE_RATE / 3600.0

    def length(self, index: int) -> int:
        """Samples of recording ``index``."""
        return int(self.offsets[index + 1] - self.offsets[index])

    def name(self, index: int) -> str:
        """What to call a recording in a message."""
        return self.names[index] if self.names else f"recording {index}"

    def read(self, index: int, first: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """Samples ``first`` ... ``first + count`` of a recording, float32 in [-1, 1).

        Args:
            index: Which recording.
            first: First sample, >= 0.
            count: Number of samples; fewer come back where the recording ends.
        """
        start = int(self.offsets[index]) + first
        stop = int(self.offsets[index + 1])
        if count is not None:
            stop = min(stop, start + count)
        return self.samples[start:stop].astype(np.float32) * np.float32(1.0 / 32768.0)

    @classmethod
    def from_arrays(
        cls, recordings: Iterable[tuple[str, NDArray[np.floating] | NDArray[np.int16]]]
    ) -> Pool:
        """Build a pool in memory.

        Args:
            recordings: (source name, waveform [L] in [-1, 1]) pairs at 16 kHz.

        Raises:
            InputError: There are none.
        """
        items = [(name, _to_int16(np.asarray(wav))) for name, wav in recordings]
        if not items:
            raise InputError("a pool needs at least one recording")
        sources = tuple(sorted({name for name, _ in items}))
        lengths = [len(wav) for _, wav in items]
        return cls(
            np.concatenate([wav for _, wav in items]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.array([sources.index(name) for name, _ in items], np.int64),
            sources,
        )


def find_audio(folder: str | Path) -> list[Path]:
    """Audio files below a folder, sorted by their relative path.

    Links to folders are followed, each folder once; hidden files and folders are left out. Audio of
    other formats is left out with a warning.

    Args:
        folder: Folder to search.

    Raises:
        InputError: The folder is not there or holds no audio, or a folder in it cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(
            f"{root} is not a folder; expected one with {', '.join(DATA_SUFFIXES)} files"
        )
    found, others = [], []
    for path in _walk(root):
        if (suffix := path.suffix.lower()) in DATA_SUFFIXES:
            found.append(path)
        elif suffix in _OTHER_AUDIO:
            others.append(path)
    if not found:
        seen = f", but {len(others)} such as {min(others).name}" if others else ""
        raise InputError(f"{root} holds no {', '.join(DATA_SUFFIXES)} files{seen}")
    if others:
        logger.warning(
            "left out: %d files in %s such as %s; expected %s",
            len(others), root, min(others).name, ", ".join(DATA_SUFFIXES),
        )  # fmt: skip
    return sorted(found)


def _walk(root: Path) -> Iterator[Path]:
    """Files below ``root`` that are not hidden: in real folders first, then behind links."""
    seen: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            state = folder.stat()
            if (identity := (state.st_dev, state.st_ino)) in seen:
                continue
            seen.add(identity)
            entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        except OSError as error:
            raise InputError(
                f"{folder}: {error.strerror or error}; expected a folder that can be read: change its "
                "permissions, or move it away"
            ) from error
        for path in entries:
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif path.is_file():
                yield path


def load_pool(
    folder: str | Path,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    files: list[Path] | None = None,
) -> Pool:
    """Decode a folder of recordings, or map the cache of an earlier call.

    The first folder level gives the source: ``folder/SOURCE/...``. Files at the top have the
    folder's own name. Recordings are mixed down to mono and brought to 16 kHz.

    Args:
        folder: Folder with audio.
        cache: Where to keep the decoded array; None decodes into memory.
        progress: Called with (files done, files in all).
        files: These files below the folder alone, in this order, and every one of them; without
            it all there are, but for a few that cannot be decoded.

    Raises:
        InputError: The folder is missing or empty, or too many files cannot be decoded; the
            message says how many and which.
    """
    root = Path(folder)
    whole = files is not None
    files = find_audio(root) if files is None else files
    names = tuple(str(p) for p in files) if whole else ()
    spare = 0 if whole else max(1, int(_LOST_SHARE * len(files)))
    if cache is None:
        return replace(Pool.from_arrays(_decode_all(root, files, spare, progress)), names=names)
    stem = Path(cache) / f"pool-{root.name}-{_key(root, files)}"
    index = Path(f"{stem}.json")  # written last: where it is, the samples are whole
    meta = _read_index(index)
    if meta is None or (whole and len(meta["source"]) != len(files)):
        _write_cache(stem, root, files, spare, progress)
        meta = json.loads(index.read_text())
    samples = np.load(f"{stem}.npy", mmap_mode="r")
    return Pool(
        samples,
        np.asarray(meta["offsets"], np.int64),
        np.asarray(meta["source"], np.int64),
        tuple(meta["sources"]),
        names,
    )


def _read_index(index: Path) -> dict[str, Any] | None:
    try:
        return cast(dict[str, Any], json.loads(index.read_text()))
    except (FileNotFoundError, ValueError):
        return None


def _to_int16(wav: NDArray[np.floating] | NDArray[np.int16]) -> NDArray[np.int16]:
    if wav.dtype == np.int16:
        return wav.astype(np.int16, copy=False)
    whole: NDArray[np.int16] = np.clip(np.rint(wav * 32768.0), -32768, 32767).astype(np.int16)
    return whole


def _source_of(root: Path, path: Path) -> str:
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else root.name


def _key(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256(f"{POOL_FORMAT}\n".encode())
    for path in files:
        stat = path.stat()
        line = f"{path.relative_to(root).as_posix()}\t{stat.st_size}\t{stat.st_mtime_ns}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def decode(path: str | Path) -> NDArray[np.int16]:
    """Decode one file to mono int16 at 16 kHz.

    Args:
        path: Anything libsndfile reads.

    Raises:
        InputError: The file cannot be decoded or holds no samples.
    """
    try:
        wav, rate = read_whole(path)
    except InputError as error:
        # without the option of `dvpd enhance` for it: there is none here
        why = getattr(error, "plain", str(error)).removeprefix(f"{path}: ")
        why = why if why.startswith("holds no") else f"cannot be decoded: {why}"
        raise InputError(f"{path} {why}") from error
    mono = wav.mean(axis=1) if wav.shape[1] > 1 else wav[:, 0]
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    if not len(mono):
        raise InputError(f"{path} holds no samples")
    if not np.isfinite(mono).all():
        raise InputError(f"{path} holds values that are not finite")
    return _to_int16(mono)


def _decode_all(
    root: Path, files: list[Path], spare: int, progress: Progress | None
) -> Iterator[tuple[str, NDArray[np.int16]]]:
    """(source, recording) of each file in order; up to ``spare`` bad ones are left out."""

    def one(path: Path) -> NDArray[np.int16] | InputError:
        try:
            return decode(path)
        except InputError as error:
            return error

    bad: list[InputError] = []
    # libsndfile releases the interpreter lock; batches keep the memory bounded.
    with ThreadPoolExecutor(os.cpu_count() or 1) as executor:
        todo, done = iter(files), 0
        while batch := list(islice(todo, 64)):
            for path, wav in zip(batch, executor.map(one, batch), strict=True):
                done += 1
                if isinstance(wav, InputError):
                    bad.append(wav)
                else:
                    yield _source_of(root, path), wav
                if progress:
                    progress(done, len(files))
    if len(bad) > spare or len(bad) == len(files):
        text = "; ".join(str(e) for e in bad[:3]) + ("; ..." if len(bad) > 3 else "")
        raise InputError(f"{len(bad)} of {len(files)} files in {root} cannot be used: {text}")
    for error in bad:
        logger.warning("left out: %s", error)


def _clear(folder: Path) -> None:
    """Remove what decoding that was killed left in a cache: as large as a corpus.

    Decoding that goes on writes more than once in ``STALE_S``.
    """
    for path in folder.glob(".pool-*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()
                logger.info("removed %s, which decoding that was killed has left", path)
        except OSError:  # another process was faster, or it is not ours
            continue


def _write_cache(
    stem: Path, root: Path, files: list[Path], spare: int, progress: Progress | None
) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    _clear(stem.parent)
    sources = sorted({_source_of(root, p) for p in files})
    offsets, source = [0], []
    blank = "<i2"
    with WholeFile(f"{stem}.npy") as whole:
        with open(whole.path, "wb") as out:
            # The header's length is not known yet: reserve room, rewrite it at the end.
            np.lib.format.write_array_header_1_0(
                out, {"descr": blank, "fortran_order": False, "shape": (10**12,)}
            )
            header = out.tell()
            for name, wav in _decode_all(root, files, spare, progress):
                out.write(wav.astype(blank, copy=False).tobytes())
                offsets.append(offsets[-1] + len(wav))
                source.append(sources.index(name))
            out.seek(0)
            np.lib.format.write_array_header_1_0(
                out, {"descr": blank, "fortran_order": False, "shape": (offsets[-1],)}
            )
            if out.tell() != header:
                raise InputError("the cache's header changed its length; please report this")
        whole.commit()
    meta = {"format": POOL_FORMAT, "offsets": offsets, "source": source, "sources": sources}
    write_whole(f"{stem}.json", json.dumps(meta))
