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
from ..runtime.errors import InputError
from ..runtime.level import LEAST_DB
from ..runtime.schedule import mean_weight
from ..runtime.spec import SignalSpec
from ..sde import Marginal, make_plan, reverse, with_phase
from ..spectral import (
    Dft,
    compress,
    compressed_noisy,
    istft_from_compressed,
    linear_power,
    magnitude,
)

HEARD = 1e-4  # power of a stretch of speech, as a share of the loudest's, whose loss counts
SILENCE = 1e-7  # share of the loudest stretch's power from which on nobody speaks
LEAST_X0_WEIGHT = 0.1  # share of x0 in a state below which its estimate is mostly noise times 1 / w


class Draws(NamedTuple):
    """The random numbers of a step; empty where its losses need none.

    Attributes:
        t: Diffusion times of the score loss [B].
        z: Its noise [B, 1, T, F].
        noise: The sampler's draws, [B, 1, T, F] each.
        gain: Level at which a causal network hears each crop [B], 1 for full scale.
        start: Noise of the start loss [B, 1, T, F].
        trajectory: Of the consistency loss: which interval of the time [B], from 0, and the noise.
    """

    t: Tensor | None = None
    z: Tensor | None = None
    noise: tuple[Tensor, ...] = ()
    gain: Tensor | None = None
    start: Tensor | None = None
    trajectory: tuple[Tensor, ...] = ()


