"""The command that searches for TLB factors, on short clips and a backend whose optimum is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dvpd import tlb_search
from dvpd.quality.models import SharedBackend
from dvpd.runtime.engines import find_engine
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import N_FEATS

ASSETS = Path(__file__).resolve().parents[1] / "assets"
MODEL = str(Path(__file__).resolve().parents[2] / "engines" / "dvpd-tiny")


class Backend:
    """Predicts its input; the score is the better the nearer the first factor is to 2."""

    name, device = "formula", "cpu"

    def __init__(self) -> None:
        self.predicted = self.scored = 0

    def predict(self, noisy):
        self.predicted += 1
        return noisy[:, :2].copy(), [noisy[:, 2:3]] * N_FEATS

    def score(self, xt, t, feats, tlb_skip, tlb_backbone):
        self.scored += 1
        noise = np.random.default_rng(0).standard_normal(xt.shape).astype(np.float32)
        return xt - feats[0] + (0.02 + 0.3 * abs(float(tlb_skip[0, 0]) - 2.0)) * noise

    def close(self) -> None:
        pass


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A set of four short pairs, and the backend in the model's place."""
    for package in ("pesq", "pystoi", "matplotlib"):
        pytest.importorskip(package)
    for i in range(4):
        for side in ("noisy", "clean"):
            source = ASSETS / f"clip{i % 2}_{side}.flac"
            wav, rate = soundfile.read(source, start=8000 * (i // 2), frames=24000)
            (tmp_path / "dev" / side).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "dev" / side / f"{i}.flac", wav, rate)
    backend = Backend()

    def opened(*_):
        return Enhancer(Manifest.load(find_engine(MODEL)), SharedBackend(backend))

    monkeypatch.setattr(tlb_search, "open_model", opened)
    monkeypatch.setattr(tlb_search, "LEAST", 2)
    return tmp_path, backend


def run(place, *more) -> int:
    folder, _ = place
    words = [MODEL, "--set", folder / "dev", "--out", folder / "out", "--steps", 1, "--random", 2]
    return tlb_search.main([str(word) for word in (*words, *more)])


def test_a_search_finds_goes_on_where_it_was_and_reports_the_other_half(place, capsys):
    folder, backend = place
    assert run(place, "--candidates", 5) == 0
    assert backend.predicted == 4  # of each recording once, whatever is measured
    first = (folder / "out" / "candidates.jsonl").read_text().splitlines()
    assert run(place, "--candidates", 8) == 0
    lines = (folder / "out" / "candidates.jsonl").read_text().splitlines()
    assert lines[: len(first)] == first
    found = json.loads((folder / "out" / "tlb.json").read_text())
    for group in ("found", "PESQ below 2"):  # all four are in the lowest tier
        part = found["found"][group]
        assert abs(part["tlb"]["skip"][0][0] - 2.0) < 0.6
        assert part["gains"]["choosing"]["pesq"] > 0.0
        assert part["gains"]["choosing"]["estoi"] >= 0.0
    report = (folder / "out" / "report.md").read_text()
    assert "| found: other half | 2 |" in report
    assert "| mild: other half | 2 |" in report
    assert "| PESQ below 2: found for the tier | 2 |" in report
    assert "| PESQ below 2: severe: outer level alone | 2 |" in report
    assert json.dumps(part["tlb"]) in report
    assert report.strip() in capsys.readouterr().out
    assert (folder / "out" / "search.svg").read_text().startswith("<svg")
    scored = backend.scored
    assert run(place, "--candidates", 8) == 0  # all is known
    assert backend.scored == scored


def test_wrong_use_is_refused_in_words(place, capsys):
    folder, _ = place
    for more, words in (
        (("--objective", "dnsmos_ovrl"), "--dnsmos DIR"),
        (("--limit", 1), "two at least, one for each half"),
        (("--longest", 1.0), "0 pairs"),
        (("--set", folder / "dev"), "occurs twice"),
        (("--steps", 0), "steps is 0; expected 1 or more"),
        (("--minutes", -1), "minutes is -1.0"),
        (("--random", -1), "random is -1"),
    ):
        assert run(place, *more) != 0
        assert words in capsys.readouterr().err
    assert run(place, "--candidates", 1) == 0
    assert run(place, "--candidates", 1, "--seed", 5) != 0
    assert "of a search with another" in capsys.readouterr().err
