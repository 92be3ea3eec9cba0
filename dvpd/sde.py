"""The diffusion process on tensors, and the reference sampler (paper Alg. 1).

The sampler's numbers come from ``runtime.schedule`` (float64 NumPy). Times that are drawn in training
are tensors on a device, which the host must not wait for: `Marginal` is the same closed form on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from .model import DVPD
from .runtime import schedule
from .runtime.schedule import InitialState, SamplerStep, SdeSpec
from .runtime.spec import SamplerSpec
from .spectral import magnitude

LEAK = 0.1


_EULER_GAMMA = 0.57721566490153286061
_TERMS = 59  # of the exponential integral's series, as in runtime.schedule


class Marginal(nn.Module):
    """Mean weight and standard deviation at times on any device, to float32 rounding.

    The formulas of ``runtime.schedule`` in float64; its comments give the source.
    """

    orders: Tensor
    series: Tensor

    def __init__(self, sde: SdeSpec) -> None:
        """Make the series' coefficients for a process."""
        super().__init__()
        self.sde = sde
        orders = torch.arange(1, _TERMS + 1, dtype=torch.float64)
        series = (-1.0) ** orders * torch.exp(-torch.lgamma(orders + 1)) / orders
        self.register_buffer("orders", orders, persistent=False)
        self.register_buffer("series", series, persistent=False)
        self.log_k = math.log(sde.k)
        self.ei_start = schedule.exp_integral(-2.0 * self.log_k)

    def weight(self, t: Tensor) -> Tensor:
        """Weight of x0 in the mean at times ``t`` [B] in [0, 1), as float32 [B, 1, 1, 1]."""
        t = t.double()
        w = 1.0 - t if self.sde.name == "bbed" else torch.exp(-self.sde.gamma * t)
        return w.float()[:, None, None, None]

    def std(self, t: Tensor) -> Tensor:
        """Standard deviation at times ``t`` [B] in [0, 1), as float32 [B, 1, 1, 1]."""
        sde, log_k, t = self.sde, self.log_k, t.double()
        grown = torch.expm1(2.0 * t * log_k)
        if sde.name == "bbed":
            x = 2.0 * (1.0 - t) * log_k  # Ei at -x
            ei: Tensor = torch.log(x) + (x[:, None] ** self.orders * self.series).sum(1)
            ei = ei + _EULER_GAMMA - float(self.ei_start)
            inner = grown + t + 2.0 * sde.k**2 * log_k * (1.0 - t) * ei
            var = sde.c * (1.0 - t) * inner
        else:
            grown = grown - torch.expm1(-2.0 * sde.gamma * t)
            var = sde.c * grown / (2.0 * sde.gamma + 2.0 * log_k)
        return var.clamp_min(0.0).sqrt().float()[:, None, None, None]

    def mean(self, x0: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """Mean at times ``t`` [B], given ``x0`` and ``y`` [B, 1, T, F]."""
        w = self.weight(t)
        return w * x0 + (1 - w) * y

    def clean(self, xt: Tensor, y: Tensor, sigma_z: Tensor, t: Tensor) -> Tensor:
        """The x0 [B, 1, T, F] that an estimate of the noise stands for: x_t = mean + sigma z, solved.

        It is the sampler's exact last step (``runtime.schedule.sampler_steps``).

        Args:
            xt: State at times ``t`` [B, 1, T, F].
            y: Noisy magnitude.
            sigma_z: What the score network returned.
            t: Times [B].
        """
        w = self.weight(t)
        return (xt - (1 - w) * y - sigma_z) / w


@lru_cache(maxsize=4)
def _marginal(sde: SdeSpec, device: torch.device) -> Marginal:
    with torch.inference_mode(False):
        return Marginal(sde).to(device)


def mean(sde: SdeSpec, x0: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Mean of the marginal at times ``t`` [B], given ``x0`` and ``y`` [B, 1, T, F]."""
    return _marginal(sde, t.device).mean(x0, y, t)


def std(sde: SdeSpec, t: Tensor) -> Tensor:
    """Standard deviation of the marginal at times ``t`` [B], as [B, 1, 1, 1]."""
    return _marginal(sde, t.device).std(t)


@dataclass(frozen=True)
class Plan:
    """The sampler's numbers, from the process and the sampler's settings.

    Attributes:
        start: Of the first state.
        steps: One for each call of the score network.
        alpha: Weight of the prediction in the fused magnitude.
    """

    start: InitialState
    steps: tuple[SamplerStep, ...]
    alpha: float


def make_plan(sde: SdeSpec, sampler: SamplerSpec) -> Plan:
    """The numbers of `reverse`; computed once, in float64 on the host.

    Args:
        sde: The process.
        sampler: Start time, steps and fusion weight.
    """
    return Plan(sampler.start(sde), sampler.steps(sde), sampler.alpha)


def reverse(
    model: DVPD,
    noisy: Tensor,
    predicted: Tensor,
    feats: Sequence[Tensor],
    noise: Sequence[Tensor],
    plan: Plan,
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
        plan: From `make_plan`; without steps the result is the prediction's magnitude.
        tlb_skip: TLB factors [2, 2], or None.
        tlb_backbone: TLB factors [2, 2], or None.
    """
    y, x_p = noisy[:, 2:3], magnitude(predicted)
    start, steps = plan.start, plan.steps
    if not steps:
        return x_p
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
    return plan.alpha * x_p + (1 - plan.alpha) * _rectified(x_mean)


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
    plan = make_plan(sde, sampler)
    fused = reverse(model, noisy, predicted, feats, noise, plan, tlb_skip, tlb_backbone)
    direction = predicted if phase == "predictive" else noisy[:, :2]
    return with_phase(fused, direction), predicted
