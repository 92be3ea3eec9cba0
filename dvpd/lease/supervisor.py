"""Goes through the phases of a lease; see `dvpd.lease`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .jobs import GRACE_S, Job
from .plan import Command, Model
from .publish import CACHE, RESULT, Publisher
from .rows import Rows, last_of, unfinished
from .work import Work

TICK_S = 0.1
ATTEMPTS = 3  # of a phase that failed, at one rung without progress
RETRY_S = 5.0  # before a phase is tried again that failed before there was anything to do
LOG_BYTES = 200_000  # of each log that come back, from its end
FILE_BYTES = 8 << 20  # of a command's result that comes back
MIB = 1 << 20
Lane = Generator[Job | None, str, None]  # None waits for something else: asked again in a moment


class Supervisor:
    """One lease, from the smoke test to the last publication; started again, it goes on.

    Attributes:
        forked: Whether children share what the supervisor has imported; if the smoke test fails
            like that, they begin as programs of their own.
    """

    def __init__(self, work: Work, lock: int = -1) -> None:
        """Read the plan.

        Args:
            work: A started lease.
            lock: File that children must close.
        """
        self.work, self.lock = work, lock
        self.plan = work.plan()
        self.rows = Rows(work.rows, work.lease["started"])
        self.publisher = Publisher(work.published, int(self.plan.piece_mib * MIB))
        self.forked = True
        self.begun = time.time()
        self.train_end = work.deadline - self.plan.seconds.last
        self._published: dict[str, Any] = {}
        self._next_publication = 0.0
        self._jobs: list[Job] = []
        signal.signal(signal.SIGTERM, lambda *_: work.stop.touch())

    # --- processes ----------------------------------------------------------------------------

    def _job(self, name: str, call: Callable[[], None], limit_s: float, **facts: Any) -> Job:
        limit_s = max(limit_s, 0.0)
        job = Job(name, call, limit_s, self.work.logs / f"{name}.log", self.lock)
        self._jobs.append(job)
        self.rows.add(name, "begin", pid=job.pid, limit_s=round(limit_s, 1), **facts)
        return job

    def _phase(self, name: str, limit_s: float, out: str = "", **more: Any) -> Job:
        """A function of `phases` as a process."""
        words = {"out": out or name, **more}
        (self.work.out / f"{words['out']}.json").unlink(missing_ok=True)
        call: Callable[[], None] = partial(run_phase, self.work, name, words)
        if not self.forked:
            argv = [sys.executable, "-m", "dvpd.lease", "phase", "--work", str(self.work.root)]
            call = partial(os.execv, sys.executable, [*argv, name, json.dumps(words)])
        return self._job(words["out"], call, limit_s, forked=self.forked)

    def _result(self, out: str) -> dict[str, Any]:
        try:
            values = json.loads((self.work.out / f"{out}.json").read_text())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def _over(self) -> bool:
        """Whether no phase may go on: somebody said so, or copying back must begin."""
        return self.work.stop.exists() or time.time() >= self.train_end

    def drive(self, *lanes: Lane) -> None:
        """Run lanes of jobs side by side until all have ended; publishes meanwhile."""
        running: list[tuple[Lane, Job | None]] = []

        def advance(lane: Lane, how: str | None) -> None:
            try:
                running.append((lane, next(lane) if how is None else lane.send(how)))
            except StopIteration:
                pass

        for lane in lanes:
            advance(lane, None)
        while running:
            for lane, job in list(running):
                if job is None:
                    running.remove((lane, job))
                    advance(lane, "")
                    continue
                # A training ends on its own clock, and saves.
                if self.work.stop.exists() or (self._over() and not job.name.startswith("train-")):
                    job.ask_to_end(self._grace())
                how = job.ended()
                if how is not None:
                    running.remove((lane, job))
                    self.rows.add(job.name, "end", pid=job.pid, how=how, **self._result(job.name))
                    self._next_publication = 0.0
                    advance(lane, how)
            self._publish()
            time.sleep(TICK_S)

    def _grace(self) -> float:
        return min(GRACE_S, 0.5 * self.plan.seconds.last)

    # --- phases -------------------------------------------------------------------------------

    def run(self) -> None:
        """All of it; what an earlier supervisor of this lease has done is not repeated."""
        before = self.rows.read()
        again = last_of(before, "lease", "begin") is not None
        for phase, pid in unfinished(before):
            if pid != os.getpid():
                self.rows.add(phase, "end", pid=pid, how="lost")
        self.rows.add("lease", "begin", again=again, **self._describe())
        try:
            if last_of(before, "smoke", "end", how="ok") is None:
                self.drive(self._smoke())
            else:
                self.forked = bool((last_of(before, "smoke", "begin") or {}).get("forked", True))
            others = self._data(), self._commands(before)
            if self.plan.together:
                models = range(len(self.plan.models))
                self.drive(*others, *(self._side_by_side(m) for m in models))
            else:
                self.drive(*others, self._probes(before))
                self.drive(self._train_all(before))
        finally:
            for job in self._jobs:
                job.kill()
            self.rows.add("lease", "end", stopped=self.work.stop.exists())
            self._next_publication = 0.0
            self._publish()

    def _describe(self) -> dict[str, Any]:
        plan = self.plan
        lists: dict[str, tuple[Any, ...]] = {
            "models": plan.models,
            "rungs": plan.rungs,
            "commands": plan.commands,
        }
        names = {key: [item.name for item in items] for key, items in lists.items()}
        return {**names, "seconds": asdict(plan.seconds)}

    def _smoke(self) -> Lane:
        for forked in (True, False):
            self.forked = forked
            if (yield self._phase("smoke", self.plan.seconds.smoke)) == "ok" or self._over():
                return

    def _data(self) -> Lane:
        yield from self._decode()
        self.work.mark_data_over()

    def _decode(self) -> Lane:
        seconds = self.plan.seconds
        until, failures, again = self.begun + seconds.parts, 0, False
        while not self._over():
            # a decoding that was killed begins anew: it needs more than it had
            limit = max(until - time.time(), 0.0) + seconds.data * (1 + failures)
            how = yield self._phase("data", limit, until=until, again=again)
            if how == "ok" or self._over():
                return
            again = any(self.work.data.glob(".*.done"))
            if not again and time.time() >= until:  # nothing came: wait as long again
                until = time.time() + seconds.parts
                continue
            failures += 1
            if failures >= ATTEMPTS:
                return
            pause = time.time() + (0.0 if again else RETRY_S)
            while time.time() < pause and not self._over():
                yield None

    def _commands(self, before: list[dict[str, Any]]) -> Lane:
        for command in self.plan.commands:
            name = f"command-{command.name}"
            if last_of(before, name, "end") is None and not self._over():
                call = partial(_execute, self.work.command(command.name), command)
                yield self._job(name, call, command.seconds)

    def _probes(self, before: list[dict[str, Any]]) -> Lane:
        end = time.monotonic() + self.plan.seconds.probe
        for m in range(len(self.plan.models)):
            yield from self._probe(m, before, end)

    def _probe(self, m: int, before: list[dict[str, Any]], end: float) -> Lane:
        """The last rung first: it is the reference; then from the fastest down to one that works."""
        model, last = self.plan.models[m], len(self.plan.rungs) - 1
        if last_of(before, "choice", "made", model=model.name):
            return
        figures: dict[int, dict[str, Any]] = {}
        for rung in [last, *range(last)] if last else []:
            left = end - time.monotonic()
            if left <= 0.0 or self._over():
                break
            out = f"probe-{model.name}-{rung}"
            yield self._phase("probe", left, out, model=m, rung=rung)
            if found := self._result(out):  # a kill behind it costs no more than the caches
                figures[rung] = found
                if rung != last and self._agrees(figures[rung], figures.get(last)):
                    break  # slower ones need no time
        if not self._over():
            self._choose(model, figures)

    def _agrees(self, found: dict[str, Any], reference: dict[str, Any] | None) -> bool:
        if reference is None or found["crops"] != reference["crops"]:
            return True
        pairs = zip(found["losses"], reference["losses"], strict=True)
        return all(abs(a - b) <= self.plan.tolerance * abs(b) for a, b in pairs)

    def _choose(self, model: Model, figures: dict[int, dict[str, Any]]) -> None:
        last = len(self.plan.rungs) - 1
        good = {r: f for r, f in figures.items() if self._agrees(f, figures.get(last))}
        rate = {r: f["audio_s_per_s"] for r, f in good.items()}
        best = max(rate, key=lambda r: rate[r]) if rate else last
        tried = {self.plan.rungs[r].name: f for r, f in figures.items()}
        refused = [self.plan.rungs[r].name for r in figures if r not in good]
        name = self.plan.rungs[best].name
        self.rows.add(
            "choice", "made", model=model.name, rung=best, name=name, tried=tried, refused=refused
        )

    def _train_all(self, before: list[dict[str, Any]]) -> Lane:
        models = self.plan.models
        for m, model in enumerate(models):
            begin = time.time()
            share = model.share / sum(later.share for later in models[m:])
            yield from self._span(m, before, begin, begin + (self.train_end - begin) * share)

    def _side_by_side(self, m: int) -> Lane:
        """Train a model beside the others; it is compiled while the data come."""
        model, limit = self.plan.models[m], self.plan.seconds.probe
        share = model.share / max(other.share for other in self.plan.models)
        while share < 1.0 and not self._over():  # the others' memory is needed until then
            begin = self.work.begin_of(share, self.train_end)
            if begin is not None and time.time() >= begin - limit:
                break
            yield None
        yield from self._train(m, model, time.time(), self.train_end, rung=0, share=share)

    def _span(self, m: int, before: list[dict[str, Any]], begin: float, end: float) -> Lane:
        """Train a model from begin to end, or as a supervisor before this one had begun."""
        model = self.plan.models[m]
        if last_of(before, "train", "done", model=model.name) or self._over():
            return
        if (old := last_of(before, "train", "span", model=model.name)) is not None:
            begin, end = old["begin"], min(old["until"], self.train_end)
        self.rows.add("train", "span", model=model.name, begin=begin, until=end)
        yield from self._train(m, model, begin, end)
        if not self.work.stop.exists():
            self.rows.add("train", "done", model=model.name)

    def _train(
        self, m: int, model: Model, begin: float, end: float, rung: int | None = None, **more: Any
    ) -> Lane:
        choice = last_of(self.rows.read(), "choice", "made", model=model.name)
        last = len(self.plan.rungs) - 1
        if rung is None:
            rung = last
        if choice:
            rung = choice["rung"]
        failures = 0
        while time.time() < end and not self._over():
            steps = self._steps(model)
            limit = end - time.time() + self._grace()
            out = f"train-{model.name}"
            words = {"model": m, "rung": rung, "begin": begin, "end": end, **more}
            how = yield self._phase("train", limit, out, **words)
            if how == "ok" or self._over():
                return
            failures = 1 if self._steps(model) > steps else failures + 1
            if self._steps(model) == steps and rung < last:
                rung, failures = rung + 1, 0
                self.rows.add("train", "rung", model=model.name, name=self.plan.rungs[rung].name)
            elif failures >= ATTEMPTS:
                return

    def _steps(self, model: Model) -> int:
        row = last_of(self.rows.read(), "train", "saved", model=model.name)
        return row["step"] if row else 0

    # --- publication --------------------------------------------------------------------------

    def _publish(self) -> None:
        """States that are new; results after every phase, every new state, and at times."""
        due = time.monotonic() >= self._next_publication
        for model in self.plan.models:
            folder = self.work.root / "models" / model.name
            if new := self._new([folder / "last.safetensors"]):
                self._published |= new
                due = True
            state = folder / "state.pt"
            if new := self._new([state]):
                # Stamped before it is read: one that is replaced meanwhile is published again.
                if self.publisher.publish(f"state-{model.name}", {"state.pt": state}):
                    self._published |= new
        kept = sorted(self.work.kept.glob("[!.]*"))
        if new := self._new(kept):
            if self.publisher.publish(CACHE, {p.name: p for p in kept}):
                self._published |= new
        if due:
            self._next_publication = time.monotonic() + self.plan.seconds.publish
            self.publisher.publish(RESULT, self._results())

    def _new(self, paths: list[Path]) -> dict[str, tuple[int, int]]:
        """Stamps of the files that were not published as they are."""
        stamps = {str(path): stamp for path in paths if (stamp := _stamp(path)) is not None}
        return {name: s for name, s in stamps.items() if self._published.get(name) != s}

    def _results(self) -> dict[str, bytes | Path]:
        root = self.work.root
        members: dict[str, bytes | Path] = {self.work.rows.name: self.work.rows}
        for model in self.plan.models:
            for name in ("last.safetensors", "log.jsonl"):
                members[f"models/{model.name}/{name}"] = root / "models" / model.name / name
        for path in sorted(self.work.logs.iterdir()):
            members[f"logs/{path.name}"] = path.read_bytes()[-LOG_BYTES:]
        for path in sorted((root / "commands").rglob("*")):
            if path.is_file() and path.stat().st_size <= FILE_BYTES:
                members[path.relative_to(root).as_posix()] = path
        return members


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def run_phase(work: Work, name: str, words: dict[str, Any]) -> None:
    """Run a function of `phases` in this process."""
    from .phases import PHASES

    PHASES[name](work, work.plan(), **words)


def _execute(out: Path, command: Command) -> None:
    """Become the command."""
    words = {"{python}": sys.executable, "{out}": str(out)}
    argv = list(command.argv)
    for name, value in words.items():
        argv = [word.replace(name, value) for word in argv]
    print("+", *argv, flush=True)  # an error of exec does not name the program
    os.execvp(argv[0], argv)


def supervise(work: Work, lock: int = -1) -> int:
    """Run a started lease to its end.

    Args:
        work: Its folder.
        lock: Its lock, as an open file.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work.compiled / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(work.compiled / "triton")
    # What ends a compile process goes to the log of the training that it compiles for.
    os.environ["TORCHINDUCTOR_WORKER_SUPPRESS_LOGGING"] = "0"
    rows = Rows(work.rows, work.lease["started"])
    rows.add("supervisor", "begin", pid=os.getpid())
    try:
        from . import phases  # noqa: F401  # torch, once for all children
    except Exception as error:  # a package is missing: the commands may still run
        rows.add("supervisor", "import failed", why=f"{type(error).__name__}: {error}")
        traceback.print_exc()
    for _ in range(ATTEMPTS):
        try:
            Supervisor(work, lock).run()
            rows.add("supervisor", "end", pid=os.getpid(), how="ok")
            return 0
        except Exception:  # the lease must not end for that: it goes on where it was
            traceback.print_exc()
    return 1
