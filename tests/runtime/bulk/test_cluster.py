"""A job on a cluster of two nodes: every test uses the same one."""

import contextlib
import gc
import json
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from bulk_parts import ENGINE, FakeEnhancer, use_threads

from dvpd.runtime import InputError, cli
from dvpd.runtime.bulk import cluster, command, worker
from dvpd.runtime.bulk.plan import Job
from dvpd.runtime.bulk.worker import Task, trace_of

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'dvpd[ray]'")
pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds Ray's processes in /proc"),
    # Ray's own, of versions to come
    pytest.mark.filterwarnings("ignore:`use_push_based_shuffle` is deprecated"),
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:ray\..*"),
    # Ray leaves its daemons and their pipes to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
N_FILES = 12


@pytest.fixture(scope="module")
def address():
    """Two nodes of one CPU each, which find the package where this process does."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        **cluster._QUIET,
    }
    nodes = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    two = Cluster(initialize_head=True, head_node_args=nodes)
    try:
        two.add_node(**nodes)
        yield two.address
    finally:
        two.shutdown()
        del two
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # not within a test of somebody else
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory, speech):
    folder = tmp_path_factory.mktemp("cluster") / "in"
    folder.mkdir()
    for index in range(N_FILES):
        wav = np.roll(speech, 1000 * index)[:16000]
        soundfile.write(folder / f"{index:02}.wav", wav, 16000, "PCM_16")
    return folder


@pytest.fixture
def alone(root, tmp_path, engine_shared, enhancer, monkeypatch):
    """The outputs of the job without a cluster."""

    def serve(pipe, engine):
        pipe.send(("ready", {"backend": "ort", "device": "cpu"}))
        with contextlib.suppress(EOFError, OSError):
            while True:
                pipe.send(worker.answer(pipe.recv(), enhancer, engine, pipe.send))
        pipe.close()

    use_threads(monkeypatch)
    monkeypatch.setattr(command, "serve", serve)
    out = tmp_path / "alone"
    assert cli.main(["enhance", str(root), str(out), "--model", str(engine_shared)]) == 0
    return {path.name: path.read_bytes() for path in out.glob("*.wav")}


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def actors():
    """Processes of this cluster's actors: a node's process is a child of this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            pid = int(path.parent.name)
            ours = parent(parent(pid)) == os.getpid()
            if ours and path.read_bytes().startswith(b"ray::MapWorker"):
                found.append(pid)
    return found


