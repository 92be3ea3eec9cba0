"""What every adapter is, and what several of them need."""

from __future__ import annotations

import importlib.util
import sys
import types
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.errors import InputError
from dvpd.runtime.spec import SAMPLE_RATE

RATE_HZ = SAMPLE_RATE


class Peer(ABC):
    """One system: 16 kHz in, 16 kHz out.

    Attributes:
        latency: "streaming" (frame by frame) or "offline" (needs what comes later).
        weights: Where its weights are from; None if they are random.
        networks: Its ``nn.Module``s, for parameters; empty where it is none.
        calls: The part of a whole enhancement that ``enhance`` does is 1 / calls; 1 as a rule.
        torch: Whether it runs on PyTorch.
    """

    latency = "offline"
    torch = True

    def __init__(self, folder: Path | None, weights: Path | None) -> None:
        """Load it.

        Args:
            folder: Its clone.
            weights: Its weights, or None for those in the clone.
        """
        self.folder, self.given = folder, weights
        self.weights: str | None = None
        self.networks: list[Any] = []
        self.calls = 1
        self.load()

    @abstractmethod
    def load(self) -> None:
        """Import and build the system."""

    def prepare(self) -> None:  # noqa: B027 - most need nothing
        """What every recording needs first; not timed."""

    @abstractmethod
    def enhance(self, wav: FloatArray) -> FloatArray:
        """Enhance a recording [L] at 16 kHz."""

    def count(self, wav: FloatArray) -> None:
        """What costs are counted around."""
        self.prepare()
        self.enhance(wav)

    def find(self, *candidates: str) -> Path | None:
        """The weights given, else the first candidate in the clone that is there."""
        if self.given is not None:
            if not self.given.is_file():
                raise InputError(f"{self.given}: no such file of weights")
            return self.given
        assert self.folder is not None
        paths = [self.folder / name for name in candidates]
        return next((p for p in paths if p.is_file()), None)

    def read(self, path: Path) -> Any:
        """Tensors of a pickled checkpoint; code in it is never run."""
        import torch

        self.weights = path.name
        return torch.load(path, map_location="cpu", weights_only=True)


def make_package(name: str, folder: Path) -> None:
    """Make ``folder`` a package without running its ``__init__``, which may need training tools."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def stub_module(name: str, *members: str) -> None:
    """Stand in for a module that is imported at the top but not used in inference."""
    try:
        missing = importlib.util.find_spec(name) is None
    except (ImportError, ValueError):  # its package is missing, or stands in already
        missing = True
    if missing:
        sys.modules[name] = types.ModuleType(name)
        for member in members:
            setattr(sys.modules[name], member, None)


def fit_length(wav: FloatArray, n_samples: int) -> FloatArray:
    """The first ``n_samples``; zeros where there are fewer."""
    return np.pad(wav, (0, max(0, n_samples - len(wav))))[:n_samples]


def frames_48k(wav: FloatArray, size: int, delay: int) -> FloatArray:
    """A 16 kHz recording and ``delay`` samples of silence as 48 kHz frames [N, size]."""
    import soxr

    high = soxr.resample(wav, RATE_HZ, 48000).astype(np.float32)
    return np.pad(high, (0, -(len(high) + delay) % size + delay)).reshape(-1, size)


def from_48k(frames: FloatArray, delay: int, n_samples: int) -> FloatArray:
    """``n_samples`` at 16 kHz from 48 kHz frames, the first ``delay`` samples left out."""
    import soxr

    high = frames.reshape(-1)[delay:]
    return fit_length(soxr.resample(high, 48000, RATE_HZ).astype(np.float32), n_samples)


def read_yaml(path: Path) -> Any:
    """A YAML file, by PyYAML."""
    try:
        import yaml
    except ImportError:
        raise InputError(f"reading {path.name} needs PyYAML: pip install pyyaml") from None
    return yaml.safe_load(path.read_text(encoding="utf-8"))
