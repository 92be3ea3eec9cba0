"""Test sets on disk: pairs of noisy and clean recordings matched by name, or recordings alone."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..runtime.arrays import FloatArray
from ..runtime.audio import read_whole
from ..runtime.errors import InputError
from ..runtime.spec import DATA_SUFFIXES, SAMPLE_RATE
from .pauses import check_intervals

T = TypeVar("T")
SIDES = ("noisy", "clean")


@dataclass(frozen=True)
class PairFile:
    """One pair of a test set.

    Attributes:
        name: File name without suffix.
        noisy: Noisy file.
        clean: Clean file, None for a real recording without one.
        group: What was done to it, "" if unknown.
        speech: Where somebody speaks, [start, end) in samples; None if unknown.
    """

    name: str
    noisy: Path
    clean: Path | None
    group: str
    speech: tuple[tuple[int, int], ...] | None = None


def find_pairs(folder: str | Path, *, alone: bool = False) -> list[PairFile]:
    """Pairs below ``noisy/`` and ``clean/``, matched by name without suffix.


    If ``folder/../pairs.tsv`` has a line for a pair, its ``degradation`` becomes the group. A set's
    own ``folder/pairs.tsv`` may say where somebody speaks: ``speech_samples``, such as "100-2000
    9000-12000"; its group is ``degradation`` or ``snr_db``.

    Args:
        folder: Folder of a test set.
        alone: Whether recordings in the folder itself, without clean ones, will do as well.

    Raises:
        InputError: A folder is missing or empty, a name occurs twice, a file has no partner, or
            ``speech_samples`` cannot be read.
    """
    root = Path(folder)
    if alone and root.is_dir() and not any((root / side).is_dir() for side in SIDES):
        if not (found := _recordings(root)):
            raise InputError(
                f"{root} holds neither noisy/ and clean/ nor recordings ({', '.join(DATA_SUFFIXES)}); "
                "expected pairs in the two, or recordings without clean ones in the folder itself"
            )
        return [PairFile(name, path, None, "") for name, path in found.items()]
    sides: list[dict[str, Path]] = []
    for side in SIDES:
        if not (root / side).is_dir():
            raise InputError(f"{root / side} is not a folder; expected noisy/ and clean/")
        sides.append(_recordings(root / side))
    noisy, clean = sides
    if single := sorted(set(noisy) ^ set(clean)):
        raise InputError(
            f"{root}: {len(single)} files lack a partner of the same name, such as {single[0]}"
        )
    if not noisy:
        raise InputError(f"{root} holds no {', '.join(DATA_SUFFIXES)} pairs")
    groups: dict[str, str] = {}
    speech: dict[str, tuple[tuple[int, int], ...]] = {}
    for row in _rows(root.parent / "pairs.tsv"):
        if row.get("set") == root.name:
            groups[Path(row["file"]).stem] = row.get("degradation") or ""
    for row in _rows(own := root / "pairs.tsv"):
        name, snr = Path(row["file"]).stem, row.get("snr_db")
        groups[name] = row.get("degradation") or (f"snr {snr}" if snr else "")
        if row.get("speech_samples") is not None:
            speech[name] = _intervals(row["speech_samples"], f"{own}, {row['file']}")
    return [
        PairFile(n, noisy[n], clean[n], groups.get(n, ""), speech.get(n)) for n in sorted(noisy)
    ]


def _recordings(folder: Path) -> dict[str, Path]:
    """Audio files of a folder that are not hidden, by name without suffix, in order."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in DATA_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise InputError(
                f"{folder} holds {found[path.stem].name} and {path.name}; expected one file of a "
                "name: remove the other"
            )
        found[path.stem] = path
    return found


def _rows(table: Path) -> Iterator[dict[str, str]]:
    """Lines of a table that name a file; none where there is no table."""
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            yield from (row for row in csv.DictReader(file, delimiter="\t") if row.get("file"))


def _intervals(text: str, where: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [tuple(map(int, part.split("-"))) for part in text.split()]
        return tuple((start, end) for start, end in pairs)
    except ValueError:
        raise InputError(
            f'{where}: speech_samples is {text!r}; expected samples such as "100-2000 9000-12000"'
        ) from None


def spread_sample(pairs: Sequence[T], count: int) -> list[T]:
    """At most ``count`` pairs (or files) from all over the set, in its order; all of them for 0.

    Those with the smallest fractional parts of i * golden ratio: nearly even, and in step with no
    period of the set (even spacing hears two SNRs of a set that cycles through four).

    Args:
        pairs: What there is.
        count: How many.
    """
    if not 0 < count < len(pairs):
        return list(pairs)
    ratio = (5.0**0.5 - 1.0) / 2.0
    chosen = sorted(range(len(pairs)), key=lambda i: i * ratio % 1.0)[:count]
    return [pairs[i] for i in sorted(chosen)]


def read_pair(pair: PairFile) -> tuple[FloatArray, FloatArray | None]:
    """Noisy and clean waveform [L] of a pair; the clean one may be silent: noise alone.

    It is None where the pair has none.

    Args:
        pair: Which pair.

    Raises:
        InputError: A file is unreadable, empty, not 16 kHz mono, or holds NaN or infinity, the
            lengths differ, or speech is said to be where the recording is not.
    """
    wavs = []
    for path in _files(pair):
        try:
            wav, rate = read_whole(path)
        except InputError as error:
            why = str(error).removeprefix(f"{path}: ")
            why = why if why.startswith("holds no") else f"cannot be read: {why}"
            raise InputError(f"{path} {why}") from error
        if rate != SAMPLE_RATE or wav.shape[1] != 1:
            raise InputError(f"{path}: {rate} Hz, {wav.shape[1]} channels; expected 16 kHz mono")
        if not len(wav):
            raise InputError(f"{path} holds no samples; expected speech")
        if not np.isfinite(wav).all():
            raise InputError(f"{path} holds NaN or infinity; expected finite samples")
        wavs.append(wav[:, 0])
    if len(wavs) == 1:
        return wavs[0], None
    if len(wavs[0]) != len(wavs[1]):
        raise InputError(
            f"{pair.name}: noisy has {len(wavs[0])} samples, clean {len(wavs[1])}; expected as many"
        )
    check_intervals(pair.speech or (), len(wavs[1]), pair.name)
    return wavs[0], wavs[1]


def _files(pair: PairFile) -> list[Path]:
    return [path for path in (pair.noisy, pair.clean) if path is not None]


def fingerprint(pair: PairFile) -> str:
    """SHA-256 of the files of a pair, to know it again.

    Args:
        pair: The pair.

    Raises:
        OSError: A file cannot be read.
    """
    parts = (hashlib.sha256(path.read_bytes()).digest() for path in _files(pair))
    return hashlib.sha256(b"".join(parts)).hexdigest()
