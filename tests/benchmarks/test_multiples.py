"""multiples.py: what its figures are made of, and a run with real engines' stand-ins."""

from __future__ import annotations

import json

import pytest

from dvpd.benchmarks import multiples
from dvpd.benchmarks.peer_adapters.own import Arithmetic
from dvpd.runtime.engines import find_engine
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.manifest import Manifest


def row(name, *seconds, error=None):
    status = "ok" if error is None else "failed"
    return {"name": name, "samples_s": list(seconds), "status": status, "error": error}


def test_a_multiple_is_the_median_of_the_rounds_own_ratios():
    # The machine is three times as slow in the second round: no ratio of that round changes.
    unit = Arithmetic.GMACS
    rows = [
        row("arithmetic", unit, 3 * unit, unit),  # 1 GMAC/s, then a third of that
        row("tiny 1", 4.0, 12.0, 5.0),
        row("tiny 3", error="broken"),
        row("Peer", 2.0, 6.0, 2.0),
        row("Gone", error="is not a folder"),
    ]
    one, three = multiples.summarise(rows, {"tiny 1": 0.25e9, "tiny 3": 0.5e9}, 8.0)
    assert one["multiple"] == pytest.approx(2.0)  # 8 s of 0.25 GMAC take 2 s
    assert one["arithmetic_rtf"] == pytest.approx(0.25)
    assert one["rtf"] == pytest.approx(5.0 / 8.0)
    assert one["peers"] == {"Peer": pytest.approx(2.0), "Gone": None}
    assert three == {"name": "tiny 3", "status": "failed", "error": "broken"}
    table = multiples.to_rows([one, three])
    assert table[0][-1] == "Peer: 2.00, Gone: -"
    assert table[1][-1] == "did not run: broken"


def test_without_products_there_is_no_multiple():
    with pytest.raises(BackendError, match="did not run: no BLAS"):
        multiples.summarise([row("arithmetic", error="no BLAS")], {}, 8.0)


def test_products_are_those_of_the_calls(tiny_engine):
    shipped = Manifest.load(find_engine("dvpd-tiny"))
    one, two, three = (multiples.products(shipped, n) for n in (1, 2, 3))
    ships = multiples.products(shipped, shipped.sampler.n_steps)
    assert ships == shipped.macs_per_second["total"]
    assert three - two == two - one == shipped.macs_per_second["score"]
    with pytest.raises(InputError, match="export the engine again"):
        multiples.products(Manifest.load(tiny_engine), 1)


def test_a_run_measures_engines_and_names_the_peer_that_is_missing(
    tmp_path, tiny_engine, capsys, monkeypatch
):
    monkeypatch.setattr(multiples, "products", lambda manifest, steps: 1e6 * (1 + steps))
    out = tmp_path / "multiples.json"
    words = [tiny_engine, "--seconds", 1, "--runs", 1, "--threads", 1, "--json", out]
    words += ["--gtcrn", tmp_path / "none"]
    assert multiples.main([str(word) for word in words]) == 0
    report = json.loads(out.read_text())
    steps = [r["name"].split()[1] for r in report["rows"]]
    assert steps == ["0", "1", "3"]
    assert all(r["multiple"] > 0.0 and r["peers"] == {"GTCRN": None} for r in report["rows"])
    assert "GTCRN did not run: InputError" in capsys.readouterr().err
