"""What engines/build_with_trtexec.sh asks of Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dvpd.runtime.manifest import Manifest
from dvpd.runtime.tensorrt import gpus, plans, trtexec_helper
from dvpd.runtime.tensorrt.gpus import Gpu, Target
from dvpd.runtime.tensorrt.onnx_inputs import Profile

TINY = Path(__file__).resolve().parents[3] / "engines" / "dvpd-tiny-fp16"
ORIN = Target("Orin", "8.7")
PLAN = plans.PLAN_MAGIC["tensorrt"].ljust(plans.PLAN_VERSION_AT, b"\0") + bytes(
    [10, 3, 0, 26, *range(256)]
)


@pytest.fixture
def orin(monkeypatch):
    driver = gpus.CudaDriver((12, 6), (Gpu("Orin", "8.7"),))
    monkeypatch.setattr(trtexec_helper, "cuda_driver", lambda: driver)


@pytest.fixture
def tiny(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "tiny", ignore=shutil.ignore_patterns("*.plan*")))


def test_helper_prints_flags(tiny, orin, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    args = [str(tiny), "--graph", "predictive", "--trt-version", "10.3.0"]
    assert trtexec_helper.main(["flags", *args, "--frames", "32,64,128"]) == 0
    cache = tmp_path / "cache" / "dvpd" / "tensorrt-10.3.0.orin.timing"
    assert capsys.readouterr().out.splitlines() == [
        "--minShapes=noisy:1x3x32x257",
        "--optShapes=noisy:1x3x64x257",
        "--maxShapes=noisy:4x3x128x257",
        f"--timingCacheFile={cache}",
    ]
    assert cache.parent.stat().st_mode & 0o077 == 0


def test_helper_seals_and_checks(tiny, orin, capsys):
    base = [str(tiny), "--graph", "score", "--trt-version", "10.3.0"]
    assert trtexec_helper.main(["check", *base]) == 1
    assert "there is none" in capsys.readouterr().err
    raw = tiny / "raw"
    raw.write_bytes(PLAN)
    assert trtexec_helper.main(["seal", *base, "--plan", str(raw), "--seconds", "61"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == tiny / "score.tensorrt-10.3.0.orin.fp16.plan"
    assert trtexec_helper.main(["check", *base]) == 0
    assert trtexec_helper.main(["check", *base, "--frames", "32,64,128"]) == 1
    spec = plans.plan_spec(Manifest.load(tiny), "score", "tensorrt", "10.3.0", ORIN, Profile())
    _, sidecar = plans.load_plan(tiny, spec)
    assert sidecar.built == {"tool": "trtexec", "version": "10.3.0", "seconds": 61.0}
    raw.write_bytes(b"junk")
    assert trtexec_helper.main(["seal", *base, "--plan", str(raw)]) == 1
    assert trtexec_helper.main(["seal", *base, "--plan", str(tiny / "gone")]) == 1


def test_helper_wrong_usage(tiny, orin):
    for args in (["flags"], ["check", str(tiny), "--graph", "score"], ["paint"]):
        assert trtexec_helper.main(args) == 2


def test_helper_names_the_gpu(orin, capsys, monkeypatch):
    assert trtexec_helper.main(["gpu"]) == 0
    assert capsys.readouterr().out == "Orin 8.7\n"
    monkeypatch.setattr(trtexec_helper, "cuda_driver", lambda: None)
    assert trtexec_helper.main(["gpu"]) == 1
    assert "no NVIDIA GPU" in capsys.readouterr().err
