"""``dvpd demo``: a page in the browser, served by this machine."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from .cli_options import add_door_options, add_engine_options
from .command import EXIT_DONE, say, usage
from .engines import find_engine
from .hub import PREFIX

PORT = 8131
BROUGHT = ("fastapi", "gradio", "starlette", "uvicorn")


def add_parser(commands: Any) -> None:
    """Add the command to those of ``dvpd``.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "demo",
        help="try recordings in a page of the browser",
        description="Serve a page: drop a recording or record one, hear and see it before and after. "
        "It listens on this machine alone unless told otherwise, and then only with a token; nothing "
        "is sent anywhere else. Needs pip install 'dvpd[demo-app]'.",
    )
    add_door_options(parser, PORT, "holds the token, which is the password of the user dvpd")
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: Parsed arguments.

    Returns:
        0 when the server ended by itself; a signal ends the command as it does others.

    Raises:
        DvpdError: The page cannot be served.
    """
    from .server.limits import Door, find_token

    with usage():
        door = Door(find_token(args.host, args.token_file))
    model = find_engine(args.model)
    name = args.model if str(args.model).startswith(PREFIX) else model.resolve().name
    try:
        page: Any = importlib.import_module("dvpd.runtime.demo_page")
    except ModuleNotFoundError as error:
        if error.name in BROUGHT:  # whichever is met first, one extra brings them
            raise ModuleNotFoundError(str(error), name="gradio") from None
        raise

    def started(_: object, address: str) -> None:
        who = "with the token" if door.token else "from this machine alone"
        say(f"{address} in a browser, {who}; Ctrl-C ends it")

    options = (args.backend, args.device, args.threads)
    with page.Desk(name, model, options, tf32=args.tf32) as desk:
        page.serve(desk, door, args.host, args.port, started)
    return EXIT_DONE
