import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dvpd.runtime import InputError, cli, doctor
from dvpd.runtime.audio import OUTPUT_FORMATS
from dvpd.runtime.backends import choose
from dvpd.runtime.spec import OUTPUT_SUFFIXES

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "engines/dvpd-tiny"


@pytest.fixture
def recording(tmp_path, speech):
    path = tmp_path / "noisy.wav"
    soundfile.write(path, speech[:16000], 16000, "PCM_16")
    return path


def run(*args, engine=None, backend="ort"):
    extra = ["--model", str(engine), "--backend", backend, "--threads", "1"] if engine else []
    return cli.main(["enhance", *map(str, args), *extra])


def test_enhance(engine_shared, recording, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert run(recording, out, engine=engine_shared) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: 1.00 s of audio in ")
    assert printed.out.count("\n") == 1
    assert "ort on cpu" in printed.out
    assert soundfile.info(out).frames == 16000


def test_enhance_json_and_options(engine_shared, recording, tmp_path, capsys):
    outs = []
    tlb = '{"skip": [[4.1, 0.5], [2.0, 0.8]], "backbone": [[1.5, 1.0], [2.5, 1.0]]}'
    for index, preset in enumerate(("severe", tlb, "none")):
        out = tmp_path / f"out{index}.flac"
        code = run(
            recording,
            out,
            "--json",
            "--steps",
            2,
            "--alpha",
            0.5,
            "--seed",
            7,
            "--tlb",
            preset,
            engine=engine_shared,
        )
        assert code == 0
        result = json.loads(capsys.readouterr().out)
        assert result["nfe"] == 3
        assert result["backend"] == "ort"
        assert result["device"] == "cpu"
        assert result["clipped"] == 0
        assert result["duration_s"] == 1.0
        assert result["rtf"] == pytest.approx(result["seconds"])
        assert (result["model"], result["seed"], result["subtype"]) == ("tiny-test", 7, "PCM_16")
        outs.append(soundfile.read(out)[0])
    np.testing.assert_array_equal(outs[0], outs[1])
    assert np.abs(outs[0] - outs[2]).max() > 1e-3


def test_quality_is_a_name_for_steps(engine_shared, recording, tmp_path, capsys):
    for quality, calls in (("fast", 1), ("balanced", 2)):
        out = tmp_path / f"{quality}.wav"
        assert run(recording, out, "--json", "--quality", quality, engine=engine_shared) == 0
        assert json.loads(capsys.readouterr().out)["nfe"] == calls
    for command in ("enhance a b", "stream --rate 16000", "live"):
        words = [*command.split(), "--steps", "1", "--quality", "fast"]
        assert cli.main(words) == 2
        assert "--quality: not allowed with argument --steps" in capsys.readouterr().err


def test_an_engine_may_take_no_steps_by_default(engine, recording, tmp_path, capsys, monkeypatch):
    table = json.loads((engine / "manifest.json").read_text())
    table["sampler"]["n_steps"] = 0
    (engine / "manifest.json").write_text(json.dumps(table))
    opened = []

    def noted(*args, inner=cli.open_backend, **options):
        opened.append(options["with_steps"])
        return inner(*args, **options)

    monkeypatch.setattr(cli, "open_backend", noted)
    for words, calls in (("", 1), ("--steps 1", 2), ("--quality best --alpha 0.1", 4)):
        out = tmp_path / f"{calls}.wav"
        assert run(recording, out, "--json", *words.split(), engine=engine) == 0
        assert json.loads(capsys.readouterr().out)["nfe"] == calls
        assert run(recording, out, "--overwrite", *words.split(), engine=engine) == 0
        said = "1 network call a" if calls == 1 else f"{calls} network calls a"
        assert said in capsys.readouterr().out
    assert opened == [False] * 2 + [True] * 4  # both graphs at once where steps are asked for


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--alpha", "0.1"), "alpha 0.1 is given without steps"),
        (("--tlb", "severe"), "tlb is given without steps"),
    ],
)
def test_what_needs_steps_is_wrong_usage_without(
    engine, recording, tmp_path, capsys, monkeypatch, words, complaint
):
    table = json.loads((engine / "manifest.json").read_text())
    table["sampler"]["n_steps"] = 0
    (engine / "manifest.json").write_text(json.dumps(table))
    monkeypatch.setattr(cli, "open_backend", lambda *args, **kwargs: pytest.fail("loaded"))
    assert run(recording, tmp_path / "no.wav", *words, engine=engine) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "no.wav").exists()


