"""Learning curves show what the log says, run after run."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from dvpd.benchmarks import curves
from dvpd.benchmarks.common import report_html
from dvpd.benchmarks.curves import main, names, read_log, series
from dvpd.benchmarks.guard import ROOT


def _line(run: str | None, hours: float, **terms: float) -> str:
    name = {} if run is None else {"run": run}
    return json.dumps({**name, "kind": "train", "step": 1, "audio_hours": hours, **terms})


def test_each_run_of_a_term_has_its_number_and_its_share_of_the_axis(tmp_path):
    path = tmp_path / "training.jsonl"
    lines = [
        _line("a", 0.5, mag=3.0), _line("a", 1.0, mag=2.0),
        json.dumps({"run": "a", "kind": "dev", "step": 2, "pesq": 2.0}),
        _line("s", 0.25, score=0.5), _line("b", 0.5, mag=1.5, perceptual=4.0),
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    runs = read_log(path)
    assert [len(run) for run in runs] == [2, 1, 1]
    assert series(runs, "mag") == [(1, [0.5, 1.0], [3.0, 2.0]), (3, [1.0], [1.5])]
    assert series(runs, "score") == [(2, [1.0], [0.5])]
    assert series(runs, "perceptual") == [(3, [1.0], [4.0])]
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
    assert {"score", "sampler"} & set(present)
    assert "mag" in present
    out = tmp_path / "c.svg"
    assert main([str(log.parent), "-o", str(out)]) == 0
    text = out.read_text()
    assert all(curves.TERMS[t] in text for t in present)
    assert "currentColor" not in text  # an image in a page has no text colour
    assert "fill: #ffffff" in text  # nor a paper
    for number, run in enumerate(runs, start=1):  # every run is in the list, by number and name
        assert f">{number}</text>" in text or f"{number}  {run[0]['run'][:20]}" in text
        assert run[0]["run"].split()[-1] in text
    # one colour: what tells runs apart is their number
    used = {c for c in report_html.COLOURS if c in text}
    assert used == {report_html.COLOURS[0]}
    # 400 pixels of a telephone are no less than 3/4 of it
    assert float(re.search(r'<svg[^>]*width="([0-9.]+)pt"', text)[1]) <= 400


def test_the_shipped_picture_has_every_run_of_its_log():
    for log in ROOT.glob("engines/*/training.jsonl"):
        text = (log.parent / "curves.svg").read_text()
        for line in names(read_log(log)):
            assert line.strip().split("  ")[-1] in text, f"python benchmarks/curves.py {log.parent}"


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
    (tmp_path / "log.jsonl").write_text(_line(None, 0.1, mag=1.0))
    assert main([str(tmp_path), "-o", str(tmp_path)]) == 1
    assert f"{tmp_path}: is a folder; give a file name" in capsys.readouterr().err
    assert main([str(tmp_path / "x.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err
