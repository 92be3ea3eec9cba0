"""The phases, each called as its process calls it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lease_parts import CONFIG, PLAN, packed, started

import dvpd.runtime.files
import dvpd.training.trainer
from dvpd.checkpoint import read_checkpoint, save_checkpoint
from dvpd.config import load_toml
from dvpd.config.train import TrainConfig
from dvpd.data import sources
from dvpd.lease import phases
from dvpd.lease.rows import Rows, last_of
from dvpd.lease.work import Work
from dvpd.model import DVPD
from dvpd.runtime.errors import InputError
from dvpd.training import fast_kernels
from dvpd.training.fast_kernels import use_fast_kernels

TWO = PLAN.replace("new", "wider").replace("train.no_such_key=true", "train.batch_size=3")
TWO = TWO.replace("part_mib = 0.2", "part_mib = 0.6") + (
    'init = "init.safetensors"\n[[models]]\nname = "two"\nconfig = "micro.toml"\ninit = "@one"\n'
)


@pytest.fixture
def work(lease_data, tmp_path) -> Work:
    (tmp_path / "micro.toml").write_text(CONFIG)
    config = load_toml(tmp_path / "micro.toml")
    torch.manual_seed(7)
    save_checkpoint(
        tmp_path / "init.safetensors", DVPD(config.model).state_dict(), config, {"hours": "1"}
    )
    return started(tmp_path, packed(tmp_path, lease_data, TWO))


def result(work: Work, name: str) -> dict:
    return json.loads((work.out / f"{name}.json").read_text())


def test_smoke_says_what_the_machine_is(work, monkeypatch):
    phases.smoke(work, work.plan(), "smoke")
    assert result(work, "smoke")["device"] == "cpu"
    assert result(work, "smoke")["torch"] == torch.__version__
    monkeypatch.setattr(phases, "NEEDED", ("numpy", "no_such_package"))
    with pytest.raises(InputError, match=r"no_such_package .*carry wheels"):
        phases.smoke(work, work.plan(), "smoke")


def test_data_come_as_far_as_they_came(work):
    later = work.inbox / "part-001.tar"
    aside = work.root / "aside"
    later.rename(aside)
    phases.data(work, work.plan(), "data", until=time.time())
    found = result(work, "data")
    assert found["missing"] == ["part-001.tar"]
    assert 0.0 < found["hours"]["speech"] < 12 / 3600
    aside.rename(later)
    phases.data(work, work.plan(), "data", until=time.time() + 60.0)
    assert result(work, "data")["missing"] == []
    assert result(work, "data")["hours"]["speech"] == pytest.approx(12 / 3600, abs=6e-4)
    assert (work.cache / "audio").is_dir()


def test_without_any_part_there_are_no_data(work):
    for path in work.inbox.iterdir():
        path.unlink()
    with pytest.raises(InputError, match="none of the"):
        phases.data(work, work.plan(), "data", until=time.time() + 0.2)


def test_a_probe_compares_and_times(work):
    plan = work.plan()
    phases.probe(work, plan.scaled(0.01), "a", model=0, rung=1)
    phases.probe(work, plan.scaled(0.01), "b", model=0, rung=1)
    first = result(work, "a")
    assert first["losses"] == result(work, "b")["losses"]  # the same three batches
    assert len(set(first["losses"])) == 3
    assert first["audio_s_per_s"] == pytest.approx(2 * 4096 / 16 / first["ms"], rel=0.02)


@pytest.fixture
def clock(monkeypatch):
    """A second goes by from step to step, from 1000 s on in each training."""

    def restart() -> None:
        ticks, now = itertools.count().__next__, itertools.count(1000.0).__next__
        monkeypatch.setattr(
            dvpd.training.trainer, "time", SimpleNamespace(monotonic=ticks, time=now)
        )

    return restart


def test_training_ends_on_its_deadline_and_the_next_model_starts_from_it(work, clock):
    plan = work.plan()
    phases.data(work, plan, "data", until=time.time())
    clock()
    phases.train(work, plan, "t", model=0, rung=1, begin=998.0, end=1002.0)
    folder = work.model("one")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    expected = [1e-3 * 0.5 * (1 + np.cos(np.pi * part / 4)) for part in (2, 3)]
    assert [r["lr"] for r in log] == pytest.approx(expected, rel=1e-5)
    saved = last_of(Rows(work.rows, 0.0).read(), "train", "saved", model="one")
    assert saved["step"] == result(work, "t")["step"] == 2
    # Its time is over: nothing is trained, and what comes out is what it starts from.
    clock()
    phases.train(work, plan, "t", model=1, rung=1, begin=998.0, end=1000.0)
    _, one, _ = read_checkpoint(folder / "last.safetensors")
    _, two, _ = read_checkpoint(work.model("two") / "last.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    _, init, _ = read_checkpoint(work.setup / "models" / "one" / "init.safetensors")
    assert not all(torch.equal(one[k], init[k]) for k in one)
    # Another rung, of another batch size, cannot take the state: it goes on from the weights.
    clock()
    phases.train(work, plan, "t", model=0, rung=0, begin=998.0, end=1000.0)
    config, after, _ = read_checkpoint(folder / "last.safetensors")
    assert config.train.batch_size == 3
    assert all(torch.equal(after[k], one[k]) for k in one)


def test_a_training_that_shares_the_machine_is_ready_before_the_data_are_there(
    work, clock, monkeypatch
):
    plan = work.plan()
    phases.data(work, plan, "data", until=time.time())
    rows = Rows(work.rows, 0.0)
    ready: list[bool] = []

    def make_ready(trainer, limit_s):
        assert limit_s == plan.seconds.probe
        with pytest.raises(AssertionError):  # no data yet
            trainer.source.pair(0, 0, 0)
        original(trainer, limit_s)
        ready.append(trainer.step == 0)
        os.utime(work.out / "data-over", (996.0, 996.0))

    original = phases._make_ready
    monkeypatch.setattr(phases, "_make_ready", make_ready)
    work.mark_data_over()
    clock()
    phases.train(work, plan, "t", model=0, rung=1, begin=0.0, end=1004.0, share=0.75)
    assert ready == [True]
    assert last_of(rows.read(), "train", "ready", model="one")["step_as"] == "call by call"
    log = [json.loads(line) for line in (work.model("one") / "log.jsonl").read_text().splitlines()]
    # Three quarters of 996 to 1004 begin at 998.
    parts = [2 / np.pi * np.arcsin(np.sqrt(1 - r["lr"] / 1e-3)) for r in log]
    assert np.diff(parts) == pytest.approx(np.full(len(parts) - 1, 1 / 6), rel=1e-3)
    assert parts[-1] < 1.0


def test_a_compiler_that_does_not_end_ends_the_process(work, monkeypatch):
    plan = work.plan()

    def hang(self):
        time.sleep(60.0)

    monkeypatch.setattr(phases.LeasedTrainer, "warm_up", hang)
    pid = os.fork()
    if not pid:
        try:
            phases.train(work, replace(plan, seconds=replace(plan.seconds, probe=0.2)), "t",
                         model=0, rung=1, begin=0.0, end=1e12, share=1.0)  # fmt: skip
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGALRM


def test_training_simulates_no_room_that_the_data_phase_had_no_time_for(work, monkeypatch):
    plan = work.plan()
    config = load_toml(work.setup / plan.models[0].config)
    config = replace(config, data=replace(config.data, room_bank=64))
    rows = Rows(work.rows, 0.0)
    assert phases._limit_rooms(work, rows, plan.models[0], config).data.room_bank == 0
    assert last_of(rows.read(), "train", "fewer rooms", model="one")["rooms"] == 0
    monkeypatch.setattr(sources, "count_built", lambda *_: 64)
    assert phases._limit_rooms(work, rows, plan.models[0], config) == config


def test_a_second_attempt_at_the_data_does_with_the_rooms_that_are_there(work, monkeypatch):
    opened = []

    def note(config, *_):
        opened.append(config.data.room_bank)

    monkeypatch.setattr(phases, "open_source", note)
    monkeypatch.setattr(sources, "count_built", lambda *_: 32)
    plan = work.plan()
    plan = replace(plan, set=(*plan.set, "data.room_bank=64"), models=plan.models[:1])
    for again in (False, True):
        phases.data(work, plan, "data", until=time.time(), again=again)
    assert opened == [64, 32]


def test_fast_forms_are_measured_once_in_a_lease(work, monkeypatch):
    monkeypatch.setattr(
        fast_kernels, "fastest", lambda forms, *_: measured.append(1) or "shifted sums"
    )
    measured: list[int] = []
    model = work.plan().models[0]
    for _ in range(2):  # two processes
        with phases._same_forms(work, model) as forms:
            use_fast_kernels(torch.nn.Sequential(), torch.device("cpu"), TrainConfig())
        assert forms == dict.fromkeys(("depthwise", "stripes"), "shifted sums")
    assert len(measured) == 2
    assert fast_kernels.remembered is None  # other trainings measure


def test_compile_caches_that_cannot_be_kept_are_a_row_and_no_second_try(work, monkeypatch):
    plan = work.plan()
    config = load_toml(work.setup / plan.models[0].config)
    config = replace(config, train=replace(config.train, compile=True))

    def refuse(path, limit):
        assert limit == phases.CACHE_PIECES * 0.125 * 2**20
        raise InputError("too large")

    monkeypatch.setattr(phases, "keep_compiled", refuse)
    for _ in range(2):
        phases._keep_compiled(work, plan, plan.models[0], config)
    rows = Rows(work.rows, 0.0).read()
    assert [(r["event"], r["why"]) for r in rows] == [("not kept", "too large")]


def test_a_full_disk_does_not_end_the_training(work, monkeypatch):
    plan = work.plan()
    rows = Rows(work.rows, work.lease["started"])
    trainer = phases.LeasedTrainer(
        plan.model_config(plan.models[0], load_toml(work.setup / plan.models[0].config)),
        phases._Nothing(),
        work.model("one"),
    )
    trainer.say = lambda event, **more: rows.add("train", event, **more)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dvpd.runtime.files.os, "fsync", full)
    trainer.save()
    monkeypatch.undo()
    assert "No space left" in last_of(rows.read(), "train", "not saved")["why"]
    assert last_of(rows.read(), "train", "saved") is None
    trainer.save()
    assert last_of(rows.read(), "train", "saved")["step"] == 0
    assert trainer.files.exist()
