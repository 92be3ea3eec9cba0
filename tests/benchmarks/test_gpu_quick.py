"""The short GPU check: on the CPU, and on stand-ins for what a lent GPU may do to it."""

import dataclasses
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dvpd.benchmarks import gpu_check, gpu_quick
from dvpd.benchmarks.common import gpu_live, gpu_work, reference
from dvpd.benchmarks.common.gpu_work import Work
from dvpd.runtime.backends import choose
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.manifest import Manifest

ENGINES = gpu_check.ROOT / "engines"
TINY, HALF = ENGINES / "dvpd-tiny", ENGINES / "dvpd-tiny-fp16"
RUNTIME_TESTS = Path(__file__).resolve().parent.parent / "runtime"


WATCHDOG = gpu_quick.watchdog


@pytest.fixture(autouse=True)
def _quick_rows_and_no_watchdog(monkeypatch):
    """A busy machine must not end the tests' process."""
    monkeypatch.setattr(gpu_quick, "EACH_S", 0.01)
    monkeypatch.setattr(gpu_quick, "LEAST_RUNS", 2)
    monkeypatch.setattr(gpu_quick, "LEAST_BATCHES", 1)
    monkeypatch.setattr(gpu_quick, "watchdog", lambda *args: threading.Timer(0, lambda: None))


class Exact:
    """A backend that knows the answer, and may be asked to misbehave."""

    capture = True

    def __init__(self, out, change=lambda out: out):
        self.out, self.change = out, change

    def run_sampler(self, noisy, noise, **settings):
        return self.change(np.repeat(self.out, len(noisy), 0))


