"""Audio while it comes in: blocks of any size, a fixed delay, fewer steps when computing is late.

``Enhancer.stream`` makes one stream, ``Enhancer.stream_pool`` many that share the engine: blocks that
are ready are computed in one batch.

    samples -> own rate to the model's -> frames, level -> [networks, all streams] -> frames -> rate

Whatever sizes a caller's blocks have, one block of four frames is processed at a time, at the same
places of the signal; so the output does not depend on them.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray
from .chain import MAX_AMPLITUDE, n_model
from .closing import Closing
from .errors import DvpdError, InputError, NonFiniteError
from .options import as_columns, to_float
from .polyphase import Polyphase, reach

if TYPE_CHECKING:
    from .pool import StreamPool

logger = logging.getLogger("dvpd")


@dataclass
class StreamStats:
    """What a stream has done so far.

    Attributes:
        blocks: Blocks processed: 32 ms each for a causal model, one window for the others.
        seconds: Audio in them (s).
        compute_s: Time that they took (s); of a batch, the stream's share.
        late: Blocks that missed their deadline: they were not ready when the next one was due.
        steps_now: Score network calls of the next block.
        steps_used: Number of steps -> blocks that were given so many.
        non_finite: Blocks with NaN or infinity in the input, which count as silence.
        passed: Blocks that came back as they were, because the networks returned nothing usable.
    """

    blocks: int = 0
    seconds: float = 0.0
    compute_s: float = 0.0
    late: int = 0
    steps_now: int = 0
    steps_used: dict[int, int] = field(default_factory=dict)
    non_finite: int = 0
    passed: int = 0

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work for a second of audio; 0 before the first block."""
        return self.compute_s / self.seconds if self.seconds else 0.0


class _Fifo:
    """Samples [n, n_channels] that wait."""

    def __init__(self, n_channels: int, n_zeros: int = 0) -> None:
        self._parts = deque([np.zeros((n_zeros, n_channels), np.float32)])
        self.size = n_zeros

    def put(self, part: FloatArray) -> None:
        if len(part):
            self._parts.append(part)
            self.size += len(part)

    def take(self, n: int) -> FloatArray:
        """The next n samples, or what is there."""
        n = min(n, self.size)
        self.size -= n
        taken = []
        while n:
            part = self._parts.popleft()
            if len(part) > n:
                self._parts.appendleft(part[n:])
                part = part[:n]
            n -= len(part)
            taken.append(part)
        if not taken:
            return self._parts[0][:0]
        if not self._parts:
            self._parts.append(taken[-1][:0])
        return np.concatenate(taken)


