"""The browser page: its own code against the runtime, and the page itself in a headless Chromium."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dvpd.runtime import Enhancer

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "docs" / "web"
SECONDS, STEPS = 3, 1


def node(*words: str) -> str:
    """Output of a command in the page's folder."""
    done = subprocess.run(words, cwd=WEB, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def npm() -> str:
    program = shutil.which("npm")
    if program is None:
        pytest.skip("npm is not installed")
    if not (WEB / "node_modules").is_dir():
        pytest.skip("docs/web has no node_modules: make web")
    return program


def same(stored: object, now: object) -> bool:
    """Whether two JSON values are equal, numbers to what NumPy's versions may differ by."""
    if isinstance(now, dict):
        return stored.keys() == now.keys() and all(same(stored[k], now[k]) for k in now)
    if isinstance(now, list):
        return len(stored) == len(now) and all(map(same, stored, now))
    return stored == now if not isinstance(now, float) else abs(stored - now) < 2e-6


def test_the_vectors_are_what_the_runtime_computes():
    spec = importlib.util.spec_from_file_location("vectors", WEB / "test" / "vectors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = json.loads((WEB / "test" / "vectors.json").read_text(encoding="utf-8"))
    assert same(stored, module.vectors()), "python docs/web/test/vectors.py, and see why"


def test_the_lock_file_names_no_place_to_fetch_from():
    assert "://" not in (WEB / "package.json").read_text(encoding="utf-8")
    packages = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert [name for name, entry in packages.items() if "resolved" in entry] == []


@pytest.mark.slow
def test_the_pages_own_code_equals_the_runtime(npm):
    assert "passed" in node(npm, "test", "--silent")


@pytest.mark.slow
def test_the_page_enhances_as_python_does(npm, tmp_path):
    pytest.importorskip("onnxruntime")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    noisy, rate = soundfile.read(
        ROOT / "examples" / "noisy.flac", frames=SECONDS * 16000, start=48000
    )
    soundfile.write(tmp_path / "noisy.wav", noisy, rate)
    node("node", "test/drive.mjs", chromium, str(tmp_path), str(tmp_path / "noisy.wav"), str(STEPS))
    facts = json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))

    with Enhancer.open(ROOT / "engines" / "dvpd-tiny", backend="ort") as enhancer:
        wanted = enhancer.enhance(noisy, rate, steps=STEPS).wav
    got, got_rate = soundfile.read(tmp_path / "enhanced.wav")
    assert got_rate == rate
    assert np.abs(got - wanted).max() < 1e-4  # of which 16 bits take 1.5e-5
    assert np.abs(wanted).max() > 0.1

    assert facts["errors"] == facts["elsewhere"] == []
    assert facts["sent"] == 0  # nothing leaves the browser
    assert facts["isolated"]
    assert "cannot be decoded" in facts["undecodable"]
    assert facts["cancelled"] == {"working": False, "after": False}
    assert facts["saved"] == "noisy-enhanced.wav"
    assert facts["switched"]
    assert facts["returned"]
    assert facts["moved"] == 0  # the other side is heard from the same place
    assert facts["overflow"] == 0  # nothing is wider than a telephone
    assert "enhanced in" in facts["microphone"]
    # A GPU that is offered and cannot be used: the processor does it, and the page says so.
    assert re.search(
        r"enhanced in .* by \d thread.* The GPU could not be used \(.+\), so the processor",
        facts["withoutGpu"],
    )
    assert facts["deviceAfter"] == "wasm"
    assert facts["graphs"] == ["predictive", "score"]
    assert facts["graphsWithoutSteps"] == ["predictive"]  # what is not used is not loaded
