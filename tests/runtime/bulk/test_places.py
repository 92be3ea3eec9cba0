"""Recordings and outputs in object storage, of which fsspec's memory is one."""

import json

import pytest
from bulk_parts import do, turned, use_threads

from dvpd.runtime import InputError, cli
from dvpd.runtime.bulk import command, places

pytest.importorskip("upath", reason="needs universal-pathlib: pip install 'dvpd[cloud]'")


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    use_threads(monkeypatch)


@pytest.fixture
def root():
    folder = places.place("memory://archive/in")
    yield folder
    folder.fs.rm("/archive", recursive=True)


def fill(root, **files):
    for name, data in files.items():
        path = root / f"{name.replace('_', '/')}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def outputs(out):
    found = out.fs.find(out.path)
    return {p[len(out.path) + 1 :]: out.fs.cat(p) for p in found if "/." not in p}


def test_a_job_from_url_to_url(root, tmp_path):
    out = places.place("memory://archive/in/out")  # within IN: it is left out
    fill(root, a=b"a", b=b"b", s_c=b"c")
    done, results = do(root, out, {}, journal=tmp_path / "journal", n=2)
    assert (done.counts.done, done.counts.failed) == (3, 0)
    expected = {f"{name}.wav": turned(name[-1:].encode()) for name in ("a", "b", "s/c")}
    assert outputs(out) == expected
    assert results["c.wav"]["path"] == "memory://archive/in/s/c.wav"
    assert results["c.wav"]["output"] == "memory://archive/in/out/s/c.wav"
    assert not out.fs.find(f"{out.path}/.dvpd")  # what waited for its name is gone
    assert [p.name for p in (tmp_path / "journal").glob("*.sqlite")] == ["journal.sqlite"]


def test_what_is_there_is_looked_at_without_reading_it(root, tmp_path, monkeypatch):
    out = places.place("memory://archive/out")
    fill(root, a=b"a", b=b"b", c=b"c")
    journal = tmp_path / "journal"
    do(root, out, {}, journal=journal)
    with monkeypatch.context() as patch:
        patch.setattr(places, "sha256", lambda *a: pytest.fail("was read again"))
        done, _ = do(root, out, {"resume": True}, journal=journal)
    assert (done.counts.before, done.n_workers) == (3, 0)
    fill(root, a=b"another")
    (out / "b.wav").unlink()
    fill(out, c=b"edited")
    done, results = do(root, out, {"resume": True}, journal=journal)
    assert (done.counts.done, done.counts.failed) == (1, 2)
    assert "was made from another recording" in results["a.wav"]["error"]
    assert outputs(out)["c.wav"] == b"edited"
    done, _ = do(root, out, {"overwrite": True}, journal=journal)
    assert done.counts.done == 3
    assert outputs(out)["a.wav"] == turned(b"another")


def test_an_output_that_appears_meanwhile_is_kept(root, tmp_path, monkeypatch):
    out = places.place("memory://archive/out")
    fill(root, a=b"a")
    real = places.send

    def send(made, target, step):
        real(made, target, step)
        fill(out, a=b"fast")

    monkeypatch.setattr(places, "send", send)
    _, results = do(root, out, {}, journal=tmp_path / "journal")
    assert "exists already" in results["a.wav"]["error"]
    assert outputs(out) == {"a.wav": b"fast"}


def test_files_that_fail_are_named_by_their_urls(root, tmp_path):
    fill(root, a=b"bad", b=b"b", empty=b"")
    out = places.place("memory://archive/out")
    said = []
    _, results = do(root, out, {}, journal=tmp_path / "journal", said=said)
    assert said == [f"{root}/a.wav: no recording; {out}/a.wav was not written"]
    assert results["b.wav"]["state"] == "done"
    assert results["empty.wav"]["error"] == f"{root}/empty.wav: is an empty file (0 bytes)"


def test_a_storage_that_fails_fails_the_file(root, tmp_path, monkeypatch):
    fill(root, a=b"a", b=b"b")
    out = places.place("memory://archive/out")
    real = type(root.fs).mv

    def mv(self, source, target, **options):
        if target.endswith("a.wav"):
            raise RuntimeError("SlowDown: reduce your request rate")
        return real(self, source, target, **options)

    monkeypatch.setattr(type(root.fs), "mv", mv)
    done, results = do(root, out, {}, journal=tmp_path / "journal")
    assert "SlowDown" in results["a.wav"]["error"]
    assert (done.counts.done, done.counts.failed) == (1, 1)


def test_the_command(root, tmp_path, monkeypatch, capsys):
    from bulk_parts import serve

    fill(root, a=b"a", s_b=b"b")
    monkeypatch.setattr(command, "serve", serve)
    words = ["enhance", str(root), "memory://archive/out", "--recursive", "--steps", "0"]
    assert cli.main(words) == 2
    assert "--journal DIR must say where" in capsys.readouterr().err
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"path": "memory://archive/in/s/b.wav", "output": "x/b.wav"}')
    journal = ["--journal", str(tmp_path / "journal")]
    assert cli.main([*words[:3], "--manifest", str(lines), *journal]) == 0
    out = places.place("memory://archive/out")
    results = [json.loads(line) for line in (out / command.RESULTS).read_text().splitlines()]
    assert [r["output"] for r in results] == ["memory://archive/out/x/b.wav"]
    assert cli.main([*words[:1], "memory://none", *words[2:], *journal]) == 2
    assert "memory://none: No such file or directory; expected a folder" in capsys.readouterr().err


def test_a_url_that_no_package_reads():
    with pytest.raises(InputError, match="nonsense://bucket: ValueError: "):
        places.place("nonsense://bucket")


def test_times_of_storages():
    assert places.of_info({"size": 3, "mtime": 1.5}) == (3, 1_500_000_000)
    early, late = ({"size": 1, "updated": f"2026-11-0{day}T00:00:00Z"} for day in (1, 2))
    assert places.of_info(early) != places.of_info(late)
    assert places.of_info({"size": None}) == (0, 0)
