"""Recordings over HTTP."""

from __future__ import annotations

import gc
import io
import json
import socket as sockets
import threading
import weakref
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from test_live import opened

from dvpd.runtime.server.files import FileJob

ASSETS = Path(__file__).resolve().parents[2] / "assets"
WAIT_S = 60.0
TLB = '{"skip": [[0.8, 1], [1, 1]], "backbone": [[1, 1], [1, 1.1]]}'


def recording(seconds: float = 1.0, container: str = "FLAC", channels: int = 1) -> bytes:
    noise = 0.1 * np.random.default_rng(0).standard_normal((round(16000 * seconds), channels))
    data = io.BytesIO()
    soundfile.write(data, noise, 16000, format=container, subtype="PCM_16")
    return data.getvalue()


@pytest.mark.parametrize(
    ("container", "address", "options"),
    [
        ("FLAC", "steps=0&seed=1", {"steps": 0, "seed": 1}),
        ("WAV", f"quality=balanced&alpha=0.2&tlb={quote(TLB)}&phase_rounds=0&mix=0.9",
         {"quality": "balanced", "alpha": 0.2, "tlb": TLB, "phase_rounds": 0, "mix": 0.9}),
    ],
)  # fmt: skip
def test_a_recording_comes_back_enhanced(client, container, address, options, tmp_path):
    body = recording(container=container, channels=2)
    answer = client.ask("POST", f"/enhance?{address}", body)
    assert (answer.status, answer.headers["content-type"]) == (200, "audio/wav")
    (tmp_path / "in").write_bytes(body)
    opened()[0].enhance_file(tmp_path / "in", tmp_path / "out.wav", **options)
    wanted, rate = soundfile.read(tmp_path / "out.wav", dtype="int16")
    heard, heard_rate = soundfile.read(io.BytesIO(answer.body), dtype="int16")
    assert heard_rate == rate
    np.testing.assert_array_equal(heard, wanted)
    assert client.metric("files") == 0


def test_a_failure_keeps_nothing_of_the_engine(client, monkeypatch):
    """Its traceback held the job, the resampler and its audio until the garbage collector came by."""
    jobs: list[weakref.ref[FileJob]] = []
    run = FileJob.run

    def watched(job, engine):
        jobs.append(weakref.ref(job))
        run(job, engine)

    monkeypatch.setattr(FileJob, "run", watched)
    gc.disable()
    try:
        for body, status in ((recording()[:9000], 400), (recording(), 200)):
            assert client.ask("POST", "/enhance", body).status == status
    finally:
        gc.enable()
    assert jobs[0]() is None


def test_bodies_without_a_length_are_taken(client):
    body = recording()
    parts = [body[i : i + 1000] for i in range(0, len(body), 1000)]
    answer = client.ask(
        "PUT", "/enhance", iter(parts), {"Transfer-Encoding": "chunked"}, chunked=True
    )
    assert answer.status == 200
    assert soundfile.info(io.BytesIO(answer.body)).frames == 16000


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/enhance", b"", 400, "the body is empty"),
        ("/enhance", b"garbage" * 1000, 400, "the recording: not a readable audio file"),
        ("/enhance", recording()[:9000], 400, "the recording"),
        ("/enhance?steps=-1", recording(), 400, "steps is '-1'"),
        ("/enhance?steps=x", recording(), 400, "steps is 'x'"),
        ("/enhance?mix=2", recording(), 400, "mix is '2'"),
        ("/enhance?max_attenuation=nan", recording(), 400, "max_attenuation"),
        ("/enhance?step=0", recording(), 400, "step is no parameter; expected some of steps, qual"),
        ("/enhance?quality=good", recording(), 400, "quality is 'good'; expected one of fast,"),
        ("/enhance?quality=fast&steps=0", recording(), 400, "steps is 0 and quality is 'fast'"),
        ("/enhance?alpha=2", recording(), 400, "alpha is '2'"),
        ("/enhance?tlb=loud", recording(), 400, "tlb is 'loud'; expected one of"),
        ("/enhance?tlb=loud", b"", 400, "tlb is 'loud'"),  # before the body is read
        ("/enhance?phase_rounds=2", recording(), 400, "is causal, and each round needs"),
        ("/enhance?phase_rounds=-1", recording(), 400, "phase_rounds is '-1'"),
        ("/elsewhere", recording(), 404, "nothing is there"),
    ],
)
def test_what_cannot_be_served_is_said(client, path, body, status, said):
    got, text = client.error("POST", path, body)
    assert got == status, text
    assert said in text
    assert "/tmp" not in text
    assert "--" not in text  # an option of a command, which a client has not
    assert client.service.files == 0


