"""The [train] table of a configuration, as a frozen dataclass (no torch here).

A field's name is its key in the TOML file. Ranges are (low, high) pairs; suffixes give the unit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..runtime.checks import check_range, check_whole, number
from ..runtime.errors import InputError
from .data import Range

BRANCHES = ("both", "predictive", "score")
SCHEDULES = ("cosine", "paper", "constant")
PRECISIONS = ("fp32", "bf16")
KERNELS = ("reference", "fast")
TARGETS = ("noise", "x0")
CONSISTENCY_TARGETS = ("stop", "ema")
# Of the losses about the score branch: with branches = "score" one of them has to be above 0.
SCORE_WEIGHTS = ("score_weight", "start_weight", "sampler_weight", "consistency_weight")


@dataclass(frozen=True)
class TrainConfig:
    """How the networks are trained (paper appendix D where a default is not marked).

    Attributes:
        branches: "both", "predictive" or "score" (the predictive branch is then frozen).
        seed: Seed of initial weights, data and diffusion times.
        batch_size: Crops in a step.
        steps: Steps until the end (and length of the cosine).
        minutes: If > 0, the schedule runs over this many minutes of training time instead, and
            training ends there.
        epoch_crops: Crops that count as an epoch.
        lr: Peak learning rate.
        schedule: "cosine" (to zero), "paper" (x 0.97 every two epochs) or "constant".
        warmup_steps: Steps of linear warm-up.
        weight_decay: AdamW's decoupled decay; biases, norms and scalars have none.
        betas: AdamW's moments.
        grad_clip: Largest gradient norm; 0 for no limit.
        ema_decay: Final decay of the averaged weights, ramped as (1 + n) / (10 + n).
        precision: "fp32" or "bf16" (autocast of the networks; losses stay in fp32).
        compile: Compile the blocks of the networks and the losses, a minute or two at the start.
        kernels: "reference", or "fast": the same layers in forms that GPUs run faster, and where
            there is one GPU the whole step as a CUDA graph (`dvpd.training.fast_step`).
        channels_last: Memory layout of weights and activations.
        detach_feats: Stop the score loss from reaching the predictive branch.
        t_range: Diffusion times drawn uniformly from this range.
        mag_weight: Weight of the MSE of compressed magnitudes.
        ri_weight: Weight of the MSE of compressed real and imaginary parts.
        phase_weight: Weight of the anti-wrapping phase loss IP + GD + IAF.
        target: What the score and the start loss compare: "noise" (denoising score matching), or "x0",
            the clean magnitude that the output stands for. The network's output is sigma z in both.
            They weight times differently, 1 / sigma(t)^2 against 1 / w(t)^2 (w: share of x0 in the
            mean).
        score_weight: Weight of the score loss, at times out of ``t_range``.
        start_weight: Weight of the same loss at the sampler's start time alone, ``sampler.t_rs``, on
            states of its own (not in the paper).
        sampler_weight: Weight of the predictive branch's losses (each with its own weight) on the
            sampler's fused output, back-propagated through its last step; a second stage of
            training, with ``score_weight = 0`` (arXiv 2309.09677; not in the paper).
        consistency_weight: Weight of consistency training without a teacher: two states of one
            trajectory, next to each other in time, are to give the same x0, and the earliest the clean
            one (arXiv 2303.01469, 2310.14189; not in the paper).
        consistency_steps: Intervals between ``sde.t_eps`` and ``sampler.t_rs``, of equal length.
        consistency_target: Who says what the earlier state gives: "stop", the network itself without
            a gradient, or "ema", its average (``ema_decay``).
        mr_stft_weight: Weight of a multi-resolution magnitude loss on the waveform (not in the
            paper).
        si_sdr_weight: Weight of a negative SI-SDR, limited to 30 dB and divided by 10 (not in
            the paper).
        snr_weight: Likewise of the plain SNR: unlike the last two it does not let the level drift
            (not in the paper).
        perceptual_weight: Weight of the PESQ-shaped loudness disturbance (not in the paper).
        estoi_weight: Weight of 1 - ESTOI (not in the paper).
        silence_weight: Weight of what is left where nobody speaks, in tens of dB (not in the paper).
        keep_speech: Crops with speech are compared with what the weights of ``--keep`` make of them, not
            with the clean speech: for a training that is to teach noise alone, and to unlearn nothing
            (arXiv 1606.09282; not in the paper). The predictive branch only.
        keep_within_db: With ``keep_speech``: where those weights lose more than this of the speech's power
            (dB, over a quarter of a second), and where a pause is silent, the clean speech is the target; 0
            for never (not in the paper).
        freeze_norms: Batch norms use their running statistics and keep them, as in use: for a training that
            goes on from good weights with few crops a step, whose own statistics would be noise.
        only: Beginnings of the names of the parameters that are trained, as "predictive.encoder"; the
            others stay as they are. Empty for all of ``branches``.
        workers: Processes that mix; 0 mixes in the training process.
        log_steps: Steps between log lines.
        save_minutes: Minutes between saved states.
        eval_minutes: Minutes between evaluations on the dev set; 0 for none.
        eval_files: Files of the dev set in such an evaluation.
        nan_limit: Non-finite steps in a row after which training stops.
    """

    branches: str = "both"
    seed: int = 0
    batch_size: int = 8
    steps: int = 100_000
    minutes: float = 0.0
    epoch_crops: int = 16384
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 200
    weight_decay: float = 0.01
    betas: Range = (0.9, 0.99)
    grad_clip: float = 5.0
    ema_decay: float = 0.999
    precision: str = "fp32"
    compile: bool = False
    kernels: str = "reference"
    channels_last: bool = False
    detach_feats: bool = False
    t_range: Range = (0.01, 0.999)
    mag_weight: float = 0.5
    ri_weight: float = 0.5
    phase_weight: float = 0.002
    target: str = "noise"
    score_weight: float = 1.0
    start_weight: float = 0.0
    sampler_weight: float = 0.0
    consistency_weight: float = 0.0
    consistency_steps: int = 8
    consistency_target: str = "stop"
    mr_stft_weight: float = 0.0
    si_sdr_weight: float = 0.0
    snr_weight: float = 0.0
    perceptual_weight: float = 0.0
    estoi_weight: float = 0.0
    silence_weight: float = 0.0
    keep_speech: bool = False
    keep_within_db: float = 0.0
    freeze_norms: bool = False
    only: tuple[str, ...] = ()
    workers: int = 1
    log_steps: int = 20
    save_minutes: float = 5.0
    eval_minutes: float = 0.0
    eval_files: int = 12
    nan_limit: int = 20

    @property
    def nhwc(self) -> bool:
        """Whether maps and kernels are channels-last in memory."""
        return self.channels_last or self.kernels == "fast"

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, allowed in (
            ("branches", BRANCHES),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("kernels", KERNELS),
            ("target", TARGETS),
            ("consistency_target", CONSISTENCY_TARGETS),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"train {name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}"
                )
        for name in (
            "batch_size", "steps", "epoch_crops", "log_steps", "nan_limit", "consistency_steps",
        ):  # fmt: skip
            check_whole("train", name, getattr(self, name), 1)
        for name in ("seed", "warmup_steps", "workers", "eval_files"):
            check_whole("train", name, getattr(self, name), 0)
        for item in fields(self):
            if item.name.endswith(("_weight", "_minutes")) or item.name in (
                "minutes",
                "keep_within_db",
                "weight_decay",
                "grad_clip",
            ):
                value = getattr(self, item.name)
                if number("train", item.name, value) < 0.0:
                    raise InputError(f"train {item.name} is {value}; expected >= 0")
        if not number("train", "lr", self.lr) > 0.0:
            raise InputError(f"train lr is {self.lr}; expected > 0")
        if not 0.0 <= number("train", "ema_decay", self.ema_decay) < 1.0:
            raise InputError(f"train ema_decay is {self.ema_decay}; expected 0 <= decay < 1")
        if self.branches == "score" and not any(getattr(self, name) for name in SCORE_WEIGHTS):
            raise InputError(
                f"train {', '.join(SCORE_WEIGHTS)} are all 0 with branches = 'score'; expected one "
                "above 0: there is nothing to train"
            )
        if self.keep_speech and self.branches != "predictive":
            raise InputError(
                f"train keep_speech is true with branches = {self.branches!r}; expected branches = "
                "'predictive': the score branch learns from clean speech"
            )
        check_range("train", "betas", self.betas)
        check_range("train", "t_range", self.t_range)
        if not 0.0 < self.t_range[0] < self.t_range[1] < 1.0:
            raise InputError(f"train t_range is {self.t_range}; expected 0 < low < high < 1")
