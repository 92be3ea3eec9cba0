"""The loudness disturbance: zero at equality, follows PESQ, asymmetric, finite gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from dvpd.spectral import SIGNAL, compress
from dvpd.training.perceptual import (
    BAND_BARK,
    _bands,
    bark,
    hearing_threshold_db,
    loudness_disturbance,
    perceptual_loss,
)

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
AT_EQUALITY = 1e-6
PESQ_CORRELATION = -0.85


@pytest.fixture(scope="module")
def speech() -> tuple[torch.Tensor, torch.Tensor]:
    clean, noisy = (sf.read(EXAMPLES / f"{n}.flac", dtype="float32")[0] for n in ("clean", "noisy"))
    scale = 1.0 / np.abs(noisy).max()
    return torch.from_numpy(noisy * scale)[None], torch.from_numpy(clean * scale)[None]


def disturbance(estimate: torch.Tensor, target: torch.Tensor) -> float:
    return loudness_disturbance(compress(estimate), compress(target)).item()


def test_bark_and_threshold_at_known_points():
    # Traunmueller's formula puts 1 kHz at 8.53 Bark; the ear is most sensitive near 3.3 kHz
    assert bark(np.array([1000.0]))[0] == pytest.approx(8.53, abs=0.01)
    freqs = np.linspace(50.0, 8000.0, 1000)
    best = freqs[np.argmin(hearing_threshold_db(freqs))]
    assert 3000.0 < best < 3600.0


def test_bands_keep_the_power_of_every_bin_inside_their_range():
    matrix, threshold, _ = _bands(SIGNAL, 16000)
    inside = matrix.sum(1)
    np.testing.assert_allclose(inside[2:-1], 1.0, atol=1e-6)
    assert matrix.shape[1] == len(threshold) == pytest.approx(21.0 / BAND_BARK, abs=3)
    assert (matrix.sum(0) > 0).all()


def test_nothing_at_equality_and_for_silence(speech):
    _, clean = speech
    assert disturbance(clean, clean) < AT_EQUALITY
    assert disturbance(clean, torch.zeros_like(clean)) == 0.0


def test_level_of_the_pair_does_not_matter(speech):
    noisy, clean = speech
    assert disturbance(0.1 * noisy, 0.1 * clean) == pytest.approx(
        disturbance(noisy, clean), rel=1e-3
    )


def test_more_noise_disturbs_more(speech):
    noisy, clean = speech
    noise = noisy - clean
    values = [disturbance(clean + g * noise, clean) for g in (0.0, 0.1, 0.3, 1.0, 2.0)]
    assert values == sorted(values)
    assert values[-1] > values[1] + 0.5


def test_added_energy_disturbs_more_than_missing_energy(speech):
    _, clean = speech
    generator = torch.Generator().manual_seed(0)
    noise = 0.03 * clean.std() * torch.randn(clean.shape, generator=generator)
    # Target and estimate change places: what was added now is missing.
    assert disturbance(clean + noise, clean) > 1.3 * disturbance(clean, clean + noise)


def test_follows_pesq_over_kinds_and_levels_of_degradation(speech):
    from pesq import pesq

    noisy, clean = speech
    noise = noisy - clean
    generator = torch.Generator().manual_seed(1)
    white = torch.randn(clean.shape, generator=generator) * clean.std()
    noises = [clean + g * noise for g in (0.05, 0.2, 0.5, 1.0)]
    noises += [clean + g * white for g in (0.003, 0.03, 0.1, 0.4)]
    clipped = [clean.clamp(-q, q) for q in (0.02, 0.06, 0.15, 0.5)]
    for cases in (noises, clipped):
        mine = [disturbance(x, clean) for x in cases]
        theirs = [pesq(16000, clean[0].numpy(), x[0].numpy(), "wb") for x in cases]
        # 50 pairs of recordings with additive noise, rooms, clipping, low-passes: -0.88
        assert np.corrcoef(mine, theirs)[0, 1] < PESQ_CORRELATION


def test_forgives_a_filter_as_pesq_does(speech):
    from pesq import pesq

    from dvpd.data.degrade import lowpass

    _, clean = speech
    for cutoff_hz in (6000.0, 4000.0, 3000.0):
        filtered = torch.from_numpy(lowpass(clean[0].numpy(), cutoff_hz, 8))[None]
        lost = 4.64 - pesq(16000, clean[0].numpy(), filtered[0].numpy(), "wb")
        # 0.43, 1.41 and 1.71 before the target was compensated: it taught to invent what is missing
        assert disturbance(filtered, clean) == pytest.approx(lost, abs=0.3)


def test_level_of_the_estimate_alone_does_not_matter(speech):
    noisy, clean = speech
    # levels are aligned before they are compared, as in P.862
    assert disturbance(0.5 * noisy, clean) == pytest.approx(disturbance(noisy, clean), rel=1e-3)


def test_gradient_is_finite_with_silence_and_points_towards_the_target(speech):
    noisy, clean = speech
    target = compress(torch.cat([clean, torch.zeros_like(clean), clean]))
    estimate = compress(torch.cat([noisy, noisy, torch.zeros_like(clean)])).requires_grad_()
    loss = perceptual_loss(estimate, target)
    loss.backward()
    assert torch.isfinite(estimate.grad).all()
    assert estimate.grad[0].abs().sum() > 0
    better = estimate.detach() + 0.1 * (target - estimate.detach())
    assert perceptual_loss(better, target) < loss


def test_does_not_reward_quieter_bands(speech):
    _, clean = speech
    target = compress(clean)  # [1, 2, T, 257]
    generator = torch.Generator().manual_seed(2)
    patches = 0.2 + 0.8 * torch.rand(1, 1, target.shape[2] // 8 + 1, 33, generator=generator)
    estimate = target * torch.nn.functional.interpolate(patches, target.shape[2:])  # as masks err
    gain = torch.ones(257, requires_grad=True)
    upper = torch.arange(257) >= 64  # from 2 kHz
    perceptual_loss(estimate * torch.where(upper, gain, 1.0), target).backward()
    # +0.07 where the compensation is differentiated: a network then took 10 dB from these bands
    assert gain.grad.sum() < 0.0
