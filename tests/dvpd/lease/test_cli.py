"""A lease from the packing to the results at home, with a kill in every phase."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

import pytest
from lease_parts import PLAN, packed, started, write_plan

from dvpd.checkpoint import read_checkpoint
from dvpd.lease import cli
from dvpd.lease.cli import main
from dvpd.lease.rows import Row, last_of, read_rows
from dvpd.lease.work import Work
from dvpd.training.state import StateFiles

COMMANDS = """
[[commands]]
name = "proof"
argv = ["sleep", "600"]
[[commands]]
name = "late"
argv = ["sleep", "600"]
seconds = 0.5
[[commands]]
name = "none"
argv = ["/no/such/program"]
[[commands]]
name = "file"
argv = ["{python}", "-c", "open('{out}/a.txt', 'w').write('x')"]
"""
PATIENCE_S = 600.0  # this machine may have more to do; nothing below waits for a clock


@pytest.fixture
def lease(lease_data, tmp_path):
    """The folders of the calls and of the lease; its processes end with the test."""
    text = PLAN.replace("minutes = 10", "minutes = 30").replace("part_mib = 0.2", "part_mib = 0.25")
    calls = packed(tmp_path, lease_data, text + COMMANDS)
    yield calls, tmp_path / "work"
    main(["stop", "--work", str(tmp_path / "work")])


def test_kills_in_every_phase_and_results_in_small_files(lease, tmp_path, monkeypatch):
    calls, folder = lease
    here = ["--work", str(folder)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ask = ["start", str(calls[0]), "--started", str(time.time() - 60.0), "--minutes", "30"]
    assert main([*ask, "--device", "cpu", *here]) == 0
    assert main([*ask, *here]) == 0  # it runs already
    assert main(["feed", str(calls[1]), *here]) == 0  # and no more: parts are missing
    work, killed = Work(folder), set()

    def until(condition: Callable[[list[Row]], object]) -> list[Row]:
        """Wait for rows; whatever phase begins meanwhile is killed, once."""
        end = time.monotonic() + PATIENCE_S
        while not condition(rows := read_rows(work.rows)):
            assert time.monotonic() < end, rows
            for row in rows:
                name = row["phase"]
                to_kill = name in ("data", "command-proof", "probe-one-1", "train-one")
                if row["event"] == "begin" and to_kill and name not in killed:
                    killed.add(name)
                    os.kill(row["pid"], signal.SIGKILL)
            time.sleep(0.02)
        return rows

    def bring() -> list[str]:
        """A call that brings three files at most, and what is collected of them at home."""
        out = tmp_path / "came"
        assert main(["poll", "--out", str(out), "--files", "3", "--total-mib", "0.4", *here]) == 0
        names = sorted(p.name for p in out.iterdir())
        assert len(names) <= 3
        assert sum(p.stat().st_size for p in out.iterdir()) <= 0.4 * 2**20
        main(["collect", str(out), "--into", str(tmp_path / "home"), "--quiet"])
        for path in out.iterdir():
            path.unlink()
        return names

    rows = until(lambda rows: last_of(rows, "train", "saved") and "train-one" in killed)
    rows = until(lambda rows: last_of(rows, "train-one", "end"))
    saved = until(lambda rows: (last_of(rows, "train", "saved") or {"step": 0})["step"] >= 2)
    while not (tmp_path / "home" / "state-one").is_dir():
        bring()
    supervisor = last_of(saved, "supervisor", "begin")["pid"]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda rows: cli._free(work, 0.0))
    step = last_of(read_rows(work.rows), "train", "saved")["step"]
    assert main([*ask, *here]) == 0
    until(lambda rows: last_of(rows, "train", "saved")["step"] > step)
    assert main(["stop", *here]) == 0
    while bring():
        pass
    assert main(["collect", str(tmp_path / "came"), "--into", str(tmp_path / "home")]) == 0

    rows = read_rows(tmp_path / "home" / "result" / "rows.jsonl")
    ends: dict[str, list[str]] = {}
    for row in rows:
        if row["event"] == "end" and "how" in row:
            ends.setdefault(row["phase"], []).append(row["how"])
    assert ends["smoke"] == ["ok"]  # the second supervisor does not repeat it
    assert ends["data"][0] == "failed: signal 9"
    assert ends["data"][1] == "ok"
    assert ends["command-proof"] == ["failed: signal 9"]
    assert ends["command-late"] == ["late"]
    assert ends["command-none"] == ["failed: exit 1"]
    assert ends["command-file"] == ["ok"]
    assert ends["probe-one-1"][0] == "failed: signal 9"
    assert ends["probe-one-0"] == ["failed: exit 1"]  # its setting does not exist
    assert ends["train-one"][0] == "failed: signal 9"
    assert ends["train-one"][-1] == "stopped"
    parts = last_of(rows, "data", "parts")
    assert (parts["here"], parts["missing"]) == (2, ["part-002.tar"])
    assert last_of(rows, "choice", "made")["name"] == "eager"
    home, there = tmp_path / "home", work.model("one")
    assert (home / "state-one" / "state.pt").read_bytes() == (there / "state.pt").read_bytes()
    weights = home / "result" / "models" / "one" / "last.safetensors"
    assert weights.read_bytes() == (there / "last.safetensors").read_bytes()
    last = last_of(rows, "train", "saved")["step"]
    assert int(read_checkpoint(weights)[2]["step"]) == last
    assert StateFiles(home / "state-one").load()[0]["step"] == last
    log = (home / "result" / "models" / "one" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, last + 1))  # none is lost
    assert (home / "result" / "commands" / "file" / "a.txt").read_text() == "x"
    assert "/no/such/program" in (home / "result" / "logs" / "command-none.log").read_text()


def test_packing_prints_the_calls(lease_data, tmp_path, capsys):
    write_plan(tmp_path, lease_data)
    assert main(["pack", str(tmp_path / "plan.toml"), str(tmp_path / "calls")]) == 0
    text = capsys.readouterr().out
    calls = sorted((tmp_path / "calls").iterdir())
    assert f"start {calls[0]} --started UNIX_TIME --minutes 10\n" in text
    assert all(f"feed {call} &&" in text for call in calls[1:])
    assert main(["pack", str(tmp_path / "plan.toml"), str(tmp_path / "calls")]) == 1
    assert "is there already" in capsys.readouterr().err


def test_wrong_usage(lease_data, tmp_path, capsys):
    calls = packed(tmp_path, lease_data)
    here = ["--work", str(tmp_path / "there")]
    assert main(["start", str(calls[0]), *here]) == 2
    assert "--started is missing" in capsys.readouterr().err
    assert main(["start", str(calls[0]), "--started", "0", "--minutes", "-1", *here]) == 2
    assert "--minutes: '-1' is not a number above 0" in capsys.readouterr().err
    assert main(["start", str(tmp_path), "--started", "0", *here]) == 1
    assert "not an index of dvpd.lease pack" in capsys.readouterr().err
    assert main(["poll", "--out", str(tmp_path / "out"), *here]) == 0
    assert "no lease in" in capsys.readouterr().out
    assert main(["collect", str(tmp_path / "out"), "--into", str(tmp_path / "home")]) == 1
    assert "nothing of a lease in these folders yet" in capsys.readouterr().err
    assert main(["collect", str(tmp_path / "nowhere"), "--into", str(tmp_path / "home")]) == 1
    assert "nowhere: not a folder; give those that poll has filled" in capsys.readouterr().err
    for words in (["supervise"], ["phase", "train", "{}"]):
        assert main([*words, *here]) == 1
        assert "no lease in" in capsys.readouterr().err
    assert main(
        ["rehearse", str(tmp_path / "out"), "--into", str(tmp_path / "o"), "--minutes", "1"]
    )
    assert "expected a folder of dvpd.lease pack" in capsys.readouterr().err


@pytest.mark.parametrize("wrong_by", [-5000.0, 5000.0])
def test_clocks_that_do_not_agree(lease_data, tmp_path, capsys, wrong_by):
    work = started(tmp_path, packed(tmp_path, lease_data), time.time() + wrong_by)
    assert "120 s are taken" in capsys.readouterr().err
    assert time.time() - work.lease["started"] == pytest.approx(120.0, abs=60.0)


def test_a_lease_that_is_over_and_one_that_died(lease_data, tmp_path, capsys):
    calls = packed(tmp_path, lease_data)
    work = started(tmp_path, calls)
    here = ["--work", str(work.root)]
    lease = json.loads((work.root / "lease.json").read_text())
    (work.logs / "supervisor.log").write_text("ImportError: no torch\n")
    os.utime(work.root / "lease.json", (0, 0))
    assert main(["poll", "--out", str(tmp_path / "out"), *here]) == 0
    assert "NOT RUNNING (ImportError: no torch)" in capsys.readouterr().out
    lease["started"] -= 601.0
    (work.root / "lease.json").write_text(json.dumps(lease))
    assert main(["start", str(calls[0]), *here]) == 1
    assert "is over; choose another --work" in capsys.readouterr().err
    (work.root / "lease.json").write_text("{")
    assert main(["poll", "--out", str(tmp_path / "out"), *here]) == 1
    assert "cannot be read" in capsys.readouterr().err
