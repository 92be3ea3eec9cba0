"""The pages: their commands exist, their examples run, their links lead somewhere.

Every block of code is parsed by the real parsers. ``<!-- run -->`` before a block runs it here;
``<!-- run with PACKAGE -->`` does where that is installed. ``<!-- not run: reason -->`` is needed
before one with commands that are not ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile

from dvpd.runtime import cli

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
CARDS = sorted(ROOT.glob("engines/*/README.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS, *CARDS]
README_WORDS = 900
LIVE = "dvpd-live-tiny"
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>run(?: with \w+)?|not run: .+?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:dvpd|runtime|export|benchmarks|engines|examples|tests|docs)/[\w./-]+)`")
# Commands whose arguments go to a module's own parser.
FORWARDED = {
    "benchmark": "dvpd.benchmarks.rtf",
    "predict-device": "dvpd.benchmarks.predict_device",
    "export-hub": "dvpd.export.hub_folder",
}


@dataclass(frozen=True)
class Block:
    page: str
    mark: str
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        joined = self.text.replace("\\\n", " ")
        parts = (part for line in joined.splitlines() for part in re.split(r"&& ", line))
        return [words for part in parts if (words := shlex.split(part, comments=True))]


def read(page: Path) -> list[Block]:
    name = page.relative_to(ROOT).as_posix()
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(name, m["mark"] or "", m["language"], m["text"]) for m in found]


BLOCKS = [block for page in PAGES for block in read(page)]
SHELL = [block for block in BLOCKS if block.language == "bash"]
PYTHON = {
    page: blocks
    for page in dict.fromkeys(block.page for block in BLOCKS)
    if (blocks := [b for b in BLOCKS if b.page == page and b.language == "python"])
}


def named(blocks: list[Block]) -> list:
    return [pytest.param(b, id=f"{b.page}-{i}") for i, b in enumerate(blocks)]


def module_of(script: str):
    """The module of `python SCRIPT`, or of `python -m NAME`."""
    path = ROOT / script
    if path.suffix == ".py":
        assert path.is_file(), f"there is no {script}"
        if path.parent.name != "examples":
            return importlib.import_module("dvpd." + script.removesuffix(".py").replace("/", "."))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    module = importlib.import_module(script)
    return module if hasattr(module, "build_parser") else importlib.import_module(script + ".cli")


def parse(words: list[str]) -> bool:
    """Parse a command of this project as it would be when it is run; False if it is another's."""
    program, *rest = words
    if program == "make":
        rules = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", rules, re.M) for target in rest), words
    elif program == "dvpd":
        args = cli.build_parser().parse_args(rest)
        if args.command in FORWARDED:
            importlib.import_module(FORWARDED[args.command]).build_parser().parse_args(args.words)
    elif program in ("python", "torchrun") and (rest[0].endswith(".py") or "-m" in rest):
        first = 0 if rest[0].endswith(".py") else rest.index("-m") + 1
        if rest[first] in ("venv", "pytest"):
            return False
        for path in (word for word in rest if word.endswith(".toml")):
            assert path == "CONFIG" or (ROOT / path).is_file(), path
        module_of(rest[first]).build_parser().parse_args(rest[first + 1 :])
    elif program.endswith("build_with_trtexec.sh"):
        script = (ROOT / program).read_text(encoding="utf-8")
        for option in (word for word in rest if word.startswith("--")):
            assert f"  {option} " in script, option
    elif program == "pip":
        extras = re.findall(r"\.\[([\w,]+)\]", " ".join(rest))
        table = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for extra in ",".join(extras).split(","):
            assert not extra or re.search(rf"^{extra} = \[", table, re.M), extra
        return False
    else:
        return program == "polygraphy"
    return True


@pytest.mark.parametrize("block", named(SHELL))
def test_commands_are_understood(block):
    ours = [parse(words) for words in block.commands]
    assert ours, block.page
    if not block.mark.startswith("not run"):
        assert all(ours), f"{block.page}: mark the block as run, or as not run with the reason"


