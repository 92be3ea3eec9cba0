"""Test sets on disk: pairs of noisy and clean recordings matched by name."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from ..metrics import SAMPLE_RATE
from ..runtime.errors import InputError

FloatArray = NDArray[np.float32]
AUDIO = (".flac", ".wav", ".ogg")


@dataclass(frozen=True)
class PairFile:
    """One pair of a test set: its name, both files, and what was done to it ("" if unknown)."""

    name: str
    noisy: Path
    clean: Path
    group: str


def find_pairs(folder: str | Path) -> list[PairFile]:
    """Pairs below ``noisy/`` and ``clean/``, matched by name without suffix.

    If ``folder/../pairs.tsv`` has a line for a pair, its ``degradation`` becomes the group.

    Args:
        folder: Folder of a test set.

    Raises:
        InputError: A folder is missing or empty, a name occurs twice, or a file has no partner.
    """
    root = Path(folder)
    sides: list[dict[str, Path]] = []
    for side in ("noisy", "clean"):
        if not (root / side).is_dir():
            raise InputError(f"{root / side} is not a folder; expected noisy/ and clean/")
        found: dict[str, Path] = {}
        for path in sorted((root / side).iterdir()):
            if path.suffix.lower() not in AUDIO:
                continue
            if path.stem in found:
                raise InputError(
                    f"{root / side} holds {found[path.stem].name} and {path.name}; expected one "
                    "file of a name: remove the other"
                )
            found[path.stem] = path
        sides.append(found)
    noisy, clean = sides
    if alone := sorted(set(noisy) ^ set(clean)):
        raise InputError(
            f"{root}: {len(alone)} files lack a partner of the same name, such as {alone[0]}"
        )
    if not noisy:
        raise InputError(f"{root} holds no {', '.join(AUDIO)} pairs")
    groups: dict[str, str] = {}
    table = root.parent / "pairs.tsv"
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                if row.get("set") == root.name and row.get("file"):
                    groups[Path(row["file"]).stem] = row.get("degradation") or ""
    return [PairFile(n, noisy[n], clean[n], groups.get(n, "")) for n in sorted(noisy)]


def every(pairs: Sequence[PairFile], count: int) -> list[PairFile]:
    """At most ``count`` pairs from all over the set, in its order; all of them for 0.

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


def read_pair(pair: PairFile) -> tuple[FloatArray, FloatArray]:
    """Noisy and clean waveform [L] of a pair.

    Args:
        pair: Which pair.

    Raises:
        InputError: A file is unreadable, empty, not 16 kHz mono, or holds NaN or infinity, the
            lengths differ, or the clean speech is silent.
    """
    wavs = []
    for path in (pair.noisy, pair.clean):
        try:
            wav, rate = sf.read(str(path), dtype="float32", always_2d=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        if rate != SAMPLE_RATE or wav.shape[1] != 1:
            raise InputError(f"{path}: {rate} Hz, {wav.shape[1]} channels; expected 16 kHz mono")
        if not len(wav):
            raise InputError(f"{path} holds no samples; expected speech")
        if not np.isfinite(wav).all():
            raise InputError(f"{path} holds NaN or infinity; expected finite samples")
        wavs.append(wav[:, 0])
    if len(wavs[0]) != len(wavs[1]):
        raise InputError(
            f"{pair.name}: noisy has {len(wavs[0])} samples, clean {len(wavs[1])}; expected as many"
        )
    if not wavs[1].any():
        raise InputError(f"{pair.clean} is silent; no measure is defined without clean speech")
    return wavs[0], wavs[1]


def fingerprint(pair: PairFile) -> str:
    """SHA-256 of both files of a pair, to know it again.

    Args:
        pair: The pair.

    Raises:
        OSError: A file cannot be read.
    """
    parts = (hashlib.sha256(path.read_bytes()).digest() for path in (pair.noisy, pair.clean))
    return hashlib.sha256(b"".join(parts)).hexdigest()
