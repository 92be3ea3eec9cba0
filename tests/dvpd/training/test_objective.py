"""The losses of the score branch around the clean magnitude: what each compares, and that it teaches."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_parts import Tones, micro_config

from dvpd.config.train import TrainConfig
from dvpd.losses import weighted_sum
from dvpd.model import DVPD
from dvpd.runtime.errors import InputError
from dvpd.runtime.schedule import SdeSpec, sampler_steps
from dvpd.runtime.spec import SamplerSpec
from dvpd.sde import Marginal
from dvpd.spectral import SIGNAL, compress, compressed_noisy, magnitude
from dvpd.training.objective import Objective, wrong
from dvpd.training.trainer import Trainer

ALONE = {"branches": "score", "score_weight": 0.0}
LOSSES = {
    "x0": {"branches": "score", "target": "x0", "t_range": (0.03, 0.16)},
    "start": {**ALONE, "start_weight": 1.0},
    "start x0": {**ALONE, "start_weight": 1.0, "target": "x0"},
    "consistency": {**ALONE, "consistency_weight": 1.0, "consistency_steps": 4},
    "consistency by the average": {
        **ALONE, "consistency_weight": 1.0, "consistency_steps": 4, "consistency_target": "ema",
    },
}  # fmt: skip


def batch() -> list[torch.Tensor]:
    """Two tones in noise and the tones alone, [2, 4096] each."""
    pairs = [Tones().pair(0, 0, i) for i in (1, 2)]
    return [torch.from_numpy(np.stack([pair[k] for pair in pairs])) for k in (0, 1)]


def spectra() -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and noisy magnitude of the batch, [2, 1, T, 257]."""
    noisy, clean = batch()
    parts = compressed_noisy(noisy)[:, 2:3], magnitude(compress(clean))
    y, x0 = (torch.nn.functional.pad(p, (0, 0, 0, -p.shape[2] % 4)) for p in parts)
    return x0, y


class Network(torch.nn.Module):
    """A score network of a formula; keeps the times that it was asked at."""

    def __init__(self, formula) -> None:
        super().__init__()
        self.formula, self.times = formula, []

    def forward(self, xt, t, feats):
        self.times.append(t.clone())
        return self.formula(xt, t)


def objective_with(formula, tmp_path, **train) -> Objective:
    objective = Trainer(micro_config(**{"branches": "score", **train}), Tones(), tmp_path).objective
    objective.model.score = Network(formula)
    return objective


def losses_of(objective: Objective, step: int = 0) -> dict[str, torch.Tensor]:
    noisy, clean = batch()
    return objective(noisy, clean, objective.draw(step, *noisy.shape, noisy.device))


