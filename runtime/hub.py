"""Engines from the Hugging Face Hub: fetched when one is asked for by name, checked, kept.

What is fetched: manifest.json, the graphs that it names, and the verification report. No weights of
another form, no code, and no TensorRT plans, which are code too.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import (
    DvpdError,
    HubError,
    InputError,
    ManifestError,
    UsageError,
    one_line,
    raise_interrupt,
)
from .files import cache_path, temporary_path
from .manifest import MANIFEST_NAME, VERIFICATION_NAME, Manifest

PREFIX = "hf:"  # before a repository's name, where a model's name or folder is expected
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def fetch_named(model: str) -> Path:
    """The engine folder of "hf:owner/name" or "hf:owner/name@revision"; see ``fetch``.

    Args:
        model: With the prefix.
    """
    name, _, revision = model.removeprefix(PREFIX).partition("@")
    return fetch(name, revision or None)


def fetch(name: str, revision: str | None = None) -> Path:
    """The engine folder of a repository, from the cache where it is there.

    The Hub is asked which commit a branch or a tag is, once a call; with HF_HUB_OFFLINE=1, or
    without a network, the last answer holds. Files are kept where ``huggingface_hub`` keeps them
    (HF_HOME), and the folder, of links to them, below ~/.cache/dvpd/hub.

    Args:
        name: "owner/name".
        revision: Branch, tag or commit; None for the branch "main".

    Returns:
        A folder whose graphs are those that its manifest describes, by their SHA-256.

    Raises:
        InputError: The name or the revision is not one.
        HubError: The package huggingface_hub is missing, or the Hub does not give the files.
        ManifestError: There is no engine in the repository, or its files do not belong together.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"model is {name!r} on the Hugging Face Hub; expected OWNER/NAME, hf:OWNER/NAME or "
            "hf:OWNER/NAME@REVISION"
        )
    repository = _Repository(name, revision)
    manifest_path = repository.get(MANIFEST_NAME)
    commit = manifest_path.parent.name
    # Its last part is what reports call it.
    folder = cache_path("hub") / commit / name.replace("/", "--")
    if _problem(folder) is None:
        return folder
    here = _Repository(name, commit)
    for again in (False, True):  # a file that was damaged in the cache is fetched once more
        try:
            manifest = Manifest.load(manifest_path.parent)
            files = [here.get(graph.file, again) for graph in manifest.files.values()]
            files += [manifest_path, *here.get_if_there(VERIFICATION_NAME)]
        except ManifestError as error:
            raise ManifestError(f"{repository}: {error}") from None
        _assemble(files, folder)
        if (problem := _problem(folder)) is None:
            return folder
    raise ManifestError(f"{repository}: its files do not belong together: {problem}")


class _Repository:
    """A repository at one revision, and what its errors mean."""

    def __init__(self, name: str, revision: str | None) -> None:
        # The package tells the Hub no more than what a download needs.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            import huggingface_hub as package
            from huggingface_hub import constants, errors
        except ImportError:
            raise HubError(
                f"{PREFIX}{name} needs the package huggingface_hub: pip install 'dvpd[hub]'"
            ) from None
        self._constants: Any = constants
        self._errors: Any = errors
        self._package: Any = package
        self._name, self._revision = name, revision
        # Read here, as the package does not look again once it is imported.
        self._endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT

    def __str__(self) -> str:
        return PREFIX + self._name + (f"@{self._revision}" if self._revision else "")

    def get(self, file: str, again: bool = False) -> Path:
        """A file, fetched unless it is in the cache; ``again``: even then."""
        with self._explained(file):
            self._ask_once(file)
            return Path(
                self._package.hf_hub_download(
                    self._name,
                    file,
                    revision=self._revision,
                    force_download=again,
                    library_name="dvpd",
                    endpoint=self._endpoint,
                )
            )

    def _ask_once(self, file: str) -> None:
        """Ask for a file that is not in the cache; without a network the package tries for 24 s.

        Raises:
            HubError: Nobody answers.
        """
        name, revision, package = self._name, self._revision, self._package
        cached = package.try_to_load_from_cache(name, file, revision=revision)
        if self._constants.HF_HUB_OFFLINE or isinstance(cached, str):
            return
        url = package.hf_hub_url(name, file, revision=revision, endpoint=self._endpoint)
        try:
            package.get_hf_file_metadata(
                url,
                timeout=self._constants.HF_HUB_ETAG_TIMEOUT,
                library_name="dvpd",
                endpoint=self._endpoint,
            )
        except self._errors.HfHubHTTPError:
            return  # an answer: the package asks again where that helps
        except Exception as error:  # of the package's HTTP library, which is not always the same
            raise_interrupt(error)
            raise HubError(f"{self}: {file} is not in the cache, and {self._why(error)}") from error

    def get_if_there(self, file: str) -> list[Path]:
        """A file, or nothing where the repository has none of that name."""
        try:
            return [self.get(file)]
        except ManifestError:
            return []
        except HubError:
            if self._constants.HF_HUB_OFFLINE:
                return []
            raise

    @contextmanager
    def _explained(self, file: str) -> Iterator[None]:
        errors, log = self._errors, logging.getLogger("huggingface_hub")
        level = log.level
        log.setLevel(logging.ERROR)  # of its tries and its advice; what matters is raised
        try:
            yield
        except DvpdError:
            raise
        except Exception as error:  # the package's own, the system's, and its HTTP library's
            raise_interrupt(error)
            where = str(self)
            if isinstance(error, errors.GatedRepoError):
                found: DvpdError = HubError(
                    f"{where}: its owner grants access: ask for it on the repository's page, then "
                    "set HF_TOKEN or run `hf auth login`"
                )
            elif isinstance(error, errors.RepositoryNotFoundError):
                found = InputError(
                    f"{where}: the Hub has no such repository, or it is private: check the name; for "
                    "a private one set HF_TOKEN or run `hf auth login`"
                )
            elif isinstance(error, errors.RevisionNotFoundError):
                found = InputError(
                    f"{where}: the repository has no such revision; give a branch, a tag or a commit"
                )
            elif isinstance(error, errors.LocalEntryNotFoundError):
                found = HubError(
                    f"{where}: {file} is not in the cache, and {self._why(error.__cause__)}"
                )
            elif isinstance(error, errors.EntryNotFoundError):
                found = ManifestError(
                    f"{where}: has no {file}, so no engine that can be run; `dvpd export-hub` writes one"
                )
            else:
                found = HubError(f"{where}: {file} could not be fetched ({one_line(error)})")
            raise found from error
        finally:
            log.setLevel(level)

    def _why(self, error: BaseException | None) -> str:
        """Why the Hub was not asked, or did not answer."""
        if self._constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE forbids to fetch it: fetch it once without this variable"
        text = f" ({one_line(error)})" if error is not None else ""
        return (
            f"{self._endpoint} did not give it{text}: check the network, and "
            "HF_ENDPOINT if it is set"
        )


def _problem(folder: Path) -> str | None:
    """Why a folder is no whole engine, or None."""
    try:
        Manifest.load(folder).verify_graphs(folder)
    except ManifestError as error:
        return str(error)
    return None


def _assemble(files: list[Path], folder: Path) -> None:
    """Give files one folder, as files and not as symbolic links.

    A graph for one recording reads the weights in the file of another one, and engines refuse to
    follow a link out of the folder: huggingface_hub's own snapshots are such links.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = temporary_path(folder)
    part.mkdir()
    try:
        for file in files:
            try:
                os.link(file.resolve(), part / file.name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(file, part / file.name)
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or somebody else's a moment ago
        with suppress(OSError):  # another process was faster; what it made is checked as well
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
