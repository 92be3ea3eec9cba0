"""DVPD itself, as its runtime runs it, and bare arithmetic."""

from __future__ import annotations

import os

import numpy as np

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


class DvpdOne(Dvpd):
    """One step."""

    steps = 1


class DvpdThree(Dvpd):
    """Three steps."""

    steps = 3


class Arithmetic(Peer):
    """Nothing but float32 products of square matrices, the best that NumPy's library does."""

    torch = False
    SIZE, TIMES = 1024, 8
    GMACS = SIZE**3 * TIMES / 1e9

    def load(self) -> None:
        """Make the matrices."""
        rng = np.random.default_rng(0)
        self.left, self.right = rng.standard_normal((2, self.SIZE, self.SIZE)).astype(np.float32)
        self.product = np.empty((self.SIZE, self.SIZE), np.float32)
        self.weights = "none"

    def enhance(self, wav: FloatArray) -> FloatArray:
        """Multiply; the recording comes back as it was."""
        for _ in range(self.TIMES):
            np.matmul(self.left, self.right, out=self.product)
        return wav
