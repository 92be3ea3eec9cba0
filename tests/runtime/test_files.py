import errno
import os
from pathlib import Path

import pytest

from dvpd.runtime import InputError, files


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(
    "name",
    ["ノイズ" * 27 + ".wav", "я" * 125 + ".wav", "x" * 251 + ".wav"],
    ids=["kana", "cyrillic", "ascii"],
)
def test_long_names_of_any_alphabet(tmp_path, name):
    assert len(os.fsencode(name)) > 240
    files.write_whole(tmp_path / name, b"sound")
    assert names(tmp_path) == [name]
    temporary = files.temporary_path(tmp_path / name).name
    assert len(os.fsencode(temporary)) < 140
    temporary.encode("utf-8")  # cut between characters


def test_a_name_that_is_not_utf8(tmp_path):
    target = tmp_path / os.fsdecode(b"caf\xe9.wav")
    files.write_whole(target, b"sound")
    assert target.read_bytes() == b"sound"


def test_failing_leaves_the_previous_file(tmp_path, monkeypatch):
    target = tmp_path / "x.json"
    target.write_text("old")

    def refuse(*args):
        raise OSError(errno.EIO, "Input/output error")

    for owner, name in ((files.os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            with pytest.raises(OSError, match="Input/output"):
                files.write_whole(target, "new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["x.json"]


def test_nothing_is_replaced_without_permission(tmp_path):
    target = tmp_path / "take.wav"
    target.write_bytes(b"the only take")
    target.chmod(0o400)
    with pytest.raises(InputError, match="--overwrite"):
        files.write_whole(target, b"new", overwrite=False)
    (tmp_path / "dangling").symlink_to(target)
    with pytest.raises(InputError, match="exists already"):
        files.write_whole(tmp_path / "dangling", b"new", overwrite=False)
    assert target.read_bytes() == b"the only take"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(files.os, "link", lambda *a: (_ for _ in ()).throw(OSError(1, "no")))
    target = tmp_path / "out.wav"
    with files.WholeFile(target, overwrite=False) as whole:
        whole.path.write_bytes(b"slow")
        target.write_bytes(b"fast")
        with pytest.raises(InputError, match="exists already"):
            whole.commit()
    assert target.read_bytes() == b"fast"
    assert names(tmp_path) == ["out.wav"]
    files.write_whole(tmp_path / "free.wav", b"x", overwrite=False)
    assert names(tmp_path) == ["free.wav", "out.wav"]


def test_previous_file_is_kept_under_its_name(tmp_path):
    target, previous = tmp_path / "a", tmp_path / "a.previous"
    files.write_whole(target, "one", previous)
    files.write_whole(target, "two", previous)
    assert (target.read_text(), previous.read_text()) == ("two", "one")


def test_what_an_interrupted_context_left_is_removed_at_the_end(tmp_path):
    whole = files.WholeFile(tmp_path / "x")
    whole.path.write_bytes(b"half")
    assert files.remove_unfinished() == 1
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_keeps_its_place_and_gets_what_is_written(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_whole(pipe, b"figures")
        assert os.read(reader, 100) == b"figures"
    finally:
        os.close(reader)
    with pytest.raises(InputError, match="is a device or a pipe"):
        files.WholeFile(pipe)
    assert pipe.is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_files_may_be_flushed_together_later(tmp_path, monkeypatch):
    flushed, real = [], files.os.fsync

    def fsync(fd):
        flushed.append(os.readlink(f"/proc/self/fd/{fd}") if os.path.isdir("/proc/self/fd") else fd)
        real(fd)

    monkeypatch.setattr(files.os, "fsync", fsync)
    names = [tmp_path / f"{i}.wav" for i in range(20)]
    with files.flushed_later():
        for path in names:
            files.write_whole(path, b"x")
    assert flushed == []
    missing = tmp_path / "none.wav"
    lost = files.flush_files([*names, missing])
    assert list(lost) == [missing]
    assert len(set(flushed)) == 20
    files.flush_folders([tmp_path, tmp_path / "none"])
    files.write_whole(tmp_path / "now.wav", b"x")  # the file and its folder
    assert len(flushed) == 23
