"""Worker processes: started, given one task each, watched, and replaced when they die."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import BackendError
from .worker import Engine, Task

Serve = Callable[[Connection, Engine], None]
_END_S = 5.0


class Worker:
    """A process of the pool.

    Attributes:
        index: Its number in the pool.
        task: What it works on; None: it is idle, or opens its engine.
        share: How much of it is done, 0 to 1.
        ready: Whether its engine is open.
    """

    def __init__(self, index: int, serve: Serve, engine: Engine) -> None:
        """Start the process.

        Args:
            index: Its number.
            serve: What it runs.
            engine: For ``serve``.
        """
        self.index = index
        self.task: Task | None = None
        self.share = 0.0
        self.ready = False
        # spawned: engines and their threads do not survive a fork
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, engine), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def idle(self) -> bool:
        """Whether it waits for a task."""
        return self.ready and self.task is None

    def give(self, task: Task) -> None:
        """Give it a task; if it is dead, ``Pool.wait`` will say so."""
        self.task, self.share = task, 0.0
        with contextlib.suppress(OSError):
            self.pipe.send(task)

    def end(self) -> None:
        """End it; an idle one ends by itself when its pipe is closed."""
        if self.task is not None or not self.ready:
            self.process.kill()
        self.pipe.close()
        self.process.join(_END_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(_END_S)


class Pool:
    """Workers that share the work. Use as a context manager.

    Attributes:
        workers: Those that live.
        opened: What the first one opened: "backend" and "device".
    """

    def __init__(self, n: int, engine: Engine, serve: Serve) -> None:
        """Start nothing yet.

        Args:
            n: How many processes.
            engine: What each opens.
            serve: What each runs.
        """
        self._n, self._engine, self._serve = n, engine, serve
        self.workers: list[Worker] = []
        self.opened: dict[str, Any] = {}

    def start(self, n_tasks: int) -> None:
        """Start the workers unless they run.

        Args:
            n_tasks: There are no more workers than tasks.
        """
        while len(self.workers) < min(self._n, n_tasks):
            self.workers.append(Worker(len(self.workers), self._serve, self._engine))

    def wait(self, timeout_s: float) -> list[tuple[Worker, tuple[Any, ...]]]:
        """What the workers say, besides that they are ready.

        Args:
            timeout_s: How long to wait for the first word.

        Returns:
            Their messages; ("died", reason, whether it was asked to end) of one that died with its
            task.

        Raises:
            BackendError: No worker can open its engine.
        """
        by_pipe = {worker.pipe: worker for worker in self.workers}
        said: list[tuple[Worker, tuple[Any, ...]]] = []
        if not by_pipe:
            time.sleep(timeout_s)
        for pipe in wait(list(by_pipe), timeout_s) if by_pipe else ():
            worker = by_pipe[pipe]  # type: ignore[index]  # only these were waited for
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):  # a process that ends closes its pipe
                said += self._buried(worker)
                continue
            if message[0] == "ready":
                worker.ready, self.opened = True, self.opened or message[1]
            elif message[0] == "broken":
                self._drop(worker, message[1])
            elif message[0] == "part":
                worker.share = message[1]
            else:
                said.append((worker, message))
        return said

    def _buried(self, worker: Worker) -> list[tuple[Worker, tuple[Any, ...]]]:
        worker.process.join(_END_S)
        reason = f"the process that worked on it {_end(worker.process.exitcode)}"
        if not worker.ready:
            self._drop(worker, f"a process {_end(worker.process.exitcode)} as it opened the engine")
            return []
        self._remove(worker)
        self.workers.append(Worker(worker.index, self._serve, self._engine))
        if worker.task is None:
            return []
        asked = worker.process.exitcode == -signal.SIGTERM  # by a service that stops, say
        return [(worker, ("died", reason, asked))]

    def _drop(self, worker: Worker, reason: str) -> None:
        self._remove(worker)
        if not self.workers:
            raise BackendError(reason)

    def _remove(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.join(_END_S)

    def __enter__(self) -> Pool:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.end()


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            more = "; often memory that ran out" if name == "SIGKILL" else ""
            return f"was ended by {name}{more}"
    return f"ended with exit code {code}"
