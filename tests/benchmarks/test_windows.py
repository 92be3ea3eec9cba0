"""windows.py: what cutting costs in pauses, by plan."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from dvpd.benchmarks import windows
from dvpd.benchmarks.common.recordings import RATE_HZ
from dvpd.runtime.errors import InputError
from dvpd.runtime.windows import WindowPlan

pytest.importorskip("pesq")


@pytest.fixture
def quiet_set(tmp_path):
    """One recording of 20 s: "speech" in its first two seconds, then a pause."""
    rng = np.random.default_rng(0)
    clean = np.zeros(20 * RATE_HZ, np.float32)
    clean[: 2 * RATE_HZ] = 0.1 * rng.standard_normal(2 * RATE_HZ)
    noisy = clean + 0.01 * rng.standard_normal(len(clean)).astype(np.float32)
    for side, wav in (("noisy", noisy), ("clean", clean)):
        (tmp_path / "long" / side).mkdir(parents=True)
        soundfile.write(tmp_path / "long" / side / "0.flac", wav, RATE_HZ)
    table = f"file\tspeech_samples\n0.flac\t0-{2 * RATE_HZ}\n"
    (tmp_path / "long" / "pairs.tsv").write_text(table)
    return tmp_path / "long"


def test_each_plan_is_measured(tiny_engine, quiet_set, tmp_path, capsys):
    out = tmp_path / "w.json"
    command = [str(tiny_engine), "--set", str(quiet_set), "--backend", "ort", "--json", str(out)]
    assert windows.main([*command, "--plan", "one piece", "--plan", "windows"]) == 0
    whole, cut = json.loads(out.read_text())["rows"]
    assert [whole["plan"], cut["plan"]] == ["one piece", "windows"]
    assert whole["files"]["0"]["seam"] is None
    assert 0.0 <= cut["files"]["0"]["seam"] < 1.0  # steady noise through a fixed gain
    # the tiny graph halves the compressed spectrum: 20 dB
    for row in (whole, cut):
        assert row["files"]["0"]["pause_lowered"] == pytest.approx(20.07, abs=0.1)
    text = capsys.readouterr().out
    assert "| tiny | long | one piece | 20.1 |" in text


def test_plans_are_what_they_are_called():
    assert windows.PLANS["windows, loudest second"] == WindowPlan()
    assert windows.PLANS["one piece"].seams(600 * RATE_HZ) == ()
    past = windows.PLANS["windows, 2 s of the past"]
    assert past.context_samples == pytest.approx(2 * RATE_HZ, rel=0.03)


def test_plans_by_their_frames():
    assert windows.find_plan("1024/64/128") == WindowPlan()
    assert windows.find_plan("one piece") == windows.PLANS["one piece"]
    with pytest.raises(InputError, match=r"'512/16'; expected 'one piece', .* or frames as in"):
        windows.find_plan("512/16")


def test_side_by_side_is_timed_beside_in_turn(tiny_engine, tmp_path, capsys):
    out = tmp_path / "t.json"
    command = [
        str(tiny_engine),
        "--time",
        "3",
        "--rounds",
        "2",
        "--threads",
        "2",
        "--backend",
        "ort",
    ]
    plans = ["--plan", "1024/64/128", "--plan", "96/8/32"]
    assert windows.main([*command, *plans, "--json", str(out)]) == 0
    turn, same, short = json.loads(out.read_text())["rows"]
    assert [row["windows"] for row in (turn, same, short)] == ["in turn", *["side by side"] * 2]
    assert [len(row["seconds"]) for row in (turn, same, short)] == [2, 2, 2]
    assert turn["faster"] == 1.0
    assert short["frames"] == pytest.approx(95 / 47)
    assert capsys.readouterr().out.count("side by side") == 2


def test_quality_or_speed(tiny_engine, tmp_path, capsys):
    assert windows.main([str(tiny_engine)]) == 1
    assert windows.main([str(tiny_engine), "--time", "3", "--set", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("give --set for the quality, or --time") == 2


def test_a_missing_set_is_named(tiny_engine, tmp_path, capsys):
    assert windows.main([str(tiny_engine), "--set", str(tmp_path / "no")]) == 1
    assert "no/noisy is not a folder" in capsys.readouterr().err
