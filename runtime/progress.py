"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from .closing import Closing

T = TypeVar("T")

BAR_AFTER_S = 2.0
BAR_EVERY_S = 0.2
LINE_EVERY_S = 15.0  # where nobody sees a bar: a log file, a service, a notebook
_BAR_WIDTH = 30


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at a stream; False for one that is closed or missing."""
    try:
        return stream is not None and stream.isatty()
    except (ValueError, OSError):
        return False


class Progress(Closing):
    """How far a piece of work is.

    Use as a context manager, or call ``close``. It never fails: a stream that is closed, full or
    missing only shows nothing.
    """

    def __init__(
        self, label: str, *, line_every_s: float = LINE_EVERY_S, begun: float = 0.0
    ) -> None:
        """Start the clock; nothing is shown before two seconds.

        Args:
            label: What is being done, such as a file's name.
            line_every_s: Seconds between two lines where there is no terminal.
            begun: Share that was done before, which takes no part in the estimate of what is left.
        """
        self._begun = begun
        self._label = label
        self._line_every_s = line_every_s
        self._started = self._shown = time.monotonic()
        self._drawn = False
        self._terminal = is_terminal(sys.stderr)

    def __call__(self, fraction: float, note: str = "") -> None:
        """Show how far it is, unless it was shown a moment ago.

        Args:
            fraction: Share done, 0 to 1.
            note: A few words more, such as a loss.
        """
        now = time.monotonic()
        elapsed_s, since_s = now - self._started, now - self._shown
        if self._terminal:
            if elapsed_s < BAR_AFTER_S or (since_s < BAR_EVERY_S and fraction < 1.0):
                return
        elif since_s < self._line_every_s:
            return
        self._shown = now
        left_s = elapsed_s * (1.0 - fraction) / max(fraction - self._begun, 1e-6)
        left = f"{left_s:5.0f} s left" + (f", {note}" if note else "")
        if self._terminal:
            filled = round(_BAR_WIDTH * fraction)
            bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
            self._drawn = True
            _print(f"\r{self._label} [{bar}] {fraction:4.0%} {left}", end="\033[K")
        else:
            _print(f"dvpd: {self._label}: {fraction:.0%} done, {left.strip()}")

    def line(self, text: str) -> None:
        """Print a line of its own, above the bar.

        Args:
            text: The line.
        """
        self.close()
        _print(text)

    def close(self) -> None:
        """Remove the bar."""
        if self._drawn:
            _print("\r\033[K", end="")


class Steps:
    """What goes on in work of unknown length: a line redrawn on a terminal, else a line now and then."""

    def __init__(self) -> None:
        """Start the clock."""
        self._begin = self._last = time.monotonic()
        self._terminal = is_terminal(sys.stderr)
        self._drawn = False

    def say(self, text: str) -> None:
        """Print a line with the elapsed time.

        Args:
            text: What was done, or begins.
        """
        self.close()
        self._last = time.monotonic()
        _print(f"[{self._last - self._begin:6.1f} s] {text}")

    def progress(self, text: str) -> None:
        """Show that work goes on; where there is no terminal, every ``LINE_EVERY_S``.

        Args:
            text: A few words.
        """
        now = time.monotonic()
        if now - self._last < (BAR_EVERY_S if self._terminal else LINE_EVERY_S):
            return
        if not self._terminal:
            self.say(text)
            return
        self._last, self._drawn = now, True
        _print(f"\r\033[K{f'[{now - self._begin:6.1f} s] {text}'[:100]}", end="")

    def close(self) -> None:
        """Wipe the redrawn line."""
        if self._drawn:
            _print("\r\033[K", end="")
            self._drawn = False


class Status:
    """The part of a command that is running, redrawn on a terminal, else a line now and then.

    Every call is a new part, so that the first is shown at once.
    """

    def __init__(self) -> None:
        """Show nothing yet."""
        self._shown = -LINE_EVERY_S

    def __call__(self, text: str) -> None:
        """Show what is being done; it never fails.

        Args:
            text: A few words; "" wipes the line.
        """
        if is_terminal(sys.stderr):
            _print(f"\r\033[K{text}", end="")
        elif text and time.monotonic() - self._shown >= LINE_EVERY_S:
            self._shown = time.monotonic()
            _print(f"dvpd: {text}")


show_status = Status()  # of this process's command


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield the items and show how many of them have been worked through.

    Args:
        items: The items.
        label: What is being done.
        total: How many there are.
    """
    with Progress(label) as progress:
        for index, item in enumerate(items):
            yield item
            progress(min((index + 1) / max(total, 1), 1.0), f"{index + 1} of {total}")


def _print(text: str, end: str = "\n") -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(text, end=end, file=sys.stderr, flush=True)
