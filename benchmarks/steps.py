"""What the score network's steps buy, from evaluations of a model: all recordings, and by degradation.

    python -m dvpd.evaluate MODEL --set DEV/noise --steps 1,3 --dnsmos DIR --json noise.json
    python benchmarks/steps.py noise.json universal.json --json steps.json

The predictive network alone is measured in every evaluation: steps are compared with it, recording by
recording. ``benchmarks/readme.py`` puts what ``--json`` wrote into the pages.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import tables
from dvpd.quality.metrics import MEASURES, paired, summarise
from dvpd.quality.report import load_baseline
from dvpd.runtime import command
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole
from dvpd.runtime.options import QUALITY_STEPS

FORMAT = "dvpd-steps-1"
ALL = ""  # the group of all recordings
SHOWN = ("pesq", "estoi", "si_sdr", "dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl")


def _by_steps(report: Mapping[str, Any]) -> dict[int, str]:
    """Name of the system by its steps; the first of several with the model's other settings."""
    found = {0: "predictive"}
    for name, settings in report["settings"].items():
        if settings["tlb"] == "off":
            found.setdefault(settings["steps"], name)
    return dict(sorted(found.items()))


def _figures(records: Sequence[Mapping[str, Any]], system: str, metric: str) -> list[float]:
    values = (r["figures"][system][metric] for r in records)
    return [math.nan if value is None else float(value) for value in values]


def collect(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means without steps, and differences of each number of steps to them.

    Args:
        reports: What ``dvpd.evaluate`` wrote.

    Returns:
        "rows": one a report and group ("" for all recordings), with "fast" (measure -> ``Summary``
        of the predictive network alone) and "steps" (number -> measure -> ``Difference`` to it).

    Raises:
        InputError: A report has no sampler.
    """
    rows = []
    for report in reports:
        systems = _by_steps(report)
        if len(systems) == 1:
            raise InputError(
                f"the report of {report['model']} on {report['set']} has no sampler; measure with "
                "--steps 1,3"
            )
        metrics = [m for m in SHOWN if m in report["systems"]["predictive"]]
        groups = list(report["groups"])
        for group in (ALL, *groups * (len(groups) > 1)):
            records = [r for r in report["files"] if group in (ALL, r["group"])]
            fast = {m: _figures(records, "predictive", m) for m in metrics}
            rows.append({
                "model": report["model"],
                "checkpoint_sha256": report["checkpoint_sha256"],
                "set": report["set"],
                "group": group,
                "n": len(records),
                "fast": {m: asdict(summarise(fast[m])) for m in metrics},
                "steps": {
                    str(count): {
                        m: asdict(paired(_figures(records, system, m), fast[m])) for m in metrics
                    }
                    for count, system in systems.items()
                    if count
                },
            })  # fmt: skip
    return {"format": FORMAT, "rows": rows}


def _level(part: Mapping[str, Any], metric: str) -> str:
    n = 3 if metric == "estoi" else 2
    return f"{part['mean']:.{n}f} [{part['low']:.{n}f} to {part['high']:.{n}f}]"


def _change(part: Mapping[str, Any], metric: str) -> str:
    n = 3 if metric == "estoi" else 2
    mark = " *" if part["significant"] else ""
    low, mean, high = (round(part[k], n) + 0.0 for k in ("low", "mean", "high"))  # no minus zero
    return f"{mean:+.{n}f} [{low:+.{n}f} to {high:+.{n}f}]{mark}"


def to_markdown(result: Mapping[str, Any], *, groups: bool) -> str:
    """What each number of steps buys.

    Args:
        result: From `collect`.
        groups: Whether the rows of degradations are shown, or those of all recordings.
    """
    names = {steps: name for name, steps in QUALITY_STEPS.items()}
    chosen = [row for row in result["rows"] if bool(row["group"]) == groups]
    metrics = [m for m in SHOWN if any(m in row["fast"] for row in chosen)]
    body = []
    for row in chosen:
        where = f"`{row['model']}`, {row['set']}"
        where += f", {row['group']} ({row['n']})" if row["group"] else f" ({row['n']})"
        cells = [_level(row["fast"][m], m) if m in row["fast"] else None for m in metrics]
        body.append([where, f"{names[0]} (0)", *cells])
        for count, table in row["steps"].items():
            label = f"{names[int(count)]} ({count})" if int(count) in names else count
            cells = [_change(table[m], m) if m in table else None for m in metrics]
            body.append(["", label, *cells])
    labels = (f"{MEASURES[m].label}{', dB' if MEASURES[m].unit else ''}" for m in metrics)
    note = (
        "Without steps: mean and its 95 % bootstrap interval over recordings. With steps: difference to "
        "that on the same recordings, * where its interval leaves out zero."
    )
    return tables.markdown(["recordings", "quality (steps)", *labels], body) + f"\n\n{note}"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="steps.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "reports", nargs="+", metavar="REPORT", help="JSON that dvpd.evaluate wrote"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures of the tables here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    result = collect([load_baseline(path) for path in args.reports])
    print(to_markdown(result, groups=False))
    if any(row["group"] for row in result["rows"]):
        print(f"\n{to_markdown(result, groups=True)}")
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1) + "\n")
    return command.EXIT_DONE


if __name__ == "__main__":
    command.leave(main())
