"""Audio while it comes in: blocks of any size, a fixed delay, fewer steps when computing is late.

``Enhancer.stream`` makes one stream, ``Enhancer.stream_pool`` many that share the engine: blocks that
are ready are computed in one batch.

    samples -> own rate to the model's -> frames, level -> [networks, all streams] -> frames -> rate

Whatever sizes a caller's blocks have, one block of four frames is processed at a time, at the same
places of the signal; so the output does not depend on them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray
from .audio import MAX_CHANNELS, check_rate
from .chain import Settings, block_sampler, n_model
from .checks import check_whole
from .errors import BackendError, DvpdError, InputError, NonFiniteError
from .governor import Governor
from .level import RELEASE_DB_S
from .noise import check_seed, frame_noise
from .options import as_columns, noisy_share, to_float
from .polyphase import MAX_RATE_HZ, MIN_RATE_HZ, Polyphase, reach
from .schedule import SamplerStep, sampler_steps
from .spec import FRAME_MULTIPLE
from .stream import Channel, Lane
from .windows import LoudestStretch, Reminder, WindowedStream

if TYPE_CHECKING:
    from .enhancer import Enhancer

logger = logging.getLogger("dvpd")

Clock = Callable[[], float]
MAX_AMPLITUDE = 1e30  # beyond it a sample counts as not finite


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


class Stream:
    """One signal, block by block. Made by ``Enhancer.stream`` or ``StreamPool.open``.

    Attributes:
        sample_rate: Of its blocks (Hz).
        channels: Of its blocks.
        latency_samples: By how many samples the output is later than the input, exactly.
        stats: What was done so far.
        error: Why it failed, if it did.
    """

    def __init__(
        self, pool: StreamPool, sample_rate: int, channels: int, seed: int, share: float
    ) -> None:
        """See ``Enhancer.stream``."""
        self._pool, self._share, self._seed = pool, share, seed
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

    def __enter__(self) -> Stream:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

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

    def _pass(self, error: NonFiniteError) -> None:
        """Say that a block comes back as it was."""
        self.stats.passed += 1
        self._warn("output", f"a block comes back as it was: {error}")

    def _count(self, seconds: float, audio_s: float, steps: int, late: bool) -> None:
        stats = self.stats
        stats.blocks += 1
        stats.seconds += audio_s
        stats.compute_s += seconds
        stats.late += late
        stats.steps_used[steps] = stats.steps_used.get(steps, 0) + 1


class _Core(Protocol):
    """What stands between a stream's resamplers, at the model's rate.

    Attributes:
        n_samples: Taken in.
        closed: Whether the signal has ended.
    """

    n_samples: int
    closed: bool

    @property
    def n_next(self) -> int:
        """Samples that must have come in for the next block."""

    def push(self, wav: FloatArray) -> None:
        """Add samples [n, n_channels]."""

    def close(self) -> None:
        """End the signal."""


class _CausalCore:
    """Blocks of four frames, and what the networks keep."""

    def __init__(self, pool: StreamPool, stream: Stream) -> None:
        manifest = pool.enhancer.manifest
        assert manifest.causal is not None
        self._block = manifest.causal.block_frames
        signal, wait = manifest.signal, manifest.causal.lookahead_frames
        self._hop, self._ahead = signal.hop_length, signal.n_fft // 2 - signal.hop_length
        seed = stream._seed

        def draw(index: int, first: int, n_frames: int) -> FloatArray:
            return frame_noise(seed, index, first, n_frames)

        self.channels = [Channel(signal, wait) for _ in range(stream.channels)]
        self.lanes = [Lane(draw, wait, signal.n_freqs) for _ in range(stream.channels)]
        self.n_samples, self.closed, self._blocks = 0, False, 0
        self.failures = 0  # blocks in a row

    @property
    def n_next(self) -> int:
        return (self._blocks + 1) * self._block * self._hop + self._ahead

    def push(self, wav: FloatArray) -> None:
        self.n_samples += len(wav)
        for index, channel in enumerate(self.channels):
            channel.push(wav[:, index])

    def close(self) -> None:
        self.closed = True
        for channel in self.channels:
            channel.close()

    @property
    def has_block(self) -> bool:
        """Whether frames are there; after the end until none is left."""
        return self.channels[0].available >= self._block

    def take(self) -> FloatArray:
        """The next block as the networks hear it, [n_channels, 3, T, F]."""
        self._blocks += 1
        return np.stack([channel.take(self._block) for channel in self.channels])

    def late(self, noisy: FloatArray) -> FloatArray:
        """What belongs to the output when a block comes in, as it was heard, [n_channels, 2, T, F]."""
        return np.stack([lane.late(x)[:2] for lane, x in zip(self.lanes, noisy, strict=True)])

    def fail(self) -> None:
        """Count a block that the networks failed on; the second in a row may be the states' fault."""
        self.failures += 1
        if self.failures > 1:
            for lane in self.lanes:
                lane.forget()

    def give(self, clean_ri: FloatArray, source: str) -> FloatArray:
        """Samples [n, n_channels] that are final after an estimate [n_channels, 2, T, F]."""
        spectra = [
            channel.spectrum(x, source) for channel, x in zip(self.channels, clean_ri, strict=True)
        ]
        pairs = zip(self.channels, spectra, strict=True)
        return np.stack([channel.give(x) for channel, x in pairs], axis=1)


