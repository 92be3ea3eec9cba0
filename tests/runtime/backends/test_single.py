"""Which graphs a CPU loads, and what becomes of a batch there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dvpd.runtime.backends.base import LoadOptions
from dvpd.runtime.backends.signature import GraphTensor, check_signature
from dvpd.runtime.backends.single import each_recording, graphs_for, verify_again
from dvpd.runtime.errors import ManifestError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import GRAPH_NAMES, graph_io

ENGINE = Path(__file__).resolve().parents[3] / "engines" / "dvpd-tiny"
BOTH = {n: Path(f"{n}.onnx") for n in ("predictive", "score", "predictive.single", "score.single")}


@pytest.mark.parametrize(
    ("backend", "device", "single"),
    [
        ("ort", "cpu", True),
        ("openvino", "cpu", True),
        ("ort", "cuda", False),
        ("ort", "tensorrt:1", False),
        ("openvino", "gpu", False),
        ("tensorrt", "cuda", False),
        ("torch", "cpu", False),
    ],
)
def test_cpus_load_the_graphs_for_one_recording(backend, device, single):
    ending = ".single" if single else ""
    want = Path(f"predictive{ending}.onnx"), Path(f"score{ending}.onnx")
    assert graphs_for(backend, device, BOTH) == want


def test_engines_without_them_give_the_others():
    paths = {name: BOTH[name] for name in ("predictive", "score")}
    assert graphs_for("ort", "cpu", paths) == (paths["predictive"], paths["score"])


def test_a_batch_is_run_one_by_one_and_only_there():
    factors = np.ones((2, 2), np.float32)
    inputs = {"xt": np.arange(6.0).reshape(2, 3), "t": np.array([1.0, 2.0]), "tlb_skip": factors}
    first, second = each_recording(inputs, single=True)
    assert first["xt"].tolist() == [[0, 1, 2]]
    assert second["xt"].tolist() == [[3, 4, 5]]
    assert (first["t"].tolist(), second["t"].tolist()) == ([1.0], [2.0])
    assert first["tlb_skip"] is second["tlb_skip"] is factors
    assert each_recording(inputs, single=False) == [inputs]


def test_a_fixed_batch_is_allowed_in_those_graphs_alone():
    inputs, outputs = (
        [
            GraphTensor(
                spec.name,
                spec.dtype,
                tuple(1 if s == "B" else s if isinstance(s, int) else None for s in spec.shape),
            )
            for spec in specs
        ]
        for specs in graph_io("predictive", "fp32", None)
    )
    check_signature("predictive", "fp32", inputs, outputs, single=True)
    with pytest.raises(ManifestError, match="noisy is float32"):
        check_signature("predictive", "fp32", inputs, outputs)


@pytest.mark.parametrize("graph", GRAPH_NAMES)
@pytest.mark.parametrize("ending", ["", ".single"])
def test_files_that_change_before_the_first_step_are_refused(tmp_path, graph, ending):
    # The weights of the graph for one recording lie in the other file, which is read only then.
    for file in (f"{graph}.onnx", f"{graph}.single.onnx"):
        shutil.copy(ENGINE / file, tmp_path / file)
    manifest = Manifest.load(ENGINE)
    paths = [tmp_path / f"{graph}.single.onnx" for graph in GRAPH_NAMES]
    options = LoadOptions(*paths, manifest, "cpu", 1)
    verify_again(options, graph)
    name = f"{graph}{ending}.onnx"
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ManifestError, match=rf"{name}: SHA-256"):
        verify_again(options, graph)
    (tmp_path / name).unlink()
    with pytest.raises(ManifestError, match=rf"{name}: No such file.*export the engine again"):
        verify_again(options, graph)
