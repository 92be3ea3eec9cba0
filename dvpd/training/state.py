"""The training state on disk: the newest file, and the one before it for when that is damaged."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import DvpdError, InputError
from ..runtime.files import write_whole

STATE_FORMAT = "dvpd-train-1"
STATE_NAME = "state.pt"
PREVIOUS_NAME = "state.prev.pt"
DAMAGED_NAME = "state.damaged.pt"

logger = logging.getLogger("dvpd.train")


class TrainingError(DvpdError, RuntimeError):
    """Training cannot go on."""


class StateFiles:
    """``state.pt`` and ``state.prev.pt`` of an output folder.

    Attributes:
        newest: The state saved last.
        previous: The state saved before it.
    """

    def __init__(self, folder: str | Path) -> None:
        """Name the files; nothing is read or written."""
        self.folder = Path(folder)
        self.newest = self.folder / STATE_NAME
        self.previous = self.folder / PREVIOUS_NAME

    def exist(self) -> bool:
        """Whether there is a run to go on with."""
        return self.newest.exists() or self.previous.exists()

    def save(self, state: dict[str, Any]) -> None:
        """Write a state; the newest one so far becomes the previous one.

        Args:
            state: Tensors, numbers, strings and containers of them.

        Raises:
            TrainingError: It cannot be written (a full disk); the states on disk are as before.
        """
        buffer = io.BytesIO()
        torch.save({**state, "format": STATE_FORMAT}, buffer)
        try:
            write_whole(self.newest, buffer.getvalue(), self.previous)
        except OSError as error:
            kept = self.newest if self.newest.exists() else self.previous
            last = f"; {kept} still holds the last good state" if kept.exists() else ""
            raise TrainingError(
                f"{self.newest} cannot be written: {error.strerror or error} (it needs "
                f"{buffer.tell() / 1e6:.1f} MB){last}; free some space, then --resume"
            ) from error

    def load(self, device: torch.device | str = "cpu") -> tuple[dict[str, Any], Path]:
        """Read the newest state that is whole, and say which file it was.

        A damaged newest file is moved to ``state.damaged.pt``, so that the next save does not make
        it the previous one.

        Args:
            device: Where the tensors go.

        Raises:
            InputError: No state is there, none is whole, or it is of another format.
        """
        if not self.exist():
            raise InputError(f"{self.newest} is not there; train without --resume first")
        problems = []
        for path in (self.newest, self.previous):
            try:
                state = _read(path, device)
            except Exception as error:  # torch raises many kinds for a damaged file
                problems.append(f"{path} is not a readable training state: {error}")
                continue
            if state["format"] != STATE_FORMAT:
                raise InputError(
                    f"{path}: format {state['format']!r}; expected {STATE_FORMAT!r}: go on with "
                    "the version that wrote it, or start anew with --init"
                )
            if problems:
                logger.warning("%s; going on from %s instead", problems[0], path)
                if self.newest.exists():
                    self.newest.replace(self.folder / DAMAGED_NAME)
            return state, path
        raise InputError("; ".join(problems))


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    data = path.read_bytes()
    # torch.load checks no checksums: a changed byte would go unnoticed into the weights.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {broken} is wrong")
    state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError("it has no format")
    return state
