"""Does disagreement between the two branches show where an output is bad? Against simple rivals.

    python benchmarks/confidence.py engines/dvpd-tiny --set DEV/noise --set DEV/universal --set DEV/pauses
    python benchmarks/confidence.py engines/dvpd-tiny engines/dvpd-base --set DEV/pauses --json roc.json

Each quarter of a second gets some candidates for a warning, and is bad or not by the clean side. A
candidate's sign is chosen on a random half of the recordings; its area under the ROC curve (0.5:
chance) is that of the other half, with an interval over recordings. Rivals need no second branch.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import machine, tables
from dvpd.quality.pairs import find_pairs, read_pair, spread_sample
from dvpd.runtime import command
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.backends.base import Backend
from dvpd.runtime.engines import default_engine
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.noise import frame_noise
from dvpd.runtime.progress import show_status
from dvpd.runtime.sampler import sample
from dvpd.runtime.spec import TlbFactors
from dvpd.runtime.stft import compress, stft
from dvpd.runtime.window import encode
from dvpd.runtime.windows import WindowPlan

FORMAT = "dvpd-confidence-1"
FRAMES = 32  # of a stretch: 0.256 s
SPEECH_SHARE = 0.25  # of a recording's stretches, the loudest: their level is that of its speech
SILENT_DB, HEARD_DB, ACTIVE_DB, AUDIBLE_DB = -40.0, -40.0, -20.0, -40.0  # below that level
FLOOR_DB = -60.0  # of a bin, likewise
WORST = 0.1
LEAST = 5  # stretches of a kind, for an area
RESAMPLES = 200
Table = dict[str, NDArray[np.float64]]  # name -> one figure a stretch


class _Heard:
    """A backend whose predictive branch was run before."""

    def __init__(self, backend: Backend, noisy: FloatArray) -> None:
        self.name, self.device, self.score = backend.name, backend.device, backend.score
        self.close = backend.close
        self._known = backend.predict(noisy)
        self.clean_ri = self._known[0]

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """What it said."""
        return self._known


def branches(
    backend: Backend, manifest: Manifest, wav: FloatArray, steps: int
) -> dict[str, FloatArray]:
    """Compressed magnitudes [T, F] of one window.

    Args:
        backend: The engine.
        manifest: Its manifest.
        wav: [L], scaled to at most 1.
        steps: Of the sampler, 1 or more.

    Returns:
        "noisy", "predictive", "generative", and "again": the same with another seed.
    """
    noisy, n_frames = encode(wav[None], manifest.signal)
    heard = _Heard(backend, noisy)
    found = {"noisy": noisy[0, 2], "predictive": np.hypot(*heard.clean_ri[0])}
    sde, sampler = manifest.sde, manifest.sampler
    for seed, name in enumerate(("generative", "again")):
        clean_ri = sample(
            heard,
            noisy,
            start=sampler.start(sde),
            steps=sampler.steps(sde, steps),
            alpha=0.0,
            tlb=TlbFactors(),
            draw=functools.partial(_draw, seed, noisy.shape[2]),
        )
        found[name] = np.hypot(*clean_ri[0])
    return {name: magnitude[:n_frames] for name, magnitude in found.items()}


def _draw(seed: int, n_frames: int, index: int) -> FloatArray:
    return frame_noise(seed, index, 0, n_frames)


def _db(power: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(10.0 * np.log10(np.maximum(power, 1e-12)), np.float64)


def describe(found: Mapping[str, FloatArray], clean: FloatArray, manifest: Manifest) -> Table:
    """Candidates for a warning, and the truth, of one recording's stretches.

    Args:
        found: Of ``branches``.
        clean: Compressed magnitude [T, F] of the clean side.
        manifest: Gives the compression and the weight of the predictive branch.

    Returns:
        Candidates ("D ...": from the branches, "R ...": rivals); "clean" and "output": levels (dB)
        against that of speech; "sdr" (dB) and "lsd" (dB), the errors of the output's magnitude.
    """
    signal, alpha = manifest.signal, manifest.sampler.alpha
    both = {**found, "clean": clean}
    both["output"] = alpha * found["predictive"] + (1.0 - alpha) * found["generative"]
    n = len(clean) // FRAMES * FRAMES
    cut = {
        k: np.asarray(v[:n], np.float64).reshape(-1, FRAMES * v.shape[1]) for k, v in both.items()
    }
    factor, exponent = signal.compress_factor, 1.0 / signal.compress_exponent
    linear = {name: (x / factor) ** exponent for name, x in cut.items()}
    power = {name: np.square(x).sum(axis=1) for name, x in linear.items()}
    loudest = np.sort(power["clean"])[-max(1, round(len(power["clean"]) * SPEECH_SHARE)) :]
    speech = float(_db(loudest.mean()))
    floor = 10.0 ** ((speech + FLOOR_DB) / 20.0) / np.sqrt(FRAMES)

    def ratio(a: str, b: str) -> NDArray[np.float64]:
        return np.asarray(np.abs(20.0 * np.log10((linear[a] + floor) / (linear[b] + floor))))

    scale = np.maximum(cut["predictive"].sum(axis=1), 1e-3)
    weight = np.square(linear["output"])
    return {
        "D log-spectral, by energy": (ratio("generative", "predictive") * weight).sum(axis=1)
        / np.maximum(weight.sum(axis=1), 1e-12),
        "D log-spectral": ratio("generative", "predictive").mean(axis=1),
        "D compressed": np.abs(cut["generative"] - cut["predictive"]).sum(axis=1) / scale,
        "D level": _db(power["generative"]) - _db(power["predictive"]),
        "D two seeds": np.abs(cut["generative"] - cut["again"]).sum(axis=1) / scale,
        "R input level": _db(power["noisy"]),
        "R output level": _db(power["output"]),
        "R predictive level": _db(power["predictive"]),
        "R gain": _db(power["output"]) - _db(power["noisy"]),
        "clean": _db(power["clean"]) - speech,
        "output": _db(power["output"]) - speech,
        "sdr": _db(power["clean"]) - _db(np.square(linear["clean"] - linear["output"]).sum(axis=1)),
        "lsd": ratio("output", "clean").mean(axis=1),
    }


def truths(
    recordings: Sequence[Table],
) -> Iterator[tuple[str, Callable[[Table], tuple[NDArray[np.bool_], NDArray[np.bool_]]]]]:
    """Ways to be bad: name, and (stretches that count, those that are bad) of a recording."""

    def active(table: Table) -> NDArray[np.bool_]:
        return table["clean"] > ACTIVE_DB

    def audible(table: Table) -> NDArray[np.bool_]:
        return np.maximum(table["clean"], table["output"]) > AUDIBLE_DB

    sdr = np.quantile(np.concatenate([t["sdr"][active(t)] for t in recordings]), WORST)
    lsd = np.quantile(np.concatenate([t["lsd"][audible(t)] for t in recordings]), 1.0 - WORST)
    heard = "noise alone is heard, of what is heard"
    yield heard, lambda t: (t["output"] > HEARD_DB, t["clean"] < SILENT_DB)
    yield f"SDR under {sdr:.1f} dB, of speech", lambda t: (active(t), t["sdr"] < sdr)
    far = f"log-spectral error over {lsd:.1f} dB, of what is heard"
    yield far, lambda t: (audible(t), t["lsd"] > lsd)


def area(score: NDArray[np.floating], bad: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a bad stretch has the higher score than a good one.

    Args:
        score: [n].
        bad: [n].

    Returns:
        0 to 1, ties count half; NaN with fewer than ``LEAST`` of a kind.
    """
    n_bad, n_good = int(bad.sum()), int((~bad).sum())
    if min(n_bad, n_good) < LEAST:
        return float("nan")
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2.0)[place]
    return float((rank[bad].sum() - n_bad * (n_bad + 1) / 2.0) / (n_bad * n_good))


