"""Files that appear whole or not at all, and never in the place of another without permission.

What is written goes to a hidden temporary file in the same folder, which is flushed to the disk and
renamed. A temporary file goes away with its context, and at the latest with the command
(``remove_unfinished``): an exception, Ctrl-C, SIGTERM and SIGHUP leave none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from .errors import InputError

_NAME_BYTES = 100  # of the final name in the temporary one: systems take 255 bytes, some 143
_O_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows alone
_unfinished: set[Path] = set()
_FLUSHERS = 8  # files at a time
_later: ContextVar[bool] = ContextVar("flushed later", default=False)


def temporary_path(target: Path) -> Path:
    """A hidden name beside ``target`` that nobody else uses: ``.NAME.RANDOM.tmp``.

    Args:
        target: The final path. Its name is cut by bytes, as file systems count them, and between
            characters.
    """
    name = os.fsencode(target.name)[:_NAME_BYTES].decode("utf-8", "ignore")
    return target.with_name(f".{name}.{secrets.token_hex(6)}.tmp")


def cache_path(name: str) -> Path:
    """Where something is kept that can be made again: below ~/.cache/dvpd, or $XDG_CACHE_HOME/dvpd.

    Args:
        name: Its file or folder there.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "dvpd" / name


def check_free(target: str | Path, *, overwrite: bool = False) -> None:
    """Refuse to replace a file without permission.

    Args:
        target: The path to be written.
        overwrite: The permission.

    Raises:
        InputError: Something is there.
    """
    if not overwrite and os.path.lexists(target):
        raise InputError(
            f"{target}: exists already and is not replaced without permission: choose another "
            "name, or give --overwrite (overwrite=True)"
        )


def give_name(
    path: Path,
    target: Path,
    *,
    overwrite: bool = False,
    previous: Path | None = None,
    flush: bool = True,
) -> None:
    """Rename a file that is safe on the disk; its new name appears at once.

    Args:
        path: The file.
        target: Its new name, on the same file system.
        overwrite: Whether a file of that name may be replaced.
        previous: What ``target`` was until now is kept under this name.
        flush: Whether the name is on the disk on return; else see ``flush_folders``.

    Raises:
        InputError: There is a file of that name, which may not be replaced.
        OSError: It cannot be renamed; what ``target`` was is still there.
    """
    if overwrite:
        if target.exists():  # an overwritten file keeps its permissions
            os.chmod(path, stat.S_IMODE(target.stat().st_mode))
            if previous is not None:
                target.replace(previous)
        path.replace(target)
    else:
        _rename_to_free(path, target)
    if flush:
        _flush_folder(target.parent)


def _rename_to_free(path: Path, target: Path) -> None:
    try:
        os.link(path, target)  # unlike a rename, it never replaces anything
    except FileExistsError:
        check_free(target)
        raise
    except (OSError, NotImplementedError):  # a file system without links, such as FAT
        check_free(target)
        os.replace(path, target)
    else:
        os.unlink(path)


