"""The file that a board's owner sends back: whole, readable by every reader, and nothing private."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dvpd.benchmarks import board, quality, readme, rtf
from dvpd.benchmarks.common import machine, reference, report
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.tensorrt import gpus, onnx_inputs, plans

pytest.importorskip("onnxruntime")
PRIVATE = ("alices-orin", "alice", "0421623012345", "/home")


@pytest.fixture(scope="module")
def sent(tiny_engine, tmp_path_factory):
    """A report made on a machine with a name, a user and a serial number; its folder."""
    home = tmp_path_factory.mktemp("home") / "alice"
    engine = Path(shutil.copytree(tiny_engine, home / "work" / "dvpd-tiny"))
    manifest = Manifest.load(engine)
    target = gpus.Target("Orin", "8.7")
    spec = plans.plan_spec(manifest, "score", "tensorrt", "10.3.0", target, onnx_inputs.Profile())
    head = b"ftrt".ljust(plans.PLAN_VERSION_AT, b"\0") + bytes([10, 3, 0, 0])
    plans.install_plan(engine, spec, head + bytes(64), {"tool": "trtexec", "seconds": 61.0})
    (engine / "old.plan").write_bytes(b"ftrt")
    serial = home / "root" / "proc" / "device-tree"
    serial.mkdir(parents=True)
    (serial / "serial-number").write_text("0421623012345\0")
    folder = home / "results" / "orin-nano"
    folder.mkdir(parents=True)
    found = board.secrets
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("USER", "alice")
        patch.setattr(board.platform, "node", lambda: "alices-orin.example.org")
        patch.setattr(board.socket, "gethostname", lambda: "alices-orin")
        patch.setattr(board, "secrets", lambda: found(home / "root"))
        patch.setattr(machine, "peak", lambda threads: None)
        patch.chdir(home / "work")
        words = [str(engine), "--backend", "ort", "--device", "cpu", "--windows", "0.256"]
        words += ["--batch", "1", "--steps", "3,0", "--runs", "2", "--case-seconds", "0"]
        words += ["--cold-runs", "0", "--note", "Alice's board 0421623012345 in /home/alice/lab"]
        assert rtf.main([*words, "--report", str(folder)]) == 0
    return folder


def test_one_file_holds_doctor_plans_parity_and_measurements(sent):
    (path,) = sent.iterdir()
    assert path.name == "report.json"
    table = json.loads(path.read_text())
    assert table["schema"] == "dvpd-board-1"
    assert {row["backend"] for row in table["doctor"]["backends"]} >= {"ort"}
    assert table["doctor"]["packages"]["numpy"] == np.__version__
    unsealed, plan = table["plans"]
    assert (unsealed["file"], unsealed["error"]) == ("old.plan", "it has no sidecar")
    assert plan["spec"]["target"] == {"name": "Orin", "compute_capability": "8.7"}
    assert (plan["bytes"], plan["built"]["seconds"]) == (92, 61.0)
    (row,) = table["parity"]
    assert (row["engine"], row["backend"], row["device"]) == ("dvpd-tiny", "ort", "cpu")
    assert row["snr_db"] > 100
    assert row["reference"].startswith("ONNX Runtime on this CPU (gpu_reference.npz is stale")
    assert [r["steps"] for r in table["rtf"]["rows"]] == [3, 0]
    assert table["rtf"]["protocol"]["versions"]["python"]
    assert set(table["rtf"]["meters"]) == {"found", "absent", "idle_watts"}


def test_nothing_in_it_is_private(sent):
    text = (sent / "report.json").read_text()
    for word in (*PRIVATE, str(sent), str(Path(board.__file__).parent)):
        assert word.lower() not in text.lower(), word
    assert json.loads(text)["rtf"]["protocol"]["note"] == "USER's board SERIAL in lab"


def test_every_reader_of_reports_takes_it_as_it_is(sent, capsys):
    path = sent / "report.json"
    found = report.read(path)
    assert len(report.base_rows(found)) == 1
    assert rtf.main(["--compare", str(path), str(path)]) == 0
    assert "no difference shown" in capsys.readouterr().out
    assert readme.find("rtf.json", [sent]) == path
    page = sent.parent / "page.md"
    names = ("speed", "boards")
    page.write_text("\n".join(f"{quality.marks(n)[0]}\n{quality.marks(n)[1]}" for n in names))
    assert readme.main([str(sent), "--readme", str(page)]) == 0
    text = page.read_text()
    assert text.count("| `dvpd-tiny` | ort |") == 2
    assert readme.main([str(sent), "--readme", str(page), "--check"]) == 0
    page.unlink()


def test_a_gpu_s_row_names_board_power_mode_energy_and_parity(sent, tmp_path):
    table = json.loads((sent / "report.json").read_text())
    table["rtf"]["machine"] |= {"board": "Jetson Orin Nano", "gpus": []}
    table["rtf"]["protocol"]["nvpmodel"] = "NV Power Mode: 15W"
    for row in (*table["rtf"]["rows"], *table["parity"]):
        row |= {"backend": "tensorrt", "device": "cuda:0"}
    table["rtf"]["rows"][0]["energy"] = {"INA VDD_IN": {"joules_per_audio_s": 0.25, "watts": 9.0}}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(table))
    (line,) = readme.boards([path]).splitlines()[2:]
    assert "| Jetson Orin Nano, " in line
    assert "(NV Power Mode: 15W) | `dvpd-tiny` | tensorrt cuda:0 |" in line
    assert "| 0.25 |" in line
    assert readme.boards([]) == "No board's report has come in yet."


HIDDEN = {"/home/bob": "~", "/tmp": "~", "bobs-box": "HOST", "bob": "USER"}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/bob/engines/dvpd-base/score.plan: none", "score.plan: none"),
        ("plans in /data/Bob/e, /opt/x", "plans in e, x"),
        (r"C:\Users\bob\dvpd\model.onnx refused", "model.onnx refused"),
        ("Linux-6.1-bobs-box-x86_64", "Linux-6.1-HOST-x86_64"),
        ("no /sys/class/powercap/intel-rapl:* (not x86)", "no /sys/class/powercap/intel-rapl:* (not x86)"),
        ("/usr/src/tensorrt/bin/trtexec", "/usr/src/tensorrt/bin/trtexec"),
        ("J / s of audio, 1/2, and/or, 10.3.0.26", "J / s of audio, 1/2, and/or, 10.3.0.26"),
        ("GPU-01234567-89ab-cdef-0123-456789abcdef", "GPU-ID"),
        ("eth0 48:b0:2d:aa:bb:cc", "eth0 MAC"),
        ("dvpd build ~/work/my engines", "dvpd build my engines"),
        ("bobbin, Kabob", "bobbin, Kabob"),
    ],
)  # fmt: skip
def test_what_is_taken_out_of_a_text(text, clean):
    got = board.without_secrets({"error": [text]}, HIDDEN)["error"][0]
    assert got == clean


def test_a_machine_called_like_a_device_damages_no_field():
    row = {"backend": "ort", "device": "cuda", "status": "ok", "error": "on cuda"}
    assert board.without_secrets(row, {"cuda": "HOST"}) == row | {"error": "on HOST"}


def test_an_engine_that_cannot_be_compared_is_a_row(tiny_engine, tmp_path):
    rows = board.parity([tiny_engine], [("gone", "torch", "cpu"), (tiny_engine.name, "ort", "tpu")])
    assert [row["snr_db"] for row in rows] == [None, None]
    assert "no engine folder" in rows[0]["error"]
    assert "no device 'tpu'" in rows[1]["error"]


def test_a_half_precision_engine_alone_asks_for_its_exact_one(tiny_engine_fp16, tiny_engine):
    pairs = [(tiny_engine_fp16.name, "ort", "cpu")]
    (row,) = board.parity([tiny_engine_fp16], pairs)
    assert "measure the fp32 engine of the same weights beside it" in row["error"]
    (row,) = board.parity([tiny_engine_fp16, tiny_engine], pairs)
    assert row["snr_db"] > 35
    assert reference.FIX in row["reference"]


def test_a_report_needs_a_measurement_and_a_folder(tmp_path, capsys):
    assert rtf.main(["--report", str(tmp_path / "none" / "r.json")]) == 1
    assert "its folder does not exist" in capsys.readouterr().err
    assert rtf.main(["--report", str(tmp_path), "--from-json", "x.json"]) == 2
    assert "it cannot be made from --from-json" in capsys.readouterr().err
