"""The phases themselves; each runs in a process of its own and leaves a JSON file if it succeeds.

Only here is torch used: the supervisor imports it, so that its children have it at once, but never
computes with it.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from ..config import Config, load_toml
from ..data import limit_to_built, open_source
from ..runtime.command import say
from ..runtime.errors import InputError
from ..runtime.files import write_whole
from ..training import fast_kernels
from ..training.parallel import Team
from ..training.state import StateFiles, TrainingError
from ..training.trainer import LAST_NAME, Trainer
from .compiled import SUFFIX, count_hits, keep_compiled, load_compiled
from .parts import MIB, unpack
from .plan import Model, Plan
from .rows import Rows
from .work import Work

PROBE_STEPS = 3  # compared between the ways to make a step
PROBE_SHARE = 1 / 75  # of the probes' limit: timed steps behind them (2 of 150 s)
CACHE_PIECES = 8  # that all models' compile caches may come back in: base's has 33 MB, tiny's 32
NEEDED = ("numpy", "scipy", "soundfile", "soxr", "safetensors")


def find_device(name: str) -> str:
    """The torch device that "auto" means here; others as they are."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def smoke(work: Work, plan: Plan, out: str) -> None:
    """Say what the machine is, and compute a product on it.

    Raises:
        InputError: The device computes wrongly, or a package is missing.
    """
    device = find_device(work.lease["device"])
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:  # soundfile raises OSError without libsndfile
            missing.append(f"{name} ({error})")
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(256, 256, generator=draw)
    there = (a.to(device) @ a.to(device)).cpu()
    off = float((there - a @ a).norm() / (a @ a).norm())
    if not off < 1e-2:
        raise InputError(f"a product on {device} is off by {off:.3g}; expected less than 0.01")
    facts: dict[str, Any] = {
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "disk_gb": round(shutil.disk_usage(work.root).free / 1e9, 1),
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
    if missing:
        raise InputError(f"{facts}; missing: {', '.join(missing)}: carry wheels")
    _leave(work, out, facts)


def data(work: Work, plan: Plan, out: str, until: float, again: bool = False) -> None:
    """Unpack the parts as they come, then decode them once for all models.

    Args:
        work: The lease's folder.
        plan: Its plan.
        out: Name of the result.
        until: When to do with the parts that are there (s since 1970).
        again: Whether an attempt failed; this one does with the rooms that it simulated.

    Raises:
        InputError: There is not one part, or it cannot be used.
    """
    rows = Rows(work.rows, work.lease["started"])
    expected, here, seen = work.lease["parts"], unpack(work.inbox, work.data), -1
    while len(here) < len(expected) and time.time() < until:
        if len(here) != seen:
            seen = len(here)
            rows.add("data", "parts", here=seen, expected=len(expected))
        time.sleep(0.1)
        here = unpack(work.inbox, work.data)
    missing = sorted(set(expected) - set(here))
    rows.add("data", "parts", here=len(here), expected=len(expected), missing=missing)
    if not here:
        raise InputError(f"none of the {len(expected)} parts came")

    def report(kind: str, done: int, total: int) -> None:
        if done == total:
            rows.add("data", "decoded", kind=kind, files=total)

    hours = {}
    for model in plan.models:
        config = _config(work, plan, model)
        if again:
            config = replace(config, data=limit_to_built(config.data, work.cache / "audio"))
        source = open_source(config, work.data, work.cache / "audio", report)
        hours = {
            k: round(p.hours, 3) for k in ("speech", "noise") if (p := getattr(source, k, None))
        }
    _leave(work, out, {"parts": len(here), "missing": missing, "hours": hours})


def probe(work: Work, plan: Plan, out: str, model: int, rung: int) -> None:
    """Make a few training steps on random audio: do they work, what are their losses, how fast?

    Raises:
        TrainingError: A step is not finite.
    """
    chosen = plan.models[model]
    config = _config(work, plan, chosen, rung)
    team = Team(find_device(work.lease["device"]))
    scratch = work.root / "probe" / out
    _load_compiled(work, config)
    with _same_forms(work, chosen) as forms:
        trainer = Trainer(config, _Nothing(), scratch, team=team)
    begin = time.perf_counter()
    _init(work, chosen, trainer)
    draw = torch.Generator().manual_seed(0)
    shape = (config.train.batch_size, config.data.crop_samples)
    losses: list[float] = []
    times: list[float] = []
    spent, first = 0.0, 0.0
    while len(losses) < PROBE_STEPS or (
        spent < PROBE_SHARE * plan.seconds.probe and len(times) < 30
    ):
        clean = 0.1 * torch.randn(shape, generator=draw)
        noisy = clean + 0.05 * torch.randn(shape, generator=draw)
        step = time.perf_counter()
        values = trainer.train_step(noisy, clean)  # reads its losses: waits for the device
        took = time.perf_counter() - step
        if values["skipped"]:
            raise TrainingError(f"step {len(losses)} is not finite: {values}")
        if len(losses) < PROBE_STEPS:
            losses.append(values["loss"])
            first = first or time.perf_counter() - begin
        if len(losses) >= PROBE_STEPS:
            times.append(took)
            spent += took
    figures: dict[str, Any] = {
        "losses": losses,
        "ms": round(1e3 * statistics.median(times), 3),
        "first_step_s": round(first, 2),
        "crops": config.train.batch_size,
        "audio_s_per_s": round(
            config.train.batch_size * config.data.crop_samples / 16e3 / statistics.median(times), 4
        ),
    }
    if team.device.type == "cuda":
        figures["gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    if config.train.compile:
        figures |= count_hits()
    if config.train.kernels == "fast":
        figures["forms"] = forms
    _leave(work, out, figures)
    _keep_compiled(work, plan, chosen, config)


class _Nothing:
    def pair(self, seed: int, epoch: int, index: int) -> Any:
        raise AssertionError("the probe brings its own audio")


def train(
    work: Work,
    plan: Plan,
    out: str,
    model: int,
    rung: int,
    begin: float,
    end: float,
    share: float = 0.0,
) -> None:
    """Train a model to its deadline; goes on from the state that an earlier attempt left.

    Args:
        work: The lease's folder.
        plan: Its plan.
        out: Name of the result.
        model: Which one.
        rung: How to make a step.
        begin: When its time began (s since 1970).
        end: When it ends.
        share: Above 0 it begins before the data are there: the step is made ready, and of the time
            between the data and the end the model has this part, the last one.
    """
    chosen = plan.models[model]
    config = _config(work, plan, chosen, rung)
    team = Team(find_device(work.lease["device"]))
    rows = Rows(work.rows, work.lease["started"])
    _load_compiled(work, config)
    with _same_forms(work, chosen):
        trainer = LeasedTrainer(config, _Nothing(), work.model(chosen.name), team=team)
    trainer.say = lambda event, **more: rows.add("train", event, model=chosen.name, **more)
    trainer.saved = lambda: _keep_compiled(work, plan, chosen, config)
    _start(work, chosen, trainer)
    if share > 0.0:
        _make_ready(trainer, plan.seconds.probe)
        while (found := work.begin_of(share, end)) is None or time.time() < found:
            time.sleep(0.05)
        begin = found
    config = _limit_rooms(work, rows, chosen, config)
    trainer.source = open_source(config, work.data, work.cache / "audio")
    signal.signal(signal.SIGTERM, lambda *_: trainer.stop())
    try:
        trainer.say("starts", step=trainer.step, settings=plan.rungs[rung].name)
        trainer.run(clock=(begin, end))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _leave(work, out, {"step": trainer.step})


def _make_ready(trainer: LeasedTrainer, limit_s: float) -> None:
    """Compile and capture the step; a compiler that does not end, ends the process."""
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # its signal kills: the next rung is taken
    trainer.warm_up()
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    fast, facts = trainer.fast, {}
    if trainer.team.device.type == "cuda":
        facts["gpu_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
    if trainer.config.train.compile:
        facts |= count_hits()
    trainer.say(
        "ready", seconds=round(time.monotonic() - began, 2), step_as=str(fast.rung),
        left={str(rung): why for rung, why in fast.reasons}, **facts,
    )  # fmt: skip


def _limit_rooms(work: Work, rows: Rows, model: Model, config: Config) -> Config:
    """The time of training simulates no room that the data phase had no time for."""
    limited = limit_to_built(config.data, work.cache / "audio")
    if limited == config.data:
        return config
    rows.add("train", "fewer rooms", model=model.name, rooms=limited.room_bank)
    return replace(config, data=limited)


class LeasedTrainer(Trainer):
    """A trainer that a full disk does not stop: what cannot be saved now may be saved later."""

    say: Callable[..., None] = staticmethod(lambda event, **more: None)
    saved: Callable[[], None] = staticmethod(lambda: None)

    def save(self) -> None:
        """State and weights; where the state finds no room, the weights alone."""
        kept = {"step": self.step, "seconds": round(self.seconds, 3)}
        kept["audio_hours"] = self._position()["audio_hours"]
        try:
            super().save()
        except TrainingError as error:
            self.say("not saved", why=str(error), **kept)
            try:
                self._save_weights(self.out / LAST_NAME, {})
            except TrainingError:
                return
        self.say("saved", **kept)
        self.saved()

    def _write(self, record: dict[str, Any]) -> None:
        try:
            super()._write(record)
        except TrainingError as error:
            self.say("not logged", why=str(error))


def _start(work: Work, model: Model, trainer: Trainer) -> None:
    """State of an earlier attempt, or its weights where that does not fit, or the plan's."""
    files = StateFiles(trainer.out)
    last = trainer.out / LAST_NAME
    if files.exist():
        try:
            trainer.resume()
            return
        except InputError as error:  # another rung's batch size, or damaged
            say(f"going on from the weights alone: {error}")
            files.newest.unlink(missing_ok=True)
            files.previous.unlink(missing_ok=True)
    if last.is_file():
        trainer.init_from(last)
    else:
        _init(work, model, trainer)


def _init(work: Work, model: Model, trainer: Trainer) -> None:
    if model.init.startswith("@"):
        path = work.model(model.init[1:]) / LAST_NAME
        if path.is_file():  # not yet where a step is only probed
            trainer.init_from(path)
    elif model.init:
        trainer.init_from(work.setup / model.init)


def _config(work: Work, plan: Plan, model: Model, rung: int | None = None) -> Config:
    """Its config on this machine: saves as often as is published, mixes on all cores but two."""
    plain = load_toml(work.setup / model.config)
    config = plan.model_config(model, plain, None if rung is None else plan.rungs[rung])
    every = plan.seconds.publish / 60.0
    workers = config.train.workers
    if not any(line.split("=")[0].strip() == "train.workers" for line in (*plan.set, *model.set)):
        workers = max(1, min((os.cpu_count() or 1) - 2, 14))
    return replace(config, train=replace(config.train, save_minutes=every, workers=workers))


@contextmanager
def _same_forms(work: Work, model: Model) -> Iterator[dict[str, str]]:
    """A model's fast forms are measured once in a lease: what is compiled for them fits later."""
    path = work.out / f"forms-{model.name}.json"
    try:
        before = dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        before = {}
    forms = fast_kernels.remembered = dict(before)
    try:
        yield forms
        if forms != before:
            with suppress(OSError):  # a full disk: measured again
                write_whole(path, json.dumps(forms).encode())
    finally:
        fast_kernels.remembered = None


def _load_compiled(work: Work, config: Config) -> None:
    if config.train.compile:
        begin = time.monotonic()
        if count := load_compiled(work.setup / "cache", work.compiled):
            rows = Rows(work.rows, work.lease["started"])
            rows.add("compiled", "loaded", files=count, seconds=round(time.monotonic() - begin, 2))


def _keep_compiled(work: Work, plan: Plan, model: Model, config: Config) -> None:
    """Once for a model: by its probe, or by its training where that came to no end."""
    path = work.kept / f"{model.name}{SUFFIX}"
    mark = work.out / f"{path.name}.tried"
    if not config.train.compile or mark.exists():
        return
    rows, begin = Rows(work.rows, work.lease["started"]), time.monotonic()
    try:
        mark.touch()
        size = keep_compiled(path, int(CACHE_PIECES * plan.piece_mib * MIB))
    except Exception as error:  # the next lease compiles, this one goes on
        rows.add("compiled", "not kept", model=model.name, why=str(error) or type(error).__name__)
        return
    if size:
        seconds = round(time.monotonic() - begin, 2)
        rows.add("compiled", "kept", model=model.name, mb=round(size / 1e6, 2), seconds=seconds)


def _leave(work: Work, out: str, figures: dict[str, Any]) -> None:
    bad = [k for k, v in figures.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        raise InputError(f"{', '.join(bad)} is not finite: {figures}")
    write_whole(work.out / f"{out}.json", json.dumps(figures).encode())


PHASES: dict[str, Callable[..., None]] = {f.__name__: f for f in (smoke, data, probe, train)}
