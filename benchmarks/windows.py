"""What cutting a recording into windows costs in its pauses: in one piece, forgetting, reminded.

    python benchmarks/windows.py --set DEV/pauses                       # the default engine
    python benchmarks/windows.py engines/dvpd-tiny --set DEV/pauses --set MINE/pauses --json windows.json
    python benchmarks/windows.py --set DEV/pauses --plan 1024/64/128 --plan 512/16/128  # frames of a
                                              # window, of the context at a cut, and of the reminder
    python benchmarks/windows.py engines/dvpd-base --time 60 --threads 2     # side by side, or in turn

Each recording goes through the predictive branch as a whole, in windows that know nothing of each
other, in the same with two seconds of the past before each, and with the recording's loudest second
beside each, as the runtime does it. The largest step is that of the residual's level where windows
meet, in any pause of any recording.

``--time`` measures no quality: a recording of so many seconds is timed with its windows one after the
other (each call of a network on all threads) and side by side (one thread each), interleaved, by every
plan. The ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
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
from dvpd.runtime.backends.base import Backend
from dvpd.runtime.engines import default_engine
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole
from dvpd.runtime.progress import show_status
from dvpd.runtime.spec import SAMPLE_RATE, SignalSpec
from dvpd.runtime.windows import WindowPlan

FORMAT = "dvpd-windows-1"
HOUR = 3600 * SAMPLE_RATE
HOP = SignalSpec().hop_length
PLANS = {
    "one piece": WindowPlan(window_samples=HOUR, reminder_samples=0),
    "windows": WindowPlan(reminder_samples=0),
    "windows, 2 s of the past": WindowPlan(context_samples=256 * 128, reminder_samples=0),
    "windows, loudest second": WindowPlan(),
}
IN_TURN = (
    "windows, loudest second"  # the plan by which windows are also computed one after the other
)
FIGURES = {
    "pause_lowered": ("noise lowered, dB", 1),
    "pause_worst": ("worst tenth, dB", 1),
    "pause_jump": ("jump, dB", 1),
    "words_lost": ("words lost, %", 1),
    "speech_level": ("speech level, dB", 2),
    "pesq_speech": ("PESQ, utterances", 3),
}


def find_plan(text: str) -> WindowPlan:
    """A plan by its name, or by its frames: WINDOW/CONTEXT/REMINDER, such as 512/16/128.

    Args:
        text: See above.

    Raises:
        InputError: It is neither, or windows of these sizes cannot tile a recording.
    """
    if text in PLANS:
        return PLANS[text]
    try:
        window, context, reminder = (int(part) * HOP for part in text.split("/"))
    except ValueError:
        raise InputError(
            f"--plan is {text!r}; expected {', '.join(map(repr, PLANS))}, or frames as in 1024/64/128"
        ) from None
    fade = min(WindowPlan.fade_samples, context)
    return WindowPlan(window - HOP, context, fade, reminder_samples=reminder)


class InTurn:
    """A backend whose windows take turns: each call of a network is given all threads."""

    def __init__(self, backend: Backend) -> None:
        """Wrap an open backend, and leave it open."""
        self.name, self.device = backend.name, backend.device
        self.predict, self.score = backend.predict, backend.score

    def close(self) -> None:
        """Nothing: whoever opened the backend closes it."""


def time_cuts(
    folder: Path,
    seconds: float,
    rounds: int,
    backend: str = "auto",
    threads: int | None = None,
    plans: Sequence[str] = (IN_TURN,),
    steps: int | None = None,
) -> list[dict[str, Any]]:
    """A recording with its windows in turn, and side by side by every plan; interleaved.

    Args:
        folder: Engine folder.
        seconds: Of the recording.
        rounds: How often each is timed.
        backend: See ``Enhancer.open``.
        threads: See ``Enhancer.open``.
        plans: See ``find_plan``.
        steps: See ``Enhancer.enhance``.

    Returns:
        Rows with "engine", "plan", "windows", "frames" (computed for each of the recording), "seconds"
        (one a round) and "faster" (the median over the rounds of the first row's time by this one's).

    Raises:
        DvpdError: An engine or a plan cannot be used.
    """
    # What is in it does not change what the networks cost.
    wav = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE))
    wav = wav.astype(np.float32)
    with Enhancer.open(folder, backend, "cpu", threads) as opened:
        in_turn = Enhancer(opened.manifest, InTurn(opened.backend), find_plan(IN_TURN))
        cases = [(IN_TURN, "in turn", in_turn)]
        for name in plans:
            enhancer = Enhancer(opened.manifest, opened.backend, find_plan(name))
            cases.append((name, "side by side", enhancer))
        times: list[list[float]] = [[] for _ in cases]
        for number in range(-1, rounds):  # the first warms up
            for i, (name, how, enhancer) in enumerate(cases):
                plan = enhancer.window_plan
                part = wav[: 2 * plan.window_samples] if number < 0 else wav
                show_status(f"{folder.name}: {name}, {how}: round {number + 1} of {rounds}")
                started = time.perf_counter()
                enhancer.enhance(part, SAMPLE_RATE, steps=steps)
                if number >= 0:
                    times[i].append(time.perf_counter() - started)
    rows: list[dict[str, Any]] = []
    for (name, how, enhancer), own in zip(cases, times, strict=True):
        plan = enhancer.window_plan
        ratios = [first / this for first, this in zip(times[0], own, strict=True)]
        frames = plan.window_samples / plan.step_samples
        rows.append(
            {"engine": folder.name, "plan": name, "windows": how, "frames": frames, "seconds": own,
             "faster": float(np.median(ratios))}
        )  # fmt: skip
    return rows


def time_table(rows: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """Times of ``time_cuts`` for a reader."""
    lines = []
    for row in rows:
        middle = float(np.median(row["seconds"]))
        lines.append(
            [row["engine"], row["plan"], row["windows"], f"{row['frames']:.2f}", f"{middle:.2f}",
             f"{seconds / middle:.2f}", f"{row['faster']:.2f}"]
        )  # fmt: skip
    header = [
        "engine",
        "cut into",
        "windows",
        "frames a frame",
        "time, s",
        "audio s a s",
        "times as fast",
    ]
    return tables.markdown(header, lines)


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
        plans: See ``find_plan``.

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
                enhancer = Enhancer(opened.manifest, opened.backend, find_plan(name))
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
    parser.add_argument("--set", dest="sets", action="append", type=Path,
                        help="folder with noisy/ and clean/; may be given again")  # fmt: skip
    parser.add_argument("--plan", dest="plans", action="append", metavar="PLAN",
                        help="a name, or frames of a window, of the context and of the reminder as in "
                        f"1024/64/128; may be given again (default: {', '.join(PLANS)}; with --time "
                        f"{IN_TURN})")  # fmt: skip
    parser.add_argument("--time", type=command.number(above=True), metavar="S",
                        help="time a recording of so many seconds, measure no quality")  # fmt: skip
    parser.add_argument("--rounds", type=command.whole(1), default=5, help="of --time (default: 5)")
    parser.add_argument("--threads", type=command.whole(1), metavar="N", help="with --time")
    parser.add_argument(
        "--steps", type=command.whole(0), metavar="N", help="with --time (default: the model's)"
    )
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
    if (args.time is None) == (not args.sets):
        raise InputError("give --set for the quality, or --time for the speed")
    for name in args.plans or ():
        find_plan(name)
    rows = []
    for folder in args.engines or [default_engine()]:
        if args.time is None:
            rows += run(folder, args.sets, args.limit, args.backend, args.plans or tuple(PLANS))
        else:
            rows += time_cuts(folder, args.time, args.rounds, args.backend, args.threads,
                              args.plans or (IN_TURN,), args.steps)  # fmt: skip
    text = table(rows) if args.time is None else time_table(rows, args.time)
    print(text)
    if args.markdown:
        write_whole(args.markdown, text + "\n")
    if args.json:
        for row in rows:  # JSON has no NaN
            for figures in row.get("files", {}).values():
                figures.update({k: None for k, v in figures.items() if not np.isfinite(v)})
        report = {"format": FORMAT, "created": machine.now(), "machine": machine.machine(),
                  "versions": machine.versions(), "rows": rows}  # fmt: skip
        write_whole(args.json, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command.leave(main())
