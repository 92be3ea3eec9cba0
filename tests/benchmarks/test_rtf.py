"""rtf.py measures what it says, survives what goes wrong, and its report fits the schema."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dvpd.benchmarks import rtf
from dvpd.benchmarks.common import comparison, machine, meters, report, report_html, tables
from dvpd.benchmarks.common import timing as time_cases
from dvpd.runtime import engines
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import BackendError, InputError

pytest.importorskip("jsonschema")
QUICK = ["--runs", "3", "--case-seconds", "0", "--windows", "0.512,0.256", "--batch", "1,2",
         "--steps", "1,0", "--threads", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def measured(tiny_engine, tiny_engine_fp16, tmp_path_factory):
    """One report of two engines and every backend, made through the command line."""
    folder = tmp_path_factory.mktemp("report")
    files = [folder / f"r.{kind}" for kind in ("json", "md", "html")]
    code = rtf.main([
        str(tiny_engine), str(tiny_engine_fp16), *QUICK, "--cold-runs", "1", "--device", "cpu",
        "--json", str(files[0]), "--markdown", str(files[1]), "--html", str(files[2]),
        "--note", "a test",
    ])  # fmt: skip
    assert code == 0
    return report.read(files[0]), files


def test_help_names_the_steps_that_are_timed(capsys):
    """The order is that of the cases; their first is the base case."""
    with pytest.raises(SystemExit):
        rtf.build_parser().parse_args(["--help"])
    assert f"(default: {','.join(map(str, rtf.STEPS))};" in " ".join(
        capsys.readouterr().out.split()
    )


# ------------------------------------------------------------------------------------------------
# What is timed


@pytest.mark.parametrize("steps", [0, 2])
def test_what_is_timed_is_what_the_enhancer_does(tiny_engine, steps):
    with Enhancer.open(tiny_engine, "ort", "cpu", 1) as enhancer:
        frames = time_cases.frames_of(0.512, enhancer.manifest)
        wavs = time_cases.make_audio(enhancer.manifest, frames, 2)
        out, timing = time_cases.enhance_windows(
            enhancer.backend, enhancer.manifest, wavs, steps, seed=5
        )
        for wav, enhanced in zip(wavs, out, strict=True):
            expected = enhancer.enhance(wav, 16000, steps=steps, seed=5).wav
            np.testing.assert_allclose(enhanced, expected, atol=1e-6)
    assert frames == 64
    assert len(timing.score) == steps
    parts = timing.stft + timing.predictive + sum(timing.score) + timing.fusion + timing.istft
    assert parts == pytest.approx(timing.total, rel=1e-6)


class OnDevice:
    """A backend that runs the whole sampler itself, and says so if it is called any other way."""

    def __init__(self, inner):
        self.inner, self.name, self.device = inner, "tensorrt", "cuda"

    def run_sampler(self, noisy, noise, *, start, steps, alpha, tlb):
        from dvpd.runtime.sampler import sample

        return sample(self.inner, noisy, start=start, steps=steps, alpha=alpha, tlb=tlb,
                      draw=lambda i: noise[i])  # fmt: skip

    def predict(self, noisy):
        raise AssertionError("the whole sampler was there to be used")

    score = predict

    def close(self):
        self.inner.close()


def test_a_sampler_on_the_device_is_timed_as_it_is_used(tiny_engine):
    """Through predict and score a captured graph would be left out of the figures."""
    item = time_cases.load(tiny_engine, "ort", "cpu", 1)
    wavs = time_cases.make_audio(item.manifest, 64, 1)
    expected, _ = time_cases.enhance_windows(item.backend, item.manifest, wavs, 3)
    item.backend = OnDevice(item.backend)
    out, timing = time_cases.enhance_windows(item.backend, item.manifest, wavs, 3)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert timing.predictive == sum(timing.score) == 0.0
    parts = timing.stft + timing.sampler + timing.fusion + timing.istft
    assert parts == pytest.approx(timing.total, rel=1e-6)
    rows = rtf.make_cases([item], [0.512], [1], [3], grid=False)
    time_cases.time_interleaved(rows, min_runs=2, min_seconds=0)
    row = rtf.summarise(rows[0])
    assert row["stages_ms"]["sampler"] > 0
    (line,) = report.stage_rows({"rows": [row]})
    assert line[2] is None
    assert line[3].endswith("(whole sampler)")
    item.backend.close()


def test_rows_are_interleaved_in_a_new_order_every_round(tiny_engine, monkeypatch):
    item = time_cases.load(tiny_engine, "ort", "cpu", 1)
    rows = rtf.make_cases([item], [0.256], [1], [0, 1, 2, 3], grid=False)
    order = []
    real = time_cases.enhance_windows

    def spy(backend, manifest, wavs, steps, seed=0):
        order.append(steps)
        return real(backend, manifest, wavs, steps, seed)

    monkeypatch.setattr(time_cases, "enhance_windows", spy)
    time_cases.time_interleaved(rows, min_runs=4, min_seconds=0)
    rounds = [order[i : i + 4] for i in range(0, len(order), 4)]
    assert len(rounds) == time_cases.WARM_UP_ROUNDS + 4
    assert all(sorted(r) == [0, 1, 2, 3] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert all(len(row.timings) == 4 for row in rows)
    item.backend.close()


class FakeClock:
    """Time that passes only where the test lets it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def _timed_with_a_budget(engine, monkeypatch, budget_s, slow_s=4.0):
    """Cases of 1 s, and one of ``slow_s``; their rows, and the seconds that they took."""
    clock, item = FakeClock(), time_cases.load(engine, "ort", "cpu", 1)
    rows = rtf.make_cases([item], [0.512, 0.256], [1], [3, 1], grid=False)
    timing = time_cases.Timing(1.0, 0.1, 0.1, [], None, 0.1, 0.1)

    def work(backend, manifest, wavs, steps, seed=0):
        clock.now += slow_s if steps == 1 else 1.0
        return wavs, timing

    monkeypatch.setattr(time_cases, "enhance_windows", work)
    time_cases.time_interleaved(rows, min_runs=20, min_seconds=1.0, budget_s=budget_s, clock=clock)
    item.backend.close()
    return rows, clock.now


