import json
import logging
import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from bulk_parts import ENGINE

from dvpd.runtime import cli
from dvpd.runtime.bulk import command, lanes, pool
from dvpd.runtime.bulk.plan import Job
from dvpd.runtime.bulk.worker import Task


class Played:
    """Processes whose lines the test speaks."""

    def __init__(self, monkeypatch):
        self.processes = started = []

        class Process:
            exitcode = -9

            def __init__(self, target, args, daemon):
                given = args[0] if isinstance(args[0], list) else [args[0]]
                self.pipes = [Connection(os.dup(pipe.fileno())) for pipe in given]
                started.append(self)

            def start(self):
                pass

            def join(self, timeout=None):
                pass

            def kill(self):
                pass

            def end(self):
                for pipe in self.pipes:
                    pipe.close()

        fake = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Process)
        monkeypatch.setattr(pool, "multiprocessing", SimpleNamespace(get_context=lambda kind: fake))

    def ready(self, workers):
        """The newest process is ready; gives its lanes, which have a task each now."""
        for pipe in self.processes[-1].pipes:
            pipe.send(("ready", {"backend": "fake", "device": "cpu"}))
        while not all(worker.ready for worker in workers.workers):
            assert workers.wait(1.0) == []
        for worker in workers.workers:
            if worker.idle:
                source = Path(f"{worker.index}.wav")
                worker.give(Task(Job(source, source), source))
        return self.processes[-1]


@pytest.fixture
def played(monkeypatch):
    return Played(monkeypatch)


def said(workers):
    """Kinds of all messages by the lane's index."""
    messages = []
    while found := workers.wait(0.05):
        for worker, message in found:
            if message[0] != "said":
                worker.task = None
            messages.append((worker.index, message[0], *message[2:]))
    return messages


def test_a_process_has_a_pipe_for_each_lane(played):
    with pool.Pool(2, ENGINE, None, lanes=3) as workers:
        workers.start(5)
        assert [len(process.pipes) for process in played.processes] == [3, 2]
        assert [worker.index for worker in workers.workers] == [0, 1, 2, 3, 4]


def test_of_several_that_die_together_none_is_blamed_before_each_was_alone(played):
    with pool.Pool(1, ENGINE, None, lanes=3) as workers:
        workers.start(9)
        process = played.ready(workers)
        process.pipes[0].send(("done", "facts", {}))
        process.end()
        asked = True  # as if by a service: no attempt is counted
        assert said(workers) == [(0, "done", {}), (1, "died", asked), (2, "died", asked)]
        alone = played.ready(workers)
        assert len(alone.pipes) == 1
        for left in (1, 0):  # each of the two alone, and all is as before
            assert [worker.alone for worker in workers.workers] == [left + 1]
            alone.pipes[0].send(("said", "something"))
            alone.pipes[0].send(("done", "facts", {}))
            assert [kind for _, kind, *_ in said(workers)] == ["said", "done"]
            if left:
                workers.workers[0].give(Task(Job(Path("x"), Path("x")), Path("x")))
        assert len(played.processes[-1].pipes) == 3
        assert len(played.processes) == 3


def test_what_dies_alone_is_to_blame(played):
    with pool.Pool(1, ENGINE, None, lanes=2) as workers:
        workers.start(2)
        played.ready(workers).end()
        assert len(said(workers)) == 2
        played.ready(workers).end()
        assert said(workers) == [(0, "died", False)]
        assert len(played.processes[-1].pipes) == 2


def test_a_process_that_does_not_open_its_engine_is_dropped_with_all_its_lanes(played):
    with pool.Pool(2, ENGINE, None, lanes=2) as workers:
        workers.start(4)
        played.processes[0].pipes[0].send(("broken", "no device"))
        assert workers.wait(1.0) == []
        assert [worker.index for worker in workers.workers] == [2, 3]
        played.processes[1].end()
        with pytest.raises(pool.BackendError, match="as it opened the engine"):
            workers.wait(1.0)


@pytest.fixture
def run(engine_shared, monkeypatch):
    """``run(*words)``: the command, with its process as a thread."""

    class Process(threading.Thread):
        def __init__(self, target, args, daemon):
            pipes = [Connection(os.dup(pipe.fileno())) for pipe in args[0]]
            super().__init__(target=target, args=(pipes, args[1]), daemon=daemon)

        @property
        def exitcode(self):
            return None if self.is_alive() else 0

        def kill(self):
            raise AssertionError("it ends by itself")

    fake = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Process)
    monkeypatch.setattr(pool, "multiprocessing", SimpleNamespace(get_context=lambda kind: fake))
    monkeypatch.setattr(lanes, "start_process", lambda: None)
    plain = ("--model", str(engine_shared), "--backend", "ort", "--device", "cpu", "--threads", "1")
    return lambda *words: cli.main(["enhance", *map(str, words), *plain])


def test_batched_files_are_those_of_one_at_a_time(run, enhancer, tmp_path, speech, capsys):
    pytest.importorskip("onnxruntime")
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    for index in range(3):
        soundfile.write(root / f"{index}.wav", np.tile(speech, 4)[index * 999 :], 16000, "PCM_16")
    (root / "bad.wav").write_bytes(b"no recording")
    assert run(root, out, "--batch", 2) == 1
    rows = [json.loads(line) for line in (out / command.RESULTS).read_text().splitlines()]
    assert [row["state"] for row in rows] == ["done", "done", "done", "failed"]
    assert rows[0]["backend"] == "ort"
    for index in range(3):
        single = tmp_path / f"single{index}.wav"
        enhancer.enhance_file(root / f"{index}.wav", single)
        assert (out / f"{index}.wav").read_bytes() == single.read_bytes()
    # another size is another setting: rounding may depend on it
    assert run(root, out, "--batch", 2, "--resume") == 1
    capsys.readouterr()
    assert run(root, out, "--batch", 3, "--resume") == 1
    assert "with other settings" in capsys.readouterr().err


def test_a_causal_model_is_refused(engine_causal, caplog):
    caplog.set_level(logging.INFO, "dvpd")  # as the process sets it; put back at the end
    ours, theirs = multiprocessing.Pipe()
    engine = command.Engine(engine_causal, "ort", "cpu", 1, False, batch=2)
    thread = threading.Thread(target=lanes.serve_lanes, args=([theirs], engine))
    lanes_start, lanes.start_process = lanes.start_process, lambda: None
    try:
        thread.start()
        assert ours.recv()[0] == "broken"
    finally:
        thread.join()
        lanes.start_process = lanes_start


def test_twice_as_many_recordings_as_windows_in_a_batch():
    assert [lanes.n_lanes(batch) for batch in (1, 2, 8)] == [1, 4, 16]
