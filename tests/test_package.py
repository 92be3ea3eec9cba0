"""What the wheels and the sdist carry, and that installed wheels work outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("dvpd-tiny", "dvpd-live-tiny")  # what the first wheel carries
FOLDERS = ("dvpd", "runtime", "export", "benchmarks", "engines", "examples", "docs")
UNWANTED = ("*.safetensors", "*.jsonl", "results", "__pycache__", "*.plan", "*.egg-info")
BUILD = """
import os, sys
from setuptools import build_meta
folder = sys.argv[1]  # building puts other words there
build_meta.build_wheel(folder)
build_meta.build_sdist(folder)
os.chdir("engines")
build_meta.build_wheel(folder)
"""

pytest.importorskip("setuptools", reason="setuptools builds the packages")


@pytest.fixture(scope="module")
def packages(made_once) -> Path:
    """A folder with both wheels and the sdist, built from a copy of the tree."""

    def make(folder: Path) -> None:
        tree = folder / "tree"
        tree.mkdir()
        for path in ROOT.iterdir():
            if path.is_file() and path.name != ".git":
                shutil.copy(path, tree)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns(*UNWANTED))
        subprocess.run(
            [sys.executable, "-c", BUILD, str(folder)], cwd=tree, check=True, capture_output=True
        )
        shutil.rmtree(tree)

    return made_once("packages", make)


@pytest.fixture(scope="module")
def wheel(packages) -> zipfile.ZipFile:
    with zipfile.ZipFile(next(packages.glob("dvpd-*.whl"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def base_wheel(packages) -> zipfile.ZipFile:
    with zipfile.ZipFile(next(packages.glob("dvpd_base-*.whl"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The wheel's files as an installer puts them."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def run_installed(site: Path, cwd: Path, *args: str, code: int = 0) -> str:
    env = {k: v for k, v in os.environ.items() if k != "DVPD_ENGINE"} | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_wheel_has_every_module_and_the_tiny_engines(wheel):
    names = set(wheel.namelist())
    for folder, package in (
        ("dvpd", "dvpd"),
        ("runtime", "dvpd/runtime"),
        ("export", "dvpd/export"),
        ("benchmarks", "dvpd/benchmarks"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder).as_posix()
            assert f"{package}/{inside}" in names
    for file in ("manifest.json", "predictive.onnx", "score.onnx", "verification.json"):
        for engine in SMALL:
            assert f"dvpd/engines/{engine}/{file}" in names
    for graph in ("predictive", "score"):  # those that CPUs run
        assert f"dvpd/engines/dvpd-tiny/{graph}.single.onnx" in names
    assert "dvpd/engines/dvpd-live-tiny/block.onnx" in names


def test_the_wheel_has_nothing_else(wheel):
    for name in wheel.namelist():
        top, *rest = name.split("/")
        assert top == "dvpd" or top.endswith(".dist-info"), name
        if rest[0] == "engines":
            assert rest[1] in SMALL, name
    assert sum(item.compress_size for item in wheel.infolist()) < 5 * 2**20


def test_the_second_wheel_has_the_larger_engines_and_nothing_that_the_first_has(wheel, base_wheel):
    files = ("manifest.json", "predictive.onnx", "score.onnx", "verification.json")
    wanted = {f"{name}/{file}" for name in ("dvpd-base", "dvpd-base-fp16") for file in files}
    wanted |= {f"dvpd-base/{graph}.single.onnx" for graph in ("predictive", "score")}
    wanted |= {f"dvpd-live/{file}" for file in (*files, "block.onnx", "README.md")}
    names = {name for name in base_wheel.namelist() if ".dist-info/" not in name}
    assert names == {f"dvpd/engines/{path}" for path in wanted | {"dvpd-base/README.md"}}
    assert not names & set(wheel.namelist())
    assert sum(item.compress_size for item in base_wheel.infolist()) < 13 * 2**20


def test_the_sdist_has_what_builds_and_explains_it(packages):
    with tarfile.open(next(packages.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for path in ("pyproject.toml", "LICENSE", "CONTRIBUTING.md", "Makefile", "mkdocs.yml",
                 "docs/index.md", "examples/noisy.flac", "engines/dvpd-base/score.onnx",
                 "engines/build_with_trtexec.sh", "runtime/graphs/step.onnx"):  # fmt: skip
        assert path in names, path
    assert not any(name.endswith((".plan", ".pyc")) for name in names)


def test_the_metadata_pass_twine(packages):
    pytest.importorskip("twine", reason="twine is not installed")
    files = [str(path) for path in packages.iterdir() if path.suffix in (".whl", ".gz")]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)


def test_an_installed_wheel_enhances_a_file(site, tmp_path):
    pytest.importorskip("onnxruntime")
    noisy, rate = soundfile.read(ROOT / "tests" / "assets" / "clip0_noisy.flac", frames=16000)
    soundfile.write(tmp_path / "in.wav", noisy, rate)
    said = run_installed(
        site, tmp_path, "-m", "dvpd.runtime", "enhance", "in.wav", "out.wav", "--steps", "0"
    )
    assert "out.wav: 1.00 s of audio" in said
    assert soundfile.info(tmp_path / "out.wav").frames == rate


def test_an_installed_wheel_knows_its_models_by_name(site, base_wheel, tmp_path):
    pytest.importorskip("onnxruntime")
    code = (
        "import sys\n"
        "from dvpd.runtime import DvpdError, Enhancer\n"
        "for model in (None, 'dvpd-tiny'):\n"
        "    with Enhancer.open(model, 'ort', 'cpu', 1) as enhancer: print(enhancer)\n"
        "try: Enhancer.open('dvpd-base', 'ort', 'cpu', 1)\n"
        "except DvpdError as error: print(error)\n"
        "else: print('opened')\n"
        "print('torch' in sys.modules)\n"
    )
    lines = run_installed(site, tmp_path, "-c", code).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["Enhancer(dvpd-tiny"] * 2
    assert "no engine is called 'dvpd-base'" in lines[2]
    assert "`pip install ./engines` in the source tree adds dvpd-base" in lines[2]
    assert lines[3] == "False"
    both = tmp_path / "both"
    shutil.copytree(site, both)
    base_wheel.extractall(both)
    lines = run_installed(both, tmp_path, "-c", code).splitlines()
    assert lines[0].startswith("Enhancer(dvpd-base")  # the default where it is there
    assert lines[2:] == ["opened", "False"]
