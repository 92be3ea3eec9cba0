"""DVPD itself, as its runtime runs it."""

from __future__ import annotations

import os

from dvpd.benchmarks.peer_adapters.base import RATE_HZ, Peer
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.backends.choose import cpu_quota


class Dvpd(Peer):
    """Our own engine: ``folder`` is the engine folder, ``given`` names nothing."""

    backend, torch = "auto", False
    steps: int | None = None

    def load(self) -> None:
        """Open the engine."""
        from dvpd.runtime.enhancer import Enhancer

        assert self.folder is not None
        threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or cpu_quota()
        self.enhancer = Enhancer.open(self.folder, self.backend, "cpu", threads)
        self.weights = "shipped"

    def enhance(self, wav: FloatArray) -> FloatArray:
        """Enhance with the model's default sampler."""
        return self.enhancer.enhance(wav, RATE_HZ, steps=self.steps).wav


class DvpdPredictive(Dvpd):
    """The predictive branch alone."""

    steps = 0