class Stream(Closing):
    """One signal, block by block. Made by ``Enhancer.stream`` or ``StreamPool.open``.

    Attributes:
        sample_rate: Of its blocks (Hz).
        channels: Of its blocks.
        seed: Of the noise.
        latency_samples: By how many samples the output is later than the input, exactly.
        stats: What was done so far.
        error: Why it failed, if it did.
    """

    def __init__(
        self, pool: StreamPool, sample_rate: int, channels: int, seed: int, share: float
    ) -> None:
        """See ``Enhancer.stream``."""
        self._pool, self._share, self.seed = pool, share, seed
        self.sample_rate, self.channels = sample_rate, channels
        signal = pool.enhancer.manifest.signal
        rates = sample_rate, signal.sample_rate
        # Down: samples that it waits for. Up: so many of the model's.
        waits, also = reach(*rates), reach(*reversed(rates))
        delay = pool._delay + also
        self.latency_samples = delay * sample_rate // signal.sample_rate + waits
        self.stats = StreamStats(steps_now=pool._governor.steps)
        self.error: DvpdError | None = None
        self._closed = False
        self._warned: set[str] = set()
        self._start()

    def _start(self) -> None:
        signal = self._pool.enhancer.manifest.signal
        self._inbox = _Fifo(self.channels)
        self._dry = _Fifo(self.channels, self.latency_samples)
        self._out = _Fifo(self.channels, self.latency_samples)
        self._n_in = self._n_taken = self._n_out = 0
        self._done = 0  # samples of the enhanced signal
        self._counted_s = 0.0  # audio of it in ``stats``
        self._flushed = False
        self._down = Polyphase(self.sample_rate, signal.sample_rate, self.channels)
        self._up = Polyphase(signal.sample_rate, self.sample_rate, self.channels)
        self._n_model = 0  # samples at the model's rate
        self._flat = True
        self._core = self._pool._core(self)

    @property
    def latency_ms(self) -> float:
        """The delay in milliseconds; computing comes on top."""
        return 1e3 * self.latency_samples / self.sample_rate

    def __repr__(self) -> str:
        """Rate, channels, delay."""
        return (
            f"Stream({self.sample_rate} Hz, {self.channels} channel{'s' * (self.channels > 1)}, "
            f"{self.latency_ms:.1f} ms late)"
        )

    def close(self) -> None:
        """Give up the stream's memory; other streams of its pool go on."""
        with self._pool._lock:
            self._closed = True
            self._pool._leave(self)

    def process(self, block: NDArray[Any], sample_rate: int | None = None) -> FloatArray:
        """Add a block and return one of the same length, ``latency_samples`` late.

        The first ``latency_samples`` samples of the output are zeros.

        Args:
            block: [n] for one channel, or [n, channels]; any n, also 0. Floats, or integers as in
                ``Enhancer.enhance``. What is not finite counts as silence: see ``stats``.
            sample_rate: Its rate where the caller knows it, to be checked (Hz).

        Returns:
            float32, the block's shape.

        Raises:
            InputError: A block of another kind, or the stream has ended; the stream stays as it is.
            BackendError: The engine failed.
        """
        with self._pool._lock:
            self.push(block, sample_rate)
            self._pool.run()
            return self.pull()

    def push(self, block: NDArray[Any], sample_rate: int | None = None) -> None:
        """Add a block, to be processed by the pool's next ``run``; see ``process``."""
        with self._pool._lock:
            self._check_open("process")
            if self._flushed:
                raise InputError("the stream has ended with flush; expected reset() before more")
            columns = self._columns(block, sample_rate)
            self._flat = np.ndim(block) == 1
            self._n_in += len(columns)
            self._inbox.put(columns)

    def pull(self) -> FloatArray:
        """What is ready of the samples that are owed: as many as were pushed since the last call."""
        with self._pool._lock:
            self._check_open("pull")
            return self._shaped(self._mixed(self._n_in - self._n_out))

    def flush(self) -> FloatArray:
        """End the signal: the last ``latency_samples`` samples, float32; nothing the second time."""
        with self._pool._lock:
            self._check_open("flush")
            if not self._flushed:
                self._pool._finish(self)
                self._flushed = True
            return self._shaped(self._mixed(self._n_in + self.latency_samples - self._n_out))

    def reset(self) -> None:
        """Begin a new signal; the figures in ``stats`` go on."""
        with self._pool._lock:
            self._check_open("reset")
            self._start()

    def _check_open(self, what: str) -> None:
        if self.error is not None:
            raise self.error
        if self._closed or self._pool._closed:
            raise InputError(f"{what} on a stream that is closed; open another one")
        self._pool.enhancer._check_process()

    def _columns(self, block: NDArray[Any], sample_rate: int | None) -> FloatArray:
        if sample_rate is not None and sample_rate != self.sample_rate:
            raise InputError(
                f"a block at {sample_rate} Hz in a stream at {self.sample_rate} Hz: flush this one "
                "and open another"
            )
        wanted = "[n]" if self.channels == 1 else f"[n, {self.channels}]"
        if isinstance(block, np.ndarray) and not block.size and block.ndim in (1, 2):
            fits = block.ndim == 1 or block.shape[1] in (0, self.channels)
            if fits or not len(block):
                return np.zeros((0, self.channels), np.float32)
        columns = as_columns(block, "block")
        if columns.shape[1] != self.channels:
            raise InputError(
                f"block has shape {list(block.shape)}; expected {wanted}: the stream has "
                f"{self.channels} channel{'s' * (self.channels > 1)}"
            )
        return to_float(columns)  # a copy: callers use their buffers again

    def _mixed(self, n: int) -> FloatArray:
        out = self._out.take(n)
        self._n_out += len(out)
        if self._share:
            dry, share = self._dry.take(len(out)), np.float32(self._share)
            out = dry if share == 1.0 else out * (np.float32(1.0) - share) + dry * share
        return out

    def _shaped(self, columns: FloatArray) -> FloatArray:
        return columns[:, 0] if self._flat and self.channels == 1 else columns

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s; said once, stats go on counting", text)

    @property
    def _ready(self) -> bool:
        """Whether the next block's samples are there."""
        return self._n_taken + self._inbox.size >= self._down.needed(self._core.n_next)

    def _take(self, n: int) -> FloatArray:
        """The next n samples of the input, finite."""
        chunk = self._inbox.take(n)
        bad = ~(np.abs(chunk) <= MAX_AMPLITUDE)
        if bad.any():
            chunk = np.where(bad, np.float32(0.0), chunk)
            self.stats.non_finite += 1
            second = self._n_taken / self.sample_rate
            self._warn("input", f"NaN or infinity near second {second:.2f} counts as silence")
        self._n_taken += n
        if self._share:
            self._dry.put(chunk)
        return chunk

    def _begin(self) -> None:
        """Bring the next block's samples to the model's rate and hand them on."""
        model = self._down.push(self._take(self._down.needed(self._core.n_next) - self._n_taken))
        self._core.push(model)

    def _end(self) -> None:
        """Bring the rest to the model's rate; the signal ends there."""
        model = self._down.push(self._take(self._inbox.size))
        n_model_samples = n_model(self._n_in, self.sample_rate, self._pool._rate)
        rest = self._down.finish(n_model_samples)
        self._core.push(np.concatenate([model, rest])[: n_model_samples - self._core.n_samples])
        self._core.close()

    def _give(self, wav: FloatArray) -> None:
        """Enhanced samples [n, n_channels] at the model's rate."""
        self._emit(self._up.push(wav))

    def _emit(self, out: FloatArray) -> None:
        out = out[: self._n_in - self._done] if self._core.closed else out
        self._done += len(out)
        self._out.put(out)

    def _pass(self, error: NonFiniteError | None) -> None:
        """Count a block that comes back as it was, and say why."""
        self.stats.passed += 1
        if error is not None:
            self._warn("output", f"a block comes back as it was: {error}")

    def _count(self, seconds: float, audio_s: float, steps: int, late: bool) -> None:
        stats = self.stats
        stats.blocks += 1
        stats.seconds += audio_s
        stats.compute_s += seconds
        stats.late += late
        stats.steps_used[steps] = stats.steps_used.get(steps, 0) + 1
