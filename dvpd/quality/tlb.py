"""The search for TLB factors: what a candidate scores, and which one comes next.

The search is a function of its seed and of the figures that it sees. Figures go to a journal as they
come: a run that was ended is run again, reads what it knows, and goes on from there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.arrays import FloatArray
from ..runtime.enhancer import Enhancer
from ..runtime.errors import InputError
from ..runtime.spec import SAMPLE_RATE, TlbFactors
from .metrics import Meter
from .models import SharedBackend
from .pairs import PairFile, read_pair

Point = tuple[float, ...]  # the eight factors: skip, then backbone, each level by level
Figures = dict[str, dict[str, float]]  # recording -> measure -> figure

NAMES = tuple(
    f"{kind} {level} {band}"
    for kind in ("skip", "backbone")
    for level in ("outer", "deep")
    for band in ("low", "high")
)
ONES: Point = (1.0,) * len(NAMES)
LOW, HIGH = 0.25, 4.5  # the paper's presets lie in 0.5 to 4.1
SPREAD = 0.4  # standard deviation of the logarithm of random factors
RATIOS = (1.5, 1.2, 1.08)  # by which a coordinate moves, one pass after another
CONSTRAINTS = ("pesq", "estoi", "dnsmos_sig", "dnsmos_ovrl")
# What counts as one unit when several constraints are broken by different measures.
UNITS = {"estoi": 0.01}


def factors_of(point: Point) -> TlbFactors:
    """The factors that a point stands for."""
    a, b, c, d, e, f, g, h = point
    return TlbFactors(skip=((a, b), (c, d)), backbone=((e, f), (g, h)))


def point_of(factors: TlbFactors) -> Point:
    """The other direction of `factors_of`."""
    return (*factors.skip[0], *factors.skip[1], *factors.backbone[0], *factors.backbone[1])


def halves(pairs: Sequence[PairFile], seed: int) -> tuple[list[PairFile], list[PairFile]]:
    """A random half of the pairs, on which factors are chosen, and the other one, in their order."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    first = {int(i) for i in order[: len(pairs) // 2]}
    return [p for i, p in enumerate(pairs) if i in first], [
        p for i, p in enumerate(pairs) if i not in first
    ]


class Journal:
    """Figures of every candidate, on disk as they come.

    Attributes:
        known: (half, point) -> figures.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Read what is there, or begin.

        Args:
            path: A file of JSON lines; its first says by which settings the figures came.
            settings: Those of this run.

        Raises:
            InputError: The file cannot be used, or it is of another search.
        """
        self.path = path
        self.known: dict[tuple[str, Point], Figures] = {}
        wanted = json.loads(json.dumps(settings))
        try:
            whole = path.read_bytes() if path.exists() else b""
            end = whole.rfind(b"\n") + 1  # a killed run may leave half a line
            lines = [json.loads(line) for line in whole[:end].decode().splitlines()]
            if lines and lines[0] != wanted:
                other = sorted(k for k in {*lines[0], *wanted} if lines[0].get(k) != wanted.get(k))
                raise InputError(
                    f"{path} is of a search with another {', '.join(other)}; give another --out, or "
                    "the same settings to go on with it"
                )
            for line in lines[1:]:
                self._keep(line["half"], tuple(line["factors"]), line["figures"])
            self._file = path.open("r+b" if whole else "wb")
            self._file.truncate(end)
            self._file.seek(end)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} is no journal of a search that could be used: {error}"
            ) from None
        if not lines:
            self._write(wanted)

    def _keep(self, half: str, point: Point, figures: Figures) -> None:
        self.known.setdefault((half, point), {}).update(figures)

    def add(self, half: str, point: Point, figures: Figures) -> None:
        """Keep a candidate's figures of some recordings, beside those of others."""
        self._keep(half, point, figures)
        self._write({"half": half, "factors": point, "figures": figures})

    def _write(self, line: Any) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Bench:
    """Recordings whose predictive outputs are kept: a candidate costs its score calls alone."""

    def __init__(
        self, enhancer: Enhancer, meter: Meter, pairs: Sequence[PairFile], steps: int, seed: int
    ) -> None:
        """Read the recordings; predictions come with the first candidate.

        Args:
            enhancer: The model; its backend is used, and not closed.
            meter: The measures.
            pairs: The recordings.
            steps: Calls of the score network.
            seed: Seed of the sampler's noise.

        Raises:
            InputError: A recording cannot be used.
        """
        inner = enhancer.backend
        inner = inner.inner if isinstance(inner, SharedBackend) else inner
        keeping = SharedBackend(inner, predictions=1 << 30, scores=0)
        self.enhancer = Enhancer(enhancer.manifest, keeping, enhancer.window_plan)
        self.meter, self.steps, self.seed = meter, steps, seed
        self.pairs = [(pair, *read_pair(pair)) for pair in pairs]

    def __call__(self, point: Point, names: Iterable[str]) -> Figures:
        """Measure a candidate on the recordings of these names.

        Raises:
            DvpdError: The model fails.
        """
        found: Figures = {}
        wanted = set(names)
        for pair, noisy, clean in self.pairs:
            if pair.name not in wanted:
                continue
            wav: FloatArray = self.enhancer.enhance(
                noisy, SAMPLE_RATE, steps=self.steps, tlb=factors_of(point), seed=self.seed
            ).wav
            found[pair.name] = self.meter(clean, wav, noisy, pair.speech)
        return found