@pytest.fixture(scope="module")
def answer():
    """Output of dvpd-tiny for a short window."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_quick, "WINDOW_FRAMES", 32)
        subject = gpu_quick.Subject(TINY, "torch", "cpu")
        subject.open()
        return subject.one.run(subject.backend)


@pytest.fixture
def quick(monkeypatch, answer, capsys):
    """A function that runs the check on a stand-in; returns the exit status and the rows."""
    monkeypatch.setattr(gpu_quick, "WINDOW_FRAMES", 32)
    wav = Work(Manifest.load(TINY), gpu_quick.clip_window(Manifest.load(TINY))).wav(answer)
    monkeypatch.setattr(gpu_quick, "reference_of", lambda s: (wav, {"source": "carried"}))

    def run(*argv, change=lambda out: out, device="cuda", engines=(HALF,)):
        def stand_in(folder, manifest, name, where):
            return Exact(answer, change)

        monkeypatch.setattr(choose, "open_backend", stand_in)
        words = [
            "--quick",
            *map(str, engines),
            "--backend",
            "ort",
            "--device",
            device,
            "--batches",
            "1,4",
        ]
        status = gpu_check.main([*words, "--seconds", "600", *argv])
        return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def only(rows, kind, **about):
    return [r for r in rows if r["row"] == kind and all(r[k] == v for k, v in about.items())]


def test_on_a_cpu_the_rows_come_and_only_parity_counts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_quick, "WINDOW_FRAMES", 32)
    path = tmp_path / "rows.jsonl"
    words = ["--quick", str(TINY), "--device", "cpu", "--seconds", "600"]
    status = gpu_check.main([*words, "--batches", "1", "--json", str(path)])
    printed = capsys.readouterr().out
    assert path.read_text() == printed
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [r["row"] for r in rows if r["row"] not in ("latency", "throughput", "kernels")] == [
        "machine", "bandwidth", "reference", "parity", "verdict",
    ]  # fmt: skip
    assert all(row["ok"] for row in rows), rows
    assert status == 0
    (exact,) = only(rows, "parity")
    assert (exact["engine"], exact["precision"], exact["limit_db"]) == ("dvpd-tiny", "fp32", 60.0)
    assert exact["snr_db"] > 80
    assert only(rows, "reference")[0]["source"] == "computed now"  # the window is another
    assert "--make-reference" in only(rows, "reference")[0]["why"]
    assert {r["mode"] for r in only(rows, "latency")} == {"eager"}
    assert only(rows, "kernels")[0]["count"] > 500
    assert rows[-1]["limits"] == "parity"


def test_speed_counts_on_a_gpu_and_rows_of_what_fails_do_not_end_it(quick):
    status, rows = quick("--rtf", "1", "--throughput", "1")
    assert status == 0
    # Without a GPU the first two fail here, and neither has a limit.
    assert [r["ok"] for r in rows[:2]] == [False, False]
    assert {r["mode"] for r in only(rows, "latency")} == {"eager", "captured"}
    assert [r["batch"] for r in only(rows, "throughput")] == [1, 4]
    for row in only(rows, "latency"):
        assert row["p99_ms"] >= row["p50_ms"] > 0
        assert math.isclose(row["rtf"], row["p50_ms"] / 1e3 / row["window_s"])
    status, rows = quick("--rtf", "1e-9", "--throughput", "1e9")
    assert status == 1
    assert len(rows[-1]["missed"]) == 2
    assert "rtf of dvpd-tiny-fp16 on ort is" in rows[-1]["missed"][0]
    assert "expected at least 1e+09" in rows[-1]["missed"][1]


def test_a_waveform_too_far_from_the_cpus_is_missed(quick):
    status, rows = quick("--rtf", "1", "--throughput", "1", change=lambda out: 1.1 * out)
    assert status == 1
    (row,) = only(rows, "parity")
    assert (row["precision"], row["limit_db"]) == ("fp16", 35.0)
    assert (row["met"], row["ok"]) == (False, True)
    assert "dB from the CPU's waveform; expected at least 35" in rows[-1]["missed"][0]


def test_a_nan_is_a_row_and_the_next_ones_follow(quick):
    calls = []

    def poison(out):
        calls.append(1)
        return np.full_like(out, np.nan) if len(calls) == 1 else out

    status, rows = quick("--rtf", "1", "--throughput", "1", change=poison)
    assert status == 1
    (row,) = only(rows, "parity")
    assert (row["ok"], row["snr_db"], row["error"]) == (False, None, "a value is not finite")
    assert all(r["ok"] for r in rows if r["row"] in ("latency", "throughput"))
    assert rows[-1]["missed"] == ["parity of dvpd-tiny-fp16 on ort was not measured"]


def test_an_engine_that_fails_at_one_batch_is_a_row(quick):
    def small(out):
        if len(out) > 1:
            raise BackendError("GPU memory\nis full")
        return out

    status, rows = quick("--rtf", "1", "--throughput", "1", change=small)
    assert status == 0
    assert [r["ok"] for r in only(rows, "throughput")] == [True, False]
    assert only(rows, "throughput")[1]["error"] == "GPU memory is full"


def test_a_profiler_that_fails_or_sees_nothing_costs_its_row_alone(monkeypatch, quick, answer):
    monkeypatch.setattr(gpu_quick.Subject, "open", lambda s: setattr(s, "backend", Exact(answer)))
    words = ("--backend", "torch", "--batches", "1")

    def fails(*args):
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(gpu_work, "kernels", fails)
    status, rows = quick(*words, device="cpu")
    assert status == 0
    assert only(rows, "kernels")[0]["error"] == "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"
    monkeypatch.setattr(gpu_work, "kernels", lambda *args: {"count": 0, "longest": []})
    status, rows = quick(*words, device="cpu")
    assert status == 0
    assert "saw no kernel" in only(rows, "kernels")[0]["error"]


def test_what_does_not_fit_into_the_time_says_so(monkeypatch, quick):
    monkeypatch.setattr(gpu_quick, "WORKING_PART", 0.0)
    status, rows = quick()
    assert status == 1
    assert {r["error"] for r in rows[:-1]} == {"out of time"}
    assert len(rows[-1]["missed"]) == 3


def test_whatever_hangs_the_process_ends_in_time_with_a_last_row(monkeypatch, tmp_path):
    ended = []
    monkeypatch.setattr(gpu_quick.os, "_exit", ended.append)
    journal = gpu_quick.Journal(tmp_path / "rows.jsonl")
    for met in (False, True):  # all that has a limit may have been measured by then
        WATCHDOG(journal, 0.01, lambda ok=met: {"row": "verdict", "ok": ok}).join(20)
    assert ended == [1, 0]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["ok"] for row in rows] == [False, True]
    assert rows[0]["error"] == "ended after 0.0 s, with a row under way"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_loses_the_file_and_no_row(quick):
    status, rows = quick("--rtf", "1", "--throughput", "1", "--json", "/dev/full")
    assert status == 1
    assert only(rows, "parity")[0]["met"]
    assert rows[-1]["missed"] == ["rows are lost: /dev/full: No space left on device"]


def test_a_missing_engine_is_a_row_and_the_next_one_is_measured(quick, tmp_path):
    status, rows = quick("--rtf", "1", "--throughput", "1", engines=(tmp_path / "none", HALF))
    assert status == 1
    assert "not an engine folder" in only(rows, "reference", engine="none")[0]["error"]
    assert only(rows, "parity", engine="dvpd-tiny-fp16")[0]["met"]
    assert rows[-1]["missed"][0] == "parity of none on ort was not measured"


def test_wrong_usage(capsys):
    assert gpu_check.main(["--quick", "--seconds", "nan"]) == 2
    assert "is not a number above 0" in capsys.readouterr().err
    assert gpu_check.main([str(TINY), str(HALF)]) == 2


def test_tensorrt_eager_and_captured_on_the_stand_in(monkeypatch, tiny_engine, tmp_path, capsys):
    """The plans' whole path: one capture, then replays, and a capture that fails is a row."""
    pytest.importorskip("onnxruntime")
    for name, path in (("fake_cuda", "fake_cuda.py"), ("test_trt", "backends/test_trt.py")):
        spec = importlib.util.spec_from_file_location(name, RUNTIME_TESTS / path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    monkeypatch.setattr(gpu_quick, "WINDOW_FRAMES", 32)
    rig = sys.modules["test_trt"].Rig(Path(shutil.copytree(tiny_engine, tmp_path / "e"))).build()
    real = choose.open_backend
    subject = gpu_quick.Subject(rig.folder, "tensorrt", "cuda")
    want = subject.one.wav(subject.one.run(real(rig.folder, rig.manifest, "ort", "cpu", 1)))
    monkeypatch.setattr(gpu_quick, "reference_of", lambda s: (want, {"source": "stand-in"}))
    monkeypatch.setattr(choose, "open_backend", lambda *a: rig.open())
    words = ["--quick", str(rig.folder), "--backend", "tensorrt", "--device", "cuda"]
    words += ["--batches", "1,2", "--rtf", "100", "--throughput", "0", "--seconds", "600"]
    assert gpu_check.main(words) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert only(rows, "parity")[0]["snr_db"] > 60
    assert [r["mode"] for r in only(rows, "latency") if r["ok"]] == ["eager", "captured"]
    assert rig.gpu.calls.count("cudaStreamBeginCapture") == 2  # one for each batch
    rig.gpu.capture_ok = False
    assert gpu_check.main(words) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "cannot be captured" in only(rows, "latency", mode="captured")[0]["error"]


# -- the carried waveforms ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dvpd-base", "dvpd-base-fp16", "dvpd-tiny", "dvpd-tiny-fp16"])
def test_the_carried_waveforms_are_those_of_the_shipped_weights(name):
    """When this fails after new weights: python benchmarks/gpu_check.py --make-reference."""
    manifest = Manifest.load(ENGINES / name)
    wav = reference.read_reference(manifest)
    assert wav.shape == gpu_quick.clip_window(manifest).shape
    assert wav.dtype == np.float32


def test_the_carried_waveform_is_what_the_shipped_graphs_say():
    pytest.importorskip("onnxruntime")
    subject = gpu_quick.Subject(TINY, "ort", "cpu")
    opened = choose.open_backend(TINY, subject.manifest, "ort", "cpu", 1)
    wav = subject.one.wav(subject.one.run(opened))
    opened.close()
    assert gpu_check.snr_db(reference.read_reference(subject.manifest), wav) > 60


def test_a_stale_missing_or_damaged_reference_names_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_quick, "WINDOW_FRAMES", 32)
    manifest, path = Manifest.load(TINY), tmp_path / "r.npz"
    for change, message in (
        (None, "is missing: python"),
        (lambda: path.write_bytes(b"PK"), "cannot be read"),
    ):
        if change:
            change()
        with pytest.raises(InputError, match=message):
            reference.read_reference(manifest, 32, path)
    assert gpu_quick.make_reference([TINY], path) == ["dvpd-tiny"]
    assert list(tmp_path.iterdir()) == [path]
    assert reference.read_reference(manifest, 32, path).shape == (31 * 128,)
    newer = dataclasses.replace(manifest, checkpoint_sha256="0" * 64)
    with pytest.raises(InputError, match=r"is stale: of other weights .*--make-reference"):
        reference.read_reference(newer, 32, path)
    assert gpu_check.main(["--make-reference", str(tmp_path / "none")]) == 1
    assert "not an engine folder" in capsys.readouterr().err


