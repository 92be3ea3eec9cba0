"""Configuration: frozen dataclasses read from TOML; unknown and missing keys are errors."""

from .data import DataConfig
from .model import ModelConfig
from .tables import (
    Config,
    complete_from_dict,
    complete_old,
    from_dict,
    load_toml,
    override,
    to_dict,
)
from .train import TrainConfig

__all__ = [
    "Config",
    "DataConfig",
    "ModelConfig",
    "TrainConfig",
    "complete_from_dict",
    "complete_old",
    "from_dict",
    "load_toml",
    "override",
    "to_dict",
]
