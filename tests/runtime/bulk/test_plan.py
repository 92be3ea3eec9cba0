import json
import os

import pytest

from dvpd.runtime import InputError
from dvpd.runtime.bulk import places
from dvpd.runtime.bulk.lines import manifest_plan
from dvpd.runtime.bulk.plan import folder_plan


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def targets(plan, out):
    return [job.target.relative_to(out).as_posix() for job in plan.jobs()]


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "in", "b.wav", "a.mp3", "notes.txt", ".hidden.wav", "s/c.FLAC", "s/t/d.m4a")
    return tmp_path / "in"


def test_a_folder_keeps_its_tree(root, tmp_path):
    out = tmp_path / "out"
    assert targets(folder_plan(root, out, [], False), out) == ["a.wav", "b.wav"]
    assert targets(folder_plan(root, out, [], True), out) == [
        "a.wav", "b.wav", "s/c.FLAC", "s/t/d.wav",
    ]  # fmt: skip
    assert targets(folder_plan(root, out, ["*.FLAC", "b.*"], True), out) == ["b.wav", "s/c.FLAC"]
    assert targets(folder_plan(root, out, ["notes.*"], False), out) == ["notes.wav"]


def test_an_output_folder_within_the_input_is_left_out(root):
    fill(root, "out/b.wav")
    plan = folder_plan(root, root / "out", ["b.wav"], True)
    assert [job.source for job in plan.jobs()] == [root / "b.wav"]


def test_large_files_come_first_and_equal_ones_in_order(root, tmp_path):
    names = [f"{i:04}.wav" for i in range(2500)]  # more than a page
    fill(root / "many", *names)
    for name, size in (("0007.wav", 50), ("1999.wav", 90)):
        (root / "many" / name).write_bytes(bytes(size))
    plan = folder_plan(root / "many", tmp_path / "out", [], False)
    plan.settle(next(plan.jobs()))
    found = [job.source.name for job in plan.largest_first()]
    assert found[:2] == ["1999.wav", "0007.wav"]
    assert found[2:] == [n for n in names[1:] if n not in found[:2]]


@pytest.mark.parametrize(
    ("globs", "recursive", "said"),
    [([], False, "--recursive looks"), (["*.ogg"], True, "match *.ogg; choose others")],
)
def test_an_empty_folder(tmp_path, globs, recursive, said):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError) as error:
        folder_plan(tmp_path / "in", tmp_path / "out", globs, recursive)
    assert said in str(error.value)


