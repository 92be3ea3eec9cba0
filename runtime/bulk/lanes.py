"""The process that enhances several recordings at a time, their windows in batches: for GPUs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection

from ..batches import Batches
from ..command import explain
from ..enhancer import Enhancer
from ..errors import InputError
from ..manifest import Manifest
from ..spec import padded_frames
from .worker import Engine, Sender, Task, answer, settle, start_process

LANES_PER_ROW = 2  # while a batch is computed, the next one is read and transformed


def n_lanes(batch: int) -> int:
    """Recordings at a time in a process that computes ``batch`` windows at a time; 1 without."""
    return LANES_PER_ROW * batch if batch > 1 else 1


def check_batch(manifest: Manifest) -> None:
    """Whether a model's windows can be computed several at a time.

    Args:
        manifest: The model's.

    Raises:
        InputError: It is causal.
    """
    if manifest.causal is not None:
        raise InputError(
            f"{manifest.name} is a causal model, which has no windows to batch: leave --batch away, "
            "or use a model for recordings"
        )


def serve_lanes(pipes: Sequence[Connection], engine: Engine) -> None:
    """Work until the parent closes the pipes, on one recording for each at a time.

    What goes through a pipe is what ``worker.serve`` says.

    Args:
        pipes: To the parent.
        engine: What to open; its ``batch`` windows are computed at a time.
    """
    start_process()
    log = logging.getLogger("dvpd")
    log.setLevel(logging.INFO)
    first = Sender(pipes[0])
    log.addHandler(first)
    try:
        opened = engine.open()
        try:
            check_batch(opened.manifest)
        except InputError:
            opened.close()
            raise
    except Exception as error:
        pipes[0].send(("broken", explain(error)))
        return
    finally:
        log.removeHandler(first)
    settle()
    with opened:
        batches = _batches(opened, engine.batch)
        threads = [
            threading.Thread(target=_walk, args=(pipe, engine, opened, batches)) for pipe in pipes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _batches(opened: Enhancer, size: int) -> Batches:
    signal, plan = opened.manifest.signal, opened.window_plan
    return Batches(opened.backend, size, padded_frames(signal.n_frames(plan.window_samples)))


def _walk(pipe: Connection, engine: Engine, opened: Enhancer, batches: Batches) -> None:
    """One recording after the other."""
    own = threading.get_ident()
    sender = Sender(pipe)
    sender.addFilter(lambda record: record.thread == own)
    logging.getLogger("dvpd").addHandler(sender)
    with pipe, contextlib.suppress(EOFError, OSError):
        pipe.send(("ready", {"backend": opened.backend.name, "device": opened.backend.device}))
        while True:
            task: Task = pipe.recv()
            with batches.lane() as lane:  # an Enhancer each: one computes one window at a time
                enhancer = Enhancer(opened.manifest, lane, opened.window_plan)
                done = answer(task, enhancer, engine, pipe.send)
            pipe.send(done)
    logging.getLogger("dvpd").removeHandler(sender)


__all__ = ["LANES_PER_ROW", "check_batch", "n_lanes", "serve_lanes"]
