"""What a short command loads: each package that it could do without is time before the first sample."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from dvpd.runtime import cli
from dvpd.runtime.errors import BackendError

LOADED = """
import json, sys
from dvpd.runtime import cli
before = sorted(sys.modules)
code = cli.main(["enhance", *sys.argv[1:]])
print(json.dumps({"code": code, "before": before, "after": sorted(sys.modules)}))
"""
# Training, measuring, other engines; importlib.metadata reads the package email and more.
NEVER = {
    "torch",
    "scipy",
    "onnx",
    "openvino",
    "tensorrt",
    "importlib.metadata",
    "email",
    "av",
    "rich",
}
# Beside the graphs, when it is known that there is something to do.
LATER = {"soundfile", "soxr", "onnxruntime", "numpy.random", "dvpd.runtime.enhancer"}


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "in.wav"
    soundfile.write(path, np.random.default_rng(0).standard_normal(4000) * 0.1, 16000)
    return path


def test_a_short_command_loads_little_and_in_order(engine_shared, recording, tmp_path):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out.wav"
    words = [str(recording), str(out), "--model", str(engine_shared), "--backend", "ort"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADED, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["code"], out.is_file()) == (0, True)
    # What this interpreter reads at its start (an editable install does) is nobody's choice.
    bare = subprocess.run(
        [sys.executable, "-c", "import json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = set(found["after"]) - set(json.loads(bare.stdout))
    assert not ours & NEVER
    assert not set(found["before"]) & LATER
    assert set(found["after"]) >= LATER


def test_graphs_load_beside_the_rest(engine_shared, recording, tmp_path, monkeypatch):
    threads = []

    def load(*args, **kwargs):
        threads.append(threading.current_thread())
        raise BackendError("no engine today")

    monkeypatch.setattr(cli, "open_backend", load)
    words = ["enhance", str(recording), str(tmp_path / "o.wav"), "--model", str(engine_shared)]
    assert cli.main(words) == 1
    assert [thread is threading.main_thread() for thread in threads] == [False]


def test_no_graph_is_loaded_where_nothing_can_be_done(
    engine_shared, recording, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cli, "open_backend", lambda *a, **k: pytest.fail("loaded for nothing"))
    there = tmp_path / "there.wav"
    there.write_bytes(b"")
    for source, target in ((tmp_path / "none.wav", tmp_path / "o.wav"), (recording, there)):
        words = ["enhance", str(source), str(target), "--model", str(engine_shared)]
        assert cli.main(words) == 1
    assert "exists already" in capsys.readouterr().err
