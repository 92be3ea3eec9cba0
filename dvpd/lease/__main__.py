"""``python -m dvpd.lease``."""

from ..runtime import command
from .cli import main

if __name__ == "__main__":
    command.leave(main())