class Objective(nn.Module):
    """Both branches and their losses."""

    def __init__(
        self,
        model: DVPD,
        config: Config,
        rank: int = 0,
        size: int = 1,
        dft: torch.dtype | None = None,
        average: DVPD | None = None,
    ) -> None:
        """Make the objective; ``to(device)`` moves its tables.

        Args:
            model: The networks in training.
            config: The whole config.
            rank: Which part of each batch this process has.
            size: Number of parts.
            dft: Type of the transforms' products (see `dvpd.spectral.Dft`), for GPUs; None for
                FFTs, which are faster on CPUs.
            average: The averaged networks, for ``train.consistency_target = "ema"``.

        Raises:
            InputError: A loss cannot be had with this process or this sampler.
        """
        super().__init__()
        _check(config)
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
        self.average: nn.Module | None = None
        if train.consistency_weight and train.consistency_target == "ema":
            if average is None:
                raise InputError(
                    "train consistency_target is 'ema'; expected the averaged networks"
                )
            self.average = average.score
        self.teacher: nn.Module | None = None
        self._teacher_causal = False

    def keep(self, teacher: DVPD) -> None:
        """Compare crops with speech with what ``teacher`` makes of them (``train.keep_speech``).

        Args:
            teacher: Networks of the same signal; frozen here. A causal model may learn from one that
                hears whole recordings; that one hears each crop at its own level.
        """
        device = next(self.model.parameters()).device
        self._teacher_causal = teacher.config.causal
        self.teacher = teacher.predictive.eval().requires_grad_(False).to(device)

    def forward(self, noisy_wav: Tensor, clean_wav: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Loss terms by name, each the mean over the crops.

        Args:
            noisy_wav: [B, L], this process's part of the batch.
            clean_wav: [B, L].
            draws: From `draw`.
        """
        train, signal = self.config.train, self.config.signal
        if train.keep_speech and self.teacher is None:
            raise InputError(
                "train keep_speech is true; expected the weights whose output is kept: --keep CKPT"
            )
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
            if self.teacher is not None:
                target, clean_wav = self._kept(noisy, scale, target, clean_wav)
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
        x0 = magnitude(target)
        if scale is not None:
            x0 = x0 * scale
        return {**terms, **self._around_clean(x0, noisy[:, 2:3], feats, draws)}

    def _kept(
        self, noisy: Tensor, scale: Tensor | None, target: Tensor, clean_wav: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Targets with those of crops with speech replaced by the teacher's output.

        Args:
            noisy: What the networks hear [B, 3, T, F].
            scale: Its level in a causal model, else None.
            target: Compressed clean spectra [B, 2, T, F].
            clean_wav: The clean waveforms [B, L].
        """
        assert self.teacher is not None
        bf16 = self.config.train.precision == "bf16"
        if scale is not None and not self._teacher_causal:
            noisy, scale = noisy / scale, None
        with torch.autocast(noisy.device.type, torch.bfloat16, bf16):
            told, _ = self.teacher(noisy)
        told = told.float() if scale is None else told.float() / scale
        limit_db = self.config.train.keep_within_db
        if limit_db:
            told = torch.where(wrong(told, target, limit_db, self.config.signal), target, told)
        wav = istft_from_compressed(told, clean_wav.shape[-1], dft=self.terms.tables.dft)
        speech = (clean_wav.abs().amax(-1) > 0.0)[:, None]
        return torch.where(speech[..., None, None], told, target), torch.where(
            speech, wav, clean_wav
        )

    def _around_clean(
        self, x0: Tensor, y: Tensor, feats: list[Tensor], draws: Draws
    ) -> dict[str, Tensor]:
        """Losses of the score branch on states around the clean magnitude, as in the paper.

        Args:
            x0: Clean magnitude [B, 1, T, F].
            y: Noisy magnitude.
            feats: Of the predictive branch.
            draws: From `draw`.
        """
        terms: dict[str, Tensor] = {}
        if draws.t is not None and draws.z is not None:
            terms["score"] = self._denoising(x0, y, feats, draws.t, draws.z)
        if draws.start is not None:
            t = torch.full((len(x0),), self.plan.start.t, dtype=x0.dtype, device=x0.device)
            terms["start"] = self._denoising(x0, y, feats, t, draws.start)
        if draws.trajectory:
            terms["consistency"] = self._consistency(x0, y, feats, *draws.trajectory)
        return terms

    def _noise(self, network: nn.Module, xt: Tensor, t: Tensor, feats: list[Tensor]) -> Tensor:
        bf16 = self.config.train.precision == "bf16"
        with torch.autocast(xt.device.type, torch.bfloat16, bf16):
            sigma_z: Tensor = network(xt, t, feats)
        return sigma_z.float()

    def _denoising(
        self, x0: Tensor, y: Tensor, feats: list[Tensor], t: Tensor, z: Tensor
    ) -> Tensor:
        sigma = self.marginal.std(t)
        xt = self.marginal.mean(x0, y, t) + sigma * z
        sigma_z = self._noise(self.model.score, xt, t, feats)
        if self.config.train.target == "x0":
            return (self.marginal.clean(xt, y, sigma_z, t) - x0).square().mean()
        return score_loss(sigma_z, z, sigma)

    def _consistency(
        self, x0: Tensor, y: Tensor, feats: list[Tensor], interval: Tensor, z: Tensor
    ) -> Tensor:
        """Mean square of what two neighbouring states of one trajectory differ in as estimates of x0.

        The first interval's earlier state is told the clean magnitude itself: without that, any
        constant would be consistent.
        """
        first, last = self.config.sde.t_eps, self.plan.start.t
        width = (last - first) / self.config.train.consistency_steps

        def estimate(network: nn.Module, t: Tensor) -> Tensor:
            xt = self.marginal.mean(x0, y, t) + self.marginal.std(t) * z
            return self.marginal.clean(xt, y, self._noise(network, xt, t, feats), t)

        with torch.no_grad():
            network = self.model.score if self.average is None else self.average
            told = estimate(network, first + width * interval)
            told = torch.where(interval[:, None, None, None] == 0, x0, told)
        later = estimate(self.model.score, first + width * (interval + 1))
        return (later - told).square().mean()

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

        t = z = gain = start = None
        trajectory: tuple[Tensor, ...] = ()
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
        if train.start_weight:
            start = torch.randn(shape, generator=generator(step + (1 << 42)), device=device)[mine]
        if train.consistency_weight:
            source = generator(step + (1 << 43))
            many = train.consistency_steps
            interval = torch.randint(many, shape[:1], generator=source, device=device)[mine]
            drawn = torch.randn(shape, generator=source, device=device)[mine]
            trajectory = (interval.to(drawn.dtype), drawn)
        return Draws(t, z, noise, gain, start, trajectory)


def wrong(told: Tensor, target: Tensor, limit_db: float, signal: SignalSpec) -> Tensor:
    """Where a teacher is not to be followed, [B, 1, T, 1]: it loses speech, or nobody speaks.

    Both in the mean over a quarter of a second. Lost is power that bins of the target have more of; what
    the teacher puts into others does not make up for it.

    Args:
        told: The teacher's output [B, 2, T, F].
        target: Compressed clean spectra [B, 2, T, F].
        limit_db: How much of the power may be lost (dB).
        signal: The front end.
    """
    kept, wanted = linear_power(told, signal), linear_power(target, signal)
    frames = 2 * (signal.sample_rate // signal.hop_length // 8) + 1

    def smooth(power: Tensor) -> Tensor:
        mean: Tensor = nn.functional.avg_pool1d(power.sum(-1)[:, None], frames, 1, frames // 2)
        return mean[:, 0]

    speech, lost = smooth(wanted), smooth((wanted - kept).clamp_min(0.0))
    loudest = speech.amax(-1, keepdim=True)
    loses = (lost > (1.0 - 10.0 ** (-limit_db / 10.0)) * speech) & (speech > HEARD * loudest)
    away: Tensor = loses | (speech <= SILENCE * loudest)
    return away[:, None, :, None]


def _check(config: Config) -> None:
    """Refuse losses that the process or the sampler has no room for."""
    train, sde = config.train, config.sde
    if train.branches == "predictive":
        return
    if train.sampler_weight and not config.sampler.n_steps:
        raise InputError(
            f"sampler n_steps is 0 and train sampler_weight {train.sampler_weight:g}; expected 1 or more "
            "steps where the score branch is trained through the sampler: --set sampler.n_steps=1, or "
            "--set train.sampler_weight=0"
        )
    if config.sampler.noise < 1.0 and not train.sampler_weight:
        raise InputError(
            f"sampler noise is {config.sampler.noise:g} and train sampler_weight 0; the score branch meets "
            "states with less noise in the sampler alone: --set train.sampler_weight=1, or --set "
            "sampler.noise=1"
        )
    high = train.t_range[1]
    if train.target == "x0" and train.score_weight and mean_weight(sde, high) < LEAST_X0_WEIGHT:
        raise InputError(
            f"train t_range ends at {high:g}, where a state holds {mean_weight(sde, high):.3g} of x0; "
            f"with train target = 'x0' expected at least {LEAST_X0_WEIGHT:g}: lower the range's end "
            f"(the sampler starts at {config.sampler.t_rs:g})"
        )
    if train.consistency_weight and config.sampler.t_rs <= sde.t_eps:
        raise InputError(
            f"sampler t_rs is {config.sampler.t_rs:g}; with train consistency_weight expected more "
            f"than sde t_eps, {sde.t_eps:g}"
        )
