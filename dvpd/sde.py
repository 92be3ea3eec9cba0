"""The diffusion process on tensors, and the reference sampler (paper Alg. 1).

All numbers come from ``runtime.schedule`` (float64 NumPy), the one place where they are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .model import DVPD
from .runtime import schedule
from .runtime.schedule import SdeSpec
from .runtime.spec import SamplerSpec
from .spectral import magnitude

LEAK = 0.1


def _table(function: Callable[..., object], sde: SdeSpec, t: Tensor) -> Tensor:
    values = function(sde, t.detach().cpu().double().numpy())
    return torch.as_tensor(values, dtype=torch.float32, device=t.device)[:, None, None, None]


def mean(sde: SdeSpec, x0: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Mean of the marginal at times ``t`` [B], given ``x0`` and ``y`` [B, 1, T, F]."""
    w = _table(schedule.mean_weight, sde, t)
    return w * x0 + (1 - w) * y


def std(sde: SdeSpec, t: Tensor) -> Tensor:
    """Standard deviation of the marginal at times ``t`` [B], as [B, 1, 1, 1]."""
    return _table(schedule.std, sde, t)


def reverse(
    model: DVPD,
    noisy: Tensor,
    predicted: Tensor,
    feats: Sequence[Tensor],
    noise: Sequence[Tensor],
    sde: SdeSpec,
    sampler: SamplerSpec,
    tlb_skip: Tensor | None = None,
    tlb_backbone: Tensor | None = None,
) -> Tensor:
    """The sampler after the predictive branch: the fused magnitude [B, 1, T, F].

    Gradients reach the last call of the score network and the fusion; the steps before it only
    make its input (Lay et al. 2023, arXiv 2309.09677, "correcting the reverse process").

    Args:
        model: Both branches.
        noisy: Compressed noisy spectrum [B, 3, T, F].
        predicted: The predictive branch's estimate [B, 2, T, F].
        feats: Its features.
        noise: As in `sample`.
        sde: The process.
        sampler: Start time, steps and fusion weight.
        tlb_skip: TLB factors [2, 2], or None.
        tlb_backbone: TLB factors [2, 2], or None.
    """
    y, x_p = noisy[:, 2:3], magnitude(predicted)
    start = schedule.initial_state(sde, sampler.t_rs)
    steps = schedule.sampler_steps(sde, sampler.t_rs, sampler.n_steps)
    xt = (start.w_x0 * x_p + start.w_y * y + start.std * noise[0]).detach()
    x_mean = xt
    for i, step in enumerate(steps):
        last = i + 1 == len(steps)
        t = torch.full((noisy.shape[0],), step.t, dtype=noisy.dtype, device=noisy.device)
        with torch.set_grad_enabled(last and torch.is_grad_enabled()):
            sigma_z = model.score(xt, t, feats, tlb_skip, tlb_backbone)
            x_mean = step.a * xt + step.b * y + step.e * sigma_z
        if not last:
            xt = x_mean + step.n * noise[i + 1]
    return sampler.alpha * x_p + (1 - sampler.alpha) * _rectified(x_mean)


def _rectified(x: Tensor) -> Tensor:
    """max(x, 0), with a tenth of the gradient below zero: what fell there can come back."""
    below = x.clamp_max(0)
    return x.clamp_min(0) + LEAK * (below - below.detach())


def with_phase(mag: Tensor, spectrum: Tensor) -> Tensor:
    """A spectrum of magnitudes [B, 1, T, F] with the phase of another one [B, 2, T, F]."""
    return mag * spectrum / magnitude(spectrum)


@torch.no_grad()
def sample(
    model: DVPD,
    noisy: Tensor,
    noise: Sequence[Tensor],
    *,
    sde: SdeSpec | None = None,
    sampler: SamplerSpec | None = None,
    tlb_skip: Tensor | None = None,
    tlb_backbone: Tensor | None = None,
    phase: str = "predictive",
) -> tuple[Tensor, Tensor]:
    """Reference sampler, paper Algorithm 1.

    Args:
        model: Both branches, in eval mode.
        noisy: Compressed noisy spectrum [B, 3, T, F] (real, imaginary, magnitude).
        noise: ``sampler.n_steps`` draws z [B, 1, T, F]: the first for the initial state, the
            others after each step but the last.
        sde: The process; BBED with the paper's constants by default.
        sampler: Start time, steps and fusion weight.
        tlb_skip: TLB factors [2, 2], or None.
        tlb_backbone: TLB factors [2, 2], or None.
        phase: "predictive", or "noisy" (the paper's ablation with the degraded phase).

    Returns:
        The enhanced compressed spectrum and the predictive branch's, [B, 2, T, F] each.
    """
    sde, sampler = sde or SdeSpec(), sampler or SamplerSpec()
    if phase not in ("predictive", "noisy"):
        raise ValueError(f"phase is {phase!r}; expected 'predictive' or 'noisy'")
    predicted, feats = model.predictive(noisy)
    fused = reverse(model, noisy, predicted, feats, noise, sde, sampler, tlb_skip, tlb_backbone)
    direction = predicted if phase == "predictive" else noisy[:, :2]
    return with_phase(fused, direction), predicted
