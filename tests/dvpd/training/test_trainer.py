"""The training loop on a tiny model: it learns, resumes exactly, survives bad batches."""

from __future__ import annotations

import itertools
import math
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from train_parts import Tones, log_of, micro_config, weights_equal, without_clock

import dvpd.training.trainer
from dvpd.checkpoint import load_checkpoint, read_checkpoint
from dvpd.config.train import TrainConfig
from dvpd.data.mix import Mixer
from dvpd.data.pool import Pool
from dvpd.losses import predictive_terms, weighted_sum
from dvpd.model import DVPD
from dvpd.runtime.errors import InputError
from dvpd.runtime.spec import SamplerSpec
from dvpd.sde import sample
from dvpd.spectral import compress, compressed_noisy
from dvpd.training.objective import Objective
from dvpd.training.parallel import Team
from dvpd.training.state import TrainingError
from dvpd.training.trainer import Trainer, crops_of, learning_rate

# torch says so where there are more workers than cores; the tests are about the order.
MANY_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.mark.parametrize("branches", ["both", "predictive", "score"])
def test_a_few_steps_lower_the_loss(tmp_path, branches):
    trainer = Trainer(micro_config(branches=branches, schedule="constant"), Tones(), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    batch = [torch.from_numpy(np.stack([Tones().pair(0, 0, i)[k] for i in (1, 2)])) for k in (0, 1)]

    def loss() -> float:
        trainer.step, step = 0, trainer.step  # the same diffusion times
        with torch.no_grad():
            terms = trainer.losses(*batch)
        trainer.step = step
        return float(weighted_sum(trainer.config.train, terms))

    first = loss()
    for _ in range(6):
        trainer.train_step(*batch)
    assert loss() < 0.95 * first
    after = trainer.model.state_dict()
    moved = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert moved == ({"predictive", "score"} if branches == "both" else {branches})


def test_the_sampler_stage_trains_the_score_branch_alone(tmp_path):
    """Its loss is that of the sampler's own output; the norms keep their statistics."""
    config = micro_config(
        branches="score", score_weight=0.0, sampler_weight=1.0, phase_weight=0.0,
        schedule="constant",
    )  # fmt: skip
    config = replace(config, sampler=SamplerSpec(alpha=0.0))
    trainer = Trainer(config, Tones(), tmp_path)
    batch = [torch.from_numpy(np.stack([Tones().pair(0, 0, i)[k] for i in (1, 2)])) for k in (0, 1)]
    with torch.no_grad():
        for value in trainer.model.predictive.decoder.last.parameters():
            value.add_(0.01)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with torch.no_grad():
        first = trainer.losses(*batch)
    noisy = compressed_noisy(batch[0])
    noisy = torch.nn.functional.pad(noisy, (0, 0, 0, -noisy.shape[2] % 4))
    target = compress(batch[1])
    target = torch.nn.functional.pad(target, (0, 0, 0, -target.shape[2] % 4))
    noise = trainer.objective.draw(0, *batch[0].shape, batch[0].device).noise
    fused, _ = sample(trainer.model, noisy, noise, sde=config.sde, sampler=config.sampler)
    own = predictive_terms(config.train, fused, target, batch[1])
    assert list(first) == ["sampler"]
    torch.testing.assert_close(first["sampler"], weighted_sum(config.train, own))
    for _ in range(8):
        trainer.train_step(*batch)
        trainer.step = 0  # the same noise
    with torch.no_grad():
        assert trainer.losses(*batch)["sampler"] < 0.98 * first["sampler"]
    after = trainer.model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.split(".")[0] for k in moved} == {"score"}
    assert not any("running" in k for k in moved)


def test_draws_are_the_same_on_any_number_of_processes():
    config = micro_config(sampler_weight=1.0)
    model, cpu = DVPD(config.model), torch.device("cpu")
    whole = Objective(model, config).draw(7, 4, 1000, cpu)
    parts = [Objective(model, config, rank, 2).draw(7, 2, 1000, cpu) for rank in (0, 1)]
    assert whole.z.shape == (4, 1, 8, 257)
    for name in ("t", "z"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts]))
    for i, draw in enumerate(whole.noise):
        assert torch.equal(draw, torch.cat([part.noise[i] for part in parts]))
    assert not torch.equal(whole.noise[0], whole.noise[1])
    assert not torch.equal(whole.noise[0], Objective(model, config).draw(8, 4, 1000, cpu).noise[0])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    trainer = Trainer(micro_config(steps=4, log_steps=2), Tones(), folder)
    trainer.run()
    return trainer


