"""A job's bookkeeping: claim, give the output its name, note it; and wait for other runs.

A disk takes about as long to make one short file safe as dozens. So what is short is claimed, made
safe, named and noted in groups, each step for all of a group; see ``Run.name_made``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..command import explain
from ..errors import InputError
from ..files import flush_files
from ..progress import Progress
from . import places
from .journal import POISON_ATTEMPTS, Journal
from .plan import Job, Plan
from .rows import Made, Row, fresh, held, named, same_output, same_source
from .worker import Task, hung, trace_of

PARTS = "parts"
# A group: at most so many outputs, seconds of computing (which a kill would lose), seconds of waiting.
_MOST, _MOST_WORK_S, _MOST_WAIT_S = 64, 2.0, 1.0
_CLAIM, _CLAIM_BYTES = 32, 1 << 20  # claimed at a time, at most: another run may want some
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
    """One run over the jobs of a plan: what is given out, and what comes back.

    Attributes:
        journal: Open.
        plan: Checked.
        settings: What decides the outputs beside the recordings.
        rules: About files that are there.
        stages: The folder of outputs that have no name yet, for all runs.
        say: Gets one line about each file that fails.
        counts: How far it is.
        stopped: Why the run ended early.
        n_left: Jobs that wait to be given out.
        opened: "backend" and "device" of the first engine.
    """

    journal: Journal
    plan: Plan
    settings: dict[str, Any]
    rules: Rules
    stages: Path
    say: Callable[[str], None]
    counts: Counts = field(default_factory=Counts)
    stopped: str = ""
    n_left: int = 0
    opened: dict[str, Any] = field(default_factory=dict)
    _first: deque[Job] = field(default_factory=deque)  # lost by no fault of theirs
    _again: deque[Job] = field(default_factory=deque)
    _busy: list[Job] = field(default_factory=list)
    _claimed: deque[Task] = field(default_factory=deque)
    _made: list[tuple[Job, Made, dict[str, Any]]] = field(default_factory=list)  # without names
    _made_s: float = 0.0  # seconds of computing in them
    _since: float = 0.0  # when the first of them was made
    _n_given: int = 0

    def first_look(self) -> None:
        """Settle what needs no engine; nothing is claimed yet."""
        alive = self.journal.others()
        for job in self.plan.jobs():
            self.journal.beat()
            self._settled(job, self.journal.row(job.target), alive)
        self.n_left, n_bytes = self.plan.left()
        self._total = max(n_bytes, 1)
        self._n_all = self.counts.settled + self.n_left
        self._jobs = self.plan.jobs(left=True)
        self._stages = self.stages / str(self.journal.run)

    @contextlib.contextmanager
    def open(self) -> Iterator[Run]:
        """Look at what is there, and have a folder for outputs that have no name yet."""
        self.first_look()
        self._remove_stages_of_the_dead()
        try:
            if self.n_left:
                self._stages.mkdir(parents=True, exist_ok=True)
            yield self
            self.name_made()
        finally:
            self.counts.left = self.n_left + len(self._busy)
            places.remove_folder(self._stages)

    def longest_first(self) -> None:
        """Give out large files before small ones: a long one that comes last is waited for alone."""
        self._jobs = self.plan.largest_first()

    def next_task(self) -> Task | None:
        """A job that is claimed.

        Returns:
            None if none is left but those of other runs.
        """
        while self.n_left and not self.stopped:
            self.journal.beat()
            if self._first:
                self._claimed.extendleft(self._claim([self._first.popleft()]))
            elif not self._claimed:
                if not (jobs := self._some()):
                    break
                self._claimed.extend(self._claim(jobs))
            if self._claimed:
                self.n_left -= 1
                return self._claimed.popleft()
        return None

    def _some(self) -> list[Job]:
        """The next jobs: several where they are short."""
        found: list[Job] = []
        n_bytes = 0
        while len(found) < _CLAIM and n_bytes < _CLAIM_BYTES:
            if (job := next(self._jobs, None)) is None:
                if not self._again:
                    break
                job = self._again.popleft()
            found.append(job)
            n_bytes += job.n_bytes
        return found

    def _claim(self, jobs: list[Job]) -> list[Task]:
        """Claim those of some jobs that are to be done and free."""
        alive = self.journal.others()
        free: list[tuple[Job, Row | None]] = []
        for job in map(fresh, jobs):
            row = self.journal.row(job.target)
            if self._settled(job, row, alive):
                self.counts.bytes += job.n_bytes
                self.n_left -= 1
            elif row is not None and held(row, alive):
                self._busy.append(job)
                self.n_left -= 1
            else:
                free.append((job, row))
        tasks = []
        with self.journal.together():
            for job, row in free:
                if self.journal.claim(job, job.key(self.settings), row):
                    self._n_given += 1
                    staged = self._stages / f"{self._n_given}{job.target.suffix.lower()}"
                    tasks.append(Task(job, staged))
                else:
                    self._busy.append(job)
                    self.n_left -= 1
        return tasks

    def look_again(self) -> bool:
        """What other runs were at: it is done, or free, in a while.

        Returns:
            Whether there is any.
        """
        self._again.extend(self._busy)
        self.n_left += len(self._busy)
        self._busy.clear()
        return bool(self.n_left) and not self.stopped

    def tick(self, progress: Progress, parts: float = 0.0) -> None:
        """Give a sign of life, name what has waited long enough, and show how far the whole is.

        Args:
            progress: Of the whole.
            parts: What is done of the recordings that are worked on (bytes).
        """
        self.journal.beat()
        if self._made and time.monotonic() - self._since >= _MOST_WAIT_S:
            self.name_made()
        share = min((self.counts.bytes + parts) / self._total, 1.0)
        hours = self.counts.seconds / 3600
        if share > 0.0:
            note = f"{self.counts.settled} of {self._n_all} files, {hours:.2f} h of audio"
            progress(share, note)

    def _settled(self, job: Job, row: Row | None, alive: dict[int, str]) -> bool:
        """Whether there is nothing to do for a job, and why."""
        if row is not None and held(row, alive):
            return False
        if row is not None and row.state == "placing" and named(job, row):
            row = self.journal.row(job.target) if self.journal.done(job.target, row.run) else row
        there = places.is_there(job.target)
        ours = row is not None and row.run == self.journal.run
        if row is not None and (self.rules.resume or self.rules.skip_existing or ours):
            same = row.key == job.key(self.settings) and same_source(job, row)
            if row.state == "poison" and same:
                self.counts.failed += 1
                self.say(f"{job.source}: is set aside: {json.loads(row.result or '{}')['error']}")
                self.plan.settle(job)
                return True
            if row.state == "done" and same and there and same_output(job, row):
                self.counts.before += 1
                self.plan.settle(job)
                return True
        if not there or self.rules.overwrite:
            return False
        if self.rules.skip_existing:
            self.counts.skipped += 1
            self.plan.settle(job, {"state": "skipped"})
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

    def hear(self, task: Task, message: tuple[Any, ...]) -> None:
        """Take what became of a task.

        Args:
            task: The task.
            message: ("done", Made, result), ("failed", reason, kind), ("died", reason, whether
                the process was asked to end), or ("poison", reason).
        """
        job, kind = task.job, message[0]
        if kind == "died":
            if (count := self.journal.died(job, asked=message[2])) < POISON_ATTEMPTS:
                (self._first if message[2] else self._again).append(job)
                self.n_left += 1
                return
            reason = hung(trace_of(task.staged)) or message[1]
            self._failed(job, f"{job.source}: {reason}, {count} times", "poison")
        elif kind == "poison":
            self._failed(job, message[1], "poison")
        elif kind == "failed":
            self._gone_wrong(job, message[1], message[2])
        else:
            self._since = self._since if self._made else time.monotonic()
            self._made.append((job, *message[1:]))
            self._made_s += message[2]["seconds"]
            if len(self._made) >= _MOST or self._made_s >= _MOST_WORK_S:
                self.name_made()
        self.counts.bytes += job.n_bytes

    def name_made(self) -> bool:
        """Give the outputs that are made their names; returns whether there were any.

        Each step is done for all of them before the next one begins: their bytes are on the disk;
        the journal knows their hashes, on the disk; they have their names, on the disk; the journal
        knows that.
        """
        if not self._made:
            return False
        group, self._made, self._made_s = self._made, [], 0.0
        lost = flush_files(made.path for _, made, _ in group if not made.safe)
        kept = [entry for entry in group if entry[1].path not in lost]
        named = []
        with self.journal.together(durable=True):
            ours = [self.journal.placing(*entry) for entry in kept]
        for is_ours, (job, made, result) in zip(ours, kept, strict=True):
            if not is_ours:
                self.counts.before += 1  # it took so long that another run has taken it over
                self.plan.settle(job)
                continue
            try:
                mtime_ns = places.name_it(made.path, job.target, overwrite=self.rules.overwrite)
                named.append((job, result, mtime_ns))
            except (InputError, OSError) as error:
                self._failed(job, explain(error), type(error).__name__)
        places.names_are_safe(job.target for job, _, _ in named)
        with self.journal.together():
            for job, _, mtime_ns in named:
                self.journal.done(job.target, self.journal.run, mtime_ns)
        for job, made, _ in group:
            if (reason := lost.get(made.path)) is not None:
                why = f"{job.target}: cannot write ({reason.strerror or reason})"
                self._gone_wrong(job, why, "InputError")
        for job, result, _ in named:
            self.plan.settle(job)
            self.counts.done += 1
            self.counts.seconds += result["duration_s"]
            self.opened = self.opened or {key: result[key] for key in ("backend", "device")}
            for thing in result["left"]:
                self.say(f"{job.target}: {thing} of {job.source} could not be carried over")
        return True

    def _gone_wrong(self, job: Job, said: str, kind: str) -> None:
        """An output that could not be made; a full disk ends the run."""
        if any(reason in said for reason in _FULL):
            self.stopped = f"{said}: free space, and run again with --resume"
        self._failed(job, said, kind)

    def _failed(self, job: Job, said: str, kind: str, *, known: bool = True) -> None:
        self.counts.failed += 1
        self.say(said)
        result = {"error": said, "kind": kind}
        if known:
            self.plan.settle(job)
            self.journal.fail(job, result, "poison" if kind == "poison" else "failed")
        else:
            self.plan.settle(job, {"state": "refused", **result})

    def _remove_stages_of_the_dead(self) -> None:
        alive = {str(run) for run in self.journal.others()}
        for path in self.stages.iterdir() if self.stages.is_dir() else ():
            if path.name not in alive:
                places.remove_folder(path)

    def results(self) -> Iterator[dict[str, Any]]:
        """What became of every job: from this run, earlier ones and others."""
        yield from self.plan.refused()
        for job, known in self.plan.outcomes():
            head: dict[str, Any] = {"path": str(job.source), "output": str(job.target)}
            if job.part:
                head |= dict(zip(("start", "duration"), job.part, strict=True))
            if known is not None:
                yield {**head, **known}
                continue
            row = self.journal.row(job.target)
            if row is None or row.state in ("claimed", "placing"):
                yield {**head, "state": "left"}
                continue
            result = json.loads(row.result) if row.result else {}
            if row.state == "done":
                result |= {"content_sha256": row.content, "output_sha256": row.out_sha256}
            yield {**head, "state": row.state, **result}
