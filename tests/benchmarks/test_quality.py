"""quality.py: the README's table, the sweeps, and quality against cost."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure

from dvpd.benchmarks import quality, readme
from dvpd.benchmarks.common import recordings
from dvpd.benchmarks.common.recordings import RATE_HZ
from dvpd.quality.models import sampler_grid
from dvpd.runtime.errors import InputError
from dvpd.runtime.manifest import Manifest

ASSETS = Path(__file__).resolve().parent.parent / "assets"


@pytest.fixture(scope="module")
def result(tiny_engine, tmp_path_factory):
    """The command on two recordings, with a sweep, every output and a README."""
    folder = tmp_path_factory.mktemp("quality")
    data = folder / "clips"
    for side in ("noisy", "clean"):
        (data / side).mkdir(parents=True)
        for i in range(2):
            wav, rate = soundfile.read(ASSETS / f"clip{i}_{side}.flac", frames=24000)
            soundfile.write(data / side / f"{i}.flac", wav, rate)
    readme = folder / "README.md"
    readme.write_text(
        f"before\n{quality.marks(quality.BLOCK)[0]}\nold\n{quality.marks(quality.BLOCK)[1]}\nafter\n"
    )
    files = {k: folder / f"q.{k}" for k in ("json", "markdown", "html")}
    code = quality.main([
        str(tiny_engine), "--set", str(data), "--sweeps", "alpha,steps", "--backend", "ort",
        "--jobs", "1", "--readme", str(readme), *(f"--{k}={v}" for k, v in files.items()),
    ])  # fmt: skip
    assert code == 0
    return json.loads(files["json"].read_text()), files, readme


def test_the_table_has_the_models_and_the_noisy_input(result):
    table, files, readme = result
    (model,) = table["models"]
    assert model["sets"]["clips"]["n"] == 2
    text = readme.read_text()
    assert text.startswith(f"before\n{quality.marks(quality.BLOCK)[0]}\n| clips: 2 recordings |")
    assert text.endswith(f"{quality.marks(quality.BLOCK)[1]}\nafter\n")
    assert "old" not in text
    assert "| SI-SDR, dB | words lost, % | speech level, dB |" in text
    assert model["sets"]["clips"]["systems"]["full"].keys() >= {*quality.SPOKEN, *quality.BANDS}
    assert not model["sets"]["clips"]["pauses"]
    assert "| `tiny`, 3 steps |" in text
    mean = model["sets"]["clips"]["systems"]["noisy"]["pesq"]["mean"]
    assert f"| noisy | {mean:.2f} (" in text
    assert files["markdown"].read_text().startswith("| clips: 2 recordings |")


def test_sweeps_meet_the_plain_measurement_where_they_cross(result):
    (model,) = result[0]["models"]
    systems = model["sets"]["clips"]["systems"]
    alpha = {p["value"]: p for p in model["sweeps"]["alpha"]}
    steps = {p["value"]: p for p in model["sweeps"]["steps"]}
    assert alpha[0.4]["figures"] == systems["full"]  # the manifest's alpha
    assert steps[3]["figures"] == systems["full"]
    # alpha = 1: the predictive magnitude alone
    for metric in quality.METRICS:
        assert alpha[1.0]["figures"][metric]["mean"] == pytest.approx(
            systems["predictive"][metric]["mean"], abs=0.01
        )
    assert [p["nfe"] for p in model["sweeps"]["steps"]] == [2, 3, 4, 5, 7, 9]
    assert set(model["rtf"]) == {"1", "2", "3", "4", "5", "7", "9"}
    assert all(value > 0 for value in model["rtf"].values())


def test_the_page_has_every_plot(result):
    text = result[1]["html"].read_text()
    # alpha against its value; steps against network calls and RTF: three measures each
    assert text.count("<svg") == 3 + 2 * 3
    assert "currentColor" in text
    assert "<script" not in text
    assert 'name="viewport"' in text
    assert text.count("<table") == 1 + 2  # the set and two sweeps
    assert "|---" not in text  # no Markdown
    assert "<pre" not in text


def test_a_stored_result_is_rendered_again_without_measuring(result, tmp_path, capsys):
    page = tmp_path / "again.html"
    stored = str(result[1]["json"])
    assert quality.main(["--from-json", stored, "--html", str(page)]) == 0
    assert page.read_text() == result[1]["html"].read_text()
    bad = tmp_path / "x.json"
    bad.write_text('{"format": 1}')
    assert quality.main(["--from-json", str(bad)]) == 1
    assert "not a result of this version's quality.py" in capsys.readouterr().err
    assert quality.main(["nowhere"]) == 1
    assert "give --set FOLDER" in capsys.readouterr().err


def test_labels_of_a_plot_cover_neither_each_other_nor_a_point():
    figure = Figure(dpi=72, figsize=(5, 4))
    axes = figure.add_subplot()
    rng = np.random.default_rng(3)
    points = [(f"a model with a name, {i}", *xy) for i, xy in enumerate(rng.random((9, 2)))]
    axes.plot([p[1] for p in points], [p[2] for p in points], "o")
    texts = quality.place_labels(axes, points)
    boxes = [t.get_window_extent() for t in texts]
    assert len(texts) == 9
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    places = axes.transData.transform([p[1:] for p in points])
    assert not any(box.contains(*place) for box in boxes for place in places)


def test_the_stored_page_of_quality_against_cost_has_the_stored_figures():
    folder = readme.ROOT / "benchmarks" / "results"
    page = (folder / "xeon-amx-2-cores" / "pareto.html").read_text()
    stored = quality.read(folder / "xeon-amx-2-cores" / "quality-20.json")
    others = quality.read_peers(folder / "xeon-2-cores" / "peers.json")
    points = quality.pareto_points(stored, others)
    assert {p["ours"] for p in points} == {True, False}
    for p in points:
        assert f"<td class=text>{p['name']}</td>" in page
        assert f"{p['pesq']:.2f} ({p['low']:.2f}-{p['high']:.2f})" in page
        assert f">{p['name']}</text>" in page  # beside its point


def test_a_set_with_pauses_is_measured_in_them(tiny_engine, tmp_path, monkeypatch):
    noisy, clean, speech = recordings.with_pauses()
    cut = 8 * RATE_HZ  # the first utterance and some of the pause
    for side, wav in (("noisy", noisy), ("clean", clean)):
        (tmp_path / "long" / side).mkdir(parents=True)
        soundfile.write(tmp_path / "long" / side / "0.flac", wav[:cut], RATE_HZ)
    start, end = speech[0]
    table = f"file\tspeech_samples\n0.flac\t{start}-{end}\n"
    (tmp_path / "long" / "pairs.tsv").write_text(table)
    monkeypatch.setattr(quality, "measure_rtf", lambda *_: {})
    result = quality.measure_model(tiny_engine, [tmp_path / "long"], [], backend="ort")
    figures = result["sets"]["long"]["systems"]
    assert figures["noisy"]["pause_lowered"]["mean"] == 0.0
    assert set(figures["full"]) == {*quality.METRICS, *quality.LEVELS}
    text = quality.set_tables({"models": [result]})
    header, _, noisy_row, *others = text.splitlines()
    assert header.startswith("| long: 1 recordings | noise lowered, dB | least lowered, dB |")
    assert noisy_row.startswith("| noisy | 0.0 | 0.0 | 0.0 |")
    assert others[0].startswith("| `tiny`, predictive alone")


def test_what_each_sweep_varies(tiny_engine):
    manifest = Manifest.load(tiny_engine)
    default = sampler_grid(manifest)[0]
    for sweep in quality.SWEEPS:
        for s, value in zip(
            quality.sweep_systems(manifest, sweep), quality.SWEEPS[sweep], strict=True
        ):
            assert (s.alpha == value) if sweep == "alpha" else (s.alpha == default.alpha)
            if sweep == "t_rs":
                assert s.t_rs / s.steps == pytest.approx(quality.STEP_T)
            if sweep == "paper-steps":
                assert s.t_rs == manifest.sde.t_max
    assert [s.steps for s in quality.sweep_systems(manifest, "t_rs")] == [1, 2, 3, 4, 5, 6]


def test_peers_join_only_on_the_same_recordings(result):
    table = json.loads(json.dumps(result[0]))
    model = table["models"][0]
    model["gmacs"] = {"predictive": 0.5, "score": 0.6, "total": 2.3}
    figures = {"mean": 2.0, "low": 1.9, "high": 2.1}
    same = {"pesq": figures, "sha256": model["sets"]["clips"]["sha256"]}
    made = [
        {"name": "same", "gmacs": 1.0, "quality": same},
        {"name": "other set", "gmacs": 1.0, "quality": {**same, "sha256": "0"}},
        {"name": "no weights", "gmacs": 1.0, "quality": None},
        {"name": "tiny, predictive alone", "gmacs": 1.0, "quality": same},  # ours is no peer
    ]
    points = quality.pareto_points(table, {"peers": made})
    assert [p["name"] for p in points if not p["ours"]] == ["same"]
    ours = {p["name"]: p["gmacs"] for p in points if p["ours"]}
    assert ours["tiny, predictive"] == 0.5
    assert ours["tiny, 3 steps"] == pytest.approx(2.3)
    assert quality.to_html(table, {"peers": made}).count("<svg") == 10


def test_a_readme_without_markers_is_refused_before_time_is_spent(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    assert quality.main(["--set", str(tmp_path), "--readme", str(readme)]) == 1
    assert "needs <!-- quality table: begin -->" in capsys.readouterr().err
    with pytest.raises(InputError):
        quality.replace_block(
            f"{quality.marks(quality.BLOCK)[1]}{quality.marks(quality.BLOCK)[0]}", ""
        )


def test_numbers_out_of_range_are_wrong_usage(capsys):
    for option, value in (("--limit", "-5"), ("--jobs", "0"), ("--jobs", "x")):
        assert quality.main([option, value]) == 2
        assert f"argument {option}: {value!r} is not a whole number" in capsys.readouterr().err


def test_peers_of_another_version_are_refused(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"format": "x"}')
    with pytest.raises(InputError, match=r"not a result of this version's peers\.py"):
        quality.read_peers(path)


def test_a_causal_model_is_timed_with_its_state(causal_engine):
    found = quality.measure_rtf(causal_engine, "ort", [0, 1])
    assert set(found) == {"1", "2"}
    assert all(value > 0.0 for value in found.values())
