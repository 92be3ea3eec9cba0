"""Recordings: one at a time is enhanced, into a file that its client reads while it grows.

So a slow client holds up nobody: it has its own file, and the engine goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..closing import Closing
from ..errors import BackendError, DvpdError, InputError, one_line

if TYPE_CHECKING:
    from ..enhancer import Enhancer

CHUNK = 1 << 16  # bytes
NICE = 10  # of the thread for recordings: live streams come first


class _Cancelled(Exception):
    """Nobody waits for it any more."""


class FileJob:
    """A recording to be enhanced, and the file that grows.

    Attributes:
        cancelled: Nobody waits for it any more.
        error: What went wrong, in words for the client.
        audio_s: Length of the recording (s), once it is known.
        compute_s: Time that it took (s), once it is done.
    """

    def __init__(
        self, source: Path, target: Path, max_values: int, options: dict[str, Any]
    ) -> None:
        """Make one, in an event loop.

        Args:
            source: The recording.
            target: Gets a WAV file.
            max_values: Samples of all channels, at most.
            options: Of ``Enhancer.enhance_file``.
        """
        self._source, self._target = source, target
        self._max_values, self._options = max_values, options
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._written = self._writes = 0
        self.error: DvpdError | None = None
        self._done = self.cancelled = False
        self.audio_s = self.compute_s = 0.0

    # In the engine's thread.

    def run(self, enhancer: Enhancer) -> None:
        """Enhance it; what goes wrong is told to the client.

        Args:
            enhancer: The engine.
        """
        try:
            self._check()
            with open(self._target, "wb", buffering=0) as self._out:
                done = enhancer.enhance_file(
                    self._source, self, progress=lambda _: self._go_on(), **self._options
                )
            self.audio_s, self.compute_s = done.duration_s, done.seconds
        except Exception as error:  # whatever it is: it is this recording's, and others follow
            # in new words: its traceback would keep the engine's frames, and their audio, for long
            self.error = self._told(error)
        self._done = True
        self._tell()

    def _told(self, error: Exception) -> DvpdError:
        if isinstance(error, DvpdError):
            text = getattr(error, "plain", str(error))
            return type(error)(text.replace(str(self._source), "the recording"))
        return BackendError(f"the recording: {one_line(error)}")

    def _check(self) -> None:
        from ..audio import probe

        self._go_on()
        info = probe(self._source)
        if info.n_samples * info.n_channels > self._max_values:
            raise InputError(
                f"the recording has {info.duration_s / 60:.1f} minutes and {info.n_channels} channels "
                f"at {info.sample_rate} Hz; expected at most {self._max_values} samples: cut it"
            )

    def _go_on(self) -> None:
        if self.cancelled:
            raise _Cancelled

    def write(self, data: bytes | memoryview) -> int:
        """Append to the file.

        Args:
            data: All of it is written.

        Raises:
            BackendError: The disk is full.
        """
        self._go_on()
        rest = memoryview(data).cast("B")
        n = len(rest)
        try:
            while rest:
                rest = rest[self._out.write(rest) :]
        except OSError as error:
            raise BackendError(f"the server's temporary folder: {error.strerror}") from None
        self._written += n
        self._writes += 1
        self._tell()
        return n

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._changed.set)

    # In the event loop.

    async def changed(self) -> None:
        """Wait until there is more, or the end."""
        await self._changed.wait()
        self._changed.clear()

    @property
    def begun(self) -> bool:
        """Whether samples are there, or the end; the header alone says nothing yet."""
        return self._done or self._writes > 1

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file from its beginning to its end, as it grows.

        Raises:
            DvpdError: What went wrong after the beginning.
        """
        sent = 0
        with open(self._target, "rb") as file:
            while True:
                done = self._done  # before the size is looked at
                if sent < self._written:
                    data = file.read(min(CHUNK, self._written - sent))
                    sent += len(data)
                    yield data
                elif done:
                    if self.error is not None:
                        raise self.error
                    return
                else:
                    await self.changed()


class FileDesk(Closing):
    """The engine for recordings, in a thread of low priority.

    Attributes:
        opened: The engine, or why there is none.
    """

    def __init__(self, open_engine: Callable[[], Enhancer]) -> None:
        """Start the thread, which opens the engine: its threads inherit the priority.

        Args:
            open_engine: Returns it.
        """
        self._jobs: queue.SimpleQueue[FileJob | None] = queue.SimpleQueue()
        self.opened: Future[Enhancer] = Future()
        self._open = open_engine
        self._thread = threading.Thread(target=self._run, name="dvpd-files", daemon=True)
        self._thread.start()

    def submit(self, job: FileJob) -> None:
        """Put a recording at the end of the queue.

        Args:
            job: The recording.
        """
        self._jobs.put(job)

    def close(self) -> None:
        """End the thread, when the recording that it is at is done or cancelled."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        if hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):  # on Linux a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            enhancer = self._open()
        except Exception as error:  # for whoever started the server
            self.opened.set_exception(error)
            return
        with enhancer:
            self.opened.set_result(enhancer)
            while (job := self._jobs.get()) is not None:
                job.run(enhancer)
