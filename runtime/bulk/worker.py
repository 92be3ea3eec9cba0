"""The process that enhances: one engine, one recording after another, told through a pipe.

It writes to a place that it is given, outside of everybody's sight, and never touches the journal.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import logging
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..audio import probe
from ..command import explain
from ..containers import SAMPLE_BYTES
from ..cut import cut
from ..enhancer import Enhancer
from ..errors import InputError
from ..files import flushed_later
from . import places
from .plan import Job
from .rows import Made
from .scores import scores

PART_EVERY_S = 0.5
_REARM_S, _SLOW_BYTES_S = 1.0, 1e6
_FRAME = re.compile(r'File "(?:.*[/\\])?(.+)", line (\d+) in (\S+)')
_FREE_BYTES = 1 << 20  # left to the journal


@dataclass(frozen=True)
class Engine:
    """What a worker opens, and with what it enhances.

    Attributes:
        folder: Engine folder.
        backend: As for ``Enhancer.open``.
        device: Likewise.
        threads: Likewise.
        tf32: Likewise.
        options: For ``Enhancer.enhance_file``.
        hung_s: A process that makes no progress for so long (s), and a second more for each
            megabyte of the recording, is ended; 0: never.
        batch: Windows computed at a time; see ``lanes``.
        flush: Whether a process waits until each output is on the disk; else the run does, for
            several at a time.
        share: Memory that all processes of a pool see: by how much each may have more threads than
            its own, as others have nothing to do; None: by nothing.
        dnsmos: Folder of the models by which each output is judged; None: it is not.
    """

    folder: Path
    backend: str
    device: str
    threads: int | None
    tf32: bool
    options: dict[str, Any] = field(default_factory=dict)
    hung_s: float = 0.0
    batch: int = 1
    flush: bool = True
    share: Any = None
    dnsmos: Path | None = None

    def open(self) -> Enhancer:
        """The loaded model.

        Raises:
            DvpdError: It cannot be loaded.
        """
        return Enhancer.open(
            self.folder, self.backend, self.device, self.threads, tf32=self.tf32,
            with_steps=bool(self.options.get("steps")),
        )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A job, and where its output is written.

    Attributes:
        job: The job.
        staged: Path of the output until it gets its name.
    """

    job: Job
    staged: Path


class Sender(logging.Handler):
    """Messages of the runtime go to the parent, which alone writes to stderr."""

    def __init__(self, pipe: Connection) -> None:
        """Remember the pipe to the parent."""
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Send a message."""
        with contextlib.suppress(OSError):
            self._pipe.send(("said", record.getMessage()))


class Watch:
    """Ends this process when a task makes no progress for too long. Use as a context manager.

    ``faulthandler`` does it, in a thread of C that waits for no lock of Python's: a codec, an
    engine or a network drive that never returns is ended, too.
    """

    def __init__(self, limit_s: float, trace: Path) -> None:
        """Begin to watch with the context.

        Args:
            limit_s: How long nothing may move (s); 0: for ever.
            trace: Where it is written at which line everything stood; removed at the end.
        """
        self._limit_s, self._trace = limit_s, trace
        self._armed = 0.0

    def __enter__(self) -> Watch:
        """Start."""
        if self._limit_s:
            self._file = self._trace.open("wb")
            self.step()
        return self

    def step(self) -> None:
        """Say that something has moved."""
        if self._limit_s and time.monotonic() - self._armed >= min(_REARM_S, self._limit_s / 4):
            self._armed = time.monotonic()
            faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._file)

    def __exit__(self, *error: object) -> None:
        """Stop."""
        if self._limit_s:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            with contextlib.suppress(OSError):
                self._trace.unlink()


def trace_of(staged: Path) -> Path:
    """Where a task's ``Watch`` leaves its trace.

    Args:
        staged: The task's output.
    """
    return staged.with_name(f"{staged.name}.hung")


def hung(trace: Path) -> str | None:
    """What a ``Watch`` left when it ended its process, in words; None: it did not.

    Args:
        trace: Its file.
    """
    try:
        text = trace.read_text(errors="replace")
    except OSError:
        return None
    if not text.startswith("Timeout"):
        return None
    threads = text.split("Thread ")[1:]
    ours = next((part for part in threads if " in answer\n" in part), "")
    where = _FRAME.search(ours)  # the innermost frame stands first
    place = f" (in {where[3]}, {where[1]} line {where[2]})" if where else ""
    return f"nothing had moved for too long{place}, so the process that worked on it was ended"


def start_process() -> None:
    """Leave Ctrl-C to the parent, and end with it: a killed parent leaves no orphans."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def settle() -> None:
    """Leave what an open engine has brought out of garbage collection: it stays to the end.

    Looking at it again and again took a tenth of the time that a short recording needs beside the
    networks.
    """
    gc.collect()
    gc.freeze()


