"""Where engine folders are looked for, and whether one has been verified."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from . import hub
from .errors import DvpdError, ManifestError
from .files import sha256_file
from .manifest import MANIFEST_NAME, VERIFICATION_NAME, Manifest

ENGINE_VARIABLE = "DVPD_ENGINE"
DEFAULT_ENGINES = ("dvpd-base", "dvpd-tiny")
SIZES = ("", "-base", "-tiny")  # a name without its size: the best that is there
LIVE_ENGINES = ("dvpd-live", "dvpd-live-tiny")
VERIFICATION_FORMAT = 1
logger = logging.getLogger("dvpd")
_told: set[Path] = set()


def find_checkpoint(folder: Path, sha256: str) -> Path | None:
    """The checkpoint that an engine was exported from: in its folder, or in one beside it.

    Args:
        folder: Engine folder.
        sha256: What the manifest says of the checkpoint.
    """
    for path in checkpoints_near(folder):
        if sha256_file(path) == sha256:
            return path
    return None


def checkpoints_near(folder: Path) -> list[Path]:
    """Checkpoints in an engine folder and in the folders beside it."""
    return [*sorted(folder.glob("*.safetensors")), *sorted(folder.parent.glob("*/*.safetensors"))]


def engine_roots() -> list[Path]:
    """Folders that may hold engine folders: of the installation and of the current folder.

    engines/ lies beside runtime/ in a checkout, and beside ``dvpd/runtime`` in an installed wheel,
    which carries dvpd-tiny and dvpd-live-tiny.
    """
    roots = [Path(__file__).resolve().parent.parent / "engines"]
    with contextlib.suppress(FileNotFoundError):  # the working folder was deleted
        if (here := Path.cwd() / "engines") not in roots:
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


def find_window_engines() -> list[Path]:
    """As ``find_engines``, without the causal models, which run block by block."""

    def causal(folder: Path) -> bool:
        try:
            return Manifest.load(folder).causal is not None
        except DvpdError:  # whoever opens it says why
            return False

    return [folder for folder in find_engines() if not causal(folder)]


def find_engine(model: str | Path | None = None) -> Path:
    """The engine folder that a user means.

    Args:
        model: A folder; or the name of an engine folder under the roots, such as "dvpd-tiny",
            without its size for the best that is there ("dvpd-live"); or a repository of the
            Hugging Face Hub, "hf:owner/name" or "hf:owner/name@revision", which alone is fetched;
            or None for ``default_engine``.

    Returns:
        A folder. One that was given with its path is returned as it is, whether it exists or not.

    Raises:
        ManifestError: None of the roots has an engine of that name.
        DvpdError: See ``hub.fetch``.
    """
    if model is None:
        return default_engine()
    if isinstance(model, str) and model.startswith(hub.PREFIX):
        return hub.fetch_named(model)
    folder = Path(model)
    # A word is a name, unless the current folder has such a folder.
    if folder.name != str(model) or folder.is_dir():
        return folder
    for size in SIZES:
        for root in engine_roots():
            if (root / (folder.name + size) / MANIFEST_NAME).is_file():
                return root / (folder.name + size)
    known = sorted({path.name for path in find_engines()})
    raise ManifestError(
        f"no engine is called {folder.name!r}; here are: {', '.join(known) or 'none'}. An installed "
        "wheel carries dvpd-tiny and dvpd-live-tiny: `pip install ./engines` in the source tree adds "
        f"dvpd-base, dvpd-base-fp16 and dvpd-live. For another give its folder's path, set {ENGINE_VARIABLE} to it, or "
        "put it into ./engines"
    )


def find_live_engine(model: str | Path | None = None, *, many: bool = False) -> Path:
    """As ``find_engine``, for sound that is still coming in: the causal models come first.

    Args:
        model: See ``find_engine``; None for ``default_engine`` of all names, the causal ones first.
        many: Whether many sounds are to share it: the causal one with the least computing is then first.

    Raises:
        ManifestError: There is none.
    """
    if model is None:
        live = LIVE_ENGINES[::-1] if many else LIVE_ENGINES
        return default_engine((*live, *DEFAULT_ENGINES))
    return find_engine(model)


def default_engine(names: Sequence[str] = DEFAULT_ENGINES) -> Path:
    """The engine folder to use when none is named.

    Args:
        names: What is looked for under the roots, best first.

    Returns:
        $DVPD_ENGINE if set, else the first of ``names`` that is there.

    Raises:
        ManifestError: There is none.
    """
    if chosen := os.environ.get(ENGINE_VARIABLE):
        return Path(chosen)
    for name in names:
        for root in engine_roots():
            if (root / name / MANIFEST_NAME).is_file():
                return root / name
    raise ManifestError(
        f"no engine folder found (looked for {' and '.join(names)} under engines/): give "
        f"--model FOLDER, set {ENGINE_VARIABLE}, or write one with python export/to_onnx.py"
    )


def verification_problem(folder: str | Path, manifest: Manifest) -> str | None:
    """Why an engine folder does not count as verified, or None.

    An export compares its graphs with the model before they appear, and keeps the figures and the
    graphs' hashes in the manifest: that counts, until a report of the same graphs says otherwise.
    What counts is the same for both: a comparison of these very graphs that passed.

    Args:
        folder: The engine folder.
        manifest: Its manifest.
    """
    path = Path(folder) / VERIFICATION_NAME
    present = manifest.hashes
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        known, passed, graphs = table["format"], table["passed"], table["graphs"]
    except FileNotFoundError:
        exported = manifest.parity.get("graphs")
        if exported is None:
            return "has no verification report"
        return None if exported == present else "has other graphs than were exported"
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return "has a verification report that cannot be read"
    if known != VERIFICATION_FORMAT:
        return "has a verification report of another version"
    if graphs != present:
        return "has a verification report of other graphs"
    return None if passed is True else "has failed its verification"


def warn_unverified(folder: str | Path, manifest: Manifest) -> None:
    """Log once for each folder if its graphs have not been compared with the model.

    Args:
        folder: The engine folder.
        manifest: Its manifest.
    """
    problem, place = verification_problem(folder, manifest), Path(folder).resolve()
    if problem is not None and place not in _told:
        _told.add(place)
        logger.warning(
            "%s %s: its output has not been compared with the model's; python export/verify.py "
            "%s does that",
            folder,
            problem,
            folder,
        )
