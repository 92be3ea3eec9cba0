import json
import os
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from bulk_parts import use_threads

from dvpd.quality.mos import DNSMOS_NAMES, Dnsmos
from dvpd.runtime import cli
from dvpd.runtime.bulk import command, pool, worker
from dvpd.runtime.manifest import Manifest

pytest.importorskip("onnxruntime")


@pytest.fixture
def root(tmp_path, speech):
    folder = tmp_path / "in"
    (folder / "s").mkdir(parents=True)
    soundfile.write(folder / "a.wav", speech[:16000], 16000, "PCM_16")
    soundfile.write(folder / "s" / "b.flac", speech[:16000], 16000, "PCM_24")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(engine_shared, enhancer, monkeypatch):
    """``run(*words)``: the command, with a thread that shares an open engine as its worker."""
    use_threads(monkeypatch)

    def serve(pipe, engine):
        pipe.send(("ready", {"backend": "ort", "device": "cpu"}))
        try:
            while True:
                pipe.send(worker.answer(pipe.recv(), enhancer, engine, pipe.send))
        except (EOFError, OSError):
            pipe.close()

    monkeypatch.setattr(command, "serve", serve)

    def call(*words):
        extra = ["--model", str(engine_shared), "--steps", "0"]
        return cli.main(["enhance", *map(str, words), *extra])

    return call


def results(out):
    return [json.loads(line) for line in (out / command.RESULTS).read_text().splitlines()]


def test_quality_of_a_folder_is_its_steps(engine_shared):
    """So that a job begun with the one is gone on with by the other."""
    parser, manifest = cli.build_parser(), Manifest.load(engine_shared)
    for words, steps in (("--quality balanced", 1), ("--steps 1", 1), ("", None)):
        args = parser.parse_args(["enhance", "in", "out", *words.split()])
        assert command._options(args, manifest)["steps"] == steps


@pytest.mark.parametrize(("steps", "both"), [(None, False), (0, False), (1, True)])
def test_a_process_knows_whether_steps_come(engine, steps, both):
    pytest.importorskip("onnxruntime")
    table = json.loads((engine / "manifest.json").read_text())
    table["sampler"]["n_steps"] = 0
    (engine / "manifest.json").write_text(json.dumps(table))
    with worker.Engine(engine, "ort", "cpu", 1, False, {"steps": steps}).open() as opened:
        names = set(opened.backend._sessions)
        assert (names == {"predictive", "score"}) is both, names


def test_a_journal_knows_the_models_own_settings(engine_shared):
    """A new version of a model with the same graphs and other defaults makes other outputs."""
    args = cli.build_parser().parse_args(["enhance", "in", "out", "--alpha", "0.2"])
    old = Manifest.load(engine_shared)
    new = replace(old, sampler=replace(old.sampler, n_steps=1, phase_rounds=2))
    before, after = (
        command._settings(args, manifest, command._options(args, manifest))
        for manifest in (old, new)
    )
    assert (before["steps"], before["alpha"], before["phase_rounds"]) == (3, 0.2, 0)
    assert after == before | {"steps": 1, "phase_rounds": 2}
    none = replace(old, sampler=replace(old.sampler, n_steps=0))
    args = cli.build_parser().parse_args(["enhance", "in", "out"])
    said = cli.build_parser().parse_args(["enhance", "in", "out", "--quality", "fast"])
    settings = [command._settings(a, none, command._options(a, none)) for a in (args, said)]
    assert settings[0] == settings[1]
    assert settings[0]["steps"] == 0