@pytest.mark.parametrize(
    ("budget_s", "runs", "seconds"),
    [
        (math.inf, 20, 22 * 6.0),  # no limit: two rounds to warm up, twenty that count
        (60.0, 8, 10 * 6.0),  # ten rounds of 6 s
        (59.0, 7, 9 * 6.0),  # the tenth would end too late
        (13.0, 1, 2 * 6.0),  # one to warm up: the second would leave no time
        (0.0, 1, 2 * 6.0),  # never less than one of each
    ],
)
def test_a_budget_means_fewer_rounds_and_not_fewer_cases(
    tiny_engine, monkeypatch, budget_s, runs, seconds
):
    rows, took = _timed_with_a_budget(tiny_engine, monkeypatch, budget_s)
    assert [len(row.timings) for row in rows] == [runs] * 3
    assert took == seconds


def test_what_the_budget_cut_is_said(tiny_engine, monkeypatch):
    args = rtf.build_parser().parse_args([])
    assert args.seconds == 60.0  # of an engine, without being asked
    rows, _ = _timed_with_a_budget(tiny_engine, monkeypatch, args.seconds)
    (line, fresh) = rtf.cut_short(args, rows, [{"processes": 1}, {"error": "gone"}])
    assert "fewer rounds: 3 of 3 cases have 8 runs, not 20 runs" in line
    assert "within 60 s an engine; a larger --seconds gives more; no case was left out" in line
    assert "fewer fresh processes: 1, not 3" in fresh
    rows, _ = _timed_with_a_budget(tiny_engine, monkeypatch, math.inf)
    assert rtf.cut_short(args, rows, [{"processes": 3}]) == []


