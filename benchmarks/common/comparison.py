"""Conditions that rows must meet, and two reports compared: what is significantly faster."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dvpd.benchmarks.common import tables
from dvpd.benchmarks.common.report import Report, Row, key, label
from dvpd.runtime.errors import InputError

BOOTSTRAP_DRAWS = 4000
SIGNIFICANCE = 0.05  # for all rows of a comparison together
LEAST_CHANGE = 0.02  # a difference smaller than this is not called one, however significant

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CONDITION = re.compile(rf"\s*(\w+)\s*(<=|>=|<|>)\s*({_NUMBER})\s*(?:@\s*(.*?))?\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_PROCESS_FIELDS = ("cold_start_s", "load_s", "first_window_s", "peak_rss_mib", "gpu_mib")


def _latency(percentile: str) -> Callable[[Row], float]:
    return lambda row: row["latency_ms"][percentile]


_FIELDS: dict[str, Callable[[Row], float]] = {
    **{k: operator.itemgetter(k) for k in ("rtf", "rtf_p95", "audio_s_per_s", *_PROCESS_FIELDS)},
    **{f"{k}_ms": _latency(k) for k in ("p50", "p90", "p95", "p99", "max", "mean")},
}
_FILTERS = ("engine", "backend", "device", "precision", "window_s", "batch", "steps")


@dataclass(frozen=True)
class Condition:
    """One ``--assert``: a field, a comparison, a limit, and the rows that it is about."""

    text: str
    name: str
    comparison: str
    limit: float
    filters: tuple[tuple[str, str], ...]


def parse_condition(text: str) -> Condition:
    """Read "rtf<0.5" or "p99_ms<900 @ backend=ort steps=3".

    Raises:
        InputError: It is not of this form, or names what no row has.
    """
    match = _CONDITION.fullmatch(text)
    if match is None or match[1] not in _FIELDS:
        raise InputError(
            f"condition {text!r}; expected FIELD<NUMBER, with <, <=, > or >=, and perhaps "
            f"'@ KEY=VALUE ...'; fields: {', '.join(_FIELDS)}"
        )
    filters = []
    for part in (match[4] or "").split():
        name, equals, value = part.partition("=")
        if not equals or name not in _FILTERS:
            raise InputError(
                f"condition {text!r}: {part!r} chooses no rows; expected KEY=VALUE with one of "
                f"{', '.join(_FILTERS)}"
            )
        filters.append((name, value))
    return Condition(text, match[1], match[2], float(match[3]), tuple(filters))


def _chosen(row: Row, filters: Sequence[tuple[str, str]]) -> bool:
    for name, value in filters:
        have = row.get(name)
        if isinstance(have, (int, float)):
            try:
                # a window is named by its round length: 2.048 for 2.04 s of samples
                if not math.isclose(have, float(value), abs_tol=0.02):
                    return False
            except ValueError:
                return False
        elif have != value:
            return False
    return True


def check(condition: Condition, report: Report) -> list[str]:
    """Where a condition is not met, one line each; a row that failed meets nothing.

    Args:
        condition: From ``parse_condition``.
        report: The report.
    """
    cold = condition.name in _PROCESS_FIELDS
    rows = [
        r for r in report["processes" if cold else "rows"] if _chosen(r, condition.filters)
    ]  # fmt: skip
    if not rows:
        return [f"{condition.text}: no row was measured that it is about"]
    missed = []
    for row in rows:
        where = label(row) if cold else (
            f"{label(row)}, {row['window_s']} s, batch {row['batch']}, {row['steps']} steps"
        )  # fmt: skip
        if row["status"] == "failed":
            missed.append(f"{condition.text}: {where} failed ({row['error']})")
            continue
        value = _FIELDS[condition.name](row)
        if value is None:
            missed.append(f"{condition.text}: {where} has no such figure on this machine")
        elif not _COMPARE[condition.comparison](value, condition.limit):
            missed.append(f"{condition.text}: {where} has {tables.cell(float(value))}")
    return missed


# ------------------------------------------------------------------------------------------------
# Comparison


@dataclass(frozen=True)
class Change:
    """One case of two reports.

    Attributes:
        name: The case in words.
        before_ms: Median of the first report, None where it has no such case.
        after_ms: Median of the second.
        ratio: After over before.
        low: Lower end of the ratio's bootstrap interval.
        high: Its upper end.
        verdict: "faster", "slower", "no difference shown", or why there is none.
    """

    name: str
    before_ms: float | None
    after_ms: float | None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""


def bootstrap_ratio(
    before: Sequence[float], after: Sequence[float], level: float, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of medians after / before and its percentile-bootstrap interval.

    Args:
        before: Samples.
        after: Samples.
        level: Probability that the interval leaves out, both ends together.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)

    def medians(samples: Sequence[float]) -> Any:
        array = np.asarray(samples)
        return np.median(array[rng.integers(len(array), size=(BOOTSTRAP_DRAWS, len(array)))], 1)

    ratios = medians(after) / medians(before)
    low, high = np.quantile(ratios, (level / 2, 1 - level / 2))
    return float(np.median(after) / np.median(before)), float(low), float(high)


def compare(a: Report, b: Report) -> list[Change]:
    """What differs from report ``a`` to report ``b``, case by case.

    A case is called faster or slower if the interval of the ratio of medians, at 5 % for all cases
    together (Bonferroni), leaves out one, and the ratio differs from one by 2 % or more.
    """
    first, second = ({key(r): r for r in report["rows"]} for report in (a, b))
    both = [k for k in first if k in second]
    level = SIGNIFICANCE / max(len(both), 1)
    changes = []
    for k in dict.fromkeys([*first, *second]):
        x, y = first.get(k), second.get(k)
        row = x or y
        assert row is not None
        name = f"{label(row)}, {row['window_s']} s, batch {row['batch']}, {row['steps']} steps"
        p = x["latency_ms"]["p50"] if x and x["status"] == "ok" else None
        q = y["latency_ms"]["p50"] if y and y["status"] == "ok" else None
        if x is None or y is None:
            side = "first" if y is None else "second"
            changes.append(Change(name, p, q, verdict=f"only in the {side} report"))
        elif p is None or q is None:
            side = "first" if p is None else "second"
            changes.append(Change(name, p, q, verdict=f"failed in the {side} report"))
        else:
            ratio, low, high = bootstrap_ratio(x["samples_ms"], y["samples_ms"], level)
            verdict = "no difference shown"
            if high < 1 and ratio <= 1 - LEAST_CHANGE:
                verdict = "faster"
            elif low > 1 and ratio >= 1 + LEAST_CHANGE:
                verdict = "slower"
            changes.append(Change(name, p, q, ratio, low, high, verdict))
    for report, what in ((a, "first"), (b, "second")):
        for text in report["warnings"]:
            changes.append(Change(f"warning of the {what} report: {text}", None, None))
    if a["machine"]["cpu"] != b["machine"]["cpu"]:
        text = f"different machines: {a['machine']['cpu']}, {b['machine']['cpu']}"
        changes.append(Change(text, None, None))
    return changes


def render_comparison(changes: Sequence[Change], first: str, second: str) -> str:
    """The comparison as text."""
    rows = [
        [c.name, c.before_ms, c.after_ms, c.ratio,
         None if c.low is None else f"{c.low:.3f} to {c.high:.3f}", c.verdict]
        for c in changes
        if c.verdict
    ]  # fmt: skip
    header = (
        "case", "before, ms", "after, ms", "ratio", "interval (5 % for all cases)", "verdict",
    )  # fmt: skip
    count = {v: sum(c.verdict == v for c in changes) for v in ("faster", "slower")}
    notes = [c.name for c in changes if not c.verdict]
    return "\n".join(
        [
            f"{second} against {first}: {count['faster']} cases significantly faster, "
            f"{count['slower']} slower.",
            *notes,
            tables.markdown(header, rows),
        ]
    )
