"""The training objective as one module: waveforms in, unweighted loss terms out (`dvpd.losses`).

Data parallelism wraps this module: all that is differentiated happens in its ``forward``, which reads
nothing from the device and makes no tensor from host data. Random numbers come in from outside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import Config
from ..level import levels, spectral_gain
from ..losses import LossTables, PredictiveTerms, score_loss, weighted_sum
from ..model import DVPD
from ..runtime.level import LEAST_DB
from ..sde import Marginal, make_plan, reverse, with_phase
from ..spectral import Dft, compress, compressed_noisy, magnitude


class Draws(NamedTuple):
    """The random numbers of a step; empty where its losses need none.

    Attributes:
        t: Diffusion times of the score loss [B].
        z: Its noise [B, 1, T, F].
        noise: The sampler's draws, [B, 1, T, F] each.
        gain: Level at which a causal network hears each crop [B], 1 for full scale.
    """

    t: Tensor | None = None
    z: Tensor | None = None
    noise: tuple[Tensor, ...] = ()
    gain: Tensor | None = None


class Objective(nn.Module):
    """Both branches and their losses."""

    def __init__(
        self,
        model: DVPD,
        config: Config,
        rank: int = 0,
        size: int = 1,
        dft: torch.dtype | None = None,
    ) -> None:
        """Make the objective; ``to(device)`` moves its tables.

        Args:
            model: The networks in training.
            config: The whole config.
            rank: Which part of each batch this process has.
            size: Number of parts.
            dft: Type of the transforms' products (see `dvpd.spectral.Dft`), for GPUs; None for
                FFTs, which are faster on CPUs.
        """
        super().__init__()
        self.model, self.config = model, config
        self.rank, self.size = rank, size
        train, signal = config.train, config.signal
        self.dft = Dft(signal.n_fft, signal.hop_length, dft) if dft else None
        tables = LossTables(dft)
        self.terms = PredictiveTerms(train, tables)
        # The phase is the predictive branch's: where that is frozen, its loss has no gradient.
        fused = replace(train, phase_weight=0.0) if train.branches == "score" else train
        self.fused_terms = PredictiveTerms(fused, tables)
        self.marginal = Marginal(config.sde)
        self.plan = make_plan(config.sde, config.sampler)

    def forward(self, noisy_wav: Tensor, clean_wav: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Loss terms by name, each the mean over the crops.

        Args:
            noisy_wav: [B, L], this process's part of the batch.
            clean_wav: [B, L].
            draws: From `draw`.
        """
        train, signal = self.config.train, self.config.signal
        with torch.no_grad():
            noisy = compressed_noisy(noisy_wav, signal, self.dft)  # [B, 3, T, F]
            target = compress(clean_wav, signal, self.dft)  # [B, 2, T, F]
            extra = -noisy.shape[2] % 4
            if extra:
                noisy = nn.functional.pad(noisy, (0, 0, 0, extra))
                target = nn.functional.pad(target, (0, 0, 0, extra))
            scale = None  # a causal network hears frames divided by the level so far
            if self.config.model.causal:
                level = levels(noisy_wav, noisy.shape[2], draws.gain, signal)
                scale = spectral_gain(level, signal)
                noisy = noisy * scale
            if train.nhwc:
                noisy = noisy.contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(noisy.device.type, torch.bfloat16, train.precision == "bf16")
        frozen = train.branches == "score"
        with autocast, torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            clean_ri, feats = self.model.predictive(noisy)
        terms: dict[str, Tensor] = {}
        if not frozen:
            # Losses compare what is heard: the level is given back to the estimate.
            estimate = clean_ri.float() if scale is None else clean_ri.float() / scale
            terms = self.terms(estimate, target, clean_wav)
        if train.branches == "predictive":
            return terms
        if train.detach_feats:
            feats = [f.detach() for f in feats]
        if draws.noise:
            with torch.autocast(noisy.device.type, torch.bfloat16, train.precision == "bf16"):
                fused = reverse(self.model, noisy, clean_ri.float(), feats, draws.noise, self.plan)
            estimate = with_phase(fused.float(), clean_ri.float())
            if scale is not None:
                estimate = estimate / scale
            own = self.fused_terms(estimate, target, clean_wav)
            terms["sampler"] = weighted_sum(self.fused_terms.config, own)
        if draws.t is None or draws.z is None:
            return terms
        with torch.no_grad():
            x0, y = magnitude(target), noisy[:, 2:3]
            if scale is not None:
                x0 = x0 * scale
            sigma = self.marginal.std(draws.t)
            xt = self.marginal.mean(x0, y, draws.t) + sigma * draws.z
        with autocast:
            sigma_z = self.model.score(xt, draws.t, feats)
        terms["score"] = score_loss(sigma_z.float(), draws.z, sigma)
        return terms

    def draw(self, step: int, crops: int, samples: int, device: torch.device) -> Draws:
        """This part of what the whole batch gets in a step, as a function of (seed, step).

        Resuming needs no generator's state; each kind of device has its own numbers.

        Args:
            step: Steps done.
            crops: This part's.
            samples: Of a crop.
            device: Where the numbers are drawn and used.
        """
        train, signal = self.config.train, self.config.signal
        if train.branches == "predictive" and not self.config.model.causal:
            return Draws()
        frames = 1 + samples // signal.hop_length
        shape = (crops * self.size, 1, frames + -frames % 4, signal.n_fft // 2 + 1)
        mine = slice(self.rank * crops, (self.rank + 1) * crops)

        def generator(number: int) -> torch.Generator:
            return torch.Generator(device).manual_seed(train.seed * 1_000_003 + number)

        t = z = gain = None
        noise: tuple[Tensor, ...] = ()
        if self.config.model.causal:
            source = generator(step + (1 << 41))
            level_db = LEAST_DB * torch.rand(shape[0], generator=source, device=device)
            gain = (10.0 ** (level_db / 20.0))[mine]
        if train.branches == "predictive":
            return Draws(gain=gain)
        if train.score_weight:
            source = generator(step)
            low, high = train.t_range
            t = low + (high - low) * torch.rand(shape[0], generator=source, device=device)
            t, z = t[mine], torch.randn(shape, generator=source, device=device)[mine]
        if train.sampler_weight:
            source = generator(step + (1 << 40))
            noise = tuple(
                torch.randn(shape, generator=source, device=device)[mine] for _ in self.plan.steps
            )
        return Draws(t, z, noise, gain)
