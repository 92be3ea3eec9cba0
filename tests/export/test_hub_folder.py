"""A folder for the Hub: what its card says is what was measured, and what it holds can be run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dvpd.export import hub_folder
from dvpd.runtime import Enhancer, HubError, InputError, Manifest, cli, hub
from dvpd.runtime.files import sha256_file

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "engines" / "dvpd-tiny"
RESULT = ROOT / "benchmarks" / "results" / "xeon-amx-2-cores" / "quality.json"


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    """Half a second stands for the samples; nothing else is like it in the folder."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    pytest.importorskip("onnxruntime")
    assets = tmp_path / "assets"
    assets.mkdir()
    wav, rate = soundfile.read(hub_folder.ASSETS / "clip0_noisy.flac", frames=8000, start=16000)
    soundfile.write(assets / "clip0_noisy.flac", wav, rate)
    monkeypatch.setattr(hub_folder, "ASSETS", assets)
    return assets


def card_of(folder: Path):
    import huggingface_hub

    return huggingface_hub.ModelCard.load(folder / "README.md")


def test_the_card_says_what_was_measured_of_these_weights(tmp_path):
    hub_folder.export(
        TINY, tmp_path / "out", repository="someone/dvpd-tiny", languages=["en", "de"]
    )
    card = card_of(tmp_path / "out")
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "dvpd", "audio-to-audio")
    assert data.language == ["en", "de"]
    assert "speech-enhancement" in data.tags
    assert "streaming" not in data.tags
    stored = {model["model"]: model for model in json.loads(RESULT.read_text())["models"]}
    sets = stored["dvpd-tiny"]["sets"]
    said = {
        (r.dataset_type.rpartition("-")[2], r.metric_type): r.metric_value
        for r in data.eval_results
    }
    assert len(said) == 3 * len(sets)
    for (name, metric), value in said.items():
        assert value == round(sets[name]["systems"]["predictive"][metric]["mean"], 3)  # its default
    assert {r.metric_name.partition(" (")[2] for r in data.eval_results} == {"0 steps)"}
    noisy = sets["noise"]["systems"]["noisy"]["pesq"]["mean"]
    assert f"| noise ({sets['noise']['n']}) | noisy | {noisy:.2f} |" in card.text
    # The engine's own card is there, one level of headings up.
    assert card.text.strip().startswith("# dvpd-tiny 0.2.0")
    assert "\n## Limits\n" in card.text
    assert 'Enhancer.from_pretrained("someone/dvpd-tiny")' in card.text


def test_the_folder_has_graphs_weights_and_samples_that_belong_together(tmp_path, short):
    out = tmp_path / "out"
    hub_folder.export(TINY, out)
    manifest = Manifest.load(out)
    manifest.verify_graphs(out)
    assert sha256_file(out / "model.safetensors") == manifest.checkpoint_sha256
    for name in ("verification.json", "verification.md", "LICENSE", "training.jsonl", "curves.svg"):
        assert (out / name).is_file()
    source = short / "clip0_noisy.flac"
    assert (out / "samples" / "clip0-noisy.flac").read_bytes() == source.read_bytes()
    wav, rate = soundfile.read(source, dtype="float32")
    with Enhancer.open(TINY, device="cpu") as enhancer:
        wanted = enhancer.enhance(wav, rate).wav
    enhanced, _ = soundfile.read(out / "samples" / "clip0-enhanced.flac", dtype="float32")
    assert np.abs(enhanced - wanted).max() <= 1 / 32768  # 16 bits
    text = (out / "README.md").read_text(encoding="utf-8")
    for path in (out / "samples").iterdir():
        assert f"(samples/{path.name})" in text


def test_what_is_exported_can_be_fetched_by_name(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.syspath_prepend(str(ROOT / "tests" / "runtime"))
    from hub_server import FakeHub, Repository

    out = tmp_path / "out"
    assert cli.main(["export-hub", str(out), "--model", "dvpd-tiny"]) == 0
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with FakeHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        repository = server.repositories["someone/it"] = Repository()
        files = [path for path in out.rglob("*") if path.is_file()]
        repository.commit({str(p.relative_to(out)): p.read_bytes() for p in files}, "main")
        folder = hub.fetch("someone/it")
    assert Manifest.load(folder) == Manifest.load(TINY)


def test_half_precision_has_the_card_and_the_figures_of_its_weights(tmp_path):
    folder = ROOT / "engines" / "dvpd-tiny-fp16"
    manifest = Manifest.load(folder)
    figures = hub_folder.stored_figures(manifest)
    assert figures == hub_folder.stored_figures(Manifest.load(TINY))
    hub_folder.export(folder, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "with the fp32 graphs of these weights" in " ".join(text.split())
    assert "16000 Hz, fp16" in text


def test_a_live_models_card_says_so(tmp_path):
    live = ROOT / "engines" / "dvpd-live-tiny"
    hub_folder.export(live, tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert {"streaming", "real-time"} <= set(card.data.tags)
    assert "56 ms of delay" in card.text
    assert "enhancer.stream(48000)" in card.text


@pytest.fixture
def own(tmp_path):
    """A model of the user's: nobody has measured it, and it has no card."""
    folder = tmp_path / "own"
    folder.mkdir()
    table = json.loads((TINY / "manifest.json").read_text())
    table["name"], table["checkpoint_sha256"] = "own", "0" * 64
    (folder / "manifest.json").write_text(json.dumps(table))
    for path in TINY.glob("*.onnx"):
        shutil.copy(path, folder)
    return folder


def test_weights_that_nobody_measured_have_no_figures(own, tmp_path):
    assert hub_folder.stored_figures(Manifest.load(own)) == {}
    with pytest.raises(InputError, match="names no licence; give --license"):
        hub_folder.export(own, tmp_path / "out")
    data = hub_folder.metadata(Manifest.load(own), {}, "cc-by-4.0", [])
    assert "license: cc-by-4.0" in data
    assert "model-index" not in data
    with pytest.raises(InputError, match="holds no figures of checkpoint 000"):
        hub_folder.stored_figures(Manifest.load(own), RESULT)


def test_what_cannot_be_published_leaves_nothing_behind(own, tmp_path, monkeypatch):
    out = tmp_path / "there" / "out"
    table = json.loads((own / "manifest.json").read_text())
    (own / "manifest.json").write_text(json.dumps(table | {"parity": {}}))
    with pytest.raises(InputError, match="has no verification report"):
        hub_folder.export(own, out, licence="mit")
    with pytest.raises(InputError, match="expected OWNER/NAME"):
        hub_folder.export(TINY, out, repository="nobody")
    monkeypatch.setattr(hub_folder, "_write_samples", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub_folder.export(TINY, out)
    assert list(out.parent.iterdir()) == []
    out.mkdir()
    with pytest.raises(InputError, match="exists already"):
        hub_folder.export(TINY, out)


def test_without_the_package_it_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"pip install 'dvpd\[hub\]'"):
        hub_folder.metadata(Manifest.load(TINY), {}, "mit", [])
