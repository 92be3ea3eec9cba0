"""Measure a set in parallel: each process opens the model for itself, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..runtime.enhancer import Enhancer
from ..runtime.errors import DvpdError, InputError
from ..runtime.taken import OUTPUT_RANGE_DB
from .metrics import Meter
from .models import System, enhance_systems, open_model
from .pairs import PairFile, fingerprint, read_pair
from .pauses import find_speech

Progress = Callable[[int, int, int], None]
# Read by NumPy's, SciPy's and PyTorch's libraries when a process loads them.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Task:
    """What to do with each pair; a process rebuilds everything from it.

    Attributes:
        model: Checkpoint or engine folder.
        backend: See ``open_model``.
        device: See ``open_model``.
        threads: CPU threads of each process's model.
        systems: Samplers, besides the noisy input and the predictive branch alone.
        seed: Seed of the sampler's noise.
        metrics: Names of the measures.
        dnsmos: Folder of the DNSMOS models, or None.
        wv_mos: WV-MOS model, or None.
        reference: Whether the set has clean recordings.
    """

    model: str
    backend: str = "auto"
    device: str = "auto"
    threads: int = 1
    systems: tuple[System, ...] = ()
    seed: int = 0
    metrics: tuple[str, ...] = ("pesq", "estoi", "si_sdr")
    dnsmos: str | None = None
    wv_mos: str | None = None
    reference: bool = True

    def open(self) -> Enhancer:
        """Open the model.

        Raises:
            DvpdError: It cannot be opened.
        """
        return open_model(self.model, self.backend, self.device, self.threads)


def measure_pair(
    enhancer: Enhancer, meter: Meter, pair: PairFile, systems: Sequence[System], seed: int = 0
) -> dict[str, Any]:
    """Enhance one pair by every system and measure all of them.

    Args:
        enhancer: From ``open_model``.
        meter: The measures.
        pair: The pair.
        systems: From ``sampler_grid``.
        seed: Seed of the sampler's noise.

    Returns:
        "name", "group", "sha256" of both files, and "figures": system -> measure -> number.

    Raises:
        DvpdError: The pair cannot be used, or the model fails.
    """
    noisy, clean = read_pair(pair)
    outputs = enhance_systems(enhancer, noisy, systems, seed)
    speech = pair.speech
    if clean is None:  # one for all systems: their figures are of the same stretches
        speech = find_speech(outputs["predictive"], OUTPUT_RANGE_DB)
    figures = {system: meter(clean, wav, noisy, speech) for system, wav in outputs.items()}
    sha256 = fingerprint(pair)
    return {"name": pair.name, "group": pair.group, "sha256": sha256, "figures": figures}


@cache
def _opened(task: Task) -> tuple[Enhancer, Meter]:
    return task.open(), Meter(task.metrics, task.dnsmos, task.wv_mos, task.reference)


def _measure(task: Task, pair: PairFile) -> dict[str, Any]:
    """A record, or name and error: no exception, as some do not survive the way back."""
    try:
        return measure_pair(*_opened(task), pair, task.systems, task.seed)
    except (DvpdError, OSError) as error:
        return {"name": pair.name, "error": str(error)}
    except Exception as error:  # a fault in a library must not cost the other files
        return {"name": pair.name, "error": f"{type(error).__name__}: {error}"}


def _start_worker() -> None:
    # Ctrl-C reaches the whole group; ending the workers is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed parent leaves no orphans

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _later_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they inherit that, and stay quiet as they load."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure_set(
    task: Task, pairs: Sequence[PairFile], jobs: int = 1, progress: Progress | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Enhance and measure pairs in ``jobs`` processes; figures do not depend on how many.

    Args:
        task: What to do.
        pairs: With what.
        jobs: Processes.
        progress: Called with (pairs done, pairs in all, failed).

    Returns:
        Records (see ``measure_pair``) and failures ("name", "error"), both in the order of
        ``pairs``. A process that dies costs the file it was working on.

    Raises:
        InputError: ``jobs`` is no positive number.
    """
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; expected at least 1")
    results: dict[str, dict[str, Any]] = {}

    def take(future: Future[dict[str, Any]], pair: PairFile) -> None:
        results[pair.name] = future.result()
        if progress:
            failed = sum("error" in result for result in results.values())
            progress(len(results), len(pairs), failed)

    with _single_threaded_children():
        try:
            with _Pool(min(jobs, max(len(pairs), 1))) as pool:
                futures = {pool.submit(_measure, task, pair): pair for pair in pairs}
                for future in as_completed(futures):
                    take(future, futures[future])
        except BrokenProcessPool:
            # Which file it was cannot be known from many at once: the rest goes one by one.
            rest = iter([pair for pair in pairs if pair.name not in results])
            while len(results) < len(pairs):
                with _Pool(1) as pool, suppress(BrokenProcessPool):
                    for pair in rest:
                        # Stands unless the process lives to replace it.
                        died = "the process died while it worked on this file (out of memory?)"
                        results[pair.name] = {"name": pair.name, "error": died}
                        take(pool.submit(_measure, task, pair), pair)
    ordered = [results[pair.name] for pair in pairs]
    return [r for r in ordered if "error" not in r], [r for r in ordered if "error" in r]


class _Pool(ProcessPoolExecutor):
    """Processes that are spawned (threads do not survive a fork) and ended on an exception."""

    def __init__(self, jobs: int) -> None:
        context = multiprocessing.get_context("spawn")
        super().__init__(jobs, mp_context=context, initializer=_start_worker)
        self._others = set(multiprocessing.active_children())

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        with _later_interrupts():
            return super().submit(*args, **kwargs)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:  # not even the files in progress are waited for
            for child in set(multiprocessing.active_children()) - self._others:
                child.terminate()
        self.shutdown(wait=True, cancel_futures=kind is not None)
