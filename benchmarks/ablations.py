"""The paper's ablations (appendix F), each trained alike for a short budget.

    python benchmarks/ablations.py dvpd/configs/tiny.toml --data DATA --set DEV/noise --out runs/ablations

One run for each variant and seed: the same steps, crops and noise, so the same audio; what a variant
costs in time is a figure of its own. A run that is finished is not repeated: call it again after an
interruption, or with more seeds. ``degraded-phase`` and ``predictive-alone`` (DVPD-P) are the
reference's own weights, heard otherwise. Differences are to the reference of the same seed, with a
95 % interval over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import machine, tables
from dvpd.config import load_toml, override
from dvpd.quality.pairs import find_pairs
from dvpd.runtime import command
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.errors import InputError, UsageError
from dvpd.runtime.files import write_whole

FORMAT = "dvpd-ablations-1"
REFERENCE = "reference"
# Variant -> settings of dvpd.train; all else is the reference's.
VARIANTS: dict[str, tuple[str, ...]] = {
    REFERENCE: (),
    "no-fanc": ('model.encoder="uniform"',),
    "no-fi-gate": ("model.fi_gate=false",),
    "no-lisa": ('model.local="dual_path"',),
    "no-phase-loss": ("train.phase_weight=0.0",),
    "ouve": ('sde.name="ouve"',),
    "ssd": ('model.scan="ssd"',),
}
DERIVED = ("predictive-alone", "degraded-phase")  # other outputs of the reference
METRICS = ("pesq", "estoi", "si_sdr")
TITLES = {"pesq": "PESQ", "estoi": "ESTOI", "si_sdr": "SI-SDR, dB"}


class NoisyPhase:
    """A backend whose prediction keeps its magnitude and takes the phase of the noisy input."""

    def __init__(self, inner: Any) -> None:
        """Wrap a backend."""
        self.inner = inner
        self.name, self.device = inner.name, inner.device

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """See ``Backend.predict``."""
        clean_ri, feats = self.inner.predict(noisy)
        magnitude = np.hypot(clean_ri[:, :1], clean_ri[:, 1:])  # [B, 1, T, F]
        there = np.maximum(np.hypot(noisy[:, :1], noisy[:, 1:2]), np.float32(1e-20))
        return magnitude * noisy[:, :2] / there, feats

    def score(self, *arrays: Any) -> FloatArray:
        """See ``Backend.score``."""
        result: FloatArray = self.inner.score(*arrays)
        return result

    def close(self) -> None:
        """Release the inner backend."""
        self.inner.close()


def train_run(args: argparse.Namespace, variant: str, seed: int) -> Path:
    """Train one variant for the budget, or go on with it; returns its checkpoint.

    Raises:
        InputError: Training failed; its own message is on stderr.
    """
    from dvpd.train import main as train

    out = args.out / f"{variant}-{seed}"
    words = [
        str(args.config), "--data", str(args.data), "--out", str(out),
        "--cache", str(args.cache or args.out / "cache"), "--threads", str(args.threads),
    ]  # fmt: skip
    settings = [*args.settings, f"train.steps={args.steps}", f"train.seed={seed}"]
    settings += ['train.branches="both"', "train.minutes=0.0", *VARIANTS[variant]]
    for setting in settings:
        words += ["--set", setting]
    if (out / "state.pt").exists():
        words.append("--resume")
    code = train(words)
    if code > command.EXIT_SIGNAL:
        raise KeyboardInterrupt
    if code:
        raise InputError(f"training of {variant}, seed {seed}, failed; see above")
    path: Path = out / "last.safetensors"
    return path


def measure(
    checkpoint: Path, folder: Path, limit: int, alpha: float, *, derived: bool
) -> dict[str, dict[str, float]]:
    """Mean figures of one checkpoint by system.

    Args:
        checkpoint: Weights with their config.
        folder: Test set.
        limit: Evenly spaced pairs of it; 0 for all.
        alpha: Weight of the predictive magnitude in the full sampler.
        derived: Whether the degraded phase is heard, too.

    Raises:
        DvpdError: The set or the checkpoint cannot be used.
    """
    from dvpd.quality.metrics import Meter
    from dvpd.quality.models import enhance_systems, open_model, sampler_grid
    from dvpd.quality.pairs import read_pair, spread_sample
    from dvpd.runtime.enhancer import Enhancer

    meter = Meter(METRICS)
    figures: dict[str, list[dict[str, float]]] = {}
    with open_model(checkpoint, threads=1) as enhancer:
        systems = sampler_grid(enhancer.manifest, alphas=(alpha,))
        other = Enhancer(enhancer.manifest, NoisyPhase(enhancer.backend), enhancer.window_plan)
        for pair in spread_sample(find_pairs(folder), limit):
            noisy, clean = read_pair(pair)
            heard = enhance_systems(enhancer, noisy, systems)
            if derived:
                heard["degraded-phase"] = enhance_systems(other, noisy, systems)["full"]
            for name, wav in heard.items():
                figures.setdefault(name, []).append(meter(clean, wav))
    return {
        name: {m: statistics.fmean(row[m] for row in rows) for m in METRICS}
        for name, rows in figures.items()
    }


def run_one(args: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Train and measure one variant, or read what was measured before.

    Raises:
        DvpdError: Training or measuring failed.
    """
    budget = {
        "steps": args.steps, "settings": list(args.settings), "config": Path(args.config).name,
        "set": Path(args.set).absolute().name, "limit": args.limit, "alpha": args.alpha,
    }  # fmt: skip
    path = args.out / f"{variant}-{seed}" / "figures.json"
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if known["budget"] != budget:
            raise InputError(
                f"{path} is of another budget: {known['budget']}; choose another --out"
            )
        return known
    from dvpd.checkpoint import read_checkpoint

    checkpoint = train_run(args, variant, seed)
    _, _, extra = read_checkpoint(checkpoint)
    if int(extra["step"]) < args.steps:
        raise KeyboardInterrupt  # stopped by a signal: its state is saved
    figures = measure(checkpoint, args.set, args.limit, args.alpha, derived=variant == REFERENCE)
    result = {
        "variant": variant, "seed": seed, "budget": budget, "figures": figures,
        "minutes": float(extra["minutes"]), "audio_hours": float(extra["audio_hours"]),
    }  # fmt: skip
    write_whole(path, json.dumps(result, indent=1) + "\n")
    return result