@pytest.mark.parametrize("name", ["bbed", "ouve"])
def test_the_clean_magnitude_comes_back_from_the_true_noise(name):
    sde = SdeSpec(name=name)
    marginal, t = Marginal(sde), torch.tensor([0.02, 0.12])
    x0, y = spectra()
    noise = marginal.std(t) * torch.randn(x0.shape)
    xt = marginal.mean(x0, y, t) + noise
    torch.testing.assert_close(marginal.clean(xt, y, noise, t), x0, rtol=1e-4, atol=1e-5)
    step = sampler_steps(sde, 0.12, 1, "exact")[0]
    torch.testing.assert_close(
        marginal.clean(xt, y, noise, t)[1],
        step.a * xt[1] + step.b * y[1] + step.e * noise[1],
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_both_targets_are_one_error_in_two_units(tmp_path):
    """At one time: error of x0 = error of sigma z / w, error of z = error of sigma z / sigma."""
    found = {}
    for target in ("noise", "x0"):
        objective = objective_with(
            lambda xt, t: 0.3 * xt, tmp_path / target, target=target, score_weight=0.0,
            start_weight=1.0,
        )  # fmt: skip
        found[target] = losses_of(objective)["start"]
    start = objective.plan.start
    torch.testing.assert_close(found["x0"] * start.w_x0**2, found["noise"] * start.std**2)


def test_the_start_loss_is_the_score_loss_at_the_start_time_alone(tmp_path):
    objective = objective_with(lambda xt, t: 0.0 * xt, tmp_path, start_weight=0.5)
    terms = losses_of(objective)
    ranged, start = objective.model.score.times
    assert list(terms) == ["score", "start"]
    assert start.tolist() == pytest.approx([0.12, 0.12])
    assert len(set(ranged.tolist())) == 2
    assert terms["start"].item() == pytest.approx(1.0, rel=0.1)  # mean of z^2: none was found
    assert weighted_sum(objective.config.train, terms) == terms["score"] + 0.5 * terms["start"]


def test_a_network_that_knows_the_noise_loses_nothing(tmp_path):
    x0, y = spectra()

    def know(objective):
        return lambda xt, t: xt - objective.marginal.mean(x0, y, t)

    for i, train in enumerate(LOSSES.values()):
        objective = objective_with(None, tmp_path / str(i), **train)
        objective.model.score.formula = know(objective)
        if objective.average is not None:
            objective.average = objective.model.score
        assert all(term.item() < 1e-8 for term in losses_of(objective).values()), train


def test_neighbours_of_a_trajectory_are_compared_and_the_earliest_is_told_the_truth(tmp_path):
    """An estimate that is always 0 is consistent: only the first interval's pairs object."""
    config = {**ALONE, "consistency_weight": 1.0, "consistency_steps": 4}
    objective = objective_with(None, tmp_path, **config)
    _, y = spectra()
    weight = objective.marginal.weight
    objective.model.score.formula = lambda xt, t: xt - (1 - weight(t)) * y
    grid = np.linspace(0.01, 0.12, 5)
    power = spectra()[0].square().mean((1, 2, 3))
    seen = set()
    for step in range(12):
        objective.model.score.times.clear()
        loss = losses_of(objective, step)["consistency"]
        earlier, later = (t.numpy() for t in objective.model.score.times)
        interval = np.abs(earlier[:, None] - grid).argmin(1)
        seen |= set(interval.tolist())
        np.testing.assert_allclose(earlier, grid[interval], atol=1e-6)
        np.testing.assert_allclose(later, grid[interval + 1], atol=1e-6)
        expected = (power * torch.from_numpy(interval == 0)).mean()
        torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-4)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("name", "causal"),
    [("x0", True), ("start", False), ("start x0", False), ("consistency", False),
     ("consistency", True), ("consistency by the average", False)],
)  # fmt: skip
def test_a_small_network_learns_by_each_loss_and_the_frozen_branch_does_not_move(
    tmp_path, name, causal
):
    config = micro_config(schedule="constant", **LOSSES[name])
    config = replace(config, model=replace(config.model, causal=causal))
    trainer = Trainer(config, Tones(), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with torch.no_grad():
        first = weighted_sum(config.train, trainer.losses(*batch()))
    for _ in range(5):
        trainer.train_step(*batch())
        trainer.step = 0  # the same times and noise
    with torch.no_grad():
        assert weighted_sum(config.train, trainer.losses(*batch())) < 0.97 * first
    after = trainer.model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.split(".")[0] for k in moved} == {"score"}
    assert any("interactions" in k for k in moved)  # the features count, too


def test_consistency_reaches_the_later_state_alone(tmp_path):
    """The target has no gradient, be it the network's own estimate or its average's."""
    for target in ("stop", "ema"):
        config = micro_config(**{**LOSSES["consistency"], "consistency_target": target})
        trainer = Trainer(config, Tones(), tmp_path / target)
        asked = []
        for network, who in ((trainer.model.score, "own"), (trainer.ema.model.score, "average")):
            network.register_forward_hook(
                lambda m, i, out, who=who, to=asked: to.append((who, out.requires_grad))
            )
        weighted_sum(config.train, trainer.losses(*batch())).backward()
        told = "own" if target == "stop" else "average"
        assert asked == [(told, False), ("own", True)]
        assert all(p.grad is None for p in trainer.ema.model.parameters())
        grads = [p.grad for p in trainer.model.score.decoder.parameters()]
        assert all(torch.isfinite(g).all() for g in grads if g is not None)
        assert any(g.abs().max() > 0 for g in grads if g is not None)


