"""The graphs for one recording: the same output as the others', and no weights of their own."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest

from dvpd.export import single, verify
from dvpd.model import DVPD
from dvpd.runtime.backends.base import FEAT_NAMES
from dvpd.runtime.backends.choose import open_backend
from dvpd.runtime.errors import ManifestError
from dvpd.runtime.manifest import MANIFEST_NAME
from dvpd.runtime.spec import GRAPH_NAMES, TLB_PRESETS

EXACT = 1e-5  # of an output's peak


def outputs(folder, manifest, backend, noisy, t):
    """Every output of both graphs, with factors that change the result."""
    with_closing = open_backend(folder, manifest, backend, "cpu", 1)
    try:
        clean_ri, feats = with_closing.predict(noisy)
        xt = np.abs(noisy[:, 2:3])
        sigma_z = with_closing.score(xt, t, feats, *TLB_PRESETS["severe"].arrays())
    finally:
        with_closing.close()
    return {"clean_ri": clean_ri, "sigma_z": sigma_z, **dict(zip(FEAT_NAMES, feats, strict=True))}


@pytest.mark.parametrize("backend", ["ort", "openvino"])
@pytest.mark.parametrize(("batch", "frames"), [(1, 32), (1, 76), (3, 44)])
def test_outputs_are_those_of_the_graphs_with_a_batch(fp32, backend, batch, frames):
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((batch, 3, frames, 257), np.float32)
    t = rng.uniform(0.03, 0.12, batch).astype(np.float32)
    whole = dataclasses.replace(fp32.manifest, single={})
    want = outputs(fp32.folder, whole, backend, noisy, t)
    got = outputs(fp32.folder, fp32.manifest, backend, noisy, t)
    for name, value in want.items():
        assert got[name].shape == value.shape
        assert np.abs(got[name] - value).max() < EXACT * np.abs(value).max(), name


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_stripes_are_convolutions_and_weights_lie_in_the_other_file(fp32, graph):
    path = fp32.folder / fp32.manifest.single[graph].file
    model = onnx.load(path, load_external_data=False)
    other = onnx.load(fp32.folder / fp32.manifest.graphs[graph].file)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    dynamic = [n for n in model.graph.node if n.op_type == "Conv" and n.input[1] not in constants]
    stages = {"predictive": 5, "score": 6}[graph]
    assert len(dynamic) == 3 * stages  # LISA's dilations
    assert len(model.graph.node) < len(other.graph.node)
    inside = sum(len(tensor.raw_data) for tensor in constants.values())
    assert inside < 0.1 * sum(len(tensor.raw_data) for tensor in other.graph.initializer)
    places = {e.value for c in constants.values() for e in c.external_data if e.key == "location"}
    assert places == {f"{graph}.onnx"}


def test_a_damaged_file_is_refused(fp32, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(fp32.folder, folder)
    path = folder / fp32.manifest.single["score"].file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ManifestError, match=r"score\.single\.onnx: SHA-256"):
        open_backend(folder, fp32.manifest, "ort", "cpu", 1)


def test_a_graph_with_a_fixed_batch_is_refused_where_a_dynamic_one_is_expected(fp32, tmp_path):
    folder = tmp_path / "exchanged"
    shutil.copytree(fp32.folder, folder)
    table = json.loads((folder / MANIFEST_NAME).read_text())
    table["graphs"] = table.pop("single_graphs")
    (folder / MANIFEST_NAME).write_text(json.dumps(table))
    with pytest.raises(ManifestError, match="noisy is float32"):
        open_backend(folder, type(fp32.manifest).load(folder), "ort", "cpu", 1)


@pytest.mark.parametrize("change", [{"local": "dual_path"}, {"causal": True}])
def test_models_that_gain_nothing_have_none(change, fp16):
    model = DVPD(dataclasses.replace(fp16.config.model, **change))
    assert not single.pays(model, "fp32")
    assert not fp16.manifest.single


def test_verification_compares_both_kinds(fp32):
    there = verify.available(fp32.folder, fp32.manifest)
    assert {"ort", "ort-batch"} <= set(there)
    noisy = np.zeros((2, 3, 32, 257), np.float32)
    with verify.opened("ort-batch", fp32.folder, fp32.manifest) as backend:
        assert backend.predict(noisy)[0].shape == (2, 2, 32, 257)
        assert not backend._single
    with verify.opened("ort", fp32.folder, fp32.manifest) as backend:
        assert backend._single
