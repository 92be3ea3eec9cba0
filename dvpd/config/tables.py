"""The whole configuration, read from TOML or from a checkpoint's tables."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..runtime.errors import InputError
from ..runtime.schedule import SdeSpec
from ..runtime.spec import SamplerSpec, SignalSpec
from .data import DataConfig, complete_old_table
from .model import ModelConfig
from .train import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib as tomllib  # the explicit form: others import it from here
else:
    import tomli as tomllib

T = TypeVar("T")
# Keys of [train] that later versions added, with what their absence meant.
_LATER_WEIGHTS = "perceptual snr sampler estoi silence start consistency"
_LATER_TRAIN_KEYS: dict[str, Any] = {
    **{f"{name}_weight": 0.0 for name in _LATER_WEIGHTS.split()},
    "kernels": "reference",
    "target": "noise",
    "consistency_steps": 8,
    "consistency_target": "stop",
    "keep_speech": False,
    "keep_within_db": 0.0,
    "freeze_norms": False,
    "only": (),
}

_LATER_MODEL_KEYS: dict[str, Any] = {"causal": False, "lookahead_blocks": 0}
_LATER_SAMPLER_KEYS: dict[str, Any] = {"last_step": "euler", "phase_rounds": 0, "noise": 1.0}


@dataclass(frozen=True)
class Config:
    """Everything that defines a model and its training; a checkpoint carries all of it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    signal: SignalSpec = field(default_factory=SignalSpec)
    sde: SdeSpec = field(default_factory=SdeSpec)
    sampler: SamplerSpec = field(default_factory=SamplerSpec)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        """Refuse what the tables say against each other."""
        if self.model.causal and self.sampler.phase_rounds:
            raise InputError(
                f"sampler.phase_rounds is {self.sampler.phase_rounds} with model.causal; expected 0: "
                "each round needs what comes later"
            )


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build the dataclass ``cls`` from a table, nested ones too.

    Integers are taken where floats are expected, and lists where tuples are.

    Raises:
        InputError: A key is unknown, has the wrong type, or its value is refused; the
            message names it.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {values!r}; expected a table")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]  # T is a dataclass
    unknown = sorted(set(values) - set(known))
    if unknown:
        close = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"unknown key {where}.{unknown[0]}; {hint}known keys: {', '.join(known)}")
    kwargs = {k: _convert(hints[k], v, f"{where}.{k}") for k, v in values.items()}
    try:
        return cls(**kwargs)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)  # type: ignore[arg-type]  # is_dataclass says it is one
    origin = typing.get_origin(kind)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = typing.get_args(kind)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_convert(inner[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(inner) != len(value):
            raise InputError(f"{where} has {len(value)} values; expected {len(inner)}")
        pairs = enumerate(zip(inner, value, strict=True))
        return tuple(_convert(t, v, f"{where}[{i}]") for i, (t, v) in pairs)
    if origin is dict and isinstance(value, Mapping):
        inner = typing.get_args(kind)
        return {str(k): _convert(inner[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or kind
    if isinstance(plain, type):
        wrong_bool = isinstance(value, bool) and plain is not bool
        if wrong_bool or not isinstance(value, plain):
            raise InputError(f"{where} is {value!r}; expected {getattr(kind, '__name__', kind)}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain tables, as `from_dict` reads them."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def complete_old(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Config tables of an older version, with the keys that came later as they were meant then."""
    if not isinstance(values, Mapping):
        return values
    completed = dict(values)
    if isinstance(values.get("data"), Mapping):
        completed["data"] = complete_old_table(values["data"])
    if isinstance(values.get("train"), Mapping):
        completed["train"] = {**_LATER_TRAIN_KEYS, **values["train"]}
    if isinstance(values.get("model"), Mapping):
        completed["model"] = {**_LATER_MODEL_KEYS, **values["model"]}
    if isinstance(values.get("sampler"), Mapping):
        completed["sampler"] = {**_LATER_SAMPLER_KEYS, **values["sampler"]}
    return completed


def complete_from_dict(values: Mapping[str, Any]) -> Config:
    """Like `from_dict` for a whole `Config`, but every key must be there (checkpoints).

    Tables of older versions are completed by what their missing keys meant then.

    Raises:
        InputError: A key is unknown or missing.
    """
    values = complete_old(values)
    _require_all(to_dict(Config()), values, "config")
    return from_dict(Config, values)


def _require_all(model: Mapping[str, Any], values: Any, where: str) -> None:
    for key, default in model.items():
        if not isinstance(values, Mapping) or key not in values:
            raise InputError(f"missing key {where}.{key}")
        # tables with free keys (weights by source) are complete as they stand
        if isinstance(default, Mapping) and default and where == "config":
            _require_all(default, values[key], f"{where}.{key}")


def load_toml(path: str | Path) -> Config:
    """Read a config file; keys left out keep their defaults.

    Raises:
        InputError: The file cannot be read, is no TOML, or holds an unknown key.
    """
    try:
        with Path(path).open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise InputError(f"config {path}: {error.strerror or error}") from error
    except ValueError as error:  # TOMLDecodeError, or a file that is no text at all
        raise InputError(f"config {path} is no valid TOML: {error}") from error
    return from_dict(Config, values)


def override(config: Config, settings: list[str]) -> Config:
    """Apply ``table.key=value`` settings, the value in TOML.

    ``table.key.name=value`` changes one entry of a table, such as a source's weight; the others stay.

    Raises:
        InputError: A setting is malformed or its key unknown.
    """
    values = to_dict(config)
    for setting in settings:
        try:
            parsed = tomllib.loads(setting)
        except tomllib.TOMLDecodeError as error:
            raise InputError(
                f"--set {setting!r}: expected table.key=value: {error}{_quoted(setting)}"
            ) from error
        for table, keys in parsed.items():
            if table not in values or not isinstance(keys, dict):
                raise InputError(
                    f"--set {setting!r}: no table {table!r}; expected one of {', '.join(values)}"
                )
            within = "." in setting.partition("=")[0].replace(f"{table}.", "", 1)
            for key, value in keys.items():
                old = values[table].get(key)
                if within and isinstance(old, dict) and isinstance(value, dict):
                    value = {**old, **value}
                values[table][key] = value
    return from_dict(Config, values)


def _quoted(setting: str) -> str:
    """What to write where text lacks its quotes, for the end of a message."""
    key, equals, text = setting.partition("=")
    if not (equals and re.fullmatch(r"[A-Za-z_][\w.-]*", text)):
        return ""
    return f"; text needs quotes, which a shell must leave alone: --set '{key}=\"{text}\"'"
