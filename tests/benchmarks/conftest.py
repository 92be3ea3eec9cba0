"""Tiny engines: the benchmarks' tests need no trained model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_SOURCE = Path(__file__).resolve().parent.parent / "runtime" / "tiny_graphs.py"


def _tiny_graphs():
    # loaded from its file: the folder of the runtime's tests is not on this folder's path
    if "tiny_graphs" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tiny_graphs", _SOURCE)
        module = importlib.util.module_from_spec(spec)
        sys.modules["tiny_graphs"] = module
        spec.loader.exec_module(module)
    return sys.modules["tiny_graphs"]


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory):
    """A valid engine folder whose graphs cost next to nothing; not to be changed."""
    pytest.importorskip("onnx")
    return _tiny_graphs().write_engine(tmp_path_factory.mktemp("engines") / "tiny")


@pytest.fixture(scope="session")
def causal_engine(tmp_path_factory):
    """The same for sound that is still coming in."""
    pytest.importorskip("onnx")
    graphs = _tiny_graphs()
    folder = tmp_path_factory.mktemp("engines") / "causal"
    return graphs.write_engine(folder, manifest=graphs.make_manifest(causal=graphs.CAUSAL))


@pytest.fixture(scope="session")
def tiny_engine_fp16(tmp_path_factory):
    """The same in half precision."""
    pytest.importorskip("onnx")
    return _tiny_graphs().write_engine(tmp_path_factory.mktemp("engines") / "tiny16", "fp16")