def test_a_folder(run, root, out, capsys):
    assert run(root, out, "--recursive") == 0
    printed = capsys.readouterr()
    audio_s = sum(row["duration_s"] for row in results(out))
    assert printed.out.startswith(f"files:   2 done\naudio:   {audio_s:.1f} s in ")
    assert " s (real-time factor " in printed.out
    assert "ort on cpu\nresults: " in printed.out
    assert soundfile.info(out / "s" / "b.flac").subtype == "PCM_24"
    first, second = results(out)
    assert (first["path"], first["output"]) == (str(root / "a.wav"), str(out / "a.wav"))
    assert (first["state"], first["duration_s"], second["container"]) == ("done", 1.0, "FLAC")
    assert first["rtf"] == pytest.approx(first["seconds"])
    peak = np.abs(soundfile.read(root / "a.wav")[0]).max()
    assert first["peak_dbfs"] == pytest.approx([20 * np.log10(peak)], abs=0.01)
    power = [np.mean(soundfile.read(path)[0] ** 2) for path in (root / "a.wav", out / "a.wav")]
    assert first["taken_db"] == pytest.approx(10 * np.log10(power[0] / power[1]), abs=0.02)
    assert "pause_taken_db" in first
    assert "dnsmos_ovrl" not in first  # it is asked for
    assert run(root, out, "--recursive") == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert run(root, out, "--recursive", "--resume", "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["done"], table["done_before"], table["failed"]) == (0, 2, 0)


def test_messages_name_no_file_of_the_journal(run, root, out, speech, capsys):
    soundfile.write(root / "c.mp3", speech[:16000], 16000, format="MP3")
    assert run(root, out) == 0
    said = capsys.readouterr().err
    assert f"{root / 'c.mp3'}: its output is written as PCM_16, since WAV" in said
    assert ".dvpd" not in said


def test_scores_are_kept_in_the_journal(run, root, out, dnsmos_models, capsys):
    assert run(root, out) == 0  # without them
    capsys.readouterr()
    words = (root, out, "--recursive", "--resume", "--dnsmos", dnsmos_models)
    assert run(*words) == 0
    assert "has no scores of 1 outputs, which were made before" in capsys.readouterr().err
    before, made = results(out)
    assert "dnsmos_ovrl" not in before
    wav = soundfile.read(out / "s" / "b.flac")[0]
    assert {n: made[n] for n in DNSMOS_NAMES} == pytest.approx(Dnsmos(dnsmos_models)(wav), abs=1e-3)
    assert run(root, out, "--recursive", "--resume") == 0  # nor asked for again
    assert results(out) == [before, made]
    assert run(root, out, "--recursive", "--overwrite", "--dnsmos", dnsmos_models) == 0
    assert all("dnsmos_ovrl" in row for row in results(out))


def test_a_manifest_with_parts(run, root, out, tmp_path, capsys):
    lines = tmp_path / "in.jsonl"
    table = [
        {"path": "a.wav", "start": 0.25, "duration": 0.5, "output": "cut.wav"},
        {"path": "a.wav", "start": 0.75, "output": "end.wav"},
        {"path": "a.wav", "start": 0.75, "duration": 1, "output": "long.wav"},
        {"path": "s/b.flac", "speed": 2},
        {"path": "none.wav"},
        {"path": "s/b.flac"},
    ]
    lines.write_text("\n".join(map(json.dumps, table)))
    assert run(root, out, "--manifest", lines, "--mix", 0) == 1
    err = capsys.readouterr().err
    assert f"{lines} line 4: has the unknown key 'speed'" in err
    assert "none.wav: No such file" in err
    assert "the part ends at 0.75 + 1 s; the recording has 1 s" in err
    noisy = soundfile.read(root / "a.wav", dtype="int16")[0]
    np.testing.assert_array_equal(
        soundfile.read(out / "cut.wav", dtype="int16")[0], noisy[4000:12000]
    )
    np.testing.assert_array_equal(soundfile.read(out / "end.wav", dtype="int16")[0], noisy[12000:])
    assert (out / "s" / "b.flac").is_file()
    found = {r.get("output", "").rpartition("/")[2]: r for r in results(out)}
    assert (found["cut.wav"]["start"], found["cut.wav"]["duration_s"]) == (0.25, 0.5)
    assert found["long.wav"]["state"] == "failed"
    assert len(results(out)) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["IN", "IN"], "is the folder of the recordings"),
        (["IN", "IN/a.wav"], "is no folder"),
        (["IN", "-"], "not to standard output"),
        (["IN/a.wav", "OUT", "--jobs", "2"], "need one folder as IN"),
        (["IN/a.wav", "IN/s/b.flac", "OUT", "--resume"], "need one folder as IN"),
        (["IN", "OUT", "--overwrite", "--skip-existing"], "exclude each other"),
        (["IN", "OUT", "--manifest", "x", "--glob", "*"], "choose nothing"),
        (["IN", "OUT", "--manifest", "none.jsonl"], "none.jsonl: No such file"),
        (["IN", "OUT", "--glob", "*.ogg"], "no recordings that match"),
        (["IN", "OUT", "--tlb", "loud"], "tlb is 'loud'"),
        (["IN", "OUT", "--dnsmos", "IN"], "lacks sig_bak_ovr.onnx and model_v8.onnx; expected"),
        (["IN", "OUT", "--jobs", "0"], "usage: dvpd"),
        (["IN/none", "OUT", "--resume"], "none: No such file or directory; expected a folder"),
        (["IN", "OUT", "--journal", "IN/a.wav"], "a.wav: is no folder; --journal names one"),
        (["IN", "OUT", "--ray", "ray://head:10001"], "expected local, auto or HOST:PORT"),
        (["IN", "OUT", "--ray", "head"], "expected local, auto or HOST:PORT"),
    ],
)  # fmt: skip
def test_wrong_usage(run, root, out, words, said, capsys):
    words = [w.replace("IN", str(root)).replace("OUT", str(out)) for w in words]
    assert run(*words) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_nothing_is_opened_before_the_inputs_are_checked(run, root, out, monkeypatch, capsys):
    monkeypatch.setattr(pool, "Worker", lambda *a: pytest.fail("an engine was opened"))
    (root / "a.aiff").write_bytes(b"x")
    assert run(root, out) == 2
    assert "would share the output" in capsys.readouterr().err
    (root / "a.aiff").write_bytes(b"")
    (root / "a.wav").unlink()
    assert run(root, out) == 1
    assert "is an empty file" in capsys.readouterr().err
    assert results(out)[0]["kind"] == "InputError"


