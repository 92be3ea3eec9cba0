"""A phase as a process: its own group, log and limit, gone with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1
GRACE_S = 8.0  # between a request to end and the kill


class Job:
    """A process and its children.

    Attributes:
        name: For rows and the log.
        pid: Its process and group.
        how: None while it runs; then "ok", "late" (its limit was over), "stopped" (it was asked to
            end), or "failed" with the exit code or signal.
    """

    def __init__(
        self, name: str, call: Callable[[], None], limit_s: float, log: Path, close: int = -1
    ) -> None:
        """Start it.

        Args:
            name: For rows and the log.
            call: What it does; an exception is a failure. It may end in an exec.
            limit_s: Then the group is killed.
            log: Its output goes to the end of this file.
            close: A file of the parent that it must not hold open.
        """
        self.name, self.how = name, None  # type: tuple[str, str | None]
        self._end = time.monotonic() + limit_s
        self._asked = False
        parent = os.getpid()
        with warnings.catch_warnings():
            # Libraries may have idle threads; none holds a lock, this process computes nothing.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            _child(call, log, parent, close)

    def ended(self) -> str | None:
        """How it ended, or None; past its limit the whole group is killed."""
        if self.how is None:
            late = time.monotonic() >= self._end
            if late:
                self._signal(signal.SIGKILL)
            # The leader stays a zombie until its group is killed: the number cannot be anyone else's.
            flags = os.WEXITED | os.WNOWAIT | (0 if late else os.WNOHANG)
            if os.waitid(os.P_PID, self.pid, flags) is not None:
                self._signal(signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                reason = f"exit {code}" if code > 0 else f"signal {-code}"
                ended = "stopped" if self._asked else "late"
                self.how = (
                    ended if self._asked or late else "ok" if not code else f"failed: {reason}"
                )
        return self.how

    def ask_to_end(self, grace_s: float = GRACE_S) -> None:
        """Ask the group to end; it is killed after the grace."""
        if not self._asked and self.how is None:
            self._asked = True
            self._end = min(self._end, time.monotonic() + grace_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it now, if it still runs."""
        self._end = time.monotonic()
        self.ended()

    def _signal(self, number: int) -> None:
        # Before the child has made its group there is none: then the process alone.
        for send in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                send(self.pid, number)
                return


def _child(call: Callable[[], None], log: Path, parent: int, close: int) -> None:
    code = 1
    try:
        os.setsid()
        with contextlib.suppress(OSError, AttributeError):  # Linux
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that took effect
            os._exit(1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if close >= 0:
            os.close(close)
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # Python's own streams may be someone else's (a test's): write to what was just opened.
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
        call()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)
