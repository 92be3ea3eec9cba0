"""What ``Enhancer.stream`` returns, without a model: the input at half its level, late by 40 samples."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np

LATE, GAIN = 40, np.float32(0.5)


class FakeStream:
    """Counts what it is given."""

    latency_samples, latency_ms = LATE, 2.5

    def __init__(self, sample_rate=16000, channels=1, **options):
        self.options = {"sample_rate": sample_rate, "channels": channels, **options}
        self.blocks = []
        self._waiting = np.zeros((LATE, channels), np.float32)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def process(self, block):
        assert block.dtype == np.float32
        self.blocks.append(len(block))
        waiting = np.concatenate([self._waiting, GAIN * block])
        self._waiting = waiting[len(block) :]
        return waiting[: len(block)]

    def flush(self):
        rest, self._waiting = self._waiting, self._waiting[:0]
        return rest

    @property
    def stats(self):
        return SimpleNamespace(
            blocks=len(self.blocks),
            seconds=sum(self.blocks) / self.options["sample_rate"],
            compute_s=0.1,
            rtf=0.25,
            late=0,
            steps_now=1,
            steps_used={1: len(self.blocks)},
            non_finite=0,
            passed=0,
        )


@contextlib.contextmanager
def fake_enhancer(opened, stream=FakeStream):
    """In the place of ``Enhancer.open``'s result; the streams that it opens are put into a list."""

    def open_stream(*args, **options):
        opened.append(stream(*args, **options))
        return opened[-1]

    yield SimpleNamespace(
        stream=open_stream,
        backend=SimpleNamespace(name="fake", device="cpu"),
        manifest=SimpleNamespace(name="fake", version="0", precision="fp32", causal=True),
    )
