"""Opens a folder of training data, whatever its layout."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..config import Config
from ..config.data import DataConfig
from ..runtime.errors import InputError
from .mix import Mixer
from .paired import PairedSource
from .pool import Pool, load_pool
from .rooms import Room, RoomRanges, bank_rooms, count_built, has_image_sources

BANK_SEED = 0  # of the rooms themselves; which of them a pair gets depends on the run's seed

logger = logging.getLogger("dvpd")
Report = Callable[[str, int, int], None]


def open_source(
    config: Config, data: str | Path, cache: str | Path | None = None, report: Report | None = None
) -> Mixer | PairedSource:
    """Whatever makes training pairs from a folder.

    Layouts: ``speech/``, ``noise/`` and, if there, ``rir/`` (pairs are mixed on the fly);
    ``noisy/`` and ``clean/`` (recorded pairs, also as ``noisy_NAME`` and ``clean_NAME``); or the
    folder ``noisy_NAME`` itself, with ``clean_NAME`` beside it.

    Args:
        config: The whole config.
        data: Training data folder.
        cache: Folder for decoded audio and simulated rooms; None keeps them in memory.
        report: Called with (kind, done, in all).

    Raises:
        InputError: The layout is none of these or ambiguous, or the data cannot be used.
    """
    root = Path(data)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; expected one with training data")
    if (root / "speech").is_dir() and (root / "noise").is_dir():
        return _open_mixer(config.data, root, cache, report)
    noisy, clean = find_sides(root)
    return PairedSource.open(config.data, noisy, clean, cache, report)


def find_sides(root: Path) -> tuple[Path, Path]:
    """The noisy and the clean folder of a corpus of recorded pairs.

    Raises:
        InputError: There are none, or several.
    """
    name = root.absolute().name  # "." has none
    if name.startswith("noisy"):
        partner = root.absolute().with_name("clean" + name[len("noisy") :])
        if partner.is_dir():
            return root, partner
    found = []
    for noisy in sorted(p for p in root.glob("noisy*") if p.is_dir()):
        clean = root / ("clean" + noisy.name[len("noisy") :])
        if clean.is_dir():
            found.append((noisy, clean))
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{root} has several sets of pairs ({', '.join(n.name for n, _ in found)}); "
            f"name one, such as {found[0][0]}"
        )
    seen = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
    raise InputError(
        f"{root} has {seen}; expected speech/ and noise/ (and rir/), or noisy/ and clean/"
    )


def _open_mixer(
    config: DataConfig, root: Path, cache: str | Path | None, report: Report | None
) -> Mixer:
    def pool(kind: str) -> Pool:
        return load_pool(root / kind, cache, _reporter(report, kind))

    speech, noise = pool("speech"), pool("noise")
    for kind, found in (("speech", speech), ("noise", noise)):
        _check_weights(f"{kind}_weights", config, found)
    rirs = pool("rir") if (root / "rir").is_dir() else None
    return Mixer(config, speech, noise, rirs, open_bank(config, cache, report))


def _check_weights(key: str, config: DataConfig, pool: Pool) -> None:
    """Warn of weights that name no source; the defaults name sources of the shipped weights."""
    known = {*pool.sources, *getattr(DataConfig(), key)}
    if unknown := sorted(set(getattr(config, key)) - known):
        logger.warning(
            "data.%s names %s, of which there is nothing; the sources are %s",
            key, ", ".join(unknown), ", ".join(pool.sources),
        )  # fmt: skip


def open_bank(
    config: DataConfig, cache: str | Path | None, report: Report | None = None
) -> list[Room]:
    """The config's bank of image-source rooms; empty where none is asked for or can be built."""
    if not config.room_bank or not config.image_rir_p or not config.universal_p:
        return []
    if not has_image_sources():
        logger.warning(
            "pyroomacoustics is not installed: statistical rooms stand in for image-source ones"
        )
        return []
    rooms = _reporter(report, "rooms")
    return bank_rooms(_ranges(config), config.room_bank, BANK_SEED, cache, rooms)


def limit_to_built(config: DataConfig, cache: str | Path) -> DataConfig:
    """The config with no more image-source rooms than an interrupted build left in the cache."""
    there = count_built(_ranges(config), BANK_SEED, cache)
    return replace(config, room_bank=min(config.room_bank, there))


def _ranges(config: DataConfig) -> RoomRanges:
    return RoomRanges(config.room_side_m, config.room_height_m, config.t60_s)


def _reporter(report: Report | None, kind: str) -> Callable[[int, int], None] | None:
    if report is None:
        return None
    return lambda done, total: report(kind, done, total)
