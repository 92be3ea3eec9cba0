import json

import pytest
from tiny_graphs import make_manifest

from dvpd.runtime import manifest as manifest_file
from dvpd.runtime.errors import ManifestError
from dvpd.runtime.manifest import Manifest


def load(folder):
    return Manifest.load(folder)


def change(folder, edit):
    path = folder / "manifest.json"
    table = json.loads(path.read_text())
    edit(table)
    path.write_text(json.dumps(table))


def test_round_trip(engine):
    manifest = load(engine)
    assert Manifest.from_dict(json.loads(manifest.to_json())) == manifest
    assert tuple(manifest.to_dict()) == manifest_file.MANIFEST_KEYS
    paths = manifest.verify_graphs(engine)
    assert set(paths) == {"predictive", "score"}
    assert manifest.signal.n_freqs == 257
    assert manifest.signal.frame_rate_hz == 125.0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update(format=2), "format is 2"),
        (lambda t: t.pop("format"), "format is None"),
        (lambda t: t.pop("sde"), "lacks \\['sde'\\]"),
        (lambda t: t.update(surplus=1), "unknown keys"),
        (lambda t: t["signal"].pop("hop_length"), "lacks"),
        (lambda t: t["signal"].update(hop=1), "unknown keys"),
        (lambda t: t["signal"].update(n_fft=1024), "bins"),
        (lambda t: t["signal"].update(hop_length=100), "divisor"),
        (lambda t: t["signal"].update(window="hann"), "window"),
        (lambda t: t["signal"].update(sample_rate=0), "sample_rate"),
        (lambda t: t["signal"].update(compress_exponent=2.0), "at most 1"),
        (lambda t: t["signal"].update(compress_factor="a"), "number"),
        (lambda t: t["sde"].update(name="vp"), "sde name"),
        (lambda t: t["sde"].pop("k"), "lacks"),
        (lambda t: (t["sde"].update(name="ouve"), t["sde"].pop("gamma")), "gamma"),
        (lambda t: t["sampler"].update(alpha=2), "alpha"),
        (lambda t: t["sampler"].update(n_steps=-1), "n_steps is -1"),
        (lambda t: t["sampler"].update(t_rs="x"), "t_rs"),
        (lambda t: t["sampler"].update(last_step="heun"), "last_step is 'heun'"),
        (
            lambda t: t["sampler"].update(noise=1.5),
            "sampler noise is 1.5; expected 0 <= noise <= 1",
        ),
        (lambda t: t["sampler"].update(noise="a"), "sampler noise is 'a'"),
        (lambda t: t["sampler"].update(phase_rounds=-1), "phase_rounds is -1"),
        (lambda t: t["sampler"].update(phase_rounds=101), "phase_rounds is 101; expected 0 to 100"),
        (lambda t: t["tlb_presets"].update(bad={"skip": 1}), "preset 'bad'"),
        (lambda t: t["tlb_presets"]["none"].update(skip=[[2, 1], [1, 1]]), "all ones"),
        (lambda t: t.update(precision="int8"), "precision"),
        (lambda t: t.update(opset="18"), "opset"),
        (lambda t: t.update(opset=True), "opset"),
        (lambda t: t.update(checkpoint_sha256="xyz"), "SHA-256"),
        (lambda t: t["graphs"].pop("score"), "graphs are"),
        (lambda t: t["graphs"]["score"].pop("sha256"), "lacks"),
        (lambda t: t["graphs"]["score"].update(file="../score.onnx"), "bare file name"),
        (lambda t: t["graphs"]["score"].update(file="/etc/passwd"), "bare file name"),
        (lambda t: t["graphs"]["score"].update(file="a\\b.onnx"), "bare file name"),
        (lambda t: t.update(graphs=[]), "expected dict"),
        (lambda t: t.update(single_graphs={"score": {}}), "single_graphs are \\['score'\\]"),
        (
            lambda t: t.update(
                single_graphs={g: {"file": "../x", "sha256": "0" * 64} for g in t["graphs"]}
            ),
            "single_graphs.*bare file name",
        ),
    ],
)
def test_bad_manifest(engine, edit, message):
    change(engine, edit)
    with pytest.raises(ManifestError, match=message) as error:
        load(engine)
    assert "\n" not in str(error.value)
    assert "manifest.json" in str(error.value)


