"""The universal chain: which degradations act on a crop, their values, and their order.

Order of the public synthesiser of the ICASSP 2024 SIG Challenge, which made the paper's WSJ0-UNI.
What is linear comes together: filters and room commute, so the filters are one product of spectra.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator

from ..config.data import LINKS, DataConfig
from ..runtime.spec import SAMPLE_RATE
from . import degrade
from .degrade import Gain, Wav, db_to_gain, rms
from .rooms import Room, reverberate

_SILENT = 1e-7  # an RMS below this has no level to be brought to another


def draw_snr(rng: Generator, config: DataConfig) -> float:
    """Signal-to-noise ratio (dB), now and then so high that there is nothing to do."""
    if rng.random() < config.clean_p:
        return float(rng.uniform(30.0, 50.0))
    return float(rng.uniform(*config.snr_db))


def draw_links(rng: Generator, config: DataConfig) -> frozenset[str]:
    """Names of the links that act: one alone (and perhaps noise), or each by its probability."""
    if rng.random() < config.single_p:
        weights = np.array([config.single_weights.get(name, 0.0) for name in LINKS])
        links = {LINKS[int(rng.choice(len(LINKS), p=weights / weights.sum()))]}
        if rng.random() < config.single_noise_p:
            links.add("noise")
        return frozenset(links)
    draws = rng.random(len(LINKS))
    return frozenset(
        name for name, draw in zip(LINKS, draws, strict=True) if draw < getattr(config, f"{name}_p")
    )


def run_chain(
    rng: Generator,
    config: DataConfig,
    clean: Wav,
    draw_noise: Callable[[], Wav],
    draw_room: Callable[[Generator], tuple[Room, str]],
) -> tuple[Wav, Wav, dict[str, Any]]:
    """Degrade speech.

    Where ``limit_target_p`` says so the target loses what the band's upper end took away: nothing
    is to be made up above it. Gains act on the target, too: they matter for what comes behind them (clipping, codec), and
    nobody could tell them from the degraded signal. Only ``gain_change`` leaves the target alone.

    Args:
        rng: Source of randomness.
        config: Probabilities and ranges.
        clean: Clean speech [L].
        draw_noise: Makes noise [L].
        draw_room: Makes a room, with its kind.

    Returns:
        Degraded speech [L], its target [L], and what was drawn, in the links' order.
    """
    links = draw_links(rng, config)
    drawn: dict[str, Any] = {}
    wav, target = clean, clean

    def uniform(key: str, name: str | None = None) -> float:
        drawn[name or key] = value = float(rng.uniform(*getattr(config, key)))
        return value

    if "gain_change" in links:
        first = int(rng.integers(len(wav) - len(wav) // 5))
        last = int(rng.integers(first, len(wav))) if rng.random() < 0.1 else len(wav)
        drawn["gain_change_at"] = (first, last)
        wav = degrade.change_gain(wav, first, last, uniform("gain_change_db"))
    room, noisy = None, bool(links & {"noise", "white"})
    if "reverb" in links:
        room, drawn["room"] = draw_room(rng)
        if not noisy or rng.random() >= config.noise_in_room_p:
            wav, target = _in_room(wav, target, room, config.early_ms)
            room = None
        drawn["noise_in_room"] = room is not None
    if noisy:
        noise = draw_noise() if "noise" in links else None
        if "white" in links:
            white = rng.standard_normal(len(wav), dtype=np.float32)
            if noise is None:
                noise = white
            else:
                noise = degrade.add_noise(noise, white, -uniform("white_db"))
        assert noise is not None  # recorded, white, or both
        drawn["snr_db"] = draw_snr(rng, config)
        wav = degrade.add_noise(wav, noise, drawn["snr_db"])
    level = rms(wav)
    gain = db_to_gain(config.rms_db) / level if level > _SILENT else 1.0
    if "speaker_gain" in links:
        gain *= db_to_gain(uniform("speaker_gain_db"))
    wav, target = wav * np.float32(gain), target * np.float32(gain)
    if room is not None:
        wav, target = _in_room(wav, target, room, config.early_ms)
    limited = bool(config.limit_target_p) and rng.random() < config.limit_target_p
    wav = degrade.spectral_gain(wav, *_draw_filters(rng, config, links, drawn))
    if limited:
        target = degrade.spectral_gain(target, *_upper_ends(config, drawn))
    if "bits" in links:
        low, high = config.bits
        drawn["bits"] = int(rng.integers(low, high + 1))
        wav = degrade.reduce_bits(wav, drawn["bits"])
    if "expand" in links:
        expanded = degrade.expand(wav, uniform("expand_ratio"), uniform("expand_threshold_db"))
        made_up = rms(wav) / max(rms(expanded), _SILENT)
        wav = expanded * np.float32(made_up)
    wav, target = _louder(wav, target, uniform("gain_db") if "gain" in links else 0.0)
    if "clip" in links:
        if rng.random() < config.clip_full_scale_p:
            drawn["clip_db"] = config.clip_db
            wav = degrade.clip(wav, db_to_gain(config.clip_db))
        else:
            wav = degrade.clip(wav, degrade.quantile_level(wav, uniform("clip_quantile")))
    wav, target = _louder(wav, target, uniform("clip_gain_db") if "clip_gain" in links else 0.0)
    if "resample" in links and "gsm" not in links:
        if rng.random() < config.resample_any_p:
            rate_hz = uniform("resample_range_hz", "rate_hz")
        else:
            drawn["rate_hz"] = rate_hz = int(rng.choice(config.resample_hz))
        good = rng.random() < config.resample_sinc_p
        drawn["resampler"] = "sinc" if good else str(rng.choice(degrade.RESAMPLERS[1:]))
        wav = degrade.through_rate(wav, rate_hz, drawn["resampler"])
        if limited and rate_hz < SAMPLE_RATE:
            target = degrade.through_rate(target, rate_hz)
    if "phaser" in links:
        drawn["phaser_hz"] = _log_uniform(rng, config.phaser_hz)
        wav = degrade.phaser(wav, drawn["phaser_hz"])
    if "tanh" in links:
        wav = degrade.tanh_drive(wav, uniform("tanh_db"))
    if "gsm" in links:
        drawn["gsm"] = True
        wav = degrade.gsm(wav)
        if limited:
            target = degrade.through_rate(target, degrade.CODEC_RATE)
    if limited:
        drawn["target_limited"] = True
    return wav, target, drawn


def _upper_ends(config: DataConfig, drawn: dict[str, Any]) -> list[Gain]:
    """The low-pass part of the filters that were drawn."""
    ends = []
    if "bandpass_hz" in drawn:
        ends.append((drawn["bandpass_hz"][1], config.bandpass_order))
    if "lowpass_hz" in drawn:
        ends.append((drawn["lowpass_hz"], drawn["lowpass_order"]))
    return [partial(degrade.lowpass_gain, cutoff_hz=hz, order=order) for hz, order in ends]


def _in_room(wav: Wav, target: Wav, room: Room, early_ms: float) -> tuple[Wav, Wav]:
    wet, _ = reverberate(wav, room)
    return wet, reverberate(target, room, early_ms)[1] if early_ms > 0.0 else target


def _louder(wav: Wav, target: Wav, gain_db: float) -> tuple[Wav, Wav]:
    if not gain_db:
        return wav, target
    gain = np.float32(db_to_gain(gain_db))
    return wav * gain, target * gain


def _log_uniform(rng: Generator, limits: tuple[float, float]) -> float:
    low, high = limits
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _draw_filters(
    rng: Generator, config: DataConfig, links: frozenset[str], drawn: dict[str, Any]
) -> list[Gain]:
    gains: list[Gain] = []
    if "bandpass" in links:
        ends = rng.uniform(*config.bandpass_low_hz), rng.uniform(*config.bandpass_high_hz)
        drawn["bandpass_hz"] = ends
        order = config.bandpass_order
        gains.append(partial(degrade.bandpass_gain, low_hz=ends[0], high_hz=ends[1], order=order))
    if "microphone" in links:
        low_shelf = rng.uniform(*config.mic_low_shelf_hz), rng.uniform(*config.mic_shelf_db)
        high_shelf = rng.uniform(*config.mic_high_shelf_hz), rng.uniform(*config.mic_shelf_db)
        fewest, most = config.mic_peaks
        peaks = [
            (rng.uniform(*config.mic_peak_hz), rng.uniform(*config.mic_peak_db))
            for _ in range(int(rng.integers(fewest, most + 1)))
        ]
        drawn["microphone"] = [low_shelf, high_shelf, *peaks]
        gains.append(
            partial(
                degrade.microphone_gain, low_shelf=low_shelf, high_shelf=high_shelf, peaks=peaks
            )
        )
    if "highpass" in links:
        drawn["highpass_hz"] = rng.uniform(*config.highpass_hz)
        gains.append(partial(degrade.highpass_gain, cutoff_hz=drawn["highpass_hz"], order=1))
    if "lowpass" in links:
        drawn["lowpass_hz"] = _log_uniform(rng, config.lowpass_hz)
        drawn["lowpass_order"] = order = int(rng.choice(config.lowpass_orders))
        gains.append(partial(degrade.lowpass_gain, cutoff_hz=drawn["lowpass_hz"], order=order))
    return gains