def test_fresh_processes_keep_to_their_budget(tiny_engine, monkeypatch):
    clock, started = FakeClock(), []

    def process(command, **_):
        started.append(command)
        clock.now += 5.0
        return SimpleNamespace(
            stdout=json.dumps({"steps": 0, "cold_start_s": 5.0}), stderr="", returncode=0
        )

    monkeypatch.setattr(rtf.subprocess, "run", process)
    items = [time_cases.Loaded(tiny_engine, name, "cpu") for name in ("ort", "openvino")]
    for budget_s, rounds in ((math.inf, 3), (25.0, 2), (0.0, 1)):
        started.clear()
        clock.now = 0.0
        rows = rtf.measure_cold(items, 1, 3, lambda _: None, budget_s, clock)
        assert [(row["processes"], row["steps"]) for row in rows] == [(rounds, 0)] * 2
        assert len(started) == 2 * rounds


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_seconds_are_checked(text, capsys):
    with pytest.raises(SystemExit):
        rtf.build_parser().parse_args(["--seconds", text])
    assert f"{text!r} is not a number from 0" in capsys.readouterr().err


def test_axes_around_the_base_case_or_the_whole_grid(tiny_engine):
    item = time_cases.load(tiny_engine, "ort", "cpu", 1)
    axes = ([0.512, 0.256, 1.024], [1, 2], [3, 0])
    assert len(rtf.make_cases([item], *axes, grid=False)) == 1 + 2 + 1 + 1
    assert len(rtf.make_cases([item], *axes, grid=True)) == 12
    item.backend.close()
    with pytest.raises(InputError, match=r"expected 0\.256 to 60 s"):
        time_cases.frames_of(0.1, item.manifest)


# ------------------------------------------------------------------------------------------------
# The report


def test_the_report_has_every_row_and_its_protocol(measured, tiny_engine):
    result, _ = measured
    backends = {"ort", "openvino"} if rtf.installed("openvino") else {"ort"}
    assert {r["engine"] for r in result["rows"]} == {"tiny", "tiny16"}
    assert {r["backend"] for r in result["rows"]} >= backends
    good = [r for r in result["rows"] if r["status"] == "ok"]
    assert len(good) >= 2 * len(backends) * 4
    for row in good:
        assert len(row["samples_ms"]) == row["runs"] >= 3
        assert row["latency_ms"]["p50"] == pytest.approx(np.median(row["samples_ms"]), abs=1e-3)
        audio_s = row["batch"] * row["window_s"]
        assert row["rtf"] == pytest.approx(row["latency_ms"]["p50"] / 1e3 / audio_s, rel=1e-3)
        assert row["audio_s_per_s"] * row["rtf"] == pytest.approx(1)
        assert len(row["stages_ms"]["score"]) == row["steps"]
        stages = row["stages_ms"]
        assert sum(stages["score"]) + stages["predictive"] < row["latency_ms"]["max"]
    protocol = result["protocol"]
    assert protocol["threads"] == 1
    assert protocol["note"] == "a test"
    assert protocol["versions"]["numpy"] == np.__version__
    hashes = json.loads((tiny_engine / "manifest.json").read_text())["graphs"]
    assert protocol["graphs"]["tiny"]["score"] == hashes["score"]["sha256"]
    assert result["peak"]["gflops"] > 0
    assert result["peak"]["bandwidth_gbs"] > 0


def test_fresh_processes_report_their_own_memory_and_times(measured):
    result, _ = measured
    good = [p for p in result["processes"] if p["status"] == "ok"]
    assert good
    for row in good:
        parts = row["start_s"] + row["load_s"] + row["first_window_s"]
        assert row["cold_start_s"] == pytest.approx(parts, rel=0.05)
        assert row["start_s"] > 0
        # this process has torch, matplotlib and all engines in it: a fresh one must not show that
        assert 30 < row["peak_rss_mib"] < 1000


def test_without_a_meter_there_is_no_figure_but_a_sentence(measured):
    result, (_, markdown, _) = measured
    if result["meters"]["found"]:
        pytest.skip("this machine has an energy meter")
    assert set(result["meters"]["absent"]) == {"RAPL", "NVML", "INA"}
    assert all(r["energy"] is None for r in result["rows"] if r["status"] == "ok")
    assert "No energy figures, for want of a meter (RAPL: " in markdown.read_text()


