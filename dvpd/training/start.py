"""What a training may start from: a checkpoint of the same networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..checkpoint import load_checkpoint
from ..config import Config, to_dict
from ..runtime.errors import InputError


def read_start(path: str | Path, config: Config) -> tuple[Config, dict[str, Tensor]]:
    """Read a checkpoint that a training with ``config`` may start from.

    A causal model may start from an offline one, and from one with another look-ahead.

    Args:
        path: The checkpoint.
        config: The training's.

    Returns:
        The checkpoint's config and its weights.

    Raises:
        InputError: The checkpoint is of another architecture, or its [signal] is another.
        DvpdError: It cannot be read.
    """
    theirs, weights = load_checkpoint(path)
    wanted, found = config.model, replace(theirs.model, name=config.model.name)
    if wanted.causal:
        found = replace(found, causal=True, lookahead_blocks=wanted.lookahead_blocks)
    if found != wanted:
        old, new = to_dict(found), to_dict(wanted)
        changes = [
            f"{key} = {old[key]!r} (expected {new[key]!r})" for key in new if old[key] != new[key]
        ]
        raise InputError(
            f"{path} ({theirs.model.name}) has another [model] than {wanted.name}: "
            f"{', '.join(changes)}; name a checkpoint of the same model, train with its config, or "
            "make a larger model of it (python -m dvpd.grow)"
        )
    if theirs.signal != config.signal:
        raise InputError(f"{path} has another [signal]: {theirs.signal}; expected {config.signal}")
    return theirs, weights


def other_sampler(old: Config, new: Config) -> list[str]:
    """Keys of [sde] and [sampler] that differ, as text: an export takes the new values.

    Args:
        old: Of the checkpoint.
        new: Of the training.
    """
    theirs, ours = to_dict(old), to_dict(new)
    return [
        f"{table}.{key} = {value!r} (now {ours[table][key]!r})"
        for table in ("sde", "sampler")
        for key, value in theirs[table].items()
        if value != ours[table][key] and not (key == "phase_rounds" and new.model.causal)
    ]
