"""What the supervisor decides, without its processes."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from lease_parts import PLAN, packed, started

from dvpd.lease.cli import main
from dvpd.lease.phases import PHASES
from dvpd.lease.publish import find_pieces
from dvpd.lease.rows import last_of
from dvpd.lease.supervisor import ATTEMPTS, RETRY_S, Supervisor

LADDER = PLAN.replace("[[models]]", '[[rungs]]\nname = "slow"\n[[models]]') + (
    'share = 3\n[[models]]\nname = "two"\nconfig = "micro.toml"\n'
)


@pytest.fixture
def supervisor(lease_data, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    yield Supervisor(started(tmp_path, packed(tmp_path, lease_data, LADDER)))
    signal.signal(signal.SIGTERM, before)


def figures(rate: float, losses=(1.0, 1.0, 1.0), crops: int = 2) -> dict:
    return {"audio_s_per_s": rate, "losses": list(losses), "crops": crops}


def chosen(supervisor: Supervisor, found: dict) -> dict:
    supervisor._choose(supervisor.plan.models[0], found)
    return last_of(supervisor.rows.read(), "choice", "made", model="one")


def test_the_fastest_step_that_agrees_with_the_last_rung_is_taken(supervisor):
    last = figures(10.0)
    assert chosen(supervisor, {2: last, 0: figures(30.0, (1.0, 1.04, 1.0))})["name"] == "new"
    row = chosen(supervisor, {2: last, 0: figures(30.0, (1.0, 1.0, 1.06)), 1: figures(20.0)})
    assert (row["name"], row["refused"]) == ("eager", ["new"])
    assert chosen(supervisor, {2: last, 0: figures(9.0)})["name"] == "slow"
    # Another batch size has other losses; and without a reference what works is taken.
    assert chosen(supervisor, {2: last, 0: figures(30.0, (9.0, 9.0, 9.0), 4)})["name"] == "new"
    assert chosen(supervisor, {1: figures(1.0)})["name"] == "eager"
    assert chosen(supervisor, {})["name"] == "slow"


class Recorder:
    """In place of processes: how each of them ends, and what was asked for."""

    def __init__(self, supervisor: Supervisor, ends) -> None:
        self.supervisor, self.ends, self.calls = supervisor, list(ends), []
        self.waits = 0

    def run(self, lane, wait=lambda: None) -> None:
        self.supervisor._phase = lambda name, limit_s, out="", **more: (out or name, more)
        try:
            call = next(lane)
            while True:
                if call is None:
                    self.waits += 1
                    wait()
                    call = lane.send("")
                    continue
                self.calls.append(call)
                how, act = self.ends.pop(0)
                act()
                call = lane.send(how)
        except StopIteration:
            pass


def nothing() -> None:
    pass


def test_failures_without_progress_take_the_next_rung(supervisor):
    supervisor.rows.add("choice", "made", model="one", rung=0, name="new")

    def progress(step: int):
        return lambda: supervisor.rows.add("train", "saved", model="one", step=step)

    ends = [("failed", nothing), ("failed", progress(5)), ("failed", progress(9))]
    ends += [("failed", nothing), ("failed", nothing), ("failed", nothing), ("failed", nothing)]
    recorder = Recorder(supervisor, ends)
    now = time.time()
    recorder.run(supervisor._train(0, supervisor.plan.models[0], now, now + 100.0))
    assert [more["rung"] for _, more in recorder.calls] == [0, 1, 1, 1, 2, 2, 2]
    assert recorder.ends == []


def test_data_that_took_too_long_get_more_time(supervisor):
    (supervisor.work.data / ".part-000.tar.done").touch()
    supervisor.begun -= 1e3  # the wait for parts is over
    limits, again = [], []

    def phase(name, limit_s, **more):
        limits.append(limit_s)
        again.append(more["again"])
        return name

    supervisor._phase = phase
    lane = supervisor._data()
    next(lane)
    lane.send("late")
    lane.send("late")
    with pytest.raises(StopIteration):
        lane.send("late")
    assert limits == [200.0, 400.0, 600.0]
    assert again == [False, True, True]


def test_data_that_fail_without_any_part_are_not_tried_for_ever(supervisor, monkeypatch):
    """As where somebody deleted the folder: the phase failed three times a second, to the end."""
    now = [time.time()]
    monkeypatch.setattr("dvpd.lease.supervisor.time.time", lambda: now[0])
    recorder = Recorder(supervisor, [("failed", nothing)] * ATTEMPTS)
    supervisor.begun += 1e3  # parts may still come for long

    def wait():
        now[0] += 1.0

    begun = now[0]
    recorder.run(supervisor._data(), wait)
    assert recorder.ends == []
    assert [more["again"] for _, more in recorder.calls] == [False] * ATTEMPTS
    assert now[0] - begun == pytest.approx((ATTEMPTS - 1) * RETRY_S)


def test_parts_that_are_late_are_waited_for_again(supervisor, monkeypatch):
    now = [time.time()]
    monkeypatch.setattr("dvpd.lease.supervisor.time.time", lambda: now[0])

    def too_long():
        now[0] += supervisor.plan.seconds.parts + 1.0

    rounds = ATTEMPTS + 2
    recorder = Recorder(supervisor, [("failed", too_long)] * rounds + [("ok", nothing)])
    supervisor.train_end += 1e6
    recorder.run(supervisor._data())
    assert len(recorder.calls) == rounds + 1
    assert recorder.waits == 0


def test_models_share_what_time_there_is(supervisor):
    recorder = Recorder(supervisor, [("ok", nothing), ("ok", nothing)])
    recorder.run(supervisor._train_all([]))
    spans = [(more["begin"], more["end"]) for _, more in recorder.calls]
    whole = supervisor.train_end - spans[0][0]
    assert supervisor.train_end == supervisor.work.deadline - 20.0
    assert spans[0][1] - spans[0][0] == pytest.approx(0.75 * whole, rel=0.01)
    assert spans[1][1] == pytest.approx(supervisor.train_end)
    assert spans[1][0] - spans[0][0] < 10.0  # the first ended early: its time goes to the next
    # Started again, it goes on with the same clock.
    rows = [r for r in supervisor.rows.read() if r["event"] != "done"]
    recorder.ends = [("ok", nothing), ("ok", nothing)]
    recorder.run(supervisor._train_all(rows))
    again = [(more["begin"], more["end"]) for _, more in recorder.calls[2:]]
    assert again == spans
    recorder.ends = []
    recorder.run(supervisor._train_all(supervisor.rows.read()))  # all is done


def test_models_side_by_side_end_together(supervisor):
    clock = [time.time()]
    assert supervisor.plan.models[0].share == 3

    def lane(m: int):
        recorder = Recorder(supervisor, [("ok", nothing)])
        recorder.run(supervisor._side_by_side(m), wait=supervisor.work.mark_data_over)
        return recorder.calls[0][1], recorder.waits

    first, waits = lane(0)  # its share is the largest: it makes ready at once
    assert (first["rung"], first["share"], first["end"], waits) == (
        0, 1.0, supervisor.train_end, 0,
    )  # fmt: skip
    second, waits = lane(1)
    assert second["share"] == pytest.approx(1 / 3)
    assert waits == 1  # until the data are there; then its time is nearer than its limit
    begin = supervisor.work.begin_of(second["share"], second["end"])
    assert begin == pytest.approx(clock[0] + 2 / 3 * (second["end"] - clock[0]), abs=5.0)


def test_publications_follow_new_weights_and_states(supervisor):
    work = supervisor.work

    def numbers() -> set:
        supervisor._publish()
        return {(p.stream, p.number) for p in find_pieces(work.published)}

    supervisor._next_publication = time.monotonic() + 1e6
    assert numbers() == set()
    (work.model("one") / "state.pt").write_bytes(b"state")
    assert numbers() == {("state-one", 1)}
    (work.model("one") / "last.safetensors").write_bytes(b"weights")
    assert numbers() == {("state-one", 1), ("result", 1)}
    assert numbers() == {("state-one", 1), ("result", 1)}
    (work.kept / "one.compiled.gz").write_bytes(b"cache")
    assert ("cache", 1) in numbers()
    (work.kept / ".two.compiled.gz.tmp").write_bytes(b"not whole")
    assert ("cache", 2) not in numbers()


def test_phases_become_programs_of_their_own_where_forked_ones_fail(supervisor, monkeypatch):
    ran = []
    words = []
    monkeypatch.setattr(supervisor, "_job", lambda name, call, limit_s, **facts: (name, call))
    monkeypatch.setattr(os, "execv", lambda path, argv: words.extend(argv))
    monkeypatch.setitem(PHASES, "smoke", lambda work, plan, out: ran.append((work.root, out)))
    lane = supervisor._smoke()
    next(lane)[1]()  # in this very process
    assert ran == [(supervisor.work.root, "smoke")]
    name, call = lane.send("failed: signal 9")
    call()
    assert (name, words[:3]) == ("smoke", [sys.executable, "-m", "dvpd.lease"])
    assert main(words[3:]) == 0
    assert ran == [(supervisor.work.root, "smoke")] * 2
    with pytest.raises(StopIteration):
        lane.send("ok")
    assert not supervisor.forked  # the later phases, too


def test_whoever_stops_it_stops_everything(supervisor):
    supervisor.work.stop.touch()
    recorder = Recorder(supervisor, [("stopped", nothing)])
    recorder.run(supervisor._smoke())
    recorder.run(supervisor._data())
    recorder.run(supervisor._probes([]))
    recorder.run(supervisor._train_all([]))
    assert [name for name, _ in recorder.calls] == ["smoke"]
    assert last_of(supervisor.rows.read(), "choice", "made") is None


def test_a_state_that_is_replaced_while_it_is_read_is_published_again(supervisor, monkeypatch):
    state = supervisor.work.model("one") / "state.pt"
    state.write_bytes(b"first")
    publish = supervisor.publisher.publish

    def and_replace(stream, members):
        done = publish(stream, members)
        if stream == "state-one" and state.read_bytes() == b"first":
            state.unlink()
            state.write_bytes(b"the last")
        return done

    monkeypatch.setattr(supervisor.publisher, "publish", and_replace)
    supervisor._publish()
    supervisor._publish()
    numbers = {p.number for p in find_pieces(supervisor.work.published) if p.stream == "state-one"}
    assert max(numbers) == 2
