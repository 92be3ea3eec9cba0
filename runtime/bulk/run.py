"""The loop of a job: claim, hand out, give the output its name, note it; and wait for others."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..command import explain
from ..errors import InputError
from ..files import give_name
from ..progress import Progress
from .journal import POISON_ATTEMPTS, Journal
from .plan import Job
from .pool import Pool, Worker
from .rows import Row, fresh, held, named, same_output, same_source
from .worker import Task

_WAIT_S = 0.5
PARTS = "parts"
_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)))


@dataclass(frozen=True)
class Rules:
    """What may happen to files that are there.

    Attributes:
        overwrite: They may be replaced.
        skip_existing: They are left, and that is no failure.
        resume: What the journal says is done is done; a job may be shared with another run.
    """

    overwrite: bool = False
    skip_existing: bool = False
    resume: bool = False


@dataclass
class Counts:
    """How far a job is, by files; ``seconds`` of audio (s) that this run has enhanced."""

    done: int = 0
    before: int = 0  # by an earlier run, or by another one meanwhile
    skipped: int = 0
    failed: int = 0
    left: int = 0  # not tried, as the disk is full
    seconds: float = 0.0
    bytes: int = 0

    @property
    def settled(self) -> int:
        """Files of which there is nothing more to do."""
        return self.done + self.before + self.skipped + self.failed


@dataclass
class Run:
    """One run over the jobs of a plan.

    Attributes:
        journal: Open.
        settings: What decides the outputs beside the recordings.
        rules: About files that are there.
        pool: Not started; it starts with the first job that has to be done.
        say: Gets one line about each file that fails.
        counts: How far it is.
        outcomes: Of targets that the journal does not know or that this run left alone: for the
            results.
        stopped: Why the run ended early.
    """

    journal: Journal
    settings: dict[str, Any]
    rules: Rules
    pool: Pool
    say: Callable[[str], None]
    counts: Counts = field(default_factory=Counts)
    outcomes: dict[Path, dict[str, Any]] = field(default_factory=dict)
    stopped: str = ""

    def first_look(self, jobs: list[Job]) -> list[Job]:
        """Settle what needs no engine; nothing is claimed yet.

        Args:
            jobs: All of the plan.

        Returns:
            Those that are left.
        """
        alive = self.journal.others()
        return [job for job in jobs if not self._settled(job, self.journal.row(job.target), alive)]

    def work(self, jobs: list[Job], progress: Progress) -> None:
        """Do the jobs.

        Args:
            jobs: From ``first_look``.
            progress: Of the whole.
        """
        waiting, busy = deque(jobs), list[Job]()
        total = max(sum(job.n_bytes for job in jobs), 1)
        n_all = self.counts.settled + len(jobs)
        self._stages = self.journal.folder / PARTS / str(self.journal.run)
        self._remove_stages_of_the_dead()
        try:
            if jobs:
                self._stages.mkdir(parents=True)
                self.pool.start(len(jobs))
            while True:
                self._hand_out(waiting, busy)
                working = [w for w in self.pool.workers if w.task is not None]
                if not working and (self.stopped or not (waiting or busy)):
                    break
                if not waiting and not working:  # all that is left is another run's
                    waiting.extend(busy)  # is it done, or free, in a while?
                    busy.clear()
                for worker, message in self.pool.wait(_WAIT_S):
                    self._hear(worker, message, waiting)
                self.journal.beat()
                parts = sum(w.share * w.task.job.n_bytes for w in self.pool.workers if w.task)
                share = min((self.counts.bytes + parts) / total, 1.0)
                hours = self.counts.seconds / 3600
                if share > 0.0:
                    note = f"{self.counts.settled} of {n_all} files, {hours:.2f} h of audio"
                    progress(share, note)
        finally:
            self.counts.left = len(waiting) + len(busy)
            shutil.rmtree(self._stages, ignore_errors=True)

    def _hand_out(self, waiting: deque[Job], busy: list[Job]) -> None:
        """Give every idle worker something to do."""
        for worker in self.pool.workers:
            while worker.idle and waiting:
                if self.stopped:
                    return
                job = fresh(waiting.popleft())
                row, alive = self.journal.row(job.target), self.journal.others()
                if self._settled(job, row, alive):
                    self.counts.bytes += job.n_bytes
                elif (row is not None and held(row, alive)) or not self.journal.claim(
                    job, job.key(self.settings), row
                ):
                    busy.append(job)
                else:
                    staged = self._stages / f"{worker.index}{job.target.suffix.lower()}"
                    staged.unlink(missing_ok=True)
                    worker.give(Task(job, staged))

    def _settled(self, job: Job, row: Row | None, alive: dict[int, str]) -> bool:
        """Whether there is nothing to do for a job, and why."""
        if row is not None and held(row, alive):
            return False
        if row is not None and row.state == "placing" and named(job, row):
            row = self.journal.row(job.target) if self.journal.done(job.target, row.run) else row
        there = os.path.lexists(job.target)
        ours = row is not None and row.run == self.journal.run
        if row is not None and (self.rules.resume or self.rules.skip_existing or ours):
            same = row.key == job.key(self.settings) and same_source(job, row)
            if row.state == "poison" and same:
                self.counts.failed += 1
                self.say(f"{job.source}: is set aside: {json.loads(row.result or '{}')['error']}")
                return True
            if row.state == "done" and same and there and same_output(job, row):
                self.counts.before += 1
                return True
        if not there or self.rules.overwrite:
            return False
        if self.rules.skip_existing:
            self.counts.skipped += 1
            self.outcomes[job.target] = {"state": "skipped"}
            return True
        why = "exists already and is not replaced without permission"
        if row is not None and row.state == "done":
            why = (
                "was made from another recording or with other settings, or has been changed since"
            )
        error = InputError(
            f"{job.target}: {why}: --overwrite makes it again, --skip-existing leaves it"
        )
        self._failed(job, str(error), "InputError", known=False)
        return True

    def _hear(self, worker: Worker, message: tuple[Any, ...], waiting: deque[Job]) -> None:
        kind = message[0]
        if kind == "said":
            # each worker opens the same engine: one of them tells of it
            if worker.task is not None or (worker.index == 0 and not self.pool.opened):
                self.say(message[1])
            return
        assert worker.task is not None
        job, staged = worker.task.job, worker.task.staged
        worker.task = None
        if kind == "died":
            if (count := self.journal.died(job, asked=message[2])) < POISON_ATTEMPTS:
                if message[2]:
                    waiting.appendleft(job)
                else:
                    waiting.append(job)
                return
            self._failed(job, f"{job.source}: {message[1]}, {count} times", "poison")
        elif kind == "failed":
            if any(reason in message[1] for reason in _FULL):
                self.stopped = f"{message[1]}: free space, and run again with --resume"
            self._failed(job, message[1], message[2])
        else:
            self._place(job, staged, *message[1:])
        self.counts.bytes += job.n_bytes

    def _place(self, job: Job, staged: Path, made: Any, result: dict[str, Any]) -> None:
        if not self.journal.placing(job, made, result):
            self.counts.before += 1  # it took so long that another run has taken it over
            return
        try:
            target = Path(os.path.realpath(job.target))
            target.parent.mkdir(parents=True, exist_ok=True)
            give_name(staged, target, overwrite=self.rules.overwrite)
        except (InputError, OSError) as error:
            self._failed(job, explain(error), type(error).__name__)
            return
        self.journal.done(job.target, self.journal.run)
        self.counts.done += 1
        self.counts.seconds += result["duration_s"]
        for thing in result["left"]:
            self.say(f"{job.target}: {thing} of {job.source} could not be carried over")

    def _failed(self, job: Job, said: str, kind: str, *, known: bool = True) -> None:
        self.counts.failed += 1
        self.say(said)
        result = {"error": said, "kind": kind}
        if known:
            self.journal.fail(job, result, "poison" if kind == "poison" else "failed")
        else:
            self.outcomes[job.target] = {"state": "refused", **result}

    def _remove_stages_of_the_dead(self) -> None:
        alive = {str(run) for run in self.journal.others()}
        folder = self.journal.folder / PARTS
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in alive:
                shutil.rmtree(path, ignore_errors=True)

    def results(self, jobs: list[Job], refused: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What became of every job: from this run, earlier ones and others.

        Args:
            jobs: All of the plan.
            refused: Of the plan.
        """
        yield from refused
        for job in jobs:
            head: dict[str, Any] = {"path": str(job.source), "output": str(job.target)}
            if job.part:
                head |= dict(zip(("start", "duration"), job.part, strict=True))
            if (known := self.outcomes.get(job.target)) is not None:
                yield {**head, **known}
                continue
            row = self.journal.row(job.target)
            if row is None:
                yield {**head, "state": "left"}
                continue
            result = json.loads(row.result) if row.result else {}
            if row.state == "done":
                result |= {"content_sha256": row.content, "output_sha256": row.out_sha256}
            yield {**head, "state": row.state, **result}