def test_links_in_a_circle_end(root, tmp_path):
    (root / "a_first").symlink_to(root / "s")  # sorted before the real folder
    (root / "s" / "up").symlink_to(root)
    fill(tmp_path / "elsewhere", "e.wav")
    (root / "far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root / "far")
    out = tmp_path / "out"
    plan = folder_plan(root, out, [], True)
    assert targets(plan, out) == ["a.wav", "b.wav", "far/e.wav", "s/c.FLAC", "s/t/d.wav"]
    assert len(plan.notes) == 3


def test_files_that_cannot_be_read_are_named(root, tmp_path, monkeypatch):
    (root / "gone.wav").symlink_to(tmp_path / "nowhere")
    (root / "empty.wav").touch()
    plan = folder_plan(root, tmp_path / "out", [], False)
    assert [job.source.name for job in plan.jobs()] == ["a.mp3", "b.wav"]
    assert [r["error"].split(": ")[1] for r in plan.refused()] == [
        "is an empty file (0 bytes)",
        "No such file or directory",
    ]

    def no_right(path):
        if path.name == "b.wav":
            raise InputError(f"{path}: Permission denied")
        return check_file(path)

    check_file = places.check_file
    with monkeypatch.context() as patch:  # root may read all
        patch.setattr(places, "check_file", no_right)
        plan = folder_plan(root, tmp_path / "out", [], False)
    assert [job.source.name for job in plan.jobs()] == ["a.mp3"]
    assert f"{root / 'b.wav'}: Permission denied" in [r["error"] for r in plan.refused()]

    real = os.scandir

    def refuse(path):
        if str(path).endswith("s"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    plan = folder_plan(root, tmp_path / "out", [], True)
    assert [r["error"] for r in plan.refused()][2] == f"{root / 's'}: Permission denied"
    assert len(list(plan.jobs())) == 2


def test_outputs_that_meet_are_found_before_anything_runs(root, tmp_path):
    fill(root, "b.aiff")
    with pytest.raises(InputError, match=r"b\.aiff and .*b\.wav would share the output"):
        folder_plan(root, tmp_path / "out", [], False).check_targets()


def test_no_output_is_an_input(root):
    fill(root, "in/b.wav")
    plan = folder_plan(root / "in", root, [], False)
    plan.check_targets()
    plan.add(root / "b.wav", root / "other.wav")
    with pytest.raises(InputError, match="would be input and output"):
        plan.check_targets()


def test_manifest(root, tmp_path):
    lines = tmp_path / "in.jsonl"
    good = [
        {"path": "b.wav", "start": 1.5, "duration": 2, "output": "cut/b.flac"},
        {"path": str(root / "s" / "c.FLAC")},
        {"path": "s/t/d.m4a", "start": 3},
        {"path": "../in/b.wav"},
    ]
    lines.write_text("\n\n".join(map(json.dumps, good)))
    out = tmp_path / "out"
    plan = manifest_plan(lines, root, out)
    assert list(plan.refused()) == []
    assert targets(plan, out) == ["cut/b.flac", "c.FLAC", "s/t/d.wav", "b.wav"]
    assert [job.part for job in plan.jobs()] == [(1.5, 2.0), None, (3.0, None), None]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is list; expected an object"),
        ("{}", "has no path"),
        ('{"path": 3}', "path is 3"),
        ('{"path": "b.wav", "out": "x.wav"}', "unknown key 'out'"),
        ('{"path": "b.wav", "start": -1}', "start is -1"),
        ('{"path": "b.wav", "start": NaN}', "start is nan"),
        ('{"path": "b.wav", "start": 1' + "0" * 400 + "}", "expected seconds >= 0"),
        ('{"path": "b.wav", "duration": 0}', "duration is 0"),
        ('{"path": "b.wav", "output": "../b.wav"}', "not within the output folder"),
        ('{"path": "b.wav", "output": "/b.wav"}', "not within the output folder"),
        ('{"path": "b.wav", "output": ".dvpd/b.wav"}', "not within the output folder"),
        ("\udce9", "is not JSON"),
    ],
)
def test_a_wrong_line_is_named_and_the_others_are_taken(root, tmp_path, line, said):
    lines = tmp_path / "in.jsonl"
    lines.write_bytes(('{"path": "a.mp3"}\n' + line).encode(errors="surrogateescape"))
    plan = manifest_plan(lines, root, tmp_path / "out")
    assert [job.source.name for job in plan.jobs()] == ["a.mp3"]
    assert f"{lines} line 2: " in next(iter(plan.refused()))["error"]
    assert said in next(iter(plan.refused()))["error"]
    assert next(iter(plan.refused()))["line"] == 2


def test_a_manifest_that_names_what_cannot_be_done(root, tmp_path):
    lines = tmp_path / "in.jsonl"
    table = [{"path": "none.wav"}, {"path": "b.wav", "output": "b.mp3"}]
    lines.write_text("\n".join(map(json.dumps, table)))
    plan = manifest_plan(lines, root, tmp_path / "out")
    assert "No such file" in next(iter(plan.refused()))["error"]
    assert "unknown suffix '.mp3'" in list(plan.refused())[1]["error"]
    lines.write_text("\n")
    with pytest.raises(InputError, match="has no lines"):
        manifest_plan(lines, root, tmp_path / "out")
    with pytest.raises(InputError, match="No such file"):
        manifest_plan(tmp_path / "none.jsonl", root, tmp_path / "out")
