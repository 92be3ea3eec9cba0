"""Live sound over a WebSocket."""

from __future__ import annotations

import contextlib
import json
import socket as sockets
import struct
import time

import numpy as np
import pytest
from test_live import opened, run

WAIT_S = 60.0
HELLO = {"rate": 16000, "channels": 1, "format": "s16"}


def wanted(pcm: np.ndarray) -> np.ndarray:
    out = run(opened()[0].stream(16000, steps=1, adapt=False), pcm)
    return np.clip(np.rint(out * 32768), -32768, 32767).astype(np.int16)


def ended(socket) -> dict:
    """What the server says at the end, after the last samples."""
    while not isinstance(message := socket.recv(WAIT_S), str):
        pass
    return json.loads(message)


def close_code(socket) -> int:
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed):
        while True:
            socket.recv(WAIT_S)
    return socket.close_code


def test_blocks_come_back_as_from_a_stream(client, pcm):
    with client.stream() as (socket, hello):
        assert hello == {"latency_samples": 896, "latency_ms": 56.0, "model": "tiny-test"}
        out = b""
        for part in np.split(pcm, [100, 100, 5000]):
            socket.send(part.tobytes())
            out += socket.recv(WAIT_S)
            assert len(out) % 2 == 0
        assert len(out) == 2 * len(pcm)
        socket.send("END")
        out += socket.recv(WAIT_S)
        stats = ended(socket)
        assert close_code(socket) == 1000
    assert (stats["samples_in"], stats["samples_out"]) == (8000, 8896)
    assert (stats["passed"], stats["ended_by"]) == (0, "client")
    assert stats["steps_used"] == {"1": stats["blocks"]}
    np.testing.assert_allclose(np.frombuffer(out, np.int16), wanted(pcm), atol=1)


def test_floats_and_channels(client):
    block = np.random.default_rng(1).standard_normal((960, 2)).astype(np.float32) * 0.1
    with client.stream(rate=48000, channels=2, format="f32", max_attenuation=0) as (socket, hello):
        out = []
        for _ in range(10):
            socket.send(block.tobytes())
            out.append(np.frombuffer(socket.recv(WAIT_S), np.float32).reshape(-1, 2))
    late = hello["latency_samples"]
    heard = np.concatenate(out)
    np.testing.assert_array_equal(heard[late:], np.tile(block, (10, 1))[:-late])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("hello", "is no JSON object"),
        ("[1]", "is no JSON object"),
        (b"\0\1", "is no JSON object"),
        ("[" * 100_000, "is no JSON object"),
        ('{"rate": 16000, "speed": 2}', "unknown: speed"),
        ('{"channels": 1}', "rate is 'None'"),
        ('{"rate": true}', "rate is 'True'"),
        ('{"rate": 1e9}', "rate is '1000000000.0'"),
        ('{"rate": 5}', "sample_rate is 5 Hz"),
        ('{"rate": 16000, "channels": 1000}', "channels is '1000'"),
        ('{"rate": 16000, "format": ["s16"]}', "format is"),
        ('{"rate": 16000, "max_attenuation": -1}', "attenuation"),
        ('{"rate": 16000, "max_attenuation": NaN}', "attenuation"),
    ],
)
def test_first_messages_that_are_none_are_refused_in_words(client, message, said):
    with client.socket() as socket:
        socket.send(message)
        assert said in json.loads(socket.recv(WAIT_S))["error"]
        assert close_code(socket) == 1008
    client.until(lambda: not client.service.sounds)


def test_garbage_amid_the_sound_closes_that_stream_alone(client, pcm):
    from websockets.exceptions import ConnectionClosed

    with client.stream() as (good, _):
        for message, said in ((b"odd", "whole frames of 2 bytes"), ("what?", "a text message")):
            with client.stream() as (bad, _):
                bad.send(message)
                assert said in ended(bad)["error"]
                assert close_code(bad) == 1008
        with client.stream() as (bad, _):
            with contextlib.suppress(ConnectionClosed):  # it may be closed before all of it is sent
                bad.send(b"\0" * (1 << 21))
            assert close_code(bad) == 1009
        good.send(pcm.tobytes())
        assert len(good.recv(WAIT_S)) == 2 * len(pcm)