def test_phase_rounds_of_a_causal_model_are_wrong_usage(engine_causal, recording, tmp_path, capsys):
    words = (recording, tmp_path / "no.wav", "--phase-rounds", "1")
    assert run(*words, engine=engine_causal) == 2
    assert "is causal" in capsys.readouterr().err


def test_a_name_that_begins_with_a_dash_gets_a_hint(recording, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-name.wav").write_bytes(recording.read_bytes())
    assert cli.main(["enhance", "-name.wav", "out.wav"]) == 2
    assert "write ./-name.wav" in capsys.readouterr().err
    assert cli.main(["enhance", "-other.wav", "out.wav"]) == 2
    assert "write ./" not in capsys.readouterr().err


def test_default_engine_from_the_environment(engine_shared, recording, tmp_path, monkeypatch):
    monkeypatch.setenv("DVPD_ENGINE", str(engine_shared))
    assert run(recording, tmp_path / "out.wav", "--steps", 0) == 0


def test_no_engine(recording, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DVPD_ENGINE", raising=False)
    monkeypatch.setattr("dvpd.runtime.engines.engine_roots", lambda: [])
    assert run(recording, tmp_path / "out.wav") == 1
    assert "no engine folder found" in capsys.readouterr().err


def test_default_engine_prefers_base(engine_shared, tmp_path, monkeypatch):
    from dvpd.runtime import engines

    monkeypatch.delenv("DVPD_ENGINE", raising=False)
    monkeypatch.setattr(engines, "engine_roots", lambda: [tmp_path])
    for name in ("dvpd-tiny", "dvpd-base"):
        (tmp_path / name).symlink_to(engine_shared)
        assert engines.default_engine() == tmp_path / name
    assert engines.find_engines() == [tmp_path / "dvpd-base", tmp_path / "dvpd-tiny"]


def test_default_engine_of_live_commands_prefers_causal_models(
    engine_shared, tmp_path, monkeypatch
):
    from dvpd.runtime import engines

    monkeypatch.delenv("DVPD_ENGINE", raising=False)
    monkeypatch.setattr(engines, "engine_roots", lambda: [tmp_path])
    for name in ("dvpd-tiny", "dvpd-live-tiny", "dvpd-live"):
        (tmp_path / name).symlink_to(engine_shared)
        assert engines.find_live_engine() == tmp_path / name
        assert engines.default_engine() == tmp_path / "dvpd-tiny"
    assert engines.find_live_engine("dvpd-tiny") == tmp_path / "dvpd-tiny"


def test_batch_into_a_folder(engine_shared, recording, tmp_path, capsys):
    folder = tmp_path / "out"
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no recording")
    assert run(recording, bad, folder, engine=engine_shared) == 2
    folder.mkdir()
    capsys.readouterr()
    assert run(recording, bad, folder, "--json", engine=engine_shared) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["failed"] == 1
    assert [set(f) >= {"error"} for f in result["files"]] == [False, True]
    assert [p.name for p in folder.iterdir()] == ["noisy.wav"]
    assert run(recording, recording, folder, engine=engine_shared) == 2
    assert run(recording, recording.parent, engine=engine_shared) == 1  # onto itself


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["paint"],
        ["enhance"],
        ["enhance", "in.wav"],
        ["enhance", "a", "b", "--steps", "-1"],
        ["enhance", "a", "b", "--steps", "x"],
        ["enhance", "a", "b", "--alpha", "2"],
        ["enhance", "a", "b", "--alpha", "nan"],
        ["enhance", "a", "b", "--seed", "-1"],
        ["enhance", "a", "b", "--threads", "0"],
        ["enhance", "a", "b", "--backend", "tf"],
        ["doctor", "--loud"],
    ],
)
def test_wrong_usage(args, capsys):
    assert cli.main(args) == 2
    assert "usage: dvpd" in capsys.readouterr().err


