"""confidence.py: what flags bad stretches, and how well."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from dvpd.benchmarks import confidence

RATE_HZ = 16000


def test_the_area_is_that_of_the_ranks():
    bad = np.array([True] * 5 + [False] * 5)
    score = np.arange(10.0)
    assert confidence.area(-score, bad) == 1.0
    assert confidence.area(score, bad) == 0.0
    assert confidence.area(np.zeros(10), bad) == 0.5
    swapped = np.array([9, 8, 7, 6, 4, 5, 3, 2, 1, 0.0])  # one pair of 25 the wrong way round
    assert confidence.area(swapped, bad) == pytest.approx(24 / 25)
    assert np.isnan(confidence.area(score, np.arange(10) < confidence.LEAST - 1))


def fake_recordings(n, rng):
    """Speech, silence and heard noise; "D good" is high in heard noise, "D useless" anywhere."""
    tables = []
    for _ in range(n):
        clean = np.repeat([0.0, -70.0, -70.0], 20)
        output = np.repeat([0.0, -70.0, -20.0], 20)
        good = (output - clean > 10.0) + rng.normal(0.0, 0.1, 60)
        table = {"D good": good, "R inverse": -good, "D useless": rng.normal(size=60)}
        table |= {"clean": clean, "output": output}
        tables.append(table | {"sdr": rng.normal(size=60), "lsd": rng.normal(size=60)})
    return tables


def test_a_candidate_is_judged_on_the_other_half():
    rows = confidence.judge(fake_recordings(8, np.random.default_rng(1)))
    assert len(rows) == 3 * 3
    by_name = {row["candidate"]: row for row in rows if row["truth"].startswith("noise alone")}
    for name in ("D good", "R inverse"):  # the sign is chosen
        assert by_name[name]["held_out"] > 0.99
        assert by_name[name]["low"] > 0.99
    assert 0.3 < by_name["D useless"]["held_out"] < 0.7
    assert (by_name["D good"]["bad"], by_name["D good"]["of"]) == (4 * 20, 4 * 40)


def test_engines_and_sets_from_the_command_line(tiny_engine, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for index in range(4):
        clean = np.zeros(3 * RATE_HZ, np.float32)
        clean[:RATE_HZ] = 0.1 * rng.standard_normal(RATE_HZ)
        noisy = clean + 0.01 * rng.standard_normal(len(clean)).astype(np.float32)
        for side, wav in (("noisy", noisy), ("clean", clean)):
            (tmp_path / "set" / side).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "set" / side / f"{index}.flac", wav, RATE_HZ)
    out = tmp_path / "roc.json"
    words = [str(tiny_engine), "--set", str(tmp_path / "set"), "--backend", "ort", "--steps", "1"]
    assert confidence.main([*words, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["format"] == confidence.FORMAT
    heard = [row for row in report["rows"] if row["truth"].startswith("noise alone")]
    gain = next(row for row in heard if row["candidate"] == "R output level")
    # the tiny network lowers all alike: the noise that is heard is 20 dB below speech
    assert gain["held_out"] == 1.0
    assert gain["bad"] > 10
    assert "noise alone is heard" in capsys.readouterr().out
