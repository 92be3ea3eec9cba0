"""The verification of engine folders: what it measures, what it finds, what it keeps."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dvpd.export import half, verify
from dvpd.runtime import engines
from dvpd.runtime.backends.base import LoadOptions
from dvpd.runtime.backends.choose import open_backend
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.files import sha256_file
from dvpd.runtime.manifest import MANIFEST_NAME, Manifest

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = sorted(path.parent for path in ROOT.glob(f"engines/*/{MANIFEST_NAME}"))
SHORT_S = 0.25  # 32 frames, the shortest that the graphs take
HALF_OF_RANGE = 5e-3  # of the range: three digits, through a whole network


def copies(tmp_path, *names, checkpoint=True):
    """Shipped engine folders side by side; the first one's path."""
    for name in names:
        ignore = shutil.ignore_patterns("*.plan*", "verification.*", "*.jsonl")
        shutil.copytree(ROOT / "engines" / name, tmp_path / name, ignore=ignore)
    if not checkpoint:
        for path in tmp_path.glob("*/*.safetensors"):
            path.unlink()
    return tmp_path / names[0]


@pytest.fixture
def few(monkeypatch, request):
    """Two of the five recordings, or those that are named."""
    every = verify.recordings
    names = getattr(request, "param", ("speech", "silent"))

    def recordings(*args):
        return {k: v for k, v in every(*args).items() if k in names}

    monkeypatch.setattr(verify, "recordings", recordings)
    monkeypatch.setattr(verify, "NODE_FRAMES", 32)


