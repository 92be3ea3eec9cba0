"""Reports: statistics, tables, the page, and writing them whole or not at all."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from dvpd.quality import report as reports
from dvpd.quality.models import System
from dvpd.quality.page import render_page
from dvpd.quality.report import (
    check_folder,
    compare,
    csv_text,
    json_text,
    load_baseline,
    primary_system,
    summarise_records,
    write_folder,
)
from dvpd.quality.tables import markdown, plain, ranked, tables
from dvpd.runtime.errors import InputError
from dvpd.runtime.spec import SamplerSpec

EVIL = '<script>alert("x")</script> & a|b'
VOID = {"meta", "br", "img", "link"}


def make_report(gain=0.3, n=12, seed=0, **extra):
    rng = np.random.default_rng(seed)
    records = []
    for i in range(n):
        noisy = {"pesq": float(1.5 + rng.random()), "si_sdr": float(rng.normal(5, 3))}
        figures = {"noisy": noisy}
        for system, factor in (("predictive", 0.5), ("full", 1.0)):
            figures[system] = {
                "pesq": noisy["pesq"] + factor * gain + float(rng.normal(0, 0.02)),
                "si_sdr": noisy["si_sdr"] + float(rng.normal(0, 1)),
            }
        name = EVIL if i == 3 else f"file{i:02d}"
        group = f"snr {(0, 5, 10)[i % 3]}"
        records.append({"name": name, "group": group, "sha256": f"{i:064x}", "figures": figures})
    records[5]["figures"]["full"]["si_sdr"] = math.inf
    report = {
        "format": reports.FORMAT,
        "model": "m & m",
        "backend": "ort",
        "set": "dev",
        "set_sha256": "0" * 64,
        "n_files": n,
        "seed": 0,
        "primary": "full",
        "settings": {"full": {"steps": 3, "alpha": 0.4, "tlb": "off", "t_rs": 0.12}},
        "versions": {"python": "3"},
        **summarise_records(records),
        "failures": [{"name": "bad", "error": EVIL}],
        "files": records,
    }
    return {**report, **extra}


def test_statistics_of_records():
    report = make_report()
    assert list(report["groups"]) == ["snr 0", "snr 5", "snr 10"]  # by number, not by letter
    assert report["groups"]["snr 5"]["n"] == 4
    column = [r["figures"]["full"]["pesq"] for r in report["files"] if r["group"] == "snr 5"]
    assert report["groups"]["snr 5"]["systems"]["full"]["pesq"] == pytest.approx(np.mean(column))
    against = report["differences"]["full"]
    assert against["noisy"]["pesq"]["mean"] == pytest.approx(0.3, abs=0.03)
    assert against["predictive"]["pesq"]["mean"] == pytest.approx(0.15, abs=0.03)
    assert against["noisy"]["pesq"]["significant"]
    assert report["systems"]["full"]["si_sdr"]["lost"] == 1  # infinite: not in the mean
    assert against["noisy"]["si_sdr"]["n"] == 11


def test_order_of_files():
    metric, order = ranked(make_report())
    assert metric == "pesq"
    gains = [gain for gain, _ in order]
    assert gains == sorted(gains)
    assert len(order) == 12


def test_primary_system():
    class Fake:
        sampler = SamplerSpec(t_rs=0.12, n_steps=3, alpha=0.4)

    one = System("a", 1, 0.4, "off", 0.12)
    default = System("b", 3, 0.4, "off", 0.12)
    severe = System("c", 3, 0.4, "severe", 0.12)
    assert primary_system((one, severe, default), Fake) == "b"
    assert primary_system((one, severe), Fake) == "a"
    assert primary_system((), Fake) == "predictive"

    class WithoutSteps:
        sampler = SamplerSpec(n_steps=0)

    assert primary_system((one, default), WithoutSteps) == "predictive"


def test_text_forms():
    report = make_report()
    strict = json.loads(json_text(report))
    assert strict["files"][5]["figures"]["full"]["si_sdr"] is None  # JSON knows no infinity
    assert len(csv_text(report).splitlines()) == 1 + 12 * 3
    text = plain(report)
    assert "snr 10 (4)" in text
    mean = report["systems"]["full"]["pesq"]["mean"]
    assert re.search(rf"^full +{mean:.3f} ± ", text, re.MULTILINE)
    lines = markdown(report).splitlines()
    for title in ("Summary", "Difference to the noisy input", "By degradation", "Failed files"):
        assert f"## {title}" in lines
    blocks = [line for line in lines if line.startswith("|")]
    # a pipe in a name makes no column
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in blocks if "alert" in line}
    assert widths <= {len(re.findall(r"(?<!\\)\|", line)) for line in blocks if "---" in line}


@pytest.mark.parametrize(("n", "wanted"), [(12, (3, 3)), (7, (5, 2)), (6, (6, 0))])
def test_best_and_worst_do_not_overlap(n, wanted):
    n_extremes = max(wanted)
    by_title = {t.title: t for t in tables(make_report(n=n), n_extremes)}
    named = [
        [row[0] for row in by_title[title].rows if row[0]] if title in by_title else []
        for title in ("Worst files", "Best files")
    ]
    assert tuple(map(len, named)) == wanted
    assert not set(named[0]) & set(named[1])
    gains = [float(row[2]) for row in by_title["Worst files"].rows if row[0]]
    assert gains == sorted(gains)


def with_levels(report):
    """The report with figures of pauses, that no file, one file and all files have."""
    for i, record in enumerate(report["files"]):
        for j, figures in enumerate(record["figures"].values()):
            figures["pause_lowered"] = j * (10.0 + i)
            figures["words_lost"] = float(i == 4) if i else math.nan
            figures["hiss"] = math.nan
    return {**report, **summarise_records(report["files"])}


def test_levels_have_their_own_tables_with_the_worst_recording():
    report = with_levels(make_report())
    by_title = {t.title: t for t in tables(report, 2)}
    assert by_title["Summary"].header == ("system", "PESQ", "SI-SDR (dB)")
    levels = by_title["Summary: pauses and levels"]
    assert levels.header == ("system", "noise lowered (dB)", "words lost (%)")  # no hiss anywhere
    worst = [row for row in levels.rows if row[0] == "worst recording"]
    assert worst == [("worst recording", f"{10 * j}.0", "1.0") for j in range(3)]
    assert "(1 undefined)" in levels.rows[0][2]
    files = by_title["Worst files: pauses and levels"]
    assert files.rows[0][:5] == ("file00", "snr 0", "+20.0", "noisy", "0.0")
    text = plain(report)
    assert "pauses and levels" in text
    assert re.search(r"worst recording +20\.0 +1\.0", text)
    assert ranked(report)[0] == "pesq"


def test_page_of_levels_alone():
    pytest.importorskip("matplotlib")
    report = with_levels(make_report(n=6))
    for record in report["files"]:
        for figures in record["figures"].values():
            del figures["pesq"], figures["si_sdr"]
    page = render_page({**report, **summarise_records(report["files"])}, {})
    assert "noise lowered (dB) by system" in page


def test_no_minus_zero():
    report = make_report(n=6)
    for record in report["files"]:
        record["figures"]["full"]["pesq"] = record["figures"]["noisy"]["pesq"] - 1e-9
    text = markdown({**report, **summarise_records(report["files"])})
    assert "+0.000 [+0.000 to +0.000] *" in text
    assert "-0.000" not in text


def test_baseline(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json_text(make_report(gain=0.1)))
    report = make_report(gain=0.3)
    result = compare(report, load_baseline(path))
    assert result["n_files"] == 12
    assert result["missing"] == 0
    assert result["differences"]["full"]["pesq"]["mean"] == pytest.approx(0.2)
    assert result["differences"]["full"]["pesq"]["significant"]
    assert result["differences"]["noisy"]["pesq"]["mean"] == 0.0
    assert not result["differences"]["noisy"]["pesq"]["significant"]
    assert result["differences"]["full"]["si_sdr"]["n"] == 11  # null in the baseline
    report["baseline"] = result
    assert "Difference to the baseline m & m" in [t.title for t in tables(report)]

    fewer = make_report(gain=0.1)
    fewer["files"] = fewer["files"][:7]
    assert compare(report, fewer)["missing"] == 5

    older = copy.deepcopy(make_report(gain=0.1))
    for record in older["files"]:
        del record["sha256"]
    assert compare(report, older)["n_files"] == 12

    changed = copy.deepcopy(make_report(gain=0.1))
    changed["files"][0]["sha256"] = "f" * 64
    other = copy.deepcopy(make_report(gain=0.1))
    for record in other["files"]:
        record["name"] += "x"
    for wrong in (changed, other):
        with pytest.raises(InputError, match="measured on another set"):
            compare(report, wrong)
    for text in ("{", "[]", '{"files": []}', '{"files": [{"name": "a"}]}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"r\.json"):
            load_baseline(path)


class Checker(HTMLParser):
    """Collects what a well-formed page without a network must not have."""

    def __init__(self):
        super().__init__()
        self.open, self.faults, self.ids, self.used, self.text = [], [], [], set(), []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("script", "link", "iframe"):
            self.faults.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href"):
                if value.startswith("#"):
                    self.used.add(value[1:])
                elif not value.startswith("data:image/png;base64,"):
                    self.faults.append(value)
            if "url(" in (value or "") and "url(#" not in value:
                self.faults.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_self_contained_and_escaped():
    pytest.importorskip("matplotlib")
    report = make_report()
    wavs = {k: np.random.default_rng(0).normal(size=8000) for k in ("clean", "noisy", "full")}
    silent = dict.fromkeys(wavs, np.zeros(100))
    page = render_page(report, {EVIL: wavs, "file00": silent})
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert not checker.faults
    assert len(checker.ids) == len(set(checker.ids))  # plots do not share clip paths
    assert checker.used <= set(checker.ids)
    assert page.count("<svg") == 3 * 2 + 2 * 2  # level and spectrograms of two files
    assert "Level of file00 over time" in page
    assert EVIL in "".join(checker.text)  # as text
    assert "#123456" not in page  # the ink is the page's


def test_page_fits_a_narrow_window():
    """Tables scroll in their own boxes, the first column stays; nothing is wider than the window."""
    pytest.importorskip("matplotlib")
    page = render_page(make_report(), {})
    assert 'name="viewport"' in page
    assert page.count('<div class="scroll"><table>') == page.count("<table") > 3
    style = page[page.index("<style>") : page.index("</style>")]
    assert ".scroll { overflow-x: auto" in style
    assert "figure svg { width: 100%" in style
    assert "figure.wide { overflow-x: auto" in style  # what has a least width scrolls
    widths = re.findall(r"(?<!max-)(?<!min-)width: ([0-9.]+)(px|rem)", style)
    assert not widths
    least = re.findall(r"minmax\(([^)]*)\)", style)
    assert least
    assert all("min(" in part for part in least)


def test_page_of_few_files_without_groups():
    pytest.importorskip("matplotlib")
    report = make_report(n=6)
    records = report["files"][5:]
    for record in records:
        record["group"] = ""
    small = {**report, **summarise_records(records), "files": records, "failures": []}
    page = render_page(small, {})
    assert "all files" in page
    assert "By degradation" not in page


def test_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = {"report.json": "1", "index.html": "1"}
    write_folder(out, first)
    write_folder(out, {**first, "report.md": "2"})  # replaces
    write = reports.write_whole

    def full_disk(path, text):
        if path.name == "index.html":
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(reports, "write_whole", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_folder(out, {"report.json": "3", "index.html": "3"})
    assert {p.name: p.read_text() for p in out.iterdir()} == {**first, "report.md": "2"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OSError, match="No space left"):
        write_folder(tmp_path / "new", first)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folder_is_checked_before_the_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        check_folder(tmp_path / "file")
    with pytest.raises(InputError, match="create it first"):
        check_folder(tmp_path / "nowhere" / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds thesis\.tex"):
        check_folder(tmp_path / "mine")

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reports.Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"no report can be written .* Permission denied"):
        check_folder(tmp_path / "out")
