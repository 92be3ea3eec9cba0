"""The page of ``dvpd demo``: its work without a browser, its server, and the page in Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dvpd.runtime import Enhancer, InputError, ManifestError, cli

pytest.importorskip("gradio", reason="gradio is not installed")
pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

from dvpd.runtime import demo_page  # needs gradio

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "engines" / "dvpd-tiny"
TOKEN = "a-token-of-many-characters"


@pytest.fixture
def desk():
    with demo_page.Desk("dvpd-tiny", TINY, ("ort", "cpu", 1)) as opened:
        yield opened


@pytest.fixture
def recording(tmp_path):
    noisy, rate = soundfile.read(ROOT / "examples" / "noisy.flac", start=40000, frames=16000)
    soundfile.write(tmp_path / "noisy.wav", noisy, rate)
    return tmp_path / "noisy.wav"


@contextmanager
def served(folder: Path, **more: str) -> Iterator[str]:
    """The command as a process of its own (Gradio leaves event loops open); yields its address."""
    words = ("demo", "--port", "0", "--model", str(TINY), "--backend", "ort", "--threads", "1")
    env = {k: v for k, v in os.environ.items() if k != "DVPD_TOKEN"}
    env |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **more}
    with subprocess.Popen(
        [sys.executable, "-m", "dvpd", *words],
        env=env,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = process.stderr.readline()
            found = re.match(r"dvpd: (http://127\.0\.0\.1:\d+) in a browser, ", line)
            assert found, line + process.stderr.read()
            assert list(folder.glob("dvpd-demo-*"))
            yield found[1]
        finally:
            process.terminate()
            rest = process.communicate(timeout=60)[1]
        assert process.returncode == -signal.SIGTERM, rest  # the shell's 143
        assert rest.endswith("dvpd: interrupted; unfinished files were removed\n")
    assert list(folder.glob("dvpd-demo-*")) == []  # with what was given and made


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(tmp_path_factory.mktemp("demo")) as found:
        yield found


def python(recording: Path, target: Path, **options: object) -> np.ndarray:
    """What Python makes of a recording: the file's samples."""
    with Enhancer.open(TINY, "ort", "cpu", 1) as enhancer:
        enhancer.enhance_file(recording, target, **options)
    return soundfile.read(target, dtype="int16")[0]


def test_the_desk_enhances_as_python_does(desk, recording, tmp_path):
    shares = []
    done, picture, text = desk.enhance(
        recording, tmp_path, "dvpd-tiny", "fast", 20.0, shares.append
    )
    wanted = python(recording, tmp_path / "x.wav", steps=0, attenuation_limit_db=20.0)
    np.testing.assert_array_equal(soundfile.read(done.path, dtype="int16")[0], wanted)
    assert picture.startswith(b"\x89PNG")
    assert text.startswith("noisy.wav: 1.0 s of sound in ")
    assert "dvpd-tiny 0.2.0, 0 steps, ort on cpu" in text
    assert shares[-1] == 1.0


def test_the_sliders_end_is_no_limit(desk, recording, tmp_path):
    done, _, text = desk.enhance(
        recording, tmp_path, "dvpd-tiny", demo_page.DEFAULT_STEPS, demo_page.NO_LIMIT_DB
    )
    assert ", 0 steps, " in text  # the model's own
    wanted = python(recording, tmp_path / "x.wav")
    np.testing.assert_array_equal(soundfile.read(done.path, dtype="int16")[0], wanted)


