"""The page of ``dvpd demo`` (Gradio) and its server. Needs ``dvpd[demo-app]``.

Recordings lie in a temporary folder that goes away with the server. Nothing is asked of another
machine: Gradio's statistics are off, there is no share link, and a header forbids the browser to.
"""

from __future__ import annotations

import html
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import FloatArray
from .audio import probe, read_blocks
from .closing import Closing
from .command import explain
from .engines import find_engines
from .enhancer import Enhancer
from .errors import DvpdError, InputError, raise_interrupt
from .options import QUALITY_STEPS
from .picture import before_after
from .results import EnhancedFile
from .server.limits import Door

# Read when Gradio is imported, and each time that it asks: no statistics, no search for new versions.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import fastapi  # after the lines above
import gradio as gr  # after the lines above
import uvicorn  # with the two others

from .server.run import listen  # needs uvicorn, too

MAX_MINUTES = 10.0  # of a recording: the picture, unlike the enhancement, needs it whole
MAX_UPLOAD = "300mb"
USER = "dvpd"
NO_LIMIT_DB = 41  # the slider's end: noise is lowered by as much as the model does
DEFAULT_STEPS = "the model's own"
KEPT_S = 3600  # a recording, and how often old ones are looked for
FORCED_S = 1  # for connections that stay open when the server ends
# Gradio's page has scripts and styles in its text, and plays and draws what it made itself.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


class Desk(Closing):
    """The engines of a page, opened when they are first asked for, and the work that is done."""

    def __init__(
        self, name: str, model: Path, options: tuple[str, str, int | None], *, tf32: bool = False
    ) -> None:
        """Look for the engines; none is opened.

        Args:
            name: How the model is called that is chosen at first.
            model: Its engine folder.
            options: Backend, device and threads, as ``Enhancer.open`` takes them.
            tf32: See there.
        """
        there = {folder.name: folder for folder in find_engines()}
        self.first = name
        self.models = {self.first: model} | {n: f for n, f in there.items() if n != self.first}
        self._options, self._tf32 = options, tf32
        self._open: dict[str, Enhancer] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Release the engines."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def enhancer(self, name: str) -> Enhancer:
        """The engine of a name in ``models``.

        Args:
            name: The key.

        Raises:
            DvpdError: It cannot be opened, or there is none of that name.
        """
        if name not in self.models:
            raise InputError(f"model is {name!r}; expected one of {', '.join(self.models)}")
        with self._lock:
            if name not in self._open:
                self._open[name] = Enhancer.open(self.models[name], *self._options, tf32=self._tf32)
            return self._open[name]

    def enhance(
        self,
        source: str | Path | None,
        folder: Path,
        model: str,
        steps: str,
        limit_db: float,
        progress: Callable[[float], None] | None = None,
    ) -> tuple[EnhancedFile, bytes, str]:
        """Enhance a recording and draw it before and after.

        Args:
            source: The recording; None where nobody gave one.
            folder: Where the result goes.
            model: Key of ``models``.
            steps: Key of ``QUALITY_STEPS``, or ``DEFAULT_STEPS``.
            limit_db: Nothing is lowered by more than this (dB); from ``NO_LIMIT_DB`` on no limit.
            progress: Called with the fraction done.

        Returns:
            The file, the picture as PNG, and a sentence about both.

        Raises:
            DvpdError: The recording or an option cannot be used.
        """
        if source is None:
            raise InputError("no recording: drop a file, or record one, and press Enhance again")
        path = Path(source)
        try:
            info = probe(path)
        except InputError as error:
            raise InputError(str(error).replace(str(path), path.name)) from None
        if info.n_samples > MAX_MINUTES * 60 * info.sample_rate:
            raise InputError(
                f"{path.name} lasts {info.n_samples / info.sample_rate / 60:.1f} minutes; the page takes "
                f"{MAX_MINUTES:g}: use `dvpd enhance`, which takes any length"
            )
        enhancer = self.enhancer(model)
        try:
            done = enhancer.enhance_file(
                path,
                folder / f"{path.stem}-enhanced.wav",
                quality=None if steps == DEFAULT_STEPS else steps,
                attenuation_limit_db=None if limit_db >= NO_LIMIT_DB else limit_db,
                overwrite=True,
                progress=progress,
            )
        except InputError as error:
            raise InputError(str(error).replace(str(path), path.name)) from None
        wavs = {"before": _samples(path), "after": _samples(done.path)}
        count = done.nfe - 1
        made = f"{enhancer.manifest.name} {enhancer.manifest.version}, {count} step{'s' * (count != 1)}"
        text = (
            f"{path.name}: {done.duration_s:.1f} s of sound in {done.seconds:.1f} s (real-time factor "
            f"{done.rtf:.2f}), {made}, {enhancer.backend.name} on {enhancer.backend.device}"
        )
        return done, before_after(wavs, done.sample_rate), text


def _samples(path: Path) -> FloatArray:
    return np.concatenate(list(read_blocks(probe(path))))