def test_the_page_is_one_file_with_four_plots(measured):
    _, (_, markdown, page) = measured
    text = page.read_text()
    assert text.count("<svg") == 4
    assert "prefers-color-scheme: dark" in text
    for outside in ("<script", "<link", 'src="http', "url(http", "@import"):
        assert outside not in text
    assert report_html.INK not in text  # every line and letter takes the page's colour
    for svg in text.split("<svg")[1:]:
        ET.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    assert "| engine | backend |" in markdown.read_text()


def test_the_page_fits_a_narrow_window(measured):
    _, (_, _, page) = measured
    text = page.read_text()
    assert 'name="viewport"' in text
    assert text.count('<div class="scroll"><table') == text.count("<table") > 3
    assert "|---" not in text
    assert "minmax(min(27rem, 100%), 1fr)" in text
    sizes = [float(x) for x in re.findall(r'<svg[^>]* width="([0-9.]+)pt"', text)]
    assert len(sizes) == 4
    assert max(sizes) <= 400  # at 370 pixels letters of 10 points are not much smaller
    for name in {report.label(r) for r in report.base_rows(measured[0])}:
        assert text.count(f">{name}</text>") >= 4  # every plot says which curve is which


def test_a_report_renders_again_from_its_file(measured, tmp_path, capsys):
    _, (path, markdown, _) = measured
    again = tmp_path / "again.md"
    assert rtf.main(["--from-json", str(path), "--markdown", str(again)]) == 0
    assert again.read_text() == markdown.read_text()
    assert "Speed" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------
# What goes wrong


class Failing:
    """A backend that stops working in the middle."""

    def __init__(self, inner, good_calls):
        self.inner, self.left = inner, good_calls
        self.name, self.device = inner.name, inner.device

    def predict(self, noisy):
        self.left -= 1
        if self.left < 0:
            raise BackendError("the engine fell over")
        return self.inner.predict(noisy)

    def score(self, *arrays):
        return self.inner.score(*arrays)

    def close(self):
        self.inner.close()


def test_a_backend_that_fails_in_the_middle_is_a_row_and_the_others_finish(tiny_engine):
    items = [time_cases.load(tiny_engine, "ort", "cpu", 1) for _ in range(2)]
    items[0].backend = Failing(items[0].backend, good_calls=4)
    rows = rtf.make_cases(items, [0.256], [1], [1], grid=False)
    time_cases.time_interleaved(rows, min_runs=6, min_seconds=0)
    broken, fine = (rtf.summarise(row) for row in rows)
    assert broken["status"] == "failed"
    assert broken["error"] == "the engine fell over"
    assert "rtf" not in broken
    assert fine["runs"] == 6


def test_an_engine_that_does_not_load_is_a_row(tiny_engine, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_engine, damaged)
    (damaged / "score.onnx").write_bytes(b"no graph")
    out = tmp_path / "r.json"
    command = [str(damaged), str(tiny_engine), "--backend", "ort", "--device", "cpu", *QUICK,
               "--cold-runs", "1", "--json", str(out)]  # fmt: skip
    assert rtf.main(command) == 0
    rows = report.read(out)["rows"]
    failed = [r for r in rows if r["status"] == "failed"]
    assert [r["engine"] for r in failed] == ["damaged"]
    assert "SHA-256" in failed[0]["error"]
    assert len(rows) > 1
    assert "failed" in capsys.readouterr().out
    assert rtf.main([*command, "--assert", "rtf<1e9"]) == 1  # a failed row meets nothing
    assert "not met: rtf<1e9: damaged ort" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["ENGINE", "--backend", "cuda9"], "backend is 'cuda9'"),
    (["nowhere"], "no engine is called 'nowhere'"),
    (["no/where"], "no/where: not there; give an engine folder, or a checkpoint"),
    (["ENGINE", "--json", "/nonexistent/x.json"], "folder does not exist"),
    (["ENGINE", "--html", "/"], "/: is a folder; give a file name"),
    (["ENGINE", "--assert", "rtf is small"], "expected FIELD<NUMBER"),
    (["ENGINE", "--backend", "torch"], "torch runs checkpoints"),
    (["ENGINE", "--windows", "70", "--backend", "ort"], "expected 0.256"),
    (["--from-json", "/nonexistent.json"], "No such file"),
])  # fmt: skip
def test_bad_input_is_one_line(tiny_engine, capsys, arguments, message):
    words = [str(tiny_engine) if w == "ENGINE" else w for w in arguments]
    assert rtf.main(words) == (2 if "--assert" in words else 1)  # 2: nothing was begun
    error = capsys.readouterr().err
    assert message in error
    lines = error.splitlines()  # what is being done is said, too, where that takes long
    assert [line for line in lines if not line.startswith("dvpd: loading")] == lines[-1:]