def test_long_bodies_and_recordings_are_refused(serving):
    with serving(megabytes=0.05, minutes=0.001) as client:
        got, text = client.error("POST", "/enhance", headers={"Content-Length": "2000000000"})
        assert got == 413
        assert "2000000000 bytes; expected at most 0.05 MB" in text

        sent = 0

        def endless():
            nonlocal sent
            while sent < 2_000_000_000:
                sent += 16384
                yield b"\0" * 16384

        try:
            got, text = client.error(
                "POST", "/enhance", endless(), {"Transfer-Encoding": "chunked"}, chunked=True
            )
            assert got == 413
        except OSError:  # it was still sending when the server had enough
            pass
        assert sent < 50_000_000
        got, text = client.error("POST", "/enhance", recording(1.0)[:40000])
        silence = io.BytesIO()
        soundfile.write(silence, np.zeros(16000 * 60), 16000, format="FLAC", subtype="PCM_16")
        got, text = client.error("POST", "/enhance", silence.getvalue())
        assert got == 400
        assert "1.0 minutes" in text
        assert client.service.files == 0


def test_a_failing_engine_is_the_servers_fault(serving, caplog):
    with serving() as client:

        def fail(noisy):
            raise RuntimeError("out of memory")

        client.networks["files"].raised = fail
        got, text = client.error("POST", "/enhance", recording())
        assert got == 500
        assert "out of memory" in text
        client.networks["files"].raised = lambda noisy: None
        assert client.ask("POST", "/enhance", recording()).status == 200


def begin(client, body: bytes, header: str = "") -> sockets.socket:
    """A request of one's own."""
    connection = client.connect()
    head = (
        f"POST /enhance HTTP/1.1\r\nHost: localhost\r\n{header}Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_slow_and_lost_clients_harm_nobody(serving):
    with serving(stall_s=1.0, files=3) as client:
        held = threading.Event()
        entered = threading.Event()

        def hold(noisy):
            entered.set()
            assert held.wait(WAIT_S)

        client.networks["files"].raised = hold
        lost = begin(client, recording())
        assert entered.wait(WAIT_S)
        lost.close()
        client.until(lambda: client.service.files == 0)  # seen while it is computed
        client.networks["files"].raised = lambda noisy: None
        held.set()
        # Half a body, and no more of it.
        body = recording()
        slow = client.connect()
        slow.sendall(
            b"POST /enhance HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\nRIFF"
        )
        answer = client.ask("POST", "/enhance", body)
        assert answer.status == 200
        assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
        slow.close()
        client.until(lambda: client.service.files == 0)
        assert client.service.counts.files["left"] >= 1


def test_a_client_that_does_not_read_is_cut_while_others_are_served(serving):
    with serving(stall_s=1.0) as client:
        deaf = begin(client, recording(20.0))  # 640 kB back, more than sockets hold
        client.until(lambda: client.service.files == 1)
        assert client.ask("POST", "/enhance?steps=0", recording(0.2)).status == 200
        client.until(lambda: client.service.files == 0)
        assert client.service.counts.files["left"] == 1
        deaf.close()


def test_there_are_no_more_recordings_than_allowed(serving):
    with serving(files=1) as client:
        held, entered = threading.Event(), threading.Event()

        def hold(noisy):
            entered.set()
            assert held.wait(WAIT_S)

        client.networks["files"].raised = hold
        first = begin(client, recording())
        assert entered.wait(WAIT_S)
        got = client.ask("POST", "/enhance", recording())
        assert got.status == 503
        assert got.headers["retry-after"] == "10"
        assert "1 recordings are here" in json.loads(got.body)["error"]
        held.set()
        assert b" 200 " in first.recv(4096)
        first.close()


def test_a_recording_ends_before_the_server(serving):
    with serving() as client:
        held, entered = threading.Event(), threading.Event()

        def hold(noisy):
            entered.set()
            assert held.wait(WAIT_S)

        client.networks["files"].raised = hold
        running = begin(client, recording(), "Connection: close\r\n")
        assert entered.wait(WAIT_S)
        client.server.should_exit = True
        client.until(lambda: client.service.ending.is_set())
        held.set()
        answer = b""
        while part := running.recv(1 << 16):
            answer += part
        running.close()
        assert b" 200 " in answer.split(b"\r\n")[0]
        assert answer.endswith(b"0\r\n\r\n")
        assert len(answer) > 32000