def column(figures: Figures, names: Iterable[str], measure: str) -> list[float]:
    """A measure of some recordings, in their order."""
    return [figures[name][measure] for name in names]


@dataclass(frozen=True)
class Aim:
    """What is looked for.

    Attributes:
        objective: The measure that is to grow.
        constraints: Measures that must not fall below what they are without TLB, in the mean.
    """

    objective: str
    constraints: tuple[str, ...]

    @classmethod
    def of(cls, objective: str, metrics: Sequence[str]) -> Aim:
        """``objective``, with the others of ``CONSTRAINTS`` that are measured."""
        return cls(objective, tuple(m for m in CONSTRAINTS if m in metrics and m != objective))

    def gains(self, figures: Figures, without: Figures) -> dict[str, float]:
        """Mean gain of each measure over the same recordings without TLB, where both are defined."""
        found = {}
        for measure in (self.objective, *self.constraints):
            a = np.array(column(figures, without, measure))
            b = np.array(column(without, without, measure))
            good = np.isfinite(a) & np.isfinite(b)
            found[measure] = float((a - b)[good].mean()) if good.any() else 0.0
        return found

    def score(self, figures: Figures, without: Figures) -> float:
        """The objective's gain; below any gain where a constraint is broken, by how much it is."""
        gains = self.gains(figures, without)
        broken = sum(max(0.0, -gains[m]) / UNITS.get(m, 0.1) for m in self.constraints)
        return -1e3 - broken if broken else gains[self.objective]


Tier = tuple[float, float]  # PESQ without TLB, [from, to)
TIERS: tuple[Tier, ...] = ((-math.inf, 2.0), (2.0, 3.0), (3.0, math.inf))  # the paper's Table 5


def tier_name(tier: Tier) -> str:
    """How a tier is called."""
    low, high = tier
    if low == -math.inf:
        return f"PESQ below {high:g}"
    return f"PESQ from {low:g}" + ("" if high == math.inf else f" to {high:g}")


def in_tier(tier: Tier, without: Figures) -> list[str]:
    """Recordings whose PESQ without TLB lies in a tier; none of those for which it is not defined."""
    return [name for name, found in without.items() if tier[0] <= found["pesq"] < tier[1]]


def parts_of(point: Point) -> dict[str, Point]:
    """What to leave of a point, as in the paper's Tables 10 and 11: name -> the others are ones."""
    part = {
        "outer level alone": (0, 1, 4, 5), "deep level alone": (2, 3, 6, 7),
        "skip alone": (0, 1, 2, 3), "backbone alone": (4, 5, 6, 7),
    }  # fmt: skip
    kept = {
        name: tuple(value if i in those else 1.0 for i, value in enumerate(point))
        for name, those in part.items()
    }
    return kept | {"all": point}


@dataclass
class State:
    """Where a search stands; what its caller sees after each candidate."""

    done: int = 0
    best: Point = ONES
    score: float = -math.inf


def _moved(point: Point, index: int, ratio: float) -> Point:
    value = round(min(max(point[index] * ratio, LOW), HIGH), 3)
    return (*point[:index], value, *point[index + 1 :])


def search(
    score: Callable[[Point], float | None],
    *,
    first: Sequence[Point] = (),
    n_random: int = 24,
    seed: int = 0,
    show: Callable[[State], None] = lambda _: None,
) -> State:
    """Random search, then one coordinate after another from the best point, in smaller and smaller steps.

    Args:
        score: Scores a point, more is better; None ends the search.
        first: Points to begin with, besides all ones.
        n_random: Random points.
        seed: Of the random points and of the order of the coordinates.
        show: Called after each new point.

    Returns:
        Where it ended.
    """
    rng = np.random.default_rng(seed)
    state, seen = State(), set[Point]()
    drawn = np.exp(SPREAD * rng.standard_normal((n_random, len(NAMES)))).clip(LOW, HIGH).round(3)

    def look(point: Point) -> bool:
        """Whether the search goes on."""
        if point in seen:
            return True
        value = score(point)
        if value is None:
            return False
        seen.add(point)
        state.done += 1
        if value > state.score:
            state.best, state.score = point, value
        show(replace(state))
        return True

    for point in (ONES, *first, *(tuple(row) for row in drawn.tolist())):
        if not look(point):
            return state
    for ratio in RATIOS:
        before = None
        while before != state.best:  # until no coordinate helps any more
            before = state.best
            for index in rng.permutation(len(NAMES)):
                for way in (ratio, 1.0 / ratio):
                    if not look(_moved(state.best, int(index), way)):
                        return state
    return state
