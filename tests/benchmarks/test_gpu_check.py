"""The launch script, run whole on the CPU."""

import json
import math
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dvpd.benchmarks import gpu_check
from dvpd.runtime.backends import choose
from dvpd.runtime.errors import InputError
from dvpd.runtime.manifest import Manifest

SAMPLES = 24000  # of the clip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu_check")
    argv = ["--device", "cpu", "--seconds", "0.1", "--json", str(folder / "r.json")]
    argv += ["--waveforms", str(folder / "w.npz")]
    with np.load(gpu_check.CLIP) as clip:
        np.savez(folder / "clip.npz", **{name: clip[name][:SAMPLES] for name in clip.files})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_check, "CLIP", folder / "clip.npz")
        patch.setattr(gpu_check, "WINDOW_FRAMES", 32)  # a quick run
        patch.setattr(gpu_check, "timed", partial(gpu_check.timed, least=2))
        assert gpu_check.main(argv) == 0
    with np.load(folder / "w.npz") as waves:
        return json.loads((folder / "r.json").read_text()), dict(waves)


def test_report_holds_what_applies_on_a_cpu(report):
    table, waves = report
    assert table["machine"]["kind"] == "cpu"
    (row,) = table["precisions"].values()
    assert row["snr_db"] > 80  # the same model on the same device, folded
    assert row["latency"]["eager"]["p99_ms"] >= row["latency"]["eager"]["p50_ms"] > 0
    assert "captured" not in row["latency"]
    assert row["kernels"]["count"] > 500
    assert sum(r["ms"] for r in row["kernels"]["longest"]) <= row["kernels"]["busy_ms"] * 1.001
    assert [r["batch"] for r in row["throughput"]] == [1]
    assert row["floor"]["macs_ms"]["fp32"] < row["latency"]["eager"]["p50_ms"]
    assert row["floor"]["window_compulsory_mb"] > 1
    assert waves["reference"].shape == waves["fp32"].shape == (SAMPLES,)


def test_graph_engines_are_checked_beside(report):
    table, waves = report
    rows = {(row["engine"], row["backend"], row["device"]): row for row in table["engines"]}
    folders = ("dvpd-tiny", "dvpd-tiny-fp16")
    assert set(rows) == {(f, b, "cpu") for f in folders for b in ("ort", "openvino")}
    for (folder, name, _), row in rows.items():
        assert "error" not in row
        assert row["snr_db"] > (35 if folder.endswith("fp16") else 70)
        assert math.isclose(row["pesq"], table["reference_pesq"], abs_tol=0.02)
        assert row["latency"]["p99_ms"] >= row["latency"]["p50_ms"] > 0
        assert [r["batch"] for r in row["throughput"]] == [1]
        assert waves[f"{folder}/{name}/cpu"].shape == (SAMPLES,)


def test_an_engine_that_fails_is_a_row(monkeypatch):
    class Small:
        """Refuses more than one recording at a time."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def predict(self, noisy):
            if len(noisy) > 1:
                raise InputError("batches up to 1")
            return self.inner.predict(noisy)

    folder = gpu_check.ROOT / "engines" / "dvpd-tiny"
    work = gpu_check.Work(Manifest.load(folder), np.ones(4000, np.float32) * 0.1)
    args = SimpleNamespace(seconds=0.01, batches=(1, 2))
    window = np.ones(4000, np.float32) * 0.1
    row = gpu_check.measure_engine(folder, "ort", "tensorrt", work, window, args)
    assert "asked for, but this ONNX Runtime has only" in row["error"]
    real = choose.open_backend
    monkeypatch.setattr(choose, "open_backend", lambda *a: Small(real(*a[:3], "cpu")))
    row = gpu_check.measure_engine(folder, "ort", "cuda", work, window, args)
    assert "error" not in row
    assert [r.get("error") for r in row["throughput"]] == [None, "batches up to 1"]


def test_a_part_that_fails_is_written_and_the_next_one_follows(tmp_path):
    path = tmp_path / "r.json"
    report = gpu_check.Report(path, {"format": 1})

    def fails():
        raise RuntimeError("CUPTI_ERROR\nnot permitted")

    report.part(report.table, "kernels", fails)
    assert json.loads(path.read_text())["kernels"] == {"error": "CUPTI_ERROR not permitted"}
    report.part(report.table, "latency", lambda: {"p50_ms": math.nan, "runs": (1.0, math.inf)})
    report.part(report.table, "floor", lambda: {"bytes_ms": 0.5})
    want = {"p50_ms": None, "runs": [1.0, None]}
    table = json.loads(path.read_text())
    assert (table["latency"], table["floor"]) == (want, {"bytes_ms": 0.5})
    assert list(tmp_path.iterdir()) == [path]
    lost = gpu_check.Report(tmp_path / "none" / "r.json", {})
    lost.part(lost.table, "floor", lambda: {"bytes_ms": 0.5})
    assert "No such file" in lost.unwritten
    assert "bytes_ms" in lost.text()


def test_a_precision_that_fails_leaves_the_other_parts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "WINDOW_FRAMES", 32)
    with np.load(gpu_check.CLIP) as clip:
        np.savez(tmp_path / "clip.npz", **{name: clip[name][:4096] for name in clip.files})
    monkeypatch.setattr(gpu_check, "CLIP", tmp_path / "clip.npz")
    monkeypatch.setattr(gpu_check, "engines_available", lambda *args: [])
    monkeypatch.setattr(gpu_check, "pesq_of", lambda *args: math.nan)

    def fails(*args):
        raise RuntimeError("CUPTI")

    monkeypatch.setattr(gpu_check, "kernels", fails)
    path = tmp_path / "r.json"
    words = ["--device", "cpu", "--seconds", "0.01", "--batches", "1", "--json", str(path)]
    assert gpu_check.main(words) == 0
    table = json.loads(path.read_text())["precisions"]["fp32"]
    assert table["pesq"] is None
    assert table["kernels"] == {"error": "CUPTI"}
    assert table["floor"]["window_gmac"] > 0
    assert table["throughput"][0]["audio_s_per_s"] > 0


def test_the_cpus_engines_stay_off_the_gpus_clock():
    folder = gpu_check.ROOT / "engines" / "dvpd-tiny"
    assert {row[2] for row in gpu_check.engines_available(folder, False)} == {"cpu"}
    assert "cpu" not in {row[2] for row in gpu_check.engines_available(folder, True)}
    assert "cpu" in {row[2] for row in gpu_check.engines_available(folder, True, True)}


def test_checkpoint_is_read_without_safetensors(monkeypatch):
    _, want = gpu_check.read_model(gpu_check.ROOT / "engines" / "dvpd-tiny")
    monkeypatch.setitem(sys.modules, "dvpd.checkpoint", None)
    _, got = gpu_check.read_model(gpu_check.ROOT / "engines" / "dvpd-tiny")
    for name, tensor in want.state_dict().items():
        assert torch.equal(tensor, got.state_dict()[name]), name


def test_wrong_usage_and_missing_engine(tmp_path, capsys):
    assert gpu_check.main(["--batches", "0"]) == 2
    assert gpu_check.main(["--device", "cpu", "--engine", str(tmp_path)]) == 1
    assert "dvpd: " in capsys.readouterr().err


def test_snr():
    wave = np.sin(np.arange(1000)).astype(np.float32)
    assert math.isclose(gpu_check.snr_db(wave, 1.1 * wave), 20, abs_tol=1e-3)
