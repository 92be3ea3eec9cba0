"""Engines from the Hub, against a server on loopback that speaks its protocol."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dvpd.runtime import DvpdError, Enhancer, HubError, InputError, ManifestError, cli, hub
from dvpd.runtime.engines import find_engine

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "engines" / "dvpd-tiny"
NAME = "someone/dvpd-tiny"
FILES = {
    path.name: path.read_bytes()
    for path in sorted(TINY.iterdir())
    if path.suffix in (".onnx", ".json", ".safetensors")
}
GRAPHS = sorted(name for name in FILES if name.endswith(".onnx"))


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The Hub of this test, with one repository; its package and ours have empty caches."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    from hub_server import FakeHub, Repository
    from huggingface_hub import constants

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        # read from the environment when the package was imported
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        fake.repositories[NAME] = Repository()
        fake.repositories[NAME].commit(FILES, "main", "v0.2.0")
        yield fake


def fetched(server) -> list[str]:
    return sorted(path.rpartition("/")[2] for method, path in server.requests if method == "GET")


def test_an_engine_is_fetched_checked_and_enhances_as_the_local_one(server):
    pytest.importorskip("onnxruntime")
    wav = np.random.default_rng(0).standard_normal(8000).astype(np.float32) / 10
    outputs = []
    for folder in (TINY, None):
        with (
            Enhancer.from_pretrained(NAME, backend="ort", device="cpu", threads=1)
            if folder is None
            else Enhancer.open(folder, "ort", "cpu", 1)
        ) as enhancer:
            outputs.append(enhancer.enhance(wav, 16000, steps=0).wav)
    np.testing.assert_array_equal(*outputs)
    # What runs, and nothing else: no weights of another form.
    assert fetched(server) == sorted([*GRAPHS, "manifest.json", "verification.json"])


def test_what_is_there_is_not_fetched_again(server):
    folder = hub.fetch(NAME)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*GRAPHS, "manifest.json", "verification.json"]
    )
    assert not any(path.is_symlink() for path in folder.iterdir())  # engines refuse these
    server.requests.clear()
    assert hub.fetch(NAME) == folder
    assert [method for method, _ in server.requests] == ["HEAD"]  # which commit "main" is
    server.requests.clear()
    assert hub.fetch(NAME, folder.parent.name) == folder  # a commit is what it is
    assert server.requests == []


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_engines_load_what_lies_in_the_cache(server, backend):
    pytest.importorskip(backend)
    name = {"onnxruntime": "ort"}.get(backend, backend)
    with Enhancer.open(f"hf:{NAME}", name, "cpu", 1) as enhancer:
        assert enhancer.backend.name == name


def test_a_revision_is_a_branch_a_tag_or_a_commit(server):
    repository = server.repositories[NAME]
    first = repository.names["main"]
    newer = repository.commit(FILES | {"manifest.json": FILES["manifest.json"] + b"\n"}, "main")
    assert hub.fetch(NAME).parent.name == newer
    assert hub.fetch(NAME, "v0.2.0").parent.name == first
    assert hub.fetch(NAME, newer).parent.name == newer
    assert find_engine(f"hf:{NAME}@v0.2.0").parent.name == first
    assert find_engine(f"hf:{NAME}@{newer}").parent.name == newer


def test_offline_the_cache_serves_what_it_has(server, monkeypatch):
    from huggingface_hub import constants

    folder = hub.fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.requests.clear()
    assert hub.fetch(NAME) == folder
    shutil.rmtree(folder)  # the package's own files are enough
    assert hub.fetch(NAME) == folder
    with pytest.raises(HubError, match="not in the cache, and HF_HUB_OFFLINE forbids"):
        hub.fetch("someone/other")
    assert server.requests == []


def test_without_a_network_the_cache_serves_what_it_has(server, monkeypatch, caplog):
    folder = hub.fetch(NAME)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert hub.fetch(NAME) == folder
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it tries again"))
    with (
        caplog.at_level("DEBUG", "huggingface_hub"),
        pytest.raises(HubError, match=r"not in the cache, and http://127\S+ did not give it"),
    ):
        hub.fetch("someone/other")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_names_that_are_none_are_refused_before_anything_is_asked(server):
    for name in ("dvpd-tiny", "a/b/c", "../x", "a/", "/etc/passwd", "owner/na me", ""):
        with pytest.raises(InputError, match="on the Hugging Face Hub; expected OWNER/NAME"):
            hub.fetch(name)
    with pytest.raises(InputError, match="expected OWNER/NAME"):
        find_engine("hf:dvpd-tiny")
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "revision", "error", "kind", "message"),
    [
        ("someone/nothing", None, None, InputError, "no such repository, or it is private"),
        (NAME, "v9", None, InputError, "hf:someone/dvpd-tiny@v9: the repository has no such revision"),
        (NAME, None, (403, "GatedRepo"), HubError, "its owner grants access"),
        (NAME, None, (418, ""), HubError, r"did not give it \(HfHubHTTPError: .*418"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_do(server, name, revision, error, kind, message):
    server.repositories[NAME].error = error
    with pytest.raises(kind, match=message) as refused:
        hub.fetch(name, revision)
    assert "\n" not in str(refused.value)


def test_a_repository_without_an_engine_is_refused(server):
    repository = server.repositories[NAME]
    for name, message in (
        ("manifest.json", "has no manifest.json, so no engine"),
        ("score.onnx", "has no score.onnx"),
    ):
        rest = {file: data for file, data in FILES.items() if file != name}
        repository.commit(rest, "main")
        with pytest.raises(ManifestError, match=message):
            hub.fetch(NAME)
    repository.commit({"manifest.json": b'{"format": 7}'}, "main")
    with pytest.raises(ManifestError, match=r"hf:someone/dvpd-tiny: .*manifest format is 7"):
        hub.fetch(NAME)


def test_a_manifest_cannot_reach_out_of_its_folder(server, tmp_path):
    table = json.loads(FILES["manifest.json"])
    table["graphs"]["score"]["file"] = "../../score.onnx"
    server.repositories[NAME].commit({"manifest.json": json.dumps(table).encode()}, "main")
    with pytest.raises(ManifestError, match="expected a bare file name"):
        hub.fetch(NAME)
    assert fetched(server) == ["manifest.json"]


def test_other_graphs_than_the_manifests_are_refused(server, tmp_path):
    server.repositories[NAME].commit(FILES | {"score.onnx": b"another graph"}, "main")
    with pytest.raises(ManifestError, match=r"do not belong together: .*score\.onnx: SHA-256 is"):
        hub.fetch(NAME)
    with pytest.raises(ManifestError, match="do not belong together"):
        Enhancer.from_pretrained(NAME)


def test_a_file_that_was_damaged_in_the_cache_is_fetched_once_more(server):
    folder = hub.fetch(NAME)
    (folder / "score.onnx").write_bytes(b"damaged")  # a link: the package's copy is damaged, too
    server.requests.clear()
    assert hub.fetch(NAME) == folder
    assert (folder / "score.onnx").read_bytes() == FILES["score.onnx"]
    assert "score.onnx" in fetched(server)


def test_an_engine_without_a_report_is_one(server):
    rest = {file: data for file, data in FILES.items() if file != "verification.json"}
    server.repositories[NAME].commit(rest, "main")
    assert not (hub.fetch(NAME) / "verification.json").exists()


def test_nothing_is_fetched_unless_its_name_says_so(server):
    for model in (None, "dvpd-tiny", TINY, str(TINY)):
        find_engine(model)
    for model in (NAME, Path("hf:") / NAME):  # folders that are not there
        with pytest.raises(DvpdError):
            Enhancer.open(model)
    assert server.requests == []


def test_commands_take_the_name(server, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    import soundfile

    soundfile.write(tmp_path / "in.wav", np.full(4000, 0.1), 16000)
    words = ["enhance", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--steps", "0"]
    assert cli.main([*words, "--model", f"hf:{NAME}", "--threads", "1"]) == 0
    assert soundfile.info(tmp_path / "out.wav").frames == 4000
    assert cli.main([*words, "--model", "hf:someone/nothing"]) == 1
    assert "dvpd: hf:someone/nothing: the Hub has no such repository" in capsys.readouterr().err


def test_help_and_refusals_know_the_prefix(capsys):
    for name in ("enhance", "stream", "live", "serve", "demo"):
        assert cli.main([name, "--help"]) == 0
        assert "hf:OWNER/NAME" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["build", "hf:someone/thing@v1"]) == 2
    assert "`hf download someone/thing --local-dir DIR`" in capsys.readouterr().err


def test_without_the_package_it_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"pip install 'dvpd\[hub\]'"):
        hub.fetch(NAME)


def test_the_environments_endpoint_is_asked(server, tmp_path):
    """As a user has it: another process, and nothing replaced in the package."""
    code = f"from dvpd.runtime import hub; print(hub.fetch({NAME!r}))"
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_TELEMETRY"}
    env |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        env=env, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == NAME.replace("/", "--")
    assert {path.split("/resolve/")[0] for _, path in server.requests} == {f"/{NAME}"}
    # It hears of this package, and not what else is installed.
    told = {headers["user-agent"] for headers in server.headers}
    assert all("dvpd" in text and "torch" not in text for text in told)
