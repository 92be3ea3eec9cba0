"""start.py: whole commands in turn; a stand-in for the command says what it was asked."""

import json
import sys

import pytest

from dvpd.benchmarks import start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="os.wait4 is of Unix")

COMMAND = """
import pathlib, sys
words = sys.argv[1:]
assert words[0] == "enhance" and "--overwrite" in words
if "broken" in words[words.index("--backend") + 1]:
    raise SystemExit("no such engine")
sound = pathlib.Path(words[1]).read_bytes()
pathlib.Path(words[2]).write_bytes(sound + {tail!r})
print(*words)
"""


def checkout(folder, tail=b""):
    (folder / "dvpd").mkdir(parents=True)
    (folder / "dvpd" / "__main__.py").write_text(COMMAND.format(tail=tail))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = checkout(tmp_path / "here")
    monkeypatch.setattr(start, "HERE", folder)
    monkeypatch.setattr(start, "write_recording", lambda path, s: path.write_bytes(b"x" * int(s)))
    return folder


def test_cases_take_turns_and_are_compared(here, tmp_path, capsys):
    out = tmp_path / "start.json"
    before = checkout(tmp_path / "before", tail=b"other")
    words = ["--before", str(before), "--models", "dvpd-tiny", "--seconds", "1,2", "--rounds", "2"]
    assert start.main([*words, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["seconds"], row["code"]) for row in rows] == [
        (1.0, str(before)), (1.0, str(here)), (2.0, str(before)), (2.0, str(here)),
    ]  # fmt: skip
    assert all(len(row["wall_s"]) == 2 and min(row["peak_mib"]) > 1 for row in rows)
    assert [row["wall_s_ratio"] for row in rows[::2]] == [1.0, 1.0]
    assert [row["same_output"] for row in rows] == [True, False, True, False]
    assert capsys.readouterr().out.count("another output") == 2


def test_a_command_that_fails_is_no_figure(here, capsys):
    assert start.main(["--backends", "broken", "--seconds", "1", "--rounds", "1"]) == 1
    assert "no such engine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [(["--before", "nowhere"], "is no checkout"), (["--seconds", "1,x"], "expected lengths")],
)
def test_what_cannot_be_measured(here, words, text, capsys):
    assert start.main(words) == 1
    assert text in capsys.readouterr().err


def test_the_recording_is_as_long_as_asked(tmp_path):
    import soundfile

    start.write_recording(tmp_path / "a.wav", 13.5)
    assert soundfile.info(tmp_path / "a.wav").duration == 13.5
