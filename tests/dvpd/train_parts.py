"""What the trainer's tests share; imported by their child processes, too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from dvpd.config import Config, ModelConfig
from dvpd.config.data import DataConfig
from dvpd.config.train import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
CROP = 4096
MICRO = ModelConfig(
    name="micro", channels=4, blocks=1, state=2, decoder_channels=2, embedding=4, ffn_factor=1.0
)
MICRO_TOML = (
    "[model]\nname='micro'\nchannels=4\nblocks=1\nstate=2\ndecoder_channels=2\nembedding=4\n"
    "ffn_factor=1.0\n[data]\ncrop_samples=4096\n"
)


class Tones:
    """Tones in noise; some pairs of the first epoch may be broken."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def pair(self, seed: int, epoch: int, index: int):
        rng = np.random.default_rng((seed, epoch, index))
        time_s = np.arange(CROP) / 16000
        clean = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * time_s)
        noisy = clean + 0.1 * rng.standard_normal(CROP)
        if epoch == 0 and index in self.broken:
            noisy[7] = np.nan
        return noisy.astype(np.float32), clean.astype(np.float32)


def micro_config(**train) -> Config:
    """A model of a few channels; keys of [train] as given."""
    settings = {
        "batch_size": 2,
        "steps": 6,
        "warmup_steps": 0,
        "workers": 0,
        "log_steps": 1,
        "lr": 3e-3,
        "epoch_crops": 5,
        **train,
    }
    return Config(model=MICRO, train=TrainConfig(**settings), data=DataConfig(crop_samples=CROP))


def log_of(folder: Path) -> list[dict]:
    """The records of a run."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_clock(records: list[dict]) -> list[dict]:
    """Records less what depends on the time of day."""
    return [{k: v for k, v in r.items() if k not in ("minutes", "crops_per_s")} for r in records]


def weights_equal(a: dict, b: dict) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
