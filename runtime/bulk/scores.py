"""DNSMOS of the outputs of a job, for those who name its models."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ..arrays import FloatArray
from ..audio import Resampler, probe, read_blocks
from ..chain import n_model
from ..spec import SAMPLE_RATE


def open_scorer(folder: Path) -> Any:
    """Load the models: a ``dvpd.quality.mos.Dnsmos``, which is no part of the light runtime.

    Args:
        folder: Holds sig_bak_ovr.onnx and model_v8.onnx.

    Raises:
        InputError: A model is missing or damaged.
        BackendError: ONNX Runtime is missing.
    """
    return importlib.import_module("dvpd.quality.mos").Dnsmos(folder)


_scorer = cache(open_scorer)  # once in a process


def scores(folder: Path, path: Path, step: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Scores of a recording, at 16 kHz, the mean of its channels; ten seconds are kept in memory.

    Args:
        folder: Of ``open_scorer``.
        path: The recording.
        step: Called now and then.

    Returns:
        ``DNSMOS_NAMES`` -> score, about 1 to 5.

    Raises:
        InputError: It cannot be read.
    """
    info = probe(path)
    resampler = Resampler(info.sample_rate, SAMPLE_RATE, 1)

    def blocks() -> Iterator[FloatArray]:
        for block in read_blocks(info):
            step()
            yield resampler.push(block.mean(axis=1, keepdims=True))[:, 0]
        yield resampler.finish(n_model(info.n_samples, info.sample_rate, SAMPLE_RATE))[:, 0]

    found: dict[str, float] = _scorer(folder).of_blocks(blocks())
    return {name: round(score, 3) for name, score in found.items()}
