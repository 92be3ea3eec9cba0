"""A program: kill a run at each of its steps, run again, and print what is there then.

It forks for each step, before any thread is started. Arguments: an empty folder.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from bulk_parts import ENGINE, do, use_threads

from dvpd.runtime import files
from dvpd.runtime.bulk import journal
from dvpd.runtime.bulk.run import Run

LATER = replace(ENGINE, flush=False)  # as the command has it
NAMES = ("a.wav", "b.wav", "c.wav", "s/d.wav", "s/e.wav")  # a group of four, and one
RULES = ("resume", "overwrite")


def armed(function, die_at, count):
    """The function, with a step before it and one after it."""

    def step():
        count[0] += 1
        if count[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def call(*args, **options):
        step()
        result = function(*args, **options)
        step()
        return result

    return call


def child(root, out, rules, die_at):
    """Run in a process of its own; returns its status, its steps, and its groups' sizes."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reader)
        count = [0]
        journal.Journal._write = armed(journal.Journal._write, die_at, count)
        for name in ("link", "unlink", "replace", "fsync"):
            setattr(files.os, name, armed(getattr(os, name), die_at, count))
        groups, name_made = [], Run.name_made
        Run.name_made = lambda run: groups.append(len(run._made)) or name_made(run)
        use_threads()
        do(root, out, rules, engine=LATER)
        os.write(writer, json.dumps([count[0], [n for n in groups if n]]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        steps, groups = json.loads(stream.read() or b"[0, []]")
    return os.waitpid(pid, 0)[1], steps, groups


def state(out):
    """Outputs, how often each was finished, and what else lies about."""
    with sqlite3.connect(out / ".dvpd" / "journal.sqlite") as db:
        times = [n for (n,) in db.execute("SELECT times FROM jobs")]
        runs = db.execute("SELECT count(*) FROM runs").fetchone()[0]
    db.close()
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    journals = {name for name in found if name.startswith(".dvpd/journal.sqlite")}
    whole = all((out / n).read_bytes() == n.encode()[::-1] for n in NAMES if n in found)
    return {
        "whole": whole, "missing": sorted(set(NAMES) - found), "times": times, "runs": runs,
        "more": sorted(found - set(NAMES) - journals),
    }  # fmt: skip


def main():
    base = Path(sys.argv[1])
    root = base / "in"
    (root / "s").mkdir(parents=True)
    for name in NAMES:
        (root / name).write_bytes(name.encode())
    _, steps, groups = child(root, base / "all", {"resume": True}, 0)
    rows = []
    for die_at in range(1, steps + 1):
        for overwrite in (False, True)[: 2 if die_at % 3 == 0 else 1]:
            out = base / f"{die_at}-{overwrite}"
            rules = {"resume": True, "overwrite": overwrite}
            died, *_ = child(root, out, rules, die_at)
            between = state(out)["whole"] if (out / ".dvpd" / "journal.sqlite").exists() else True
            again, *_ = child(root, out, rules, 0)
            rows.append({"died": died, "between": between, "again": again, **state(out)})
    both = base / "both"
    both.mkdir()
    many = base / "many"
    many.mkdir()
    for index in range(30):
        (many / f"{index}.wav").write_bytes(b"%d" % index)
    pids = []
    for _ in range(2):
        if (pid := os.fork()) == 0:
            use_threads()
            do(many, both, {"resume": True}, n=2, engine=LATER)
            os._exit(0)
        pids.append(pid)
    ended = [os.waitpid(pid, 0)[1] for pid in pids]
    whole = all((both / p.name).read_bytes() == p.read_bytes()[::-1] for p in many.iterdir())
    two = {**state(both), "ended": ended, "whole": whole}
    print(json.dumps({"groups": groups, "rows": rows, "two": two}))


if __name__ == "__main__":
    main()