def rows_of(runs: Sequence[dict[str, Any]], system: str = "full") -> list[dict[str, Any]]:
    """One row a variant: mean of its figures over seeds, and of the differences to the reference.

    Two or three seeds tell little of how far seeds lie apart; all variants together tell more. So
    the variance of a difference is pooled over the variants, as in an analysis of variance, and
    "change_half" is half the 95 % interval by Student's t; NaN where no variant has two seeds.

    Args:
        runs: From ``run_one``; those of a seed without its reference are left out.
        system: "full", or "predictive" for that branch alone.
    """
    from scipy import stats

    heard: dict[str, dict[int, dict[str, float]]] = {}
    for run in runs:
        figures = run["figures"]
        heard.setdefault(run["variant"], {})[run["seed"]] = figures[system]
        if run["variant"] == REFERENCE and system == "full":
            heard.setdefault("predictive-alone", {})[run["seed"]] = figures["predictive"]
            heard.setdefault("degraded-phase", {})[run["seed"]] = figures["degraded-phase"]
    base = heard.get(REFERENCE, {})
    rows = []
    for variant in (*VARIANTS, *DERIVED):
        seeds = sorted(set(heard.get(variant, {})) & set(base))
        if not seeds:
            continue
        row: dict[str, Any] = {"variant": variant, "seeds": seeds}
        for m in METRICS:
            values = [heard[variant][s][m] for s in seeds]
            changes = [heard[variant][s][m] - base[s][m] for s in seeds]
            row[m] = {
                "mean": statistics.fmean(values),
                "range": max(values) - min(values),
                "change": statistics.fmean(changes),
                "squares": float(np.square(np.subtract(changes, np.mean(changes))).sum()),
            }
        row["minutes"] = statistics.fmean(
            [r["minutes"] for r in runs if r["variant"] == variant] or [float("nan")]
        )
        rows.append(row)
    pooled = [row for row in rows if row["variant"] in VARIANTS and row["variant"] != REFERENCE]
    freedom = sum(len(row["seeds"]) - 1 for row in pooled)
    for m in METRICS:
        variance = sum(row[m]["squares"] for row in pooled) / freedom if freedom else math.nan
        wide = float(stats.t.ppf(0.975, freedom)) if freedom else math.nan
        for row in rows:
            row[m]["change_half"] = wide * math.sqrt(variance / len(row["seeds"]))
    return rows


