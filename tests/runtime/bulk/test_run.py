import errno
import os
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import pytest
from bulk_parts import ENGINE, ThreadContext, do, turned, use_threads

from dvpd.runtime import files
from dvpd.runtime.bulk import here, places
from dvpd.runtime.bulk import run as run_module
from dvpd.runtime.bulk.journal import Journal
from dvpd.runtime.bulk.plan import folder_plan
from dvpd.runtime.bulk.pool import Pool


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    use_threads(monkeypatch)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "in"
    (folder / "s").mkdir(parents=True)
    for name in ("a.wav", "b.wav", "s/c.wav"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def outputs(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and ".dvpd" not in path.parts
    }


def times(out):
    with sqlite3.connect(out / ".dvpd" / "journal.sqlite") as db:
        rows = db.execute("SELECT CAST(target AS TEXT), times FROM jobs").fetchall()
    db.close()
    return dict(rows)


ALL = {name: turned(name.encode()) for name in ("a.wav", "b.wav", "s/c.wav")}


@pytest.mark.parametrize("n", [1, 3])
def test_every_file_is_done_once(root, out, n):
    done, results = do(root, out, {}, n=n)
    assert outputs(out) == ALL
    assert (done.counts.done, done.counts.failed, done.counts.seconds) == (3, 0, 3.0)
    result = results["c.wav"]
    assert (result["state"], result["rtf"], result["clipped"]) == ("done", 0.5, 0)
    assert result["peak_dbfs"] == [-6.02]
    assert list((out / ".dvpd" / "parts").iterdir()) == []
    done, _ = do(root, out, {"resume": True}, n=n)
    assert (done.counts.done, done.counts.before) == (0, 3)
    assert done.n_workers == 0  # no engine was opened
    assert set(times(out).values()) == {1}


@pytest.mark.parametrize(("n", "order"), [(1, "abc"), (2, "cab")])
def test_with_several_processes_large_files_are_begun_first(root, out, monkeypatch, n, order):
    (root / "s" / "c.wav").write_bytes(b"larger")
    given, real = [], run_module.Run.next_task

    def next_task(self):
        if (task := real(self)) is not None:
            given.append(task.job.source.stem)
        return task

    monkeypatch.setattr(run_module.Run, "next_task", next_task)
    done, _ = do(root, out, {}, n=n)
    assert (done.counts.done, "".join(given)) == (3, order)


def test_those_that_work_get_the_threads_of_those_that_have_nothing_to_do():
    pool = Pool(4, ENGINE, lambda *args: None)
    shares = []
    for tasks, more in (("xxxx", True), ("xxxx", False), ("xx  ", False), ("x   ", True),
                        ("x   ", False), ("xxx ", False), ("    ", False)):  # fmt: skip
        pool.workers = [SimpleNamespace(task=task.strip() or None) for task in tasks]
        pool.share_cores(more=more)
        shares.append(pool._engine.share.value)
    assert shares == [1, 1, 2, 1, 4, 1, 1]


def test_files_that_are_there_are_refused_left_or_replaced(root, out):
    out.mkdir()
    (out / "a.wav").write_bytes(b"the only take")
    done, results = do(root, out, {})
    assert (done.counts.done, done.counts.failed) == (2, 1)
    assert "exists already" in results["a.wav"]["error"]
    assert (results["a.wav"]["state"], results["a.wav"]["kind"]) == ("refused", "InputError")
    assert outputs(out)["a.wav"] == b"the only take"
    done, results = do(root, out, {"skip_existing": True})
    assert (done.counts.before, done.counts.skipped, done.counts.failed) == (2, 1, 0)
    assert results["a.wav"]["state"] == "skipped"
    assert outputs(out)["a.wav"] == b"the only take"
    done, _ = do(root, out, {"overwrite": True, "resume": True})
    assert (done.counts.done, done.counts.before) == (1, 2)
    assert outputs(out) == ALL
    done, _ = do(root, out, {"overwrite": True})
    assert done.counts.done == 3


def test_another_recording_and_other_settings_are_not_done_before(root, out):
    do(root, out, {})
    (root / "a.wav").write_bytes(b"another")
    os.utime(root / "b.wav")  # touched, but the same
    done, results = do(root, out, {"resume": True})
    assert (done.counts.before, done.counts.failed) == (2, 1)
    assert "another recording or with other settings" in results["a.wav"]["error"]
    done, _ = do(root, out, {"resume": True, "overwrite": True})
    assert (done.counts.before, done.counts.done) == (2, 1)
    assert outputs(out)["a.wav"] == turned(b"another")
    done, _ = do(root, out, {"resume": True}, settings={"steps": 0})
    assert done.counts.failed == 3


def test_an_output_that_was_removed_or_changed(root, out):
    do(root, out, {})
    (out / "a.wav").unlink()
    (out / "b.wav").write_bytes(b"edited")
    done, _ = do(root, out, {"resume": True})
    assert (done.counts.before, done.counts.done, done.counts.failed) == (1, 1, 1)
    assert outputs(out) == ALL | {"b.wav": b"edited"}


def test_a_file_that_fails_does_not_stop_the_others_and_is_tried_again(root, out):
    (root / "a.wav").write_bytes(b"bad")
    said = []
    done, results = do(root, out, {}, said=said)
    assert (done.counts.done, done.counts.failed) == (2, 1)
    assert said == [f"{root / 'a.wav'}: no recording; {out / 'a.wav'} was not written"]
    assert (results["a.wav"]["state"], results["a.wav"]["error"]) == ("failed", said[0])
    (root / "a.wav").write_bytes(b"mended")
    done, _ = do(root, out, {"resume": True})
    assert (done.counts.done, done.counts.before) == (1, 2)


@pytest.mark.parametrize("n", [1, 2])
def test_a_file_that_kills_its_process_is_set_aside(root, out, n):
    (root / "a.wav").write_bytes(b"deadly")
    done, results = do(root, out, {}, n=n)
    assert (done.counts.done, done.counts.failed) == (2, 1)
    assert results["a.wav"]["state"] == "poison"
    assert "was ended by SIGKILL" in results["a.wav"]["error"]
    assert "2 times" in results["a.wav"]["error"]
    said = []
    done, _ = do(root, out, {"resume": True}, said=said)
    assert (done.counts.failed, done.n_workers) == (1, 0)
    assert "is set aside" in said[0]
    (root / "a.wav").write_bytes(b"mended")
    done, _ = do(root, out, {"resume": True})
    assert done.counts.done == 1


def test_a_process_that_was_asked_to_end_does_not_blame_its_file(root, out, monkeypatch):
    (root / "a.wav").write_bytes(b"deadly")
    codes = iter([-15, -15, -15])

    def exitcode(process):
        if (code := next(codes, None)) is None:
            (root / "a.wav").write_bytes(b"harmless")
            return -15
        return code

    monkeypatch.setattr(ThreadContext.Process, "exitcode", property(exitcode))
    done, _ = do(root, out, {})
    assert (done.counts.done, done.counts.failed) == (3, 0)


def test_progress_is_that_of_the_whole(root, out, monkeypatch):
    shown = []

    class Shown:
        def __init__(self, label):
            pass

        def __call__(self, fraction, note=""):
            shown.append((fraction, note))

    monkeypatch.setattr("bulk_parts.Progress", Shown)
    (root / "b.wav").write_bytes(b"x" * 95)
    do(root, out, {})
    fractions = [fraction for fraction, _ in shown]
    assert fractions == sorted(fractions)
    assert shown[-1] == (1.0, "3 of 3 files, 0.00 h of audio")
    assert 0.04 < fractions[0] < 0.06  # by size: the first of the three is short


def test_a_file_that_grows_is_not_done(root, out):
    (root / "a.wav").write_bytes(b"growing")
    done, results = do(root, out, {})
    assert "was changed while it was read" in results["a.wav"]["error"]
    assert "a.wav" not in outputs(out)
    done, _ = do(root, out, {"resume": True})
    assert done.counts.done == 1
    assert outputs(out)["a.wav"] == turned(b"growing more")


def test_a_file_that_vanishes(root, out, monkeypatch):
    real = run_module.Run.first_look

    def first_look(self):
        (root / "a.wav").unlink()
        real(self)

    monkeypatch.setattr(run_module.Run, "first_look", first_look)
    done, results = do(root, out, {})
    assert "No such file" in results["a.wav"]["error"]
    assert done.counts.done == 2


def test_a_full_disk_ends_the_run_and_nothing_is_lost(root, out):
    (root / "a.wav").write_bytes(b"full disk")
    done, results = do(root, out, {})
    assert "free space, and run again with --resume" in done.stopped
    assert (done.counts.failed, done.counts.left) == (1, 2)
    assert results["b.wav"]["state"] == "left"
    assert outputs(out) == {}
    (root / "a.wav").write_bytes(b"a.wav")
    done, _ = do(root, out, {"resume": True})
    assert done.counts.done == 3


def test_a_disk_that_is_full_for_the_name_alone(root, out, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "out/a.wav")

    with monkeypatch.context() as patch:
        patch.setattr(places, "give_name", refuse)
        done, results = do(root, out, {})
    assert done.counts.failed == 3
    assert "Read-only file system" in results["a.wav"]["error"]
    assert do(root, out, {"resume": True})[0].counts.done == 3


LATER = replace(ENGINE, flush=False)  # as the command has it


def test_a_group_is_on_the_disk_before_it_is_named_and_named_before_it_is_done(
    root, out, monkeypatch
):
    steps = []

    def told(name, function, what=lambda *args: ""):
        def call(*args, **options):
            steps.append(name + what(*args))
            return function(*args, **options)

        return call

    named = told("named", places.name_it, lambda staged, target: f" {target.name}")
    monkeypatch.setattr(places, "name_it", named)
    flush = told("flushed", files._flush_file, lambda path: f" {path.name}")
    monkeypatch.setattr(files, "_flush_file", flush)
    folder = told("flushed", files._flush_folder, lambda path: f" {path.name}")
    monkeypatch.setattr(files, "_flush_folder", folder)
    real = Journal._write

    def write(journal, statement, *values):
        for state in ("placing", "done"):
            if f"SET state='{state}'" in statement:
                steps.append(state)
        if statement.startswith(("PRAGMA", "BEGIN", "COMMIT")):
            steps.append(statement)
        return real(journal, statement, *values)

    monkeypatch.setattr(Journal, "_write", write)
    do(root, out, {}, engine=LATER)
    group = steps[steps.index(next(s for s in steps if s.startswith("flushed"))) :]
    assert sorted(group[:3]) == ["flushed 1.wav", "flushed 2.wav", "flushed 3.wav"]
    assert group[3:9] == [
        "PRAGMA synchronous=FULL", "BEGIN IMMEDIATE", "placing", "placing", "placing", "COMMIT",
    ]  # fmt: skip
    assert group[9:13] == [
        "PRAGMA synchronous=NORMAL", "named a.wav", "named b.wav", "named c.wav",
    ]  # fmt: skip
    assert sorted(group[13:15]) == ["flushed out", "flushed s"]
    assert group[15:] == ["BEGIN IMMEDIATE", "done", "done", "done", "COMMIT"]


@pytest.mark.parametrize(("code", "stops"), [(errno.EIO, False), (errno.ENOSPC, True)])
def test_what_cannot_be_flushed_is_not_named(root, out, monkeypatch, code, stops):
    def refuse(path):
        if path.name == "2.wav":
            raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush_file", refuse)
        done, results = do(root, out, {}, engine=LATER)
    assert (done.counts.done, done.counts.failed, bool(done.stopped)) == (2, 1, stops)
    assert results["b.wav"]["error"] == f"{out / 'b.wav'}: cannot write ({os.strerror(code)})"
    assert sorted(outputs(out)) == ["a.wav", "s/c.wav"]
    done, _ = do(root, out, {"resume": True}, engine=LATER)
    assert (done.counts.done, done.counts.before) == (1, 2)


def test_one_of_a_group_that_another_run_has_taken_over(root, out, monkeypatch):
    real = run_module.Run.name_made
    other = []

    def name_made(self):
        if self._made and not other:
            other.append(Journal(out))
            job = self._made[0][0]
            assert other[0].claim(job, "key", other[0].row(job.target))
        return real(self)

    monkeypatch.setattr(run_module.Run, "name_made", name_made)
    done, _ = do(root, out, {}, engine=LATER)
    other[0].__exit__()
    assert (done.counts.done, done.counts.before) == (2, 1)
    assert sorted(outputs(out)) == ["b.wav", "s/c.wav"]


@pytest.mark.parametrize(("most", "groups"), [((2, 99.0), [2, 1]), ((64, 1.0), [2, 1])])
def test_a_group_is_small_and_holds_little_work(root, out, monkeypatch, most, groups):
    monkeypatch.setattr(run_module, "_MOST", most[0])
    monkeypatch.setattr(run_module, "_MOST_WORK_S", most[1])
    sizes, real = [], run_module.Run.name_made

    def name_made(self):
        sizes.append(len(self._made))
        return real(self)

    monkeypatch.setattr(run_module.Run, "name_made", name_made)
    do(root, out, {}, engine=LATER)
    assert [size for size in sizes if size] == groups


def test_a_group_does_not_wait_for_the_next_long_recording(root, out, monkeypatch):
    monkeypatch.setattr(run_module, "_MOST_WAIT_S", 0.0)
    sizes, real = [], run_module.Run.name_made

    def name_made(self):
        sizes.append(len(self._made))
        return real(self)

    monkeypatch.setattr(run_module.Run, "name_made", name_made)
    do(root, out, {}, engine=LATER)
    assert [size for size in sizes if size] == [1, 1, 1]


def test_short_recordings_are_claimed_together_and_long_ones_alone(root, out, monkeypatch):
    sizes, real = [], run_module.Run._claim

    def claim(self, jobs):
        sizes.append(len(jobs))
        return real(self, jobs)

    monkeypatch.setattr(run_module.Run, "_claim", claim)
    do(root, out, {})
    monkeypatch.setattr(run_module, "_CLAIM_BYTES", 6)  # a.wav and b.wav have five bytes each
    do(root, out, {"overwrite": True})
    assert sizes == [3, 2, 1]


def test_a_file_that_appears_meanwhile_is_kept(root, out, monkeypatch):
    real = Journal.placing

    def placing(self, job, *args):
        if job.target.name == "a.wav":
            job.target.write_bytes(b"fast")
        return real(self, job, *args)

    monkeypatch.setattr(Journal, "placing", placing)
    _, results = do(root, out, {})
    assert "exists already" in results["a.wav"]["error"]
    assert outputs(out)["a.wav"] == b"fast"


def test_names_that_are_not_utf8(tmp_path, out):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"x")
    assert do(folder, out, {})[0].counts.done == 1
    assert do(folder, out, {"resume": True})[0].counts.before == 1


def test_the_output_folder_may_be_moved(root, out, tmp_path):
    do(root, out, {})
    out.rename(tmp_path / "moved")
    assert do(root, tmp_path / "moved", {"resume": True})[0].counts.before == 3


def test_another_runs_file_is_waited_for(root, out, monkeypatch):
    """It is done by the other run, or taken over when that ends."""
    out.mkdir()
    monkeypatch.setattr(here, "_WAIT_S", 0.01)
    other = Journal(out)
    job = next(folder_plan(root, out, [], False).jobs())
    assert other.claim(job, job.key({"steps": 3}), None)
    looks = []
    real = run_module.held

    def held(row, alive):
        found = real(row, alive)
        looks.append(found)
        if looks.count(True) == 4:
            other.__exit__()
        return found

    monkeypatch.setattr(run_module, "held", held)
    done, _ = do(root, out, {"resume": True})
    assert done.counts.done == 3
    assert set(times(out).values()) == {1}
