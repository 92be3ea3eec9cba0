"""``dvpd serve``: recordings over HTTP, live sound over WebSocket."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import fields
from typing import Any

from .cli_options import add_door_options, add_engine_options, between, whole
from .command import EXIT_DONE, say, usage
from .engines import find_engine, find_live_engine

PORT = 8130


def add_parser(commands: Any) -> None:
    """Add the command to those of ``dvpd``.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "serve",
        help="enhance recordings and live sound for other programs, over HTTP and WebSocket",
        description="Serve POST /enhance (a recording in, WAV out), the WebSocket /stream (blocks "
        "of live sound both ways), /health and /metrics. It listens on this machine alone unless "
        "told otherwise, and then only with a token. Needs pip install 'dvpd[serve]'.",
    )
    add_door_options(parser, PORT, "holds the token that clients must send")
    add_engine_options(parser)
    parser.add_argument(
        "--live-model",
        metavar="NAME|DIR",
        help="causal model for /stream (default: dvpd-live-tiny, else dvpd-live)",
    )
    parser.add_argument(
        "--live-steps",
        type=whole(0, 1000),
        metavar="N",
        help="diffusion steps for /stream, at most (default: the model's)",
    )
    for name, least, most, unit, text in (
        (
            "streams",
            1,
            1024,
            "",
            "live streams at a time (default: as many as are computed in time)",
        ),
        ("files", 1, 1024, "", "recordings at a time, one of which is computed (default: 8)"),
        ("megabytes", 1e-3, 1e6, "MB", "of a recording (default: 200)"),
        ("minutes", 1e-3, 1e5, "minutes", "of a recording in stereo at 48 kHz (default: 60)"),
        ("stall-s", 0.1, 3600.0, "s", "that a client may keep waiting (default: 30)"),
        ("end-s", 0.0, 3600.0, "s", "for streams to end when the server does (default: 10)"),
    ):
        kind = whole(int(least), int(most)) if not unit else between(least, most, unit)
        parser.add_argument(f"--max-{name}", type=kind, metavar="N", help=text)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: Parsed arguments.

    Returns:
        0, also when SIGTERM or Ctrl-C ended it.

    Raises:
        DvpdError: The server cannot begin.
    """
    from .enhancer import Enhancer
    from .server.limits import Door, Limits, counted, find_token
    from .stream_workers import StreamWorkers

    given = {field.name: getattr(args, f"max_{field.name}", None) for field in fields(Limits)}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    with usage():
        door = Door(find_token(args.host, args.token_file))
    folder = find_engine(args.model)
    server: Any = importlib.import_module("dvpd.runtime.server.run")  # needs the extra

    def open_live() -> StreamWorkers:
        # Many sounds share the cores: twice as many fit with the smaller model.
        model, steps = find_live_engine(args.live_model, many=True), args.live_steps
        return StreamWorkers.start(model, args.backend, args.device, args.threads, steps=steps)

    def open_files() -> Enhancer:
        return Enhancer.open(folder, args.backend, args.device, args.threads, tf32=args.tf32)

    def started(running: Any, address: str) -> None:
        live = running.service.live
        streams = (
            counted(limits.streams, "stream")
            if limits.streams
            else (
                f"{counted(live.max_channels, 'channel')} of live sound (a block takes "
                f"{1e3 * min(live.costs.values()):.1f} ms, {len(live.workers)} at a time)"
            )
        )
        say(
            f"{address}: POST /enhance, WebSocket /stream, /health, /metrics, "
            f"{server.reach(args.host)}; at most {streams} and {counted(limits.files, 'recording')}"
        )

    server.serve(open_live, open_files, limits, door, server.listen(args.host, args.port), started)
    say("all streams have ended")
    return EXIT_DONE
