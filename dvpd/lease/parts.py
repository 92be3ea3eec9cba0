"""Data in parts that each fit one call, and what else the first call brings."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..runtime.errors import InputError, ManifestError
from ..runtime.files import sha256_file, write_whole
from .plan import Plan, to_json

INDEX_NAME = "index.json"
SETUP_NAME = "setup.tar"
PLAN_NAME = "plan.json"
FORMAT = "dvpd-lease-1"
KINDS = ("speech", "noise", "rir")
MIB = 1 << 20
_TAIL = 10240  # what a tar file has behind its members


def find_recordings(data: Path) -> list[Path]:
    """All files of speech/, noise/ and rir/, relative to ``data``, sorted.

    Raises:
        InputError: One of the first two is missing or empty.
    """
    found = []
    for kind in KINDS:
        files = sorted(p.relative_to(data) for p in (data / kind).rglob("*") if p.is_file())
        if not files and kind != "rir":
            raise InputError(f"{data / kind} has no files; expected DATA with speech/ and noise/")
        found += files
    return found


def deal(
    sizes: Sequence[tuple[Path, int]], limit: int, first: int | None = None
) -> list[list[Path]]:
    """Deal files to parts of at most ``limit`` bytes, each source evenly over all of them.

    Args:
        sizes: File and size (bytes).
        limit: Of a part (bytes), tar headers included.
        first: Likewise, of the first part alone; None is ``limit``.

    Returns:
        The files of each part; those of the first may be none.

    Raises:
        InputError: A file is larger than a part.
    """
    blocks = []
    for path, size in sizes:
        header = 512 if len(path.as_posix().encode()) < 100 else 2048  # GNU's tar format
        blocks.append((path, -(-size // 512) * 512 + header))
    for path, size in blocks:
        if size + _TAIL > limit:
            raise InputError(f"{path} has {size} bytes; a part holds {limit}: raise part_mib")
    start = max((limit if first is None else first) - _TAIL, 0)
    total = sum(size for _, size in blocks)
    count = 1 + max(0, -(-(total - start) // (limit - _TAIL)))
    while True:
        parts: list[list[Path]] = [[] for _ in range(count)]
        whole = [start] + [limit - _TAIL] * (count - 1)
        room = list(whole)
        for path, size in blocks:
            # Neighbours are of one source: to the part that is emptiest in proportion.
            fits = [k for k in range(count) if room[k] >= size]
            if not fits:
                break
            place = max(fits, key=lambda k: room[k] / whole[k])
            parts[place].append(path)
            room[place] -= size
        else:
            return parts
        count += 1


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def pack(plan: Plan, out: Path) -> list[Path]:
    """Write the folders that the calls carry: call-0, call-1 ...

    Recordings stay as they are encoded. Each part is by itself a data set of all sources, so that
    training can start although one is lost.

    Args:
        plan: As `load_plan` read it.
        out: Folder to write; must not be there yet.

    Returns:
        The folders.

    Raises:
        InputError: The data are no training folder, ``out`` is there, or the first call is full.
        OSError: It cannot be written; nothing is left.
    """
    if out.exists():
        raise InputError(f"{out} is there already; choose another folder")
    data, limit = Path(plan.data), int(plan.part_mib * MIB)
    files = find_recordings(data)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        (scratch / "call-0").mkdir()
        setup = scratch / "call-0" / SETUP_NAME
        with tarfile.open(setup, "w") as tar:
            moved = []
            for model in plan.models:
                config = f"models/{model.name}/config.toml"
                tar.add(model.config, config)
                init = model.init
                if init and not init.startswith("@"):
                    init = f"models/{model.name}/init.safetensors"
                    tar.add(model.init, init)
                moved.append(replace(model, config=config, init=init))
            for kind, pattern in (("wheels", "*.whl"), ("cache", "*")):
                if folder := getattr(plan, kind):
                    for path in sorted(Path(folder).rglob(pattern)):
                        if path.is_file():
                            tar.add(path, f"{kind}/{path.relative_to(folder).as_posix()}")
            packed = replace(plan, data="", wheels="", cache="", models=tuple(moved))
            _add(tar, PLAN_NAME, to_json(packed))
        left = limit - setup.stat().st_size
        if left < 0:
            raise InputError(
                f"weights, wheels and caches have {setup.stat().st_size / MIB:.1f} MiB; a call "
                f"carries {plan.part_mib}: leave the cache out, or raise part_mib"
            )
        dealt = deal([(p, (data / p).stat().st_size) for p in files], limit, left)
        names = [f"part-{i:03d}.tar" if members else "" for i, members in enumerate(dealt)]
        parts = [name for name in names if name]
        for i, (name, members) in enumerate(zip(names, dealt, strict=True)):
            call = scratch / f"call-{i}"
            call.mkdir(exist_ok=True)
            if name:
                # Without PAX headers for fractions of a second: two blocks more for every file.
                with tarfile.open(call / name, "w", format=tarfile.GNU_FORMAT) as tar:
                    for member in members:
                        tar.add(data / member, arcname=member.as_posix())
            sums = {p.name: sha256_file(p) for p in sorted(call.iterdir())}
            index = {"format": FORMAT, "files": sums, "parts": parts}
            write_whole(call / INDEX_NAME, json.dumps(index, indent=1).encode())
        scratch.chmod(0o755)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [out / f"call-{i}" for i in range(len(dealt))]


def check_call(call: Path) -> tuple[list[Path], list[str]]:
    """The files of a call, checked, and the names of all parts of the lease.

    Raises:
        ManifestError: The index is none, or a file is missing or damaged.
    """
    try:
        index = json.loads((call / INDEX_NAME).read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']!r}")
        sums, parts = dict(index["files"]), list(index["parts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{call / INDEX_NAME}: not an index of dvpd.lease pack ({error})"
        ) from None
    for name, expected in sums.items():
        path = call / name
        if not path.is_file():
            raise ManifestError(f"{path} is not there; carry the whole folder again")
        if sha256_file(path) != expected:
            raise ManifestError(f"{path} is damaged (SHA-256 differs); carry it again")
    return [call / name for name in sums], parts


def receive(call: Path, inbox: Path) -> tuple[list[str], list[str]]:
    """Check a call's parts and put them into the inbox, each whole or not at all.

    Args:
        call: Folder from `pack`.
        inbox: Where the data phase looks.

    Returns:
        Parts taken, and all parts of the lease.

    Raises:
        ManifestError: Something is missing or damaged.
    """
    files, parts = check_call(call)
    inbox.mkdir(parents=True, exist_ok=True)
    taken = []
    for path in files:
        if path.name in parts:
            scratch = inbox / f".{path.name}.tmp"
            shutil.copyfile(path, scratch)
            scratch.replace(inbox / path.name)
            taken.append(path.name)
    return taken, parts


def unpack(inbox: Path, data: Path) -> list[str]:
    """Unpack the parts in the inbox, once each; their files keep their times.

    Args:
        inbox: Folder of `receive`; what is unpacked is removed from it, the disk may be small.
        data: Folder for the recordings.

    Returns:
        All parts unpacked so far.

    Raises:
        tarfile.TarError: A part is no tar file; it is removed.
    """
    data.mkdir(parents=True, exist_ok=True)
    for path in sorted(inbox.glob("part-*.tar")):
        try:
            with tarfile.open(path) as tar:
                tar.extractall(data, filter="data")
        except tarfile.TarError:
            path.unlink()
            raise
        (data / f".{path.name}.done").touch()
        path.unlink()
    return sorted(p.name[1 : -len(".done")] for p in data.glob(".*.done"))
