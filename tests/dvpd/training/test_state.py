"""The state on disk: whole, of the right run, and never lost to a crash or a full disk."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from train_parts import ROOT, Tones, log_of, micro_config, weights_equal, without_clock

import dvpd.runtime.files
from dvpd.runtime.errors import InputError
from dvpd.training.state import StateFiles, TrainingError
from dvpd.training.trainer import Trainer


def make_trainer(folder, **train) -> Trainer:
    return Trainer(micro_config(**{"branches": "predictive", "steps": 1, **train}), Tones(), folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run with two states: step 2, and step 1 before it."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(folder, steps=2)
    trainer.report = lambda r: trainer.save() if r["kind"] == "train" and r["step"] == 1 else None
    trainer.run()
    return folder


@pytest.fixture
def run_folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_state_of_another_config_is_refused(run_folder):
    with pytest.raises(InputError, match=r"train\.batch_size = 2 \(now 4\), train\.lr = 0\.003"):
        make_trainer(run_folder, lr=1e-4, batch_size=4).resume()
    trainer = make_trainer(run_folder, steps=9, workers=1)
    trainer.resume()
    assert trainer.step == 2


def test_state_of_another_format_is_refused(run_folder):
    files = StateFiles(run_folder)
    torch.save({"format": "dvpd-train-0"}, files.newest)
    with pytest.raises(InputError, match="format 'dvpd-train-0'; expected 'dvpd-train-1'"):
        files.load()
    assert files.newest.exists()


def test_state_of_other_networks_is_refused(run_folder):
    files = StateFiles(run_folder)
    state, _ = files.load()
    state["model"].popitem()
    files.save(state)
    with pytest.raises(InputError, match="does not fit this version's networks"):
        make_trainer(run_folder, steps=2).resume()


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":  # killed between the two renames
        path.unlink()
    elif how == "pickle":
        torch.save({"format": Path("/")}, path)  # an object that only unpickling could make
    elif how == "changed byte":  # in a weight: torch.load would not notice
        weights = torch.load(path, weights_only=True)["model"].values()
        data[data.index(max(weights, key=torch.numel).numpy().tobytes())] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(
            {"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[how]
        )


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "zeros", "changed byte", "pickle"])
def test_damaged_state_falls_back_to_the_one_before(run_folder, caplog, how):
    files = StateFiles(run_folder)
    damage(files.newest, how)
    state, path = files.load()
    assert (state["step"], path) == (1, files.previous)
    assert "going on from" in caplog.text
    before = files.previous.read_bytes()
    files.save({**state, "step": 7})  # must not put the damaged one in the good one's place
    assert files.previous.read_bytes() == before
    assert files.load()[0]["step"] == 7


def test_two_damaged_states_are_an_error(run_folder):
    files = StateFiles(run_folder)
    damage(files.newest, "cut")
    damage(files.previous, "empty")
    with pytest.raises(InputError, match=r"state\.pt is not .*state\.prev\.pt is not"):
        files.load()
    files.newest.unlink()
    files.previous.unlink()
    with pytest.raises(InputError, match="train without --resume first"):
        files.load()


def test_resumes_from_the_state_before(run_folder, trained):
    damage(run_folder / "state.pt", "cut")
    trainer = make_trainer(run_folder, steps=2)
    trainer.resume()
    assert trainer.step == 1
    trainer.run()
    assert without_clock(log_of(run_folder)) == without_clock(log_of(trained))
    expected = torch.load(trained / "state.pt", weights_only=True)
    assert weights_equal(trainer.model.state_dict(), expected["model"])


def test_a_full_disk_keeps_the_good_states(run_folder, monkeypatch):
    files = StateFiles(run_folder)
    before = [p.read_bytes() for p in (files.newest, files.previous)]

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dvpd.runtime.files.os, "fsync", full)
    trainer = make_trainer(run_folder, steps=3)
    trainer.resume()
    with pytest.raises(TrainingError, match=r"No space left.*state\.pt still holds the last good"):
        trainer.run()
    assert [p.read_bytes() for p in (files.newest, files.previous)] == before
    assert not list(run_folder.glob(".*tmp"))


def test_a_file_size_limit_keeps_the_good_states(run_folder):
    files = StateFiles(run_folder)
    before = [p.read_bytes() for p in (files.newest, files.previous)]
    trainer = make_trainer(run_folder, steps=2)
    trainer.resume()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # the system itself stops the write half-way
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[0]) // 2, old[1]))
        with pytest.raises(TrainingError, match="cannot be written: File too large"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [p.read_bytes() for p in (files.newest, files.previous)] == before
    assert not list(run_folder.glob(".*tmp"))


@pytest.mark.parametrize("call", [1, 2])
def test_killed_between_the_renames(run_folder, monkeypatch, call):
    files = StateFiles(run_folder)
    count = 0
    replace = Path.replace

    def dying(self, target):
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return replace(self, target)

    state, _ = files.load()
    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        files.save({**state, "step": 3})
    monkeypatch.undo()
    assert files.load()[0]["step"] == 2


KILL_LOOP = """
    # Imports once; every round is a fork that trains, and is killed at a random moment.
    import os, random, signal, sys, time
    import torch
    from pathlib import Path
    from train_parts import Tones, micro_config, CROP
    from dvpd.training.state import StateFiles
    from dvpd.training.trainer import Trainer

    out = Path(sys.argv[1])

    def train(report=None):
        torch.set_num_threads(1)
        config = micro_config(branches="predictive", steps=8, log_steps=2, save_minutes=1e-9)
        trainer = Trainer(config, Tones(), out)
        if StateFiles(out).exist():
            trainer.resume()
        trainer.report = report
        trainer.run()

    def fork(work):
        child = os.fork()
        if child:
            return child
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print("child failed:", repr(error), flush=True)
            os._exit(1)

    draw = random.Random(0)
    for _ in range(int(sys.argv[2])):
        ready, tell = os.pipe()
        child = fork(lambda: train(lambda record: os.write(tell, b".")))
        os.close(tell)
        alive = os.read(ready, 1)  # after its first step
        time.sleep(draw.uniform(0.0, 0.6))
        os.kill(child, signal.SIGKILL)
        os.close(ready)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        files = sorted(p.name for p in out.iterdir())
        print("killed" if os.WIFSIGNALED(status) else "finished", files, flush=True)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(fork(train), 0)[1]))
"""


def test_killed_at_any_moment(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'dvpd'}"}
    command = [sys.executable, "-c", textwrap.dedent(KILL_LOOP), str(tmp_path / "killed"), "5"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed [") >= 3, done.stdout
    whole = make_trainer(tmp_path / "whole", steps=8, log_steps=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole.run()
    finally:
        torch.set_num_threads(threads)
    state, path = StateFiles(tmp_path / "killed").load()
    assert path.name == "state.pt"
    assert state["step"] == 8
    assert weights_equal(state["model"], whole.model.state_dict())
    assert weights_equal(state["ema"], whole.ema.model.state_dict())
    assert without_clock(log_of(tmp_path / "killed")) == without_clock(log_of(tmp_path / "whole"))
