"""What a lease is spent on: read from TOML, and once packed, from JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..config import Config, from_dict, load_toml, override
from ..config.tables import tomllib
from ..runtime.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclass(frozen=True)
class Seconds:
    """Limits of the phases (s), for a lease of the plan's ``minutes``; other leases scale them.

    Attributes:
        smoke: The smoke test.
        parts: How long to wait for parts of the data, from the start on; then those here must do.
        data: Unpacking and decoding, behind the wait.
        probe: All probes of training steps together, compilation included.
        publish: Between two publications.
        last: Kept free at the end for copying back.
    """

    smoke: float = 40.0
    parts: float = 150.0
    data: float = 90.0
    probe: float = 150.0
    publish: float = 30.0
    last: float = 40.0


@dataclass(frozen=True)
class Rung:
    """A way to make a training step.

    Attributes:
        name: For the rows.
        set: ``table.key=value`` settings, as ``dvpd.train --set`` takes them.
    """

    name: str
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A training.

    Attributes:
        name: Folder of its results.
        config: TOML file.
        init: Checkpoint to start from; "@NAME" takes what an earlier model of the plan became.
        share: Of the time for training, relative to the other models'.
        set: Settings of its own.
    """

    name: str
    config: str
    init: str = ""
    share: float = 1.0
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A program to run before the training, beside data and probes.

    Attributes:
        name: Folder of its results.
        argv: Words; {python} is this Python and {out} the folder whose files come back.
        seconds: Its limit, for a lease of the plan's ``minutes``.
    """

    name: str
    argv: tuple[str, ...]
    seconds: float = 120.0


def _ladder() -> tuple[Rung, ...]:
    fast = ("train.precision='bf16'", "train.channels_last=true", "train.kernels='fast'")
    return (
        Rung("regions and graph", (*fast, "train.compile=true")),
        Rung("graph on eager", (*fast, "train.compile=false")),
        Rung("eager", ("train.precision='bf16'", "train.channels_last=true")),
    )


@dataclass(frozen=True)
class Plan:
    """A lease.

    Attributes:
        data: Folder with speech/, noise/ and, if there, rir/.
        minutes: Length that ``seconds`` are meant for.
        wheels: Folder with wheels of what the machine lacks.
        cache: Compile caches that an earlier lease brought back (a folder of ``collect``).
        part_mib: What a call carries at most, beside the checkout (MiB).
        piece_mib: Size of a file that comes back at most (MiB).
        set: Settings of every model: ``train.schedule='cosine'`` ends at zero on the deadline.
        seconds: Limits of the phases.
        tolerance: A fast step whose losses differ by more than this share from those of the last
            rung, on the same three batches, is not used.
        rungs: Ways to make a step, fastest first; the last must always work.
        together: Train the models side by side, all until the deadline: one with half the largest
            share begins when half of the time is over. False trains one after the other.
        models: Trained in this order.
        commands: Run in this order, beside the probes.
    """

    data: str
    minutes: float = 15.0
    wheels: str = ""
    cache: str = ""
    part_mib: float = 40.0
    piece_mib: float = 15.5
    set: tuple[str, ...] = ("train.schedule='cosine'",)
    seconds: Seconds = field(default_factory=Seconds)
    tolerance: float = 0.05
    rungs: tuple[Rung, ...] = field(default_factory=_ladder)
    together: bool = False
    models: tuple[Model, ...] = ()
    commands: tuple[Command, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could not run."""
        if not self.models:
            raise InputError("the plan has no [[models]]; expected at least one")
        if not self.rungs:
            raise InputError("the plan has no rungs; expected one, or leave them out")
        for kind in ("models", "commands"):
            names = [item.name for item in getattr(self, kind)]
            if len(set(names)) < len(names) or not all(map(_NAME.fullmatch, names)):
                raise InputError(
                    f"names of {kind} are {', '.join(names)}; expected different ones of up to 40 "
                    "letters, digits, '_' and '-'"
                )
        before: list[str] = []
        for model in self.models:
            if not model.share > 0.0:
                raise InputError(f"share of {model.name} is {model.share}; expected more than 0")
            if model.init.startswith("@") and model.init[1:] not in before:
                raise InputError(f"init of {model.name} is {model.init!r}; no earlier model is it")
            if model.init.startswith("@") and self.together:
                raise InputError(
                    f"init of {model.name} is {model.init!r}, but together = true trains it beside "
                    "that model; name a checkpoint"
                )
            before.append(model.name)
        positive = {"minutes": self.minutes, "part_mib": self.part_mib, "piece_mib": self.piece_mib}
        positive |= {f"seconds.{f.name}": getattr(self.seconds, f.name) for f in fields(Seconds)}
        positive |= {f"seconds of {c.name}": c.seconds for c in self.commands}
        for name, value in positive.items():
            if not value > 0.0:
                raise InputError(f"{name} is {value}; expected more than 0")

    def scaled(self, minutes: float) -> Plan:
        """The plan with its limits for a lease of ``minutes``."""
        by = minutes / self.minutes
        limits = {name: value * by for name, value in asdict(self.seconds).items()}
        commands = tuple(replace(c, seconds=c.seconds * by) for c in self.commands)
        return replace(self, minutes=minutes, seconds=Seconds(**limits), commands=commands)

    def model_config(self, model: Model, config: Config, rung: Rung | None = None) -> Config:
        """A model's config, with its settings and the rung's."""
        return override(config, [*self.set, *model.set, *(rung.set if rung else ())])


def load_plan(path: str | Path, folders: Mapping[str, str] | None = None) -> Plan:
    """Read a plan; files in it are relative to its folder. The models' configs are checked.

    Args:
        path: TOML file.
        folders: Of its "data", "wheels" and "cache", those that others take the place of.

    Raises:
        InputError: It cannot be read, holds an unknown key, or names what is not there.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"plan {path} cannot be read: {error}") from error
    plan = from_dict(Plan, values, "plan")

    def here(name: str) -> str:
        return str((path.parent / name).resolve()) if name and name[0] != "@" else name

    models = tuple(replace(m, config=here(m.config), init=here(m.init)) for m in plan.models)
    places: dict[str, Any] = {
        name: here(getattr(plan, name)) for name in ("data", "wheels", "cache")
    }
    plan = replace(plan, models=models, **{**places, **(folders or {})})
    for model in plan.models:
        plan.model_config(model, load_toml(model.config))
        if model.init and model.init[0] != "@" and not Path(model.init).is_file():
            raise InputError(f"init of {model.name} is {model.init}; no such file")
    for name in ("wheels", "cache"):
        folder = getattr(plan, name)
        if folder and not Path(folder).is_dir():
            raise InputError(f"{name} is {folder}; expected a folder")
    return plan


def to_json(plan: Plan) -> bytes:
    """The plan as `from_json` reads it."""
    return json.dumps(asdict(plan), indent=1).encode()


def from_json(values: Mapping[str, Any]) -> Plan:
    """The plan that `to_json` wrote."""
    return from_dict(Plan, values, "plan")
