"""The [data] and [train] tables of a configuration, as frozen dataclasses (no torch here).

A field's name is its key in the TOML file. Ranges are (low, high) pairs; probabilities lie in
[0, 1]; suffixes give the unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from .runtime.errors import InputError

BRANCHES = ("both", "predictive", "score")
SCHEDULES = ("cosine", "paper", "constant")
PRECISIONS = ("fp32", "bf16")

Range = tuple[float, float]


def _speech_weights() -> dict[str, float]:
    # speechocean762 has an audible noise floor: as a target it teaches to keep noise.
    return {
        "pv_intent": 3.0,
        "kathleen": 1.5,
        "kerstin": 1.5,
        "pv_wake": 0.7,
        "asterisk": 0.7,
        "an4": 0.7,
        "speechocean762": 0.25,
    }


def _noise_weights() -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class DataConfig:
    """What a training pair is made of.

    A pair is speech, then (with probability ``universal_p``) a room and later a channel, with
    noise in between; otherwise speech plus noise alone.

    Attributes:
        crop_samples: Length of a training crop (samples at 16 kHz); 32640 are 256 frames.
        speech_weights: Source folder -> weight of each of its hours; a source not named has 1.
        noise_weights: Likewise for noise.
        speech_speed_p: Probability that speech is played faster or slower.
        speech_speed: Range of that factor.
        speech_eq_p: Probability of a gentle tilt of the speech, in both clean and noisy.
        snr_db: Range of the signal-to-noise ratio, uniform.
        clean_p: Probability that the noise is 30 to 50 dB down: the model must learn to copy.
        recorded_p: Probability that the noise is recorded; the rest is shared by the next three.
        babble_p: Probability of 3 to 8 other voices.
        coloured_p: Probability of coloured noise with slow modulation.
        hum_p: Probability of mains hum *in addition*.
        second_noise_p: Probability of a second recording on top of the first.
        noise_speed_p: Probability that a recording is played faster or slower.
        noise_speed: Range of that factor.
        noise_eq_p: Probability of random shelves on the noise.
        universal_p: Probability of the universal chain.
        reverb_p: Probability of a room within the universal chain.
        measured_rir_p: Probability that the room is a measured one.
        t60_s: Range of the simulated rooms' reverberation time (s).
        early_ms: Reflections this long after the direct path stay in the clean target (ms); 0
            makes the target dry.
        lowpass_p: Probability of a low-pass within the universal chain.
        lowpass_hz: Range of its cut-off (Hz), drawn on a log scale.
        bandpass_p: Probability of a telephone-like band-pass.
        resample_p: Probability of going to a lower rate and back.
        resample_hz: The lower rates (Hz).
        clip_p: Probability of clipping.
        clip_quantile: Range of the quantile of |x| at which it is clipped.
        level_p: Probability that the pair is scaled below the model's full scale.
        level_db: Range of that scale (dB).
    """

    crop_samples: int = 32640
    speech_weights: dict[str, float] = field(default_factory=_speech_weights)
    noise_weights: dict[str, float] = field(default_factory=_noise_weights)
    speech_speed_p: float = 0.2
    speech_speed: Range = (0.9, 1.1)
    speech_eq_p: float = 0.2
    snr_db: Range = (-5.0, 20.0)
    clean_p: float = 0.03
    recorded_p: float = 0.65
    babble_p: float = 0.15
    coloured_p: float = 0.2
    hum_p: float = 0.07
    second_noise_p: float = 0.25
    noise_speed_p: float = 0.3
    noise_speed: Range = (0.8, 1.25)
    noise_eq_p: float = 0.4
    universal_p: float = 0.4
    reverb_p: float = 0.5
    measured_rir_p: float = 0.3
    t60_s: Range = (0.15, 1.0)
    early_ms: float = 0.0
    lowpass_p: float = 0.25
    lowpass_hz: Range = (2000.0, 7900.0)
    bandpass_p: float = 0.15
    resample_p: float = 0.2
    resample_hz: tuple[int, ...] = (6000, 8000, 11025, 12000)
    clip_p: float = 0.25
    clip_quantile: Range = (0.85, 0.995)
    level_p: float = 0.5
    level_db: Range = (-30.0, 0.0)

    def __post_init__(self) -> None:
        """Refuse probabilities and ranges that mean nothing."""
        if isinstance(self.crop_samples, bool) or not isinstance(self.crop_samples, int):
            raise InputError(f"data crop_samples is {self.crop_samples!r}; expected a whole number")
        if self.crop_samples < 4096:
            raise InputError(f"data crop_samples is {self.crop_samples}; expected at least 4096")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_p") and not 0.0 <= _number("data", item.name, value) <= 1.0:
                raise InputError(f"data {item.name} is {value}; expected 0 to 1")
            if item.name.endswith("_weights"):
                for key, weight in value.items():
                    if _number("data", f"{item.name}.{key}", weight) < 0.0:
                        raise InputError(f"data {item.name}.{key} is {weight}; expected >= 0")
        for name in ("speech_speed", "noise_speed", "snr_db", "t60_s", "lowpass_hz"):
            _check_range("data", name, getattr(self, name))
        for name in ("clip_quantile", "level_db"):
            _check_range("data", name, getattr(self, name))
        if not 0.0 < self.clip_quantile[0] <= self.clip_quantile[1] <= 1.0:
            raise InputError(f"data clip_quantile is {self.clip_quantile}; expected (0, 1]")
        for name in ("speech_speed", "noise_speed", "t60_s", "lowpass_hz"):
            if getattr(self, name)[0] <= 0:
                raise InputError(f"data {name} is {getattr(self, name)}; expected > 0")
        total = self.recorded_p + self.babble_p + self.coloured_p
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise InputError(
                f"data recorded_p + babble_p + coloured_p is {total:g}; expected 1 (one kind of "
                "noise in each pair)"
            )


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
        compile: Compile the networks (worth it from about twenty minutes of training on).
        channels_last: Memory layout of weights and activations.
        detach_feats: Stop the score loss from reaching the predictive branch.
        t_range: Diffusion times drawn uniformly from this range.
        mag_weight: Weight of the MSE of compressed magnitudes.
        ri_weight: Weight of the MSE of compressed real and imaginary parts.
        phase_weight: Weight of the anti-wrapping phase loss IP + GD + IAF.
        score_weight: Weight of the score loss.
        mr_stft_weight: Weight of a multi-resolution magnitude loss on the waveform (not in the
            paper).
        si_sdr_weight: Weight of a negative SI-SDR, limited to 30 dB and divided by 10 (not in
            the paper).
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
    channels_last: bool = False
    detach_feats: bool = False
    t_range: Range = (0.01, 0.999)
    mag_weight: float = 0.5
    ri_weight: float = 0.5
    phase_weight: float = 0.002
    score_weight: float = 1.0
    mr_stft_weight: float = 0.0
    si_sdr_weight: float = 0.0
    workers: int = 1
    log_steps: int = 20
    save_minutes: float = 5.0
    eval_minutes: float = 0.0
    eval_files: int = 12
    nan_limit: int = 20

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, allowed in (
            ("branches", BRANCHES),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"train {name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}"
                )
        for name in ("batch_size", "steps", "epoch_crops", "log_steps", "nan_limit"):
            _check_whole("train", name, getattr(self, name), 1)
        for name in ("seed", "warmup_steps", "workers", "eval_files"):
            _check_whole("train", name, getattr(self, name), 0)
        for item in fields(self):
            if item.name.endswith(("_weight", "_minutes")) or item.name in (
                "minutes",
                "weight_decay",
                "grad_clip",
            ):
                value = getattr(self, item.name)
                if _number("train", item.name, value) < 0.0:
                    raise InputError(f"train {item.name} is {value}; expected >= 0")
        if not _number("train", "lr", self.lr) > 0.0:
            raise InputError(f"train lr is {self.lr}; expected > 0")
        if not 0.0 <= _number("train", "ema_decay", self.ema_decay) < 1.0:
            raise InputError(f"train ema_decay is {self.ema_decay}; expected 0 <= decay < 1")
        _check_range("train", "betas", self.betas)
        _check_range("train", "t_range", self.t_range)
        if not 0.0 < self.t_range[0] < self.t_range[1] < 1.0:
            raise InputError(f"train t_range is {self.t_range}; expected 0 < low < high < 1")


def _number(table: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{table} {name} is {value!r}; expected a finite number")
    return float(value)


def _check_whole(table: str, name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{table} {name} is {value!r}; expected a whole number >= {least}")


def _check_range(table: str, name: str, value: object) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        raise InputError(f"{table} {name} is {value!r}; expected [low, high]")
    low, high = (_number(table, name, v) for v in value)
    if not low <= high:
        raise InputError(f"{table} {name} is {value}; expected low <= high")
