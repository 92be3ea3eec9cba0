"""What steps buy: the table is made of the reports' own recordings."""

from __future__ import annotations

import json

import pytest

from dvpd.benchmarks import steps
from dvpd.runtime.errors import InputError


def report(systems=(1, 3)):
    settings = {f"full steps={n}": {"steps": n, "tlb": "off"} for n in systems}
    files = [
        {"name": str(i), "group": f"snr {5 * (i % 2)}", "figures": {
            "noisy": {"pesq": 1.0}, "predictive": {"pesq": 2.0 + 0.1 * i},
            **{name: {"pesq": 2.0 + 0.1 * i + 0.01 * s["steps"] * (i % 2)} for name, s in settings.items()},
        }}
        for i in range(6)
    ]  # fmt: skip
    return {
        "model": "m", "checkpoint_sha256": "0" * 64, "set": "dev", "settings": settings,
        "systems": {"predictive": {"pesq": {}}}, "groups": {"snr 0": {}, "snr 5": {}},
        "files": files,
    }  # fmt: skip


def test_steps_are_compared_on_the_same_recordings_and_by_degradation(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps(report()))
    assert steps.main([str(tmp_path / "a.json"), "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["group"], row["n"]) for row in rows] == [("", 6), ("snr 0", 3), ("snr 5", 3)]
    means = [row["steps"]["3"]["pesq"]["mean"] for row in rows]
    assert means == pytest.approx([0.015, 0.0, 0.03])
    assert rows[0]["fast"]["pesq"]["mean"] == pytest.approx(2.25)
    printed = capsys.readouterr().out
    assert "| `m`, dev (6) | fast (0) | 2.25 [" in printed
    assert "|  | best (3) | +0.03 [+0.03 to +0.03] * |" in printed
    assert "`m`, dev, snr 5 (3)" in printed


def test_a_report_without_a_sampler_is_refused():
    with pytest.raises(InputError, match="has no sampler; measure with --steps 1,3"):
        steps.collect([report(systems=())])
