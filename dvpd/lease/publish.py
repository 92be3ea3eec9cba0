"""Results in numbered pieces that can be copied back one by one, in any order, by any call.

A publication is a tar file of a stream ("result", "state-NAME", "cache") with a number, cut into
pieces. Every piece begins with the checksums of all of them: it can be checked alone, and nothing
else is needed to join them. The newest publication that is whole counts.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.command import say
from ..runtime.files import write_whole

FORMAT = "dvpd-piece-1"
HEADER_BYTES = 64 << 10  # at most, with its line end
MARKS_NAME = "delivered.json"
RESULT, CACHE = "result", "cache"


@dataclass(frozen=True)
class Piece:
    """A piece on disk, by its name ``STREAM.NUMBER.PIECE``."""

    path: Path
    stream: str
    number: int
    index: int


def find_pieces(folder: Path) -> list[Piece]:
    """The pieces of a folder, by name alone."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        words = path.name.rsplit(".", 2)
        if len(words) == 3 and words[1].isdigit() and words[2].isdigit() and words[0]:
            found.append(Piece(path, words[0], int(words[1]), int(words[2])))
    return found


def read_piece(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """Header and payload of a piece; None where it is torn or none at all."""
    try:
        data = path.read_bytes()
        line, _, payload = data.partition(b"\n")
        header = json.loads(line)
        expected = header["sha256"][header["piece"]]
        if header["format"] != FORMAT or hashlib.sha256(payload).hexdigest() != expected:
            return None
        if path.name != f"{header['stream']}.{header['number']:05d}.{header['piece']:02d}":
            return None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return header, payload


class Publisher:
    """Writes publications into a folder and removes those that newer ones replace."""

    def __init__(self, folder: Path, piece_bytes: int) -> None:
        """Prepare the folder.

        Args:
            folder: Made if missing; earlier publications are continued in number.
            piece_bytes: Size of a piece at most, header included (bytes).
        """
        self.folder, self.payload = folder, piece_bytes - min(HEADER_BYTES, piece_bytes // 2)
        folder.mkdir(parents=True, exist_ok=True)

    def publish(self, stream: str, members: Mapping[str, bytes | Path]) -> bool:
        """Write the next publication of a stream, whole or not at all.

        Args:
            stream: Letters, digits, '_' and '-'.
            members: Name within the tar file -> contents; files that are gone are left out.

        Returns:
            Whether it was written; if not (a full disk), the one before is still there.
        """
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, member in members.items():
                try:
                    data = member if isinstance(member, bytes) else member.read_bytes()
                except OSError:
                    continue
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        blob = buffer.getvalue()
        cuts = [blob[i : i + self.payload] for i in range(0, len(blob), self.payload)]
        number = 1 + max((p.number for p in self._of(stream)), default=0)
        header = {
            "format": FORMAT, "stream": stream, "number": number, "piece": 0,
            "sha256": [hashlib.sha256(cut).hexdigest() for cut in cuts],
        }  # fmt: skip
        written = []
        try:
            for index, cut in enumerate(cuts):
                path = self.folder / f"{stream}.{number:05d}.{index:02d}"
                line = json.dumps({**header, "piece": index}).encode() + b"\n"
                written.append(path)
                write_whole(path, line + cut)
        except OSError as error:
            for path in written:
                path.unlink(missing_ok=True)
            say(f"{stream} {number} is not published: {error}")
            return False
        self._prune(stream, number)
        return True

    def _of(self, stream: str) -> list[Piece]:
        return [p for p in find_pieces(self.folder) if p.stream == stream]

    def _prune(self, stream: str, newest: int) -> None:
        """Remove what is older than the newest and than one that is half delivered."""
        marked = read_marks(self.folder).get(stream, {}).get("number", newest)
        for piece in self._of(stream):
            if piece.number not in (newest, marked):
                piece.path.unlink(missing_ok=True)


def read_marks(folder: Path) -> dict[str, dict[str, Any]]:
    """Stream -> number and indices of the pieces that were delivered last."""
    try:
        marks = json.loads((folder / MARKS_NAME).read_text())
        return {k: {"number": v["number"], "pieces": list(v["pieces"])} for k, v in marks.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def deliver(
    folder: Path, out: Path, max_files: int, max_bytes: int, again: bool = False
) -> list[str]:
    """Copy what was not delivered yet, results first, as far as it fits.

    A publication whose delivery has begun is finished before a newer one of its stream begins:
    otherwise one that needs several calls would never be whole.

    Args:
        folder: The `Publisher`'s.
        out: Folder that comes back; made if missing.
        max_files: Files in it at most.
        max_bytes: All of them together at most.
        again: Deliver the newest publications, whatever was delivered before.

    Returns:
        Names of the files copied.
    """
    out.mkdir(parents=True, exist_ok=True)
    marks = {} if again else read_marks(folder)
    streams: dict[str, list[Piece]] = {}
    for piece in find_pieces(folder):
        streams.setdefault(piece.stream, []).append(piece)

    def urgency(stream: str) -> tuple[int, float]:
        rank = {RESULT: 0, CACHE: 2}.get(stream, 1)
        try:
            return rank, -streams[stream][-1].path.stat().st_mtime
        except OSError:  # replaced by a newer one at this moment
            return rank, 0.0

    copied: list[str] = []
    for stream in sorted(streams, key=urgency):
        mark = marks.setdefault(stream, {"number": 0, "pieces": []})
        pieces = streams[stream]
        old = [p for p in pieces if p.number == mark["number"]]
        if not old or len(mark["pieces"]) >= len(old):  # whole, or gone: on to the newest
            newest = pieces[-1].number
            if newest != mark["number"]:
                mark["number"], mark["pieces"] = newest, []
        for piece in pieces:
            if piece.number != mark["number"] or piece.index in mark["pieces"]:
                continue
            try:
                size = piece.path.stat().st_size
                if len(copied) >= max_files or size > max_bytes:
                    break
                shutil.copyfile(piece.path, out / piece.path.name)
            except FileNotFoundError:
                continue
            max_bytes -= size
            mark["pieces"].append(piece.index)
            copied.append(piece.path.name)
    write_whole(folder / MARKS_NAME, json.dumps(marks).encode())
    return copied


def collect(sources: Iterable[Path], into: Path) -> dict[str, dict[str, Any]]:
    """Take pieces that came back, and unpack the newest whole publication of every stream.

    Args:
        sources: Folders (searched below, too) with pieces; others' files are left alone.
        into: Folder of all results: pieces/ and a folder for every stream.

    Returns:
        Stream -> "number" unpacked (0 for none yet), "newest" seen, "missing" pieces of that.
    """
    store = into / "pieces"
    store.mkdir(parents=True, exist_ok=True)
    for source in sources:
        for folder in [source, *(p for p in source.rglob("*") if p.is_dir())]:
            for piece in find_pieces(folder):
                target = store / piece.path.name
                if folder != store and read_piece(target) is None and read_piece(piece.path):
                    write_whole(target, piece.path.read_bytes())
    whole: dict[str, dict[int, dict[int, Piece]]] = {}
    for piece in find_pieces(store):
        whole.setdefault(piece.stream, {}).setdefault(piece.number, {})[piece.index] = piece
    report = {}
    for stream, numbers in whole.items():
        entry: dict[str, Any] = {"number": 0, "newest": max(numbers), "missing": []}
        for number in sorted(numbers, reverse=True):
            read = {i: read_piece(p.path) for i, p in numbers[number].items()}
            good = {i: r for i, r in read.items() if r is not None}
            if not good:
                continue
            sums = next(iter(good.values()))[0]["sha256"]
            missing = [i for i in range(len(sums)) if i not in good]
            if number == entry["newest"]:
                entry["missing"] = missing
            if not missing:
                _unpack(b"".join(good[i][1] for i in range(len(sums))), into / stream)
                entry["number"] = number
                break
        for number, pieces in numbers.items():
            for piece in pieces.values():
                if number < entry["number"]:
                    piece.path.unlink()
        report[stream] = entry
    return report


def _unpack(blob: bytes, folder: Path) -> None:
    """A tar file in the place of a folder; what was there stays until the new one is whole."""
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        tar.extractall(scratch, filter="data")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
