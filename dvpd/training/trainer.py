"""The training loop: steps, evaluations, log, state; on one process or several.

In the output folder: ``state.pt`` and ``state.prev.pt`` (everything needed to go on, written
atomically and read without unpickling code), ``last.safetensors`` and ``best.safetensors``
(averaged weights with their config) and ``log.jsonl``.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import save_checkpoint
from ..config import Config, complete_old, to_dict
from ..config.train import TrainConfig
from ..data.loader import PairSource, batches
from ..grow import fit_weights
from ..model import DVPD
from ..runtime.errors import InputError
from ..runtime.files import write_whole
from ..runtime.spec import SAMPLE_RATE
from .ema import Ema
from .fast_kernels import use_fast_kernels
from .fast_step import FastStep, Step, ladder
from .objective import Draws, Objective
from .parallel import Team
from .start import other_sampler, read_start
from .state import StateFiles, TrainingError

LAST_NAME = "last.safetensors"
BEST_NAME = "best.safetensors"
LOG_NAME = "log.jsonl"
# Keys of [train] that may change between a run and its resumption.
FREE_KEYS = frozenset(
    "steps minutes workers log_steps save_minutes eval_minutes eval_files nan_limit compile kernels "
    "precision channels_last".split()
)

logger = logging.getLogger("dvpd.train")
Report = Callable[[dict[str, Any]], None]
Evaluate = Callable[[DVPD, Config], dict[str, float]]
Show = Callable[[DVPD, Config, int], None]


def learning_rate(
    config: TrainConfig, step: int, minutes: float, part: float | None = None
) -> float:
    """Learning rate of a step.

    Args:
        config: Schedule and budget.
        step: Steps done, from 0.
        minutes: Minutes of training done, for a budget in minutes.
        part: Share of the time until a deadline that is over; it then stands for the budget.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        if part is None:
            part = minutes / config.minutes if config.minutes else step / config.steps
        return config.lr * warm * 0.5 * (1.0 + math.cos(math.pi * min(part, 1.0)))
    if config.schedule == "paper":
        return config.lr * warm * 0.97 ** (step * config.batch_size // config.epoch_crops // 2)
    return config.lr * warm


def keep_only(model: nn.Module, beginnings: Sequence[str]) -> None:
    """Leave every parameter as it is whose name has none of these beginnings.

    Args:
        model: The networks; frozen parameters stay frozen.
        beginnings: As "predictive.encoder"; none changes nothing.

    Raises:
        InputError: A beginning is no trained parameter's.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            parts = sorted({".".join(name.split(".")[:3]) for name in names})
            raise InputError(
                f"train only has {beginning!r}; expected beginnings of the names of parameters that are "
                f"trained: {', '.join(parts)}"
            )
    if beginnings:
        for name, p in model.named_parameters():
            if not name.startswith(tuple(beginnings)):
                p.requires_grad_(False)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay for matrices and kernels, none for biases, norms and scalars."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for p in model.parameters():
        if p.requires_grad:
            (decayed if p.squeeze().ndim >= 2 else plain).append(p)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    groups.append({"params": plain, "weight_decay": 0.0})
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True
    )


def crops_of(config: TrainConfig, step: int) -> str:
    """The crops of a step in words, as `dvpd.data.loader.PairSource.pair` counts them."""
    first = step * config.batch_size
    (epoch, low), (last_epoch, high) = (
        divmod(crop, config.epoch_crops) for crop in (first, first + config.batch_size - 1)
    )
    crops = f"epoch {epoch}, crops {low} to {high}"
    if last_epoch != epoch:
        crops = f"epoch {epoch}, crop {low} to epoch {last_epoch}, crop {high}"
    return f"seed {config.seed}, {crops}"


class Trainer:
    """Holds everything that training changes.

    Attributes:
        config: The whole config.
        team: The processes that train together.
        model: The networks in training.
        ema: Their average.
        files: The states on disk.
        step: Steps done.
        seconds: Time spent in training, over all runs (s).
        skipped: Non-finite steps skipped so far.
        best: Best dev figure so far.
        part: Share of the time until the deadline that is over; None where there is none.
    """

    def __init__(
        self,
        config: Config,
        source: PairSource,
        out: str | Path,
        *,
        team: Team | None = None,
        evaluate: Evaluate | None = None,
        report: Report | None = None,
        show: Show | None = None,
    ) -> None:
        """Build the networks and the optimiser.

        Args:
            config: The whole config.
            source: Makes training pairs.
            out: Folder for state, checkpoints and log; made if missing.
            team: The processes that train together and this one's device; None is one on the CPU.
            evaluate: Dev evaluation, (averaged model, config) -> figures; "score" selects the
                best checkpoint. Only the first process evaluates.
            report: Called in the first process with each record: kind "train" and "dev" as in the
                log, and "step" after every step.
            show: Called in the first process with (averaged model, config, step) after each
                evaluation.

        Raises:
            InputError: The batch cannot be shared equally by the team.
        """
        self.config, self.source, self.out = config, source, Path(out)
        self.team = team or Team()
        self.report, self.evaluate, self.show = report, evaluate, show
        train, device = config.train, self.team.device
        if train.batch_size % self.team.size:
            raise InputError(
                f"train.batch_size is {train.batch_size}, the crops of all processes together; "
                f"expected a multiple of the {self.team.size} processes"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        self.files = StateFiles(self.out)
        torch.manual_seed(train.seed)
        tf32 = device.type == "cuda" and train.precision == "fp32"
        if device.type == "cuda":  # convolutions have TF32 by default; bf16 leaves nothing to it
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        self.model = DVPD(config.model).to(device)
        if train.nhwc:
            for p in self.model.parameters():
                if p.ndim == 4:
                    p.data = p.data.contiguous(memory_format=torch.channels_last)
        self.model.train()
        if train.branches == "predictive":
            self.model.score.requires_grad_(False)
            self.model.score.eval()  # a frozen branch keeps its norms' statistics, too
        elif train.branches == "score":
            self.model.predictive.requires_grad_(False)
            self.model.predictive.eval()
        keep_only(self.model, train.only)
        if not (train.score_weight or train.start_weight):
            self.model.score.eval()  # the other losses' calls differ in their statistics: keep the mean
        if train.freeze_norms:
            for norm in (m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)):
                norm.eval()
        self.optimizer = make_optimizer(self.model, train)
        self.ema = Ema(self.model, train.ema_decay)
        self.step = 0
        self.seconds = 0.0
        self.skipped = 0
        self.best = -math.inf
        self.part: float | None = None
        self._sums: dict[str, float] = {}  # of the log line in progress
        self._counted = 0
        self._bad_in_a_row = 0
        self._stop = False
        self._pending: list[tuple[int, float]] = []  # steps not read yet, with their learning rates
        if train.kernels == "fast":
            use_fast_kernels(self.model, device, train)
        transforms = None if device.type == "cpu" else torch.float64 if tf32 else torch.float32
        self.objective = Objective(
            self.model, config, self.team.rank, self.team.size, transforms, self.ema.model
        ).to(device)
        self._objective = self.team.wrap(self.objective)
        alone = self.team.size == 1
        graph = device.type == "cuda" and train.kernels == "fast" and alone
        self.fast = FastStep(
            Step(
                self._objective, self.model, self.optimizer, self.ema, self.team, train,
                rows=train.log_steps if graph else 1,
            ),
            self.objective,
            ladder(train.compile, graph),
            options={"fullgraph": alone},
        )  # fmt: skip

    # --- one step -----------------------------------------------------------------------------

    def losses(self, noisy_wav: Tensor, clean_wav: Tensor) -> dict[str, Tensor]:
        """Unweighted loss terms of this process's part of a batch, waveforms [B, L]."""
        device = self.team.device
        noisy_wav = noisy_wav.to(device, non_blocking=True)
        clean_wav = clean_wav.to(device, non_blocking=True)
        terms: dict[str, Tensor] = self._objective(noisy_wav, clean_wav, self._draw(noisy_wav))
        return terms

    def train_step(self, noisy: Tensor, clean: Tensor) -> dict[str, float]:
        """One optimiser step on waveforms [B, L]; a non-finite one changes nothing.

        Returns:
            Loss terms, their weighted sum "loss", "lr" and "grad_norm"; "skipped" is 1.0 where
            the step was not finite. The same in every process.

        Raises:
            TrainingError: Too many non-finite steps in a row.
        """
        self._start(noisy, clean)
        return self._read()[-1][1]

    def warm_up(self) -> None:
        """Compile and capture the step on noise, as far as the config asks for it; nothing changes."""
        draw = torch.Generator().manual_seed(0)
        crops = self.config.train.batch_size // self.team.size
        clean = 0.1 * torch.randn(crops, self.config.data.crop_samples, generator=draw)
        noisy = clean + 0.05 * torch.randn(clean.shape, generator=draw)
        self.fast.prepare(noisy, clean, self._draw(noisy))

    def _start(self, noisy: Tensor, clean: Tensor) -> None:
        """Start a step; on a GPU it may still run when this returns."""
        lr = learning_rate(self.config.train, self.step, self.seconds / 60.0, self.part)
        self.fast(noisy, clean, self._draw(noisy), lr)
        self._pending.append((self.step, lr))
        self.step += 1

    def _draw(self, wav: Tensor) -> Draws:
        return self.objective.draw(self.step, wav.shape[0], wav.shape[1], self.team.device)

    def _read(self) -> list[tuple[int, dict[str, float]]]:
        """Figures of the steps since the last reading, each with the steps done after it."""
        if not self._pending:
            return []
        pending, self._pending = self._pending, []
        rows = []
        for (step, lr), values in zip(pending, self.fast.step.read(len(pending)), strict=True):
            values["lr"] = lr
            if values["skipped"]:
                self._skip(step, values)
            else:
                self._bad_in_a_row = 0
            rows.append((step + 1, values))
        return rows

    def _skip(self, step: int, values: dict[str, float]) -> None:
        self.skipped += 1
        self._bad_in_a_row += 1
        where = f"step {step} ({crops_of(self.config.train, step)})"
        if self.team.rank == 0:
            logger.warning(
                "%s: loss %s, gradient norm %s: skipped", where, values["loss"], values["grad_norm"]
            )
        if self._bad_in_a_row >= self.config.train.nan_limit:
            raise TrainingError(
                f"{self._bad_in_a_row} steps in a row were not finite, the last at {where}; lower "
                "train.lr, or train.precision = 'fp32', or look at those crops"
            )

    # --- the loop -----------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the loop to save and end after the step in progress."""
        self._stop = True

    def finished(self) -> bool:
        """Whether the config's budget is used up."""
        train = self.config.train
        return self.seconds >= train.minutes * 60.0 if train.minutes else self.step >= train.steps

    def run(self, max_minutes: float = 0.0, clock: tuple[float, float] | None = None) -> None:
        """Train until the budget is used up, ``stop`` is called, or for ``max_minutes``.

        State and checkpoint are saved at the end, whatever ended it but an error.

        Args:
            max_minutes: Limit of this call (minutes); 0 for none.
            clock: Beginning and deadline by the wall clock (s since 1970), in place of the
                config's budget: the schedule's end falls on the deadline, whatever was done until
                then, and a run that goes on after a crash is where the clock is.

        Raises:
            TrainingError: Too many non-finite steps in a row, or a file cannot be written.
        """
        train, team = self.config.train, self.team
        stream = batches(
            self.source,
            seed=train.seed,
            batch_size=train.batch_size,
            epoch_crops=train.epoch_crops,
            first_crop=self.step * train.batch_size,
            workers=train.workers,
            rank=team.rank,
            size=team.size,
            pin_memory=team.device.type == "cuda",
        )
        begun = saved = evaluated = window = time.monotonic()
        while clock or not self.finished():
            started = time.monotonic()
            late = max_minutes > 0.0 and started - begun >= max_minutes * 60.0
            if clock:
                part = (time.time() - clock[0]) / max(clock[1] - clock[0], 1e-9)
                self.part = team.agree(min(max(part, 0.0), 1.0))
                late = late or self.part >= 1.0
            batch = None if self._stop or late else self._next(stream)
            # The processes end together, whichever was asked to.
            if not team.all(batch is not None) or batch is None:
                break
            self._advance(*batch)
            now = time.monotonic()
            # One clock for all: the schedule may depend on it.
            self.seconds += team.agree(now - started)
            if self.step % train.log_steps == 0 and self._counted:
                self._log(train.log_steps * train.batch_size / max(now - window, 1e-9))
                window = now
            look = train.eval_minutes > 0.0 and now - evaluated >= train.eval_minutes * 60.0
            if look:
                self._look()
                evaluated = window = time.monotonic()
            if look or now - saved >= train.save_minutes * 60.0:
                self.save()
                saved = time.monotonic()
        if train.eval_minutes and self.finished() and not self._stop:
            self._look()
        self.save()

    def _next(self, stream: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
        try:
            return next(stream)
        except RuntimeError:
            if self._stop:  # the signal that stops us has also ended the workers
                return None
            raise

    def _advance(self, noisy: Tensor, clean: Tensor) -> None:
        """Do a step, and count the figures that were read: of each step, or of ``log_steps`` together."""
        if self.fast.step.rows == 1:
            self._count(self.step + 1, self.train_step(noisy, clean))
            return
        self._start(noisy, clean)
        if (
            self.step % self.config.train.log_steps == 0
            or len(self._pending) == self.fast.step.rows
        ):
            self._settle()

    def _settle(self) -> None:
        """Count the steps that were started and not read yet."""
        for step, values in self._read():
            self._count(step, values)

    def _count(self, step: int, values: dict[str, float]) -> None:
        if not values["skipped"]:
            self._counted += 1
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
        if self.report and self.team.rank == 0:
            shown = {"loss": values["loss"], "lr": values["lr"]}
            self.report({"kind": "step", **self._position(step), **shown})

    def _look(self) -> None:
        if self.team.rank == 0:
            if self.evaluate:
                self.run_evaluation()
            if self.show:
                self.show(self.ema.model, self.config, self.step)

    def run_evaluation(self) -> dict[str, float]:
        """Evaluate the averaged weights; a new best is saved."""
        if self.evaluate is None:
            raise InputError("the trainer has no dev set to evaluate on")
        figures = self.evaluate(self.ema.model, self.config)
        self._write({"kind": "dev", **self._position(), **figures})
        if figures["score"] > self.best:
            self.best = figures["score"]
            self._save_weights(self.out / BEST_NAME, figures)
        return figures

    def _position(self, step: int | None = None) -> dict[str, Any]:
        train, data = self.config.train, self.config.data
        step = self.step if step is None else step
        crops = step * train.batch_size
        return {
            "step": step,
            "minutes": round(self.seconds / 60.0, 3),
            "epoch": crops // train.epoch_crops,
            "audio_hours": round(crops * data.crop_samples / SAMPLE_RATE / 3600.0, 4),
        }

    def _log(self, rate: float) -> None:
        means = {k: v / self._counted for k, v in self._sums.items() if k != "skipped"}
        self._sums, self._counted = {}, 0
        record = {"kind": "train", **self._position()}
        record |= {k: float(f"{v:.6g}") for k, v in means.items()}
        self._write({**record, "crops_per_s": round(rate, 3), "skipped": self.skipped})

    def _write(self, record: dict[str, Any]) -> None:
        if self.team.rank:
            return
        path = self.out / LOG_NAME
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise TrainingError(
                f"{path} cannot be written: {error.strerror or error}; the last saved state is "
                "whole: --resume once there is room"
            ) from error
        if self.report:
            self.report(record)

    # --- state --------------------------------------------------------------------------------

    def save(self) -> None:
        """Write training state and averaged weights, each whole or not at all.

        Raises:
            TrainingError: One cannot be written (a full disk); what was there before still is.
        """
        self._settle()
        if self.team.rank:
            return
        self.files.save(
            {
                "config": json.dumps(to_dict(self.config)),
                "model": self.model.state_dict(),
                "ema": self.ema.model.state_dict(),
                "ema_updates": self.ema.updates,
                "optimizer": self._optimizer_state(),
                "step": self.step,
                "seconds": self.seconds,
                "skipped": self.skipped,
                "bad_in_a_row": self._bad_in_a_row,
                "best": self.best,
                "sums": self._sums,
                "counted": self._counted,
            }
        )
        self._save_weights(self.out / LAST_NAME, {})

    def _optimizer_state(self) -> dict[str, Any]:
        """The optimiser's state, as versions with a plain number for the learning rate read it."""
        state = self.optimizer.state_dict()
        rate = {"lr": float(self.fast.step.lr), "capturable": False}
        return {**state, "param_groups": [{**group, **rate} for group in state["param_groups"]]}

    def _save_weights(self, path: Path, figures: dict[str, float]) -> None:
        extra = {k: str(v) for k, v in {**self._position(), **figures}.items()}
        try:
            save_checkpoint(path, self.ema.model.state_dict(), self.config, extra)
        except OSError as error:
            raise TrainingError(
                f"{path} cannot be written: {error.strerror or error}; the training state is "
                "whole: free some space, then --resume"
            ) from error

    def resume(self) -> None:
        """Go on from the newest whole state in the output folder.

        What the log has beyond that state is dropped: those steps are done again.

        Raises:
            InputError: There is none, it is damaged, or it belongs to another config.
        """
        with self.team.lead_first():
            state, path = read_state(self.files, self.config, self.team.device)
        try:
            self.model.load_state_dict(state["model"])
            self.ema.model.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.fast.reset()
            self.ema.updates = state["ema_updates"]
            self.step, self.seconds = state["step"], state["seconds"]
            self.skipped, self.best = state["skipped"], state["best"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{path} does not fit this version's networks: {error}; start anew with --init"
            ) from error
        self._bad_in_a_row = state.get("bad_in_a_row", 0)  # version 0.1 had none of these
        self._sums, self._counted = state.get("sums", {}), state.get("counted", 0)
        if self.team.rank == 0:
            for stale in self.out.glob(".*.tmp"):  # of a process that was killed while writing
                stale.unlink(missing_ok=True)
            self._trim_log()

    def _trim_log(self) -> None:
        path = self.out / LOG_NAME
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= self.step]
        if kept != lines:
            write_whole(path, "".join(kept).encode())

    def init_from(self, path: str | Path) -> None:
        """Start from the weights of a checkpoint; step and optimiser start anew.

        A causal model may start from an offline one, and from one with another look-ahead.

        Raises:
            InputError: The checkpoint is of another architecture, or its [signal] is another.
            DvpdError: It cannot be read.
        """
        config, weights = read_start(path, self.config)
        if self.team.rank == 0 and (changes := other_sampler(config, self.config)):
            logger.warning(
                "%s has %s: the export takes what is set now; --set keeps the old values",
                path, ", ".join(changes),
            )  # fmt: skip
        weights = fit_weights(self.model, weights, was_causal=config.model.causal)
        self.model.load_state_dict(weights)
        self.ema.model.load_state_dict(weights)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line that a crash left torn
        return math.inf


def read_state(
    files: StateFiles, config: Config, device: torch.device
) -> tuple[dict[str, Any], Path]:
    """The newest whole state and its file, if a training with ``config`` may go on from it.

    Raises:
        InputError: There is none, it is damaged, or it belongs to another config.
    """
    state, path = files.load(device)
    check_same(dict(complete_old(json.loads(state["config"]))), to_dict(config), path)
    return state, path


def check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """Compare a state's config with the present one, but for the keys that may change.

    Args:
        old: The state's.
        new: The present one.
        path: The state's file, for the message.

    Raises:
        InputError: They differ; the message names every key.
    """
    changes = []
    for table in sorted(set(old) | set(new)):
        mine, theirs = new.get(table, {}), old.get(table, {})
        for key in sorted(set(mine) | set(theirs)):
            if (table != "train" or key not in FREE_KEYS) and mine.get(key) != theirs.get(key):
                changes.append(f"{table}.{key} = {theirs.get(key)!r} (now {mine.get(key)!r})")
    if changes:
        raise InputError(
            f"{path} was trained with {', '.join(changes)}; resume with the same config, or start "
            "anew with --init"
        )
