"""One file that the owner of a board can send back: ``dvpd benchmark --report FILE``.

What ``dvpd doctor`` says, the plans that were built, how far each engine's waveform is from the CPU's,
and the whole report of ``rtf.py`` (latency, memory, energy, versions). It goes into
``benchmarks/results/MACHINE/report.json`` as it is; ``readme.py`` reads it there, and so does whatever
reads a report of ``rtf.py``. Names of people and machines, paths and serial numbers are taken out.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import socket
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dvpd.benchmarks.common import reference
from dvpd.export.figures import snr_db
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.backends.choose import open_backend
from dvpd.runtime.errors import DvpdError, InputError, one_line
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.tensorrt.plans import find_plans, read_sidecar

SCHEMA = "dvpd-board-1"
FILE_NAME = "report.json"
# What a system has been called before anybody gave it a name: nothing private.
COMMON_NAMES = {"root", "user", "ubuntu", "nvidia", "jetson", "admin", "localhost"}
# Values of a fixed vocabulary: a machine that is called "cuda" must not damage them.
FIXED = {"schema", "status", "backend", "device", "precision", "builder", "graph", "architecture"}
SERIAL_FILES = (
    "proc/device-tree/serial-number", "sys/class/dmi/id/product_serial",
    "sys/class/dmi/id/board_serial", "sys/class/dmi/id/product_uuid", "etc/machine-id",
)  # fmt: skip
_PUBLIC = "sys|proc|usr|dev|etc"  # folders that every machine has
_PATH = re.compile(rf"(?<![\w.~])~?/(?!(?:{_PUBLIC})/)[^\s:;,'\"()<>|]*[^\s:;,'\"()<>|./]")
_WINDOWS = re.compile(r"\b[A-Za-z]:\\[^\s;,'\"()<>|]+")
_NUMBERS = (
    (re.compile(r"\b(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "GPU-ID"),
    (re.compile(r"\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b"), "MAC"),
)


def secrets(root: Path = Path("/")) -> dict[str, str]:
    """What must not leave this machine, longest first, and what stands for it.

    Args:
        root: Where serial numbers are looked for; for tests.
    """
    found: dict[str, str] = {}
    for name in (platform.node(), socket.gethostname(), os.environ.get("COMPUTERNAME", "")):
        for part in (name, name.partition(".")[0]):
            if len(part) > 1 and part.lower() not in COMMON_NAMES:
                found[part] = "HOST"
    users = {os.environ.get(key, "") for key in ("USER", "LOGNAME", "SUDO_USER", "USERNAME")}
    try:
        users.add(getpass.getuser())
    except (KeyError, OSError, ImportError):  # a user without an entry, or a system without users
        pass
    for name in users:
        if len(name) > 1 and name.lower() not in COMMON_NAMES:
            found[name] = "USER"
    folders = (Path.home(), Path.cwd(), Path(sys.prefix), Path(tempfile.gettempdir()))
    checkout = Path(__file__).resolve().parent.parent
    for folder in (*folders, checkout, checkout.parent):
        if len(folder.parts) > 1 and not re.fullmatch(rf"/(?:{_PUBLIC})(?:/.*)?", str(folder)):
            found[str(folder)] = "~"
    for name in SERIAL_FILES:
        try:
            text = (root / name).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        except OSError:
            continue
        if len(text) > 5:
            found[text] = "SERIAL"
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _clean(text: str, hidden: dict[str, str]) -> str:
    for secret, mark in hidden.items():
        if mark == "~":
            text = text.replace(secret, mark)
    # Of a path the last part says enough; it may hold a name in turn, so names come after.
    text = _PATH.sub(lambda m: m[0].rpartition("/")[2], text)
    text = _WINDOWS.sub(lambda m: m[0].rpartition("\\")[2], text)
    for secret, mark in hidden.items():
        if mark != "~":
            pattern = rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])"
            text = re.sub(pattern, mark, text, flags=re.IGNORECASE)
    for numbers, mark in _NUMBERS:
        text = numbers.sub(mark, text)
    return text


def without_secrets(value: Any, hidden: dict[str, str], key: str = "") -> Any:
    """``value``, ready for JSON, without anything private.

    Args:
        value: The table.
        hidden: From ``secrets``.
        key: Where it stands.
    """
    if isinstance(value, dict):
        return {
            _clean(str(k), hidden): without_secrets(item, hidden, str(k))
            for k, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, hidden, key) for item in value]
    if isinstance(value, str) and key not in FIXED:
        return _clean(value, hidden)
    return value


def doctor() -> dict[str, Any]:
    """What ``dvpd doctor`` says, without where things are."""
    from dvpd.runtime.doctor import examine

    table = examine()
    table["python"].pop("executable")
    table["tensorrt"]["facts"].pop("system_tensorrt", None)
    table["engines"] = [
        {**row, "folder": Path(row["folder"]).name, "problem": row["problem"]}
        for row in table["engines"]
    ]
    return table


def built_plans(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The TensorRT plans beside each engine's graphs, as their sidecars describe them."""
    rows: list[dict[str, Any]] = []
    for folder in folders:
        for path in find_plans(folder):
            row: dict[str, Any] = {"engine": folder.name, "file": path.name}
            try:
                sidecar = read_sidecar(path)
            except DvpdError as error:
                rows.append(row | {"error": str(error)})
                continue
            rows.append(
                row
                | {"spec": sidecar.spec.as_dict(), "bytes": sidecar.size_bytes}
                | {"built": dict(sidecar.built)}
            )
    return rows


