"""``python -m dvpd``, and ``dvpd`` on the shell's path."""

import signal
from typing import NoReturn


def process(prog: str = "dvpd") -> NoReturn:
    """Run the command line and end the process.

    Args:
        prog: Program name in help and messages.
    """
    # While packages are imported nothing has begun: Ctrl-C ends the process at once. As an exception
    # it would be a traceback, or an ImportError where an extension module swallows it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .runtime import cli

    cli.process(prog)


if __name__ == "__main__":
    process("python -m dvpd")
