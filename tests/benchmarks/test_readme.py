"""The pages' tables come from results that were measured, and the shipped pages have them."""

from __future__ import annotations

import json

import pytest

from dvpd.benchmarks import quality
from dvpd.benchmarks.common import report
from dvpd.benchmarks.readme import (
    BLOCKS,
    PAGES,
    RESULTS,
    ROOT,
    fill,
    find,
    main,
    short_quality,
    short_speed,
    sizes,
    speed,
)


def _text(*names: str) -> str:
    return "\n".join(f"{quality.marks(n)[0]}\nSTALE\n{quality.marks(n)[1]}" for n in names)


def test_the_pages_have_the_figures_of_the_results():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    for name in BLOCKS:
        assert sum(text.count(quality.marks(name)[0]) for text in texts) == 1, name
    for text in texts:
        assert fill(text, RESULTS) == text, "run python benchmarks/readme.py"
    assert main(["--check"]) == 0


def test_a_folder_s_results_are_of_one_machine():
    for folder in RESULTS:
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        cpus = {
            f["machine"]["cpu"]
            for f in found
            if isinstance(f, dict) and "cpu" in f.get("machine", {})
        }
        assert len(cpus) == 1, folder


def test_the_first_folder_that_has_a_result_gives_it(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    (second / "rtf.json").write_text("{}")
    assert find("rtf.json", (first, second)) == second / "rtf.json"
    (first / "rtf.json").write_text("{}")
    assert find("rtf.json", (first, second)) == first / "rtf.json"
    assert find("macs.json", (first, second)) == first / "macs.json"


def test_a_stale_readme_is_noticed_and_mended(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text("before\n" + _text("speed", "sizes") + "\nafter\n")
    assert main(["--readme", str(path), "--check"]) == 1
    assert "has other figures" in capsys.readouterr().out
    assert main(["--readme", str(path)]) == 0
    assert main(["--readme", str(path), "--check"]) == 0
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "STALE" not in text


def test_speed_takes_its_figures_from_the_rows():
    found = report.read(find("rtf.json", RESULTS))
    row = next(r for r in report.base_rows(found) if r["backend"] == "openvino")
    line = next(
        text
        for text in speed(found).splitlines()
        if text.startswith(f"| `{row['engine']}` | openv")
    )
    without = next(
        r
        for r in found["rows"]
        if r["steps"] == 0 and all(r[k] == row[k] for k in ("engine", "backend", "frames", "batch"))
    )
    assert f"| {without['rtf']:.3f} | {row['rtf']:.3f} |" in line
    for each in (without, row):
        assert f"| {each['latency_ms']['p50']:.0f} / " in line
    assert "| RTF, 0 steps | RTF, 1 step |" in speed(found)
    assert "take 0 steps by default; cold start and memory are of 0 steps." in speed(found)
    others = json.loads(json.dumps(found))
    for each in others["rows"]:
        if each["status"] == "ok":
            each["rtf"] *= 2
    assert speed(others) != speed(found)


def test_the_short_speed_is_that_of_the_default_on_the_fastest_backend():
    found = report.read(find("rtf.json", RESULTS))
    header, _, *table = short_speed(found).split("\n\n")[0].splitlines()
    assert header == "| model | backend | RTF, 0 steps | RTF, 1 step |"
    rows = report.base_rows(found)
    assert len(table) == len({row["engine"] for row in rows})
    alone = [
        r
        for r in found["rows"]
        if (r["steps"], r["batch"], r["frames"]) == (0, 1, rows[0]["frames"])
    ]
    for line in table:
        name, backend = line.split("`")[1], line.split(" | ")[1]
        best = min(r["rtf"] for r in alone if r["engine"] == name)
        (with_step,) = (r["rtf"] for r in rows if (r["engine"], r["backend"]) == (name, backend))
        assert line.endswith(f"| {best:.2f} | {with_step:.2f} |")
    assert short_speed(found).endswith("; 0 steps by default.")


@pytest.mark.parametrize("kept", [0, 1])
def test_speed_with_one_number_of_steps_has_one_column(kept):
    found = report.read(find("rtf.json", RESULTS))
    found["rows"] = [r for r in found["rows"] if r["steps"] == kept]
    header = short_speed(found).splitlines()[0]
    assert header == f"| model | backend | RTF, {kept} step{'s' * (kept != 1)} |"
    text = speed(found)
    assert ("| RTF, 0 steps | RTF, 1 step |" in text) == (kept == 1)
    assert all(
        line.count("|") == text.splitlines()[0].count("|")
        for line in text.split("\n\n")[0].splitlines()
    )


def _result(sha: str) -> dict:
    def systems(pesq, estoi, lowered=None):
        figures = {"pesq": {"mean": pesq}, "estoi": {"mean": estoi}}
        return figures | ({"pause_lowered": {"mean": lowered}} if lowered is not None else {})

    sets = {
        "noise": {"n": 60, "systems": {"noisy": systems(1.5, 0.7), "predictive": systems(2.5, 0.8),
                                       "full": systems(2.75, 0.9)}},
        "pauses": {"n": 12, "systems": {"noisy": systems(1, 1, -0.0), "predictive": systems(1, 1, 40.4),
                                        "full": systems(1, 1, 38.6)}},
    }  # fmt: skip
    model = {
        "model": "dvpd-tiny",
        "default": {"n_steps": 2},
        "checkpoint_sha256": sha,
        "sets": sets,
    }
    return {"created": "2026-11-28T01:00:00", "models": [model]}


def test_the_short_quality_has_a_column_a_set_and_pauses_in_decibels():
    text = short_quality(_result("another"))
    assert "|  | noise: PESQ / ESTOI | pauses: noise lowered, dB |" in text
    assert "| noisy | 1.50 / 0.70 | 0 |" in text
    assert "| `dvpd-tiny`, 0 steps | 2.50 / 0.80 | 40 |" in text
    assert "| `dvpd-tiny`, 2 steps | 2.75 / 0.90 | 39 |" in text
    assert "60 of noise, 12 of pauses" in text
    result = _result("another")  # of an engine that takes no steps by default: one was measured
    result["models"][0] |= {"default": {"n_steps": 0}, "full_steps": 1}
    assert "| `dvpd-tiny`, 1 step | 2.75 / 0.90 | 39 |" in short_quality(result)


def test_the_quality_says_when_the_shipped_weights_are_others():
    manifest = ROOT / "engines" / "dvpd-tiny" / "manifest.json"
    shipped = json.loads(manifest.read_text())["checkpoint_sha256"]
    assert short_quality(_result(shipped)).endswith("Measured 2026-11-28.")
    assert short_quality(_result("another")).endswith("the weights were trained further since.")


def test_sizes_by_hand():
    model = {"name": "x", "parameters": {"predictive": 1e6, "total": 2e6},
             "macs_per_second": {"predictive": 3e9, "total": 4e9}}  # fmt: skip
    assert "| `x` | 1.00 M / 2.00 M | 3.00 / 4.00 |" in sizes([model])


@pytest.mark.parametrize(
    ("text", "named"),
    [("nothing", "no marks"), (quality.marks("speed")[0], "once each and in this order")],
)
def test_wrong_marks(tmp_path, text, named, capsys):
    path = tmp_path / "README.md"
    path.write_text(text)
    assert main(["--readme", str(path)]) == 1
    assert named in capsys.readouterr().err
    assert path.read_text() == text


def test_missing_results(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(_text("speed"))
    assert main([str(tmp_path), "--readme", str(path)]) == 1
    assert "rtf.json" in capsys.readouterr().err
