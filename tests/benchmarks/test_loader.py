"""The loader's benchmark measures what it says, on a tiny model."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
import torch

from dvpd.benchmarks.loader import example_source, main, measure
from dvpd.config import Config, ModelConfig
from dvpd.config.data import DataConfig
from dvpd.config.train import TrainConfig

MODEL = (
    "[model]\nname='micro'\nchannels=4\nblocks=1\nstate=2\ndecoder_channels=2\nembedding=4\n"
    "ffn_factor=1.0\n[data]\ncrop_samples=4096\n[train]\nbatch_size=2\nbranches='predictive'\n"
)
CONFIG = Config(
    model=ModelConfig(
        name="micro", channels=4, blocks=1, state=2, decoder_channels=2, embedding=4, ffn_factor=1.0
    ),
    data=DataConfig(crop_samples=4096),
    train=TrainConfig(batch_size=2, branches="predictive"),
)


class Slow:
    """Takes 50 ms for a crop: the loader is the bottleneck, at 20 crops a second and worker."""

    def pair(self, seed: int, epoch: int, index: int):
        time.sleep(0.05)
        wav = np.random.default_rng(index).standard_normal(4096).astype(np.float32)
        return wav, wav


def test_a_slow_loader_shows():
    (figures,) = measure(CONFIG, Slow(), workers=(0,), steps=2, rounds=1)
    assert figures.loader_crops_per_s < 20.0  # sleeping is the one cost that cannot be less
    assert figures.both_crops_per_s < min(20.0, figures.step_crops_per_s)
    assert 0.0 < figures.waiting < 1.0


def test_examples_are_mixed():
    noisy, clean = example_source(CONFIG).pair(0, 0, 0)
    assert noisy.shape == clean.shape == (4096,)
    assert not np.array_equal(noisy, clean)


def test_command_line(tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text(MODEL)
    threads = torch.get_num_threads()
    options = ["--workers", "0", "1", "--threads", "1", "--steps", "1", "--rounds", "1"]
    assert main([str(config), *options, "--json", str(tmp_path / "figures.json")]) == 0
    torch.set_num_threads(threads)
    report = json.loads((tmp_path / "figures.json").read_text())
    assert [row["workers"] for row in report["rows"]] == [0, 1]
    assert (report["threads"], report["batch_size"]) == (1, 2)
    assert report["machine"]["logical_cores"] == os.cpu_count()
    assert all(value > 0.0 for row in report["rows"] for k, value in row.items() if "per_s" in k)
    out = " ".join(capsys.readouterr().out.split())
    assert "loader crops/s" in out
    assert "1 threads, 2 crops of 0.26 s a step, data: examples" in out


@pytest.mark.parametrize(
    ("bad", "code", "why"),
    [
        (["--steps", "0"], 2, "'0' is not a whole number from 1"),
        (["--workers", "-1"], 2, "'-1' is not a whole number from 0"),
        (["--data", "nowhere"], 1, "dvpd: "),
    ],
)
def test_bad_options(tmp_path, capsys, bad, code, why):
    config = tmp_path / "config.toml"
    config.write_text(MODEL)
    assert main([str(config), *bad]) == code
    assert why in capsys.readouterr().err
