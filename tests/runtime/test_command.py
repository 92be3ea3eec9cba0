import argparse
import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dvpd.runtime import InputError, command
from dvpd.runtime.errors import UsageError, raise_interrupt

ROOT = Path(__file__).resolve().parents[2]


def parser():
    made = argparse.ArgumentParser(prog="tool")
    made.add_argument("--json", action="store_true")
    return made


def run(error=None, argv=(), result=None):
    def body(args):
        if error is not None:
            raise error
        return result

    return command.run(parser(), list(argv), body)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("steps is -1;\nexpected 0"), "dvpd: steps is -1; expected 0\n"),
        (FileNotFoundError(2, "No such file or directory", "a.wav"), "dvpd: a.wav: No such file"),
        (ModuleNotFoundError("No module", name="torch.nn"), "pip install 'dvpd[train]'"),
        (ModuleNotFoundError("No module", name="odd"), "pip install odd"),
        (MemoryError("Unable to allocate 9 TiB"), "not enough memory"),
        (KeyError("x"), "unexpected error (KeyError: 'x', test_command.py line"),
    ],
)
def test_errors_end_in_one_line(error, said, capsys):
    assert run(error, ["--json"]) == 1
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert json.loads(printed.out)["kind"] == type(error).__name__
    assert run(error) == 1
    assert capsys.readouterr().out == ""


def test_a_traceback_on_request(monkeypatch, capsys):
    monkeypatch.setenv("DVPD_TRACEBACK", "1")
    assert run(KeyError("x")) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_exit_codes(capsys):
    assert run() == 0
    assert run(result=1) == 1
    assert run(argv=["--odd"]) == 2
    assert run(argv=["--help"]) == 0
    assert run(UsageError("steps is -1; expected 0")) == 2
    with pytest.raises(UsageError, match="rate is 0"), command.usage():
        raise InputError("rate is 0")
    assert run(SystemExit("why")) == 1
    assert "dvpd: why\n" in capsys.readouterr().err


def test_an_interrupt_behind_another_error_is_found(capsys):
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise ImportError("numpy failed to import") from interrupt
    except ImportError as error:
        hidden = error
    assert run(hidden) == 130
    try:
        try:
            raise hidden
        except ImportError:
            raise InputError("onnxruntime does not import") from None
    except InputError as error:
        with pytest.raises(KeyboardInterrupt):
            raise_interrupt(error)
    raise_interrupt(InputError("nothing behind it"))


@pytest.mark.parametrize("stream", [None, "closed"])
def test_no_stderr(monkeypatch, stream, tmp_path):
    if stream:
        stream = open(tmp_path / "x", "w")
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert run(InputError("x")) == 1
    assert run(argv=["--odd"]) == 2
    sys.stderr.close()


SCRIPT = """
import argparse, logging, os, signal, sys, time
sys.path.insert(0, {root!r})
from dvpd.runtime import command, files
def body(args):
    logging.getLogger("dvpd").info("started")
    with files.WholeFile("out.bin") as whole:
        whole.path.write_bytes(b"x")
        {action}
command.leave(command.run(argparse.ArgumentParser(), [], body))
"""


def script(action, tmp_path, **options):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(root=str(ROOT), action=action)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_dies_of_the_signal_and_leaves_nothing(tmp_path, name):
    number = getattr(signal, name)
    # a shell's background jobs ignore SIGINT, and so would the child
    action = f"os.kill(os.getpid(), {int(number)}); time.sleep(60)"
    handler = signal.signal(number, signal.SIG_DFL)
    try:
        done = script(action, tmp_path)
    finally:
        signal.signal(number, handler)
    assert done.returncode == -number
    assert b"interrupted" in done.stderr
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_full_and_closed_streams(tmp_path):
    with open("/dev/full", "w") as full:
        done = script("print('result')", tmp_path, stdout=full)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[1:] == ["dvpd: No space left on device"]
    reader, writer = os.pipe()
    os.close(reader)
    done = script("print('result')", tmp_path, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"dvpd: started\n")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a folder in use cannot be deleted")
def test_a_working_folder_that_was_deleted(tmp_path, monkeypatch, capsys):
    """The name of the file is not to blame."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run(FileNotFoundError(2, "No such file or directory", "a.wav")) == 1
    said = capsys.readouterr().err
    assert said.startswith("dvpd: a.wav: No such file or directory (the working folder has been")
    assert run() == 0  # with absolute paths there is nothing against it


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = script("print('caf\\udce9')", tmp_path, stdout=subprocess.PIPE, env=strict)
    assert (done.returncode, done.stdout) == (0, b"caf\\udce9\n")


def test_closed_descriptors_do_not_become_files(tmp_path):
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -c "$0" 2>&- >&- <&-',
         SCRIPT.format(root=str(ROOT), action="os.write(2, b'library noise'); whole.commit()")],
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "out.bin").read_bytes() == b"x"


def test_messages_of_the_logger_are_shown_while_it_runs(capsys):
    def body(args):
        logging.getLogger("dvpd").info("auto chose %s", "ort")

    assert command.run(parser(), [], body) == 0
    assert capsys.readouterr().err == "dvpd: auto chose ort\n"
    assert not logging.getLogger("dvpd").handlers


def test_messages_of_a_command_within_a_command_are_shown_once(capsys):
    def body(args):
        logging.getLogger("dvpd").info("auto chose %s", "ort")

    assert command.run(parser(), [], lambda args: command.run(parser(), [], body)) == 0
    assert capsys.readouterr().err == "dvpd: auto chose ort\n"


def test_types_of_options(capsys):
    made = parser()
    made.add_argument("--count", type=command.whole(2))
    made.add_argument("--seconds", type=command.number(above=True))
    made.add_argument("--limit", type=command.number(most=math.inf))
    seen = []
    for words in (["--count", "2", "--seconds", "1e-9"], ["--limit", "inf"]):
        assert command.run(made, words, lambda args: seen.append(args)) == 0
    assert (seen[0].count, seen[0].seconds, seen[1].limit) == (2, 1e-9, math.inf)
    for option, value, message in (
        ("--count", "1", "'1' is not a whole number from 2"),
        ("--count", "2.5", "'2.5' is not a whole number from 2"),
        ("--seconds", "0", "'0' is not a number above 0"),
        ("--seconds", "inf", "'inf' is not a number above 0"),
        ("--limit", "nan", "'nan' is not a number from 0"),
        ("--limit", "-1", "'-1' is not a number from 0"),
    ):
        assert command.run(made, [option, value], seen.append) == 2
        assert message in capsys.readouterr().err


def test_every_command_says_its_version(capsys):
    own = parser()
    own.add_argument("--version", action="version", version="its own")
    for made, said in ((parser(), command.version_text()), (own, "its own")):
        assert command.run(made, ["--version"], print) == 0
        assert capsys.readouterr().out.strip() == said


def test_version():
    assert command.version_text().startswith("dvpd 0.")


def test_the_end_of_a_command_looks_for_no_garbage(monkeypatch):
    calls = []
    monkeypatch.setattr(command.gc, "freeze", lambda: calls.append("freeze"))
    with pytest.raises(SystemExit) as end:
        command.leave(3)
    assert (calls, end.value.code) == (["freeze"], 3)