def parity(folders: Sequence[Path], pairs: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """How far each engine's waveform is from the CPU's float32 one (dB), on carried speech.

    Args:
        folders: Engine folders.
        pairs: (engine's name, backend, device) of what was measured.
    """
    from dvpd.benchmarks.common.timing import enhance_windows

    by_name = {folder.name: folder for folder in folders}
    rows = []
    for name, backend_name, device in pairs:
        row: dict[str, Any] = {"engine": name, "backend": backend_name, "device": device}
        try:
            if name not in by_name:
                raise InputError("no engine folder: a checkpoint is compared by dvpd.evaluate")
            folder = by_name[name]
            manifest = Manifest.load(folder)
            backend = open_backend(folder, manifest, backend_name, device)
            try:
                window = reference.clip_window(manifest)
                wav, _ = enhance_windows(
                    backend, manifest, window[None], manifest.sampler.score_steps
                )
            finally:
                backend.close()
            source, want = _reference(folders, manifest)
            snr = snr_db(want, wav[0])
            if not np.isfinite(snr):
                raise InputError("the waveform is not finite")
            row |= {"snr_db": round(snr, 2), "reference": source, "error": None}
        except Exception as error:  # engines raise types of their own: a row, never the end
            row |= {"snr_db": None, "error": one_line(error)}
        rows.append(row)
    return rows


def _reference(folders: Sequence[Path], manifest: Manifest) -> tuple[str, FloatArray]:
    """The carried waveform of these weights, else what ONNX Runtime says on the CPU."""
    from dvpd.benchmarks.common.timing import enhance_windows

    try:
        return "carried", reference.read_reference(manifest)
    except InputError as stale:
        for folder in folders:
            exact = Manifest.load(folder)
            if (exact.precision, exact.checkpoint_sha256) == ("fp32", manifest.checkpoint_sha256):
                break
        else:
            raise InputError(f"{stale}; or measure the fp32 engine of the same weights beside it")
        backend = open_backend(folder, exact, "ort", "cpu")
        try:
            window = reference.clip_window(exact)
            wav, _ = enhance_windows(backend, exact, window[None], exact.sampler.score_steps)
        finally:
            backend.close()
        return f"ONNX Runtime on this CPU ({stale})", wav[0]


def make(measured: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """The file's table, nothing private in it.

    Args:
        measured: Report of ``rtf.py``.
        folders: The engines that it measured.
    """
    engines = [folder for folder in folders if folder.is_dir()]
    pairs = dict.fromkeys(
        (row["engine"], row["backend"], row["device"])
        for row in measured["rows"]
        if row["status"] == "ok"
    )
    table = {
        "schema": SCHEMA,
        "created": measured["created"],
        "doctor": doctor(),
        "plans": built_plans(engines),
        "parity": parity(engines, list(pairs)),
        "rtf": measured,
    }
    clean: dict[str, Any] = without_secrets(table, secrets())
    return clean


def write(path: Path, table: dict[str, Any]) -> Path:
    """Write the file, whole or not at all.

    Args:
        path: The file, or a folder that gets ``report.json``.
        table: From ``make``.

    Returns:
        The file.

    Raises:
        OSError: It cannot be written.
    """
    target = path / FILE_NAME if path.is_dir() else path
    write_whole(target, json.dumps(table, indent=1, allow_nan=False) + "\n")
    return target
