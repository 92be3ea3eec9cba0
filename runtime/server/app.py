"""The server's addresses: ``/enhance``, ``/stream``, ``/health``, ``/metrics``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..command import explain
from ..errors import InputError
from ..options import chosen_steps, sampler_choice
from ..spec import MAX_PHASE_ROUNDS
from ..stream_worker import LiveSound
from ..stream_workers import StreamWorkers
from .files import FileDesk, FileJob
from .limits import SLOWEST, Door, Limits, Refusal, counted
from .live import LiveSession
from .metrics import CONTENT_TYPE, Counts, add, render

logger = logging.getLogger("dvpd")

AGAIN_S = "10"  # when a client that was refused may come again
LOOK_S = 0.5  # between two looks at whether a client is still there

# Of /enhance.
PARAMETERS = (
    "steps", "quality", "alpha", "tlb", "phase_rounds", "max_attenuation", "mix", "seed",
)  # fmt: skip


class Service:
    """What the addresses share.

    Attributes:
        live: The engines for live streams.
        desk: The engine for recordings.
        limits: What clients may ask for.
        door: Whom the server lets in.
        sounds: Live streams that are open.
        sessions: Connections for live streams.
        files: Recordings that are there.
        counts: For ``/metrics``.
        ending: Set when the server ends; streams then give what they have and close.
    """

    def __init__(
        self, live: StreamWorkers, desk: FileDesk, limits: Limits, door: Door, folder: Path
    ) -> None:
        """Serve with two engines.

        Args:
            live: For live streams.
            desk: For recordings.
            limits: What clients may ask for.
            door: Whom the server lets in.
            folder: For recordings while they are there.
        """
        self.live, self.desk, self.limits, self.door = live, desk, limits, door
        self._folder = folder
        self.sounds: set[LiveSound] = set()
        self.sessions: set[LiveSession] = set()
        self.files = 0
        self.counts = Counts()
        self.ending = asyncio.Event()

    def full(self, channels: int) -> str | None:
        """Why no more live streams are taken; None if there is room.

        Args:
            channels: Of the one that comes.
        """
        most, live = self.limits.streams, self.live
        if most is not None:
            return (
                f"at most {counted(most, 'stream')} at a time, and so many are open; come later"
                if len(self.sounds) >= most
                else None
            )
        if live.channels + channels <= live.max_channels:
            return None
        return (
            f"this machine computes {counted(live.max_channels, 'channel')} of live sound in time, "
            f"{live.channels} are open and {channels} more asked for; come later"
        )

    def leave(self, sound: LiveSound) -> None:
        """End a live stream.

        Args:
            sound: The stream.
        """
        self.sounds.discard(sound)
        add(self.counts.ended, sound.stats)
        sound.close()

    async def drain(self) -> None:
        """Let streams and recordings end, for a time."""
        self.ending.set()
        for session in self.sessions:
            session.stop()
        loop = asyncio.get_running_loop()
        until = loop.time() + self.limits.end_s
        while (self.sounds or self.files) and loop.time() < until:
            await asyncio.sleep(0.05)

    async def health(self) -> Response:
        """Whether the server takes work."""
        table = {
            "status": "ending" if self.ending.is_set() else "ok",
            "streams": len(self.sounds),
            "live_channels": self.live.channels,
            "max_live_channels": self.live.max_channels if self.limits.streams is None else None,
            "files": self.files,
            "live_model": self.live.enhancer.manifest.name,
            "model": self.desk.opened.result().manifest.name,
        }
        return JSONResponse(table, 503 if self.ending.is_set() else 200)

    async def metrics(self) -> Response:
        """Figures for Prometheus."""
        stats = [sound.stats for sound in self.sounds]
        steps = self.live.steps_now
        return PlainTextResponse(
            render(self.counts, stats, self.files, steps), media_type=CONTENT_TYPE
        )

    async def stream(self, socket: WebSocket) -> None:
        """Live sound."""
        await socket.accept()
        await LiveSession(self, socket).run()

    async def enhance(
        self,
        request: Request,
        steps: Annotated[int | None, Query(ge=0, le=1000)] = None,
        quality: str | None = None,
        alpha: Annotated[float | None, Query(ge=0, le=1)] = None,
        tlb: str | None = None,
        phase_rounds: Annotated[int | None, Query(ge=0, le=MAX_PHASE_ROUNDS)] = None,
        max_attenuation: Annotated[float | None, Query(ge=0)] = None,
        mix: Annotated[float, Query(ge=0, le=1)] = 1.0,
        seed: Annotated[int, Query(ge=0, lt=2**64)] = 0,
    ) -> Response:
        """A recording in the body, its enhanced samples as WAV while they are computed."""
        options = {
            "steps": steps, "quality": quality, "alpha": alpha, "tlb": tlb,
            "phase_rounds": phase_rounds, "attenuation_limit_db": max_attenuation, "mix": mix,
            "seed": seed,
        }  # fmt: skip
        try:
            self._check(request)
            manifest = self.desk.opened.result().manifest
            sampler_choice(manifest, chosen_steps(steps, quality), alpha, tlb, phase_rounds)
        except InputError as wrong:
            return self._refuse(Refusal(400, str(wrong)))
        except Refusal as refusal:
            return self._refuse(refusal)
        self.files += 1
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        job = FileJob(folder / "in", folder / "out.wav", self.limits.max_values, options)

        def end(result: str) -> None:
            job.cancelled = True
            self.files -= 1
            self.counts.files[result] += 1
            self.counts.file_audio_s += job.audio_s
            self.counts.file_compute_s += job.compute_s
            shutil.rmtree(folder, ignore_errors=True)

        try:
            await self._receive(request, folder / "in")
            self.desk.submit(job)
            while not job.begun:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(job.changed(), LOOK_S)
                if await request.is_disconnected():
                    raise ClientDisconnect
            if (error := job.error) is not None:
                raise Refusal(400 if isinstance(error, InputError) else 500, str(error))
        except Refusal as refusal:
            end("failed" if refusal.status == 500 else "refused")
            if refusal.status == 500:
                logger.error("a recording: %s", refusal.text)
            return self._refuse(refusal, counted=True)
        except ClientDisconnect:
            end("left")
            return Response(status_code=400)  # to nobody
        except BaseException:
            end("failed")
            raise
        return _Growing(job, end, self.limits.stall_s)

    def _check(self, request: Request) -> None:
        """What can be said against a recording before its first byte."""
        limits = self.limits
        if self.ending.is_set():
            raise Refusal(503, "the server is ending")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limits.max_bytes:
            raise Refusal(413, f"the body has {length[:30]} bytes; {self._too_big}")
        if unknown := sorted(set(request.query_params) - set(PARAMETERS)):
            known = ", ".join(PARAMETERS)
            raise Refusal(400, f"{unknown[0][:30]} is no parameter; expected some of {known}")
        if self.files >= limits.files:
            raise Refusal(
                503, f"{limits.files} recordings are here, the most there may be; come later"
            )

    @property
    def _too_big(self) -> str:
        return f"expected at most {self.limits.megabytes:g} MB: send it as FLAC, or cut it"

    async def _receive(self, request: Request, path: Path) -> None:
        """Keep the body in a file.

        Raises:
            Refusal: It is too long, or comes too slowly.
        """
        loop, received = asyncio.get_running_loop(), 0
        begun, stall_s = loop.time(), self.limits.stall_s
        body = request.stream().__aiter__()
        try:
            with open(path, "wb") as file:
                while True:
                    try:
                        part = await asyncio.wait_for(body.__anext__(), stall_s)
                    except StopAsyncIteration:
                        break
                    received += len(part)
                    if received > self.limits.max_bytes:
                        raise Refusal(413, f"the body is longer than allowed; {self._too_big}")
                    if loop.time() - begun > stall_s + received / SLOWEST:
                        raise asyncio.TimeoutError
                    file.write(part)
        except asyncio.TimeoutError:
            raise Refusal(
                408, f"the body comes too slowly; expected {SLOWEST // 1000} kB a second"
            ) from None
        except OSError as error:
            raise Refusal(500, f"the server's temporary folder: {error.strerror}") from None
        if not received:
            raise Refusal(400, "the body is empty; expected a recording: curl -T noisy.flac URL")

    def _refuse(self, refusal: Refusal, counted: bool = False) -> Response:
        if not counted:
            self.counts.files["refused"] += 1
        headers = {"Retry-After": AGAIN_S} if refusal.status == 503 else {}
        # What is left of the body is not read.
        headers |= {"Connection": "close"} if refusal.status in (408, 413) else {}
        return JSONResponse({"error": refusal.text}, refusal.status, headers)


class _Growing(StreamingResponse):
    """A file while it grows; a client that stops reading is let go."""

    def __init__(self, job: FileJob, end: Callable[[str], None], stall_s: float) -> None:
        super().__init__(self._chunks(job), media_type="audio/wav")
        self._end, self._stall_s = end, stall_s
        self._result = "left"

    async def _chunks(self, job: FileJob) -> AsyncIterator[bytes]:
        try:
            async for chunk in job.chunks():
                yield chunk
        except Exception:
            self._result = "failed"
            raise
        self._result = "done"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sent = 0
        loop = asyncio.get_running_loop()
        waited_s = 0.0  # for the client

        async def timed(message: Any) -> None:
            nonlocal sent, waited_s
            begun = loop.time()
            await asyncio.wait_for(send(message), self._stall_s)
            waited_s += loop.time() - begun
            sent += len(message.get("body", b""))
            if waited_s > self._stall_s + sent / SLOWEST:
                raise asyncio.TimeoutError

        try:
            await super().__call__(scope, receive, timed)
        except Exception as error:  # the connection is cut: the client sees that it is not all
            if self._result == "failed":
                logger.error("a recording: %s", error)
            elif not _is_about_the_client(error):
                raise
        finally:
            self._end(self._result)


def _is_about_the_client(error: BaseException) -> bool:
    """Whether it has gone, or reads too slowly."""
    inner = getattr(error, "exceptions", (error,))  # of a task group
    return all(isinstance(e, (asyncio.TimeoutError, OSError, ClientDisconnect)) for e in inner)


class _Guard:
    """Lets in whom the door lets in; ``/health`` is open, ``/stream`` asks by itself."""

    def __init__(self, app: Any, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            refusal = self._door.refusal(Request(scope).headers)
            if refusal is not None:
                headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
                answer = JSONResponse({"error": refusal}, 401, headers)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _invalid(request: Request, error: Exception) -> Response:
    """One line for parameters that are none."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    texts = [f"{e['loc'][-1]} is {str(e.get('input'))[:50]!r}: {e['msg']}" for e in found]
    return JSONResponse({"error": "; ".join(texts)}, 400, {"Connection": "close"})


async def _no_such(request: Request, error: Exception) -> Response:
    """One line for addresses that there are not."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    text = f"{request.method} {request.url.path[:100]}: nothing is there; expected POST /enhance"
    return JSONResponse({"error": text}, status, {"Connection": "close"})


async def _unexpected(request: Request, error: Exception) -> Response:
    """A fault of ours: others are served on."""
    logger.error("%s: %s", request.url.path[:100], explain(error))
    text = "unexpected error; the server's log says more"
    return JSONResponse({"error": text}, 500, {"Connection": "close"})


def build_app(service: Service) -> FastAPI:
    """The addresses as an ASGI application.

    Args:
        service: What they share.
    """
    # Its pages of documentation fetch scripts from elsewhere; the description itself stays.
    app = FastAPI(title="DVPD", docs_url=None, redoc_url=None)
    app.add_api_route("/enhance", service.enhance, methods=["POST", "PUT"], response_model=None)
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", service.metrics, methods=["GET"], response_model=None)
    app.add_api_websocket_route("/stream", service.stream)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(_Guard, door=service.door)
    return app