def _change(part: dict[str, float], digits: int, own: bool) -> str:
    change, half = part["change"], part["change_half"]
    text = f"{change:+.{digits}f}"
    if not own or not math.isfinite(half):  # seeds of what is derived vary less, or otherwise
        return text
    return f"{text} ± {half:.{digits}f}" + (" *" if abs(change) > half else "")


def to_markdown(runs: Sequence[dict[str, Any]]) -> str:
    """The tables of both systems, with their budget below.

    Args:
        runs: From ``run_one``.
    """
    heads = [h for m in METRICS for h in (TITLES[m], "change")]
    parts = []
    for system, title in (("predictive", "Predictive branch alone"), ("full", "Full sampler")):
        lines = []
        for row in rows_of(runs, system):
            cells = [row["variant"], len(row["seeds"])]
            for m in METRICS:
                digits = 1 if m == "si_sdr" else 3
                f = row[m]
                cells.append(f"{f['mean']:.{digits}f}")
                own = row["variant"] in VARIANTS
                cells.append("" if row["variant"] == REFERENCE else _change(f, digits, own))
            lines.append([*cells, f"{row['minutes']:.1f}" if own else ""])
        parts += [f"{title}:", tables.markdown(["variant", "seeds", *heads, "minutes"], lines)]
    budget, run = runs[0]["budget"], runs[0]
    noisy = run["figures"]["noisy"]
    parts.append(
        f"{budget['steps']} steps a run ({run['audio_hours']:.2f} h of audio), {budget['config']}, "
        f"alpha {budget['alpha']:g}, {budget['set']}"
        f"{' (' + str(budget['limit']) + ' pairs)' if budget['limit'] else ''}; noisy: "
        + ", ".join(f"{TITLES[m]} {noisy[m]:.3f}" for m in METRICS)
        + ". Changes are to the reference of the same seed, with a 95 % interval over seeds (Student's "
        "t, one variance for all variants); * where it leaves out zero. Minutes are those of a shared "
        "machine."
    )
    return "\n\n".join(parts)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="ablations.py", description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path, help="TOML file of the reference")
    parser.add_argument("--data", type=Path, required=True, help="as for dvpd.train")
    parser.add_argument("--set", type=Path, required=True, help="folder with noisy/ and clean/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--cache", type=Path, help="folder for decoded audio (OUT/cache)")
    parser.add_argument("--steps", type=int, default=400, help="of each run (400)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each variant (2)")
    parser.add_argument("--limit", type=int, default=30, help="pairs measured (30; 0 for all)")
    parser.add_argument("--alpha", type=float, default=0.4, help="fusion weight (the paper's 0.4)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}"
    )  # fmt: skip
    parser.add_argument(
        "--override", action="append", default=[], metavar="T.K=V", dest="settings",
        help="setting of dvpd.train for all runs",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="OUT")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    names = args.variants.split(",")
    if unknown := sorted(set(names) - set(VARIANTS)):
        raise UsageError(f"variant is {unknown[0]!r}; expected one of {', '.join(VARIANTS)}")
    if REFERENCE not in names:
        names.insert(0, REFERENCE)
    for name, least in (("steps", 1), ("seeds", 1), ("limit", 0)):
        if getattr(args, name) < least:
            raise UsageError(f"{name} is {getattr(args, name)}; expected at least {least}")
    if not 0.0 <= args.alpha <= 1.0:
        raise UsageError(f"alpha is {args.alpha}; expected 0 to 1")
    if args.json and not args.json.absolute().parent.is_dir():
        raise InputError(f"{args.json}: its folder does not exist")
    config = load_toml(args.config)
    with command.usage():
        override(config, args.settings)  # what is wrong is said before training
    find_pairs(args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for variant in (v for v in VARIANTS if v in names):
            command.say(f"{variant}, seed {seed}")
            runs.append(run_one(args, variant, seed))
            if args.json:
                result = {
                    "format": FORMAT, "created": machine.now(), "machine": machine.machine(),
                    "versions": machine.versions(), "runs": runs,
                }  # fmt: skip
                write_whole(args.json, json.dumps(result, indent=1) + "\n")
    print(to_markdown(runs))
    return 0


if __name__ == "__main__":
    command.leave(main())
