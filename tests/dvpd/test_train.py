"""The trainer on a tiny model: it learns, resumes exactly, saves whole, survives bad batches."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

import dvpd.train
from dvpd.checkpoint import load_checkpoint, read_checkpoint
from dvpd.config import Config, load_toml
from dvpd.runtime.errors import InputError
from dvpd.train import Trainer, TrainingError, learning_rate, main, override
from dvpd.train_config import DataConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[2]
CROP = 4096


class Tones:
    """Tones in noise; one chosen pair may be broken."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:  # crops of epoch 0
        self.broken = broken

    def pair(self, seed: int, epoch: int, index: int):
        rng = np.random.default_rng((seed, epoch, index))
        time_s = np.arange(CROP) / 16000
        clean = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * time_s)
        noisy = clean + 0.1 * rng.standard_normal(CROP)
        if epoch == 0 and index in self.broken:
            noisy[7] = np.nan
        return noisy.astype(np.float32), clean.astype(np.float32)


@pytest.fixture
def make_config(small_config):
    def make(**train) -> Config:
        settings = {
            "batch_size": 2,
            "steps": 6,
            "warmup_steps": 0,
            "workers": 0,
            "log_steps": 1,
            "lr": 3e-3,
            "epoch_crops": 5,
            **train,
        }
        return Config(
            model=small_config,
            train=TrainConfig(**settings),
            data=DataConfig(crop_samples=CROP),
        )

    return make


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("branches", ["both", "predictive", "score"])
def test_a_few_steps_lower_the_loss(make_config, tmp_path, branches):
    trainer = Trainer(make_config(branches=branches, schedule="constant"), Tones(), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    batch = [torch.from_numpy(np.stack([Tones().pair(0, 0, i)[k] for i in (1, 2)])) for k in (0, 1)]

    def loss() -> float:
        trainer.step, step = 0, trainer.step  # the same diffusion times
        with torch.no_grad():
            terms = trainer.losses(*batch)
        trainer.step = step
        return float(dvpd.train.weighted_sum(trainer.config.train, terms))

    first = loss()
    for _ in range(12):
        trainer.train_step(*batch)
    assert loss() < 0.9 * first
    after = trainer.model.state_dict()
    moved = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert moved == ({"predictive", "score"} if branches == "both" else {branches})


def test_resume_equals_an_unbroken_run(make_config, tmp_path):
    config = make_config()
    whole = Trainer(config, Tones(), tmp_path / "whole")
    whole.run()
    first = Trainer(config, Tones(), tmp_path / "parts")
    first.report = lambda record: first.stop() if record["step"] == 3 else None
    first.run()
    assert first.step == 3
    second = Trainer(config, Tones(), tmp_path / "parts")
    second.resume()
    assert second.step == 3
    second.run()
    assert weights_equal(whole.model.state_dict(), second.model.state_dict())
    assert weights_equal(whole.ema.model.state_dict(), second.ema.model.state_dict())
    losses = [[r["loss"] for r in log_of(tmp_path / d)] for d in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_checkpoint_holds_the_average(make_config, tmp_path):
    trainer = Trainer(make_config(steps=2), Tones(), tmp_path)
    trainer.run()
    config, weights, extra = read_checkpoint(tmp_path / "last.safetensors")
    assert config == trainer.config
    assert weights_equal(weights, trainer.ema.model.state_dict())
    assert not weights_equal(weights, trainer.model.state_dict())
    assert extra["step"] == "2"
    assert not list(tmp_path.glob(".*tmp"))


def test_init_starts_from_a_checkpoint(make_config, tmp_path):
    Trainer(make_config(steps=1), Tones(), tmp_path / "a").run()
    trainer = Trainer(make_config(lr=1e-4), Tones(), tmp_path / "b")
    trainer.init_from(tmp_path / "a" / "last.safetensors")
    _, weights = load_checkpoint(tmp_path / "a" / "last.safetensors")
    assert weights_equal(weights, trainer.model.state_dict())
    assert trainer.step == 0
    other = make_config()
    wider = replace(other, model=replace(other.model, state=8))
    with pytest.raises(InputError, match=r"another \[model\]"):
        Trainer(wider, Tones(), tmp_path / "c").init_from(tmp_path / "a" / "last.safetensors")


def test_state_of_another_config_is_refused(make_config, tmp_path):
    Trainer(make_config(steps=1), Tones(), tmp_path).run()
    with pytest.raises(InputError, match=r"train\.lr"):
        Trainer(make_config(lr=1e-4), Tones(), tmp_path).resume()
    Trainer(make_config(steps=9, workers=1), Tones(), tmp_path).resume()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "pickle"])
def test_damaged_state_is_a_clear_error(make_config, tmp_path, damage):
    trainer = Trainer(make_config(steps=1), Tones(), tmp_path)
    trainer.run()
    path = tmp_path / "state.pt"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "pickle":
        torch.save({"format": Path("/")}, path)  # an object that only unpickling could make
    else:
        path.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
    with pytest.raises(InputError, match="state"):
        trainer.resume()


def test_a_failed_save_keeps_the_old_state(make_config, tmp_path, monkeypatch):
    trainer = Trainer(make_config(), Tones(), tmp_path)
    trainer.save()
    before = (tmp_path / "state.pt").read_bytes()
    trainer.step = 5

    def fail(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        trainer.save()
    assert (tmp_path / "state.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*tmp"))


