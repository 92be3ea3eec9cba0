"""Checkpoints: one .safetensors file that alone rebuilds the model.

EMA weights, with the whole config as JSON in the header. Pickle is never loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .config import Config, complete_from_dict, to_dict
from .model import DVPD
from .runtime.errors import InputError, ManifestError
from .runtime.files import write_whole

FORMAT = "dvpd-checkpoint-1"
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".bin")


def save_checkpoint(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: Config,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write weights and config to ``path`` (.safetensors), whole or not at all.

    Args:
        path: File to write; its folder must exist.
        state: Weights by name, as `DVPD.state_dict` gives them.
        config: The whole config.
        extra: More header entries, strings only (hours of audio seen, dev figures).
    """
    path = Path(path)
    meta = {**(extra or {}), "format": FORMAT, "config": json.dumps(to_dict(config))}
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    write_whole(path, save(tensors, metadata=meta))


def read_checkpoint(path: str | Path) -> tuple[Config, dict[str, Tensor], dict[str, str]]:
    """Read config, weights and the other header entries of ``path``.

    Raises:
        InputError: There is no such file, or it is a pickle (never loaded).
        ManifestError: The file is damaged, or is no DVPD checkpoint, or its config does not fit.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise InputError(
            f"{path}: pickled checkpoints can run code and are never loaded. Convert it where you "
            "trust it: torch.load(..., weights_only=True), then dvpd.checkpoint.save_checkpoint"
        )
    if path.is_dir():
        inside = sorted(path.glob("*.safetensors"))
        hint = f", such as {inside[0]}" if inside else ""
        raise InputError(f"{path} is a folder; expected a checkpoint, a .safetensors file{hint}")
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        with safe_open(path, framework="pt") as file:
            meta = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ManifestError(f"{path}: not a readable .safetensors file ({error})") from error
    if meta.get("format") != FORMAT:
        raise ManifestError(f"{path}: format is {meta.get('format')!r}; expected {FORMAT!r}")
    try:
        config = complete_from_dict(json.loads(meta["config"]))
    except (KeyError, ValueError, InputError) as error:
        raise ManifestError(f"{path}: its config cannot be read: {error}") from error
    return config, state, {k: v for k, v in meta.items() if k not in ("format", "config")}


def load_checkpoint(path: str | Path) -> tuple[Config, dict[str, Tensor]]:
    """Config and weights of ``path``; errors as in `read_checkpoint`."""
    config, state, _ = read_checkpoint(path)
    return config, state


def load_model(path: str | Path) -> tuple[Config, DVPD]:
    """The model of ``path`` in eval mode, and its config.

    Raises:
        ManifestError: As `read_checkpoint`, or the weights do not fit the config.
    """
    config, state = load_checkpoint(path)
    model = DVPD(config.model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ManifestError(f"{path}: weights do not fit the config: {error}") from error
    return config, model.eval()