def serve(pipe: Connection, engine: Engine) -> None:
    """Work until the parent closes the pipe.

    Sends ("ready", {"backend", "device"}) or ("broken", reason), then for each task any number of
    ("part", share) and ("said", text), and ("done", Made, result) or ("failed", reason, kind).

    Args:
        pipe: To the parent.
        engine: What to open.
    """
    start_process()
    log = logging.getLogger("dvpd")
    log.addHandler(Sender(pipe))
    log.setLevel(logging.INFO)
    try:
        enhancer = engine.open()
    except Exception as error:
        pipe.send(("broken", explain(error)))
        return
    if engine.share is not None:
        enhancer._workers.share = lambda: int(engine.share.value)
    settle()
    with enhancer, contextlib.suppress(EOFError, BrokenPipeError):
        pipe.send(("ready", {"backend": enhancer.backend.name, "device": enhancer.backend.device}))
        while True:
            task: Task = pipe.recv()
            pipe.send(answer(task, enhancer, engine, pipe.send))


def answer(
    task: Task, enhancer: Enhancer, engine: Engine, tell: Callable[[tuple[Any, ...]], None]
) -> tuple[Any, ...]:
    """Do a task; whatever it raises is an answer, too.

    Args:
        task: The task.
        enhancer: The open engine.
        engine: How it was opened.
        tell: Gets how far it is.
    """
    last = time.monotonic()
    job, staged = task.job, task.staged
    with contextlib.ExitStack() as stack:
        safe = engine.flush or places.is_remote(staged)
        if places.is_remote(staged) or not engine.flush:
            stack.enter_context(flushed_later())
        if places.is_remote(job.source) or places.is_remote(staged):
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="dvpd-"))
            near = Path(name)
        else:
            near = staged.parent
        made = near / staged.name
        source = job.source
        try:
            # the first pass over a large file tells nothing of itself
            limit_s = engine.hung_s and engine.hung_s + job.n_bytes / _SLOW_BYTES_S
            watch = stack.enter_context(Watch(limit_s, trace_of(made)))

            def progress(share: float) -> None:
                nonlocal last
                watch.step()
                if time.monotonic() - last >= PART_EVERY_S:
                    last = time.monotonic()
                    tell(("part", share))

            before = places.state(job.source)
            source = places.bring(job.source, near, watch.step)
            _check_space(replace(job, source=source), made, engine.options)
            content = places.sha256(source, watch.step)
            done = enhancer.enhance_file(
                source, made, part=job.part, progress=progress, **engine.options
            )
            if places.state(job.source) != before:
                raise InputError(
                    f"{job.source}: was changed while it was read; nothing was written: run again "
                    "with --resume when it is complete"
                )
            sha256 = places.sha256(made, watch.step)
            result = done.table(enhancer)
            if engine.dnsmos is not None:
                result |= scores(engine.dnsmos, made, watch.step)
            if places.is_remote(staged):
                places.send(made, staged, watch.step)
            facts = Made(staged, before, content, *places.state(staged), sha256, safe)
            return "done", facts, result
        except BrokenPipeError:
            raise
        except Exception as error:
            said = explain(error).replace(str(made), str(job.target))
            return "failed", said.replace(str(source), str(job.source)), type(error).__name__


def _check_space(job: Job, made: Path, options: dict[str, Any]) -> None:
    """Refuse what cannot fit before hours are spent: such as a sparse file of a terabyte.

    Raises:
        InputError: A WAV file would be larger than what is free, or nothing is.
    """
    free = shutil.disk_usage(made.parent).free - _FREE_BYTES
    if free <= 0:  # in the words by which the run knows a full disk: each file would meet it
        raise InputError(
            f"{job.target}: {os.strerror(errno.ENOSPC)} (less than {_FREE_BYTES >> 20} MiB is free)"
        )
    if made.suffix.lower() != ".wav" or job.n_bytes < free // 64:
        return  # not worth a look: the disk may still turn out to be full later
    info = cut(probe(job.source, raw=options.get("raw"), salvage=options["salvage"]), job.part)
    needed = info.n_samples * info.n_channels * SAMPLE_BYTES.get(info.subtype, 2)
    if needed > free:
        raise InputError(
            f"{job.source}: its output takes {needed} bytes, {free} are free: free "
            "space, or enhance parts of it (start and duration in a manifest)"
        )


__all__ = [
    "Engine",
    "Sender",
    "Task",
    "Watch",
    "answer",
    "hung",
    "serve",
    "settle",
    "start_process",
    "trace_of",
]
