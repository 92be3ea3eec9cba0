"""What cutting a recording into windows costs in its pauses: in one piece, forgetting, reminded.

    python benchmarks/windows.py --set DEV/pauses                       # the default engine
    python benchmarks/windows.py engines/dvpd-tiny --set DEV/pauses --set MINE/pauses --json windows.json

Each recording goes through the predictive branch as a whole, in windows that know nothing of each
other, in the same with two seconds of the past before each, and with the recording's loudest second
beside each, as the runtime does it. The largest step is that of the residual's level where windows
meet, in any pause of any recording.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import machine, tables
from dvpd.quality.metrics import pesq_wb
from dvpd.quality.pairs import find_pairs, read_pair, spread_sample
from dvpd.quality.pauses import (
    find_speech,
    measure_levels,
    over_utterances,
    seam_steps,
)
from dvpd.runtime import command
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.engines import default_engine
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole
from dvpd.runtime.progress import show_status
from dvpd.runtime.spec import SAMPLE_RATE
from dvpd.runtime.windows import WindowPlan

FORMAT = "dvpd-windows-1"
HOUR = 3600 * SAMPLE_RATE
PLANS = {
    "one piece": WindowPlan(window_samples=HOUR, reminder_samples=0),
    "windows": WindowPlan(reminder_samples=0),
    "windows, 2 s of the past": WindowPlan(context_samples=256 * 128, reminder_samples=0),
    "windows, loudest second": WindowPlan(),
}
FIGURES = {
    "pause_lowered": ("noise lowered, dB", 1),
    "pause_worst": ("worst tenth, dB", 1),
    "pause_jump": ("jump, dB", 1),
    "words_lost": ("words lost, %", 1),
    "speech_level": ("speech level, dB", 2),
    "pesq_speech": ("PESQ, utterances", 3),
}


def measure(
    enhancer: Enhancer,
    noisy: FloatArray,
    clean: FloatArray,
    speech: Sequence[tuple[int, int]] | None,
) -> dict[str, float]:
    """Figures of one recording.

    Args:
        enhancer: Its window plan says how the recording is cut.
        noisy: [L] at 16 kHz.
        clean: [L].
        speech: Where somebody speaks; None to find it in ``clean``.

    Returns:
        Those of ``FIGURES`` and "seam", the largest step at a seam in a pause, dB (NaN without one).
    """
    where = find_speech(clean) if speech is None else speech
    wav = enhancer.enhance(noisy, SAMPLE_RATE, steps=0).wav
    found = measure_levels(noisy, clean, wav, where)
    found["pesq_speech"] = over_utterances(pesq_wb, clean, wav, where)
    plan = enhancer.window_plan
    cut = len(noisy) > plan.window_samples
    steps = seam_steps(wav, plan.seams(len(noisy)), where) if cut else np.zeros(0)
    seam = float(steps.max()) if len(steps) else float("nan")
    return {**{name: found[name] for name in FIGURES}, "seam": seam}


def run(
    folder: Path,
    sets: Sequence[Path],
    limit: int = 0,
    backend: str = "auto",
    plans: Sequence[str] = tuple(PLANS),
) -> list[dict[str, Any]]:
    """Every set through an engine, cut by every plan.

    Args:
        folder: Engine folder.
        sets: Folders with noisy/ and clean/.
        limit: Evenly spaced pairs of each; 0 for all.
        backend: See ``Enhancer.open``.
        plans: Keys of ``PLANS``.

    Returns:
        Rows with "engine", "set", "plan" and "files" (name -> figures of ``measure``).

    Raises:
        DvpdError: An engine or a set cannot be used.
    """
    rows = []
    with Enhancer.open(folder, backend) as opened:
        for root in sets:
            pairs = spread_sample(find_pairs(root), limit)
            for name in plans:
                enhancer = Enhancer(opened.manifest, opened.backend, PLANS[name])
                files = {}
                for i, pair in enumerate(pairs, start=1):
                    noisy, clean = read_pair(pair)
                    if clean is not None:
                        files[pair.name] = measure(enhancer, noisy, clean, pair.speech)
                    show_status(f"{folder.name}, {root.name}, {name}: {i} of {len(pairs)}")
                rows.append(
                    {"engine": folder.name, "set": root.absolute().name, "plan": name, "files": files}
                )  # fmt: skip
    return rows


def _mean(files: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    values = np.array([figures[name] for figures in files.values()])
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over recordings, the recording lowered least, and the largest step at a seam."""
    lines = []
    for row in rows:
        files, cells = row["files"], []
        for name, (_, digits) in FIGURES.items():
            value = _mean(files, name)
            cells.append("-" if value is None else f"{value + 0.0:.{digits}f}")
        for name, pick in (("pause_lowered", np.nanmin), ("seam", np.nanmax)):
            values = np.array([figures[name] for figures in files.values()])
            cells.append(f"{pick(values):.1f}" if np.isfinite(values).any() else "-")
        lines.append([row["engine"], row["set"], row["plan"], *cells])
    header = ["engine", "set", "cut into", *(text for text, _ in FIGURES.values())]
    return tables.markdown([*header, "least lowered, dB", "largest step, dB"], lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="windows.py", description=__doc__.split("\n")[0])
    parser.add_argument("engines", nargs="*", type=Path, help="default: the default engine")
    parser.add_argument("--set", dest="sets", action="append", type=Path, required=True,
                        help="folder with noisy/ and clean/; may be given again")  # fmt: skip
    parser.add_argument("--plan", dest="plans", action="append", choices=PLANS,
                        help="may be given again (default: all)")  # fmt: skip
    parser.add_argument(
        "--limit", type=command.whole(0), default=0, help="evenly spaced pairs of each set"
    )
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--markdown", type=Path, metavar="OUT")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _main)


def _main(args: argparse.Namespace) -> int:
    for path in (args.json, args.markdown):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist")
    rows = []
    for folder in args.engines or [default_engine()]:
        rows += run(folder, args.sets, args.limit, args.backend, args.plans or tuple(PLANS))
    text = table(rows)
    print(text)
    if args.markdown:
        write_whole(args.markdown, text + "\n")
    if args.json:
        for row in rows:  # JSON has no NaN
            for figures in row["files"].values():
                figures.update({k: None for k, v in figures.items() if not np.isfinite(v)})
        report = {"format": FORMAT, "created": machine.now(), "machine": machine.machine(),
                  "versions": machine.versions(), "rows": rows}  # fmt: skip
        write_whole(args.json, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command.leave(main())
