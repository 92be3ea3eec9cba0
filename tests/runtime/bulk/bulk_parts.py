"""Workers that are threads, and an enhancer that turns bytes round: jobs without networks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

from dvpd.runtime import InputError
from dvpd.runtime.bulk import pool, run
from dvpd.runtime.bulk.here import work_here
from dvpd.runtime.bulk.journal import Journal
from dvpd.runtime.bulk.plan import folder_plan
from dvpd.runtime.bulk.worker import Engine, answer
from dvpd.runtime.enhancer import EnhancedFile
from dvpd.runtime.files import write_whole
from dvpd.runtime.progress import Progress

ENGINE = Engine(Path("none"), "ort", "cpu", 1, False, {"salvage": False})


def turned(data: bytes) -> bytes:
    return data[::-1]


class FakeEnhancer:
    backend = SimpleNamespace(name="fake", device="cpu")
    manifest = SimpleNamespace(name="fake", version="1", precision="fp32")

    def enhance_file(self, source, target, *, part=None, progress=None, **options):
        data = Path(source).read_bytes()
        if data == b"deadly":
            raise SystemExit
        if data == b"killing":
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"hanging":
            time.sleep(600)
        if data == b"bad":
            raise InputError(f"{source}: no recording; {target} was not written")
        if data == b"growing":
            Path(source).write_bytes(b"growing more")
        if data == b"full disk":
            raise InputError(f"{target}: No space left on device; nothing was left there")
        progress(0.5)
        write_whole(target, turned(data), overwrite=False)
        return EnhancedFile(target, 16000, 1, 16000, "WAV", "PCM_16", 0, 4, 0.5, peaks=(0.5,))


def wait_for_threads(engine: Engine) -> None:
    """Until another process has nothing to do."""
    limit = time.monotonic() + 30.0
    while engine.share.value == 1 and time.monotonic() < limit:
        time.sleep(0.01)
    assert engine.share.value == 2


def serve(pipe: Connection, engine: Engine) -> None:
    """``worker.serve`` with another enhancer; what is deadly ends it."""
    pipe.send(("ready", {"backend": "fake", "device": "cpu"}))
    try:
        while True:
            task = pipe.recv()
            if task.job.source.name == "last.wav":
                wait_for_threads(engine)
            pipe.send(answer(task, FakeEnhancer(), engine, pipe.send))
    except (EOFError, OSError, SystemExit):
        pipe.close()


class ThreadContext:
    """Of multiprocessing, as far as the pool uses it."""

    Pipe = staticmethod(multiprocessing.Pipe)

    class Process(threading.Thread):
        exitcode = -9

        def __init__(self, target, args, daemon):
            pipe = Connection(os.dup(args[0].fileno()))  # the parent closes its own
            super().__init__(target=target, args=(pipe, *args[1:]), daemon=daemon)

        def kill(self):
            pass


def use_threads(monkeypatch=None):
    """Let the pool start threads."""
    fake = SimpleNamespace(get_context=lambda kind: ThreadContext)
    if monkeypatch is None:
        pool.multiprocessing = fake
    else:
        monkeypatch.setattr(pool, "multiprocessing", fake)


def do(root, out, rules, *, n=1, settings=None, said=None, engine=ENGINE, journal=None):
    """One run over a folder; returns it, and its results by the input's name."""
    if journal is None:
        out.mkdir(exist_ok=True)
    plan = folder_plan(root, out, [], True)
    said = [] if said is None else said
    with Journal(out, journal) as opened, pool.Pool(n, engine, serve) as workers:
        rules, stages = run.Rules(**rules), out / ".dvpd" / "parts"
        done = run.Run(opened, plan, settings or {"steps": 3}, rules, stages, said.append)
        work_here(done, workers, Progress("x"))
        done.n_workers = len(workers.workers)
        results = {r["path"].rpartition("/")[2]: r for r in done.results()}
    return done, results