def test_a_report_of_another_version_or_shape_is_refused(measured, tmp_path):
    result, _ = measured
    other = {**result, "schema": "dvpd-rtf-0"}
    with pytest.raises(InputError, match="schema is 'dvpd-rtf-0'; this version reads"):
        report.validate(other)
    broken = copy.deepcopy(result)
    del next(r for r in broken["rows"] if r["status"] == "ok")["rtf"]
    with pytest.raises(InputError, match="does not fit the schema at rows/0: 'rtf' is a required"):
        report.validate(broken)
    path = tmp_path / "r.json"
    path.write_text("[1]")
    with pytest.raises(InputError, match="schema is None"):
        report.read(path)


def test_a_busy_machine_and_moving_clocks_are_warnings(monkeypatch):
    readings = iter([(10.0, 1.0), (10.0 + 3600.0 * (os.cpu_count() or 1), 1.0)])
    monkeypatch.setattr(machine.CpuWatch, "_read", staticmethod(lambda: next(readings)))
    clocks = iter([[1000.0, 1000.0], [1000.0, 1400.0]])
    monkeypatch.setattr(machine, "clocks_mhz", lambda: next(clocks))
    watch = machine.CpuWatch()
    watch.look()
    busy, moved = watch.warnings()
    assert "busy machine: other processes used 100%" in busy
    assert "clocks moved between 1000 and 1400 MHz" in moved


# ------------------------------------------------------------------------------------------------
# Conditions


def fake(rows, processes=()):
    return {"rows": list(rows), "processes": list(processes)}


def row(**change):
    base = {
        "engine": "e", "backend": "ort", "device": "cpu", "precision": "fp32", "window_s": 2.04,
        "frames": 256, "batch": 1, "steps": 3, "status": "ok", "error": None, "rtf": 0.4,
        "latency_ms": {"p50": 800.0, "p99": 900.0},
    }  # fmt: skip
    return {**base, **change}


@pytest.mark.parametrize(("text", "n_missed"), [
    ("rtf<0.5", 0), ("rtf < .4", 1), ("rtf<=0.4", 0), ("rtf>0.5", 1), ("p99_ms<=9e2", 0),
    ("p99_ms<900 @ backend=ort steps=3", 1), ("rtf<0.5 @ backend=openvino", 1),
    ("rtf<0.1 @ window_s=2.048", 1), ("rtf<0.1 @ window_s=4.096", 1), ("peak_rss_mib<100", 1),
    ("peak_rss_mib<200", 0), ("gpu_mib<1", 1),
])  # fmt: skip
def test_conditions(text, n_missed):
    process = {"engine": "e", "backend": "ort", "device": "cpu", "status": "ok", "error": None,
               "peak_rss_mib": 150.0, "gpu_mib": None}  # fmt: skip
    missed = comparison.check(comparison.parse_condition(text), fake([row()], [process]))
    assert len(missed) == n_missed, missed


@pytest.mark.parametrize("text", [
    "rtf", "rtf<", "rtf<fast", "rtf==0.5", "speed<1", "rtf<0.5 @ colour=red", "rtf<0.5 @ steps",
    "__import__('os')<1", "rtf<0.5; 1",
])  # fmt: skip
def test_conditions_of_another_form_are_refused(text):
    with pytest.raises(InputError):
        comparison.parse_condition(text)


# ------------------------------------------------------------------------------------------------
# Comparison


