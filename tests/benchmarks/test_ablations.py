"""The ablation runner: every variant trains, figures are counted right, a finished run is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

from dvpd.benchmarks import ablations
from dvpd.benchmarks.ablations import REFERENCE, VARIANTS, NoisyPhase, main, rows_of, to_markdown

MICRO = (
    "[model]\nname='micro'\nchannels=4\nblocks=1\nstate=2\ndecoder_channels=2\nembedding=4\n"
    "ffn_factor=1.0\n[data]\ncrop_samples=4096\nuniversal_p=0.0\n"
    "[train]\nbatch_size=2\nworkers=0\nwarmup_steps=0\n"
)


def _voice(rng: np.random.Generator, seconds: float) -> np.ndarray:
    t = np.arange(int(16000 * seconds)) / 16000
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * t)
    tones = sum(np.sin(2 * np.pi * f * t) / f for f in rng.uniform(150, 3000, 6))
    return (0.3 * envelope * tones / np.abs(tones).max()).astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Config, training data and a test set of one pair."""
    folder, rng = tmp_path_factory.mktemp("ablations"), np.random.default_rng(0)
    (folder / "micro.toml").write_text(MICRO)
    for name in ("data/speech/a", "data/noise/b", "set/clean", "set/noisy"):
        (folder / name).mkdir(parents=True)
    for i in range(2):
        soundfile.write(folder / f"data/speech/a/{i}.wav", _voice(rng, 4), 16000)
        noise = 0.1 * rng.standard_normal(64000).astype(np.float32)
        soundfile.write(folder / f"data/noise/b/{i}.wav", noise, 16000)
    clean = _voice(rng, 1)
    soundfile.write(folder / "set/clean/0.wav", clean, 16000)
    soundfile.write(folder / "set/noisy/0.wav", clean + noise[: len(clean)], 16000)
    return folder