@MANY_WORKERS
@pytest.mark.parametrize(("ended_by", "workers"), [("SIGINT", 0), ("max_minutes", 1), ("stop", 2)])
def test_resume_equals_an_unbroken_run(unbroken, tmp_path, request, ended_by, workers):
    config = micro_config(steps=4, log_steps=2, workers=workers)
    first = Trainer(config, Tones(), tmp_path)
    if ended_by == "max_minutes":
        request.getfixturevalue("clock")
        first.run(max_minutes=7 / 60)
    else:
        old = signal.signal(signal.SIGINT, lambda *_: first.stop())
        end = {"SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT), "stop": first.stop}[ended_by]
        first.report = lambda record: end() if record["step"] == 3 else None
        first.run()
        signal.signal(signal.SIGINT, old)
    assert first.step == 3  # in the middle of a log line
    second = Trainer(config, Tones(), tmp_path)
    second.resume()
    assert second.step == 3
    second.run()
    assert weights_equal(unbroken.model.state_dict(), second.model.state_dict())
    assert weights_equal(unbroken.ema.model.state_dict(), second.ema.model.state_dict())
    expected = without_clock(log_of(unbroken.out))
    assert without_clock(log_of(tmp_path)) == expected
    assert [r["step"] for r in expected] == [2, 4]


def test_resume_drops_what_the_log_has_beyond_the_state(tmp_path):
    trainer = Trainer(micro_config(steps=2, branches="predictive"), Tones(), tmp_path)
    trainer.run()
    log = tmp_path / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"kind": "train", "step": 3}\n{"kind": "tr')  # killed while writing
    (tmp_path / ".state.pt.1.tmp").write_bytes(b"half")
    Trainer(trainer.config, Tones(), tmp_path).resume()
    assert log.read_text() == whole
    assert not list(tmp_path.glob(".*tmp"))


@MANY_WORKERS
def test_fewer_recordings_than_workers(tmp_path):
    rng = np.random.default_rng(0)
    pool = Pool.from_arrays([("voice", 0.1 * rng.standard_normal(8000))])
    config = micro_config(steps=2, workers=3, branches="predictive")
    trainer = Trainer(config, Mixer(config.data, pool), tmp_path)
    trainer.run()
    assert trainer.step == 2
    assert trainer.skipped == 0


def test_batch_that_cannot_be_shared(tmp_path):
    team = Team()
    team.size = 3
    with pytest.raises(InputError, match=r"batch_size is 2.*multiple of the 3"):
        Trainer(micro_config(), Tones(), tmp_path, team=team)


def test_checkpoint_holds_the_average(tmp_path):
    trainer = Trainer(micro_config(steps=2), Tones(), tmp_path)
    trainer.run()
    config, weights, extra = read_checkpoint(tmp_path / "last.safetensors")
    assert config == trainer.config
    assert weights_equal(weights, trainer.ema.model.state_dict())
    assert not weights_equal(weights, trainer.model.state_dict())
    assert extra["step"] == "2"
    assert not list(tmp_path.glob(".*tmp"))


def test_init_starts_from_a_checkpoint(tmp_path):
    Trainer(micro_config(steps=1), Tones(), tmp_path / "a").run()
    trainer = Trainer(micro_config(lr=1e-4), Tones(), tmp_path / "b")
    trainer.init_from(tmp_path / "a" / "last.safetensors")
    _, weights = load_checkpoint(tmp_path / "a" / "last.safetensors")
    assert weights_equal(weights, trainer.model.state_dict())
    assert trainer.step == 0
    other = micro_config()
    wider = replace(other, model=replace(other.model, state=8))
    message = (
        rf"another \[model\] than .*: state = {other.model.state} \(expected 8\);.* dvpd\.grow"
    )
    with pytest.raises(InputError, match=message):
        Trainer(wider, Tones(), tmp_path / "c").init_from(tmp_path / "a" / "last.safetensors")


def test_init_says_which_settings_of_the_checkpoint_are_not_kept(tmp_path, caplog):
    before = micro_config(steps=1, branches="predictive")
    before = replace(before, sampler=replace(before.sampler, noise=0.0))
    Trainer(before, Tones(), tmp_path / "a").run()
    start = tmp_path / "a" / "last.safetensors"
    Trainer(before, Tones(), tmp_path / "b").init_from(start)
    assert not caplog.messages
    Trainer(micro_config(branches="predictive"), Tones(), tmp_path / "c").init_from(start)
    assert "sampler.noise = 0.0 (now 1.0): the export takes what is set now" in caplog.text
    other = replace(before, signal=replace(before.signal, compress_exponent=0.5))
    with pytest.raises(InputError, match=r"another \[signal\]"):
        Trainer(other, Tones(), tmp_path / "d").init_from(start)


@pytest.mark.parametrize("train", [
    {"branches": "predictive"},
    {"branches": "score"},
    {"branches": "score", "score_weight": 0.0, "sampler_weight": 1.0},
], ids=["predictive", "score", "sampler"])  # fmt: skip
def test_a_causal_model_starts_from_an_offline_one_and_learns(tmp_path, train):
    Trainer(micro_config(steps=1), Tones(), tmp_path / "a").run()
    offline = tmp_path / "a" / "last.safetensors"
    config = micro_config(schedule="constant", **train)
    live = replace(config, model=replace(config.model, causal=True, lookahead_blocks=1))
    trainer = Trainer(live, Tones(), tmp_path / "b")
    trainer.init_from(offline)
    batch = [torch.from_numpy(np.stack([Tones().pair(0, 0, i)[k] for i in (1, 2)])) for k in (0, 1)]
    losses = [trainer.train_step(*batch)["loss"] for _ in range(8)]
    assert all(math.isfinite(loss) for loss in losses)
    trainer.step = 0  # the same draws as at first
    assert trainer.train_step(*batch)["loss"] < losses[0]
    trainer.save()
    other = replace(live, model=replace(live.model, lookahead_blocks=3))
    Trainer(other, Tones(), tmp_path / "c").init_from(tmp_path / "b" / "last.safetensors")
    with pytest.raises(InputError, match=r"another \[model\]"):
        Trainer(config, Tones(), tmp_path / "d").init_from(tmp_path / "b" / "last.safetensors")


def test_bad_batch_is_skipped_and_changes_nothing(tmp_path, caplog):
    trainer = Trainer(micro_config(steps=3), Tones(broken=(2,)), tmp_path)
    states = []
    trainer.report = lambda _: None
    step = trainer.train_step

    def watched(*batch):
        states.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        return step(*batch)

    trainer.train_step = watched
    trainer.run()
    assert trainer.step == 3
    assert trainer.skipped == 1
    assert weights_equal(states[1], states[2])
    assert "step 1 (seed 0, epoch 0, crops 2 to 3): loss nan" in caplog.text
    assert all(torch.isfinite(v).all() for v in trainer.model.state_dict().values())


def test_many_bad_batches_stop_training(tmp_path):
    trainer = Trainer(
        micro_config(nan_limit=2, epoch_crops=9, branches="predictive"),
        Tones(broken=tuple(range(9))),
        tmp_path,
    )
    with pytest.raises(TrainingError, match="crops 2 to 3"):
        trainer.run()


def test_evaluation_keeps_the_best(tmp_path):
    scores = iter([1.0, 3.0, 2.0, 2.5])
    trainer = Trainer(
        micro_config(steps=3, eval_minutes=1e-9, branches="predictive"),
        Tones(),
        tmp_path,
        evaluate=lambda model, config: {"score": next(scores)},
    )
    trainer.run()
    assert read_checkpoint(tmp_path / "best.safetensors")[2]["step"] == "2"
    assert [r["score"] for r in log_of(tmp_path) if r["kind"] == "dev"] == [1.0, 3.0, 2.0, 2.5]


@pytest.fixture
def clock(monkeypatch):
    """Goes on by a second each time that the loop reads it: twice a step, once before."""
    monkeypatch.setattr(
        dvpd.training.trainer, "time", SimpleNamespace(monotonic=itertools.count().__next__)
    )


@pytest.mark.usefixtures("clock")
def test_minutes_are_a_budget(tmp_path):
    # a step takes a second: a budget of 0.05 minutes is three steps, whatever [train] steps says
    config = micro_config(minutes=0.05, steps=1, branches="predictive")
    trainer = Trainer(config, Tones(), tmp_path)
    trainer.run()
    assert (trainer.step, trainer.seconds) == (3, 3.0)
    rates = [r["lr"] for r in log_of(tmp_path)]
    expected = [3e-3 * 0.5 * (1 + math.cos(math.pi * part / 3)) for part in range(3)]
    assert rates == pytest.approx(expected, rel=1e-5)


def test_a_deadline_ends_schedule_and_training(tmp_path, monkeypatch):
    # The wall clock is read once before each step; a second goes by between two readings.
    now = itertools.count(1000.0).__next__
    ticks = itertools.count().__next__
    monkeypatch.setattr(dvpd.training.trainer, "time", SimpleNamespace(monotonic=ticks, time=now))
    config = micro_config(steps=1, minutes=9.0, branches="predictive")
    trainer = Trainer(config, Tones(), tmp_path)
    trainer.run(clock=(998.0, 1004.0))  # two of the six seconds went by before it could start
    assert trainer.step == 4
    expected = [3e-3 * 0.5 * (1 + math.cos(math.pi * part / 6)) for part in (2, 3, 4, 5)]
    assert [r["lr"] for r in log_of(tmp_path)] == pytest.approx(expected, rel=1e-5)
    again = Trainer(config, Tones(), tmp_path)
    again.resume()
    again.run(clock=(998.0, 1004.0))  # it is over: nothing is done, and nothing is lost
    assert again.step == 4


def test_crops_in_words():
    config = TrainConfig(batch_size=2, epoch_crops=5, seed=7)
    assert crops_of(config, 1) == "seed 7, epoch 0, crops 2 to 3"
    assert crops_of(config, 2) == "seed 7, epoch 0, crop 4 to epoch 1, crop 0"


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


def test_bf16_and_channels_last_train(tmp_path):
    trainer = Trainer(
        micro_config(steps=2, precision="bf16", channels_last=True), Tones(), tmp_path
    )
    trainer.run()
    assert all(math.isfinite(r["loss"]) for r in log_of(tmp_path))
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_detached_features_shield_the_predictive_branch(tmp_path):
    config = micro_config(
        detach_feats=True, mag_weight=0.0, ri_weight=0.0, phase_weight=0.0, steps=1
    )
    trainer = Trainer(config, Tones(), tmp_path)
    trainer.run()
    grads = [p.grad for p in trainer.model.predictive.parameters() if p.grad is not None]
    assert all(not g.any() for g in grads)
    assert any(p.grad is not None and p.grad.any() for p in trainer.model.score.parameters())


def test_frozen_norms_keep_their_statistics(tmp_path):
    """The weights learn; in the training as in use, a crop's output does not depend on its batch."""
    config = micro_config(branches="predictive", steps=2, freeze_norms=True)
    trainer = Trainer(config, Tones(), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.predictive.state_dict().items()}
    trainer.run()
    after = trainer.model.predictive.state_dict()
    statistics = [k for k in before if "running_" in k]
    assert statistics
    assert all(torch.equal(before[k], after[k]) for k in statistics)
    assert not weights_equal(before, after)
    noisy = torch.randn(2, 3, 32, 257)
    together, alone = (trainer.model.predictive(x)[0][:1] for x in (noisy, noisy[:1]))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_only_named_parameters_learn(tmp_path):
    names = ("predictive.encoder", "predictive.unet.enc1")
    config = micro_config(branches="predictive", steps=2, freeze_norms=True, only=names)
    trainer = Trainer(config, Tones(), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.run()
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert all(k.startswith(names) for k in changed)
    assert all(any(k.startswith(name) for k in changed) for name in names)


@pytest.mark.parametrize("name", ["predictive.head", "score.encoder"])
def test_a_name_that_is_no_trained_parameters_is_refused(tmp_path, name):
    config = micro_config(branches="predictive", only=("predictive.encoder", name))
    with pytest.raises(InputError, match=r"train only has '.*predictive\.decoder"):
        Trainer(config, Tones(), tmp_path)
