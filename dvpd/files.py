"""Files that are whole or not there, and their checksums (no torch here)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path


def write_whole(path: Path, data: bytes, previous: Path | None = None) -> None:
    """Write a file so that it is whole or not there, whatever happens in between.

    Args:
        path: File to write; its folder must exist.
        data: Its bytes.
        previous: The file that ``path`` was until now is kept under this name.

    Raises:
        OSError: It cannot be written; what ``path`` held is still there (or in ``previous``).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # makes the rename outlive a power cut, where that exists
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
