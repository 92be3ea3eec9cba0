"""What the integrations have in common: 16-bit blocks in, as many samples out, whatever happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.arrays import FloatArray
from ..runtime.errors import one_line
from ..runtime.stream_worker import LiveSound, to_int16
from ..runtime.stream_workers import Worker

logger = logging.getLogger("dvpd")

Pcm = NDArray[np.int16]

BEHIND_S = 1.0  # of sound that waits for computing, before it passes as it is
RETRY_S = 10.0  # after a failure, before it is tried again


class FilteredSound:
    """One sound through a ``StreamWorker``; where that fails, it passes as it is.

    Use either ``now`` or ``later``.

    Attributes:
        late: Blocks of ``now`` that were not ready in time.
        failures: How often it began to pass as it is.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        buffer_ms: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        """Begin with the first block.

        Args:
            worker: The engine.
            buffer_ms: What ``now`` is late beyond the model's delay (ms): the time for computing.
            clock: Seconds, for the next try after a failure.
            **options: Of ``StreamPool.open``.
        """
        self._worker, self._options, self._clock = worker, options, clock
        self._buffer_s = buffer_ms / 1e3
        self._enabled = True
        self._retry_at = -np.inf
        self._sound: LiveSound | None = None
        self.late = self.failures = 0
        self._begin(0, 1)

    def _begin(self, sample_rate: int, channels: int) -> None:
        """Forget what an earlier sound left behind."""
        self._format = sample_rate, channels
        self._buffer = round(self._buffer_s * sample_rate)
        self._asked: deque[Future[FloatArray]] = deque()
        self._ready: FloatArray = np.zeros((0, channels), np.float32)
        self._dry: Pcm = np.zeros((0, channels), np.int16)
        # Samples that came in, that were let go of `_dry`, and that were computed.
        self._n_in = self._n_dry = self._n_done = 0

    @property
    def enabled(self) -> bool:
        """Whether the sound is filtered; otherwise it passes as it is, and nothing is computed."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value and not self._enabled:
            self.close()  # what was heard before is not what follows
            self._retry_at = -np.inf
        self._enabled = bool(value)

    def close(self) -> None:
        """End the sound; another block begins a new one."""
        if self._sound is not None:
            self._sound.close()
        self._sound = None

    async def later(self, block: Pcm, sample_rate: int) -> Pcm:
        """The block's samples as soon as they are computed, the model's delay late.

        Args:
            block: int16 [n, channels].
            sample_rate: Its rate (Hz).

        Returns:
            int16 [n, channels].
        """
        try:
            if (sound := self._opened(block, sample_rate)) is None:
                return block
            computed = asyncio.wrap_future(sound.process(block))
            return to_int16(await asyncio.wait_for(computed, BEHIND_S))
        except Exception as error:  # whatever it is: the sound goes on
            return self._pass(block, error)

    def now(self, block: Pcm, sample_rate: int) -> Pcm:
        """What is computed already, without waiting: the model's delay and the buffer late.

        A block that is not ready in time comes as it was, in its place.

        Args:
            block: int16 [n, channels].
            sample_rate: Its rate (Hz).

        Returns:
            int16 [n, channels].
        """
        try:
            if (sound := self._opened(block, sample_rate)) is None:
                return block
            self._asked.append(sound.process(block))
            self._collect()
            if self._n_in - self._n_done > BEHIND_S * sample_rate + len(block):
                raise TimeoutError(f"computing is {BEHIND_S:g} s behind")
        except Exception as error:  # whatever it is: the sound goes on
            return self._pass(block, error)
        first, n = self._n_in - self._buffer, len(block)
        self._n_in += n
        self._dry = np.concatenate([self._dry, block])
        latency = sound.latency_samples
        if first + n <= self._n_done:
            out = to_int16(self._enhanced(first, n))
        else:
            self._miss()
            out = _part(self._dry, first - (latency or 0) - self._n_dry, n)
            out = out if latency is not None else np.zeros_like(block)
        keep = self._buffer + n + (latency if latency is not None else sample_rate)
        dropped = max(0, len(self._dry) - keep)
        self._dry = self._dry[dropped:]
        self._n_dry += dropped
        return out

    def _opened(self, block: Pcm, sample_rate: int) -> LiveSound | None:
        """The sound that the block belongs to; None where it passes as it is."""
        if not self._enabled or self._clock() < self._retry_at:
            return None
        if self._sound is not None and self._format != (sample_rate, block.shape[1]):
            self.close()
        if self._sound is None:
            self._begin(sample_rate, block.shape[1])
            self._sound = self._worker.open(*self._format, **self._options)
        return self._sound

    def _pass(self, block: Pcm, error: Exception) -> Pcm:
        self.close()
        self._retry_at = self._clock() + RETRY_S
        if not self.failures:
            logger.warning(
                "noise filter: %s; the sound passes as it is, another try every %g s (said once)",
                "computing is behind"
                if isinstance(error, asyncio.TimeoutError)
                else one_line(error),
                RETRY_S,
            )
        self.failures += 1
        return block

    def _collect(self) -> None:
        """Take the results that are there."""
        while self._asked and self._asked[0].done():
            part = self._asked.popleft().result()
            self._ready = np.concatenate([self._ready, part])
            self._n_done += len(part)

    def _enhanced(self, first: int, n: int) -> FloatArray:
        """Samples first to first + n of what was computed; what lies before them is let go."""
        start = self._n_done - len(self._ready)
        out = _part(self._ready, first - start, n)
        self._ready = self._ready[max(0, first + n - start) :]
        return out

    def _miss(self) -> None:
        if not self.late:
            logger.warning(
                "noise filter: a block was not ready in time and passes as it is; "
                "a longer buffer_ms, or a smaller model, helps (said once)"
            )
        self.late += 1


def _part(samples: NDArray[Any], first: int, n: int) -> NDArray[Any]:
    """Samples first to first + n [n, channels]; zeros where there are none."""
    out = np.zeros((n, samples.shape[1]), samples.dtype)
    part = samples[max(0, first) : max(0, first + n)]
    begin = max(0, -first)
    out[begin : begin + len(part)] = part
    return out
