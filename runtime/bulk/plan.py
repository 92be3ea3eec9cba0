"""What is to be done: the recordings of a folder or of a manifest, and where each output goes."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audio import check_file, check_suffix, target_in
from ..errors import InputError

# What is looked for in a folder without --glob: what libsndfile reads, and PyAV's usual ones.
SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 "
    ".m4a .m4b .mp4 .mka .webm .aac .wma .amr .3gp".split()
)


@dataclass(frozen=True)
class Job:
    """One output.

    Attributes:
        source: The recording.
        target: The output.
        part: Where to begin and how much to take (s; None: to the end); None for all of it.
        n_bytes: Size of the recording.
        mtime_ns: When it was last changed.
    """

    source: Path
    target: Path
    part: tuple[float, float | None] | None = None
    n_bytes: int = 0
    mtime_ns: int = 0

    def key(self, settings: dict[str, Any]) -> str:
        """SHA-256 of everything but the recording's content that decides the output.

        Args:
            settings: Model and options, as JSON holds them.
        """
        text = json.dumps([settings, self.part], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Plan:
    """Jobs that may run, and what was found wrong before.

    Attributes:
        jobs: In the order in which they are done.
        refused: Lines of a manifest and recordings that cannot be used, ready for the results.
        notes: What a user may want to know.
    """

    jobs: list[Job] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, source: Path, target: Path, part: tuple[float, float | None] | None = None
    ) -> None:
        """Add a recording if it can be read.

        Args:
            source: The recording.
            target: The output.
            part: As in ``Job``.
        """
        try:
            check_suffix(target)
            check_file(source)
            state = os.stat(source)
        except (InputError, OSError) as error:
            self.refuse(error, path=str(source), output=str(target))
            return
        self.jobs.append(Job(source, target, part, state.st_size, state.st_mtime_ns))

    def refuse(self, error: Exception, **names: Any) -> None:
        """Set something aside.

        Args:
            error: Why.
            names: What it is, for the results.
        """
        self.refused.append(
            {**names, "state": "refused", "error": str(error), "kind": type(error).__name__}
        )


def folder_plan(root: Path, out: Path, globs: Sequence[str], recursive: bool) -> Plan:
    """Every recording in a folder; its place under ``out`` is its place under ``root``.

    Args:
        root: The folder.
        out: The output folder; if it lies in ``root``, it is left out.
        globs: Patterns of file names; none for the usual suffixes of recordings.
        recursive: Whether folders in it are looked into.

    Raises:
        InputError: The folder cannot be read, or there is nothing in it.
    """
    plan = Plan()
    for relative in sorted(_files(root, out, recursive, plan), key=os.fspath):
        if _wanted(relative.name, globs):
            plan.add(root / relative, target_in(out / relative.parent, relative.name))
    if not plan.jobs and not plan.refused:
        what = f"that match {' or '.join(globs)}" if globs else "(by their suffixes)"
        hint = "choose others with --glob" if recursive else "--recursive looks into its folders"
        raise InputError(f"{root}: no recordings {what}; {hint}")
    return plan


def _wanted(name: str, globs: Sequence[str]) -> bool:
    if globs:
        return any(fnmatch.fnmatch(name, pattern) for pattern in globs)
    return Path(name).suffix.lower() in SUFFIXES


def _files(root: Path, out: Path, recursive: bool, plan: Plan) -> Iterator[Path]:
    """Paths of files under ``root``, relative to it; hidden ones are left out.

    Each folder is looked into once: real folders first, then links to folders. So links in a
    circle end, and the place of a file does not depend on the order of names.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [Path()], list[Path]()
    excluded = os.path.realpath(out)
    while folders or links:
        is_link = not folders
        relative = folders.pop() if folders else links.pop(0)
        folder = root / relative
        try:
            state = os.stat(folder)
            if (identity := (state.st_dev, state.st_ino)) in seen:
                if is_link:
                    plan.notes.append(f"{folder}: links to a folder that is looked into already")
                continue
            seen.add(identity)
            if relative != Path() and os.path.realpath(folder) == excluded:
                continue
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if relative == Path():
                raise InputError(f"{root}: {error.strerror or error}") from None
            plan.refuse(InputError(f"{folder}: {error.strerror or error}"), path=str(folder))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():  # dangling links, too: they are refused by name
                yield relative / entry.name
            elif recursive:
                (links if entry.is_symlink() else folders).append(relative / entry.name)


def check_targets(jobs: Iterable[Job]) -> None:
    """Refuse outputs that would meet each other or an input, before anything is done.

    Args:
        jobs: All of a plan.

    Raises:
        InputError: Two share an output, or an output is an input.
    """
    owners: dict[str, Job] = {}
    sources: set[str] = set()
    for job in jobs:
        other = owners.setdefault(os.path.realpath(job.target), job)
        if other is not job:
            raise InputError(
                f"{other.source} and {job.source} would share the output {job.target}; name their "
                "outputs in a manifest, or choose one kind with --glob"
            )
        sources.add(os.path.realpath(job.source))
    if both := next((path for path in owners if path in sources), None):
        raise InputError(f"{both}: would be input and output; choose another output folder")
