"""The training command: options, signals, several processes, bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf
import torch
from train_parts import MICRO_TOML, ROOT, log_of

from dvpd import train
from dvpd.config import Config, load_toml
from dvpd.config.data import DataConfig
from dvpd.data.mix import Mixer
from dvpd.data.paired import PairedSource
from dvpd.data.pool import Pool
from dvpd.runtime.errors import InputError
from dvpd.train import main, override


def test_overrides():
    config = override(Config(), ["train.lr=0.5", "train.branches='score'", "data.snr_db=[0, 1]"])
    assert (config.train.lr, config.train.branches, config.data.snr_db) == (0.5, "score", (0, 1))
    for bad in ("train.nothing=1", "other.lr=1", "train.lr", "lr=1"):
        with pytest.raises(InputError):
            override(Config(), [bad])


def test_override_of_one_entry_leaves_the_others():
    before = Config().data.single_weights
    settings = ["data.single_weights.reverb=9", "data.noise_weights.a=2", "data.noise_weights.b=3"]
    data = override(Config(), settings).data
    assert data.single_weights == {**before, "reverb": 9.0}
    assert data.noise_weights == {"a": 2.0, "b": 3.0}
    assert override(Config(), ["data.single_weights={reverb=9}"]).data.single_weights == {
        "reverb": 9.0
    }


def test_override_without_quotes_says_how_to_write_it():
    with pytest.raises(InputError, match=r"""--set 'train\.branches="score"'$"""):
        override(Config(), ["train.branches=score"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "[train]\nbatchsize = 4",
            r"unknown key config\.train\.batchsize; did you mean batch_size\?",
        ),
        ("[trian]\nlr = 1", r"unknown key config\.trian; did you mean train\?"),
        ("[train]\nlr = 'fast'", r"config\.train\.lr is 'fast'; expected float"),
        ("[train]\nsteps = 1.5", r"config\.train\.steps is 1\.5; expected int"),
        ("[train]\ncompile = 1", r"config\.train\.compile is 1; expected bool"),
        ("[train]\nbetas = 0.9", r"config\.train\.betas is 0\.9"),
        ("[train]\nprecision = 'fp16'", r"precision is 'fp16'; expected one of fp32, bf16"),
        ("[train]\nbatch_size = 0", r"batch_size is 0; expected a whole number >= 1"),
        ("[train\n", "no valid TOML"),
    ],
)
def test_bad_configs(tmp_path, capsys, line, message):
    path = tmp_path / "config.toml"
    path.write_text(line)
    with pytest.raises(InputError, match=message):
        load_toml(path)
    assert main([str(path), "--data", "d", "--out", str(tmp_path / "out")]) == 1
    assert "dvpd: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_shipped_configs_load(name):
    assert load_toml(ROOT / "dvpd" / "configs" / f"{name}.toml").model.name == f"dvpd-{name}"


@pytest.fixture
def run_files(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("speech", "noise"):
        for i in range(3):
            path = tmp_path / "data" / kind / "src" / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            sf.write(path, 0.1 * rng.standard_normal(16000), 16000)
    (tmp_path / "config.toml").write_text(
        MICRO_TOML + "[train]\nbatch_size=4\nsteps=100000\nlog_steps=1\nworkers=1\nwarmup_steps=0\n"
    )
    return [
        str(tmp_path / "config.toml"), "--data", str(tmp_path / "data"),
        "--out", str(tmp_path / "run"), "--threads", "1", "--device", "cpu",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_save_and_stop(run_files, tmp_path, name):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "dvpd.train", *run_files],
        env=env,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    log = tmp_path / "run" / "log.jsonl"
    until = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < until
        time.sleep(0.1)
    os.killpg(process.pid, getattr(signal, name))  # the worker gets it, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    steps = log_of(tmp_path / "run")[-1]["step"]
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] == steps


def test_command_line(run_files, tmp_path, capsys):
    short = ["--set", "train.steps=2", "--set", "train.workers=0"]
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert main([*run_files, *short]) == 0
    assert (tmp_path / "cache").is_dir()
    assert main([*run_files, *short]) == 2
    assert "use --resume" in capsys.readouterr().err
    assert main([*run_files, "--set", "train.steps=3", "--resume"]) == 0
    assert main([*run_files[:1], "--data", "nowhere", "--out", str(tmp_path / "o")]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert len(log_of(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("device", "message"), [("gpu", "'gpu' is unknown; expected cpu, cuda"), ("cuda", "no CUDA")]
)
def test_device_that_is_not_there_is_refused(run_files, capsys, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*run_files[:-1], device]) == 1
    assert message in capsys.readouterr().err


def test_what_was_found_is_said():
    wav = np.zeros(16000 * 36, np.float32) + 0.1
    speech = Pool.from_arrays([(f"s{i}", wav) for i in range(8)])
    noise = Pool.from_arrays([("street", wav)])
    assert train.found_in(Mixer(DataConfig(), speech, noise)) == (
        "8 recordings of speech, 0.08 h (s0, s1, s2, s3, s4, s5, ...); "
        "1 recordings of noise, 0.01 h (street)"
    )
    assert train.found_in(PairedSource(DataConfig(), noise, noise)) == "1 pairs, 0.01 h (street)"


def test_options_that_do_nothing_are_named(run_files, tmp_path, capsys):
    short = ["--set", "train.steps=1", "--set", "train.workers=0"]
    assert main([*run_files, *short, "--dev", str(tmp_path)]) == 0
    assert "--dev is not used: --set train.eval_minutes" in capsys.readouterr().err
    last = str(tmp_path / "run" / "last.safetensors")
    again = [*run_files, *short, "--resume", "--init", last, "--set", "train.eval_minutes=1"]
    assert main(again) == 0
    said = capsys.readouterr().err
    assert "train.eval_minutes is not used: --dev DIR" in said
    assert "--init is not used: --resume" in said


def test_what_cannot_start_is_refused_before_recordings_are_read(
    run_files, tmp_path, monkeypatch, capsys
):
    def never(*_):
        raise AssertionError("the recordings were decoded first")

    short = ["--set", "train.steps=1", "--set", "train.workers=0"]
    assert main([*run_files, *short]) == 0
    monkeypatch.setattr(train, "open_source", never)
    (tmp_path / "file").write_text("")
    tiny = str(ROOT / "engines" / "dvpd-tiny" / "dvpd-tiny.safetensors")
    new = [*run_files, "--out", str(tmp_path / "new")]
    for words, message in (
        ([*new, "--init", tiny], "has another [model] than"),
        ([*new, "--init", "gone.safetensors"], "gone.safetensors: no such checkpoint file"),
        ([*new, "--keep", tiny], "keep_speech is False; expected True"),
        ([*new, "--resume"], "train without --resume first"),
        ([*run_files, "--resume", "--set", "train.lr=0.5"], "resume with the same config"),
        ([*run_files, "--out", str(tmp_path / "file")], "is a file; expected a folder"),
    ):
        assert main(words) in (1, 2)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_tensorboard_needs_its_package(run_files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert main([*run_files, "--tensorboard"]) == 1
    assert "--tensorboard needs the tensorboard package: pip install" in capsys.readouterr().err


def test_lightning_is_not_needed_by_one_process():
    code = (
        "import sys, dvpd.train as t; t.join_team('cpu');"
        "assert not [m for m in sys.modules if 'lightning' in m or 'tensorboard' in m]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# float32 sums in another order: seen are differences of at most 4.1e-7 (an AMD EPYC) and once 6.3e-6 (an
# Intel Xeon, in 2 of 64 weights; 2.6e-5 in 1 of 36 on one with AMX) after three steps of size 1e-3. Batch
# norms that see their own process's crops alone make it 1.9e-3.
TWO_PROCESSES_ATOL = 1e-4


def test_two_processes_equal_one(run_files, tmp_path):
    options = ["--set", "train.steps=3", "--set", "train.grad_clip=0.1"]
    assert main([*run_files, *options]) == 0
    run_files[run_files.index("--out") + 1] = str(tmp_path / "two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "dvpd.train", *run_files, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train: step") == 3  # one process shows and writes
    states = [torch.load(tmp_path / d / "state.pt", weights_only=True) for d in ("run", "two")]
    assert states[0]["step"] == states[1]["step"] == 3
    for part in ("model", "ema"):
        for name, one in states[0][part].items():
            two = states[1][part][name]
            torch.testing.assert_close(
                two, one, atol=TWO_PROCESSES_ATOL, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
            )
    for one, two in zip(*(log_of(tmp_path / d) for d in ("run", "two")), strict=True):
        for name in ("mag", "ri", "phase", "score", "loss", "grad_norm", "lr"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
        assert two["audio_hours"] == one["audio_hours"]  # of the whole batch


def test_speech_as_other_weights_have_it(run_files, tmp_path, capsys):
    few = [
        "--set",
        "train.steps=1",
        "--set",
        "train.workers=0",
        "--set",
        "train.branches='predictive'",
    ]
    assert main([*run_files, *few]) == 0
    kept = str(tmp_path / "run" / "last.safetensors")
    again = [*run_files, "--out", str(tmp_path / "kept"), *few, "--keep", kept]
    assert main(again) == 2
    assert "train keep_speech is False; expected True" in capsys.readouterr().err
    on = ["--set", "train.keep_speech=true"]
    assert main([*again, *on, "--set", "signal.hop_length=64"]) == 2
    assert "signal is" in capsys.readouterr().err
    assert main([*again, *on]) == 0
    causal = [*again[:-2], *on, "--set", "model.causal=true", "--out", str(tmp_path / "causal")]
    assert main([*causal, "--keep", kept]) == 0
    kept = str(tmp_path / "causal" / "last.safetensors")
    assert main([*again[:-1], kept, *on, "--out", str(tmp_path / "offline")]) == 2
    assert "model causal is True" in capsys.readouterr().err