@pytest.mark.parametrize("tlb", ["loud", "{", '{"skip": 1}', '{"skip":[[1]],"backbone":[[1]]}'])
def test_wrong_tlb(engine_shared, recording, tmp_path, tlb, capsys):
    assert run(recording, tmp_path / "o.wav", "--tlb", tlb, engine=engine_shared) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_failures_are_one_line(engine, recording, tmp_path, capsys):
    out = tmp_path / "o.wav"
    cases = [
        (dict(engine=engine), [tmp_path / "none.wav", out, "--device", "cpu"]),
        (dict(engine=tmp_path / "nowhere"), [recording, out]),
        (dict(engine=engine), [recording, recording, "--device", "cpu"]),
        (dict(engine=engine), [recording, out, "--device", "tpu"]),
    ]
    for options, args in cases:
        assert run(*args, **options) == 1
        printed = capsys.readouterr()
        assert printed.err.startswith("dvpd: ")
        assert printed.err.count("\n") == 1
        assert run(*args, "--json", **options) == 1
        assert json.loads(capsys.readouterr().out)["error"]
    (engine / "score.onnx").write_bytes(b"")
    assert run(recording, out, engine=engine) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert not out.exists()


def test_torch_runs_the_checkpoint_beside_the_engine(recording, tmp_path, capsys):
    pytest.importorskip("safetensors")
    outs = {}
    for backend in ("ort", "torch"):
        out = tmp_path / f"{backend}.wav"
        assert run(recording, out, "--device", "cpu", engine=TINY, backend=backend) == 0
        assert f"{backend} on cpu" in capsys.readouterr().out
        outs[backend] = soundfile.read(out)[0]
    scale = np.abs(outs["ort"]).max()
    assert scale > 0.05
    assert np.abs(outs["ort"] - outs["torch"]).max() <= 1e-3 * scale


def test_torch_without_its_package_or_the_checkpoint(
    engine_shared, recording, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out.wav"
    pytest.importorskip("torch")
    assert run(recording, out, engine=engine_shared, backend="torch") == 1
    assert "needs the checkpoint that it was exported from" in capsys.readouterr().err
    monkeypatch.setattr(choose, "installed", lambda name: name == "ort")
    assert run(recording, out, engine=TINY, backend="torch") == 1
    error = capsys.readouterr().err
    assert "'torch' needs the package torch: pip install 'dvpd[train]'" in error
    assert not out.exists()


def test_help_names_the_program(capsys):
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: dvpd ")


def test_doctor(capsys, monkeypatch, engine_shared):
    monkeypatch.setenv("DVPD_ENGINE", str(engine_shared))
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ready"]
    assert report["packages"]["numpy"] == np.__version__
    assert report["libsndfile"]
    assert report["system"]["cpu"]["usable_cores"] >= 1
    assert {"backend": "ort", "device": "cpu", "usable": True, "missing": None, "fix": None} in (
        report["backends"]
    )
    assert any(e["folder"] == str(engine_shared) and e["usable"] for e in report["engines"])
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("Python", "CPU", "Packages", "Backends", "Engines", "Ready to enhance"):
        assert word in text


def test_doctor_names_problems_and_cures(monkeypatch, engine, capsys):
    (engine / "score.onnx").write_bytes(b"x")
    monkeypatch.setattr(doctor, "find_engines", lambda: [engine])
    monkeypatch.setattr(doctor, "installed", lambda name: False)
    monkeypatch.setattr(doctor, "ort_conflict", lambda: "both there: remove one")
    monkeypatch.setattr(doctor, "_sound_library", lambda: None)
    monkeypatch.setattr(doctor, "_version", lambda module: None if module == "soxr" else "1")
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    for word in (
        "both there",
        "SHA-256",
        "pip install 'dvpd[cpu]'",
        "soxr is missing",
        "libsndfile",
        "Not ready",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("providers", "starts", "missing"),
    [
        (["CPUExecutionProvider"], True, "no CUDA provider"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], False, "cannot load its CUDA"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], True, None),
    ],
)
def test_doctor_on_a_gpu(monkeypatch, providers, starts, missing):
    monkeypatch.setattr(doctor, "_ort_providers", lambda: providers)
    monkeypatch.setattr(doctor, "_ort_starts", lambda p: p.startswith("CPU") or starts)
    rows = [r for r in doctor._backends(1) if r["device"] == "cuda"]
    assert [r["usable"] for r in rows] == [missing is None]
    assert missing is None or missing in rows[0]["missing"]


def test_doctor_proves_that_a_provider_starts():
    assert doctor._ort_starts("CPUExecutionProvider")
    assert not doctor._ort_starts("NoSuchExecutionProvider")


