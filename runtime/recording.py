"""The walk of one recording from file to file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .arrays import FloatArray
from .audio import BLOCK_SAMPLES, AudioInfo, read_blocks
from .chain import Settings, find_levels, mixed
from .containers import Raw
from .pipes import PIPE, Sink, open_output
from .results import EnhancedFile
from .taken import Energy, taken_db

if TYPE_CHECKING:
    from .enhancer import Enhancer, Progress


def enhance_recording(
    enhancer: Enhancer,
    info: AudioInfo,
    target: str | Path | Sink,
    settings: Settings,
    *,
    started: float,
    raw: Raw | None,
    overwrite: bool,
    progress: Progress | None,
) -> EnhancedFile:
    """See ``Enhancer.enhance_file``.

    Args:
        enhancer: The model.
        info: The recording.
        target: See there.
        settings: Of the sampler.
        started: When the work on it began (``time.perf_counter``).
        raw: See there.
        overwrite: See there.
        progress: See there.
    """
    rate, n_channels, n_samples = info.sample_rate, info.n_channels, info.n_samples
    read = _reader(info)
    before, after = (Energy(rate, n_channels) for _ in range(2))
    writer, left = open_output(info, target, raw, overwrite)
    with writer:
        levels = find_levels(enhancer, read(), rate, n_channels, str(info.path))
        offsets = levels.offsets if levels.offsets.any() else None

        def heard() -> Iterator[FloatArray]:
            for block in read():
                before.push(block if offsets is None else block - offsets)
                yield block

        enhanced = enhancer._run(heard(), rate, levels, settings, n_samples, progress)
        for block in mixed(enhanced, read(), settings.noisy_share):
            if len(block):
                writer.write(after.push(block))
        writer.commit()
    taken, pause_taken = taken_db(before, after)
    return EnhancedFile(
        path=Path(target if isinstance(target, (str, Path)) else PIPE),
        sample_rate=rate,
        n_channels=n_channels,
        n_samples=n_samples,
        container=writer.container,
        subtype=writer.subtype,
        n_clipped=writer.n_clipped,
        nfe=1 + len(settings.steps),
        seconds=time.perf_counter() - started,
        gaps=info.gaps,
        left=left,
        peaks=tuple(levels.peaks.tolist()),
        taken_db=taken,
        pause_taken_db=pause_taken,
    )


def _reader(info: AudioInfo) -> Callable[[], Iterable[FloatArray]]:
    """What reads the recording anew each time; one of a single block is read once and kept."""
    if info.n_samples * info.n_channels > BLOCK_SAMPLES:
        return lambda: read_blocks(info)
    kept = list(read_blocks(info))
    return lambda: kept