def kill_one(out, killed):
    """Kill an actor when the first output is there."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not any(out.glob("*.wav")):
        time.sleep(0.01)
    for pid in actors()[:1]:
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_no_byte(
    address, root, alone, tmp_path, engine_shared, dnsmos_models, capsys, monkeypatch
):
    out, killed = tmp_path / "out", []
    killer = threading.Thread(target=kill_one, args=(out, killed))
    killer.start()
    words = ["enhance", root, out, "--ray", address, "--model", engine_shared, "--json"]
    words += ["--dnsmos", dnsmos_models]
    assert cli.main([*map(str, words)]) == 0
    killer.join()
    assert len(killed) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done"], summary["failed"], summary["jobs"]) == (N_FILES, 0, 2)
    assert {path.name: path.read_bytes() for path in out.glob("*.wav")} == alone
    with sqlite3.connect(out / ".dvpd" / "journal.sqlite") as db:
        assert db.execute("SELECT state, times, count(*) FROM jobs").fetchall() == [
            ("done", 1, N_FILES)
        ]
    db.close()
    assert list((out / ".dvpd" / "parts").iterdir()) == []
    rows = [json.loads(line) for line in (out / command.RESULTS).read_text().splitlines()]
    assert {row["state"] for row in rows} == {"done"}
    assert all("dnsmos_ovrl" in row for row in rows)
    monkeypatch.setattr(cluster, "_check_answers", lambda address: None)  # it has answered
    assert cli.main([*map(str, words), "--resume"]) == 0  # opens nothing
    assert json.loads(capsys.readouterr().out)["done_before"] == N_FILES
    again = [json.loads(line) for line in (out / command.RESULTS).read_text().splitlines()]
    assert again == rows


@pytest.mark.slow
def test_urls_and_what_a_node_may_lack(
    address, root, alone, tmp_path, engine_shared, capsys, monkeypatch
):
    pytest.importorskip("upath")
    out = f"file://{tmp_path}/out"
    words = ["enhance", f"file://{root}", out, "--ray", address, "--journal", tmp_path / "journal"]
    words += ["--model", engine_shared, "--glob", "0[0-3].wav", "--jobs", "1"]
    (tmp_path / "unseen").touch()
    with cluster.joined(address) as joined:  # once for all of it: to join takes seconds
        monkeypatch.setattr(command, "joined", lambda _: contextlib.nullcontext(joined))
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "PACKAGE", "dvpd_of_another_name")
            assert cli.main([*map(str, words)]) == 1
        assert "the package dvpd_of_another_name is missing" in capsys.readouterr().err
        assert cli.main([*map(str, words)]) == 0
        made = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.wav")}
        assert made == {name: data for name, data in alone.items() if name < "04"}
        engine = worker.Engine(engine_shared, "ort", "cpu", 1, False)
        with pytest.raises(InputError, match=r"unseen is not there: every node must see it"):
            cluster.check_nodes(joined, engine, [tmp_path / "unseen"])
        with pytest.raises(InputError, match="a process needs 3 CPUs: fewer --threads"):
            cluster.spread(joined, worker.Engine(engine_shared, "ort", "cpu", 3, False), None)
        on_gpu = worker.Engine(engine_shared, "ort", "cuda", 1, False)
        with pytest.raises(InputError, match=r"0 GPUs; a process needs 1 CPUs and a GPU"):
            cluster.spread(joined, on_gpu, None)
        assert cluster.spread(joined, on_gpu, 5) == cluster.Actors(5, 1, 1)


def test_the_largest_recordings_do_not_meet_in_one_block():
    assert cluster.dealt("ABCdefghij", 3) == [*"Adgj", *"Beh", *"Cfi"]
    assert cluster.dealt("AB", 2) == ["A", "B"]


def test_what_answers_is_no_cluster(monkeypatch):
    monkeypatch.setattr(cluster, "_HEALTH_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match="is no Ray cluster"), cluster.joined(place):
            pass


@pytest.fixture
def actor(monkeypatch):
    """What an actor runs, in this process."""
    monkeypatch.setattr(worker.Enhancer, "open", lambda *a, **options: FakeEnhancer())
    tries = cluster._Tries()
    remote = {name: SimpleNamespace(remote=getattr(tries, name)) for name in ("begin", "end")}
    made = cluster.Enhance(ENGINE, SimpleNamespace(**remote))
    made._ray = SimpleNamespace(get=lambda found: found)
    yield made, tries
    cluster.logging.getLogger("dvpd").removeHandler(made._listener)


def test_a_recording_that_ends_two_actors_is_set_aside(actor, tmp_path):
    enhance, tries = actor
    (tmp_path / "a.wav").write_bytes(b"deadly")
    task = Task(Job(tmp_path / "a.wav", tmp_path / "out.wav"), tmp_path / "1.wav")
    for _ in range(2):
        with pytest.raises(SystemExit):
            enhance._answer(7, task)
    kind, said = enhance._answer(7, task)
    assert kind == "poison"
    assert said == f"{tmp_path / 'a.wav'}: the process that worked on it ended, 2 times"
    stands = '  File "/x/y.py", line 3 in read\n  File "worker.py", line 9 in answer\n'
    waits = '  File "threading.py", line 327 in wait\n'
    trace = f"Timeout (0:00:01)!\nThread 0x2:\n{stands}\nThread 0x1:\n{waits}"
    trace_of(Path(tries._counts[7][0][0])).write_text(trace)
    assert "(in read, y.py line 3)" in enhance._answer(7, task)[1]


def test_a_recording_that_was_done_before_its_actor_died_is_not_to_blame(actor, tmp_path):
    enhance, _ = actor
    (tmp_path / "a.wav").write_bytes(b"a")
    task = Task(Job(tmp_path / "a.wav", tmp_path / "out.wav"), tmp_path / "1.wav")
    made = [enhance._answer(7, task)[1] for _ in range(4)]
    assert len({m.path for m in made}) == 4  # a name of its own each time
    assert {m.sha256 for m in made} == {made[0].sha256}