def compared(before, after):
    def one(samples):
        samples = [float(x) for x in samples]
        return {
            "rows": [row(samples_ms=samples, latency_ms={"p50": float(np.median(samples))})],
            "warnings": [], "machine": {"cpu": "c"},
        }  # fmt: skip

    return comparison.compare(one(before), one(after))[0]


def test_comparison_finds_a_real_difference_and_no_other():
    rng = np.random.default_rng(1)
    base = 100 + rng.standard_normal(40)
    faster = compared(base, 90 + rng.standard_normal(40))
    assert faster.verdict == "faster"
    assert faster.low < faster.ratio < faster.high < 1
    assert compared(base, 110 + rng.standard_normal(40)).verdict == "slower"
    assert compared(base, 100 + rng.standard_normal(40)).verdict == "no difference shown"
    # significant, and too small to mean anything
    assert compared(base, 101 + 0.01 * rng.standard_normal(40)).verdict == "no difference shown"
    # large, and lost in the noise
    wild = compared(100 + 80 * rng.random(5), 80 + 80 * rng.random(5))
    assert wild.verdict == "no difference shown"


def test_comparison_names_what_cannot_be_compared(measured, tmp_path, capsys):
    result, (path, _, _) = measured
    other = copy.deepcopy(result)
    first, second, *rest = [r for r in other["rows"] if r["status"] == "ok"]
    second.update(status="failed", error="gone")
    for name in ("runs", "samples_ms", "latency_ms", "rtf", "stages_ms"):
        second.pop(name)
    other["rows"].remove(first)
    for r in rest:
        r["samples_ms"] = [3 * x for x in r["samples_ms"]]
        r["latency_ms"] = {k: 3 * v for k, v in r["latency_ms"].items()}
    changed = tmp_path / "b.json"
    changed.write_text(json.dumps(other))
    assert rtf.main(["--compare", str(path), str(changed)]) == 0
    text = capsys.readouterr().out
    assert "only in the first report" in text
    assert "failed in the second report" in text
    changes = comparison.compare(result, other)
    assert all(c.ratio == pytest.approx(3, rel=0.01) for c in changes if c.ratio is not None)


# ------------------------------------------------------------------------------------------------
# Meters, on made-up trees of /sys


