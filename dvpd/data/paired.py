"""Recorded pairs: VoiceBank+DEMAND's layout, noisy and clean files of the same names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..config.data import DataConfig
from ..runtime.errors import InputError
from ..runtime.spec import SAMPLE_RATE
from .degrade import Wav, fit_length, rms
from .mix import make_rng, scale_pair
from .pool import Pool, find_audio, load_pool

_SILENT_RMS = 1e-4  # a crop of clean speech below this teaches nothing
_CROP_TRIES = 4
_LENGTH_SLACK = 0.005  # sides that differ by more than 5 ms are not one recording (s)

logger = logging.getLogger("dvpd")
Report = Callable[[str, int, int], None]


def match_names(noisy: str | Path, clean: str | Path) -> list[tuple[Path, Path]]:
    """Files of two folders with the same relative path, but for the suffix, sorted.

    Raises:
        InputError: A folder is missing or empty, or a file has no partner; the message says how
            many and which.
    """
    sides = []
    for folder in (Path(noisy), Path(clean)):
        names: dict[str, Path] = {}
        for path in find_audio(folder):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in names:
                raise InputError(f"{names[name]} and {path} have the same name; keep one of them")
            names[name] = path
        sides.append(names)
    left, right = sides
    if alone := sorted(set(left) ^ set(right)):
        first = ", ".join((left if n in left else right)[n].name for n in alone[:3])
        raise InputError(
            f"{len(alone)} files in {noisy} and {clean} lack a partner of the same name: {first}"
            + (", ..." if len(alone) > 3 else "")
        )
    return [(left[name], right[name]) for name in sorted(left)]


class PairedSource:
    """Training pairs cut from recorded ones; every pair comes once in as many crops.

    Attributes:
        config: Length of a crop and its level; nothing else of it is used.
        noisy: Noisy recordings.
        clean: Clean ones, in the same order and of the same lengths.
    """

    def __init__(self, config: DataConfig, noisy: Pool, clean: Pool) -> None:
        """Check the pairs; those whose clean side is silent are left out.

        Args:
            config: Length of a crop and its level.
            noisy: Noisy recordings.
            clean: Clean ones, in the same order.

        Raises:
            InputError: The numbers or lengths do not match, or every clean side is silent.
        """
        if len(noisy) != len(clean):
            raise InputError(f"{len(noisy)} noisy recordings and {len(clean)} clean ones; no pairs")
        lengths = np.stack([np.diff(noisy.offsets), np.diff(clean.offsets)])
        wrong = np.flatnonzero(np.abs(lengths[0] - lengths[1]) > _LENGTH_SLACK * SAMPLE_RATE)
        if len(wrong):
            at = int(wrong[0])
            raise InputError(
                f"{len(wrong)} pairs differ in length, such as {noisy.name(at)} with "
                f"{lengths[0, at]} samples at 16 kHz and its clean side with {lengths[1, at]}"
            )
        self.config, self.noisy, self.clean = config, noisy, clean
        silent = np.array([rms(clean.read(i)) < _SILENT_RMS for i in range(len(clean))])
        if silent.all():
            raise InputError(f"every clean recording is silent, such as {clean.name(0)}")
        for at in np.flatnonzero(silent).tolist():
            logger.warning("left out: %s is silent", clean.name(int(at)))
        self._members = np.flatnonzero(~silent)
        self._lengths = lengths.min(axis=0)
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    @classmethod
    def open(
        cls,
        config: DataConfig,
        noisy: str | Path,
        clean: str | Path,
        cache: str | Path | None = None,
        report: Report | None = None,
    ) -> PairedSource:
        """Decode two folders (any sample rate; several channels are averaged), match by name.

        Args:
            config: Length of a crop and its level.
            noisy: Folder of noisy recordings.
            clean: Folder of clean ones.
            cache: Folder for the decoded arrays; None decodes into memory.
            report: Called with (kind, files done, files in all).

        Raises:
            InputError: Names or lengths do not match, or a file cannot be used.
        """
        pairs = match_names(noisy, clean)
        pools = []
        for side, folder in enumerate((noisy, clean)):
            kind = Path(folder).name

            def progress(done: int, total: int, kind: str = kind) -> None:
                if report:
                    report(kind, done, total)

            files = [pair[side] for pair in pairs]
            pools.append(load_pool(folder, cache, progress, files=files))
        return cls(config, *pools)

    def pair(self, seed: int, epoch: int, index: int) -> tuple[Wav, Wav]:
        """One training pair, a function of its three numbers.

        Args:
            seed: Seed of the run.
            epoch: Epoch.
            index: Index of the crop within the epoch.

        Returns:
            noisy and clean, float32 [crop_samples], the same place of both; recordings shorter
            than a crop are padded at the end.
        """
        rng = make_rng(seed, epoch, index)
        at = int(self._shuffled(seed, epoch)[index % len(self._members)])
        count = self.config.crop_samples
        spare = max(int(self._lengths[at]) - count, 0)
        for _ in range(_CROP_TRIES):
            first = int(rng.integers(spare + 1))
            clean = fit_length(self.clean.read(at, first, count), count)
            if rms(clean) > _SILENT_RMS:
                break
        noisy = fit_length(self.noisy.read(at, first, count), count)
        return scale_pair(rng, self.config, noisy, clean)

    def _shuffled(self, seed: int, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != (seed, epoch):
            # 2^32 - 1 stands where a crop has its index: no crop draws from this generator
            order = make_rng(seed, epoch, 2**32 - 1).permutation(self._members)
            self._order = ((seed, epoch), order)
        return self._order[1]
