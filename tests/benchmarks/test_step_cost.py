"""The count of a training step: deterministic, linear in the batch, and of the whole step."""

from __future__ import annotations

import json

import pytest
import torch

from dvpd.benchmarks.step_cost import Counted, main

TOML = (
    "[model]\nname='micro'\nchannels=4\nblocks=1\nstate=2\ndecoder_channels=2\nembedding=4\n"
    "ffn_factor=1.0\n[data]\ncrop_samples=4096\n[train]\nbranches='predictive'\nprecision='bf16'\n"
)


def test_bytes_of_one_operator_by_hand():
    x, row = torch.ones(3, 4), torch.ones(4)
    with Counted() as counted:
        assert (x + row.expand(3, 4)).T.shape == (4, 3)
    assert counted.calls == {"add": 1}
    assert counted.bytes == {"add": 4 * (12 + 4 + 12)}


def test_counts_of_a_step(tmp_path, capsys):
    config = tmp_path / "micro.toml"
    config.write_text(TOML)
    costs = []
    for crops in (2, 4):
        out = tmp_path / f"{crops}.json"
        assert main([str(config), "--crops", str(crops), "--json", str(out)]) == 0
        costs.append(json.loads(out.read_text()))
    assert costs[0]["calls"] == costs[1]["calls"]
    assert 1.8 < costs[1]["bytes"] / costs[0]["bytes"] < 2.0  # weights do not grow
    names = {name for name, *_ in costs[0]["operators"]}
    assert {"convolution", "convolution_backward", "_fused_adamw_", "_foreach_add_"} <= names
    assert not any("::" in name for name in names)  # questions of tensors without data
    assert f"{costs[1]['calls']} calls" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--crops", "0"], "at least 1"), (["--set", "train.kernels=1"], "kernels")],
)
def test_what_is_wrong_is_said(tmp_path, capsys, words, message):
    config = tmp_path / "micro.toml"
    config.write_text(TOML)
    assert main([str(config), *words]) == 1
    assert message in capsys.readouterr().err
