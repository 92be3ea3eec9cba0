"""Where recordings and outputs lie: paths of this machine, or URLs of object storage.

A URL such as ``s3://bucket/folder`` becomes a ``UPath`` (package universal-pathlib, over fsspec),
which has the methods of ``Path`` that are used here; both are typed as ``Path``. Networks read and
write local files, so a recording with a URL is brought to a temporary folder and its output is
sent from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ..audio import check_file
from ..errors import InputError, one_line
from ..files import flush_folders, give_name

_BLOCK = 1 << 20
_TIMES = (
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)  # each storage has its own


def is_url(text: str) -> bool:
    """Whether a text is a URL, not a path of this machine."""
    return "://" in text


def place(text: str) -> Path:
    """The place that a path or a URL names.

    Args:
        text: The path or URL.

    Raises:
        InputError: It is a URL of a kind for which there is no package.
    """
    if not is_url(text):
        return Path(text)
    try:
        from upath import UPath

        found = UPath(text)
        _ = found.fs  # says whether its package is there
        return cast("Path", found)  # it does what a path of this machine does
    except ModuleNotFoundError as error:
        if error.name in ("upath", "fsspec"):
            raise
        raise InputError(f"{text}: {one_line(error)}") from None
    except (ValueError, ImportError) as error:  # such as: install s3fs to access S3
        raise InputError(f"{text}: {one_line(error)}") from None


def is_remote(path: Path) -> bool:
    """Whether a place is a URL."""
    return not isinstance(path, Path)


@contextlib.contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """Storage has exceptions of its own; callers know those of files."""
    try:
        yield
    except (OSError, InputError):
        raise
    except Exception as error:
        raise OSError(f"{path}: {one_line(error)}") from None


def state(path: Path) -> tuple[int, int]:
    """Size (bytes) and time of the last change (ns; 0 where the storage has none).

    Args:
        path: A file.

    Raises:
        OSError: It is not there, or not to be read.
    """
    if not is_remote(path):
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    with _as_os_error(path):
        remote: Any = path
        remote.fs.invalidate_cache(remote.parent.path)
        return of_info(remote.fs.info(remote.path))


def of_info(info: dict[str, Any]) -> tuple[int, int]:
    """The same from what fsspec says of a file.

    Args:
        info: Of ``fs.info`` or a listing.
    """
    when = next((info[key] for key in _TIMES if info.get(key) is not None), 0)
    if isinstance(when, str):
        when = int(hashlib.sha256(when.encode()).hexdigest()[:12], 16) / 1e9  # only compared
    seconds = when.timestamp() if hasattr(when, "timestamp") else float(when)
    return int(info.get("size") or 0), int(seconds * 1e6) * 1000


def is_there(path: Path) -> bool:
    """Whether there is something, a dangling link included.

    Args:
        path: Any place.
    """
    if not is_remote(path):
        return os.path.lexists(path)
    with _as_os_error(path):
        return path.exists()


def sha256(path: Path, step: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of a file, as hexadecimal digits.

    Args:
        path: The file.
        step: Called now and then.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with _as_os_error(path), path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            step()
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _real(path: Path) -> str:
    """A path of this machine without links; a folder above it is looked up once."""
    folder, name = os.path.split(str(path))
    text = os.path.join(_real_folder(folder), name)
    return os.path.realpath(text) if name == ".." or os.path.islink(text) else text


def identity(path: Path) -> bytes:
    """The same 16 bytes for every name of a file.

    Args:
        path: Any place.
    """
    text = str(path) if is_remote(path) else _real(path)
    return hashlib.blake2b(os.fsencode(text), digest_size=16).digest()


def check(path: Path) -> tuple[int, int]:
    """Check that a recording is a file that can be read, and not empty.

    Args:
        path: The recording.

    Returns:
        What ``state`` says; for a URL it may come from a listing that was made a moment ago.

    Raises:
        InputError: It is not.
        OSError: Likewise.
    """
    if not is_remote(path):
        check_file(path)
        return state(path)
    with _as_os_error(path):
        remote: Any = path
        try:
            info = remote.fs.info(remote.path)
        except FileNotFoundError:
            raise InputError(f"{path}: No such file or directory") from None
        if info["type"] == "directory":
            raise InputError(f"{path}: is a directory; give a recording (WAV, FLAC or OGG)")
        if not info.get("size"):
            raise InputError(f"{path}: is an empty file (0 bytes)")
        return of_info(info)


def bring(path: Path, folder: Path, step: Callable[[], None] = lambda: None) -> Path:
    """A local path with a recording's bytes: its own, or that of a copy.

    Args:
        path: The recording.
        folder: Where a copy is made.
        step: Called now and then.

    Raises:
        OSError: It cannot be read, or the copy not be written.
    """
    if not is_remote(path):
        return path
    copy = folder / f"source{path.suffix}"
    with _as_os_error(path), path.open("rb") as stream, copy.open("wb") as local:
        while block := stream.read(_BLOCK):
            local.write(block)
            step()
    return copy


def send(made: Path, target: Path, step: Callable[[], None] = lambda: None) -> None:
    """Write a local file to a place, where it appears whole.

    Args:
        made: The file.
        target: A URL.
        step: Called now and then.

    Raises:
        OSError: It cannot be written.
    """
    with _as_os_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with made.open("rb") as local, target.open("wb") as stream:
            while block := local.read(_BLOCK):
                stream.write(block)
                step()


def name_it(staged: Path, target: Path, *, overwrite: bool) -> int | None:
    """Give a finished output its name; ``names_are_safe`` waits until the disk has it.

    Object storage renames by a copy of its own: nobody sees a part of it, but two jobs with
    different journals could both find the name free.

    Args:
        staged: The output, on the file system or in the storage of ``target``.
        target: Its name.
        overwrite: Whether what has the name may be replaced.

    Returns:
        The time of its last change (ns) where the storage gave it another one; else None.

    Raises:
        InputError: The name is taken.
        OSError: It cannot be renamed.
    """
    if not is_remote(target):
        real = Path(_real(target))
        real.parent.mkdir(parents=True, exist_ok=True)
        give_name(staged, real, overwrite=overwrite, flush=False)
        return None
    if not overwrite and is_there(target):
        raise InputError(f"{target}: exists already and is not replaced without permission")
    with _as_os_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remote: Any = staged
        remote.fs.mv(remote.path, target.path)  # type: ignore[attr-defined]  # a UPath
    return state(target)[1]


def names_are_safe(targets: Iterable[Path]) -> None:
    """Wait until names that were given are on the disk.

    Args:
        targets: Of ``name_it``.
    """
    local = (target for target in targets if not is_remote(target))
    flush_folders({Path(os.path.dirname(_real(target))) for target in local})


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it; what cannot be removed stays.

    Args:
        folder: It may be missing.
    """
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(Exception):
        remote: Any = folder
        if remote.exists():
            remote.fs.rm(remote.path, recursive=True)
