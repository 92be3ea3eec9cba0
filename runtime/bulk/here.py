"""A job on this machine: the tasks of a run, given to the processes of a pool."""

from __future__ import annotations

from ..progress import Progress
from .pool import Pool
from .run import Run

_WAIT_S = 0.5


def work_here(run: Run, pool: Pool, progress: Progress) -> None:
    """Do the jobs of a run.

    Args:
        run: The run.
        pool: Not started; it starts if there is something to do.
        progress: Of the whole.
    """
    with run.open():
        if run.n_left:
            pool.start(run.n_left)
        if len(pool.workers) > 1:
            run.longest_first()
        while True:
            for worker in pool.workers:
                if worker.idle and (task := run.next_task()) is not None:
                    worker.give(task)
            pool.share_cores(more=bool(run.n_left))
            working = [w for w in pool.workers if w.task is not None]
            if not working and run.name_made():
                run.tick(progress)
            # all that is left may be another run's
            if not working and (run.stopped or (not run.n_left and not run.look_again())):
                break
            for worker, message in pool.wait(_WAIT_S):
                if message[0] == "said":
                    # each worker opens the same engine: one of them tells of it
                    if worker.task is not None or (worker.index == 0 and not pool.opened):
                        run.say(message[1])
                    continue
                assert worker.task is not None
                task, worker.task = worker.task, None
                run.hear(task, message)
            run.opened = pool.opened
            run.tick(progress, sum(w.share * w.task.job.n_bytes for w in pool.workers if w.task))
