"""The server from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from ..enhancer import Enhancer
from ..errors import InputError
from ..stream_workers import StreamWorkers
from .app import Service, build_app
from .files import FileDesk
from .limits import Door, Limits, is_loopback

MESSAGE_BYTES = 1 << 20  # of a WebSocket, at most
SPARE = 32  # connections beside those that limits speak of: /health, /metrics, refusals
FORCED_S = 3  # for connections that stay open when everything else has ended


class Server(uvicorn.Server):
    """uvicorn's, which lets streams end before it closes connections."""

    def __init__(self, config: Any, service: Service, started: Callable[[], None]) -> None:
        """Serve.

        Args:
            config: uvicorn's.
            service: What is served.
            started: Called when clients can come.
        """
        super().__init__(config)
        self.service, self._on_start = service, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let streams and recordings end, then close."""
        await self.service.drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the server, and that is no failure: nothing raises them again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Address or name.
        port: 0 for any that is free.

    Raises:
        InputError: It cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} of {host} is in use by another program, perhaps another dvpd: end it, "
                f"or give another: --port {port + 1 if port < 65535 else 0}, or --port 0 for any "
                "that is free"
            ) from None
        raise InputError(f"cannot listen on {host} port {port}: {error}") from None


def serve(
    open_live: Callable[[], StreamWorkers],
    open_files: Callable[[], Enhancer],
    limits: Limits,
    door: Door,
    listening: socket.socket,
    started: Callable[[Server, str], None],
) -> None:
    """Serve until a signal comes, or ``should_exit`` of the server is set.

    Args:
        open_live: Returns the engines for live streams; they are closed at the end.
        open_files: Returns the engine for recordings; it is closed at the end.
        limits: What clients may ask for.
        door: Whom the server lets in.
        listening: Where it listens; closed at the end.
        started: Called when clients can come, with the server and its address.

    Raises:
        DvpdError: An engine cannot be opened.
    """
    with (
        listening,
        tempfile.TemporaryDirectory(prefix="dvpd-serve-", ignore_cleanup_errors=True) as folder,
        FileDesk(open_files) as desk,
        open_live() as live,
    ):
        desk.opened.result()
        asyncio.run(_serve(live, desk, limits, door, Path(folder), listening, started))


async def _serve(
    live: StreamWorkers,
    desk: FileDesk,
    limits: Limits,
    door: Door,
    folder: Path,
    listening: socket.socket,
    started: Callable[[Server, str], None],
) -> None:
    service = Service(live, desk, limits, door, folder)
    config = uvicorn.Config(
        build_app(service),
        loop="asyncio",
        http="h11",
        ws="websockets-sansio",
        ws_max_size=MESSAGE_BYTES,
        ws_ping_interval=limits.stall_s,
        ws_ping_timeout=limits.stall_s,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=2 * (limits.streams or live.max_channels) + limits.files + SPARE,
        timeout_graceful_shutdown=FORCED_S,
    )
    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = Server(config, service, lambda: started(server, address))
    await server.serve(sockets=[listening])


def reach(host: str) -> str:
    """Who reaches the server, in words.

    Args:
        host: Where it listens.
    """
    return "from this machine alone" if is_loopback(host) else "with the token"