def test_a_manifest_from_before_phase_rounds_means_none(engine):
    change(engine, lambda t: t["sampler"].pop("phase_rounds", None))
    assert load(engine).sampler.phase_rounds == 0
    change(engine, lambda t: t["sampler"].update(phase_rounds=2))
    assert load(engine).sampler.phase_rounds == 2


def test_a_causal_manifest_has_no_phase_rounds(engine):
    table = {"lookahead_blocks": 0, "block_frames": 4, "latency_samples": 896,
             "state_size": {"predictive": 1, "score": 1}}  # fmt: skip
    change(engine, lambda t: t.update(causal=table))
    assert load(engine).causal is not None
    change(engine, lambda t: t["sampler"].update(phase_rounds=2))
    with pytest.raises(ManifestError, match="phase_rounds is 2; expected 0 for a causal model"):
        load(engine)


def test_a_model_may_take_no_steps_by_default(engine):
    change(engine, lambda t: t["sampler"].update(n_steps=0))
    sampler = load(engine).sampler
    assert (sampler.n_steps, sampler.score_steps) == (0, 1)
    change(engine, lambda t: t["sampler"].update(n_steps=3))
    assert load(engine).sampler.score_steps == 3


def test_a_manifest_from_before_last_step_means_algorithm_1(engine):
    change(engine, lambda t: t["sampler"].pop("last_step", None))
    assert load(engine).sampler.last_step == "euler"
    change(engine, lambda t: t["sampler"].update(last_step="exact"))
    assert load(engine).sampler.last_step == "exact"


def test_a_manifest_from_before_the_share_of_noise_means_all_of_it(engine):
    change(engine, lambda t: t["sampler"].pop("noise", None))
    assert load(engine).sampler.noise == 1.0
    change(engine, lambda t: t["sampler"].update(noise=0.0))
    assert load(engine).sampler.noise == 0.0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100000, "\xff\xfe"])
def test_not_json(engine, text):
    (engine / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ManifestError):
        load(engine)


def test_huge_manifest(engine):
    (engine / "manifest.json").write_text(" " * (manifest_file.MANIFEST_MAX_BYTES + 1))
    with pytest.raises(ManifestError, match="larger"):
        load(engine)


def test_missing_parts(engine, tmp_path):
    with pytest.raises(ManifestError, match="not an engine folder"):
        load(tmp_path / "none")
    with pytest.raises(ManifestError, match="not an engine folder"):
        load(engine / "score.onnx")
    manifest = load(engine)
    (engine / "score.onnx").unlink()
    with pytest.raises(ManifestError, match="score graph"):
        manifest.verify_graphs(engine)
    (engine / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="No such file"):
        load(engine)


def test_truncated_and_exchanged_graphs(engine):
    manifest = load(engine)
    score, predictive = engine / "score.onnx", engine / "predictive.onnx"
    whole = score.read_bytes()
    score.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match="SHA-256"):
        manifest.verify_graphs(engine)
    score.write_bytes(predictive.read_bytes())
    with pytest.raises(ManifestError, match="SHA-256"):
        manifest.verify_graphs(engine)


def test_metadata_round_trip():
    manifest = make_manifest()
    metadata = manifest_file.manifest_to_metadata(manifest)
    assert all(isinstance(v, str) and k.startswith("dvpd.") for k, v in metadata.items())
    expected = json.loads(manifest.to_json())
    del expected["graphs"]
    assert manifest_file.metadata_to_dict({**metadata, "other": "ignored"}) == expected
    manifest_file.check_metadata(metadata, manifest, "score")
    with pytest.raises(ManifestError, match="different exports"):
        manifest_file.check_metadata({**metadata, "dvpd.version": "9"}, manifest, "score")
    with pytest.raises(ManifestError, match="different exports"):
        manifest_file.check_metadata({}, manifest, "score")
    with pytest.raises(ManifestError, match="not JSON"):
        manifest_file.check_metadata({**metadata, "dvpd.sde": "{"}, manifest, "score")
