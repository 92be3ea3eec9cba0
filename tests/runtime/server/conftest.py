"""A server on a free port, on networks of NumPy."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket as sockets
import threading
import types
from collections.abc import Iterator

import numpy as np
import pytest

WAIT_S = 60.0
HELLO = {"rate": 16000, "channels": 1, "format": "s16"}


class Client:
    """What tests ask a server for."""

    def __init__(self, address: str, server, networks: dict) -> None:
        self.address, self.server, self.networks = address, server, networks
        self.place = address.removeprefix("http://")

    @property
    def service(self):
        return self.server.service

    def ask(self, method: str, path: str, body=None, headers=None, chunked=False):
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection(self.place, timeout=WAIT_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {}, encode_chunked=chunked)
            answer = connection.getresponse()
            return types.SimpleNamespace(
                status=answer.status, headers=answer.headers, body=answer.read()
            )

    def error(self, *args, **options) -> tuple[int, str]:
        answer = self.ask(*args, **options)
        return answer.status, json.loads(answer.body)["error"]

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(f"dvpd_{name} ")))

    def connect(self) -> sockets.socket:
        """A connection of one's own, which holds little."""
        host, port = self.place.split(":")
        connection = sockets.socket()
        connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 1 << 12)
        connection.settimeout(WAIT_S)
        connection.connect((host, int(port)))
        return connection

    def socket(self, **options):
        from websockets.sync.client import connect

        return connect(
            f"ws://{self.place}/stream", open_timeout=WAIT_S, compression=None, **options
        )

    @contextlib.contextmanager
    def stream(self, **hello):
        """A socket whose first message is sent, and what was answered."""
        with self.socket() as socket:
            socket.send(json.dumps(HELLO | hello))
            yield socket, json.loads(socket.recv(WAIT_S))

    def until(self, holds) -> None:
        """Wait until something holds."""
        for _ in range(600):
            if holds():
                return
            threading.Event().wait(0.05)
        raise AssertionError("it never held")


@pytest.fixture(scope="session")
def serving():
    """``with serving(limits, token)``: a server that runs, and a client for it."""
    for package in ("fastapi", "uvicorn", "websockets", "onnx"):
        pytest.importorskip(
            package, reason=f"{package} is not installed: pip install 'dvpd[serve]'"
        )
    from test_live import opened

    from dvpd.runtime.server import run
    from dvpd.runtime.server.limits import Door, Limits
    from dvpd.runtime.stream_worker import StreamWorker
    from dvpd.runtime.stream_workers import StreamWorkers

    @contextlib.contextmanager
    def begin(token: str | None = None, **limits) -> Iterator[Client]:
        (live, live_networks), (files, file_networks) = opened(), opened()
        ready: queue.Queue = queue.Queue()
        listening = run.listen("127.0.0.1", 0)
        # Connections hold little: a client that does not read is felt soon.
        listening.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 1 << 14)

        def work() -> None:
            try:
                run.serve(
                    lambda: StreamWorkers([StreamWorker(live, steps=1, adapt=False)]),
                    lambda: files,
                    Limits(**limits),
                    Door(token),
                    listening,
                    lambda server, address: ready.put((server, address)),
                )
            except BaseException as error:  # for the thread that waits
                ready.put(error)

        thread = threading.Thread(target=work)
        thread.start()
        started = ready.get(timeout=WAIT_S)
        if isinstance(started, BaseException):
            raise started
        server, address = started
        try:
            yield Client(address, server, {"live": live_networks, "files": file_networks})
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            assert not thread.is_alive()

    return begin


@pytest.fixture(scope="module")
def client(serving):
    with serving() as opened:
        yield opened


@pytest.fixture
def pcm():
    """Noise of half a second at 16 kHz, int16 [n]."""
    return np.random.default_rng(0).integers(-3000, 3000, 8000).astype(np.int16)