def tamper(folder, graph="predictive", factor=1.02):
    """Change one weight, and the manifest with it."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(str(path))
    tensor = max(
        (t for t in model.graph.initializer if len(t.dims) == 4), key=lambda t: np.prod(t.dims)
    )
    value = numpy_helper.to_array(tensor)
    changed = (value * np.asarray(factor, value.dtype)).astype(value.dtype)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, str(path))
    table = json.loads((folder / MANIFEST_NAME).read_text())
    table["graphs"][graph]["sha256"] = sha256_file(path)
    (folder / MANIFEST_NAME).write_text(json.dumps(table))


# ------------------------------------------------------------------------------------------------
# Shipped engines


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_shipped_engines_have_a_current_report(folder):
    """After new weights: python export/verify.py engines/NAME."""
    assert engines.verification_problem(folder, Manifest.load(folder)) is None
    table = json.loads((folder / engines.VERIFICATION_NAME).read_text())
    assert set(table["waveform_snr_db"]) >= {"ort", "openvino"}
    precision = table["engine"]["precision"]
    for row in table["waveform_snr_db"].values():
        assert set(row) == {"speech", "loud", "quiet", "clipped"}
        assert min(row.values()) >= verify.MIN_SNR_DB[precision]
    if precision == "fp16":
        assert "onnx" in table["waveform_snr_db"]
        for graph in ("predictive", "score"):
            assert len(table["nodes"][graph]["speech"]) == verify.WORST_NODES
    title = (folder / "verification.md").read_text().splitlines()[0]
    assert title.endswith(f", {precision}")


# ------------------------------------------------------------------------------------------------
# The tool


def test_float_engine_passes_and_the_report_is_kept(tmp_path, capsys, caplog):
    folder = copies(tmp_path, "dvpd-tiny")
    args = [str(folder), "--backends", "ort", "--seconds", str(SHORT_S), "--no-quality"]
    assert verify.main([*args, "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert not (folder / engines.VERIFICATION_NAME).exists()
    assert report["passed"]
    assert report["reference"] == "torch, float32"
    assert report["speech"] == "noisy.flac"
    assert set(report["waveform_snr_db"]["ort"]) == {"speech", "loud", "quiet", "clipped"}
    assert min(report["waveform_snr_db"]["ort"].values()) >= 80
    assert report["silent_db"]["ort"] <= -100
    assert len(report["outputs"]["ort"]) == 9
    assert max(report["outputs"]["ort"].values()) <= 1e-4
    assert report["skipped"]["onnx"] == "the engine is fp32"
    assert verify.main(args) == 0
    text = capsys.readouterr().out
    assert text == (folder / "verification.md").read_text()
    assert "Passed on " in text
    assert engines.verification_problem(folder, Manifest.load(folder)) is None
    kept = json.loads((folder / engines.VERIFICATION_NAME).read_text())
    assert kept["waveform_snr_db"] == report["waveform_snr_db"]  # the same speech and noise
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("few", [("speech",)], ids="-".join, indirect=True)
def test_half_engine_node_by_node(tmp_path, few):
    folder = copies(tmp_path, "dvpd-tiny-fp16", "dvpd-tiny")
    report = verify.verify_engine(folder, ["onnx"], seconds=SHORT_S, quality=False)
    assert report.failures == []
    assert report.reference == "torch, float32"  # its checkpoint lies in the sibling folder
    assert report.waveform_snr_db["onnx"]["speech"] >= 35
    manifest = Manifest.load(folder)
    for graph, path in manifest.verify_graphs(folder).items():
        names = {node.name for node in half.load(path).graph.node}
        worst = report.nodes[graph]["speech"]
        assert [n["own_snr_db"] for n in worst] == sorted(n["own_snr_db"] for n in worst)
        assert {n["node"] for n in worst} <= names
        assert 0 < report.half_peak[graph]["speech"]["peak"] < half.HALF_MAX
    text = verify.markdown(report)
    assert "node by node in true half arithmetic" in text
    assert report.nodes["score"]["speech"][0]["node"] in text


def test_wrong_weights_fail(tmp_path, capsys):
    folder = copies(tmp_path, "dvpd-tiny")
    tamper(folder)
    args = [str(folder), "--backends", "ort", "--seconds", str(SHORT_S), "--no-quality"]
    assert verify.main(args) == 1
    text = capsys.readouterr().out
    assert "FAILED on " in text
    assert "ort: clean_ri differs by" in text
    assert "ort: speech has a waveform SNR of" in text
    problem = engines.verification_problem(folder, Manifest.load(folder))
    assert problem == "has failed its verification"
    tamper(folder, "score")
    problem = engines.verification_problem(folder, Manifest.load(folder))
    assert problem == "has a verification report of other graphs"


@pytest.mark.parametrize("few", [("speech",)], ids="-".join, indirect=True)
def test_overflow_in_half_is_found(tmp_path, few):
    folder = copies(tmp_path, "dvpd-tiny-fp16", "dvpd-tiny")
    tamper(folder, "score", factor=60000)
    report = verify.verify_engine(folder, ["onnx"], seconds=SHORT_S, quality=False)
    assert any("of the score graph overflows in half" in text for text in report.failures)
    peak = report.half_peak["score"]["speech"]
    assert peak["peak"] is None or not np.isfinite(peak["peak"])
    verify.save(report, folder)  # not finite, and still a valid report
    table = json.loads((folder / engines.VERIFICATION_NAME).read_text())
    assert table["passed"] is False


def test_without_a_checkpoint_the_float_engine_is_the_reference(tmp_path, few):
    folder = copies(tmp_path, "dvpd-tiny-fp16", "dvpd-tiny", checkpoint=False)
    report = verify.verify_engine(folder, ["ort"], seconds=SHORT_S, quality=False)
    assert report.reference == "ort, float32"
    assert report.waveform_snr_db["ort"]["speech"] >= 35
    shutil.rmtree(tmp_path / "dvpd-tiny")
    with pytest.raises(BackendError, match="nothing to compare with"):
        verify.verify_engine(folder, ["ort"], seconds=SHORT_S, quality=False)


def test_the_reference_alone_proves_nothing(tmp_path, few, capsys):
    folder = copies(tmp_path, "dvpd-tiny")
    shutil.copy(ROOT / "engines" / "dvpd-tiny" / engines.VERIFICATION_NAME, folder)
    before = (folder / engines.VERIFICATION_NAME).read_bytes()
    args = [str(folder), "--backends", "torch", "--seconds", str(SHORT_S), "--no-quality"]
    assert verify.main(args) == 1
    assert "nothing was compared" in capsys.readouterr().err
    assert (folder / engines.VERIFICATION_NAME).read_bytes() == before  # not "failed"


def test_quality_is_compared(tmp_path, few, monkeypatch):
    pytest.importorskip("pesq", reason="pesq is not installed: dvpd[bench]")
    example = verify._example(16000)
    short = tuple(
        signal[40000:64000] for signal in example
    )  # somebody speaks: PESQ means something
    monkeypatch.setattr(verify, "_example", lambda rate: short)
    folder = copies(tmp_path, "dvpd-tiny")
    report = verify.verify_engine(folder, ["ort"], seconds=SHORT_S)
    assert report.failures == []
    assert 1.0 < report.pesq["ort"]["score"] < 4.7
    assert abs(report.pesq["ort"]["difference"]) < 0.005


def test_backend_that_fails_is_a_failure(tmp_path, few, monkeypatch):
    folder = copies(tmp_path, "dvpd-tiny")
    real = verify.open_backend

    def nan(*_):
        raise BackendError("returned non-finite values")

    def opened(*args):
        backend = real(*args)
        backend.score = nan
        return backend

    monkeypatch.setattr(verify, "open_backend", opened)
    report = verify.verify_engine(folder, ["ort"], seconds=SHORT_S, quality=False)
    assert "ort: outputs: returned non-finite values" in report.failures
    assert "ort: speech: returned non-finite values" in report.failures


def test_backend_that_is_not_usable_is_skipped_unless_named(tmp_path, few, monkeypatch):
    folder = copies(tmp_path, "dvpd-tiny")
    real = verify.open_backend

    def opened(place, manifest, name):
        if name != "ort":
            raise BackendError(f"{name} needs a GPU")
        return real(place, manifest, name)

    monkeypatch.setattr(verify, "open_backend", opened)
    report = verify.verify_engine(folder, seconds=SHORT_S, quality=False)
    assert report.failures == []
    assert list(report.waveform_snr_db) == ["ort", "ort-batch"]
    assert report.skipped["openvino"] in ("openvino needs a GPU", "not installed: dvpd[openvino]")
    if verify.installed("openvino"):
        with pytest.raises(BackendError, match="openvino needs a GPU"):
            verify.verify_engine(folder, ["openvino"], seconds=SHORT_S, quality=False)


def test_wrong_arguments(tmp_path, capsys):
    folder = copies(tmp_path, "dvpd-tiny")
    with pytest.raises(InputError, match=r"backends has \['tvm'\]; expected some of torch"):
        verify.verify_engine(folder, ["tvm"])
    with pytest.raises(BackendError, match="backend onnx cannot take part: the engine is fp32"):
        verify.verify_engine(folder, ["onnx"])
    assert verify.main([str(tmp_path / "gone")]) == 1
    assert "dvpd: " in capsys.readouterr().err
    assert verify.main([str(folder), "--seconds", "0"]) == 2
    assert "seconds" in capsys.readouterr().err


def test_recordings_are_what_they_are_called():
    rng = np.random.default_rng(0)
    wav = rng.standard_normal(32000).astype(np.float32) * np.linspace(0.1, 1, 32000, dtype="f")
    cases = verify.recordings(wav, 16000, 0.5)
    assert all(c.shape == (8000,) and c.dtype == np.float32 for c in cases.values())
    peaks = {name: float(np.abs(case).max()) for name, case in cases.items()}
    assert peaks["speech"] == pytest.approx(1)
    assert peaks["loud"] == pytest.approx(4)
    assert peaks["quiet"] == pytest.approx(1e-3)
    assert peaks["silent"] == 0
    assert (np.abs(cases["clipped"]) == 1).mean() > 0.1


# ------------------------------------------------------------------------------------------------
# Half arithmetic


def one(nodes, inputs, constants=(), output=TensorProto.FLOAT16):
    """A graph of a few nodes."""
    ends = [helper.make_tensor_value_info(n, t, None) for n, t in inputs]
    out = helper.make_tensor_value_info(nodes[-1].output[0], output, None)
    weights = [numpy_helper.from_array(v, n) for n, v in constants]
    graph = helper.make_graph(nodes, "one", ends, [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_every_node_is_rounded_to_half():
    nodes = [
        helper.make_node("Add", ["x", "one"], ["y"], name="up"),
        helper.make_node("Sub", ["y", "one"], ["z"], name="down"),
    ]
    model = one(nodes, [("x", TensorProto.FLOAT16)], [("one", np.float16(1))])
    x = np.array([1e-4, 0.25], np.float16)
    (z,) = half.evaluator(model).run(None, {"x": x})
    assert z.tolist() == [0, 0.25]  # 1.0001 is 1 in half; float32 in between would keep it
    (wide,) = half.evaluator(half.float_twin(model)).run(None, {"x": x.astype(np.float32)})
    assert wide[0] == pytest.approx(1e-4, rel=1e-2)
    up, down = half.node_errors(model, {"x": np.array([1e-4, 1e-4], np.float16)})
    assert up.snr_db > 60
    assert down.snr_db < 1  # what it loses was lost in the node before
    assert down.own_snr_db < 1  # and its inputs in half are lost as well
    assert (up.node, up.operator) == ("up", "Add")


def test_products_overflow_where_a_gpu_does():
    model = one(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        [("x", TensorProto.FLOAT16)],
        [("w", np.ones((512, 1), np.float16))],
    )
    x = np.full((1, 512), 100, np.float16)
    (y,) = half.evaluator(model).run(None, {"x": x})
    assert y[0, 0] == 51200  # summed in float32: half would stop growing
    (found,) = half.node_errors(model, {"x": np.full((1, 512), 200, np.float16)})
    assert found.peak == np.inf
    assert found.snr_db == -np.inf


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pads": [1, 2, 0, 1], "strides": [2, 1]},
        {"dilations": [1, 3], "pads": [0, 3, 0, 3]},
        {"group": 4, "pads": [1, 1, 1, 1]},
    ],
)
def test_convolution_is_onnx_own(options):
    rng = np.random.default_rng(0)
    group = options.get("group", 1)
    x = rng.standard_normal((2, 4, 8, 9)).astype(np.float32)
    w = rng.standard_normal((8, 4 // group, 3, 3)).astype(np.float32)
    b = rng.standard_normal(8).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **options)
    model = one([node], [("x", TensorProto.FLOAT)], [("w", w), ("b", b)], TensorProto.FLOAT)
    (got,) = half.evaluator(model).run(None, {"x": x})
    from onnx.reference import ReferenceEvaluator

    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_reference_backend_is_near_onnx_runtime():
    folder = ROOT / "engines" / "dvpd-tiny-fp16"
    manifest = Manifest.load(folder)
    paths = manifest.verify_graphs(folder)
    options = LoadOptions(paths["predictive"], paths["score"], manifest, "cpu", 1)
    rng = np.random.default_rng(0)
    x = (0.2 * rng.standard_normal((2, 3, 32, 257))).astype(np.float32)
    t = np.array([0.1, 0.05], np.float32)
    factors = verify.TLB_PRESETS["severe"].arrays()
    other = open_backend(folder, manifest, "ort", "cpu", 1)
    results = []
    for backend in (other, half.ReferenceBackend(options)):
        clean, feats = backend.predict(x)
        sigma = backend.score(np.ascontiguousarray(x[:, :1]), t, feats, *factors)
        assert all(np.asarray(f).dtype == np.float16 for f in feats)
        results.append((clean, sigma))
        backend.close()
    for want, got in zip(*results, strict=True):
        assert 0 < verify.error_of_range(want, got) <= HALF_OF_RANGE


def test_warning_is_gone_with_a_report(tmp_path, few, caplog):
    from dvpd.runtime import Enhancer

    folder = copies(tmp_path, "dvpd-tiny")
    verify.save(verify.verify_engine(folder, ["ort"], seconds=SHORT_S, quality=False), folder)
    with caplog.at_level(logging.WARNING, "dvpd"):
        Enhancer.open(folder, backend="ort", device="cpu").close()
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
