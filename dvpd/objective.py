"""The training objective as one module: waveforms in, unweighted loss terms out (model.md, losses).

Data parallelism wraps this module: all that is differentiated happens in its ``forward``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from .config import Config
from .losses import predictive_terms, score_loss, weighted_sum
from .model import DVPD
from .sde import mean, reverse, std, with_phase
from .spectral import compress, compressed_noisy, magnitude


class Objective(nn.Module):
    """Both branches and their losses."""

    def __init__(self, model: DVPD, config: Config, rank: int = 0, size: int = 1) -> None:
        """Make the objective.

        Args:
            model: The networks in training.
            config: The whole config.
            rank: Which part of each batch this process has.
            size: Number of parts.
        """
        super().__init__()
        self.model, self.config = model, config
        self.rank, self.size = rank, size

    def forward(self, noisy_wav: Tensor, clean_wav: Tensor, step: int) -> dict[str, Tensor]:
        """Loss terms by name, each the mean over the crops.

        Args:
            noisy_wav: [B, L], this process's part of the batch.
            clean_wav: [B, L].
            step: Steps done: with the seed it fixes the diffusion times and the noise.
        """
        train, sde = self.config.train, self.config.sde
        with torch.no_grad():
            noisy = compressed_noisy(noisy_wav, self.config.signal)  # [B, 3, T, F]
            target = compress(clean_wav, self.config.signal)  # [B, 2, T, F]
            extra = -noisy.shape[2] % 4
            if extra:
                noisy = nn.functional.pad(noisy, (0, 0, 0, extra))
                target = nn.functional.pad(target, (0, 0, 0, extra))
            if train.channels_last:
                noisy = noisy.contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(noisy.device.type, torch.bfloat16, train.precision == "bf16")
        frozen = train.branches == "score"
        with autocast, torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            clean_ri, feats = self.model.predictive(noisy)
        terms: dict[str, Tensor] = {}
        if not frozen:
            terms = predictive_terms(train, clean_ri.float(), target, clean_wav)
        if train.branches == "predictive":
            return terms
        if train.detach_feats:
            feats = [f.detach() for f in feats]
        if train.sampler_weight:
            terms["sampler"] = self._sampler_loss(step, noisy, clean_ri, feats, target, clean_wav)
        if not train.score_weight:
            return terms
        with torch.no_grad():
            x0, y = magnitude(target), noisy[:, 2:3]
            t, z = self._draw(step, y)
            sigma = std(sde, t)
            xt = mean(sde, x0, y, t) + sigma * z
        with autocast:
            sigma_z = self.model.score(xt, t, feats)
        terms["score"] = score_loss(sigma_z.float(), z, sigma)
        return terms

    def _sampler_loss(
        self, step: int, noisy: Tensor, clean_ri: Tensor, feats: list[Tensor], target: Tensor,
        clean_wav: Tensor,
    ) -> Tensor:  # fmt: skip
        """The predictive branch's losses on the sampler's output, weighted and summed."""
        config = self.config
        noise = self._noise(step, noisy[:, 2:3], config.sampler.n_steps)
        with torch.autocast(noisy.device.type, torch.bfloat16, config.train.precision == "bf16"):
            fused = reverse(
                self.model, noisy, clean_ri.float(), feats, noise, config.sde, config.sampler
            )
        # The phase is the predictive branch's: where that is frozen, its loss has no gradient.
        frozen = config.train.branches == "score"
        train = replace(config.train, phase_weight=0.0) if frozen else config.train
        estimate = with_phase(fused.float(), clean_ri.float())
        return weighted_sum(train, predictive_terms(train, estimate, target, clean_wav))

    def _noise(self, step: int, like: Tensor, count: int) -> list[Tensor]:
        """The sampler's draws [B, 1, T, F]: this part of the whole batch's."""
        draw = self._generator(step + (1 << 40), like)
        return [self._normal(draw, like) for _ in range(count)]

    def _draw(self, step: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Diffusion times [B] and noise [B, 1, T, F]: this part of what the whole batch gets."""
        draw = self._generator(step, like)
        low, high = self.config.train.t_range
        whole = len(like) * self.size
        t = low + (high - low) * torch.rand(whole, generator=draw, device=like.device)
        return t[self._mine(like)], self._normal(draw, like)

    def _generator(self, step: int, like: Tensor) -> torch.Generator:
        """A function of (seed, step) and the kind of device: resuming needs no generator's state."""
        return torch.Generator(like.device).manual_seed(self.config.train.seed * 1_000_003 + step)

    def _mine(self, like: Tensor) -> slice:
        return slice(self.rank * len(like), (self.rank + 1) * len(like))

    def _normal(self, draw: torch.Generator, like: Tensor) -> Tensor:
        shape = (len(like) * self.size, *like.shape[1:])
        return torch.randn(shape, generator=draw, device=like.device)[self._mine(like)]
