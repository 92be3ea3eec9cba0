"""Fixtures of the runtime's tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tiny_graphs

from tiny_graphs import CAUSAL, make_manifest, write_engine

ASSETS = Path(__file__).resolve().parent.parent / "assets"


@pytest.fixture(scope="session")
def _engine_master(tmp_path_factory):
    pytest.importorskip("onnx")
    return write_engine(tmp_path_factory.mktemp("engines") / "tiny")


@pytest.fixture
def engine(_engine_master, tmp_path):
    """A private copy of a valid fp32 engine folder."""
    return Path(shutil.copytree(_engine_master, tmp_path / "engine"))


@pytest.fixture(scope="session")
def engine_shared(_engine_master):
    """A valid fp32 engine folder; not to be changed."""
    return _engine_master


@pytest.fixture(scope="session")
def engine_causal(tmp_path_factory):
    """A valid engine folder of a causal model; not to be changed."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("engines") / "causal"
    return write_engine(folder, manifest=make_manifest(causal=CAUSAL))


@pytest.fixture(scope="session")
def engine_causal_fp16(tmp_path_factory):
    """The same in half precision."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("engines") / "causal16"
    return write_engine(folder, "fp16", make_manifest("fp16", causal=CAUSAL))


@pytest.fixture(scope="session")
def engine_fp16(tmp_path_factory):
    pytest.importorskip("onnx")
    return write_engine(tmp_path_factory.mktemp("engines") / "tiny16", "fp16")


@pytest.fixture(scope="session")
def enhancer(engine_shared):
    pytest.importorskip("onnxruntime")
    from dvpd.runtime import Enhancer

    with Enhancer.open(engine_shared, backend="ort", device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def speech():
    """Real noisy speech, float32 [49875], 16 kHz."""
    return soundfile.read(ASSETS / "clip0_noisy.flac", dtype="float32")[0]
