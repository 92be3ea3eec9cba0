"""Learning curves show what the log says, run after run."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from dvpd.benchmarks import curves
from dvpd.benchmarks.curves import main, read_log, series
from dvpd.benchmarks.guard import ROOT


def _line(run: str | None, hours: float, **terms: float) -> str:
    name = {} if run is None else {"run": run}
    return json.dumps({**name, "kind": "train", "step": 1, "audio_hours": hours, **terms})


def test_runs_continue_the_axis_of_their_own_terms(tmp_path):
    path = tmp_path / "training.jsonl"
    lines = [
        _line("a", 0.5, mag=3.0), _line("a", 1.0, mag=2.0),
        json.dumps({"run": "a", "kind": "dev", "step": 2, "pesq": 2.0}),
        _line("s", 0.25, score=0.5), _line("b", 0.5, mag=1.5, perceptual=4.0),
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    runs = read_log(path)
    assert [len(run) for run in runs] == [2, 1, 1]
    assert series(runs, "mag") == [([0.5, 1.0], [3.0, 2.0]), ([1.5], [1.5])]
    assert series(runs, "score") == [([0.25], [0.5])]
    assert series(runs, "perceptual") == [([0.5], [4.0])]
    assert series(runs, "phase") == []


def test_a_trainers_own_log_is_one_run(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(_line(None, h, mag=1 / h) for h in (0.1, 0.2, 0.4)))
    assert main([str(tmp_path)]) == 0
    root = ET.fromstring((tmp_path / "curves.svg").read_text())
    assert root.tag.endswith("svg")


@pytest.mark.parametrize(
    "log", sorted(ROOT.glob("engines/*/training.jsonl")), ids=lambda p: p.parent.name
)
def test_shipped_logs_make_a_picture(log, tmp_path):
    runs = read_log(log)
    present = [t for t in curves.TERMS if series(runs, t)]
    assert "score" in present
    assert "mag" in present
    out = tmp_path / "c.svg"
    assert main([str(log.parent), "-o", str(out)]) == 0
    text = out.read_text()
    assert all(curves.TERMS[t] in text for t in present)
    assert "currentColor" not in text  # an image in a page has no text colour


@pytest.mark.parametrize(
    ("text", "named"),
    [("{", "line 1: not a record"), ('{"kind": "dev"}', "no training record"), ("7", "line 1")],
)
def test_bad_logs(tmp_path, capsys, text, named):
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    assert main([str(path)]) == 1
    assert named in capsys.readouterr().err


def test_no_log(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "has neither training.jsonl nor log.jsonl" in capsys.readouterr().err
    assert main([str(tmp_path / "x.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err
