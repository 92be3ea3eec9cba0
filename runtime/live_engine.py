"""The model for one live sound: the best one that this machine computes in time."""

from __future__ import annotations

import os
from pathlib import Path

from .command import say
from .engines import ENGINE_VARIABLE, LIVE_ENGINES, default_engine, find_live_engine
from .enhancer import Enhancer
from .errors import ManifestError
from .stream_workers import MOST_LOAD, block_costs, own_clock


def open_live(
    model: str | Path | None,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    *,
    tf32: bool = False,
    channels: int = 1,
    adapt: bool = True,
) -> Enhancer:
    """Open the model that was named; else the best live one that is computed in time here.

    If none was named, and blocks of ``dvpd-live`` without steps take more than ``MOST_LOAD`` of
    their length, ``dvpd-live-tiny`` is opened in its place, and a line on stderr says so.

    Args:
        model: See ``find_live_engine``.
        backend: See ``Enhancer.open``.
        device: See ``Enhancer.open``.
        threads: See ``Enhancer.open``.
        tf32: See ``Enhancer.open``.
        channels: Of the sound; each is computed on its own.
        adapt: Whether steps may become fewer. If not, the output is to be the same on every
            machine: nothing is measured.

    Raises:
        DvpdError: See ``Enhancer.open``.
    """
    enhancer = Enhancer.open(find_live_engine(model), backend, device, threads, tf32=tf32)
    if model is not None or os.environ.get(ENGINE_VARIABLE) or not adapt:
        return enhancer
    best, smaller = LIVE_ENGINES
    if enhancer.manifest.name != best:
        return enhancer
    try:
        folder = default_engine((smaller,))
    except ManifestError:  # there is no other
        return enhancer
    causal, rate = enhancer.manifest.causal, enhancer.manifest.signal.frame_rate_hz
    block_s = causal.block_frames / rate if causal else 0.0
    try:
        spent = channels * block_costs(enhancer, (0,), own_clock(enhancer))[0]
    except BaseException:  # also Ctrl-C
        enhancer.close()
        raise
    if spent <= MOST_LOAD * block_s:
        return enhancer
    say(
        f"{best} takes {1e3 * spent:.0f} ms here for a block of {1e3 * block_s:.0f} ms: using {smaller} "
        f"(--model {best} takes it nonetheless)"
    )
    enhancer.close()
    return Enhancer.open(folder, backend, device, threads, tf32=tf32)
