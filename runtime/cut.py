"""A part of a recording, by its seconds."""

from __future__ import annotations

import math
from dataclasses import replace

from .audio import AudioInfo
from .errors import InputError


def cut(info: AudioInfo, part: tuple[float, float | None] | None) -> AudioInfo:
    """The recording as if it held a part of itself alone.

    Reading it decodes what lies before the part, too: not every format can be sought in.

    Args:
        info: From ``probe``.
        part: Where it begins and how long it is (s), both rounded to samples; None for the length:
            to the end. None: the recording is returned as it is.

    Raises:
        InputError: The part is not within the recording.
    """
    if part is None:
        return info
    start_s, duration_s = part
    length = f"the recording has {info.duration_s:g} s"
    if not (math.isfinite(start_s) and start_s >= 0.0):
        raise InputError(f"{info.path}: start is {start_s} s; expected a number >= 0")
    first = round(start_s * info.sample_rate)
    if first >= info.n_samples:
        raise InputError(f"{info.path}: the part starts at {start_s:g} s; {length}")
    count = info.n_samples - first
    if duration_s is not None:
        if not (math.isfinite(duration_s) and duration_s > 0.0):
            raise InputError(f"{info.path}: duration is {duration_s} s; expected a number > 0")
        count = round(duration_s * info.sample_rate)
        if not 1 <= count <= info.n_samples - first:
            end = f"{start_s:g} + {duration_s:g} s"
            raise InputError(f"{info.path}: the part ends at {end}; {length}")
    return replace(info, n_samples=count, part=(first, count))
