"""Live sound over a WebSocket: a first message that says what comes, then blocks both ways.

One block is under way at a time: whoever sends faster than that, or does not read, waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
from numpy.typing import NDArray
from starlette.websockets import WebSocket

from ..arrays import FloatArray
from ..command import explain
from ..errors import DvpdError, InputError
from ..spec import MAX_CHANNELS
from ..stream_worker import LiveSound, to_int16
from .limits import Refusal

if TYPE_CHECKING:
    from .app import Service

logger = logging.getLogger("dvpd")

FORMATS = {"s16": "<i2", "f32": "<f4"}
FIELDS = {"rate", "channels", "format", "max_attenuation", "token"}
EXAMPLE = '{"rate": 48000, "channels": 1, "format": "s16"}'
PIECE_S = 0.1  # that is computed at a time: long blocks hold up nobody
FASTER = 1.02  # than the clock: clients' clocks are not ours
# Numbers of WebSocket closings (RFC 6455) for those of HTTP.
CLOSING = {400: 1008, 401: 1008, 408: 1008, 429: 1013, 500: 1011, 503: 1012}


class _Gone(Exception):
    """The client has closed, or its connection is lost."""


class LiveSession:
    """One connection."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        """Serve a client that has been let in.

        Args:
            service: The server.
            socket: The connection, accepted.
        """
        self._service, self._socket = service, socket
        self._limits = service.limits
        self._waiting: anyio.CancelScope | None = None  # for the client
        self._rate, self._channels, self._dtype = 1, 1, np.dtype("<i2")
        self._samples_in = self._samples_out = 0

    async def run(self) -> None:
        """Serve it to its end; what goes wrong is said and closes the connection."""
        self._service.sessions.add(self)
        try:
            await self._run()
        finally:
            self._service.sessions.discard(self)

    def stop(self) -> None:
        """Wait no longer for the client: the server ends."""
        if self._waiting is not None:
            self._waiting.cancel()

    async def _run(self) -> None:
        with contextlib.suppress(_Gone):
            try:
                await self._serve()
            except _Gone:
                pass
            except Refusal as refusal:
                await self._close(CLOSING[refusal.status], refusal.text)
            except InputError as error:
                await self._close(1008, str(error))
            except DvpdError as error:
                logger.error("a stream: %s", error)
                await self._close(1011, str(error))
            except Exception as error:  # a fault of ours: others are served on
                logger.error("a stream: %s", explain(error))
                await self._close(1011, "unexpected error; the server's log says more")

    async def _serve(self) -> None:
        service = self._service
        message = await self._next("the first message")
        if message is None:
            raise Refusal(503, "the server is ending")
        hello = _hello(message)
        if (refusal := service.door.refusal(self._socket.headers, hello.get("token"))) is not None:
            raise Refusal(401, refusal)
        if (refusal := service.full(hello["channels"])) is not None:
            service.counts.refused_streams += 1
            raise Refusal(429, refusal)
        self._rate, self._channels = hello["rate"], hello["channels"]
        self._dtype = np.dtype(FORMATS[hello["format"]])
        sound = service.live.open(
            hello["rate"],
            hello["channels"],
            attenuation_limit_db=hello["max_attenuation"],
        )
        service.sounds.add(sound)
        try:
            await asyncio.wrap_future(sound.opened)
            service.counts.streams_opened += 1
            await self._say(
                {
                    "latency_samples": sound.latency_samples,
                    "latency_ms": sound.stream.latency_ms,
                    "model": service.live.enhancer.manifest.name,
                }
            )
            await self._carry(sound)
        finally:
            service.leave(sound)

    async def _carry(self, sound: LiveSound) -> None:
        """Blocks in, blocks out, until the client or the server ends."""
        loop = asyncio.get_running_loop()
        begun, ending = loop.time(), False
        while not ending:
            message = await self._next("a block of sound, or END")
            if message is None or isinstance(message, str):
                if message is not None and message.strip().upper() != "END":
                    raise Refusal(400, "a text message amid the sound; expected blocks, or END")
                ending = True
                continue
            started = time.perf_counter()
            out = await self._enhanced(sound, self._samples(message), begun)
            self._service.counts.waited(time.perf_counter() - started)
            await self._give(out)
        await self._give(await asyncio.wrap_future(sound.flush()))
        stats = sound.stats
        await self._say(
            {
                "samples_in": self._samples_in,
                "samples_out": self._samples_out,
                "blocks": stats.blocks,
                "late": stats.late,
                "passed": stats.passed,
                "steps_used": {str(steps): n for steps, n in sorted(stats.steps_used.items())},
                "ended_by": "client" if message is not None else "server",
            }
        )
        await self._close(1000 if message is not None else 1001)

    def _samples(self, message: bytes) -> NDArray[Any]:
        size = self._dtype.itemsize * self._channels
        if len(message) % size:
            raise Refusal(
                400, f"a block of {len(message)} bytes; expected whole frames of {size} bytes"
            )
        return np.frombuffer(message, self._dtype).reshape(-1, self._channels)

    async def _enhanced(self, sound: LiveSound, wav: NDArray[Any], begun: float) -> FloatArray:
        """The block's answer, in pieces; not before its time, so that all get their share."""
        rate = self._rate
        size = max(1, round(PIECE_S * rate))
        done: list[FloatArray] = []
        for first in range(0, len(wav), size):
            elapsed = asyncio.get_running_loop().time() - begun
            ahead = self._samples_in / rate / FASTER - elapsed - self._limits.lead_s
            if ahead > 0.0:
                await asyncio.sleep(ahead)
            piece = wav[first : first + size]
            done.append(await asyncio.wrap_future(sound.process(piece)))
            self._samples_in += len(piece)
        if len(done) == 1:
            return done[0]
        return np.concatenate(done) if done else np.zeros((0, self._channels), np.float32)

    async def _next(self, what: str) -> str | bytes | None:
        """The next message; None when the server ends.

        Raises:
            Refusal: None comes.
            _Gone: The client has closed.
        """
        message = None
        with anyio.move_on_after(self._limits.stall_s) as self._waiting:
            if self._service.ending.is_set():  # only what is there already
                self._waiting.cancel()
            message = await self._socket.receive()
        self._waiting = None
        if message is None:
            if self._service.ending.is_set():
                return None
            raise Refusal(408, f"nothing came for {self._limits.stall_s:g} s; expected {what}")
        if message["type"] == "websocket.disconnect":
            raise _Gone
        data: str | bytes = message.get("bytes") or message.get("text") or b""
        return data

    async def _give(self, wav: FloatArray) -> None:
        coded = to_int16(wav) if self._dtype.kind == "i" else wav
        self._samples_out += len(wav)
        await self._sent(self._socket.send_bytes(coded.astype(self._dtype, copy=False).tobytes()))

    async def _say(self, table: dict[str, Any]) -> None:
        await self._sent(self._socket.send_text(json.dumps(table)))

    async def _sent(self, sending: Awaitable[None]) -> None:
        try:
            with anyio.fail_after(self._limits.stall_s):
                await sending
        except (TimeoutError, RuntimeError, OSError):
            raise _Gone from None  # it does not read, or has gone
        except Exception as error:  # each of Starlette's and uvicorn's own names for it
            if type(error).__name__ in ("WebSocketDisconnect", "ClientDisconnected"):
                raise _Gone from None
            raise

    async def _close(self, code: int, text: str = "") -> None:
        if text:
            await self._say({"error": text})
        await self._sent(self._socket.close(code))


