"""What a user gives beside a recording: its form, and the options of the sampler."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray
from .checks import check_whole, number
from .errors import InputError
from .spec import MAX_CHANNELS, TlbFactors, check_phase_rounds

if TYPE_CHECKING:
    from .manifest import Manifest

MAX_STEPS = 1000
Tlb = str | Mapping[str, Any] | TlbFactors | None
# Calls of the score network by what is wanted; the predictive network runs once in each.
QUALITY_STEPS: Mapping[str, int] = MappingProxyType({"fast": 0, "balanced": 1, "best": 3})

# Integer dtype -> (zero, full scale).
_INTEGERS = {"uint8": (128, 128.0), "int16": (0, 32768.0), "int32": (0, 2147483648.0)}


def chosen_steps(steps: int | None, quality: str | None) -> int | None:
    """Calls of the score network that a user asks for, by number or by name.

    Args:
        steps: Their number; None where it is left open.
        quality: Key of ``QUALITY_STEPS``; None where it is left open.

    Returns:
        The number; None where both are open.

    Raises:
        InputError: Both are given, or the name is unknown.
    """
    if quality is None:
        return steps
    if quality not in QUALITY_STEPS:
        raise InputError(f"quality is {quality!r}; expected one of {', '.join(QUALITY_STEPS)}")
    if steps is not None:
        raise InputError(
            f"steps is {steps} and quality is {quality!r}; give one of the two: {quality!r} stands "
            f"for {QUALITY_STEPS[quality]} steps"
        )
    return QUALITY_STEPS[quality]


def noisy_share(mix: float, attenuation_limit_db: float | None) -> float:
    """Share of the input in the output, 0 to 1.

    What the network removes altogether keeps this share of its amplitude, so that
    -20 log10(share) dB is the most by which it is lowered; what the network keeps is lowered by less.

    Args:
        mix: Share of the enhanced waveform that is asked for, 0 to 1.
        attenuation_limit_db: Limit (dB), >= 0; None for none.

    Raises:
        InputError: A value is out of range.
    """
    if not 0.0 <= number("", "mix", mix) <= 1.0:
        raise InputError(f"mix is {mix}; expected 0 (the input) to 1 (enhanced)")
    if attenuation_limit_db is None:
        return 1.0 - float(mix)
    if attenuation_limit_db != math.inf:
        number("", "attenuation_limit_db", attenuation_limit_db)
    if not attenuation_limit_db >= 0.0:
        raise InputError(f"attenuation_limit_db is {attenuation_limit_db}; expected dB, >= 0")
    return float(max(1.0 - mix, 10.0 ** (-attenuation_limit_db / 20.0)))


def resolve_tlb(tlb: Tlb, presets: Mapping[str, TlbFactors]) -> TlbFactors:
    """Turn a preset name, JSON text, mapping or TlbFactors into TlbFactors.

    Args:
        tlb: What the user gave; None for all ones.
        presets: Known names.

    Raises:
        InputError: Unknown name, or not 2 x 2 finite numbers under "skip" and "backbone".
    """
    if tlb is None:
        return TlbFactors()
    if isinstance(tlb, TlbFactors):
        return tlb
    if isinstance(tlb, str):
        if tlb in presets:
            return presets[tlb]
        if not tlb.lstrip().startswith("{"):
            raise InputError(
                f"tlb is {tlb!r}; expected one of {', '.join(presets)}, or JSON "
                '{"skip": [[1, 1], [1, 1]], "backbone": [[1, 1], [1, 1]]}'
            )
        try:
            tlb = json.loads(tlb)
        except (ValueError, RecursionError) as error:
            raise InputError(f"tlb is not valid JSON ({error})") from None
    return TlbFactors.from_mapping(tlb)  # type: ignore[arg-type]  # refuses what is no mapping


class Choice(NamedTuple):
    """What a user asks of the sampler, checked and filled in from the manifest."""

    n_steps: int
    alpha: float
    tlb: TlbFactors
    phase_rounds: int


def sampler_choice(
    manifest: Manifest,
    steps: int | None,
    alpha: float | None,
    tlb: Tlb,
    phase_rounds: int | None,
) -> Choice:
    """Check what a user asks of the sampler; no engine is needed for it.

    Args:
        manifest: Of the model, whose defaults hold.
        steps: See ``Enhancer.enhance``.
        alpha: See there.
        tlb: See there.
        phase_rounds: See there.

    Raises:
        InputError: A value is out of range, does not fit the model, or needs steps.
    """
    sampler = manifest.sampler
    count = sampler.n_steps if steps is None else check_whole("", "steps", steps, 0)
    if not count <= MAX_STEPS:
        raise InputError(f"steps is {count}; expected 0 (predictive alone) to {MAX_STEPS}")
    weight = sampler.alpha if alpha is None else number("", "alpha", alpha)
    if not 0.0 <= weight <= 1.0:
        raise InputError(f"alpha is {weight}; expected 0 (diffusion) to 1 (predictive)")
    rounds = sampler.phase_rounds
    if phase_rounds is not None:
        rounds = check_phase_rounds("", phase_rounds)
    if rounds and manifest.causal is not None:
        raise InputError(
            f"phase_rounds is {rounds}; expected 0: {manifest.name} is causal, and each round needs "
            "what comes later: leave it out"
        )
    factors = resolve_tlb(tlb, manifest.tlb_presets)
    if steps is None and not count and (alpha is not None or factors != TlbFactors()):
        given = "tlb" if alpha is None else f"alpha {alpha}"
        raise InputError(
            f"{given} is given without steps, and {manifest.name} takes 0 by default, where it has no "
            f"effect; expected steps as well: give quality 'balanced' or 'best', or steps 1 or more"
        )
    return Choice(count, weight, factors, rounds)


def as_columns(wav: object, name: str = "wav") -> NDArray[Any]:
    """Check a waveform's type and shape; [L, n_channels], integers still as they are.

    Args:
        wav: What was given.
        name: How the user calls it.

    Raises:
        InputError: It is no array [L] or [L, channels] of numbers.
    """
    if not isinstance(wav, np.ndarray):
        raise InputError(
            f"{name} is {type(wav).__name__}; expected a NumPy array [L] or [L, channels]"
        )
    if wav.ndim not in (1, 2):
        raise InputError(f"{name} has shape {list(wav.shape)}; expected [L] or [L, channels]")
    columns: NDArray[Any] = wav.reshape(len(wav), -1) if wav.size else wav
    if not wav.size:
        raise InputError(f"{name} is empty, shape {list(wav.shape)}; expected at least one sample")
    if columns.shape[1] > MAX_CHANNELS:
        raise InputError(
            f"{name} has shape {list(wav.shape)}: {columns.shape[1]} channels; expected [L, channels] "
            f"with at most {MAX_CHANNELS}: transpose it if channels come first"
        )
    if wav.dtype.kind != "f" and wav.dtype.name not in _INTEGERS:
        raise InputError(
            f"{name} has dtype {wav.dtype}; expected a float type, or {', '.join(_INTEGERS)}"
        )
    return columns


def to_float(block: NDArray[Any]) -> FloatArray:
    """Float32 in [-1, 1] for integers; floats beyond float32 become infinite and are refused."""
    if block.dtype.name in _INTEGERS:
        zero, full_scale = _INTEGERS[block.dtype.name]
        return ((block.astype(np.float64) - zero) / full_scale).astype(np.float32)
    with np.errstate(over="ignore"):
        return block.astype(np.float32)
