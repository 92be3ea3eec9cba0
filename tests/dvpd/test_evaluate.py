"""Evaluation of a model on a folder of pairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from dvpd.checkpoint import save_checkpoint
from dvpd.config import Config
from dvpd.evaluate import (
    enhance_pair,
    evaluate_pairs,
    find_pairs,
    main,
    quick_evaluation,
    read_pair,
    torch_enhancer,
)
from dvpd.model import DVPD
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.noise import frame_noise
from dvpd.sde import sample
from dvpd.spectral import compressed_noisy, istft_from_compressed
from dvpd.train_config import TrainConfig

ASSETS = Path(__file__).resolve().parents[1] / "assets"
# whole-model float32 against a NumPy front end in float64
WAVEFORM_TOLERANCE = 1e-4


@pytest.fixture
def pair_set(tmp_path):
    for side in ("noisy", "clean"):
        (tmp_path / "dev" / "few" / side).mkdir(parents=True)
        for i in range(2):
            target = tmp_path / "dev" / "few" / side / f"clip{i}.flac"
            shutil.copy(ASSETS / f"clip{i}_{side}.flac", target)
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


def test_bad_sets_are_refused(pair_set):
    with pytest.raises(InputError, match="not a folder"):
        find_pairs(pair_set.parent)
    extra = pair_set / "noisy" / "extra.flac"
    shutil.copy(pair_set / "noisy" / "clip0.flac", extra)
    with pytest.raises(InputError, match="such as extra"):
        find_pairs(pair_set)
    extra.unlink()
    sf.write(pair_set / "noisy" / "clip0.flac", np.zeros(100), 16000)
    with pytest.raises(InputError, match="noisy has 100"):
        read_pair(find_pairs(pair_set)[0])
    sf.write(pair_set / "noisy" / "clip0.flac", np.zeros(100), 8000)
    with pytest.raises(InputError, match="8000 Hz"):
        read_pair(find_pairs(pair_set)[0])
    (pair_set / "noisy" / "clip0.flac").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        read_pair(find_pairs(pair_set)[0])


def test_untrained_model_returns_its_input(pair_set, config):
    enhancer = torch_enhancer(DVPD(config.model).eval(), config)
    noisy, _ = read_pair(find_pairs(pair_set)[0])
    outputs = enhance_pair(enhancer, noisy, steps=0, alpha=None)
    assert list(outputs) == ["noisy", "predictive"]
    np.testing.assert_allclose(outputs["predictive"], noisy, atol=WAVEFORM_TOLERANCE)


def test_equals_the_reference_sampler(pair_set, config, small_model):
    noisy, _ = read_pair(find_pairs(pair_set)[0])
    noisy = noisy[:32640]  # one window of 256 frames: no padding
    enhancer = torch_enhancer(small_model, config)
    calls = []
    inner = enhancer.backend.inner
    predict = inner.predict
    inner.predict = lambda x: calls.append(1) or predict(x)
    outputs = enhance_pair(enhancer, noisy, steps=3, alpha=None, seed=4)
    assert len(calls) == 1  # the predictive pass is shared
    peak = float(np.abs(noisy).max())
    features = compressed_noisy(torch.from_numpy(noisy / peak)[None])
    noise = [torch.from_numpy(frame_noise(4, i, 0, 256))[None, None] for i in range(3)]
    full, predicted = sample(small_model, features, noise)
    for name, spec in (("full", full), ("predictive", predicted)):
        expected = istft_from_compressed(spec, len(noisy))[0].numpy() * peak
        scale = np.abs(expected).max()
        np.testing.assert_allclose(outputs[name], expected, atol=WAVEFORM_TOLERANCE * scale)


def test_non_finite_output_is_an_error(pair_set, config):
    model = DVPD(config.model).eval()
    with torch.no_grad():
        next(model.predictive.parameters()).fill_(float("nan"))
    noisy, _ = read_pair(find_pairs(pair_set)[0])
    with pytest.raises(BackendError, match="not finite"):
        enhance_pair(torch_enhancer(model, config), noisy, steps=0, alpha=None)


def test_command_line(pair_set, config, small_model, tmp_path, capsys):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    save_checkpoint(tmp_path / "m.safetensors", small_model.state_dict(), config)
    out = tmp_path / "r.json"
    arguments = [str(tmp_path / "m.safetensors"), "--set", str(pair_set), "--device", "cpu"]
    assert main([*arguments, "--json", str(out), "--jobs", "1", "--steps", "1"]) == 0
    assert "snr 0 (1)" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert set(report["systems"]) == {"noisy", "predictive", "full"}
    assert set(report["systems"]["noisy"]) == {"pesq", "estoi", "si_sdr"}
    assert len(report["files"]) == report["n_files"] == 2
    single = report["files"][0]["figures"]["noisy"]["si_sdr"]
    assert report["groups"]["snr 0"]["systems"]["noisy"]["si_sdr"] == pytest.approx(single)
    assert main([*arguments, "--metrics", "mos"]) == 1
    assert "unknown metric 'mos'" in capsys.readouterr().err
    assert main(["nowhere.safetensors", "--set", str(pair_set)]) == 1


def test_jobs_do_not_change_the_figures(pair_set, config, small_model):
    enhancer = torch_enhancer(small_model, config)
    options = {"steps": 0, "metrics": ("si_sdr",)}
    pairs = find_pairs(pair_set)
    alone = evaluate_pairs(enhancer, pairs, **options)
    assert evaluate_pairs(enhancer, pairs, jobs=2, **options) == alone


def test_quick_evaluation(pair_set, config, small_model):
    pytest.importorskip("pesq")
    run = quick_evaluation(pair_set, 5)
    figures = run(small_model, config)
    assert figures["score"] == figures["pesq_full"]
    predictive = Config(model=config.model, train=TrainConfig(branches="predictive"))
    figures = run(small_model, predictive)
    assert figures["score"] == figures["pesq_predictive"]
    assert "pesq_full" not in figures