class _WindowCore:
    """Windows of a model that hears whole recordings; level and loudest second are those so far."""

    def __init__(self, pool: StreamPool, stream: Stream) -> None:
        enhancer, n_channels = pool.enhancer, stream.channels
        self._plan, signal = enhancer.window_plan, enhancer.manifest.signal
        self._block = FRAME_MULTIPLE * signal.hop_length
        self.n_samples, self.closed = 0, False
        self.windows = 0  # since they were last counted
        self.ready: deque[FloatArray] = deque()
        self._pool, self._seed, self._rate = pool, stream._seed, signal.sample_rate
        self._levels = [0.0] * n_channels
        hop, n_remind = signal.hop_length, self._plan.reminder_samples
        self._loudest = [LoudestStretch(n_remind, hop) for _ in range(n_channels * bool(n_remind))]
        self._streams = [
            WindowedStream(self._processor(i), self._plan, hop) for i in range(n_channels)
        ]

    @property
    def n_next(self) -> int:
        return self.n_samples + self._block

    def push(self, wav: FloatArray) -> None:
        self.n_samples += len(wav)
        for index, stretch in enumerate(self._loudest):
            stretch.push(wav[:, index])
        pushed = [stream.push(wav[:, i].copy()) for i, stream in enumerate(self._streams)]
        self._add(pushed)

    def close(self) -> None:
        self.closed = True
        self._add([stream.finish() for stream in self._streams])

    def _add(self, pushed: Sequence[Sequence[FloatArray]]) -> None:
        for pieces in zip(*pushed, strict=True):
            self.windows += 1
            self.ready.append(np.stack(pieces, axis=1))

    def _processor(self, index: int) -> Callable[[FloatArray, int], FloatArray]:
        fall = 10.0 ** (-RELEASE_DB_S / 20.0 * self._plan.step_samples / self._rate)

        def process(wav: FloatArray, first_frame: int) -> FloatArray:
            peak = max(float(np.abs(wav).max()), self._levels[index] * fall)
            self._levels[index] = peak
            reminder = None
            found = self._loudest[index].found if self._loudest else None
            if found is not None and self.n_samples > self._plan.window_samples:
                loud = max(peak, float(np.abs(found.wav).max()))
                reminder = Reminder((found.wav / loud).astype(np.float32), found.first_frame)
            return self._pool._enhance_window(wav, first_frame, peak, reminder, self._seed)

        return process


