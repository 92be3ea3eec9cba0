"""The command: what it refuses, what it leaves behind, what it prints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dvpd.checkpoint import read_checkpoint, save_checkpoint
from dvpd.export import build, parity, to_onnx
from dvpd.export import single as single_graphs
from dvpd.model import DVPD
from dvpd.runtime import Enhancer, engines
from dvpd.runtime.errors import InputError, ManifestError, ParityError
from dvpd.runtime.files import sha256_file
from dvpd.runtime.manifest import MANIFEST_NAME, Manifest
from dvpd.torch_backend import prepare

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def quick(monkeypatch, fp32, fp16):
    """Hand out the session's graphs instead of tracing the same model again."""

    def ready(model, graph, precision, *, single=False):
        engine = fp16 if precision == "fp16" else fp32
        files = engine.manifest.single if single else engine.manifest.graphs
        return onnx.load(str(engine.folder / files[graph].file))

    for module in (build, single_graphs):
        monkeypatch.setattr(module, "build_graph", ready)


def _tampered(monkeypatch, name):
    """Exports of ``name`` get one weight that the model does not have."""
    import onnx

    ready = build.build_graph

    def wrong(model, graph, precision):
        result = ready(model, graph, precision)
        if graph == name:
            tensor = next(t for t in result.graph.initializer if len(t.dims) == 4)
            array = onnx.numpy_helper.to_array(tensor).copy()
            array.flat[0] += 0.1
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return result

    monkeypatch.setattr(build, "build_graph", wrong)


@pytest.fixture
def short(monkeypatch):
    """Parity of outputs at one length alone: enough to find a wrong weight."""
    monkeypatch.setattr(parity, "LENGTHS", parity.LENGTHS[:1])


@pytest.mark.parametrize("graph", ["predictive", "score"])
def test_failed_parity_leaves_nothing(
    monkeypatch, quick, short, checkpoint, tmp_path, capsys, graph
):
    _tampered(monkeypatch, graph)
    out = tmp_path / "engines" / "small"
    assert to_onnx.main([str(checkpoint), "-o", str(out)]) == 1
    assert "of the range; at most 1e-04" in capsys.readouterr().err
    assert list(tmp_path.rglob("*.*")) == []
    assert not out.exists()


def test_failed_parity_keeps_what_was_there(monkeypatch, quick, short, checkpoint, tmp_path):
    _tampered(monkeypatch, "score")
    (tmp_path / "score.onnx").write_text("old")
    with pytest.raises(ParityError, match="sigma_z"):
        build.export_checkpoint(checkpoint, tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("score.onnx", "old")]


