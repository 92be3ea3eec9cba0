"""What the differentiable measures share: tables made once for each device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from ..runtime.spec import SAMPLE_RATE, SignalSpec
from ..spectral import SIGNAL


class SpectralMeasure(nn.Module):
    """A measure of compressed spectra, which keeps its tables on its device."""

    def __init__(self, signal: SignalSpec = SIGNAL, sample_rate: int = SAMPLE_RATE) -> None:
        """Make the tables.

        Args:
            signal: STFT and compression.
            sample_rate: Samples a second (Hz).
        """
        super().__init__()
        self.signal, self.sample_rate = signal, sample_rate
        for name, table in self.tables(signal, sample_rate).items():
            self.register_buffer(name, torch.from_numpy(table).float(), persistent=False)

    @staticmethod
    def tables(signal: SignalSpec, sample_rate: int) -> Mapping[str, np.ndarray]:
        """The tables by name; a measure's own."""
        raise NotImplementedError


M = TypeVar("M", bound=SpectralMeasure)


@lru_cache(maxsize=8)
def on_device(kind: type[M], device: torch.device, signal: SignalSpec, sample_rate: int) -> M:
    """A measure on a device, made at its first use.

    Args:
        kind: Its class.
        device: The device.
        signal: STFT and compression.
        sample_rate: Samples a second (Hz).
    """
    with torch.inference_mode(False):
        return kind(signal, sample_rate).to(device)
