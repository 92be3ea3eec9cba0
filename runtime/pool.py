"""Streams that share an engine: the blocks that are ready are computed in one batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray
from .audio import check_rate
from .block_sampler import Lane
from .chain import Settings, block_sampler
from .checks import check_whole
from .closing import Closing
from .cores import CausalCore, WindowCore
from .errors import (
    BackendError,
    DvpdError,
    InputError,
    NonFiniteError,
    one_line,
    raise_interrupt,
)
from .governor import Forecast, Governor
from .live import Stream
from .noise import check_seed
from .options import noisy_share
from .polyphase import MAX_RATE_HZ, MIN_RATE_HZ
from .schedule import SamplerStep
from .spec import FRAME_MULTIPLE, MAX_CHANNELS

if TYPE_CHECKING:
    from .enhancer import Enhancer

Clock = Callable[[], float]


class StreamPool(Closing):
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
        self._plans: dict[int, tuple[SamplerStep, ...]] = {
            count: sampler.steps(sde, count) for count in self._governor.ladder
        }
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

    @property
    def steps_now(self) -> int:
        """Score network calls of the next block."""
        return self._governor.steps

    @property
    def block_s(self) -> float:
        """Audio that is computed at a time (s)."""
        return self._block_s

    @property
    def ladder(self) -> tuple[int, ...]:
        """Numbers of steps that are chosen from, most first."""
        return self._governor.ladder

    def plan(self, costs: Mapping[int, float], most_load: float) -> None:
        """Take fewer steps before computing falls behind, not after.

        Args:
            costs: Number of steps, each of ``ladder`` -> time for a block of one channel (s).
            most_load: Share of the time that blocks may take.
        """
        with self._lock:
            self._governor.forecast = Forecast(costs, most_load, self._block_s)
            self._expect()

    def _expect(self) -> None:
        self._governor.expect(sum(stream.channels for stream in self._streams))

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
            self._expect()
            return stream

    def process(
        self, blocks: Mapping[Stream, NDArray[Any]]
    ) -> dict[Stream, FloatArray | DvpdError]:
        """Add a block to each of several streams and return theirs; see ``Stream.process``.

        Where a block was refused, or a stream failed, its error stands instead of its samples.
        """
        results: dict[Stream, FloatArray | DvpdError] = {}
        with self._lock:
            refused: dict[Stream, DvpdError] = {}
            for stream, block in blocks.items():
                try:
                    stream.push(block)
                except DvpdError as error:
                    refused[stream] = error
            self.run()
            for stream in blocks:
                try:
                    results[stream] = refused.get(stream) or stream.pull()
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

    def _core(self, stream: Stream) -> CausalCore | WindowCore:
        manifest = self.enhancer.manifest
        if manifest.causal is None:
            return WindowCore(self.enhancer, stream.channels, lambda: self._settings_now(stream))
        return CausalCore(manifest.signal, manifest.causal, stream.channels, stream.seed)

    def _settings_now(self, stream: Stream) -> Settings:
        steps = self._plans[self._governor.steps]
        return replace(self._settings, steps=steps, seed=stream.seed)

    def _leave(self, stream: Stream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)
            self._expect()

    def _drop(self, stream: Stream, error: BackendError) -> None:
        """End a stream that failed; its next call raises the error."""
        stream.error = error
        self._leave(stream)

    def _warm_up(self, stream: Stream) -> None:
        """A first call, which takes longer than all others, before a deadline counts."""
        core = self._core(stream)
        if isinstance(core, CausalCore):
            signal = self.enhancer.manifest.signal
            shape = (stream.channels, 3, FRAME_MULTIPLE, signal.n_freqs)
            self._sampler.push(core.lanes, np.zeros(shape, np.float32))

    def _advance(
        self, streams: Sequence[Stream], begin: bool, started: float | None = None
    ) -> None:
        """One block of each of some streams; its time begins now, or where it began already."""
        started, steps = self._clock() if started is None else started, self._governor.steps
        for stream in streams:
            if begin:
                try:
                    stream._begin()
                except BackendError as error:  # of a window, which is computed here, alone
                    self._drop(stream, error)
                    return
        cores = [stream._core for stream in streams]
        causal = [core for core in cores if isinstance(core, CausalCore)]
        processed = bool(causal)
        if causal:
            self._networks(streams, causal, steps)
        for stream, core in zip(streams, cores, strict=True):
            if isinstance(core, WindowCore):
                processed = core.windows > 0
                core.windows = 0
                while core.ready:
                    stream._give(core.ready.popleft())
        if not processed:
            return
        spent, channels = self._clock() - started, sum(stream.channels for stream in streams)
        if self._governor.forecast is not None:
            self._governor.forecast.count(spent, channels, steps)
        late = self._governor.spent(spent, streams, self._block_s)
        share = spent / channels
        for stream in streams:
            stream._count(
                share * stream.channels, self._audio_s(stream, ends=not begin), steps, late
            )
        for stream in self._streams:
            stream.stats.steps_now = self._governor.steps

    def _audio_s(self, stream: Stream, ends: bool) -> float:
        """New audio in a block; what the end of a signal brings may be less or more than a window."""
        if not isinstance(stream._core, WindowCore):
            return self._block_s
        rest_s = stream._n_in / stream.sample_rate - stream._counted_s
        audio_s = max(rest_s if ends else min(self._block_s, rest_s), 0.0)
        stream._counted_s += audio_s
        return audio_s

    def _networks(self, streams: Sequence[Stream], cores: Sequence[CausalCore], steps: int) -> None:
        """The networks on one block of each of some streams, and what comes of it."""
        heard = [core.take() for core in cores]
        passed = [core.late(noisy) for core, noisy in zip(cores, heard, strict=True)]
        estimates = self._estimates(cores, heard, steps)
        for stream, core, estimate, noisy in zip(streams, cores, estimates, passed, strict=True):
            failed: NonFiniteError | None = None
            if isinstance(estimate, NonFiniteError):
                failed = estimate
            elif isinstance(estimate, BackendError):
                self._drop(stream, estimate)
                continue
            elif not core.passing:
                try:
                    stream._give(core.give(estimate, self._source))
                    continue
                except NonFiniteError as error:
                    failed = error
            if failed is not None:
                core.fail()
            stream._give(core.give(noisy, self._source))
            core.passing -= 1
            stream._pass(failed)

    def _estimates(
        self, cores: Sequence[CausalCore], heard: Sequence[FloatArray], steps: int
    ) -> list[FloatArray | BackendError]:
        """What the networks make of each stream's block, or why they cannot."""
        lanes = [lane for core in cores for lane in core.lanes]
        left = {id(row.stack) for lane in lanes for row in lane.rows if row.count > 1}
        noisy = np.concatenate(heard)
        try:
            out = self._sampler.push(lanes, noisy, steps)
        except Exception as error:  # whatever it is: it is this block's, and others' go on
            raise_interrupt(error)
            if len(cores) > 1:  # one may have spoilt it for all
                pairs = zip(cores, heard, strict=True)
                return [x for core, own in pairs for x in self._estimates([core], [own], steps)]
            for lane, own in zip(lanes, noisy, strict=True):
                lane.take(own)
            if not isinstance(error, BackendError):
                error = BackendError(f"{self._source} failed ({one_line(error)})")
            return [error]
        self._release(left, lanes)
        ends = np.cumsum([len(own) for own in heard])
        return list(np.split(out, ends[:-1]))

    def _release(self, left: set[int], lanes: Sequence[Lane]) -> None:
        """Give those that stayed behind in a batch's old state a copy of their own part."""
        if not left:
            return
        inside = set(map(id, lanes))
        with self.enhancer._lock:  # it may be copied where another pool's networks run
            for stream in self._streams:
                if isinstance(stream._core, CausalCore):
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
        core, started = stream._core, self._clock()
        try:
            stream._end()  # computes the last window
        except BackendError as error:
            self._drop(stream, error)
            raise
        if isinstance(core, WindowCore):
            self._advance([stream], begin=False, started=started)
        else:
            while core.has_block and stream.error is None:
                self._advance([stream], begin=False)
        if stream.error is not None:
            raise stream.error
        stream._emit(stream._up.finish(stream._n_in))