def build_page(desk: Desk, folder: Path) -> Any:
    """The page.

    Args:
        desk: Does its work.
        folder: For its files; it is deleted by whoever made it.
    """

    bar = gr.Progress()  # Gradio finds it among the defaults

    def work(
        source: str | None, model: str, steps: str, limit_db: float, progress: Any = bar
    ) -> tuple[str | None, str | None, str]:
        progress(0.0, desc="opening the model")
        try:
            place = Path(tempfile.mkdtemp(dir=folder))
            done, picture, text = desk.enhance(
                source,
                place,
                model,
                steps,
                limit_db,
                lambda share: progress(share, desc="enhancing"),
            )
            drawn = place / "before-after.png"
            drawn.write_bytes(picture)
        except Exception as error:  # whatever it is, the page says it and goes on
            raise_interrupt(error)
            text = getattr(error, "plain", explain(error))
            text = text if isinstance(error, DvpdError) else f"failed: {text}"
            return None, None, f"<p role='alert'><strong>{html.escape(text)}</strong></p>"
        return str(done.path), str(drawn), f"<p role='status'>{html.escape(text)}</p>"

    with gr.Blocks(
        title="DVPD", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S), fill_width=False
    ) as page:
        gr.Markdown(
            "# DVPD\nRemoves noise from recorded speech. Recordings stay on the machine that serves this page."
        )
        with gr.Row():
            with gr.Column(min_width=300):
                source = gr.Audio(
                    sources=["upload", "microphone"], type="filepath", label="Before",
                    elem_id="before", buttons=[],
                )  # fmt: skip
                model = gr.Dropdown(
                    list(desk.models), value=desk.first, label="Model", elem_id="model"
                )
                steps = gr.Radio(
                    [(DEFAULT_STEPS, DEFAULT_STEPS)]
                    + [(f"{name} ({count})", name) for name, count in QUALITY_STEPS.items()],
                    value=DEFAULT_STEPS, label="Diffusion steps", elem_id="steps",
                )  # fmt: skip
                limit = gr.Slider(
                    3, NO_LIMIT_DB, value=NO_LIMIT_DB, step=1, elem_id="limit",
                    label="Lower nothing by more than (dB)", info=f"{NO_LIMIT_DB}: no limit",
                )  # fmt: skip
                button = gr.Button("Enhance", variant="primary", elem_id="enhance")
            with gr.Column(min_width=300):
                result = gr.Audio(
                    type="filepath", label="After", elem_id="after", interactive=False,
                    buttons=["download"],
                )  # fmt: skip
                status = gr.HTML(elem_id="status")
                picture = gr.Image(
                    type="filepath", label="Before and after", show_label=False, elem_id="picture", interactive=False,
                    format="png", buttons=["fullscreen"],
                )  # fmt: skip
        button.click(
            work, [source, model, steps, limit], [result, picture, status], concurrency_limit=1,
            api_visibility="private",
        )  # fmt: skip
    return page


class Guard:
    """Lets in whom the door lets in, and forbids the browser to ask other machines (ASGI)."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], door: Door) -> None:
        """Stand before an application.

        Args:
            app: The application.
            door: Who may come without a token; with one, Gradio asks for it as a password.
        """
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and self._door.token is None:
            headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
            }
            if (refusal := self._door.refusal(headers)) is not None:
                answer = fastapi.responses.PlainTextResponse(refusal, 403)
                await answer(scope, receive, send)
                return

        async def forward(message: Scope) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self._app(scope, receive, forward)


def serve(
    desk: Desk,
    door: Door,
    host: str,
    port: int,
    started: Callable[[uvicorn.Server, str], None],
) -> None:
    """Serve the page until a signal comes, or ``should_exit`` of the server is set.

    Args:
        desk: Does the page's work.
        door: Whom the server lets in.
        host: Address or name to listen on.
        port: 0 for any that is free.
        started: Called when browsers can come, with the server and its address.

    Raises:
        InputError: The server cannot listen there.
    """
    with (
        listen(host, port) as listening,
        tempfile.TemporaryDirectory(prefix="dvpd-demo-", ignore_cleanup_errors=True) as room,
    ):
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = room
        try:
            app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
            gr.mount_gradio_app(
                app,
                build_page(desk, Path(room)),
                "/",
                server_name=host,
                server_port=listening.getsockname()[1],
                footer_links=[],
                run_history=False,
                auth=(USER, door.token) if door.token else None,
                auth_message=f"User {USER}, and the server's token as the password.",
                allowed_paths=[room],
                max_file_size=MAX_UPLOAD,
                ssr_mode=False,
                enable_monitoring=False,
                pwa=False,
                mcp_server=False,
            )
            config = uvicorn.Config(
                Guard(app, door),
                lifespan="on",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=FORCED_S,
            )
            server = _Server(config)
            name, number = listening.getsockname()[:2]
            address = f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"
            server.on_start = lambda: started(server, address)
            server.run(sockets=[listening])
        finally:
            if before is None:
                os.environ.pop("GRADIO_TEMP_DIR", None)
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


class _Server(uvicorn.Server):
    """uvicorn's, which says when browsers can come."""

    on_start: Callable[[], None]

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.on_start()