def test_a_lost_connection_leaves_nothing_behind(client, pcm):
    before = client.metric("blocks_total")
    with client.stream() as (socket, _):
        socket.send(pcm.tobytes())
        socket.recv(WAIT_S)
        assert client.metric("streams") == 1
        socket.socket.shutdown(sockets.SHUT_RDWR)
    client.until(
        lambda: not client.service.sounds and not client.service.live.workers[0].pool.streams
    )
    assert client.metric("streams") == 0
    assert client.metric("blocks_total") > before


def test_there_are_no_more_streams_than_allowed(serving):
    with serving(streams=1) as client, client.stream() as (_, hello):
        assert "latency_ms" in hello
        with client.stream() as (other, refused):
            assert "at most 1 stream at a time" in refused["error"]
            assert close_code(other) == 1013
        assert client.metric("streams_refused_total") == 1


def test_no_more_channels_are_taken_than_are_computed_in_time(serving):
    with serving() as client:
        client.service.live.max_channels = 3
        with client.stream(channels=2) as (_, hello):
            assert "latency_ms" in hello
            with client.stream(channels=2) as (other, refused):
                assert "3 channels of live sound in time, 2 are open and 2 more" in refused["error"]
                assert close_code(other) == 1013
            with client.stream() as (_, hello):
                assert "latency_ms" in hello
                health = json.loads(client.ask("GET", "/health").body)
                assert (health["live_channels"], health["max_live_channels"]) == (3, 3)
        client.until(lambda: client.service.live.channels == 0)


def test_clients_that_say_nothing_or_do_not_read_are_let_go(serving, pcm):
    with serving(stall_s=0.3) as client:
        with client.socket() as silent:
            assert "nothing came for 0.3 s" in json.loads(silent.recv(WAIT_S))["error"]
        with client.stream() as (idle, _):
            assert "expected a block of sound" in ended(idle)["error"]


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's WebSocket message, with a mask of zeros."""
    return struct.pack(">BBQ4x", 0x80 | opcode, 0x80 | 127, len(payload)) + payload


def test_a_client_that_does_not_read_is_cut_while_others_are_served(serving, pcm):
    with serving(stall_s=1.5, lead_s=100.0) as client, client.connect() as deaf:
        deaf.sendall(
            b"GET /stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: "
            b"Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
            b"AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b" 101 " in deaf.recv(4096)
        deaf.sendall(frame(1, json.dumps(HELLO).encode()))
        client.until(lambda: client.service.sounds)
        deaf.settimeout(0.2)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(
                4000
            ):  # until the server has no place for its answers, and reads no more
                deaf.sendall(frame(2, pcm.tobytes()))
            raise AssertionError("it reads on, and keeps what nobody fetches")
        with client.stream() as (good, _):
            good.send(pcm.tobytes())
            assert len(good.recv(WAIT_S)) == 2 * len(pcm)
            good.send("END")
            good.recv(WAIT_S)
            assert ended(good)["samples_in"] == len(pcm)
        client.until(lambda: not client.service.sounds)


def test_nobody_is_ahead_of_the_clock_for_long(serving, pcm):
    with serving(lead_s=0.2) as client, client.stream() as (socket, _):
        begun = time.monotonic()
        for _ in range(2):
            socket.send(pcm.tobytes())
        for _ in range(2):
            socket.recv(WAIT_S)
        # 1 s of sound; its last piece of 0.1 s may begin after (0.9 / 1.02 - 0.2) s.
        assert time.monotonic() - begun > 0.6


def test_streams_end_cleanly_when_the_server_does(serving, pcm):
    with serving() as client:
        with client.stream() as (socket, _):
            socket.send(pcm.tobytes())
            out = socket.recv(WAIT_S)
            client.server.should_exit = True
            rest = socket.recv(WAIT_S)
            stats = ended(socket)
            assert close_code(socket) == 1001
        assert stats["ended_by"] == "server"
        assert len(out) + len(rest) == 2 * (len(pcm) + 896)