def judge(recordings: Sequence[Table], seed: int = 0) -> list[dict[str, Any]]:
    """Areas of all candidates under all truths.

    Args:
        recordings: Of ``describe``.
        seed: Of the halves and of the intervals.

    Returns:
        Rows with "truth", "bad" and "of" (stretches of the other half), "candidate", "chosen" and
        "held_out" (areas), "low" and "high" (95 %, over recordings).
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(recordings))
    halves = [[recordings[i] for i in order[first::2]] for first in (0, 1)]
    rows = []
    for name, truth in truths(recordings):

        def areas(tables: Sequence[Table], candidate: str, truth: Any = truth) -> float:
            parts = [(t[candidate], *truth(t)) for t in tables]
            score, bad = (np.concatenate([part[i][part[1]] for part in parts]) for i in (0, 2))
            return area(score, bad)

        kinds = [truth(table) for table in halves[1]]
        for candidate in (key for key in recordings[0] if key[:2] in ("D ", "R ")):
            chosen, other = (areas(half, candidate) for half in halves)
            draws = [rng.choice(len(halves[1]), len(halves[1])) for _ in range(RESAMPLES)]
            spread = np.array([areas([halves[1][i] for i in d], candidate) for d in draws])
            flip = chosen < 0.5  # the sign is chosen, too
            chosen, other = (1.0 - x if flip else x for x in (chosen, other))
            spread = 1.0 - spread if flip else spread
            spread = spread[np.isfinite(spread)]
            low, high = np.quantile(spread, (0.025, 0.975)) if len(spread) else (np.nan, np.nan)
            rows.append(
                {
                    "truth": name,
                    "bad": int(sum((counts & bad).sum() for counts, bad in kinds)),
                    "of": int(sum(counts.sum() for counts, _ in kinds)),
                    "candidate": candidate,
                    "chosen": chosen,
                    "held_out": other,
                    "low": float(low),
                    "high": float(high),
                }
            )
    return rows


def run(
    folder: Path, sets: Sequence[Path], limit: int, backend: str, steps: int
) -> list[dict[str, Any]]:
    """``judge`` of an engine on pairs of recordings.

    Args:
        folder: The engine.
        sets: Folders with noisy/ and clean/.
        limit: Evenly spaced pairs of each; 0 for all.
        backend: As for ``Enhancer.open``.
        steps: Of the sampler.

    Raises:
        DvpdError: An engine or a set cannot be used.
    """
    found_: list[Table] = []
    longest = WindowPlan().window_samples
    with Enhancer.open(folder, backend) as enhancer:
        manifest = enhancer.manifest
        for path in sets:
            for pair in spread_sample(find_pairs(path), limit):
                show_status(f"{folder.name}, {steps} steps: {pair.name}")
                noisy, clean = read_pair(pair)
                if clean is None:
                    continue
                peak = max(float(np.abs(noisy).max()), 1e-9)
                parts = []
                for first in range(0, len(noisy), longest):
                    wav = (noisy[first : first + longest] / peak).astype(np.float32)
                    parts.append(branches(enhancer.backend, manifest, wav, steps))
                both = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
                target = [
                    compress(stft(clean[first : first + longest] / peak, manifest.signal),
                             manifest.signal)[2]
                    for first in range(0, len(clean), longest)
                ]  # fmt: skip
                found_.append(describe(both, np.concatenate(target), manifest))
    return [{"engine": folder.name, "steps": steps, **row} for row in judge(found_)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Results as Markdown.

    Args:
        rows: Of ``run``.
    """
    header = ["engine", "steps", "bad is", "bad stretches", "candidate", "chosen on", "held out"]
    return tables.markdown(
        header,
        [
            [
                row["engine"],
                str(row["steps"]),
                row["truth"],
                f"{row['bad']} of {row['of']}",
                row["candidate"],
                f"{row['chosen']:.2f}",
                f"{row['held_out']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            ]
            for row in rows
        ],
    )


def write_json(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write results with their machine; NaN becomes null.

    Args:
        path: The file.
        rows: Of ``run``.
    """
    plain = [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]
    report = {"format": FORMAT, "created": machine.now(), "machine": machine.machine(),
              "versions": machine.versions(), "rows": plain}  # fmt: skip
    write_whole(path, json.dumps(report, indent=1) + "\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="confidence.py", description=__doc__.split("\n")[0])
    parser.add_argument("engines", nargs="*", type=Path, help="default: the default engine")
    parser.add_argument("--set", dest="sets", action="append", type=Path, required=True,
                        help="folder with noisy/ and clean/; may be given again")  # fmt: skip
    parser.add_argument("--steps", action="append", type=command.whole(1),
                        help="of the sampler; may be given again (default: 1 and 3)")  # fmt: skip
    parser.add_argument(
        "--limit", type=command.whole(0), default=0, help="evenly spaced pairs of each set"
    )
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", type=Path, metavar="OUT")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _main)


def _main(args: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    for folder in args.engines or [default_engine()]:
        for steps in args.steps or (1, 3):
            rows += run(folder, args.sets, args.limit, args.backend, steps)
            if args.json:  # after each: the next one takes long
                write_json(args.json, rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    command.leave(main())