def _words(place, *more: str) -> list[str]:
    return [
        str(place / "micro.toml"), "--data", str(place / "data"), "--set", str(place / "set"),
        "--out", str(place / "runs"), "--steps", "1", "--seeds", "1", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def measured(place):
    """The runs of every variant, made through the command line."""
    pytest.importorskip("pesq")
    threads = torch.get_num_threads()
    assert main(_words(place, "--json", str(place / "all.json"))) == 0
    torch.set_num_threads(threads)
    return json.loads((place / "all.json").read_text())


def test_every_variant_is_trained_as_it_says(place, measured):
    from dvpd.checkpoint import load_checkpoint

    configs = {v: load_checkpoint(place / f"runs/{v}-0/last.safetensors")[0] for v in VARIANTS}
    assert configs[REFERENCE].model.encoder == "fanc"
    assert configs["no-fanc"].model.encoder == "uniform"
    assert configs["no-fi-gate"].model.fi_gate is False
    assert configs["no-lisa"].model.local == "dual_path"
    assert configs["no-phase-loss"].train.phase_weight == 0.0
    assert configs["ouve"].sde.name == "ouve"
    assert configs["ssd"].model.scan == "ssd"
    assert {c.train.steps for c in configs.values()} == {1}
    rows = {row["variant"]: row for row in rows_of(measured["runs"])}
    assert set(rows) == {*VARIANTS, *ablations.DERIVED}
    assert rows[REFERENCE]["pesq"]["change"] == 0.0
    assert all(np.isfinite(row["si_sdr"]["mean"]) for row in rows.values())


def test_a_finished_run_is_not_repeated(place, measured, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "train_run", None)  # calling it would fail
    assert main(_words(place)) == 0
    assert "| degraded-phase | 1 |" in capsys.readouterr().out
    assert main(_words(place, "--alpha", "0.5")) == 1
    assert "is of another budget" in capsys.readouterr().err


def test_an_interrupted_run_goes_on(place, monkeypatch, capsys):
    from dvpd.train import main as train

    out = place / "runs" / "stopped"
    words = _words(place, "--variants", REFERENCE, "--steps", "2")
    words[words.index("--out") + 1] = str(out)
    # what a signal leaves: a state of fewer steps
    args = ablations.build_parser().parse_args(words)
    settings = [f"train.steps={args.steps}", "train.seed=0", 'train.branches="both"',
                "train.minutes=0.0"]  # fmt: skip
    given = [str(args.config), "--data", str(args.data), "--out", str(out / "reference-0"),
             "--cache", str(out / "cache"), "--max-minutes", "1e-9"]  # fmt: skip
    assert train(given + [word for s in settings for word in ("--set", s)]) == 0
    assert main(words) == 0
    assert "reference" in capsys.readouterr().out


def _run(variant: str, seed: int, pesq: float) -> dict:
    figures = {"pesq": pesq, "estoi": 0.5, "si_sdr": 5.0}
    systems = ("noisy", "predictive", "full", "degraded-phase")
    return {
        "variant": variant, "seed": seed, "figures": dict.fromkeys(systems, figures),
        "minutes": 1.0, "audio_hours": 0.1,
        "budget": {"steps": 2, "config": "c.toml", "set": "s", "limit": 0, "alpha": 0.4},
    }  # fmt: skip


def test_differences_are_to_the_same_seed():
    runs = [_run(REFERENCE, 0, 2.0), _run("no-lisa", 0, 1.9), _run(REFERENCE, 1, 2.5),
            _run("no-lisa", 1, 2.3), _run("ouve", 2, 9.9)]  # fmt: skip
    rows = {row["variant"]: row for row in rows_of(runs)}
    assert "ouve" not in rows  # a seed without its reference says nothing
    assert rows["no-lisa"]["pesq"]["mean"] == pytest.approx(2.1)
    assert rows["no-lisa"]["pesq"]["change"] == pytest.approx(-0.15)
    # a variance of 0.005 with one degree of freedom: 12.706 * sqrt(0.005 / 2)
    assert rows["no-lisa"]["pesq"]["change_half"] == pytest.approx(0.6353, abs=1e-4)
    text = to_markdown(runs)
    assert "| no-lisa | 2 | 2.100 | -0.150 ± 0.635 | 0.500 | +0.000 ± 0.000 |" in text
    one = to_markdown([_run(REFERENCE, 0, 2.0), _run("no-lisa", 0, 1.9)])
    assert "| no-lisa | 1 | 1.900 | -0.100 |" in one  # one seed has no interval
    alone = {row["variant"]: row for row in rows_of(runs, "predictive")}
    assert set(alone) == {REFERENCE, "no-lisa"}  # what is derived from the reference is no branch
    assert text.index("Predictive branch alone") < text.index("Full sampler")


def test_the_interval_pools_what_all_variants_say_of_the_seeds():
    runs = [_run(REFERENCE, seed, 2.0) for seed in range(3)]
    runs += [_run("no-lisa", seed, 1.5 + 0.1 * seed) for seed in range(3)]
    runs += [_run("ouve", seed, 2.0 + 0.1 * (seed % 2)) for seed in range(3)]
    rows = {row["variant"]: row for row in rows_of(runs)}
    half = 2.7764 * np.sqrt((0.02 + 0.02 / 3) / 4 / 3)  # t of four degrees of freedom
    for name in ("no-lisa", "ouve"):
        assert rows[name]["pesq"]["change_half"] == pytest.approx(half, abs=1e-4)
    text = to_markdown(runs)
    assert f"-0.400 ± {half:.3f} * |" in text
    assert f"+0.033 ± {half:.3f} |" in text


def test_noisy_phase_keeps_the_magnitude():
    rng = np.random.default_rng(1)
    noisy = rng.standard_normal((1, 3, 4, 5)).astype(np.float32)
    noisy[0, :, 0, 0] = 0.0  # no phase there
    clean = rng.standard_normal((1, 2, 4, 5)).astype(np.float32)

    class Fixed:
        name, device = "fixed", "cpu"

        def predict(self, given):
            return clean, ["feats"]

    out, feats = NoisyPhase(Fixed()).predict(noisy)
    assert feats == ["feats"]
    assert np.isfinite(out).all()
    there = np.hypot(noisy[0, 0], noisy[0, 1]) > 0
    np.testing.assert_allclose(
        np.hypot(*out[0])[there], np.hypot(*clean[0])[there], rtol=1e-5
    )  # fmt: skip
    angle = np.angle(out[0, 0] + 1j * out[0, 1]) - np.angle(noisy[0, 0] + 1j * noisy[0, 1])
    assert np.abs(np.exp(1j * angle) - 1)[there].max() < 1e-5
    assert not out[0, :, 0, 0].any()


@pytest.mark.parametrize(
    ("more", "named"),
    [(["--variants", "no-odam"], "'no-odam'; expected one of"), (["--seeds", "0"], "at least 1")],
)
def test_wrong_usage(place, more, named, capsys):
    assert main(_words(place, *more)) == 2
    assert named in capsys.readouterr().err
