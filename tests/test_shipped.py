"""The graphs tracked in engines/ do their job on recordings they were not trained on."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from dvpd.quality.metrics import pesq_wb, si_sdr
from dvpd.quality.models import open_model
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.manifest import MANIFEST_NAME, Manifest

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "tests" / "assets"
DEV = ROOT.parent / "shared" / "data" / "dev" / "noise"
ENGINES = sorted(path.parent for path in ROOT.glob(f"engines/*/{MANIFEST_NAME}"))
SECONDS = 3  # of every recording: the networks' time is most of the suite's
BACKENDS_AGREE_DB = 60.0  # float32 in two engines, three diffusion steps


@pytest.fixture(scope="module", params=ENGINES, ids=lambda path: path.name)
def folder(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def enhancer(folder):
    """One thread, as tests run in as many processes as there are cores; shares predictions."""
    with open_model(folder, "ort", "cpu", threads=1) as opened:
        yield opened


def pairs(noisy_dir: Path, clean_dir: Path, names: list[tuple[str, str]]):
    for noisy, clean in names:
        yield tuple(
            sf.read(path, dtype="float32", frames=SECONDS * 16000)[0]
            for path in (noisy_dir / noisy, clean_dir / clean)
        )


def whole_precision(enhancer: Enhancer) -> None:
    """Skip half: its figures on a clip are pinned by the guard, its waveforms by the verification."""
    if enhancer.manifest.precision != "fp32":
        pytest.skip("half is compared with its fp32 engine elsewhere")


def gains(enhancer: Enhancer, items, steps: int | None) -> np.ndarray:
    """Mean gain in PESQ and SI-SDR (dB)."""
    rows = []
    for noisy, clean in items:
        wav = enhancer.enhance(noisy, 16000, steps=steps).wav
        before = (pesq_wb(clean, noisy), si_sdr(clean, noisy))
        after = (pesq_wb(clean, wav), si_sdr(clean, wav))
        rows.append(np.subtract(after, before))
    return np.mean(rows, axis=0)


def test_there_is_a_shipped_engine(folder):
    manifest = Manifest.load(folder)
    manifest.verify_graphs(folder)
    assert manifest.parity


def test_steps_are_taken_where_they_were_measured_to_bring_something(folder):
    """docs/models.md has the figures: whoever exports again gives --steps 0, or other figures."""
    assert Manifest.load(folder).sampler.n_steps == (1 if "live" in folder.name else 0)


@pytest.mark.parametrize("steps", [0, 3], ids=["predictive", "sampler"])
def test_tracked_clips_improve(enhancer, steps):
    whole_precision(enhancer)
    if steps and enhancer.manifest.causal:
        steps = 1  # what a live model takes
    names = [(f"clip{i}_noisy.flac", f"clip{i}_clean.flac") for i in range(4)]
    pesq, db = gains(enhancer, pairs(ASSETS, ASSETS, names), steps)
    assert pesq > 0.05
    assert db > 1.0


@pytest.mark.skipif(not DEV.is_dir(), reason="the shared dev set is not on this machine")
def test_dev_recordings_improve(enhancer):
    whole_precision(enhancer)
    names = [(f"noise_{i:03d}.flac",) * 2 for i in range(0, 60, 12)]
    pesq, db = gains(enhancer, pairs(DEV / "noisy", DEV / "clean", names), None)  # as users get it
    assert pesq > 0.05
    assert db > 2.0


def test_backends_agree(folder, enhancer):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    noisy, _ = sf.read(ASSETS / "clip1_noisy.flac", dtype="float32", frames=16000)
    with Enhancer.open(folder, "openvino", "cpu", threads=1) as other:
        wavs = [engine.enhance(noisy, 16000, seed=3, steps=3).wav for engine in (enhancer, other)]
    error = wavs[0] - wavs[1]
    assert 10 * np.log10((wavs[0] ** 2).sum() / (error**2).sum()) > BACKENDS_AGREE_DB
