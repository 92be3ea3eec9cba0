"""The [data] table of a configuration, as a frozen dataclass (no torch here).

A field's name is its key in the TOML file. Ranges are (low, high) pairs; probabilities lie in
[0, 1]; suffixes give the unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..runtime.checks import check_range, check_whole, number
from ..runtime.errors import InputError

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


def _single_weights() -> dict[str, float]:
    return {
        "reverb": 3.0,
        "lowpass": 3.0,
        "resample": 3.0,
        "clip": 3.0,
        "bandpass": 1.0,
        "microphone": 1.0,
        "gsm": 1.0,
        "white": 1.0,
        "expand": 0.5,
        "tanh": 0.5,
        "bits": 0.5,
        "highpass": 0.25,
        "phaser": 0.25,
    }


# The links of the universal chain, in their order; each has a probability NAME_p.
LINKS = (
    "gain_change",
    "noise",
    "white",
    "bandpass",
    "speaker_gain",
    "reverb",
    "microphone",
    "highpass",
    "lowpass",
    "bits",
    "expand",
    "gain",
    "clip",
    "clip_gain",
    "resample",
    "phaser",
    "tanh",
    "gsm",
)

NOISE_KINDS = ("recorded_p", "babble_p", "coloured_p", "wind_p", "keyboard_p", "music_p",
               "impulsive_p")  # fmt: skip

# The [data] keys of checkpoints from before the whole chain, and what the newer ones meant then
# (where a link is off, its range does not matter).
_FIRST_KEYS = frozenset(
    "crop_samples speech_weights noise_weights speech_speed_p speech_speed speech_eq_p snr_db clean_p "
    "recorded_p babble_p coloured_p hum_p second_noise_p noise_speed_p noise_speed noise_eq_p "
    "universal_p reverb_p measured_rir_p t60_s early_ms lowpass_p lowpass_hz bandpass_p resample_p "
    "resample_hz clip_p clip_quantile level_p level_db".split()
)
_BEFORE_THE_CHAIN: dict[str, Any] = {
    **{f"{name}_p": 0.0 for name in LINKS if f"{name}_p" not in _FIRST_KEYS},
    "noise_p": 1.0,
    "noise_in_room_p": 0.0,
    "single_p": 0.0,
    "freeverb_p": 0.0,
    "image_rir_p": 0.0,
    "bandpass_low_hz": (100.0, 400.0),
    "bandpass_high_hz": (2800.0, 4500.0),
    "resample_any_p": 0.0,
    "resample_sinc_p": 1.0,
}
# Keys newer than the chain: what is off needs no range.
_LATER_KEYS: dict[str, Any] = {
    "speech_change_p": 0.0,
    "speech_change_db": [0.0, 0.0],
    **dict.fromkeys(
        "silent_p pause_p turns_p far_p event_p telephone_p noise_change_p wind_p keyboard_p music_p "
        "impulsive_p babble_room_p limit_target_p silent_full_p overlap_p".split(),
        0.0,
    ),
    **{
        name: [0.0, 0.0]
        for name in ("silent_db", "turns_db", "far_drr_db", "event_db", "overlap_db")
    },
    "far_early_ms": 0.0,
    "telephone_hz": [8000],
}


@dataclass(frozen=True)
class DataConfig:
    """What a training pair is made of.

    A pair is speech plus noise, or (with probability ``universal_p``) goes through the universal
    chain: the links of ``LINKS`` in their order, the paper's Table 6 in the order of the ICASSP
    2024 SIG Challenge's synthesiser. With probability ``single_p`` one link alone is taken,
    otherwise each link by its own probability, so that simple and compound cases are both common.

    Attributes:
        crop_samples: Length of a training crop (samples at 16 kHz); 32640 are 256 frames.
        speech_weights: Source folder -> weight of each of its hours; a source not named has 1.
        noise_weights: Likewise for noise.
        speech_speed_p: Probability that speech is played faster or slower.
        speech_speed: Range of that factor.
        speech_eq_p: Probability of a gentle tilt of the speech, in both clean and noisy.
        speech_change_p: Probability that the speech goes on at another level, target included.
        speech_change_db: Range of that change (dB).
        silent_p: Probability of a crop without speech: noise, and silence as its target.
        silent_db: Range of the noise's peak in it (dB of full scale).
        silent_full_p: Probability that its peak is at full scale instead, where the runtime puts a
            recording of noise alone.
        pause_p: Probability that the speech begins late, ends early or stops for a while.
        turns_p: Probability that two talkers take turns, both in the target.
        turns_db: Range of the second one's level, relative to the first (dB).
        overlap_p: Probability that two talkers speak at the same time, both in the target. Without
            such crops a model takes them for babble and removes both.
        overlap_db: Range of the second one's level, relative to the first (dB).
        snr_db: Range of the signal-to-noise ratio, uniform; pauses do not count.
        clean_p: Probability that the noise is 30 to 50 dB down: the model must learn to copy.
        recorded_p: Probability that the noise is recorded; the rest is shared by the next six.
        babble_p: Probability of 5 to 9 other voices; fewer are talkers, and speech.
        coloured_p: Probability of coloured noise with slow modulation.
        wind_p: Probability of wind in the microphone.
        keyboard_p: Probability of typing.
        music_p: Probability of simple music.
        impulsive_p: Probability of short loud sounds: ticks, crackle, an animal's cries.
        babble_room_p: Probability that babble is heard from afar in a room.
        noise_change_p: Probability that noise begins, ends or turns into another one.
        event_p: Probability of sudden events (claps, knocks, barks) on top, also in pauses; where the
            universal chain acts there are none.
        event_db: Range of their peak, relative to the speech's (dB).
        hum_p: Probability of mains hum *in addition*.
        second_noise_p: Probability of a second recording on top of the first.
        noise_speed_p: Probability that a recording is played faster or slower.
        noise_speed: Range of that factor.
        noise_eq_p: Probability of random shelves on the noise.
        far_p: Probability that the talker is far away in a room (outside the chain); the target has
            the direct sound and the early reflections, as loud as they arrive.
        far_drr_db: Range of the direct-to-reverberant ratio then (dB).
        far_early_ms: What counts as early (ms).
        telephone_p: Probability that all goes through a narrow band, the target too (outside the
            chain).
        telephone_hz: Its sample rates (Hz).
        universal_p: Probability of the universal chain.
        limit_target_p: Probability, within the chain, that the target loses what a low-pass, another
            rate or the codec took away above their band; 0 leaves the target whole, as the paper's:
            what is missing is to be made up.
        single_p: Probability, within the chain, that one link alone is taken.
        single_weights: Link -> weight in that draw; a link not named is never taken alone.
        single_noise_p: Probability that noise comes with it.
        gain_change_p: Probability that the speech changes its level on the way (its target does
            not).
        gain_change_db: Range of that change (dB).
        noise_p: Probability of noise in the chain.
        noise_in_room_p: Probability that noise is added before the room, not behind it.
        white_p: Probability of white noise, on top of other noise or alone.
        white_db: Range of its level relative to the other noise (dB).
        bandpass_p: Probability of a telephone-like band-pass.
        bandpass_low_hz: Range of its lower cut-off (Hz).
        bandpass_high_hz: Range of its upper cut-off (Hz).
        bandpass_order: Its order at each end.
        speaker_gain_p: Probability of another level in front of the microphone.
        speaker_gain_db: Range of that level (dB).
        reverb_p: Probability of a room.
        measured_rir_p: Probability that the room is a measured one.
        image_rir_p: Probability that it comes from the bank of image-source rooms.
        freeverb_p: Probability of a Freeverb-like one; what is left is statistical.
        t60_s: Range of the simulated rooms' reverberation time (s).
        drr_db: Range of the direct-to-reverberant ratio of the last two (dB).
        room_bank: Image-source rooms in the bank, built once; 0 for none (statistical ones then).
        room_side_m: Range of their length and width (m).
        room_height_m: Range of their height (m).
        early_ms: Reflections this long after the direct path stay in the clean target (ms); 0
            makes the target dry.
        microphone_p: Probability of a poor microphone: two shelves and some peaks.
        mic_low_shelf_hz: Range of the low shelf's cut-off (Hz).
        mic_high_shelf_hz: Range of the high shelf's cut-off (Hz).
        mic_shelf_db: Range of the gain of both (dB).
        mic_peaks: Range of the number of peaks.
        mic_peak_hz: Range of their centres (Hz).
        mic_peak_db: Range of their gains (dB).
        highpass_p: Probability of a first-order high-pass.
        highpass_hz: Range of its cut-off (Hz).
        lowpass_p: Probability of a low-pass.
        lowpass_hz: Range of its cut-off (Hz), drawn on a log scale.
        lowpass_orders: Orders it may have.
        bits_p: Probability of fewer bits.
        bits: Range of their number.
        expand_p: Probability of dynamic range expansion, its loss of level made up.
        expand_ratio: Range of its ratio.
        expand_threshold_db: Range of its threshold (dB of full scale; speech is at ``rms_db``).
        gain_p: Probability of a gain behind it.
        gain_db: Range of that gain (dB).
        clip_p: Probability of clipping.
        clip_quantile: Range of the quantile of |x| at which it is clipped.
        clip_full_scale_p: Probability that it is clipped at ``clip_db`` instead.
        clip_db: That level (dB of full scale).
        clip_gain_p: Probability of a gain behind the clipping.
        clip_gain_db: Range of that gain (dB).
        resample_p: Probability of going to another rate and back.
        resample_hz: Common rates (Hz).
        resample_any_p: Probability that the rate is any in ``resample_range_hz`` instead.
        resample_range_hz: That range (Hz), uniform.
        resample_sinc_p: Probability of a good resampler; the rest is shared by cubic, linear and
            nearest-sample ones.
        phaser_p: Probability of a phaser.
        phaser_hz: Range of its rate (Hz), drawn on a log scale.
        tanh_p: Probability of a soft saturation.
        tanh_db: Range of its drive (dB).
        gsm_p: Probability of the GSM codec; it takes the place of resampling.
        rms_db: Level at the chain's entry (dB of full scale, RMS).
        level_p: Probability that the pair is scaled below the model's full scale.
        level_db: Range of that scale (dB).
    """

    crop_samples: int = 32640
    speech_weights: dict[str, float] = field(default_factory=_speech_weights)
    noise_weights: dict[str, float] = field(default_factory=_noise_weights)
    speech_speed_p: float = 0.2
    speech_speed: Range = (0.9, 1.1)
    speech_eq_p: float = 0.2
    speech_change_p: float = 0.05
    speech_change_db: Range = (-25.0, 15.0)
    silent_p: float = 0.12
    silent_db: Range = (-60.0, 0.0)
    silent_full_p: float = 0.5
    pause_p: float = 0.3
    turns_p: float = 0.06
    turns_db: Range = (-35.0, -10.0)
    overlap_p: float = 0.1
    overlap_db: Range = (-15.0, 0.0)
    snr_db: Range = (-5.0, 20.0)
    clean_p: float = 0.03
    recorded_p: float = 0.56
    babble_p: float = 0.12
    coloured_p: float = 0.16
    wind_p: float = 0.04
    keyboard_p: float = 0.04
    music_p: float = 0.04
    impulsive_p: float = 0.04
    babble_room_p: float = 0.5
    noise_change_p: float = 0.15
    event_p: float = 0.12
    event_db: Range = (-10.0, 15.0)
    hum_p: float = 0.07
    second_noise_p: float = 0.25
    noise_speed_p: float = 0.3
    noise_speed: Range = (0.8, 1.25)
    noise_eq_p: float = 0.4
    far_p: float = 0.08
    far_drr_db: Range = (-12.0, 3.0)
    far_early_ms: float = 50.0
    telephone_p: float = 0.03
    telephone_hz: tuple[int, ...] = (8000, 8000, 11025, 12000)
    universal_p: float = 0.4
    limit_target_p: float = 0.0
    single_p: float = 0.5
    single_weights: dict[str, float] = field(default_factory=_single_weights)
    single_noise_p: float = 0.6
    gain_change_p: float = 0.03
    gain_change_db: Range = (-12.0, 12.0)
    noise_p: float = 0.75
    noise_in_room_p: float = 0.3
    white_p: float = 0.15
    white_db: Range = (-10.0, 0.0)
    bandpass_p: float = 0.15
    bandpass_low_hz: Range = (60.0, 400.0)
    bandpass_high_hz: Range = (2500.0, 4500.0)
    bandpass_order: int = 4
    speaker_gain_p: float = 0.2
    speaker_gain_db: Range = (-10.0, 10.0)
    reverb_p: float = 0.5
    measured_rir_p: float = 0.3
    image_rir_p: float = 0.45
    freeverb_p: float = 0.05
    t60_s: Range = (0.15, 1.0)
    drr_db: Range = (-6.0, 12.0)
    room_bank: int = 0
    room_side_m: Range = (2.5, 12.0)
    room_height_m: Range = (2.2, 5.0)
    early_ms: float = 0.0
    microphone_p: float = 0.2
    mic_low_shelf_hz: Range = (50.0, 700.0)
    mic_high_shelf_hz: Range = (4500.0, 7500.0)
    mic_shelf_db: Range = (-12.0, 12.0)
    mic_peaks: tuple[int, int] = (0, 7)
    mic_peak_hz: Range = (600.0, 7400.0)
    mic_peak_db: Range = (-6.0, 6.0)
    highpass_p: float = 0.2
    highpass_hz: Range = (4.0, 100.0)
    lowpass_p: float = 0.25
    lowpass_hz: Range = (2000.0, 7900.0)
    lowpass_orders: tuple[int, ...] = (4, 8, 12)
    bits_p: float = 0.05
    bits: tuple[int, int] = (8, 24)
    expand_p: float = 0.1
    expand_ratio: Range = (1.4, 2.1)
    expand_threshold_db: Range = (-30.0, -10.0)
    gain_p: float = 0.1
    gain_db: Range = (5.0, 20.0)
    clip_p: float = 0.25
    clip_quantile: Range = (0.85, 0.995)
    clip_full_scale_p: float = 0.0
    clip_db: float = -6.0
    clip_gain_p: float = 0.1
    clip_gain_db: Range = (-5.0, 0.0)
    resample_p: float = 0.2
    resample_hz: tuple[int, ...] = (6000, 8000, 11025, 12000)
    resample_any_p: float = 0.3
    resample_range_hz: Range = (3000.0, 32000.0)
    resample_sinc_p: float = 0.7
    phaser_p: float = 0.02
    phaser_hz: Range = (0.3, 500.0)
    tanh_p: float = 0.03
    tanh_db: Range = (2.0, 20.0)
    gsm_p: float = 0.05
    rms_db: float = -27.0
    level_p: float = 0.5
    level_db: Range = (-60.0, 0.0)

    def __post_init__(self) -> None:
        """Refuse probabilities and ranges that mean nothing."""
        check_whole("data", "crop_samples", self.crop_samples, 4096)
        check_whole("data", "bandpass_order", self.bandpass_order, 1)
        check_whole("data", "room_bank", self.room_bank, 0)
        for item in fields(self):
            name, value = item.name, getattr(self, item.name)
            if name.endswith("_p") and not 0.0 <= number("data", name, value) <= 1.0:
                raise InputError(f"data {name} is {value}; expected 0 to 1")
            elif item.type in ("float", "int"):
                number("data", name, value)
            elif item.type in ("Range", "tuple[int, int]"):
                check_range("data", name, value)
                if name.endswith(("_hz", "_s", "_m", "_speed")) and not value[0] > 0:
                    raise InputError(f"data {name} is {value}; expected > 0")
            elif item.type == "tuple[int, ...]":
                for each in value:
                    check_whole("data", name, each, 1)
                if not value:
                    raise InputError(f"data {name} is empty; expected whole numbers")
            elif name.endswith("_weights"):
                for key, weight in value.items():
                    if number("data", f"{name}.{key}", weight) < 0.0:
                        raise InputError(f"data {name}.{key} is {weight}; expected >= 0")
        if not 0.0 < self.clip_quantile[0] <= self.clip_quantile[1] <= 1.0:
            raise InputError(f"data clip_quantile is {self.clip_quantile}; expected (0, 1]")
        for name, least in (("bits", 2), ("mic_peaks", 0), ("expand_ratio", 1), ("room_side_m", 2)):
            if getattr(self, name)[0] < least:
                raise InputError(f"data {name} is {getattr(self, name)}; expected >= {least}")
        for name in ("early_ms", "far_early_ms"):
            if getattr(self, name) < 0.0:
                raise InputError(f"data {name} is {getattr(self, name)}; expected >= 0")
        if max(self.telephone_hz) > 16000:
            raise InputError(f"data telephone_hz is {self.telephone_hz}; expected at most 16000 Hz")
        if unknown := sorted(set(self.single_weights) - set(LINKS)):
            raise InputError(
                f"data single_weights.{unknown[0]}: expected one of {', '.join(LINKS)}"
            )
        if self.single_p > 0.0 and not sum(self.single_weights.values()) > 0.0:
            raise InputError("data single_weights are all 0; expected one above 0, or single_p = 0")
        total = sum(getattr(self, name) for name in NOISE_KINDS)
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise InputError(
                f"data {' + '.join(NOISE_KINDS)} is {total:g}; expected 1 (one kind of noise in each "
                "pair)"
            )
        total = self.measured_rir_p + self.image_rir_p + self.freeverb_p
        if total > 1.0 + 1e-6:
            raise InputError(
                f"data measured_rir_p + image_rir_p + freeverb_p is {total:g}; expected at most 1"
            )


def complete_old_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """A [data] table from before the whole chain, with the newer keys; others unchanged.

    The newer links are off and the older ones as they were then, so that the table still says
    what its weights were trained with.
    """
    if "gsm_p" in table:
        return {**_LATER_KEYS, **table}
    defaults = asdict(DataConfig())
    newer = {k: v for k, v in defaults.items() if k not in _FIRST_KEYS}
    return {**newer, **_BEFORE_THE_CHAIN, **_LATER_KEYS, **table}