def test_nothing_is_imported_that_a_lent_machine_may_lack():
    """Python with torch and NumPy: no soundfile, TensorRT, safetensors, ONNX Runtime or SciPy."""
    lacks = ("soundfile", "soxr", "tensorrt", "tensorrt_rtx", "safetensors", "onnx", "onnxruntime")
    code = f"""
import sys
for name in {(*lacks, "scipy", "pesq", "openvino", "rich", "matplotlib")!r}:
    sys.modules[name] = None
from pathlib import Path
from dvpd.benchmarks import gpu_check, gpu_quick
gpu_quick.WINDOW_FRAMES = 32
subject = gpu_quick.Subject(Path({str(TINY)!r}), "torch", "cpu")
assert subject.parity(gpu_quick.reference_of(subject)[0], 60.0)["met"]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_live_streams_are_compared_and_their_blocks_timed(monkeypatch, capsys):
    for name, value in (("PARITY_BLOCKS", 4), ("BLOCK_S", 0.01), ("N_STREAMS", (2,))):
        monkeypatch.setattr(gpu_live, name, value)
    live = ENGINES / "dvpd-live-tiny"
    status = gpu_check.main(["--quick", str(live), "--device", "cpu", "--seconds", "600"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (parity,) = only(rows, "parity")
    assert (parity["engine"], parity["met"], parity["blocks"]) == ("dvpd-live-tiny", True, 4)
    (block,) = only(rows, "block")
    assert (block["mode"], block["streams"], block["block_ms"]) == ("eager", 2, 32.0)
    assert math.isclose(block["rtf"], block["p50_ms"] / 32.0)
    assert (status, rows[-1]["missed"]) == (0, [])