def write(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def test_rapl_counts_across_its_wrap(tmp_path):
    folder = "sys/class/powercap/intel-rapl:0"
    write(tmp_path, {f"{folder}/name": "package-0", f"{folder}/energy_uj": 900_000,
                     f"{folder}/max_energy_range_uj": 999_999,
                     "sys/class/powercap/intel-rapl:0:0/name": "core"})  # fmt: skip
    found, absent = meters.find_meters(tmp_path)
    (meter,) = [m for m in found if m.name.startswith("RAPL")]
    assert meter.name == "RAPL package-0"
    with meters.measuring(meter) as reading:
        write(tmp_path, {f"{folder}/energy_uj": 400_000})
    assert reading.joules == pytest.approx(0.5)
    assert "RAPL" not in absent


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_rapl_without_permission_says_the_cure(tmp_path):
    folder = "sys/class/powercap/intel-rapl:0"
    write(tmp_path, {f"{folder}/name": "package-0", f"{folder}/energy_uj": 1,
                     f"{folder}/max_energy_range_uj": 9})  # fmt: skip
    (tmp_path / folder / "energy_uj").chmod(0)
    assert "sudo chmod" in meters.find_meters(tmp_path)[1]["RAPL"]


def test_rapl_refused_by_the_system_says_the_cure(tmp_path, monkeypatch):
    folder = "sys/class/powercap/intel-rapl:0"
    write(tmp_path, {f"{folder}/name": "package-0", f"{folder}/energy_uj": 1,
                     f"{folder}/max_energy_range_uj": 9})  # fmt: skip
    real = Path.read_text

    def refuse(self, *args, **kwargs):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    found, absent = meters.find_meters(tmp_path)
    assert not [m for m in found if m.name.startswith("RAPL")]
    assert "no permission: sudo chmod a+r" in absent["RAPL"]


def test_ina_integrates_power(tmp_path):
    folder = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    write(tmp_path, {f"{folder}/in1_label": "VDD_IN", f"{folder}/in1_input": 5000,
                     f"{folder}/curr1_input": 2000, f"{folder}/in2_label": "VDD_CPU_GPU_CV",
                     f"{folder}/in2_input": 5000, f"{folder}/curr2_input": 1000})  # fmt: skip
    found, absent = meters.find_meters(tmp_path)
    (meter,) = [m for m in found if m.name.startswith("INA")]
    assert meter.name == "INA VDD_IN"  # the whole input: the other rail is a part of it
    with meters.measuring(meter) as reading:
        time.sleep(0.3)
    meter.close()
    # a busy machine may stop us for milliseconds between the two clocks
    assert reading.joules == pytest.approx(10.0 * reading.seconds, rel=0.05, abs=0.2)
    assert absent["RAPL"].startswith("no /sys/class/powercap")


def test_energy_reaches_the_row(tiny_engine):
    class Steady:
        name = "steady"

        def joules(self):
            import time

            return 7.0 * time.perf_counter()

        def close(self):
            pass

    item = time_cases.load(tiny_engine, "ort", "cpu", 1)
    rows = rtf.make_cases([item], [0.256], [1], [0], grid=False)
    time_cases.time_interleaved(rows, min_runs=3, min_seconds=0)
    idle = time_cases.measure_energy(rows, [Steady()])
    item.backend.close()
    assert idle["steady"] == pytest.approx(7.0, rel=0.01)
    energy = rtf.summarise(rows[0])["energy"]["steady"]
    assert energy["watts"] == pytest.approx(7.0, rel=0.05)
    assert energy["joules_per_audio_s"] > 0


# ------------------------------------------------------------------------------------------------
# The rest


def test_clocks_and_governors_are_read(tmp_path):
    cpu = "sys/devices/system/cpu"
    write(tmp_path, {f"{cpu}/cpu0/cpufreq/scaling_cur_freq": 1_500_000,
                     f"{cpu}/cpu1/cpufreq/scaling_cur_freq": 2_000_000,
                     f"{cpu}/cpu0/cpufreq/scaling_governor": "schedutil"})  # fmt: skip
    assert machine.clocks_mhz(tmp_path) == [1500.0, 2000.0]
    assert machine.governors(tmp_path) == ["schedutil"]
    assert machine.governors(tmp_path / "empty") == []


def test_a_markdown_cell_cannot_break_its_table():
    text = tables.markdown(["a"], [["x|y\nz"], [None], [0.123456], [1234.5], [True]])
    assert text.splitlines()[2:] == ["| x\\|y z |", "| - |", "| 0.123 |", "| 1234 |", "| yes |"]


def test_dvpd_benchmark_is_the_same_command(capsys):
    from dvpd.runtime import cli

    assert cli.main(["benchmark", "--help"]) == 0
    assert "usage: dvpd benchmark" in capsys.readouterr().out
    assert cli.main(["benchmark", "--runs", "none"]) == 2
    assert cli.main(["benchmark", "--from-json", "/nonexistent.json"]) == 1
    assert "dvpd benchmark: " in capsys.readouterr().err


def test_measuring_needs_neither_torch_nor_a_plotting_library(tmp_path):
    import subprocess
    import sys

    root = Path(__file__).resolve().parent.parent.parent
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "for name in ('torch', 'matplotlib', 'rich', 'onnx', 'jsonschema'):\n"
        "    sys.modules[name] = None\n"
        "from dvpd.benchmarks import rtf\nfrom dvpd.benchmarks.common import report\n"
        "rtf.build_parser()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_causal_model_is_sent_to_its_own_mode(causal_engine):
    loaded = time_cases.load(causal_engine, "ort", "cpu", 1)
    assert loaded.backend is None
    assert "rtf.py --stream measures it" in loaded.error


def test_causal_models_are_not_among_those_that_are_measured_unasked(causal_engine, monkeypatch):
    monkeypatch.setattr(engines, "engine_roots", lambda: [causal_engine.parent])
    monkeypatch.delenv("DVPD_ENGINE", raising=False)
    assert causal_engine in engines.find_engines()
    assert engines.find_window_engines() == []
