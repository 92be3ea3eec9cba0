"""Training of both branches: ``python -m dvpd.train CONFIG.toml --data DIR --out DIR``.

In the folder ``--out``: ``state.pt`` (everything needed to go on, written atomically and read
without unpickling code), ``last.safetensors`` and ``best.safetensors`` (averaged weights with
their config) and ``log.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import load_checkpoint, save_checkpoint
from .config import Config, from_dict, load_toml, to_dict, tomllib
from .data.loader import PairSource, batches
from .data.mix import Mixer
from .data.pool import SAMPLE_RATE, load_pool
from .ema import Ema
from .losses import predictive_terms, score_loss, weighted_sum
from .model import DVPD
from .runtime.errors import DvpdError, InputError
from .sde import mean, std
from .spectral import compress, compressed_noisy, magnitude
from .train_config import TrainConfig

STATE_FORMAT = "dvpd-train-1"
STATE_NAME = "state.pt"
LAST_NAME = "last.safetensors"
BEST_NAME = "best.safetensors"
LOG_NAME = "log.jsonl"
# Keys of [train] that may change between a run and its resumption.
FREE_KEYS = frozenset(
    "steps minutes workers log_steps save_minutes eval_minutes eval_files nan_limit compile".split()
)

logger = logging.getLogger("dvpd.train")
Report = Callable[[dict[str, Any]], None]
Evaluate = Callable[[DVPD, Config], dict[str, float]]


class TrainingError(DvpdError, RuntimeError):
    """Training cannot go on."""


def learning_rate(config: TrainConfig, step: int, minutes: float) -> float:
    """Learning rate of a step.

    Args:
        config: Schedule and budget.
        step: Steps done, from 0.
        minutes: Minutes of training done, for a budget in minutes.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        part = minutes / config.minutes if config.minutes else step / config.steps
        return config.lr * warm * 0.5 * (1.0 + math.cos(math.pi * min(part, 1.0)))
    if config.schedule == "paper":
        return config.lr * warm * 0.97 ** (step * config.batch_size // config.epoch_crops // 2)
    return config.lr * warm


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay for matrices and kernels, none for biases, norms and scalars."""
    decayed, plain = [], []
    for p in model.parameters():
        if p.requires_grad:
            (decayed if p.squeeze().ndim >= 2 else plain).append(p)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    groups.append({"params": plain, "weight_decay": 0.0})
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True
    )


class Trainer:
    """Holds everything that training changes.

    Attributes:
        config: The whole config.
        model: The networks in training.
        ema: Their average.
        step: Steps done.
        seconds: Time spent in training, over all runs (s).
        skipped: Non-finite steps skipped so far.
        best: Best dev figure so far.
    """

    def __init__(
        self,
        config: Config,
        source: PairSource,
        out: str | Path,
        *,
        device: str = "cpu",
        evaluate: Evaluate | None = None,
        report: Report | None = None,
    ) -> None:
        """Build the networks and the optimiser.

        Args:
            config: The whole config.
            source: Makes training pairs.
            out: Folder for state, checkpoints and log; made if missing.
            device: torch device.
            evaluate: Dev evaluation, (averaged model, config) -> figures; "score" selects the
                best checkpoint.
            report: Called with each log record.
        """
        self.config, self.source, self.out = config, source, Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(device)
        self.report, self.evaluate = report, evaluate
        train = config.train
        torch.manual_seed(train.seed)
        self.model = DVPD(config.model).to(self.device)
        if train.channels_last:
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
        self.optimizer = make_optimizer(self.model, train)
        self.ema = Ema(self.model, train.ema_decay)
        self.step = 0
        self.seconds = 0.0
        self.skipped = 0
        self.best = -math.inf
        self._bad_in_a_row = 0
        self._stop = False
        self._predict: Callable[..., Any] = self.model.predictive
        self._score: Callable[..., Any] = self.model.score
        if train.compile:
            self._predict = torch.compile(self.model.predictive, dynamic=False)
            self._score = torch.compile(self.model.score, dynamic=False)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._buffers = list(self.model.buffers())

    # --- one step -----------------------------------------------------------------------------

    def losses(self, noisy_wav: Tensor, clean_wav: Tensor) -> dict[str, Tensor]:
        """Unweighted loss terms of a batch of waveforms [B, L]."""
        train, sde = self.config.train, self.config.sde
        with torch.no_grad():
            noisy = compressed_noisy(noisy_wav, self.config.signal)  # [B, 3, T, F]
            target = compress(clean_wav, self.config.signal)  # [B, 2, T, F]
            extra = -noisy.shape[2] % 4
            if extra:
                noisy = nn.functional.pad(noisy, (0, 0, 0, extra))
                target = nn.functional.pad(target, (0, 0, 0, extra))
            if train.channels_last:
                noisy = noisy.contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=train.precision == "bf16"
        )
        frozen = train.branches == "score"
        with autocast, torch.set_grad_enabled(not frozen):
            clean_ri, feats = self._predict(noisy)
        terms: dict[str, Tensor] = {}
        if not frozen:
            terms = predictive_terms(train, clean_ri.float(), target, clean_wav)
        if train.branches == "predictive":
            return terms
        with torch.no_grad():
            x0, y = magnitude(target), noisy[:, 2:3]
            # A function of (seed, step): resuming needs no generator's state.
            draw = torch.Generator().manual_seed(train.seed * 1_000_003 + self.step)
            low, high = train.t_range
            t = low + (high - low) * torch.rand(len(y), generator=draw)
            z = torch.randn(y.shape, generator=draw).to(self.device)
            t = t.to(self.device)
            sigma = std(sde, t)
            xt = mean(sde, x0, y, t) + sigma * z
        if train.detach_feats:
            feats = [f.detach() for f in feats]
        with autocast:
            sigma_z = self._score(xt, t, feats)
        terms["score"] = score_loss(sigma_z.float(), z, sigma)
        return terms

    def train_step(self, noisy: Tensor, clean: Tensor) -> dict[str, float]:
        """One optimiser step on waveforms [B, L]; a non-finite one changes nothing.

        Returns:
            Loss terms, their weighted sum "loss", "lr" and "grad_norm"; "skipped" is 1.0 where
            the step was not finite.

        Raises:
            TrainingError: Too many non-finite steps in a row.
        """
        train = self.config.train
        before = [b.clone() for b in self._buffers]
        noisy, clean = noisy.to(self.device), clean.to(self.device)
        terms = self.losses(noisy, clean)
        loss = weighted_sum(train, terms)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = train.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        values = {k: float(v.detach()) for k, v in terms.items()}
        values |= {"loss": float(loss.detach()), "grad_norm": float(norm)}
        values["lr"] = learning_rate(train, self.step, self.seconds / 60.0)
        if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
            for group in self.optimizer.param_groups:
                group["lr"] = values["lr"]
            self.optimizer.step()
            self.ema.update(self.model)
            self._bad_in_a_row = 0
            values["skipped"] = 0.0
        else:
            for buffer, old in zip(self._buffers, before, strict=True):
                buffer.copy_(old)  # a batch norm has seen the bad batch
            self._skip(values)
        self.step += 1
        return values

    def _skip(self, values: dict[str, float]) -> None:
        self.skipped += 1
        self._bad_in_a_row += 1
        values["skipped"] = 1.0
        train = self.config.train
        epoch, first = divmod(self.step * train.batch_size, train.epoch_crops)
        where = f"step {self.step} (seed {train.seed}, epoch {epoch}, crops {first} to "
        where += f"{first + train.batch_size - 1})"
        logger.warning("%s: loss %s, skipped", where, values["loss"])
        if self._bad_in_a_row >= train.nan_limit:
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

    def run(self, max_minutes: float = 0.0) -> None:
        """Train until the budget is used up, ``stop`` is called, or for ``max_minutes``.

        State and checkpoint are saved at the end, whatever ended it but an error.

        Args:
            max_minutes: Limit of this call (minutes); 0 for none.

        Raises:
            TrainingError: Too many non-finite steps in a row.
            OSError: State or log cannot be written.
        """
        train = self.config.train
        stream = batches(
            self.source,
            seed=train.seed,
            batch_size=train.batch_size,
            epoch_crops=train.epoch_crops,
            first_crop=self.step * train.batch_size,
            workers=train.workers,
        )
        begun = saved = evaluated = time.monotonic()
        sums: dict[str, float] = {}
        counted, window = 0, time.monotonic()
        while not self._stop and not self.finished():
            if max_minutes and time.monotonic() - begun >= max_minutes * 60.0:
                break
            started = time.monotonic()
            batch = self._next(stream)
            if batch is None:
                break
            values = self.train_step(*batch)
            now = time.monotonic()
            self.seconds += now - started
            if not values["skipped"]:
                counted += 1
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
            if self.step % train.log_steps == 0 and counted:
                rate = train.log_steps * train.batch_size / max(now - window, 1e-9)
                self._log({k: v / counted for k, v in sums.items() if k != "skipped"}, rate)
                sums, counted, window = {}, 0, now
            if now - saved >= train.save_minutes * 60.0:
                self.save()
                saved = time.monotonic()
            if (
                self.evaluate
                and train.eval_minutes
                and now - evaluated >= train.eval_minutes * 60.0
            ):
                self.run_evaluation()
                evaluated = window = time.monotonic()
        if self.evaluate and train.eval_minutes and self.finished() and not self._stop:
            self.run_evaluation()
        self.save()

    def _next(self, stream: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
        try:
            return next(stream)
        except RuntimeError:
            if self._stop:  # the signal that stops us has also ended the workers
                return None
            raise

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

    def _position(self) -> dict[str, Any]:
        train, data = self.config.train, self.config.data
        crops = self.step * train.batch_size
        return {
            "step": self.step,
            "minutes": round(self.seconds / 60.0, 3),
            "epoch": crops // train.epoch_crops,
            "audio_hours": round(crops * data.crop_samples / SAMPLE_RATE / 3600.0, 4),
        }

    def _log(self, values: dict[str, float], rate: float) -> None:
        record = {"kind": "train", **self._position()}
        record |= {k: float(f"{v:.6g}") for k, v in values.items()}
        self._write({**record, "crops_per_s": round(rate, 3), "skipped": self.skipped})

    def _write(self, record: dict[str, Any]) -> None:
        with (self.out / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.report:
            self.report(record)

    # --- state --------------------------------------------------------------------------------

    def save(self) -> None:
        """Write training state and averaged weights, each whole or not at all."""
        state = {
            "format": STATE_FORMAT,
            "config": json.dumps(to_dict(self.config)),
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "best": self.best,
        }
        temporary = self.out / f".{STATE_NAME}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.out / STATE_NAME)
        finally:
            temporary.unlink(missing_ok=True)
        self._save_weights(self.out / LAST_NAME, {})

    def _save_weights(self, path: Path, figures: dict[str, float]) -> None:
        extra = {k: str(v) for k, v in {**self._position(), **figures}.items()}
        save_checkpoint(path, self.ema.model.state_dict(), self.config, extra)

    def resume(self) -> None:
        """Go on from ``state.pt`` in the output folder.

        Raises:
            InputError: There is none, it is damaged, or it belongs to another config.
        """
        path = self.out / STATE_NAME
        if not path.is_file():
            raise InputError(f"{path} is not there; train without --resume first")
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            config = json.loads(state["config"])
            if state["format"] != STATE_FORMAT:
                raise InputError(f"{path}: format {state['format']!r}; expected {STATE_FORMAT!r}")
        except InputError:
            raise
        except Exception as error:  # torch raises many kinds for a damaged file
            raise InputError(f"{path} is not a readable training state: {error}") from error
        _check_same(config, to_dict(self.config), path)
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.updates = state["ema_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.skipped, self.best = state["skipped"], state["best"]

    def init_from(self, path: str | Path) -> None:
        """Start from the weights of a checkpoint; step and optimiser start anew.

        Raises:
            InputError: The checkpoint is of another architecture.
            DvpdError: It cannot be read.
        """
        config, weights = load_checkpoint(path)
        if replace(config.model, name=self.config.model.name) != self.config.model:
            raise InputError(
                f"{path} has another [model]: {to_dict(config.model)}; expected "
                f"{to_dict(self.config.model)}"
            )
        self.model.load_state_dict(weights)
        self.ema.model.load_state_dict(weights)


def _check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    for table in sorted(set(old) | set(new)):
        mine, theirs = new.get(table, {}), old.get(table, {})
        for key in sorted(set(mine) | set(theirs)):
            if table == "train" and key in FREE_KEYS:
                continue
            if mine.get(key) != theirs.get(key):
                raise InputError(
                    f"{path} was trained with {table}.{key} = {theirs.get(key)!r}, the config says "
                    f"{mine.get(key)!r}; resume with the same config, or start anew with --init"
                )


def override(config: Config, settings: list[str]) -> Config:
    """Apply ``table.key=value`` settings, the value in TOML.

    Raises:
        InputError: A setting is malformed or its key unknown.
    """
    values = to_dict(config)
    for setting in settings:
        try:
            parsed = tomllib.loads(setting)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"--set {setting!r}: expected table.key=value: {error}") from error
        for table, keys in parsed.items():
            if table not in values or not isinstance(keys, dict):
                raise InputError(f"--set {setting!r}: no table {table!r}")
            values[table].update(keys)
    return from_dict(Config, values)


def make_mixer(
    config: Config, data: str | Path, cache: str | Path | None, report: Any = None
) -> Mixer:
    """Pools and mixer from a folder with ``speech/``, ``noise/`` and, if there, ``rir/``.

    Args:
        config: The whole config.
        data: Training data folder.
        cache: Folder for the decoded arrays; None decodes into memory.
        report: Called with (kind, files done, files in all).

    Raises:
        InputError: A folder is missing or unusable.
    """
    pools = []
    for kind in ("speech", "noise", "rir"):
        folder = Path(data) / kind
        if kind == "rir" and not folder.is_dir():
            pools.append(None)
            continue
        progress = (lambda done, total, kind=kind: report(kind, done, total)) if report else None
        pools.append(load_pool(folder, cache, progress))
    return Mixer(config.data, *pools)  # type: ignore[arg-type]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dvpd.train", description="Train DVPD.")
    parser.add_argument("config", help="TOML file")
    parser.add_argument("--data", required=True, help="folder with speech/, noise/ and rir/")
    parser.add_argument("--out", required=True, help="folder for state, checkpoints and log")
    parser.add_argument("--cache", help="folder for decoded audio (default: OUT/../cache)")
    parser.add_argument("--dev", help="folder with noisy/ and clean/ for --set train.eval_minutes")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    parser.add_argument("--init", metavar="CKPT", help="start from these weights")
    parser.add_argument("--max-minutes", type=float, default=0.0, help="save and stop after this")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument(
        "--set", action="append", default=[], metavar="T.K=V", dest="settings",
        help="override a key of the config, e.g. train.minutes=30",
    )  # fmt: skip
    return parser


def _show(record: dict[str, Any]) -> None:
    bar = sys.stderr.isatty() and record["kind"] == "train"
    skip = ("kind", "epoch", "skipped") if record["kind"] == "train" else ("kind",)
    text = " ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in record.items()
        if k not in skip
    )
    sys.stderr.write(f"\r\x1b[K{text}" if bar else f"{record['kind']}: {text}\n")
    sys.stderr.flush()


def _show_decoding(kind: str, done: int, total: int) -> None:
    if sys.stderr.isatty() and (done % 50 == 0 or done == total):
        sys.stderr.write(f"\r\x1b[Kdecoding {kind}: {done}/{total}" + "\n" * (done == total))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _run(args)
    except (DvpdError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _run(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    config = override(load_toml(args.config), args.settings)
    out = Path(args.out)
    if (out / STATE_NAME).exists() and not args.resume:
        raise InputError(f"{out / STATE_NAME} exists; use --resume, or another --out")
    cache = Path(args.cache) if args.cache else out.parent / "cache"
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    mixer = make_mixer(config, args.data, cache, _show_decoding)
    evaluate = None
    if args.dev and config.train.eval_minutes:
        from .evaluate import quick_evaluation

        evaluate = quick_evaluation(args.dev, config.train.eval_files)
    trainer = Trainer(config, mixer, out, device=device, evaluate=evaluate, report=_show)
    if args.init:
        trainer.init_from(args.init)
    if args.resume:
        trainer.resume()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: trainer.stop())
    trainer.run(args.max_minutes)
    sys.stderr.write(f"\nsaved {out / LAST_NAME} after {trainer.step} steps\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