def test_doctor_without_engines(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "find_engines", list)
    assert cli.main(["doctor"]) == 1
    assert "no engine folder" in capsys.readouterr().out


def test_module_entry_point(engine_shared, recording, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "dvpd.runtime",
            "enhance",
            recording,
            tmp_path / "o.wav",
            "--model",
            engine_shared,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "auto chose backend" in done.stderr
    assert soundfile.info(tmp_path / "o.wav").frames == 16000
    usage = subprocess.run(
        [sys.executable, "-m", "dvpd.runtime"], cwd=ROOT, capture_output=True, text=True
    )
    assert usage.returncode == 2
    assert usage.stderr.startswith("usage: python -m dvpd.runtime")


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "scipy", "onnx"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import dvpd.runtime
import dvpd.runtime.spec, dvpd.runtime.schedule
assert not {"soundfile", "soxr", "onnxruntime", "openvino"} & set(sys.modules), "too much imported"
from dvpd.runtime import Enhancer
from dvpd.runtime.cli import main
raise SystemExit(main(["enhance", *sys.argv[1:]]))
"""


def test_runs_without_torch_and_scipy(engine_shared, recording, tmp_path):
    for backend in ("ort", "auto"):
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                BLOCKED,
                recording,
                tmp_path / "o.wav",
                "--model",
                engine_shared,
                "--backend",
                backend,
                "--overwrite",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_terminated_run_leaves_nothing(engine_shared, tmp_path, speech):
    source = tmp_path / "in.wav"
    soundfile.write(source, np.tile(speech, 300), 16000)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dvpd.runtime",
            "enhance",
            source,
            tmp_path / "o.wav",
            "--model",
            engine_shared,
            "--backend",
            "ort",
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(os.listdir(tmp_path)) == 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert "interrupted" in err
    assert os.listdir(tmp_path) == ["in.wav"]


def test_nothing_is_replaced_without_permission(engine_shared, recording, tmp_path, capsys):
    """A shell pattern that matched two files, and the second became the output."""
    other = tmp_path / "second.wav"
    other.write_bytes(b"the only take")
    other.chmod(0o400)
    assert run(recording, other, engine=engine_shared) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert other.read_bytes() == b"the only take"
    assert run(recording, other, "--overwrite", "--steps", 0, engine=engine_shared) == 0
    assert soundfile.info(other).frames == 16000


def test_loading_begins_for_every_output_that_can_be_written():
    assert set(OUTPUT_SUFFIXES) == set(OUTPUT_FORMATS)


def test_outputs_are_checked_before_a_model_is_loaded(
    engine_shared, recording, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cli, "open_backend", lambda *a, **k: pytest.fail("a model was loaded"))
    (tmp_path / "there.wav").write_bytes(b"x")
    for out in ("o.mp3", "o", "there.wav", "nowhere/o.wav"):
        assert run(recording, tmp_path / out, engine=engine_shared) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert run(tmp_path / "none.wav", tmp_path / "o.wav", engine=engine_shared) == 1
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "noisy.wav").write_bytes(b"x")
    assert run(recording, folder, engine=engine_shared) == 1


def test_what_cannot_be_written_in_its_format_becomes_wav(engine_shared, tmp_path, speech, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    sources = []
    for name, container, subtype in (
        ("a.mp3", "MP3", "MPEG_LAYER_III"), ("b.aiff", "AIFF", "PCM_24"), ("c.w64", "W64", "FLOAT"),
        ("d.caf", "CAF", "PCM_16"), ("E.FLAC", "FLAC", "PCM_16"),
    ):  # fmt: skip
        soundfile.write(tmp_path / name, speech[:16000], 16000, subtype, format=container)
        sources.append(tmp_path / name)
    assert run(*sources, folder, "--steps", 0, engine=engine_shared) == 0
    assert "a.mp3: cannot be written in its own format; it becomes" in capsys.readouterr().err
    assert sorted(p.name for p in folder.iterdir()) == [
        "E.FLAC",
        "a.wav",
        "b.wav",
        "c.wav",
        "d.wav",
    ]
    assert soundfile.info(folder / "b.wav").subtype == "PCM_24"
    (tmp_path / "a.aiff").write_bytes((tmp_path / "b.aiff").read_bytes())
    assert run(sources[0], tmp_path / "a.aiff", folder, engine=engine_shared) == 2
    assert "would share the output" in capsys.readouterr().err


def test_one_bad_file_does_not_end_a_batch(engine_shared, recording, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    odd = tmp_path / os.fsdecode(b"caf\xe9.wav")
    broken = tmp_path / "broken.wav"
    for path in (odd, broken):
        path.write_bytes(recording.read_bytes())
    from dvpd.runtime import Enhancer

    real = Enhancer.enhance_file

    def enhance_file(self, source, *args, **options):
        if "broken" in str(source):
            raise ZeroDivisionError("odd")
        return real(self, source, *args, **options)

    monkeypatch.setattr(Enhancer, "enhance_file", enhance_file)
    args = [broken, odd, recording, folder, "--steps", 0]
    assert run(*args, engine=engine_shared) == 1
    err = capsys.readouterr().err
    assert err.count("unexpected error (ZeroDivisionError") == 1
    assert "Traceback" not in err
    assert len(list(folder.iterdir())) == 2


def test_ctrl_c_ends_a_batch(engine_shared, recording, tmp_path, monkeypatch, capsys):
    from dvpd.runtime import Enhancer

    other = tmp_path / "other.wav"
    other.write_bytes(recording.read_bytes())
    folder = tmp_path / "out"
    folder.mkdir()
    calls = []

    def enhance_file(self, source, *args, **options):
        calls.append(source)
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise InputError("the engine failed") from interrupt

    monkeypatch.setattr(Enhancer, "enhance_file", enhance_file)
    assert run(recording, other, folder, engine=engine_shared) == 130
    assert len(calls) == 1
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_ctrl_c_while_packages_are_imported(tmp_path):
    """Before the work begins: no traceback, and nothing that swallows it."""
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(20)
            except KeyboardInterrupt:
                raise ImportError("swallowed")
sys.meta_path.insert(0, Finder())
from dvpd.__main__ import process
process()
"""
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job's is ignored
    try:
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_low_memory_is_for_recordings_by_name(engine_shared, recording, tmp_path, capsys):
    outs = [tmp_path / "usual.wav", tmp_path / "low.wav"]
    assert run(recording, outs[0], engine=engine_shared) == 0
    assert run(recording, outs[1], "--low-memory", engine=engine_shared) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    (tmp_path / "outs").mkdir()
    assert run(tmp_path, tmp_path / "outs", "--low-memory", engine=engine_shared) == 2
    assert "--jobs 1 --threads 1" in capsys.readouterr().err


def test_salvage(engine_shared, recording, tmp_path, capsys):
    recording.write_bytes(recording.read_bytes()[:-10000])
    out = tmp_path / "o.wav"
    assert run(recording, out, engine=engine_shared) == 1
    assert "promises 16000 samples, 11000 are there" in capsys.readouterr().err
    assert run(recording, out, "--salvage", "--json", "--steps", 0, engine=engine_shared) == 0
    printed = capsys.readouterr()
    assert "11000 are there" in printed.err
    assert "11000 are there" in json.loads(printed.out)["gaps"][0]
    assert soundfile.info(out).frames == 11000


def test_strength(engine_shared, recording, tmp_path):
    names = {
        "0": ["--mix", "0"],
        "limit": ["--max-attenuation", "6"],
        "zero": ["--max-attenuation", "0"],
    }
    for name, options in names.items():
        out = tmp_path / f"{name}.wav"
        assert run(recording, out, "--steps", 0, *options, engine=engine_shared) == 0
    read = lambda name: soundfile.read(tmp_path / f"{name}.wav", dtype="int16")[0]  # noqa: E731
    np.testing.assert_array_equal(read("0"), read("noisy"))
    np.testing.assert_array_equal(read("zero"), read("noisy"))
    ratio = np.sqrt(
        (read("limit").astype(float) ** 2).mean() / (read("noisy").astype(float) ** 2).mean()
    )
    assert 10 ** (-6 / 20) < ratio < 0.6


def test_a_deleted_working_folder(engine_shared, recording, tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(recording, "o.wav", engine=engine_shared) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert run(recording, tmp_path / "o.wav", "--steps", 0, engine=engine_shared) == 0


def test_version_and_completion(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dvpd 0.")
    pytest.importorskip("shtab", reason="shtab is not installed: dvpd[completion]")
    for shell in cli.SHELLS:
        assert cli.main(["completion", shell]) == 0
        assert "predict-device" in capsys.readouterr().out


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "dvpd", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout[:6]) == (0, "dvpd 0")
