"""The process that enhances: one engine, one recording after another, told through a pipe.

It writes to a path that it is given, outside of everybody's sight, and never touches the journal.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ..audio import probe
from ..command import explain
from ..containers import SAMPLE_BYTES, Raw
from ..cut import cut
from ..enhancer import EnhancedFile, Enhancer
from ..errors import InputError
from ..files import sha256_file
from .plan import Job
from .rows import Made

PART_EVERY_S = 0.5
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
        batch: Windows computed at a time; see ``lanes``.
    """

    folder: Path
    backend: str
    device: str
    threads: int | None
    tf32: bool
    options: dict[str, Any]
    batch: int = 1


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


def start_process() -> None:
    """Leave Ctrl-C to the parent, and end with it: a killed parent leaves no orphans."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


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
        enhancer = Enhancer.open(
            engine.folder, engine.backend, engine.device, engine.threads, tf32=engine.tf32
        )
    except Exception as error:
        pipe.send(("broken", explain(error)))
        return
    with enhancer, contextlib.suppress(EOFError, BrokenPipeError):
        pipe.send(("ready", {"backend": enhancer.backend.name, "device": enhancer.backend.device}))
        while True:
            task: Task = pipe.recv()
            pipe.send(answer(task, enhancer, engine.options, pipe))


def answer(
    task: Task, enhancer: Enhancer, options: dict[str, Any], pipe: Connection
) -> tuple[Any, ...]:
    """Do a task; whatever it raises is an answer, too.

    Args:
        task: The task.
        enhancer: The open engine.
        options: For ``Enhancer.enhance_file``.
        pipe: For how far it is.
    """
    last = time.monotonic()

    def progress(share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= PART_EVERY_S:
            last = time.monotonic()
            pipe.send(("part", share))

    job = task.job
    try:
        _check_space(task, options.get("raw"), options["salvage"])
        content = sha256_file(job.source)
        done = enhancer.enhance_file(
            job.source, task.staged, part=job.part, progress=progress, **options
        )
        now = os.stat(job.source)
        if (now.st_size, now.st_mtime_ns) != (job.n_bytes, job.mtime_ns):
            raise InputError(
                f"{job.source}: was changed while it was read; nothing was written: run again with "
                "--resume when it is complete"
            )
        made = os.stat(task.staged)
        sha256 = sha256_file(task.staged)
        facts = Made(content, made.st_size, made.st_mtime_ns, sha256)
        return "done", facts, _result(enhancer, done)
    except BrokenPipeError:
        raise
    except Exception as error:
        said = explain(error).replace(str(task.staged), str(job.target))
        return "failed", said, type(error).__name__


def _check_space(task: Task, raw: Raw | None, salvage: bool) -> None:
    """Refuse what cannot fit before hours are spent: such as a sparse file of a terabyte.

    Raises:
        InputError: A WAV file would be larger than what is free.
    """
    if task.staged.suffix.lower() != ".wav":
        return
    if task.job.n_bytes < shutil.disk_usage(task.staged.parent).free // 64:
        return  # not worth a look: the disk may still turn out to be full later
    info = cut(probe(task.job.source, raw=raw, salvage=salvage), task.job.part)
    needed = info.n_samples * info.n_channels * SAMPLE_BYTES.get(info.subtype, 2)
    free = shutil.disk_usage(task.staged.parent).free - _FREE_BYTES
    if needed > free:
        raise InputError(
            f"{task.job.source}: its output takes {needed} bytes, {max(free, 0)} are free: free "
            "space, or enhance parts of it (start and duration in a manifest)"
        )


def _result(enhancer: Enhancer, done: EnhancedFile) -> dict[str, Any]:
    with np.errstate(divide="ignore"):
        peaks = 20.0 * np.log10(np.array(done.peaks))
    return {
        "sample_rate": done.sample_rate,
        "channels": done.n_channels,
        "samples": done.n_samples,
        "duration_s": done.duration_s,
        "seconds": done.seconds,
        "rtf": done.rtf,
        "nfe": done.nfe,
        "clipped": done.n_clipped,
        "peak_dbfs": [round(float(p), 2) if np.isfinite(p) else None for p in peaks],
        "container": done.container,
        "subtype": done.subtype,
        "gaps": list(done.gaps),
        "left": list(done.left),
        "backend": enhancer.backend.name,
        "device": enhancer.backend.device,
        "model": enhancer.manifest.name,
        "model_version": enhancer.manifest.version,
        "precision": enhancer.manifest.precision,
    }


__all__ = ["Engine", "Sender", "Task", "answer", "serve", "start_process"]