def _hello(message: str | bytes) -> dict[str, Any]:
    """What the first message says.

    Raises:
        Refusal: It is none.
    """
    table: Any = None
    if isinstance(message, str):
        with contextlib.suppress(ValueError, RecursionError):
            table = json.loads(message)
    if not isinstance(table, dict):
        raise Refusal(400, f"the first message is no JSON object; expected such as {EXAMPLE}")
    if unknown := sorted(set(table) - FIELDS):
        raise Refusal(400, f"unknown: {', '.join(unknown)[:200]}; expected {', '.join(FIELDS)}")
    hello = {"channels": 1, "format": "s16", "max_attenuation": None, "token": None} | table
    checks = {
        "rate": type(hello.get("rate")) is int,
        "channels": type(hello["channels"]) is int and 1 <= hello["channels"] <= MAX_CHANNELS,
        "format": isinstance(hello["format"], str) and hello["format"] in FORMATS,
        "max_attenuation": hello["max_attenuation"] is None
        or type(hello["max_attenuation"]) in (int, float),
        "token": hello["token"] is None or isinstance(hello["token"], str),
    }
    if wrong := [name for name, good in checks.items() if not good]:
        raise Refusal(
            400,
            f"{wrong[0]} is {str(hello.get(wrong[0]))[:50]!r}; expected rate in Hz, 1 to "
            f"{MAX_CHANNELS} channels, format {' or '.join(FORMATS)}, as in {EXAMPLE}",
        )
    return hello
