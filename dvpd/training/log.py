"""What a training run shows: lines or a progress bar on stderr, and TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config, TrainConfig
from ..runtime.arrays import FloatArray
from ..runtime.errors import InputError
from ..runtime.progress import Progress, is_terminal
from ..runtime.spec import SAMPLE_RATE

Example = tuple[str, FloatArray, FloatArray]  # name, noisy [L], clean [L]

_RANGE_DB = 80.0  # of a spectrogram's colours, below the clean one's loudest bin
_COLOURS = np.array(  # black, blue, magenta, orange, pale yellow: dark to light, print-safe
    [[0, 0, 8], [60, 15, 110], [180, 45, 100], [250, 140, 40], [255, 250, 190]], np.float64
)
_GAP = 4  # white rows between the spectrograms of an example


def format_line(record: dict[str, Any]) -> str:
    """A log record as one line of text."""
    skip = ("kind", "epoch", "skipped") if record["kind"] == "train" else ("kind",)
    text = " ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in record.items()
        if k not in skip
    )
    return f"{record['kind']}: {text}"


class Lines:
    """Log records as plain lines on stderr."""

    def __call__(self, record: dict[str, Any]) -> None:
        """Show a record; single steps are not shown."""
        if record["kind"] != "step":
            sys.stderr.write(format_line(record) + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Nothing to end."""


class Bar:
    """A progress bar on stderr: step or minutes of the budget, time left, audio-hours, loss."""

    def __init__(self, config: TrainConfig) -> None:
        """Prepare the bar; the first step shows it.

        Args:
            config: Gives the budget.
        """
        self._minutes, self._total = config.minutes, config.minutes or config.steps
        self._crops_per_s = "-"
        self._bar: Progress | None = None

    def __call__(self, record: dict[str, Any]) -> None:
        """Show a record: steps and training records in the bar, others as lines above it."""
        kind = record["kind"]
        if kind == "step":
            part = (record["minutes"] if self._minutes else record["step"]) / self._total
            if self._bar is None:  # what an earlier run did takes no part in the estimate
                self._bar = Progress("training", begun=part)
            self._bar(
                min(part, 1.0),
                f"step {record['step']} loss {record['loss']:.4f} lr {record['lr']:.1e} "
                f"{self._crops_per_s} crops/s {record['audio_hours']:.2f} h",
            )
        elif kind == "train":
            self._crops_per_s = f"{record['crops_per_s']:.1f}"
        elif self._bar is not None:
            self._bar.line(format_line(record))
        else:
            Lines()(record)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def make_display(config: TrainConfig) -> Lines | Bar:
    """A bar where stderr is a terminal, else lines."""
    return Bar(config) if is_terminal(sys.stderr) else Lines()


class TensorBoard:
    """Scalars of the log, and spectrograms and audio of a few examples, as event files."""

    def __init__(
        self, folder: str | Path, examples: Sequence[Example] = (), first_step: int = 0
    ) -> None:
        """Open the event file.

        Args:
            folder: Where event files go; made if missing.
            examples: Pairs at 16 kHz that `show` enhances.
            first_step: What earlier event files hold from this step on is no longer shown.

        Raises:
            InputError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                f"--tensorboard needs the tensorboard package: pip install 'dvpd[train]' ({error})"
            ) from error
        self.examples = list(examples)
        purge = first_step if first_step else None
        self.writer = SummaryWriter(str(folder), purge_step=purge)
        self._shown = False

    def __call__(self, record: dict[str, Any]) -> None:
        """Write a train or dev record's figures, as ``train/loss``, ``dev/pesq_full`` ..."""
        kind = record["kind"]
        if kind == "step":
            return
        for name, value in record.items():
            if name not in ("kind", "step"):
                self.writer.add_scalar(f"{kind}/{name}", value, record["step"])
        self.writer.flush()

    def show(self, model: Any, config: Config, step: int) -> None:
        """Enhance the examples and write ``NAME/spectrograms`` and ``NAME/SYSTEM`` audio.

        Args:
            model: ``dvpd.model.DVPD`` in eval mode.
            config: Its config.
            step: Steps done.
        """
        from ..evaluate import torch_enhancer

        device = str(next(model.parameters()).device)
        calls = {"predictive": 0}
        if config.train.branches != "predictive":
            calls["full"] = config.sampler.score_steps
        for name, noisy, clean in self.examples:
            enhancer = torch_enhancer(model, config, device)  # remembers predictions: one for each
            systems = {"noisy": noisy}
            for system, steps in calls.items():
                systems[system] = enhancer.enhance(noisy, SAMPLE_RATE, steps=steps).wav
            systems["clean"] = clean
            picture = spectrogram_picture(list(systems.values()), config)
            self.writer.add_image(f"{name}/spectrograms", picture, step, dataformats="HWC")
            for system, wav in systems.items():
                if system in ("noisy", "clean") and self._shown:
                    continue  # they do not change
                peak = max(float(np.abs(wav).max()), 1.0)  # an event file cuts off above 1
                sound = torch.from_numpy(wav / peak)[None]
                self.writer.add_audio(f"{name}/{system}", sound, step, SAMPLE_RATE)
        self._shown = True
        self.writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


def spectrogram_picture(wavs: Sequence[FloatArray], config: Config) -> NDArray[np.uint8]:
    """Spectrograms below each other, on one colour scale: 80 dB below the last one's maximum.

    Args:
        wavs: [L] each; the last is the reference.
        config: Its signal table gives the STFT.

    Returns:
        [n * 257 + gaps, T, 3], low frequencies at the bottom of each.
    """
    n_fft, hop = config.signal.n_fft, config.signal.hop_length
    wav = torch.from_numpy(np.stack(wavs))
    window = torch.hann_window(n_fft)
    power = torch.stft(wav, n_fft, hop, window=window, return_complex=True).abs().square()
    level = 10.0 * torch.log10(power + 1e-12)  # [n, F, T] dB
    shade = ((level - level[-1].max()) / _RANGE_DB + 1.0).clamp(0.0, 1.0).numpy()[:, ::-1]
    places = np.linspace(0.0, 1.0, len(_COLOURS))
    coloured = np.stack([np.interp(shade, places, c) for c in _COLOURS.T], -1).astype(np.uint8)
    gap = np.full((_GAP, coloured.shape[2], 3), 255, np.uint8)
    rows = [part for panel in coloured for part in (panel, gap)]
    return np.concatenate(rows[:-1])
