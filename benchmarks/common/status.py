"""What a benchmark is doing, as one line that is redrawn on a terminal; nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys

from dvpd.runtime.progress import is_terminal


def show_status(text: str) -> None:
    """Show what is being done; it never fails.

    Args:
        text: A few words; "" wipes the line.
    """
    if is_terminal(sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
