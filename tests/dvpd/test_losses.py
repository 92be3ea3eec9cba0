"""Losses: zero at equality, what they respond to, finite gradients at silence."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dvpd.config.train import TrainConfig
from dvpd.losses import (
    anti_wrap,
    mr_stft_loss,
    phase_loss,
    predictive_terms,
    score_loss,
    si_sdr_loss,
    silence_loss,
    snr_loss,
    weighted_sum,
)
from dvpd.spectral import compress

EXTRA = (
    "mr_stft_weight", "si_sdr_weight", "snr_weight", "perceptual_weight", "estoi_weight",
    "silence_weight",
)  # fmt: skip
ALL = TrainConfig(**dict.fromkeys(EXTRA, 1.0))
# arithmetic in float32 on angles up to a few pi
ANGLE_TOLERANCE = 1e-5


@pytest.fixture
def waves():
    g = torch.Generator().manual_seed(0)
    clean = 0.1 * torch.randn(2, 8192, generator=g)
    return clean + 0.02 * torch.randn(2, 8192, generator=g), clean


def test_anti_wrap_is_the_distance_on_the_circle():
    x = torch.linspace(-20, 20, 4001)
    expected = torch.acos(torch.cos(x.double())).float()
    torch.testing.assert_close(anti_wrap(x), expected, rtol=0, atol=ANGLE_TOLERANCE)
    torch.testing.assert_close(anti_wrap(x), anti_wrap(-x))
    torch.testing.assert_close(
        anti_wrap(x + 2 * math.pi), anti_wrap(x), rtol=0, atol=ANGLE_TOLERANCE
    )
    assert anti_wrap(torch.tensor(0.0)) == 0


def rotate(spec: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    z = torch.view_as_complex(spec.movedim(1, -1).contiguous()) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.view_as_real(z).movedim(-1, 1)


def test_phase_loss_by_hand(waves):
    spec = compress(waves[1])
    frames, bins = spec.shape[2:]
    # float32 rounding of near-equal angles
    assert phase_loss(spec, spec) < 1e-5
    constant = rotate(spec, torch.full((frames, bins), 0.7))
    assert phase_loss(constant, spec).item() == pytest.approx(0.7, abs=1e-3)
    # a full turn of steps wraps: 0.5 rad a bin gives a group delay error of 0.5 everywhere
    slope = rotate(spec, (0.5 * torch.arange(bins)).expand(frames, bins))
    delta = anti_wrap(0.5 * torch.arange(bins)).mean()
    assert phase_loss(slope, spec).item() == pytest.approx(float(delta) + 0.5, abs=1e-3)


def test_terms_are_zero_at_equality(waves):
    spec = compress(waves[1])
    terms = predictive_terms(ALL, spec, spec, waves[1])
    assert set(terms) == {
        "mag",
        "ri",
        "phase",
        "mr_stft",
        "si_sdr",
        "snr",
        "perceptual",
        "estoi",
        "silence",
    }
    assert float(terms["mag"]) == 0.0
    assert float(terms["ri"]) == 0.0
    assert float(terms["phase"]) < 1e-5
    assert float(terms["perceptual"]) < 1e-5
    assert float(terms["mr_stft"]) < 1e-3
    assert float(terms["si_sdr"]) == pytest.approx(-3.0, abs=0.05)
    assert float(terms["snr"]) == pytest.approx(-3.0, abs=0.05)


def test_paper_terms_and_weights(waves):
    paper = TrainConfig()
    terms = predictive_terms(paper, compress(waves[0]), compress(waves[1]), waves[1])
    assert set(terms) == {"mag", "ri", "phase"}
    expected = 0.5 * terms["mag"] + 0.5 * terms["ri"] + 0.002 * terms["phase"]
    torch.testing.assert_close(weighted_sum(paper, terms), expected)


@pytest.mark.parametrize("silent", ["estimate", "target", "both"])
def test_gradients_are_finite_at_silence(waves, silent):
    noisy, clean = waves
    if silent in ("target", "both"):
        clean = torch.zeros_like(clean)
    estimate = compress(noisy)
    if silent in ("estimate", "both"):
        estimate = torch.zeros_like(estimate)
    estimate.requires_grad_(True)
    loss = weighted_sum(ALL, predictive_terms(ALL, estimate, compress(clean), clean))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(estimate.grad).all()


def test_score_loss():
    z = torch.randn(3, 1, 8, 257, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1, 1)
    assert score_loss(std * z, z, std) < 1e-12
    torch.testing.assert_close(score_loss(torch.zeros_like(z), z, std), z.square().mean())


def test_si_sdr_loss_ignores_scale_and_silence(waves):
    noisy, clean = waves
    torch.testing.assert_close(si_sdr_loss(3 * noisy, clean), si_sdr_loss(noisy, clean))
    # 14 dB of signal over noise, capped softly at 30
    assert float(si_sdr_loss(noisy, clean)) == pytest.approx(-1.39, abs=0.05)
    assert float(si_sdr_loss(noisy, torch.zeros_like(clean))) == 0.0


def test_snr_loss_holds_the_level(waves):
    _, clean = waves
    lowered = 10 ** (-2.2 / 20) * clean
    # 20 log10(1 / (1 - 0.776)) = 13.0 dB, softly limited at 30 dB
    assert float(snr_loss(lowered, clean)) == pytest.approx(-1.29, abs=0.01)
    assert float(snr_loss(lowered, clean)) > float(snr_loss(clean, clean)) + 1.5
    assert float(si_sdr_loss(lowered, clean)) == pytest.approx(float(si_sdr_loss(clean, clean)))
    assert float(snr_loss(clean, torch.zeros_like(clean))) == 0.0


def test_mr_stft_loss_orders_by_damage(waves):
    noisy, clean = waves
    assert mr_stft_loss(clean, clean) == 0
    assert mr_stft_loss(noisy, clean) < mr_stft_loss(clean + 5 * (noisy - clean), clean)


def speech_then_nothing(count: int = 24000) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    clean = 0.1 * torch.randn(1, count, generator=g)
    clean[:, count // 2 :] = 0.0
    return clean


def test_silence_loss_counts_decibels_where_nobody_speaks():
    clean = speech_then_nothing()
    noise = 0.03 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    noise[:, : clean.shape[1] // 2] = 0.0  # only in the pause
    target = compress(clean)
    losses = [
        float(silence_loss(compress(clean + 10.0 ** (-db / 20.0) * noise), target))
        for db in (0, 10, 20, 30)
    ]
    # Each 10 dB count alike: one unit in the half of the crop (less the frames beside the speech).
    for louder, quieter in itertools.pairwise(losses):
        assert louder - quieter == pytest.approx(0.5, abs=0.05)
    assert float(silence_loss(target, target)) < 1e-3


def test_silence_loss_leaves_speech_alone():
    clean = speech_then_nothing()
    target = compress(clean)
    half = clean * 0.5
    assert float(silence_loss(compress(half), target)) < 1e-3
    speaking = 0.1 * torch.randn(2, 8192, generator=torch.Generator().manual_seed(3))
    estimate = compress(speaking + 0.01).requires_grad_()
    loss = silence_loss(estimate, compress(speaking))
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert not estimate.grad.any()


def test_silence_loss_pulls_quiet_noise_down_where_squared_errors_hardly_do():
    target = compress(torch.zeros(1, 8192))
    g = torch.Generator().manual_seed(4)
    pulls = []
    for level in (0.1, 0.001):
        estimate = compress(level * torch.randn(1, 8192, generator=g)).requires_grad_()
        silence_loss(estimate, target).backward()
        assert torch.isfinite(estimate.grad).all()
        pulls.append(float((estimate * estimate.grad).detach().sum()))  # the change with the level
    assert pulls[1] > 0.5 * pulls[0] > 0.0
    nothing = compress(torch.zeros(1, 8192)).requires_grad_()
    silence_loss(nothing, target).backward()
    assert torch.isfinite(nothing.grad).all()