def test_losses_without_room_are_refused_in_words(tmp_path):
    def made(sampler=None, **train):
        config = micro_config(**{"branches": "score", **train})
        return Trainer(replace(config, sampler=sampler or SamplerSpec()), Tones(), tmp_path)

    with pytest.raises(InputError, match=r"t_range ends at 0\.999.*lower the range's end"):
        made(target="x0")
    made(target="x0", score_weight=0.0, start_weight=1.0)  # the range is not used
    with pytest.raises(InputError, match=r"t_rs is 0\.01; with train consistency_weight"):
        made(SamplerSpec(t_rs=0.01), consistency_weight=1.0)
    none = SamplerSpec(n_steps=0)
    with pytest.raises(
        InputError, match=r"n_steps is 0 and train sampler_weight 0\.5; .*--set sampler\.n_steps=1"
    ):
        made(none, sampler_weight=0.5)
    made(none)  # the denoising loss needs no sampler
    quiet = SamplerSpec(noise=0.0)
    with pytest.raises(
        InputError, match=r"noise is 0 and train sampler_weight 0; .*sampler\.noise=1"
    ):
        made(quiet)
    made(quiet, sampler_weight=0.5)
    made(quiet, branches="predictive")
    made(none, sampler_weight=0.5, branches="predictive")
    with pytest.raises(InputError, match="target is 'clean'; expected one of noise, x0"):
        TrainConfig(target="clean")
    with pytest.raises(InputError, match="expected one of stop, ema"):
        TrainConfig(consistency_target="teacher")
    with pytest.raises(InputError, match="consistency_steps"):
        TrainConfig(consistency_steps=0)


def test_training_through_the_sampler_has_its_share_of_the_noise(tmp_path):
    def loss(share):
        config = micro_config(sampler_weight=1.0, branches="score", score_weight=0.0)
        config = replace(config, sampler=replace(config.sampler, n_steps=1, noise=share))
        objective = Trainer(config, Tones(), tmp_path / str(share)).objective.eval()
        noisy, clean = batch()
        drawn = [objective.draw(step, *noisy.shape, torch.device("cpu")) for step in (0, 1)]
        return [float(objective(noisy, clean, x)["sampler"]) for x in drawn]

    with torch.no_grad():
        quiet, whole = loss(0.0), loss(1.0)
    assert quiet[0] == quiet[1]
    assert abs(whole[0] - whole[1]) > 1e-6 * whole[0]


def test_the_draws_of_the_new_losses_leave_the_others_as_they_were(tmp_path):
    plain = Trainer(micro_config(sampler_weight=1.0), Tones(), tmp_path / "a").objective
    more = Trainer(
        micro_config(sampler_weight=1.0, start_weight=1.0, consistency_weight=1.0), Tones(),
        tmp_path / "b",
    ).objective  # fmt: skip
    old, new = (o.draw(3, 2, 4096, torch.device("cpu")) for o in (plain, more))
    assert torch.equal(old.t, new.t)
    assert torch.equal(old.z, new.z)
    assert all(torch.equal(a, b) for a, b in zip(old.noise, new.noise, strict=True))
    interval, z = new.trajectory
    assert not torch.equal(new.start, z)
    assert all(0 <= i < 8 and math.floor(i) == i for i in interval.tolist())


def keeper(tmp_path, **train) -> tuple[Objective, DVPD]:
    """An objective that keeps what other weights make of speech, and these."""
    settings = {"branches": "predictive", "keep_speech": True, **train}
    objective = Trainer(micro_config(**settings), Tones(), tmp_path).objective
    torch.manual_seed(5)
    teacher = DVPD(objective.config.model)
    objective.keep(teacher)
    return objective, teacher


def test_crops_with_speech_keep_the_teachers_output(tmp_path):
    """Its own weights lose nothing on speech; on noise alone they are still told silence."""
    weights = {"snr_weight": 1.0, "estoi_weight": 1.0, "silence_weight": 1.0, "mag_weight": 1.0}
    objective, teacher = keeper(tmp_path, **weights)
    objective.model.predictive.load_state_dict(teacher.predictive.state_dict())
    objective.model.predictive.eval()
    noisy, clean = batch()
    terms = objective(noisy, clean, objective.draw(0, *noisy.shape, noisy.device))
    assert terms["mag"].item() < 1e-10
    assert terms["ri"].item() < 1e-10
    assert terms["phase"].item() < 1e-3
    assert terms["snr"].item() == pytest.approx(-3.0, abs=0.01)  # its limit, in tens of dB
    spectra_of = torch.nn.functional.pad(compressed_noisy(noisy), (0, 0, 0, 3))
    told, _ = teacher.predictive(spectra_of)
    silent = objective(noisy, 0.0 * clean, objective.draw(0, *noisy.shape, noisy.device))
    assert silent["ri"].item() == pytest.approx(told.square().mean().item(), rel=0.05)
    assert silent["silence"].item() > 1.0