def test_bad_batch_is_skipped_and_changes_nothing(make_config, tmp_path, caplog):
    trainer = Trainer(make_config(), Tones(broken=(2,)), tmp_path)
    states = []
    trainer.report = lambda _: None
    step = trainer.train_step

    def watched(*batch):
        states.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        return step(*batch)

    trainer.train_step = watched
    trainer.run()
    assert trainer.step == 6
    assert trainer.skipped == 1
    assert weights_equal(states[1], states[2])
    assert "crops 2 to 3" in caplog.text
    assert all(torch.isfinite(v).all() for v in trainer.model.state_dict().values())


def test_many_bad_batches_stop_training(make_config, tmp_path):
    trainer = Trainer(
        make_config(nan_limit=2, epoch_crops=9), Tones(broken=tuple(range(9))), tmp_path
    )
    with pytest.raises(TrainingError, match="crops 2 to 3"):
        trainer.run()


def test_evaluation_keeps_the_best(make_config, tmp_path):
    scores = iter([1.0, 3.0, 2.0, 2.5])
    trainer = Trainer(
        make_config(steps=3, eval_minutes=1e-9),
        Tones(),
        tmp_path,
        evaluate=lambda model, config: {"score": next(scores)},
    )
    trainer.run()
    assert read_checkpoint(tmp_path / "best.safetensors")[2]["step"] == "2"
    assert [r["score"] for r in log_of(tmp_path) if r["kind"] == "dev"] == [1.0, 3.0, 2.0, 2.5]


def test_minutes_are_a_budget(make_config, tmp_path):
    trainer = Trainer(make_config(minutes=0.02, steps=1), Tones(), tmp_path)
    trainer.run()
    assert trainer.step > 1
    assert trainer.seconds >= 1.2
    rates = [r["lr"] for r in log_of(tmp_path)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.6 * rates[0]
    limited = Trainer(make_config(steps=10**6), Tones(), tmp_path / "limited")
    limited.run(max_minutes=0.01)
    assert 0 < limited.step < 10**6
    assert (tmp_path / "limited" / "state.pt").is_file()


def test_learning_rates():
    cosine = TrainConfig(lr=1.0, steps=100, warmup_steps=10)
    assert learning_rate(cosine, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(cosine, 50, 0.0) == pytest.approx(0.5)
    assert learning_rate(cosine, 100, 0.0) == pytest.approx(0.0)
    assert learning_rate(replace(cosine, minutes=10.0), 50, 2.5) == pytest.approx(
        0.5 * (1 + math.cos(math.pi / 4))
    )
    paper = TrainConfig(lr=1.0, schedule="paper", warmup_steps=0, epoch_crops=10, batch_size=5)
    assert [learning_rate(paper, s, 0.0) for s in (0, 3, 4, 8)] == [1.0, 1.0, 0.97, 0.97**2]


def test_bf16_and_channels_last_train(make_config, tmp_path):
    trainer = Trainer(make_config(precision="bf16", channels_last=True), Tones(), tmp_path)
    trainer.run()
    assert all(math.isfinite(r["loss"]) for r in log_of(tmp_path))
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_detached_features_shield_the_predictive_branch(make_config, tmp_path):
    config = make_config(
        detach_feats=True, mag_weight=0.0, ri_weight=0.0, phase_weight=0.0, steps=1
    )
    trainer = Trainer(config, Tones(), tmp_path)
    trainer.run()
    grads = [p.grad for p in trainer.model.predictive.parameters() if p.grad is not None]
    assert all(not g.any() for g in grads)
    assert any(p.grad is not None and p.grad.any() for p in trainer.model.score.parameters())


def test_overrides():
    config = override(Config(), ["train.lr=0.5", "train.branches='score'", "data.snr_db=[0, 1]"])
    assert (config.train.lr, config.train.branches, config.data.snr_db) == (0.5, "score", (0, 1))
    for bad in ("train.nothing=1", "other.lr=1", "train.lr", "lr=1"):
        with pytest.raises(InputError):
            override(Config(), [bad])


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_shipped_configs_load(name):
    assert load_toml(ROOT / "dvpd" / "configs" / f"{name}.toml").model.name == f"dvpd-{name}"


@pytest.fixture
def run_files(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("speech", "noise"):
        for i in range(3):
            path = tmp_path / "data" / kind / "src" / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            sf.write(path, 0.1 * rng.standard_normal(16000), 16000)
    (tmp_path / "config.toml").write_text(
        "[model]\nname='small'\nchannels=8\nblocks=1\nstate=4\ndecoder_channels=4\nembedding=8\n"
        "[train]\nbatch_size=2\nsteps=100000\nlog_steps=1\nworkers=1\n[data]\ncrop_samples=4096\n"
    )
    return [
        str(tmp_path / "config.toml"), "--data", str(tmp_path / "data"),
        "--out", str(tmp_path / "run"), "--threads", "1", "--device", "cpu",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_save_and_stop(run_files, tmp_path, name):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "dvpd.train", *run_files], env=env, stderr=subprocess.PIPE
    )
    log = tmp_path / "run" / "log.jsonl"
    until = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    steps = log_of(tmp_path / "run")[-1]["step"]
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] == steps


def test_command_line(run_files, tmp_path, capsys):
    short = ["--set", "train.steps=2", "--set", "train.workers=0"]
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert main([*run_files, *short]) == 0
        assert (tmp_path / "cache").is_dir()
        assert main([*run_files, *short]) == 1
        assert "use --resume" in capsys.readouterr().err
        assert main([*run_files, "--set", "train.steps=3", "--resume"]) == 0
        assert main([*run_files[:1], "--data", "nowhere", "--out", str(tmp_path / "o")]) == 1
        assert "nowhere" in capsys.readouterr().err
    finally:
        for s, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(s, handler)
    assert len(log_of(tmp_path / "run")) == 3