@pytest.fixture
def beside_a_recording(tmp_path, monkeypatch):
    """The current folder has one second of noisy.flac; the default model is the small one."""
    pytest.importorskip("onnxruntime")
    noisy, rate = soundfile.read(ROOT / "examples" / "noisy.flac", start=48000, frames=16000)
    soundfile.write(tmp_path / "noisy.flac", noisy, rate)
    monkeypatch.setenv("DVPD_ENGINE", str(ROOT / "engines" / "dvpd-tiny"))
    monkeypatch.chdir(tmp_path)
    if not (ROOT / "engines" / LIVE / "manifest.json").is_file():
        # Until its weights are there, graphs stand for it that have a state and no sense.
        pytest.importorskip("onnx")
        monkeypatch.syspath_prepend(ROOT / "tests" / "runtime")
        from tiny_graphs import CAUSAL, make_manifest, write_engine

        write_engine(tmp_path / LIVE, manifest=make_manifest(name=LIVE, causal=CAUSAL))
    return tmp_path


@pytest.mark.parametrize("block", named([b for b in SHELL if b.mark == "run"]))
def test_commands_run(block, beside_a_recording):
    for words in block.commands:
        if words[0] == "dvpd":
            assert cli.main(words[1:]) == 0
        else:
            assert words[0] == "python"
            assert module_of(words[1]).main(words[2:]) == 0


@pytest.mark.filterwarnings("ignore:'audioop' is deprecated")  # Pipecat's
@pytest.mark.parametrize("page", PYTHON)
def test_python_examples_run(page, beside_a_recording):
    """The blocks of a page are one program."""
    names: dict = {}
    for block in PYTHON[page]:
        mark, _, package = block.mark.partition(" with ")
        assert mark == "run", page
        if package and importlib.util.find_spec(package) is None:
            continue
        exec(compile(block.text, page, "exec"), names)


def test_polygraphy_commands_run(monkeypatch):
    pytest.importorskip("polygraphy", reason="polygraphy is not installed")
    program = shutil.which("polygraphy", path=str(Path(sys.executable).parent))
    commands = [words for b in SHELL for words in b.commands if words[0] == "polygraphy"]
    assert {words[1] for words in commands} == {"inspect", "run"}
    for words in commands:
        done = subprocess.run(
            [program, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as the site makes them."""
    found = set()
    text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
    for title in re.findall(r"^#+ (.+)$", text, re.M):
        if given := re.search(r"\{ #([\w-]+) \}$", title):
            found.add(given[1])
            continue
        plain = re.sub(r"[^\w\s-]", "", title).strip().lower()
        found.add(re.sub(r"[\s-]+", "-", plain))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(page):
    text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{target} in {page.name}"
        if page in DOCS:
            assert aim.parent == ROOT / "docs", f"{target} leaves the site"
        if anchor:
            assert anchor in slugs(aim), f"{target}; there are {sorted(slugs(aim))}"
    for name in PATH.findall(text):
        if not re.search("[A-Z]{3}", name.replace("README", "")):  # NAME, MACHINE stand for others
            assert (ROOT / name).exists(), f"`{name}` in {page.name}"


def test_the_site_has_every_page_once():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert sorted(re.findall(r": (\S+\.md)$", nav, re.M)) == [page.name for page in DOCS]


def test_included_files_and_reference_names_are_there():
    for page in DOCS:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r'^--8<-- "(.+)"$', text, re.M):
            assert (ROOT / name).is_file(), name
        for name in re.findall(r"^::: (.+)$", text, re.M):
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(f"dvpd.{module}"), attribute), name


def test_the_site_asks_nobody_for_anything():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in config
    assert "http" not in config


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < README_WORDS


def test_pictures_and_sounds_of_the_readme_are_small():
    assert (ROOT / "examples" / "before-after.png").stat().st_size < 150_000
    noisy, enhanced = (
        soundfile.info(ROOT / "examples" / f"{n}.flac") for n in ("noisy", "enhanced")
    )
    assert (noisy.frames, noisy.samplerate) == (enhanced.frames, enhanced.samplerate)


def test_the_picture_of_the_readme_can_be_read_on_a_telephone():
    """Panels below each other: as wide as is shown at 400 pixels without letters below 8."""
    data = (ROOT / "examples" / "before-after.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert width <= 800
    assert height > 0.6 * width