def test_an_output_folder_that_cannot_be_written(run, root, out, monkeypatch, capsys):
    real = os.mkdir

    def mkdir(path, *args):
        if str(path).startswith(str(out)):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, *args)

    monkeypatch.setattr(os, "mkdir", mkdir)
    assert run(root, out) == 1
    assert f"{out}: cannot be made (Read-only file system)" in capsys.readouterr().err
    monkeypatch.setattr(os, "mkdir", real)
    out.mkdir()
    monkeypatch.setattr(os, "mkdir", mkdir)
    assert run(root, out) == 1
    assert f"{out}: cannot write here (Read-only file system)" in capsys.readouterr().err


def test_a_sparse_terabyte_is_refused_at_once(run, root, out, capsys):
    """A header that promises a terabyte of samples, and a hole where they should be."""
    path = root / "a.wav"
    size = 1 << 40
    with open(path, "wb") as stream:
        wide = b"\xff" * 4
        stream.write(b"RF64" + wide + b"WAVEds64" + (28).to_bytes(4, "little"))
        stream.write(
            b"".join(n.to_bytes(8, "little") for n in (size - 8, size - 80, size // 2 - 40))
        )
        stream.write(bytes(4) + b"fmt " + (16).to_bytes(4, "little"))
        stream.write(bytes([1, 0, 1, 0]) + (16000).to_bytes(4, "little"))
        stream.write((32000).to_bytes(4, "little") + bytes([2, 0, 16, 0]) + b"data" + wide)
        assert stream.tell() == 80
        try:
            stream.truncate(size)
        except OSError:
            pytest.skip("this file system holds no file of a terabyte")
    (root / "b.wav").write_bytes((root / "s" / "b.flac").read_bytes())
    assert run(root, out, "--glob", "[ab].wav") == 1
    assert "its output takes 1099511627696 bytes" in capsys.readouterr().err
    assert [r["state"] for r in results(out)] == ["failed", "done"]
    path.unlink()


def test_a_disk_that_was_full_before_ends_the_run_at_once(run, root, out, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(worker.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 19))
        assert run(root, out, "--recursive", "--jobs", 1) == 1
    err = capsys.readouterr().err
    assert "No space left on device (less than 1 MiB is free): free space, and run again" in err
    assert [r["state"] for r in results(out)] == ["failed", "left"]
    assert run(root, out, "--recursive", "--resume") == 0


def test_an_engine_that_does_not_open_ends_the_run(run, root, out, monkeypatch, capsys):
    def serve(pipe, engine):
        pipe.send(("broken", "the device is not there"))
        pipe.close()

    monkeypatch.setattr(command, "serve", serve)
    assert run(root, out, "--jobs", 2, "--recursive") == 1
    assert capsys.readouterr().err.count("the device is not there") == 1
    monkeypatch.setattr(command, "serve", lambda pipe, engine: pipe.close())
    assert run(root, out) == 1  # nothing had begun: there is nothing to resume
    assert "as it opened the engine" in capsys.readouterr().err


def test_ctrl_c_leaves_a_job_that_can_be_resumed(run, root, out, monkeypatch, capsys):
    real = pool.Pool.wait

    def wait(self, timeout_s):
        said = real(self, timeout_s)
        if any(message[0] == "done" for _, message in said):
            raise KeyboardInterrupt
        return said

    with monkeypatch.context() as patch:
        patch.setattr(pool.Pool, "wait", wait)
        assert run(root, out, "--recursive") == 130
    assert [path.name for path in out.iterdir()] == [".dvpd"]
    assert run(root, out, "--recursive", "--resume") == 0
    assert len(results(out)) == 2


def test_processes_share_the_processors(monkeypatch):
    monkeypatch.setattr(command, "cpu_quota", lambda: 8)
    nothing = Namespace(threads=None)
    threads = {n: command._threads(nothing, n) for n in (1, 3, 16)}
    assert threads == {1: None, 3: 2, 16: 1}
    assert command._threads(Namespace(threads=5), 4) == 5


def test_a_cpu_has_a_process_for_each_core_unless_it_is_said(monkeypatch, engine_shared):
    monkeypatch.setattr(command, "physical_cores", lambda: 3)

    def n_jobs(n_files, **given):
        defaults = {"jobs": None, "batch": None, "threads": None, "ray": None}
        args = Namespace(**{**defaults, "backend": "ort", "device": "cpu", **given})
        return command._n_jobs(args, engine_shared, SimpleNamespace(left=lambda: (n_files, 1)))

    assert [n_jobs(n) for n in (0, 1, 2, 3, 100)] == [1, 1, 2, 3, 3]
    assert n_jobs(100, jobs=7) == 7
    for given in ({"batch": 4}, {"threads": 2}, {"ray": "local"}, {"device": "cuda"}):
        assert n_jobs(100, **given) == 1
    monkeypatch.setattr(command, "physical_cores", lambda: 64)
    assert n_jobs(100) == 4  # each holds an engine


def test_another_live_run_is_named(run, root, out, capsys):
    from dvpd.runtime.bulk.journal import Journal

    out.mkdir()
    with Journal(out):
        assert run(root, out, "--overwrite") == 2
        assert f"process {os.getpid()} on" in capsys.readouterr().err
        assert run(root, out, "--resume") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--phase-rounds", "2"], "phase_rounds is 2; expected 0"),
        (["--batch", "2"], "is a causal model, which has no windows to batch"),
    ],
)
def test_what_a_causal_model_cannot_do_is_wrong_usage(
    engine_causal, root, out, words, said, capsys
):
    assert cli.main(["enhance", str(root), str(out), "--model", str(engine_causal), *words]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_cluster_that_is_not_there(run, root, out, capsys):
    assert run(root, out, "--ray", "127.0.0.1:1") == 1
    assert "nothing answers there (Connection refused)" in capsys.readouterr().err
    assert not out.exists()


def test_lengths_are_seconds_until_they_are_hours():
    assert [command._long(s) for s in (45.66, 3599.0, 5400.0)] == ["45.7 s", "3599.0 s", "1.50 h"]