def test_replaces_a_folder_and_spares_plans(quick, short, checkpoint, tmp_path, capsys):
    out = tmp_path / "small"
    out.mkdir()
    (out / "score.onnx").write_text("old")
    (out / "score.trt.plan").write_text("plan")
    assert to_onnx.main([str(checkpoint), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == Manifest.load(out).to_dict()
    Manifest.load(out).verify_graphs(out)
    names = sorted(p.name for p in out.iterdir())
    graphs = [f"{g}{kind}.onnx" for g in ("predictive", "score") for kind in ("", ".single")]
    assert names == [MANIFEST_NAME, *graphs, "score.trt.plan"]
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_a_fresh_export_is_not_warned_about_and_changed_graphs_are(fp32, tmp_path, caplog):
    """The export has compared them with the model: no second comparison is asked for."""
    folder = tmp_path / "fresh"
    shutil.copytree(fp32.folder, folder)
    assert not (folder / engines.VERIFICATION_NAME).exists()
    Enhancer.open(folder, backend="ort", device="cpu").close()
    assert caplog.records == []

    changed = tmp_path / "changed"  # graph and manifest by hand: no comparison is of these
    shutil.copytree(fp32.folder, changed)
    model = onnx.load(changed / "score.onnx")
    model.doc_string = "changed"
    onnx.save(model, changed / "score.onnx")
    table = json.loads((changed / MANIFEST_NAME).read_text())
    table["graphs"]["score"]["sha256"] = sha256_file(changed / "score.onnx")
    (changed / MANIFEST_NAME).write_text(json.dumps(table))
    Enhancer.open(changed, backend="ort", device="cpu").close()
    (told,) = caplog.messages
    assert "has other graphs than were exported" in told
    assert f"python export/verify.py {changed}" in told


@pytest.mark.parametrize(("precision", "steps"), [("fp32", 0), ("fp16", 2)])
def test_an_engines_default_steps_are_chosen_at_its_export(
    quick, short, checkpoint, tmp_path, fp32, precision, steps
):
    out = tmp_path / "out"
    words = [str(checkpoint), "-o", str(out), "--precision", precision, "--steps", str(steps)]
    assert to_onnx.main(words) == 0
    manifest = Manifest.load(out)
    assert manifest.sampler == replace(fp32.manifest.sampler, n_steps=steps)
    macs = manifest.macs_per_second
    assert macs["total"] == macs["predictive"] + steps * macs["score"]
    # The score network was compared, whatever the default.
    assert set(manifest.parity["max_error_of_range"]) == set(
        fp32.manifest.parity["max_error_of_range"]
    )
    with Enhancer.open(out, backend="ort", device="cpu") as enhancer:
        wav = np.zeros(8000, np.float32)
        wav[4000] = 0.5
        assert enhancer.enhance(wav, 16000).nfe == 1 + steps
        assert enhancer.enhance(wav, 16000, quality="best").nfe == 4


def test_steps_below_none_are_refused(checkpoint, tmp_path, capsys):
    assert to_onnx.main([str(checkpoint), "-o", str(tmp_path / "out"), "--steps", "-1"]) == 2
    assert "is not a whole number from 0" in capsys.readouterr().err
    with pytest.raises(InputError, match="n_steps is -1"):
        build.export_checkpoint(checkpoint, tmp_path / "out", steps=-1)
    assert not (tmp_path / "out").exists()


def test_export_is_reproducible(quick, checkpoint, tmp_path, fp32):
    _, manifest = build.export_checkpoint(checkpoint, tmp_path / "again")
    assert manifest.to_dict() == fp32.manifest.to_dict()


def test_pickle_is_refused(tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1)}, path)
    assert to_onnx.main([str(path), "-o", str(tmp_path / "out")]) == 1
    assert "never loaded" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_unknown_config_key_is_refused(checkpoint, tmp_path):
    with safe_open(checkpoint, framework="pt") as file:
        meta = dict(file.metadata())
        state = {key: file.get_tensor(key) for key in file.keys()}
    config = json.loads(meta["config"])
    config["model"]["colour"] = "blue"
    path = tmp_path / "odd.safetensors"
    save_file(state, path, {**meta, "config": json.dumps(config)})
    with pytest.raises(ManifestError, match=r"config\.model\.colour"):
        build.export_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_that_is_a_file(checkpoint, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        build.export_checkpoint(checkpoint, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_unknown_precision(checkpoint, tmp_path):
    with pytest.raises(InputError, match="precision"):
        build.export_checkpoint(checkpoint, tmp_path / "out", "int8")
    assert to_onnx.main([str(checkpoint), "--precision", "int8"]) == 2


def test_missing_speech(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"gone\.wav"):
        build.export_checkpoint(checkpoint, tmp_path / "out", verify_wav=tmp_path / "gone.wav")
    assert list(tmp_path.iterdir()) == []


def test_half_overflow_is_found(fp16):
    model = prepare(fp16.model, "fp16")
    model.predictive.unet.enc1.first.mixer.value.weight.fill_(6e4)
    wav, _ = parity.speech(fp16.config)
    noise = [np.zeros((1, 1, 32, 257), np.float32)] * 3
    with parity._HalfRange() as watched:
        tlb = parity.TLB_PRESETS["none"]
        parity._torch_waveform(model, fp16.config, wav[: 31 * 128], noise, tlb)
    assert watched.first is not None


def test_unwritten_memory_is_no_overflow():
    infinite = torch.full((64,), float("inf"), dtype=torch.float16)
    del infinite
    with parity._HalfRange() as watched:
        for _ in range(10):
            torch.empty(64, dtype=torch.float16)
    assert (watched.first, watched.peak) == (None, 0.0)


def test_synthetic_speech_is_fixed():
    wav = parity.synthetic_speech(16000, 16000)
    assert wav.dtype == np.float32
    assert np.abs(wav).max() == 1
    assert np.array_equal(wav, parity.synthetic_speech(16000, 16000))


@pytest.mark.parametrize(
    "way", [[str(ROOT / "export" / "to_onnx.py")], ["-m", "dvpd.export.to_onnx"]]
)
def test_runs_without_an_installation(way, tmp_path):
    cwd = ROOT if way[0] == "-m" else tmp_path
    result = subprocess.run(
        [sys.executable, *way, str(tmp_path / "gone.safetensors")],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "no such checkpoint file" in result.stderr


def test_a_folder_that_nobody_named_keeps_the_engine_of_another_checkpoint(
    quick, checkpoint, fp32, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "engines" / "small"
    shutil.copytree(fp32.folder, place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    other = tmp_path / "other.safetensors"
    config, weights, _ = read_checkpoint(checkpoint)
    save_checkpoint(other, weights, replace(config, sampler=replace(config.sampler, alpha=0.1)))
    assert to_onnx.main([str(other)]) == 1
    told = capsys.readouterr().err
    assert "engines/small holds the engine of another checkpoint; name a folder with -o" in told
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    (place / MANIFEST_NAME).write_text("{}")  # whose it is cannot be read
    assert to_onnx.main([str(other)]) == 1
    shutil.copy2(fp32.folder / MANIFEST_NAME, place)
    monkeypatch.setattr(build, "_write", lambda *_: fp32.manifest)
    monkeypatch.setattr(build, "_install", lambda *_: None)
    assert to_onnx.main([str(checkpoint)]) == 0  # its own
    assert to_onnx.main([str(other), "-o", "engines/small"]) == 0  # asked for by name


@pytest.mark.parametrize(("asked", "taken"), [(None, 0), (2, 2)])
def test_a_score_network_that_was_never_trained_takes_no_step_unasked(
    checkpoint, tmp_path, monkeypatch, asked, taken
):
    path = tmp_path / "new.safetensors"
    config, _, _ = read_checkpoint(checkpoint)
    save_checkpoint(path, DVPD(config.model).state_dict(), config)
    given, told = [], []
    monkeypatch.setattr(build, "_write", lambda folder, config, *_: given.append(config))
    build.export_checkpoint(path, tmp_path / "out", say=told.append, steps=asked)
    assert [config.sampler.n_steps for config in given] == [taken]
    assert any("never trained" in line for line in told) == (asked is None)
