"""Quality against latency: shipped results, and an engine that comes later than others."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from dvpd.benchmarks import latency, quality
from dvpd.benchmarks.guard import ROOT
from dvpd.runtime.errors import InputError

LIVE = ROOT / "benchmarks" / "results" / "xeon-amx-2-cores" / "quality-live.json"


def result(**latencies):
    figures = {"mean": 2.0, "low": 1.9, "high": 2.2}
    systems = {"full": {"pesq": figures}}
    models = [
        {"model": name, "checkpoint_sha256": name, "default": {"n_steps": 1},
         "sets": {"noise": {"systems": systems}}}
        for name in latencies
    ]  # fmt: skip
    return {"models": models}, latencies


def test_models_stand_by_their_latency_and_whole_recordings_last():
    one, late = result(offline=None, three=152.0, none=56.0)
    found = latency.points([one], late, "noise", "pesq")
    assert [p.model for p in found] == ["none", "three", "offline"]
    assert [p.latency_ms for p in found] == [56.0, 152.0, None]


def test_a_model_that_takes_no_steps_by_default_is_drawn_without():
    one, late = result(none=56.0)
    one["models"][0]["default"] = {"n_steps": 0}
    one["models"][0]["sets"]["noise"]["systems"]["predictive"] = {
        "pesq": {"mean": 2.5, "low": 2.4, "high": 2.6}
    }
    (point,) = latency.points([one], late, "noise", "pesq")
    assert point.mean == 2.5


def test_what_cannot_be_placed_is_said():
    one, late = result(none=56.0)
    with pytest.raises(InputError, match="give its folder with --engine"):
        latency.points([one], {}, "noise", "pesq")
    with pytest.raises(InputError, match="no result has the set 'rain'"):
        latency.points([one], late, "rain", "pesq")


def test_the_shipped_live_engine_is_drawn_at_56_ms(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "latency.svg"
    assert latency.main([str(LIVE), "-o", str(out)]) == 0
    pesq = quality.read(LIVE)["models"][0]["sets"]["noise"]["systems"]["full"]["pesq"]["mean"]
    assert f"dvpd-live-tiny: 56 ms, pesq {pesq:.2f}" in capsys.readouterr().out
    text = out.read_text()
    assert ET.fromstring(text).tag.endswith("svg")
    assert "dvpd-live-tiny" in text
