"""Evaluation of a model on a folder of pairs: the pieces, and the command line on tracked clips."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from dvpd.checkpoint import save_checkpoint
from dvpd.config import Config
from dvpd.config.train import TrainConfig
from dvpd.evaluate import (
    PairFile,
    SharedBackend,
    Task,
    enhance_systems,
    evaluate_pairs,
    find_pairs,
    main,
    measure_set,
    quick_evaluation,
    read_pair,
    sampler_grid,
    torch_enhancer,
)
from dvpd.model import DVPD
from dvpd.quality.metrics import si_sdr
from dvpd.quality.models import System, open_model
from dvpd.quality.pauses import BLIND_MEASURES, PAUSE_MEASURES
from dvpd.quality.report import REPORT_FILES
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.noise import frame_noise
from dvpd.sde import sample
from dvpd.spectral import compressed_noisy, istft_from_compressed

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "tests" / "assets"
ENGINE = ROOT / "engines" / "dvpd-tiny"
# whole-model float32 against a NumPy front end in float64
WAVEFORM_TOLERANCE = 1e-4
N_SAMPLES = 40000  # of the clips used here: enough speech for every measure


def write_pair(folder, name, noisy, clean, rate=16000, subtype="PCM_16"):
    for side, wav in (("noisy", noisy), ("clean", clean)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        suffix = "wav" if subtype == "FLOAT" else "flac"
        sf.write(folder / side / f"{name}.{suffix}", wav, rate, subtype=subtype)


def clip(i):
    return [
        sf.read(ASSETS / f"clip{i}_{side}.flac", dtype="float32")[0][:N_SAMPLES]
        for side in ("noisy", "clean")
    ]


@pytest.fixture
def pair_set(tmp_path):
    for i in range(2):
        write_pair(tmp_path / "dev" / "few", f"clip{i}", *clip(i))
    (tmp_path / "dev" / "pairs.tsv").write_text(
        "set\tfile\tdegradation\nfew\tclip0.flac\tsnr 0\nother\tclip1.flac\twrong\n"
    )
    return tmp_path / "dev" / "few"


@pytest.fixture
def config(small_config):
    return Config(model=small_config)


def test_pairs_and_groups(pair_set):
    pairs = find_pairs(pair_set)
    assert [(p.name, p.group) for p in pairs] == [("clip0", "snr 0"), ("clip1", "")]
    noisy, clean = read_pair(pairs[0])
    assert noisy.shape == clean.shape


def test_bad_sets_are_refused(pair_set, tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        find_pairs(pair_set.parent)
    with pytest.raises(InputError, match="not a folder"):
        find_pairs(tmp_path / "nowhere")
    extra = pair_set / "noisy" / "extra.flac"
    shutil.copy(pair_set / "noisy" / "clip0.flac", extra)
    with pytest.raises(InputError, match="such as extra"):
        find_pairs(pair_set)
    extra.rename(pair_set / "noisy" / "clip0.wav")
    with pytest.raises(InputError, match="one file of a name"):
        find_pairs(pair_set)
    for side in ("noisy", "clean"):
        shutil.rmtree(pair_set / side)
        (pair_set / side).mkdir()
    with pytest.raises(InputError, match="holds no"):
        find_pairs(pair_set)


SPEECH, HISS = (np.random.default_rng(i).normal(0, 0.1, 16000).astype(np.float32) for i in (0, 1))
BAD_PAIRS = {
    "lengths": (HISS[:100], SPEECH, 16000, "noisy has 100 samples, clean 16000"),
    "rate": (HISS, SPEECH, 8000, "8000 Hz"),
    "stereo": (np.stack([HISS, HISS], 1), np.stack([SPEECH, SPEECH], 1), 16000, "2 channels"),
    "empty": (HISS[:0], SPEECH[:0], 16000, "holds no samples"),
    "nan": (np.where(np.arange(16000) == 9, np.nan, HISS), SPEECH, 16000, "holds NaN"),
}


@pytest.mark.parametrize("kind", BAD_PAIRS)
def test_bad_pairs_are_refused(kind, tmp_path):
    noisy, clean, rate, message = BAD_PAIRS[kind]
    write_pair(tmp_path, "x", noisy, clean, rate, "FLOAT")
    with pytest.raises(InputError, match=message):
        read_pair(find_pairs(tmp_path)[0])


def test_where_somebody_speaks_is_read_from_the_set(pair_set):
    table = pair_set / "pairs.tsv"
    table.write_text(
        "file\tsnr_db\tspeech_samples\nclip0.flac\t10\t100-2000 3000-9000\nclip1.flac\t\t\n"
    )
    one, two = find_pairs(pair_set)
    assert (one.group, one.speech) == ("snr 10", ((100, 2000), (3000, 9000)))
    assert (two.group, two.speech) == ("", ())  # nobody speaks, as opposed to not known
    for wrong, message in (("100+2000", "speech_samples is '100.2000'"), ("0-99999", "to 99999")):
        table.write_text(f"file\tspeech_samples\nclip0.flac\t{wrong}\n")
        with pytest.raises(InputError, match=message):
            read_pair(find_pairs(pair_set)[0])


def test_recordings_without_clean_ones_are_a_set_where_asked_for(pair_set, tmp_path):
    alone = find_pairs(pair_set / "noisy", alone=True)
    assert [(pair.name, pair.clean, pair.speech) for pair in alone] == [
        ("clip0", None, None),
        ("clip1", None, None),
    ]
    noisy, clean = read_pair(alone[0])
    assert clean is None
    assert len(noisy) == N_SAMPLES
    with pytest.raises(InputError, match="expected noisy/ and clean/"):
        find_pairs(pair_set / "noisy")
    with pytest.raises(InputError, match="neither noisy/ and clean/ nor recordings"):
        find_pairs(tmp_path, alone=True)
    assert find_pairs(pair_set, alone=True) == find_pairs(pair_set)


def test_unreadable_file_is_refused(pair_set):
    (pair_set / "noisy" / "clip0.flac").write_bytes(b"")
    with pytest.raises(InputError, match=r"clip0\.flac cannot be read"):
        read_pair(find_pairs(pair_set)[0])


def test_a_model_that_is_not_there_is_told_from_an_engines_name():
    with pytest.raises(InputError, match=r"dvpd-tiny: is not there; expected .* engines/dvpd-tiny"):
        open_model("dvpd-tiny")


def test_untrained_model_returns_its_input(pair_set, config):
    enhancer = torch_enhancer(DVPD(config.model).eval(), config)
    noisy, _ = read_pair(find_pairs(pair_set)[0])
    outputs = enhance_systems(enhancer, noisy, ())
    assert list(outputs) == ["noisy", "predictive"]
    np.testing.assert_allclose(outputs["predictive"], noisy, atol=WAVEFORM_TOLERANCE)


class Counted:
    """A backend that counts its calls."""

    def __init__(self, inner):
        self.inner, self.calls = inner, {"predict": 0, "score": 0}
        self.name, self.device = inner.name, inner.device

    def predict(self, *args):
        self.calls["predict"] += 1
        return self.inner.predict(*args)

    def score(self, *args):
        self.calls["score"] += 1
        return self.inner.score(*args)

    def close(self):
        self.inner.close()


def test_equals_the_reference_sampler(pair_set, config, small_model):
    noisy, _ = read_pair(find_pairs(pair_set)[0])
    noisy = noisy[:32640]  # one window of 256 frames: no padding
    enhancer = torch_enhancer(small_model, config)
    counted = enhancer.backend.inner = Counted(enhancer.backend.inner)
    systems = sampler_grid(enhancer.manifest)
    outputs = enhance_systems(enhancer, noisy, systems, seed=4)
    assert counted.calls == {"predict": 1, "score": 3}  # the predictive pass is shared
    peak = float(np.abs(noisy).max())
    features = compressed_noisy(torch.from_numpy(noisy / peak)[None])
    noise = [torch.from_numpy(frame_noise(4, i, 0, 256))[None, None] for i in range(3)]
    full, predicted = sample(small_model, features, noise)
    for name, spec in (("full", full), ("predictive", predicted)):
        expected = istft_from_compressed(spec, len(noisy))[0].numpy() * peak
        scale = np.abs(expected).max()
        np.testing.assert_allclose(outputs[name], expected, atol=WAVEFORM_TOLERANCE * scale)


def test_alphas_share_the_sampler_and_equal_separate_runs(pair_set, config, small_model):
    noisy = read_pair(find_pairs(pair_set)[0])[0][:8000]
    enhancer = torch_enhancer(small_model, config)
    counted = enhancer.backend.inner = Counted(enhancer.backend.inner)
    systems = sampler_grid(
        enhancer.manifest, alphas=(0.2, 0.7), tlbs=("mild",), steps=(1, 2), t_rs=(0.1, 0.2)
    )
    assert len(systems) == 16
    outputs = enhance_systems(enhancer, noisy, systems)
    # two start times and two presets, one step and two steps, whatever alpha is; the first score
    # of one and of two steps starts from the same state
    assert counted.calls == {"predict": 1, "score": 2 * 2 * 2}
    for system in systems[::3]:
        manifest = enhancer.manifest
        fresh = torch_enhancer(small_model, config)
        fresh.manifest = replace(manifest, sampler=replace(manifest.sampler, t_rs=system.t_rs))
        fresh.backend = counted.inner  # nothing is remembered
        tlb = None if system.tlb == "off" else system.tlb
        alone = fresh.enhance(noisy, 16000, steps=system.steps, alpha=system.alpha, tlb=tlb)
        # this one runs on the device, where sums are in float32 throughout
        np.testing.assert_allclose(outputs[system.name], alone.wav, atol=1e-6)
    alpha = {s.name: outputs[s.name] for s in systems if "steps=1 t_rs=0.1" in s.name}
    assert len({wav.tobytes() for wav in alpha.values()}) == 4


def test_shared_backend_tells_recordings_apart():
    class Echo:
        name = device = "echo"

        def predict(self, noisy):
            return noisy, [noisy]

        def score(self, xt, t, feats, *tlb):
            return xt + feats[0]

    one, two = np.ones((1, 1), np.float32), np.full((1, 1), 2, np.float32)
    shared = SharedBackend(Echo())
    feats = [shared.predict(wav)[1] for wav in (one, two)]
    scores = [shared.score(one, one, f, one, one).item() for f in (*feats, *feats)]
    assert scores == [2.0, 3.0, 2.0, 3.0]


def test_grid_of_samplers():
    manifest = Manifest.load(ENGINE)
    default = manifest.sampler
    assert default.n_steps == 0  # of the shipped engine: its score network is measured anyway
    assert sampler_grid(manifest) == (System("full", 1, default.alpha, "off", default.t_rs),)
    three = replace(manifest, sampler=replace(default, n_steps=3))
    assert sampler_grid(three) == (System("full", 3, default.alpha, "off", default.t_rs),)
    assert sampler_grid(manifest, steps=(0,)) == ()
    names = [s.name for s in sampler_grid(manifest, tlbs=("all",))]
    assert names == ["full", "full tlb=severe", "full tlb=moderate", "full tlb=mild"]
    names = [s.name for s in sampler_grid(manifest, steps=(0, 1, 3), alphas=(0.4,))]
    assert names == ["full steps=1", "full steps=3"]
    with pytest.raises(InputError, match=r"tlb is 'strong'; expected off, severe"):
        sampler_grid(manifest, tlbs=("strong",))
    for wrong in ({"alphas": (1.5,)}, {"t_rs": (0.0,)}, {"steps": (-1,)}):
        with pytest.raises(InputError, match="expected"):
            sampler_grid(manifest, **wrong)


def test_non_finite_output_is_an_error(pair_set, config):
    model = DVPD(config.model).eval()
    with torch.no_grad():
        next(model.predictive.parameters()).fill_(float("nan"))
    noisy, _ = read_pair(find_pairs(pair_set)[0])
    with pytest.raises(BackendError, match="non-finite"):
        enhance_systems(torch_enhancer(model, config), noisy, ())


def test_quick_evaluation(pair_set, config, small_model):
    pytest.importorskip("pesq")
    run = quick_evaluation(pair_set, 5)
    figures = run(small_model, config)
    assert figures["score"] == figures["pesq_full"]
    none = replace(config, sampler=replace(config.sampler, n_steps=0))  # of one step, then
    figures = run(small_model, none)
    assert figures["score"] == figures["pesq_full"] != figures["pesq_predictive"]
    predictive = Config(model=config.model, train=TrainConfig(branches="predictive"))
    figures = run(small_model, predictive)
    assert figures["score"] == figures["pesq_predictive"]
    assert "pesq_full" not in figures


def test_same_model_same_figures_as_in_process(pair_set, config, small_model, tmp_path):
    """A checkpoint measured in another process, against the model in this one."""
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, small_model.state_dict(), config)
    enhancer = torch_enhancer(small_model, config)
    pairs = find_pairs(pair_set)
    alone = evaluate_pairs(enhancer, pairs, steps=1, metrics=("si_sdr",))
    task = Task(
        str(path),
        device="cpu",
        systems=sampler_grid(enhancer.manifest, steps=(1,)),
        metrics=("si_sdr",),
    )
    records, failures = measure_set(task, pairs)
    assert not failures
    for record, other in zip(records, alone, strict=True):
        assert {k: record[k] for k in ("name", "group", "sha256")} == {
            k: other[k] for k in ("name", "group", "sha256")
        }
        for system in ("noisy", "predictive", "full"):
            # threads may add in another order
            assert record["figures"][system] == pytest.approx(other["figures"][system], abs=1e-3)


class Deadly(PairFile):
    """A pair that ends the process it arrives in."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_dead_process_costs_one_file(pair_set):
    task = Task(str(ENGINE), backend="ort", metrics=("si_sdr",))
    one, two = find_pairs(pair_set)
    deadly = Deadly("deadly", one.noisy, one.clean, "")
    seen = []
    records, failures = measure_set(
        task, [one, deadly, two], 2, lambda *counts: seen.append(counts)
    )
    assert [r["name"] for r in records] == ["clip0", "clip1"]
    assert [f["name"] for f in failures] == ["deadly"]
    assert "process died" in failures[0]["error"]
    assert seen[-1] == (3, 3, 1)
    with pytest.raises(InputError, match="jobs is 0"):
        measure_set(task, [one], 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of the command line on two good pairs and a broken one: (arguments, out, result)."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    pytest.importorskip("matplotlib")
    root = tmp_path_factory.mktemp("run")
    for i in range(2):
        write_pair(root / "few", f"clip{i}", *clip(i))
    write_pair(root / "few", "broken", HISS[:100], SPEECH)
    (root / "pairs.tsv").write_text("set\tfile\tdegradation\nfew\tclip0.flac\tsnr 5\n")
    arguments = [str(ENGINE), "--set", str(root / "few"), "--backend", "ort", "--tlb", "mild"]
    arguments += ["--steps", "1"]
    code = main([*arguments, "--jobs", "2", "--out", str(root / "out"), "--worst", "1"])
    return arguments, root, code


def test_command_line(finished):
    _, root, code = finished
    assert code == 1  # a file failed, the others are there
    report = json.loads((root / "out" / "report.json").read_text())
    assert [f["name"] for f in report["failures"]] == ["broken"]
    assert "noisy has 100 samples" in report["failures"][0]["error"]
    assert list(report["systems"]) == ["noisy", "predictive", "full", "full tlb=mild"]
    measures = list(report["systems"]["full"])
    assert measures[:6] == ["pesq", "estoi", "si_sdr", "csig", "cbak", "covl"]
    assert set(measures[6:]) == set(PAUSE_MEASURES)
    assert report["primary"] == "predictive"  # what the engine does by default
    assert report["n_files"] == len(report["files"]) == 2
    first = report["files"][0]["figures"]
    assert report["groups"] == {
        "snr 5": {"n": 1, "systems": {name: table for name, table in first.items()}}
    }
    noisy, clean = clip(0)
    assert first["noisy"]["si_sdr"] == pytest.approx(si_sdr(clean, noisy), abs=1e-9)
    gains = [r["figures"]["full"]["pesq"] - r["figures"]["noisy"]["pesq"] for r in report["files"]]
    assert report["differences"]["full"]["noisy"]["pesq"]["mean"] == pytest.approx(np.mean(gains))
    assert set(report["differences"]["predictive"]) == {"noisy"}
    assert sorted(p.name for p in (root / "out").iterdir()) == sorted(REPORT_FILES)
    rows = list(csv.DictReader((root / "out" / "files.csv").read_text().splitlines()))
    assert len(rows) == 2 * 4
    assert float(rows[0]["pesq"]) == first["noisy"]["pesq"]
    page = (root / "out" / "index.html").read_text()
    assert page.count("<h3>") in (1, 2)  # the worst file by PESQ and by levels
    assert page.count("Level of ") == page.count("Spectrograms of") == page.count("<h3>")
    assert "noisy has 100 samples" in page


def test_jobs_do_not_change_the_figures(finished, capsys):
    arguments, root, _ = finished
    again = root / "again.json"
    baseline = ["--baseline", str(root / "out" / "report.json")]
    assert main([*arguments, "--jobs", "1", "--json", str(again), *baseline]) == 1
    out, err = capsys.readouterr()
    assert "snr 5 (1)" in out
    assert "failed: broken: broken: noisy has 100 samples" in err
    one, two = (json.loads(p.read_text()) for p in (again, root / "out" / "report.json"))
    compared = one.pop("baseline")
    assert one == two
    assert compared["n_files"] == 2
    for table in compared["differences"].values():
        assert not any(d["significant"] for d in table.values())
        assert all(d["mean"] == 0.0 for d in table.values() if d["n"])
        assert table["pesq"]["n"] == 2


# Wrong usage; 1 where a file, a folder or a value of the model is wrong.
EXIT_CODES = dict.fromkeys(["--metrics", "--jobs", "--worst", "--seed"], 2)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--metrics", "pesq,si_sdt"], "unknown metric 'si_sdt'; did you mean 'si_sdr'"),
        (["--metrics", "dnsmos"], "needs its model: --dnsmos DIR"),
        (["--dnsmos", "nowhere"], "nowhere lacks sig_bak_ovr.onnx"),
        (["--wv-mos", "nowhere.onnx"], "no such WV-MOS model"),
        (["--baseline", "nowhere.json"], "is no report"),
        (["--out", "nowhere/out"], "nowhere is not a folder"),
        (["--json", "nowhere/out.json"], "nowhere is not a folder"),
        (["--tlb", "strong"], "tlb is 'strong'"),
        (["--alpha", "0.5,2"], "alpha is 2.0"),
        (["--jobs", "0"], "jobs is 0"),
        (["--worst", "-1"], "worst is -1"),
        (["--seed", "-1"], "seed is -1"),
        (["--backend", "tpu"], "backend is 'tpu'"),
        (["--set", "nowhere"], "is not a folder"),
        (["--set", "."], "holds neither noisy/ and clean/ nor recordings"),
    ],
)
def test_command_line_refuses(extra, message, pair_set, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(
        [str(ENGINE), "--set", str(pair_set), "--backend", "ort", *extra]
    ) == EXIT_CODES.get(extra[0], 1)
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.startswith("dvpd: ")


def test_real_recordings_have_the_same_report(pair_set, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    out, few = tmp_path / "out", str(pair_set / "noisy")
    command = [str(ENGINE), "--set", few, "--backend", "ort", "--steps", "0", "--jobs", "1"]
    assert main([*command, "--out", str(out), "--worst", "1"]) == 0
    assert "2 recordings without a clean side" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert set(report["systems"]["predictive"]) == set(BLIND_MEASURES)
    assert report["systems"]["noisy"]["loud_level"]["mean"] == 0.0
    assert -20.0 < report["systems"]["predictive"]["loud_level"]["mean"] < 0.0
    page = (out / "index.html").read_text()
    assert "over time" in page
    assert "Spectrograms of" in page
    assert main([*command, "--metrics", "pesq"]) == 2
    assert "pesq is for recordings with a clean one" in capsys.readouterr().err


def test_missing_model_and_all_failed(pair_set, capsys):
    assert main(["nowhere.safetensors", "--set", str(pair_set)]) == 1
    assert "is not there; expected a checkpoint" in capsys.readouterr().err
    assert main([str(ENGINE), "--set", str(pair_set), "--alpha", "high"]) == 2
    assert "numbers in [0, 1]" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's /proc")
def test_interrupt_ends_all_processes_and_writes_nothing(pair_set, tmp_path):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dvpd.evaluate", str(ENGINE), "--set", str(pair_set)]
    command += ["--backend", "ort", "--metrics", "si_sdr", "--jobs", "2", "--out", str(out)]
    command += ["--steps", "1000"]  # minutes of work
    # a background job of a shell, such as a nightly run of this suite, ignores Ctrl-C by inheritance
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 180
    try:
        # two workers and multiprocessing's resource tracker
        while len(started := children.read_text().split()) < 3:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline, "no workers within three minutes"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=180)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == -signal.SIGINT  # a shell says 130, and ends its loop
    assert b"Traceback" not in err
    assert b"dvpd: interrupted; unfinished files were removed\n" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dev"]
    while any(Path(f"/proc/{pid}").is_dir() for pid in started):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)