class StreamPool:
    """Streams that share an engine. Made by ``Enhancer.stream_pool``.

    Blocks that are ready at the same time are computed in one batch. Streams come and go at any time;
    what a stream gives is what it would give alone, to rounding. Threads take turns.

    Attributes:
        enhancer: The engine's.
        max_batch: Channels computed at a time, at most.
    """

    def __init__(
        self,
        enhancer: Enhancer,
        settings: Settings,
        *,
        adapt: bool = True,
        max_batch: int = 64,
        clock: Clock = time.perf_counter,
    ) -> None:
        """See ``Enhancer.stream_pool``."""
        enhancer._check_process()
        self.enhancer, self.max_batch = enhancer, check_whole("", "max_batch", max_batch, 1)
        self._settings, self._clock = settings, clock
        self._governor = Governor(len(settings.steps), adapt)
        self._lock = threading.RLock()
        self._streams: list[Stream] = []
        self._closed = False
        manifest = enhancer.manifest
        self._rate = manifest.signal.sample_rate
        self._source = f"backend {enhancer.backend.name}"
        sde, sampler = manifest.sde, manifest.sampler
        self._plans: dict[int, tuple[SamplerStep, ...]] = {0: ()}
        for count in self._governor.ladder:
            if count:
                self._plans[count] = sampler_steps(sde, sampler.t_rs, count, sampler.last_step)
        if manifest.causal is None:
            plan = enhancer.window_plan
            # A window is computed when more than it has come in, seen at the end of a block.
            self._delay = plan.window_samples + FRAME_MULTIPLE * manifest.signal.hop_length
            self._block_s = plan.step_samples / self._rate
        else:
            self._delay = manifest.causal.latency_samples
            self._block_s = manifest.causal.block_frames / manifest.signal.frame_rate_hz
            self._sampler = block_sampler(enhancer, settings, self._plans)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Those that are open."""
        return tuple(self._streams)

    def __enter__(self) -> StreamPool:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all streams."""
        self.close()

    def close(self) -> None:
        """Close all streams; the Enhancer stays open."""
        with self._lock:
            self._closed = True
            self._streams.clear()

    def open(
        self,
        sample_rate: int,
        channels: int = 1,
        *,
        seed: int = 0,
        mix: float = 1.0,
        attenuation_limit_db: float | None = None,
    ) -> Stream:
        """Add a stream; see ``Enhancer.stream`` for the arguments."""
        rate = check_rate(sample_rate)
        if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            raise InputError(
                f"sample_rate is {rate} Hz; expected {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz in a stream"
            )
        if check_whole("", "channels", channels, 1) > MAX_CHANNELS:
            raise InputError(f"channels is {channels}; expected 1 to {MAX_CHANNELS}")
        with self._lock:
            if self._closed:
                raise InputError("this pool is closed; make another one")
            share = noisy_share(mix, attenuation_limit_db)
            stream = Stream(self, rate, int(channels), check_seed(seed), share)
            if not self._streams:
                self._warm_up(stream)
            self._streams.append(stream)
            return stream

    def process(
        self, blocks: Mapping[Stream, NDArray[Any]]
    ) -> dict[Stream, FloatArray | DvpdError]:
        """Add a block to each of several streams and return theirs; see ``Stream.process``.

        Where a block was refused, or a stream failed, its error stands instead of its samples.
        """
        results: dict[Stream, FloatArray | DvpdError] = {}
        with self._lock:
            for stream, block in blocks.items():
                try:
                    stream.push(block)
                except DvpdError as error:
                    results[stream] = error
            self.run()
            for stream in blocks.keys() - results.keys():
                try:
                    results[stream] = stream.pull()
                except DvpdError as error:
                    results[stream] = error
        return results

    def run(self) -> int:
        """Process every block that is ready; returns how many blocks of streams there were."""
        done = 0
        with self._lock:
            while ready := [stream for stream in self._streams if stream._ready]:
                done += len(ready)
                for batch in self._batches(ready):
                    self._advance(batch, begin=True)
        return done

    def _batches(self, streams: Sequence[Stream]) -> list[list[Stream]]:
        """Streams in groups of at most ``max_batch`` channels, each stream whole."""
        if self.enhancer.manifest.causal is None:
            return [[stream] for stream in streams]
        groups: list[list[Stream]] = []
        room = 0
        for stream in streams:
            if stream.channels > room:
                groups.append([])
                room = self.max_batch
            groups[-1].append(stream)
            room -= stream.channels
        return groups

    def _core(self, stream: Stream) -> _CausalCore | _WindowCore:
        if self.enhancer.manifest.causal is None:
            return _WindowCore(self, stream)
        return _CausalCore(self, stream)

    def _leave(self, stream: Stream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)

    def _warm_up(self, stream: Stream) -> None:
        """A first call, which takes longer than all others, before a deadline counts."""
        core = self._core(stream)
        if isinstance(core, _CausalCore):
            signal = self.enhancer.manifest.signal
            shape = (stream.channels, 3, FRAME_MULTIPLE, signal.n_freqs)
            self._sampler.push(core.lanes, np.zeros(shape, np.float32))

    def _advance(self, streams: Sequence[Stream], begin: bool) -> None:
        """One block of each of some streams."""
        started, steps = self._clock(), self._governor.steps
        for stream in streams:
            if begin:
                stream._begin()
        cores = [stream._core for stream in streams]
        causal = [core for core in cores if isinstance(core, _CausalCore)]
        processed = bool(causal)
        if causal:
            self._networks(streams, causal, steps)
        for stream, core in zip(streams, cores, strict=True):
            if isinstance(core, _WindowCore):
                processed = core.windows > 0
                core.windows = 0
                while core.ready:
                    stream._give(core.ready.popleft())
        if not processed:
            return
        spent = self._clock() - started
        late = self._governor.spent(spent, streams, self._block_s)
        share = spent / sum(stream.channels for stream in streams)
        for stream in streams:
            stream._count(share * stream.channels, self._block_s, steps, late)
        for stream in self._streams:
            stream.stats.steps_now = self._governor.steps

    def _networks(
        self, streams: Sequence[Stream], cores: Sequence[_CausalCore], steps: int
    ) -> None:
        """The networks on one block of each of some streams, and what comes of it."""
        heard = [core.take() for core in cores]
        passed = [core.late(noisy) for core, noisy in zip(cores, heard, strict=True)]
        estimates = self._estimates(cores, heard, steps)
        for stream, core, estimate, noisy in zip(streams, cores, estimates, passed, strict=True):
            if isinstance(estimate, BackendError) and not isinstance(estimate, NonFiniteError):
                stream.error = estimate
                self._leave(stream)
                continue
            try:
                if isinstance(estimate, NonFiniteError):
                    raise estimate
                wav = core.give(estimate, self._source)
                core.failures = 0
            except NonFiniteError as error:
                stream._pass(error)
                core.fail()
                wav = core.give(noisy, self._source)
            stream._give(wav)

    def _estimates(
        self, cores: Sequence[_CausalCore], heard: Sequence[FloatArray], steps: int
    ) -> list[FloatArray | BackendError]:
        """What the networks make of each stream's block, or why they cannot."""
        lanes = [lane for core in cores for lane in core.lanes]
        left = {id(row.stack) for lane in lanes for row in lane.rows if row.count > 1}
        noisy = np.concatenate(heard)
        try:
            out = self._sampler.push(lanes, noisy, steps)
        except BackendError as error:
            if len(cores) > 1:  # one may have spoilt it for all
                pairs = zip(cores, heard, strict=True)
                return [x for core, own in pairs for x in self._estimates([core], [own], steps)]
            for lane, own in zip(lanes, noisy, strict=True):
                lane.take(own)
            return [error]
        self._release(left, lanes)
        ends = np.cumsum([len(own) for own in heard])
        return list(np.split(out, ends[:-1]))

    def _release(self, left: set[int], lanes: Sequence[Lane]) -> None:
        """Give those that stayed behind in a batch's old state a copy of their own part."""
        if not left:
            return
        inside = set(map(id, lanes))
        for stream in self._streams:
            if isinstance(stream._core, _CausalCore):
                for lane in stream._core.lanes:
                    if id(lane) not in inside:
                        lane.part_from(left, self._sampler.backend)

    def _finish(self, stream: Stream) -> None:
        """Process what is left of a stream."""
        self.run()
        if stream.error is not None:
            raise stream.error
        if not stream._n_in:
            return
        core = stream._core
        stream._end()
        if isinstance(core, _WindowCore):
            self._advance([stream], begin=False)
        else:
            while core.has_block and stream.error is None:
                self._advance([stream], begin=False)
        if stream.error is not None:
            raise stream.error
        stream._emit(stream._up.finish(stream._n_in))

    def _enhance_window(
        self, wav: FloatArray, first_frame: int, peak: float, reminder: Reminder | None, seed: int
    ) -> FloatArray:
        """One window of a model that hears whole recordings."""
        enhancer, steps = self.enhancer, self._plans[self._governor.steps]
        settings = replace(self._settings, steps=steps, seed=seed)
        with enhancer._lock:
            out = enhancer._enhance_window(
                (wav / peak).astype(np.float32), first_frame, settings, reminder
            )
        return (out * peak).astype(np.float32)
