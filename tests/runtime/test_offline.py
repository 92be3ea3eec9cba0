"""Nothing that the package imports opens a connection or writes into the home folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUARD = """
import socket, sys
sys.path.insert(0, {root!r})
def refuse(*args, **kwargs):
    print("NETWORK", args, file=sys.stderr, flush=True)
    raise OSError("no network in this test")
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
import dvpd
{body}
import time
time.sleep({wait})
"""
BODIES = {
    "onnxruntime": "import onnxruntime",
    "openvino": "import openvino",
    "run": "from dvpd.runtime import cli; assert cli.main({args!r}) == 0",
}


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("what", BODIES)
def test_no_connection_and_nothing_in_the_home_folder(what, tmp_path, engine_shared, speech):
    import soundfile

    if what != "run":
        pytest.importorskip(what)
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    soundfile.write(work / "in.wav", speech[:8000], 16000)
    args = ["enhance", str(work / "in.wav"), str(work / "out.wav"), "--model", str(engine_shared)]
    code = GUARD.format(root=str(ROOT), body=BODIES[what].format(args=args), wait=0.3)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_", "CI"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env={**env, "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    assert names(home) == []
    assert set(names(work)) <= {"in.wav", "out.wav"}


def test_looks_up_no_host(tmp_path, engine_shared):
    """As the system sees it: libraries have sockets of their own."""
    import shutil

    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import dvpd\n"
    for name in ("onnxruntime", "openvino"):
        code += f"try:\n    import {name}\nexcept ImportError:\n    pass\n"
    log = tmp_path / "log"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", log,
         sys.executable, "-c", code + "import time; time.sleep(0.5)"],
        env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    calls = [line for line in log.read_text().splitlines() if "AF_INET" in line]
    assert calls == []


def test_the_switch_is_the_users(tmp_path):
    code = "import dvpd, os, sys; print(os.environ['ORT_DISABLE_TELEMETRY'], 'openvino_telemetry' in sys.modules)"
    for given, expected in ((None, "1 True"), ("0", "0 False")):
        env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
        env |= {"ORT_DISABLE_TELEMETRY": given} if given else {}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected, done.stderr
