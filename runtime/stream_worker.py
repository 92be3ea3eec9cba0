"""Live sounds that share an engine, computed in a thread of its own.

For callers that must not wait: an event loop, a callback. What is asked for while a batch is computed
waits in order and becomes the next batch, so that rooms that speak at the same time share one call.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray
from .closing import Closing
from .errors import DvpdError, InputError
from .live import Stream, StreamStats

if TYPE_CHECKING:
    from .enhancer import Enhancer

T = TypeVar("T")


@dataclass
class _Job:
    """Something to do for one sound: a block, or a call that counts as one."""

    sound: LiveSound
    call: Callable[[], Any]
    block: NDArray[Any] | None = None
    future: Future[Any] = field(default_factory=Future)


class LiveSound:
    """One sound of a ``StreamWorker``; its methods return at once, what they ask for is done in order.

    A sound that cannot be opened, or fails, answers every call with its error.

    Attributes:
        channels: Of its blocks.
        latency_samples: See ``Stream``; None until it is open.
    """

    def __init__(self, worker: StreamWorker, channels: int, open_: Callable[[], Stream]) -> None:
        """See ``StreamWorker.open``."""
        self._worker, self.channels, self._open = worker, channels, open_
        self._stream: Stream | None = None
        self.latency_samples: int | None = None
        self.opened: Future[Stream] = worker._ask(_Job(self, self._begin))

    def _begin(self) -> Stream:
        self._stream = self._open()
        self.latency_samples = self._stream.latency_samples
        return self._stream

    @property
    def stream(self) -> Stream:
        """The stream behind it.

        Raises:
            DvpdError: Why there is none.
        """
        if self._stream is None:
            error = self.opened.exception() if self.opened.done() else None
            raise error or InputError("this sound is not open yet; wait for `opened`")
        return self._stream

    @property
    def stats(self) -> StreamStats:
        """What was done so far; all zeros before it is open."""
        return StreamStats() if self._stream is None else self._stream.stats

    def process(self, block: NDArray[Any]) -> Future[FloatArray]:
        """Add a block; see ``Stream.process``.

        Args:
            block: [n] or [n, channels]; not to be changed until the result is there.

        Returns:
            float32, the block's shape, ``latency_samples`` late; or the error.
        """
        return self._worker._ask(_Job(self, lambda: self.stream.push(block), block))

    def flush(self) -> Future[FloatArray]:
        """End the sound: its last ``latency_samples`` samples."""
        return self._worker._ask(_Job(self, lambda: self.stream.flush()))

    def close(self) -> None:
        """Give up its memory, when what was asked for before is done."""
        self._worker._sounds.discard(self)
        if not self._worker.closed:
            self._worker._ask(_Job(self, self._end))

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.close()


class StreamWorker(Closing):
    """A ``StreamPool`` and its thread. Any thread may open sounds and add blocks.

    Attributes:
        enhancer: The engine's.
        pool: The streams.
    """

    def __init__(self, enhancer: Enhancer, *, owned: bool = False, **options: Any) -> None:
        """Start the thread and make the first call, which takes longer than all others.

        Args:
            enhancer: A causal model.
            owned: Whether ``close`` closes it, too.
            **options: Of ``Enhancer.stream_pool``: steps, adapt and others.

        Raises:
            InputError: The model is not causal, or an option is out of range.
        """
        if enhancer.manifest.causal is None:
            raise InputError(
                f"{enhancer.manifest.name} hears windows of a recording, whose computing would "
                "interrupt the sound every few seconds; give a causal model, such as dvpd-live-tiny"
            )
        self.enhancer, self._owned = enhancer, owned
        self.pool = enhancer.stream_pool(**options)
        self.pool.open(enhancer.manifest.signal.sample_rate).close()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # between the last job and the end
        self.closed = False
        self._sounds: set[LiveSound] = set()
        self._thread = threading.Thread(target=self._run, name="dvpd-streams", daemon=True)
        self._thread.start()

    @classmethod
    def start(
        cls,
        model: str | Path | None = None,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        **options: Any,
    ) -> StreamWorker:
        """Load an engine and start its thread.

        Args:
            model: A causal model, see ``Enhancer.open``; None for the best that is there.
            backend: See ``Enhancer.open``.
            device: See ``Enhancer.open``.
            threads: CPU threads of each call; None for one, as a block is too little to be shared.
            **options: Of ``Enhancer.stream_pool``.

        Raises:
            DvpdError: See ``Enhancer.open`` and ``StreamWorker``.
        """
        from .engines import find_live_engine
        from .enhancer import Enhancer

        enhancer = Enhancer.open(
            find_live_engine(model), backend, device, 1 if threads is None else threads
        )
        try:
            return cls(enhancer, owned=True, **options)
        except DvpdError:
            enhancer.close()
            raise

    def open(self, sample_rate: int, channels: int = 1, **options: Any) -> LiveSound:
        """Begin a sound.

        Args:
            sample_rate: Samples a second (Hz), 8000 to 192000.
            channels: Of its blocks.
            **options: Of ``StreamPool.open``.

        Raises:
            InputError: The worker is closed. What else is wrong comes with the first result.
        """
        sound = LiveSound(self, channels, lambda: self.pool.open(sample_rate, channels, **options))
        self._sounds.add(sound)
        return sound

    @property
    def channels(self) -> int:
        """Of the sounds that were opened and not closed."""
        return sum(sound.channels for sound in tuple(self._sounds))

    def close(self) -> None:
        """Do what was asked for before, then end the thread and the streams."""
        with self._lock:
            ended, self.closed = self.closed, True
            if not ended:
                self._jobs.put(None)
        self._thread.join()
        self.pool.close()
        if self._owned:
            self.enhancer.close()

    def _ask(self, job: _Job) -> Future[Any]:
        with self._lock:
            if self.closed:
                raise InputError("this worker is closed; start another one")
            self._jobs.put(job)
        return job.future

    def _run(self) -> None:
        waiting: deque[_Job] = deque()
        ending = False
        while waiting or not ending:
            if not waiting and (job := self._jobs.get()) is not None:
                waiting.append(job)
            while not self._jobs.empty():
                if (job := self._jobs.get()) is not None:
                    waiting.append(job)
            ending = self.closed and self._jobs.empty()
            self._round(waiting)

    def _round(self, waiting: deque[_Job]) -> None:
        """The first job of each sound; blocks are computed together."""
        now: dict[LiveSound, _Job] = {}
        later = [job for job in waiting if now.setdefault(job.sound, job) is not job]
        waiting.clear()
        waiting.extend(later)
        pushed = []
        for job in now.values():
            if not job.future.set_running_or_notify_cancel():
                continue
            if job.block is None:
                _answer(job.future, job.call)
            elif (error := _tried(job.call)) is None:
                pushed.append(job)
            else:
                job.future.set_exception(error)
        broken = _tried(self.pool.run) if pushed else None
        for job in pushed:
            if broken is None:
                _answer(job.future, job.sound.stream.pull)
            else:
                job.future.set_exception(broken)


def _tried(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:  # it is the answer to whoever asked
        return error
    return None


def _answer(future: Future[T], call: Callable[[], T]) -> None:
    try:
        result = call()
    except Exception as error:  # it is the answer to whoever asked
        future.set_exception(error)
    else:
        future.set_result(result)


def to_int16(wav: FloatArray) -> NDArray[np.int16]:
    """Samples of full scale 1 as 16-bit integers; what lies beyond is limited.

    Args:
        wav: float32, any shape.
    """
    scaled = np.clip(np.rint(wav * np.float32(32768.0)), -32768, 32767)
    pcm: NDArray[np.int16] = scaled.astype(np.int16)
    return pcm
