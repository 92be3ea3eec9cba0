"""The example programs do what they say, on short recordings and small models."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dvpd.runtime import Enhancer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TINY = ROOT / "engines" / "dvpd-tiny"
SAME_SOUND_DB = 60.0  # the other side was written with 16 bits
MICRO = (
    "[model]\nname='micro'\nchannels=4\nblocks=1\nstate=2\ndecoder_channels=2\nembedding=4\n"
    "ffn_factor=1.0\n[data]\ncrop_samples=4096\n[train]\nbatch_size=2\n"
)

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("DVPD_ENGINE", str(TINY))


@pytest.fixture
def recordings(tmp_path):
    """A folder of two short recordings, one of them in a folder below."""
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    wav, rate = soundfile.read(EXAMPLES / "noisy.flac", start=48000, frames=8000)
    soundfile.write(folder / "one.wav", wav, rate)
    soundfile.write(folder / "below" / "two.flac", np.stack([wav, wav], 1), rate)
    return folder


def run(name: str, *args: object) -> int:
    return importlib.import_module(name).main([str(arg) for arg in args])


def energy(path: Path) -> float:
    return float(np.square(soundfile.read(path)[0]).sum())


def test_there_are_examples_and_each_says_what_it_is():
    found = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert len(found) >= 7
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""')
        assert f"python examples/{path.name}" in text


def test_enhance_array(recordings, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert run("enhance_array", recordings / "one.wav", out, "--steps", 0) == 0
    assert "Enhanced(0.50 s" in capsys.readouterr().out
    assert 0 < energy(out) < energy(recordings / "one.wav")


def test_enhance_long_file_makes_its_own_recording(tmp_path, capsys, monkeypatch):
    long = importlib.import_module("enhance_long_file")
    long.make_long(tmp_path / "long.flac", 0.5)
    assert soundfile.info(tmp_path / "long.flac").duration == 30.0
    assert run("enhance_long_file", "--minutes", 0.02, "--steps", 0) == 0
    assert "1 s of audio" in capsys.readouterr().out


def test_enhance_folder_goes_on_after_a_bad_file_and_again_later(recordings, tmp_path, capsys):
    (recordings / "bad.wav").write_bytes(b"no recording")
    out = tmp_path / "out"
    assert run("enhance_folder", recordings, out, "--steps", 0) == 1
    assert "bad.wav" in capsys.readouterr().err
    assert soundfile.info(out / "below" / "two.flac").channels == 2
    (recordings / "bad.wav").unlink()
    before = (out / "one.wav").stat().st_mtime_ns
    assert run("enhance_folder", recordings, out, "--steps", 0) == 0
    assert (out / "one.wav").stat().st_mtime_ns == before


def test_compare_settings(capsys, monkeypatch):
    compare = importlib.import_module("compare_settings")
    monkeypatch.setattr(compare, "SETTINGS", ({"steps": 0}, {"steps": 1}))
    assert run("compare_settings", "--models", TINY, "--seconds", 1) == 0
    noisy, alone, one = capsys.readouterr().out.splitlines()[1:]
    assert alone.startswith("dvpd-tiny, steps 0")
    assert one.startswith("dvpd-tiny, steps 1")
    assert float(alone.split()[-2]) > float(noisy.split()[-2])  # SI-SDR, dB


def test_train_on_own_data(tmp_path):
    pytest.importorskip("torch")
    config = tmp_path / "micro.toml"
    config.write_text(MICRO)
    out = tmp_path / "own"
    words = ("--out", out, "--config", config, "--from-nothing", "--steps", 1, "--no-export")
    assert run("train_on_own_data", *words) == 0
    assert (out / "train" / "last.safetensors").is_file()
    for kind in ("speech", "noise"):
        assert energy(out / "data" / kind / "own" / "example.flac") > 0


@pytest.fixture
def rig(made_once, tmp_path, monkeypatch):
    """An engine folder with plans and a pretended GPU, from the tests of the backend."""
    pytest.importorskip("onnx")
    there = next((ROOT / "tests" / "runtime").rglob("test_trt.py")).parent
    for folder in {ROOT / "tests" / "runtime", there}:
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_graphs, test_trt = map(importlib.import_module, ("tiny_graphs", "test_trt"))
    rig = test_trt.Rig(tiny_graphs.write_engine(tmp_path / "engine"))
    monkeypatch.setattr(
        Enhancer, "open", classmethod(lambda cls, *_, **__: cls(rig.manifest, rig.open()))
    )
    return rig


def test_tensorrt_plan_builds_and_uses_it(rig, recordings, tmp_path, monkeypatch, capsys):
    built = []
    example = importlib.import_module("tensorrt_plan")
    monkeypatch.setattr(example.build_engine, "main", lambda words: built.append(words) or 0)
    rig.build()
    out = tmp_path / "out.wav"
    assert run("tensorrt_plan", recordings / "one.wav", out, "--model", rig.folder) == 0
    assert built == [[str(rig.folder), "--backend", "tensorrt"]]
    assert "on cuda:0" in capsys.readouterr().out
    assert rig.gpu.calls.count("cudaStreamSynchronize") > 0
    assert energy(out) > 0


def test_tensorrt_plan_stops_where_nothing_can_be_built(tmp_path, capsys):
    assert run("tensorrt_plan", "in.wav", tmp_path / "out.wav", "--model", tmp_path) == 1
    assert not (tmp_path / "out.wav").exists()


def test_pycuda_arrays_feed_the_sampler_and_take_its_result(rig, recordings, tmp_path, monkeypatch):
    uploads = []

    def to_gpu(array: np.ndarray) -> types.SimpleNamespace:
        given = rig.gpu.put(np.ascontiguousarray(array))
        pointer = given.__cuda_array_interface__["data"][0]
        given.get = lambda: rig.gpu.array(pointer, array.shape, array.dtype).copy()
        uploads.append(array.shape)
        return given

    package = types.ModuleType("pycuda")
    package.gpuarray = types.SimpleNamespace(to_gpu=to_gpu)
    package.autoprimaryctx = types.ModuleType("pycuda.autoprimaryctx")
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.autoprimaryctx", package.autoprimaryctx)
    rig.build()
    out = tmp_path / "out.wav"
    assert run("pycuda_arrays", recordings / "one.wav", out, "--model", rig.folder) == 0
    assert [shape[1] for shape in uploads] == [3, 2]  # features in, real and imaginary part out
    assert "D2D" in {kind for kind, _ in rig.gpu.copies}  # not through the host
    monkeypatch.undo()
    wav, rate = soundfile.read(recordings / "one.wav", dtype="float32")
    with Enhancer.open(rig.folder, "ort", "cpu", 1) as enhancer:
        wanted = enhancer.enhance(wav, rate).wav
    error = np.square(soundfile.read(out)[0] - wanted).sum()
    assert 10 * np.log10(np.square(wanted).sum() / error) > SAME_SOUND_DB


def test_errors_of_examples_are_one_line(tmp_path, capsys):
    cut = tmp_path / "cut.wav"
    soundfile.write(cut, np.zeros(16000), 16000)
    cut.write_bytes(cut.read_bytes()[:-9000])
    out = tmp_path / "out.wav"
    for words, code, message in (
        (["enhance_folder", tmp_path / "nowhere", tmp_path], 1, "nowhere: not a folder; give one"),
        (["enhance_array", cut, out], 1, "promises 16000 samples, 11500 are there"),
        (["enhance_array", tmp_path / "none.wav", out], 1, "none.wav: No such file"),
        (["enhance_array", cut, out, "--steps", "-1"], 2, "'-1' is not a whole number from 0"),
        (["enhance_long_file", "--minutes", "inf"], 2, "'inf' is not a number above 0"),
        (["compare_settings", "--seconds", "0"], 2, "'0' is not a number above 0"),
    ):
        assert run(*words) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.splitlines()[-1].startswith("dvpd: ") or code == 2
        assert not out.exists()