def test_where_the_teacher_loses_speech_or_nobody_speaks_the_clean_speech_is_the_target():
    """Each stretch is judged by itself, and noise that was added does not make up for what was lost."""
    rng = torch.Generator().manual_seed(2)
    clean = torch.randn(2, 2 * 16000, generator=rng)
    clean[1, 16000:] = 0.0
    target = compress(clean)  # 251 frames
    kept = target.clone()
    kept[0, :, :60] *= 0.5**0.3  # 6 dB
    kept[0, :, 60:, 100:] *= 0.01  # the higher part of the spectrum: 2 dB and more
    kept[0, :, 60:, :100] *= 2.0  # more power than before in all
    judged = wrong(kept, target, 1.5, SIGNAL)[:, 0, :, 0]
    assert judged.shape == (2, 251)
    assert judged[0].all()
    assert not judged[1, :100].any()
    assert judged[1, 150:].all()
    assert not wrong(kept, target, 7.0, SIGNAL)[0, 0, :40].any()
    assert not wrong(target, target, 0.1, SIGNAL)[0].any()


class Says(torch.nn.Module):
    """A predictive network with one answer."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.answer, []


def test_a_teacher_that_takes_a_talker_away_is_followed_elsewhere_alone(tmp_path):
    """The mean of both targets: the truth in the first crop, which the teacher silences."""
    objective, _ = keeper(tmp_path, keep_within_db=1.5)
    noisy, clean = batch()
    spectra_of = torch.nn.functional.pad(compressed_noisy(noisy), (0, 0, 0, 3))
    target = torch.nn.functional.pad(compress(clean), (0, 0, 0, 3))
    louder = torch.stack([0.01 * target[0], 1.1 * target[1]])
    objective.teacher = Says(louder)
    told, wav = objective._kept(spectra_of, None, target, clean)
    speech = magnitude(target)[0, 0].square().sum(-1)
    loud = speech > 0.1 * speech.max()
    assert torch.equal(told[0][:, loud], target[0][:, loud])
    assert torch.equal(told[1], louder[1])
    missed = (wav[0] - clean[0]).square().sum() / clean[0].square().sum()
    assert missed < 0.01


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_network_may_learn_from_one_that_hears_all_at_the_crops_own_level(
    tmp_path, causal
):
    """What the teacher hears, and what its answer means, does not depend on the student's level."""
    objective, _ = keeper(tmp_path)
    heard = []

    class Same(torch.nn.Module):
        def forward(self, noisy: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            heard.append(noisy)
            return noisy[:, :2], []

    objective.teacher, objective._teacher_causal = Same(), causal
    noisy, clean = batch()
    spectra_of, target = compressed_noisy(noisy), compress(clean)
    scale = torch.rand(len(noisy), 1, spectra_of.shape[2], 1) + 0.5
    told, _ = objective._kept(spectra_of * scale, scale, target, clean)
    torch.testing.assert_close(heard[0], spectra_of * scale if causal else spectra_of)
    torch.testing.assert_close(told, spectra_of[:, :2])


def test_the_teacher_does_not_learn(tmp_path):
    objective, teacher = keeper(tmp_path)
    terms = losses_of(objective)
    weighted_sum(objective.config.train, terms).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None for p in objective.model.predictive.parameters())


def test_speech_is_kept_by_a_teacher_and_in_the_predictive_branch_alone(tmp_path):
    config = micro_config(branches="predictive", keep_speech=True)
    with pytest.raises(InputError, match=r"keep_speech is true; expected the weights.*--keep CKPT"):
        losses_of(Trainer(config, Tones(), tmp_path).objective)
    with pytest.raises(InputError, match="keep_speech is true with branches = 'both'"):
        micro_config(keep_speech=True)