def test_what_cannot_be_enhanced_is_said_without_the_servers_paths(
    desk, recording, tmp_path, monkeypatch
):
    (tmp_path / "notes.wav").write_bytes(b"no sound at all")
    for source, model, message in (
        (None, "dvpd-tiny", "no recording: drop a file"),
        (tmp_path / "notes.wav", "dvpd-tiny", "^notes.wav: "),
        (recording, "../dvpd-tiny", "expected one of dvpd-tiny"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            desk.enhance(source, tmp_path, model, "fast", 41)
        assert str(tmp_path) not in str(refused.value)
    monkeypatch.setattr(demo_page, "MAX_MINUTES", 0.01)
    with pytest.raises(InputError, match=r"noisy.wav lasts 0\.0 minutes; the page takes 0\.01"):
        desk.enhance(recording, tmp_path, "dvpd-tiny", "fast", 41)
    desk.models["gone"] = tmp_path / "gone"
    with pytest.raises(ManifestError):
        desk.enhancer("gone")


def fetch(address: str, **headers: str) -> tuple[int, str, str]:
    """Status, policy and text of a page."""
    request = urllib.request.Request(address, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            policy = answer.headers["Content-Security-Policy"]
            return answer.status, policy, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, "", refusal.read().decode("utf-8", "replace")


def test_the_server_is_for_this_machine_and_its_page_asks_no_other(address):
    status, policy, text = fetch(address)
    assert status == 200
    assert "default-src 'self' data: blob:" in policy
    assert "https:" not in policy
    assert '"analytics_enabled":false' in text.replace(" ", "")
    for headers in ({"Host": "elsewhere.example"}, {"Origin": "https://elsewhere.example"}):
        status, _, text = fetch(address, **headers)
        assert status == 403
        assert "only this machine is served" in text
    assert fetch(f"{address}/gradio_api/file={TINY / 'manifest.json'}")[0] == 403


@pytest.mark.slow  # a second process that imports Gradio
def test_with_a_token_a_password_is_asked_for(tmp_path):
    with served(tmp_path, DVPD_TOKEN=TOKEN) as address:
        assert fetch(f"{address}/config", Host="elsewhere.example")[0] == 401
        assert "auth_required" in fetch(address)[2]


def test_others_reach_it_with_a_token_alone(monkeypatch, capsys):
    monkeypatch.delenv("DVPD_TOKEN", raising=False)
    assert cli.main(["demo", "--host", "0.0.0.0"]) == 2
    assert "0.0.0.0 can be reached from other machines: give a token" in capsys.readouterr().err


def test_without_the_packages_it_says_which_extra_brings_them(monkeypatch, capsys):
    for package in ("fastapi", "gradio"):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "dvpd.runtime.demo_page")
            patch.setitem(sys.modules, package, None)
            assert cli.main(["demo", "--model", str(TINY)]) == 1
        assert "pip install 'dvpd[demo-app]'" in capsys.readouterr().err


ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--mute-audio", "--disable-background-networking")


@pytest.mark.slow  # a browser and the page's scripts take 10 s of a core
def test_the_page_enhances_as_python_does(address, recording, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (tmp_path / "notes.wav").write_bytes(b"no sound at all")
    elsewhere, errors = [], []

    def asked(request) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            elsewhere.append(request.url)

    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=[*ARGUMENTS])
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(120_000)
        context.on("request", asked)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.click("#enhance")
        page.wait_for_selector("#status [role=alert]")
        nothing = page.inner_text("#status")

        page.set_input_files("#before input[type=file]", str(tmp_path / "notes.wav"))
        page.wait_for_selector("#before [data-testid^=waveform]")
        page.click("#enhance")
        page.wait_for_function("document.querySelector('#status').innerText.includes('notes.wav')")
        undecodable = page.inner_text("#status")

        page.click("#before button[aria-label=Clear]")
        page.set_input_files("#before input[type=file]", str(recording))
        page.wait_for_selector("#before [data-testid^=waveform]")
        page.click("#steps label:has-text('balanced')")
        page.click("#enhance")
        page.wait_for_selector("#status [role=status]")
        status = page.inner_text("#status")
        with page.expect_download() as download:
            page.click("#after [data-testid=download-link]")
        download.value.save_as(tmp_path / "got.wav")
        name = download.value.suggested_filename
        page.wait_for_selector("#picture img")
        page.screenshot(path=tmp_path / "wide.png", full_page=True)
        page.set_viewport_size({"width": 360, "height": 740})
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        page.screenshot(path=tmp_path / "narrow.png", full_page=True)
        browser.close()

    wanted = python(recording, tmp_path / "wanted.wav", steps=1)
    np.testing.assert_array_equal(soundfile.read(tmp_path / "got.wav", dtype="int16")[0], wanted)
    assert np.abs(wanted).max() > 1000
    assert name == "noisy-enhanced.wav"
    assert "noisy.wav: 1.0 s of sound" in status
    assert "no recording: drop a file" in nothing
    assert undecodable.startswith("notes.wav: ")
    assert elsewhere == errors == []
    assert overflow <= 0  # nothing is wider than a telephone