def is_special(path: str | Path) -> bool:
    """Whether there is something under a name that is neither a file nor a folder."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


class WholeFile:
    """A file that gets its name when it is finished.

    ::

        with WholeFile(target) as whole:
            whole.path.write_bytes(data)  # or anything else that writes to a path
            whole.commit()

    Leaving the context without ``commit`` removes the temporary file.

    Attributes:
        target: Final path; symbolic links are resolved, so that they keep pointing.
        path: The temporary file, in the same folder; it does not exist yet.
    """

    def __init__(self, target: str | Path, *, overwrite: bool = True) -> None:
        """Choose the temporary name.

        Args:
            target: Final path; its folder must exist.
            overwrite: Whether a file of that name may be replaced. It is looked for again when
                the name is given: another process may have been faster.

        Raises:
            InputError: The file exists and may not be replaced, or it is a device or a pipe.
        """
        self.target = Path(os.path.realpath(target))
        if is_special(self.target):
            raise InputError(
                f"{target}: is a device or a pipe, whose place a file must not take; give a file name"
            )
        self.path = temporary_path(self.target)
        self._overwrite = overwrite
        check_free(self.target, overwrite=overwrite)
        _unfinished.add(self.path)

    def open(self) -> BinaryIO:
        """Create the temporary file for reading and writing, unbuffered.

        Unlike a file of ``tempfile``, it gets the permissions that the user's umask asks for.
        Unbuffered: a full disk is reported by the write that met it.

        Raises:
            OSError: The folder cannot be written.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666)
        return os.fdopen(fd, "r+b", buffering=0)

    def commit(self, previous: Path | None = None) -> None:
        """Flush the file to the disk and give it its name.

        Args:
            previous: What ``target`` was until now is kept under this name. It is moved after the
                new file is safe on the disk: a full disk changes neither.

        Raises:
            InputError: Meanwhile a file of that name has appeared, which may not be replaced.
            OSError: The file cannot be flushed or renamed; what ``target`` was is still there.
        """
        now = not _later.get()
        if now:
            _flush_file(self.path)
        give_name(self.path, self.target, overwrite=self._overwrite, previous=previous, flush=now)
        _unfinished.discard(self.path)

    def discard(self) -> None:
        """Remove the temporary file, if there is one."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        _unfinished.discard(self.path)

    def __enter__(self) -> WholeFile:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the temporary file unless it was committed."""
        self.discard()


def write_whole(
    path: str | Path, data: bytes | str, previous: Path | None = None, *, overwrite: bool = True
) -> None:
    """Write a file so that it is whole or not there, whatever happens in between.

    What goes to a device or a pipe (``/dev/stdout``) is written into it.

    Args:
        path: File to write; its folder must exist.
        data: Its bytes, or its text, which becomes UTF-8.
        previous: The file that ``path`` was until now is kept under this name.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        InputError: There is a file that may not be replaced, or a folder.
        OSError: It cannot be written; what ``path`` held is still there (or in ``previous``).
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: is a folder; give a file name")
    content = data.encode() if isinstance(data, str) else data
    if is_special(path):
        with open(path, "wb") as stream:
            stream.write(content)
        return
    with WholeFile(path, overwrite=overwrite) as whole:
        whole.path.write_bytes(content)
        whole.commit(previous)


def remove_unfinished() -> int:
    """Remove every temporary file of this process that is still there.

    For the end of a command: an interrupt while a context is left can keep it from cleaning up.

    Returns:
        How many there were.
    """
    count = 0
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            path.unlink()
            count += 1
        _unfinished.discard(path)
    return count


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def flushed_later() -> Iterator[None]:
    """Within, ``WholeFile.commit`` of this thread does not wait for the disk.

    Whoever asks for that calls ``flush_files`` before anything relies on the files.
    """
    token = _later.set(True)
    try:
        yield
    finally:
        _later.reset(token)


def flush_files(paths: Iterable[Path]) -> dict[Path, OSError]:
    """Wait until files are on the disk, several at a time, which it writes as one.

    On ext4 that took 0.1 ms a file instead of 4.

    Args:
        paths: The files.

    Returns:
        Those that could not be flushed: their bytes may be lost.
    """
    found = _several(_flush_file, paths)
    return {path: error for path, error in found if error is not None}


def flush_folders(folders: Iterable[Path]) -> None:
    """The same for names in folders, where the system can.

    Args:
        folders: Where files were given names.
    """
    _several(_flush_folder, folders)


def _several(
    flush: Callable[[Path], None], paths: Iterable[Path]
) -> list[tuple[Path, OSError | None]]:
    def one(path: Path) -> tuple[Path, OSError | None]:
        try:
            flush(path)
        except OSError as error:
            return path, error
        return path, None

    if len(todo := list(paths)) < 2:
        return [one(path) for path in todo]
    with ThreadPoolExecutor(min(_FLUSHERS, len(todo)), "dvpd-flush") as pool:
        return list(pool.map(one, todo))


def _flush_file(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | _O_BINARY)  # Windows flushes only what it may write
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _flush_folder(folder: Path) -> None:
    """Make a rename durable where the system can; elsewhere it is merely atomic."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
