"""What the tests of a lease share: a tiny data set, and a plan for a model of a few channels."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile

from dvpd.lease import cli
from dvpd.lease.parts import pack, receive
from dvpd.lease.plan import Plan, load_plan
from dvpd.lease.work import Work

CONFIG = (
    "[model]\nname='micro'\nchannels=4\nblocks=1\nstate=2\ndecoder_channels=2\nembedding=4\n"
    "ffn_factor=1.0\n[data]\ncrop_samples=4096\nuniversal_p=0.0\n[train]\nbatch_size=2\n"
    "warmup_steps=0\nlog_steps=1\nbranches='predictive'\n"
)
PLAN = """
data = "data"
minutes = 10
part_mib = 0.2
piece_mib = 0.125
set = ["train.schedule='cosine'", "train.workers=0"]
seconds = {smoke=200, parts=3, data=200, probe=400, publish=1, last=20}
[[rungs]]
name = "new"
set = ["train.no_such_key=true"]
[[rungs]]
name = "eager"
[[models]]
name = "one"
config = "micro.toml"
"""


def write_data(root: Path) -> Path:
    """A second of noise for every recording of two speech sources, noise and rooms."""
    rng = np.random.default_rng(0)
    for source, count in (("speech/a", 6), ("speech/b", 6), ("noise/c", 6), ("rir/d", 2)):
        (root / source).mkdir(parents=True)
        for i in range(count):
            soundfile.write(root / source / f"{i}.flac", 0.1 * rng.standard_normal(16000), 16000)
    return root


def write_plan(folder: Path, data: Path, text: str = PLAN) -> Plan:
    """A plan in a folder, read."""
    (folder / "micro.toml").write_text(CONFIG)
    (folder / "plan.toml").write_text(text.replace('"data"', f'"{data}"'))
    return load_plan(folder / "plan.toml")


def packed(folder: Path, data: Path, text: str = PLAN) -> list[Path]:
    """The folders of the calls."""
    return pack(write_plan(folder, data, text), folder / "calls")


def started(folder: Path, calls: list[Path], ask: float | None = None) -> Work:
    """A lease that took all calls, without a supervisor and without a copy of the checkout."""
    args = argparse.Namespace(call=calls[0], started=ask or time.time(), minutes=10.0, device="cpu")
    work = Work(folder / "work")
    with mock.patch.object(cli, "SOURCES", ()):
        cli.prepare(args, work)
    for call in calls[1:]:
        receive(call, work.inbox)
    return Work(folder / "work")
