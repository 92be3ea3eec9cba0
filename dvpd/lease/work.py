"""The folder of a lease on the lent machine: names, and what was said when it was started."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from .parts import PLAN_NAME
from .plan import Plan, from_json
from .rows import ROWS_NAME

LEASE_NAME = "lease.json"
DATA_OVER = "data-over"


class Work:
    """Names of all files of a lease.

    Attributes:
        root: The folder.
        lease: Started and minutes, device, parts; empty before the start.
    """

    def __init__(self, root: str | Path) -> None:
        """Read what the start left, if it was started.

        Raises:
            InputError: That cannot be read.
        """
        self.root = Path(root).resolve()
        self.lease: dict[str, Any] = {}
        if self.started:
            try:
                self.lease = json.loads((self.root / LEASE_NAME).read_text())
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{self.root / LEASE_NAME} cannot be read ({error}); start in another folder"
                ) from error

    @property
    def started(self) -> bool:
        """Whether there is a lease in the folder."""
        return (self.root / LEASE_NAME).is_file()

    @property
    def deadline(self) -> float:
        """End of the lease (s since 1970)."""
        return float(self.lease["started"] + 60.0 * self.lease["minutes"])

    def plan(self) -> Plan:
        """The plan, its limits scaled to this lease."""
        values = json.loads((self.setup / PLAN_NAME).read_text())
        return from_json(values).scaled(self.lease["minutes"])

    @property
    def rows(self) -> Path:
        """The journal."""
        return self.root / ROWS_NAME

    @property
    def stop(self) -> Path:
        """Its being there asks the supervisor to end."""
        return self.root / "stop"

    def _folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def setup(self) -> Path:
        """Plan, configs, weights and wheels, as packed."""
        return self._folder("setup")

    @property
    def code(self) -> Path:
        """The checkout, copied: the next call may replace the original."""
        return self._folder("code")

    @property
    def site(self) -> Path:
        """Packages from the wheels."""
        return self._folder("site")

    @property
    def inbox(self) -> Path:
        """Parts that came and are not unpacked."""
        return self._folder("inbox")

    @property
    def data(self) -> Path:
        """Recordings."""
        return self._folder("data")

    @property
    def cache(self) -> Path:
        """Decoded audio and compile caches."""
        return self._folder("cache")

    @property
    def compiled(self) -> Path:
        """torch's compile caches."""
        return self._folder("cache/compiled")

    @property
    def kept(self) -> Path:
        """What of them comes back."""
        return self._folder("kept")

    @property
    def out(self) -> Path:
        """What the phases found."""
        return self._folder("out")

    def mark_data_over(self) -> None:
        """Say that the data are there, or given up."""
        (self.out / DATA_OVER).touch()

    def begin_of(self, share: float, end: float) -> float | None:
        """When a model's part of the time until ``end`` begins; None before the data are there."""
        try:
            there = (self.out / DATA_OVER).stat().st_mtime
        except FileNotFoundError:
            return None
        return end - share * (end - there)

    @property
    def logs(self) -> Path:
        """Output of every process."""
        return self._folder("logs")

    @property
    def published(self) -> Path:
        """Pieces for `poll`."""
        return self._folder("published")

    def model(self, name: str) -> Path:
        """State, weights and log of a model."""
        return self._folder(f"models/{name}")

    def command(self, name: str) -> Path:
        """Results of a command."""
        return self._folder(f"commands/{name}")

    @contextmanager
    def locked(self) -> Iterator[int | None]:
        """The lock of the supervisor's place as an open file, or None where it is taken."""
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield None
                return
            yield file.fileno()
