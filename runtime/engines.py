"""Where engine folders are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ManifestError
from .spec import MANIFEST_NAME

ENGINE_VARIABLE = "DVPD_ENGINE"
DEFAULT_ENGINES = ("dvpd-base", "dvpd-tiny")


def engine_roots() -> list[Path]:
    """Folders that may hold engine folders: engines/ of the checkout and of the current folder."""
    roots = []
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        roots.append(checkout / "engines")
    here = Path.cwd() / "engines"
    if here not in roots:
        roots.append(here)
    return [root for root in roots if root.is_dir()]


def find_engines() -> list[Path]:
    """Every engine folder: $DVPD_ENGINE, then those under the roots; manifests are not read."""
    chosen = [Path(os.environ[ENGINE_VARIABLE])] if os.environ.get(ENGINE_VARIABLE) else []
    return chosen + sorted(
        folder
        for root in engine_roots()
        for folder in root.iterdir()
        if (folder / MANIFEST_NAME).is_file() and folder not in chosen
    )


def default_engine() -> Path:
    """The engine folder to use when none is named.

    Returns:
        $DVPD_ENGINE if set, else engines/dvpd-base, else engines/dvpd-tiny.

    Raises:
        ManifestError: There is none.
    """
    if chosen := os.environ.get(ENGINE_VARIABLE):
        return Path(chosen)
    for name in DEFAULT_ENGINES:
        for root in engine_roots():
            if (root / name / MANIFEST_NAME).is_file():
                return root / name
    raise ManifestError(
        f"no engine folder found (looked for {' and '.join(DEFAULT_ENGINES)} under engines/): give "
        f"--model FOLDER, set {ENGINE_VARIABLE}, or write one with python export/to_onnx.py"
    )
