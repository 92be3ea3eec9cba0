"""Live sounds on all of a CPU's cores: several workers, each with an engine of one thread.

A block of 32 ms is too little work to be shared between threads: with two of them each block takes
twice the computing. So each worker computes the blocks of its own sounds, beside the others. What
blocks take here is measured at the start. From it follow how many channels are computed in time, and
how many steps they get.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .closing import Closing
from .errors import DvpdError
from .stream_worker import LiveSound, StreamWorker

if TYPE_CHECKING:
    from .enhancer import Enhancer
    from .pool import Clock

MOST_LOAD = (
    0.75  # of a worker's time; the rest is for rates, messages and what else the machine does
)
MAX_WORKERS = 8  # each holds an engine
PROBED_BLOCKS = 9  # whose median counts
PROBE_RATE_HZ = 48000  # the usual one, and the dearest: both changes of rate are in it


def own_clock(enhancer: Enhancer) -> Clock:
    """What counts the time that a thread computes; on a GPU, and on Windows, all time that passes.

    A limit that is found at the start must not depend on what else the machine did just then.

    Args:
        enhancer: Computes in the thread that calls it, if it is on the CPU.
    """
    fine = time.get_clock_info("thread_time").resolution < 1e-4
    return time.thread_time if enhancer.backend.device == "cpu" and fine else time.perf_counter


def block_costs(enhancer: Enhancer, ladder: Sequence[int], clock: Clock) -> dict[int, float]:
    """Measure what a block of one channel takes.

    Args:
        enhancer: A causal model.
        ladder: Numbers of steps.
        clock: Seconds.

    Returns:
        Number of steps -> seconds.
    """
    costs = {}
    for steps in ladder:
        with enhancer.stream_pool(steps=steps, adapt=False) as pool:
            stream = pool.open(PROBE_RATE_HZ)
            noise = np.random.default_rng(0).standard_normal(round(pool.block_s * PROBE_RATE_HZ))
            block = (0.1 * noise).astype(np.float32)
            spent = []
            for _ in range(2 + PROBED_BLOCKS):  # the first ones have less to do
                begun = clock()
                stream.process(block)
                spent.append(clock() - begun)
            costs[steps] = statistics.median(spent[2:])
    return costs


class StreamWorkers(Closing):
    """Several ``StreamWorker``; a new sound goes to the one with the fewest channels.

    Attributes:
        workers: They.
        costs: Number of steps -> time for a block of one channel while all workers compute (s).
        max_channels: Channels that are computed in time with the fewest steps; at least 1.
    """

    def __init__(
        self,
        workers: Sequence[StreamWorker],
        most_load: float = MOST_LOAD,
        clock: Clock | None = None,
    ) -> None:
        """Measure what blocks take, on all workers at the same time.

        Args:
            workers: At least one; closed with this one.
            most_load: Share of a worker's time that blocks may take.
            clock: Seconds; None for ``own_clock``.

        Raises:
            DvpdError: The engine fails.
        """
        self.workers = tuple(workers)
        ladder, block_s = workers[0].pool.ladder, workers[0].pool.block_s

        def measure(worker: StreamWorker) -> dict[int, float]:
            return block_costs(worker.enhancer, ladder, clock or own_clock(worker.enhancer))

        with ThreadPoolExecutor(len(workers)) as threads:
            each = list(threads.map(measure, workers))
        self.costs = {steps: statistics.mean(costs[steps] for costs in each) for steps in ladder}
        for worker in workers:
            worker.pool.plan(self.costs, most_load)
        # A clock that stands still has measured nothing.
        room = most_load * block_s / max(self.costs[ladder[-1]], 1e-6)
        self.max_channels = max(1, int(room) * len(workers))

    @classmethod
    def start(
        cls,
        model: str | Path | None = None,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        **options: Any,
    ) -> StreamWorkers:
        """Load the engines and start their threads: one on a GPU, on a CPU one for each thread.

        Args:
            model: A causal model, see ``Enhancer.open``; None for the best that is there.
            backend: See ``Enhancer.open``.
            device: See ``Enhancer.open``.
            threads: Of all workers; None for one a core, at most ``MAX_WORKERS``.
            **options: Of ``Enhancer.stream_pool``.

        Raises:
            DvpdError: See ``Enhancer.open`` and ``StreamWorker``.
        """
        from .backends.choose import cpu_quota

        workers = [StreamWorker.start(model, backend, device, 1, **options)]
        try:
            opened = workers[0].enhancer.backend
            if opened.device == "cpu":
                count = min(cpu_quota(), MAX_WORKERS) if threads is None else threads
                for _ in range(1, count):
                    workers.append(StreamWorker.start(model, opened.name, "cpu", 1, **options))
            return cls(workers)
        except DvpdError:
            for worker in workers:
                worker.close()
            raise

    @property
    def enhancer(self) -> Enhancer:
        """The first worker's."""
        return self.workers[0].enhancer

    @property
    def channels(self) -> int:
        """Of the sounds that are open."""
        return sum(worker.channels for worker in self.workers)

    @property
    def steps_now(self) -> int:
        """Score network calls of the next block, where they are fewest."""
        return min(worker.pool.steps_now for worker in self.workers)

    def open(self, sample_rate: int, channels: int = 1, **options: Any) -> LiveSound:
        """Begin a sound; see ``StreamWorker.open``."""
        worker = min(self.workers, key=lambda worker: worker.channels)
        return worker.open(sample_rate, channels, **options)

    def close(self) -> None:
        """Do what was asked for before, then end the threads and the streams."""
        for worker in self.workers:
            worker.close()


Worker = StreamWorker | StreamWorkers
