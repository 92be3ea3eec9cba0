"""A plan says at home what would fail on the lent machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lease_parts import CONFIG, PLAN, write_plan

from dvpd.checkpoint import load_checkpoint
from dvpd.config import Config, load_toml
from dvpd.lease.plan import from_json, load_plan, to_json
from dvpd.runtime.errors import InputError

MODEL = '[[models]]\nname = "one"\nconfig = "micro.toml"\n'


def test_what_was_packed_is_read_back(tmp_path, lease_data):
    plan = write_plan(tmp_path, lease_data)
    assert from_json(json.loads(to_json(plan))) == plan
    assert plan.models[0].config == str(tmp_path / "micro.toml")
    assert [r.name for r in plan.rungs] == ["new", "eager"]


def test_limits_follow_the_length_of_the_lease(tmp_path, lease_data):
    text = PLAN + '[[commands]]\nname = "proof"\nargv = ["true"]\nseconds = 120\n'
    plan = write_plan(tmp_path, lease_data, text)
    half = plan.scaled(plan.minutes / 2)
    assert half.seconds.probe == plan.seconds.probe / 2
    assert half.commands[0].seconds == 60.0
    assert half.scaled(plan.minutes) == plan


def test_settings_of_plan_model_and_rung_in_this_order(tmp_path, lease_data):
    text = (
        'data = "data"\nset = ["train.lr=1.0", "train.seed=1", "train.batch_size=3"]\n'
        '[[rungs]]\nname = "a"\nset = ["train.lr=3.0"]\n'
        + MODEL
        + 'set = ["train.lr=2.0", "train.seed=2"]\n'
    )
    plan = write_plan(tmp_path, lease_data, text)
    train = plan.model_config(plan.models[0], Config(), plan.rungs[0]).train
    assert (train.lr, train.seed, train.batch_size) == (3.0, 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no \[\[models\]\]"),
        (MODEL + MODEL, "expected different ones"),
        (MODEL.replace("one", "a b"), "expected different ones"),
        (MODEL + "share = 0\n", "share of one is 0"),
        (MODEL + 'init = "@two"\n', "no earlier model is it"),
        (MODEL + 'init = "none.safetensors"\n', "no such file"),
        ("together = true\n" + MODEL + MODEL.replace("one", "two") + 'init = "@one"\n', "beside"),
        (MODEL + 'set = ["train.lrr=1"]\n', "did you mean lr"),
        ("minutes = 0\n" + MODEL, "minutes is 0"),
        ("seconds = {last=0}\n" + MODEL, "seconds.last is 0"),
        ('wheels = "none"\n' + MODEL, "expected a folder"),
        ("rungs = []\n" + MODEL, "no rungs"),
        ("minuets = 3\n" + MODEL, "did you mean minutes"),
    ],
)
def test_what_cannot_run_is_named(tmp_path, text, message):
    (tmp_path / "micro.toml").write_text(CONFIG)
    (tmp_path / "plan.toml").write_text('data = "data"\n' + text)
    with pytest.raises(InputError, match=message):
        load_plan(tmp_path / "plan.toml")


def test_the_shipped_plan_fits_the_shipped_models(tmp_path):
    (tmp_path / "wheels").mkdir()
    path = Path(__file__).resolve().parents[3] / "engines" / "lease.toml"
    plan = load_plan(path, {"data": "elsewhere", "wheels": str(tmp_path / "wheels")})
    assert (plan.data, plan.wheels) == ("elsewhere", str(tmp_path / "wheels"))
    for model in plan.models:
        wanted, given = load_toml(model.config).model, load_checkpoint(model.init)[0].model
        assert replace(given, name=wanted.name, causal=wanted.causal) == wanted


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_plan(tmp_path / "plan.toml")
