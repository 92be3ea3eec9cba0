"""Costs and quality of the shipped engines are as pinned in benchmarks/costs.json."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from dvpd.benchmarks import guard
from dvpd.runtime.backends.choose import installed
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import sha256_file
from dvpd.runtime.manifest import Manifest

PINS = guard.read_pins(guard.PINS)
TINY = guard.ROOT / "engines" / "dvpd-tiny"


def test_costs_are_as_pinned():
    folders = guard.shipped_engines()
    assert {f.name for f in folders} == set(PINS["costs"])
    findings = guard.compare_costs(PINS["costs"], guard.measure_costs(folders))
    assert [f.text() for f in findings] == []


@pytest.mark.parametrize("backend", ["ort", "openvino"])
@pytest.mark.parametrize("folder", guard.shipped_engines(), ids=lambda path: path.name)
def test_quality_is_as_pinned(folder, backend):
    if not installed(backend):
        pytest.skip(f"{backend} is not installed")
    got = guard.measure_quality([folder], [backend], threads=1)  # a process for each core
    pinned = {folder.name: PINS["quality"][folder.name]}
    assert [f.text() for f in guard.compare_quality(pinned, got)] == []


BACKENDS = [name for name in ("ort", "openvino") if installed(name)]


@pytest.mark.skipif(not BACKENDS, reason="no backend is installed")
def test_what_is_heard_in_a_long_pause_is_as_pinned():
    got = guard.measure_pauses(guard.shipped_engines(), BACKENDS[0], threads=1)
    assert {"dvpd-base", "dvpd-tiny"} <= set(got)
    findings = guard.compare_quality(PINS["pauses"], got, guard.PAUSE_TOLERANCE)
    assert [f.text() for f in findings] == []


@pytest.mark.parametrize(("change", "fails"), [(-0.9, False), (-1.1, True)])
def test_noise_that_comes_back_in_a_pause_fails(change, fails):
    got = copy.deepcopy(PINS["pauses"])
    got["dvpd-tiny"]["predictive"]["pause_worst"] += change
    findings = guard.compare_quality(PINS["pauses"], got, guard.PAUSE_TOLERANCE)
    assert bool(findings) == fails
    assert all("dvpd-tiny predictive: pause_worst was" in f.text() for f in findings)
    text = guard.report(findings, [], {}, {"costs": {}, "quality": {}, "pauses": got})
    assert ("figures are worse" in text) == fails
    assert "| dvpd-tiny predictive |" in text


def planted_regression(folder: Path) -> Path:
    """A copy of an engine whose predictive graph does one needless pass over its input."""
    onnx = pytest.importorskip("onnx")
    copied = folder / "dvpd-tiny"
    shutil.copytree(TINY, copied)
    path = copied / "predictive.onnx"
    model = onnx.load(path)
    model.graph.node.insert(
        0, onnx.helper.make_node("Mul", ["noisy", "noisy"], ["twice"], name="net/useless")
    )
    onnx.save(model, path)
    table = json.loads((copied / "manifest.json").read_text())
    table["graphs"]["predictive"]["sha256"] = sha256_file(path)
    (copied / "manifest.json").write_text(json.dumps(table))
    Manifest.load(copied).verify_graphs(copied)
    return copied


def test_a_planted_regression_fails_readably_and_one_command_pins_it(tmp_path, capsys):
    engine, pins = planted_regression(tmp_path), tmp_path / "pins.json"
    shutil.copy(guard.PINS, pins)
    command = [str(engine), "--no-quality", "--pins", str(pins)]
    assert guard.main(command) == 1
    text = capsys.readouterr().out
    before = PINS["costs"]["dvpd-tiny"]["predictive"]
    extra = 3 * guard.N_FRAMES * 257
    assert (
        f"dvpd-tiny predictive: macs was {before['macs']:,}, is {before['macs'] + extra:,} "
        f"(+{extra:,}, " in text
    )
    assert f"nodes.Mul was {before['nodes.Mul']}, is {before['nodes.Mul'] + 1} (+1, " in text
    assert "guard.py --pin" in text
    assert guard.main([*command, "--pin"]) == 0
    kept = json.loads(pins.read_text())["quality"]["dvpd-tiny"]
    assert kept == PINS["quality"]["dvpd-tiny"]  # not measured now: the pin stays
    others = json.loads(pins.read_text())["costs"]
    assert set(others) == set(PINS["costs"])  # pinning one engine forgets no other
    assert others["dvpd-base"] == PINS["costs"]["dvpd-base"]
    assert guard.main(command) == 0


def test_what_is_cheaper_passes_and_is_said():
    got = copy.deepcopy(PINS["costs"])
    got["dvpd-tiny"]["score"]["macs"] -= 1000
    got["dvpd-tiny"]["score"].pop("nodes.Sin")
    findings = guard.compare_costs(PINS["costs"], got)
    assert {f.what for f in findings} == {"macs", "nodes.Sin"}
    assert not any(f.fails for f in findings)
    got["dvpd-tiny"]["score"]["nodes.Erf"] = 1
    assert [f.what for f in guard.compare_costs(PINS["costs"], got) if f.fails] == ["nodes.Erf"]


@pytest.mark.parametrize(("change", "fails"), [(0.019, False), (0.021, True), (-0.021, True)])
def test_quality_is_held_both_ways(change, fails):
    got = copy.deepcopy(PINS["quality"])
    got["dvpd-tiny"]["ort"]["full"]["pesq"] += change
    findings = guard.compare_quality(PINS["quality"], got)
    assert bool(findings) == fails
    assert all("dvpd-tiny ort full: pesq was" in f.text() for f in findings)


def test_an_engine_without_pin_or_a_pin_without_engine_fails():
    more = {**PINS["costs"], "new": PINS["costs"]["dvpd-tiny"]}
    assert all(f.fails for f in guard.compare_costs(PINS["costs"], more))
    lost = [f for f in guard.compare_costs(more, PINS["costs"]) if f.fails]
    kinds = ("predictive", "predictive.single", "score", "score.single")
    assert {f.where for f in lost} == {f"new {kind}" for kind in kinds}
    gone = guard.compare_quality({"new": {}, **PINS["quality"]}, PINS["quality"])
    assert [f.text() for f in gone] == ["new: quality is pinned (1) but not there"]


def test_a_backend_that_is_not_here_is_no_finding():
    got = {name: {"ort": table["ort"]} for name, table in PINS["quality"].items()}
    assert guard.compare_quality(PINS["quality"], got) == []


def test_instructions_are_compared_only_like_with_like():
    pin = {"instructions": 1000, "tool": "perf", "onnxruntime": "1", "cpu": "avx2"}
    findings, notes = guard.compare_instructions({"e": pin}, {"e": {**pin, "instructions": 1030}})
    assert [f.fails for f in findings] == [True]
    assert notes == []
    findings, notes = guard.compare_instructions({"e": pin}, {"e": {**pin, "cpu": "asimd"}})
    assert findings == []
    assert "no pin for this tool" in notes[0]
    assert "neither" in guard.compare_instructions({"e": pin}, {"e": None})[1][0]


def test_callgrind_counts_compare_across_cpus_that_it_cannot_tell_apart(monkeypatch):
    features = ["avx2", "avx512f", "avx512_vnni", "amx_int8"]
    monkeypatch.setattr("dvpd.runtime.doctor._cpu", lambda: {"features": features})
    assert guard._cpu_features("callgrind") == "avx2"
    assert guard._cpu_features("perf") == ",".join(features)


def test_damaged_pins_are_refused(tmp_path):
    path = tmp_path / "pins.json"
    path.write_text("{")
    with pytest.raises(InputError, match="--pin"):
        guard.read_pins(path)
    path.write_text('{"format": 0}')
    with pytest.raises(InputError, match="not of format"):
        guard.read_pins(path)
