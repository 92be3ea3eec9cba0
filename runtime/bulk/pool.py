"""Worker processes: started, given one task each, watched, and replaced when they die."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import RawValue
from typing import Any

from ..errors import BackendError
from .worker import Engine, Task

Serve = Callable[[Any, Engine], None]  # a pipe, or with several lanes a process the list of theirs
_END_S = 5.0


class Worker:
    """A process of the pool, or one of several lanes of a process.

    Attributes:
        index: Its number in the pool.
        task: What it works on; None: it is idle, or opens its engine.
        share: How much of it is done, 0 to 1.
        ready: Whether its engine is open.
        answered: Whether it has answered to its last task.
        alone: Tasks that it still does as its process's only lane, which otherwise has several.
    """

    def __init__(self, index: int, pipe: Connection, process: Any) -> None:
        """Wrap a process that was started.

        Args:
            index: Its number.
            pipe: To it.
            process: The process.
        """
        self.index = index
        self.task: Task | None = None
        self.share = 0.0
        self.ready = self.answered = False
        self.alone = 0
        self.pipe, self.process = pipe, process

    @property
    def idle(self) -> bool:
        """Whether it waits for a task."""
        return self.ready and self.task is None

    def give(self, task: Task) -> None:
        """Give it a task; if it is dead, ``Pool.wait`` will say so."""
        self.task, self.share, self.answered = task, 0.0, False
        with contextlib.suppress(OSError):
            self.pipe.send(task)

    def leave(self) -> None:
        """Tell it to end; an idle one ends by itself when its pipes are closed."""
        if self.task is not None or not self.ready:
            self.process.kill()
        self.pipe.close()

    def end(self) -> None:
        """Wait until it has ended."""
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

    def __init__(self, n: int, engine: Engine, serve: Serve, lanes: int = 1) -> None:
        """Start nothing yet.

        Args:
            n: How many processes.
            engine: What each opens.
            serve: What each runs.
            lanes: Tasks that each works on at a time.
        """
        self._share = RawValue("i", 1)
        self._n, self._engine, self._serve = n, replace(engine, share=self._share), serve
        self._lanes, self._wanted = lanes, 0
        self.workers: list[Worker] = []
        self.opened: dict[str, Any] = {}

    def start(self, n_tasks: int) -> None:
        """Start the workers unless they run.

        Args:
            n_tasks: There are no more workers than tasks.
        """
        self._wanted = min(self._n * self._lanes, n_tasks)
        for first in range(len(self.workers), self._wanted, self._lanes):
            self._launch(range(first, min(first + self._lanes, self._wanted)))

    def _launch(self, indices: Sequence[int]) -> None:
        """Start a process with a lane for each index."""
        # spawned: engines and their threads do not survive a fork
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in indices]
        theirs = [pair[1] for pair in pairs]
        given = theirs[0] if self._lanes == 1 else theirs
        process = context.Process(target=self._serve, args=(given, self._engine), daemon=True)
        process.start()
        for pipe in theirs:
            pipe.close()
        for index, (ours, _) in zip(indices, pairs, strict=True):
            self.workers.append(Worker(index, ours, process))

    def share_cores(self, *, more: bool) -> None:
        """Let those that work have the threads of those that have nothing to do.

        Args:
            more: Whether tasks wait, so that there will be no such.
        """
        busy = sum(worker.task is not None for worker in self.workers)
        self._share.value = 1 if more or not busy else max(1, len(self.workers) // busy)

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
            if worker in self.workers:  # the process may have been buried with another lane
                said += self._heard(worker)
        return said

    def _heard(self, worker: Worker) -> list[tuple[Worker, tuple[Any, ...]]]:
        """One message of a worker, or what its end comes to."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):  # a process that ends closes its pipes
            return self._buried(worker)
        if message[0] == "ready":
            worker.ready, self.opened = True, self.opened or message[1]
        elif message[0] == "broken":
            self._drop(worker, message[1])
        elif message[0] == "part":
            worker.share = message[1]
        else:
            worker.answered = worker.answered or message[0] != "said"
            if worker.answered and worker.alone:
                worker.alone -= 1
                if not worker.alone:
                    self._remove([worker])
                    self._launch(self._lanes_beside(worker))
            return [(worker, message)]
        return []

    def _lanes_beside(self, worker: Worker) -> Sequence[int]:
        """Indices of all lanes of a worker's process."""
        first = worker.index // self._lanes * self._lanes
        return range(first, min(first + self._lanes, self._wanted))

    def _buried(self, worker: Worker) -> list[tuple[Worker, tuple[Any, ...]]]:
        worker.process.join(_END_S)
        end = _end(worker.process.exitcode)
        group = [lane for lane in self.workers if lane.process is worker.process]
        if not any(lane.ready for lane in group):
            self._drop(worker, f"a process {end} as it opened the engine")
            return []
        said = [answer for lane in group for answer in _last_words(lane)]
        lost = [lane for lane in group if lane.task is not None and not lane.answered]
        self._remove(group)
        if len(lost) > 1:  # each of them alone: then it shows who is to blame
            self._launch(self._lanes_beside(worker)[:1])
            self.workers[-1].alone = len(lost)
        else:
            self._launch(self._lanes_beside(worker))
        # asked to end: by a service that stops, say
        asked = len(lost) > 1 or worker.process.exitcode == -signal.SIGTERM
        reason = f"the process that worked on it {end}"
        return said + [(lane, ("died", reason, asked)) for lane in lost]

    def _drop(self, worker: Worker, reason: str) -> None:
        self._remove([other for other in self.workers if other.process is worker.process])
        if not self.workers:
            raise BackendError(reason)

    def _remove(self, group: Sequence[Worker]) -> None:
        for worker in group:
            self.workers.remove(worker)
            worker.pipe.close()
        group[0].process.join(_END_S)

    def __enter__(self) -> Pool:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End all workers."""
        for worker in self.workers:  # a process ends with its last lane
            worker.leave()
        for worker in self.workers:
            worker.end()


def _last_words(lane: Worker) -> list[tuple[Worker, tuple[Any, ...]]]:
    """What a lane of a process that has ended had still said."""
    said = []
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = lane.pipe.recv()
            if message[0] not in ("ready", "part"):
                lane.answered = lane.answered or message[0] != "said"
                said.append((lane, message))
    return said


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            more = "; often memory that ran out" if name == "SIGKILL" else ""
            return f"was ended by {name}{more}"
    return f"ended with exit code {code}"
