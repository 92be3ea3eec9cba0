"""Windows side by side: one thread of the CPU each, and their results in the order of the recording."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from .arrays import FloatArray
from .backends.base import Backend
from .closing import Closing
from .errors import BackendError
from .windows import Piece


class WorkersBackend(Backend, Protocol):
    """A backend whose CPU computes several windows at a time, one thread each.

    A second thread in a call of a network gains less than a second window beside the first, whose
    maps stay in the cache of its core.
    """

    def for_workers(self) -> tuple[Backend, int]:
        """The same networks for calls from several threads at a time, and from how many.

        It is opened when it is first asked for, stays the same, and is closed with this backend.

        Raises:
            BackendError: It cannot be opened.
        """


def window_workers(backend: Backend) -> tuple[Backend, int]:
    """What computes windows side by side, and how many; the backend itself and 1 where they take turns.

    Args:
        backend: An open one.

    Raises:
        BackendError: As ``WorkersBackend.for_workers``.
    """
    ask: Any = getattr(backend, "for_workers", None)
    if ask is None:
        return backend, 1
    found: tuple[Backend, int] = ask()
    return found


class Workers(Closing):
    """The threads of one Enhancer. All recordings that it enhances at a time share them.

    Attributes:
        share: Tells by how much there may be more of them now: a whole number, 1 or more. It is
            asked before each window, where the networks can be called from any number of threads.
    """

    def __init__(self, backend: Backend) -> None:
        """Start nothing yet.

        Args:
            backend: Of the Enhancer.
        """
        self._backend, self._lock = backend, threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0  # of the pool
        self._closed = False
        self.share: Callable[[], int] | None = None

    def work(self, n_windows: int, turns: threading.Lock) -> Work:
        """What computes a recording's windows: all threads one, or one thread each.

        Args:
            n_windows: Of all channels.
            turns: Held while a window is computed, where windows take turns.

        Raises:
            BackendError: The backend cannot be loaded a second time.
        """
        if n_windows == 1:
            return Work(self._backend, turns)
        with self._lock:
            backend, count = window_workers(self._backend)
        if self.share is not None and getattr(backend, "concurrent", False):
            return Work(backend, None, self, count, self.share)
        if count == 1:
            return Work(backend, turns)
        return Work(backend, None, self, count)

    def submit(
        self, size: int, process: Callable[[FloatArray, int], FloatArray], *args: Any
    ) -> Future[FloatArray]:
        """Begin a window.

        Args:
            size: How many may be computed at a time from now on.
            process: What computes it.
            args: Its arguments.

        Raises:
            RuntimeError: The Enhancer was closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("closed")
            if self._pool is None or self._size != size:
                if self._pool is not None:
                    self._pool.shutdown(wait=False)  # what was begun there goes on
                self._pool, self._size = ThreadPoolExecutor(size, "dvpd-window"), size
            return self._pool.submit(process, *args)

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            pool.shutdown(cancel_futures=True)


class Work:
    """The windows of one recording.

    Attributes:
        backend: What computes them.
        turns: Held while one is computed; None where they are computed side by side.
    """

    def __init__(
        self,
        backend: Backend,
        turns: threading.Lock | None,
        workers: Workers | None = None,
        count: int = 1,
        share: Callable[[], int] | None = None,
    ) -> None:
        """Begin nothing yet.

        Args:
            backend: See above.
            turns: See above.
            workers: Compute the windows; None: whoever asks for one.
            count: Windows at a time.
            share: As in ``Workers``.
        """
        self.backend, self.turns = backend, turns
        self._workers, self._count, self._share = workers, count, share
        self._begun: list[Future[FloatArray]] = []
        self._stopped = False

    @property
    def ahead(self) -> int:
        """How many windows may be begun before the oldest is asked for; 0: none is."""
        if self._workers is None:
            return 0
        count = self._count * (1 if self._share is None else self._share())
        return count if count > 1 else 0

    def begin(
        self, process: Callable[[FloatArray, int], FloatArray]
    ) -> Callable[[FloatArray, int], Piece]:
        """What begins a window where ``process`` would compute it.

        Args:
            process: (wav [L], absolute index of its first frame) -> processed wav [L].
        """

        def start(wav: FloatArray, first_frame: int) -> Piece:
            if self._workers is None or not (count := self.ahead):
                return partial(process, wav, first_frame)
            try:
                future = self._workers.submit(count, process, wav, first_frame)
            except RuntimeError as error:  # the pool is shut down, or the interpreter is
                raise _closed() from error
            self._begun = [*(f for f in self._begun if not f.done()), future]

            def result() -> FloatArray:
                try:
                    return future.result()
                except CancelledError as error:
                    raise _closed() from error

            return result

        return start

    def check(self) -> None:
        """Called by a window between two calls of the networks.

        Raises:
            BackendError: Nobody waits for it any more.
        """
        if self._stopped:
            raise BackendError("this recording was given up")

    def stop(self) -> None:
        """Give up what nobody will ask for; a call of a network that runs comes to its end."""
        self._stopped = True
        for future in self._begun:
            future.cancel()


def _closed() -> BackendError:
    return BackendError("this Enhancer was closed while it was at work; open another one")
