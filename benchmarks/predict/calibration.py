"""Measured over predicted: what reports of ``rtf.py`` say of the roofline, and how far it may be wrong."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpd.benchmarks.common import report
from dvpd.benchmarks.common.graph_costs import GraphCosts, engine_costs
from dvpd.benchmarks.predict.devices import Device, Gpu, cpu_device, reported_device
from dvpd.benchmarks.predict.roofline import CALLS, GRAPH, network_ms
from dvpd.runtime.backends.choose import GPU_ONLY
from dvpd.runtime.engines import find_engines
from dvpd.runtime.errors import InputError, ManifestError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import GRAPH_NAMES

RESULTS = Path(__file__).resolve().parents[1] / "results"  # */rtf*.json: what was measured so far

# Error factors: at their best, the ratio of two machines that the roofline calls equal.
FLOOR_SAME, FLOOR_KIND, FLOOR_EXTRAPOLATED, FLOOR_NOTHING = 1.15, 1.6, 3.0, 4.0
DEFAULT_LOG_STD = 0.25  # where there are too few ratios to show a spread
MIN_RATIOS = 3


@dataclass(frozen=True)
class Ratio:
    """One measured row beside its uncalibrated prediction.

    Attributes:
        source: File of the report.
        machine: Processor's or device's name.
        kind: "cpu" or "gpu".
        case: Engine, backend, frames, batch and steps in words.
        predicted_ms: Network calls, predicted with BLEND.
        measured_ms: Network calls, median.
    """

    source: str
    machine: str
    kind: str
    case: str
    predicted_ms: float
    measured_ms: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured_ms / self.predicted_ms


@dataclass(frozen=True)
class Host:
    """Front end of one measured row on its CPU.

    Attributes:
        machines: Names of the processor and, if it is known, of the GPU beside it.
        frame_us: STFT and inverse STFT, microseconds a frame.
        step_us: Noise and fusion, microseconds a frame and step; None without steps.
    """

    machines: tuple[str, ...]
    frame_us: float
    step_us: float | None


@dataclass(frozen=True)
class Measured:
    """What reports say.

    Attributes:
        ratios: Rows that could be predicted.
        hosts: Front ends.
        skipped: Rows that could not, and why.
        warnings: What the reports themselves warn of.
        sources: Files that were read.
    """

    ratios: tuple[Ratio, ...] = ()
    hosts: tuple[Host, ...] = ()
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """How a device's prediction is corrected, and how far it may be wrong.

    Attributes:
        factor: Geometric mean of measured over predicted; multiplies the prediction.
        log_std: Standard deviation of the ratios' logarithms.
        floor: Error factor that no calibration removes.
        n_ratios: Rows behind it.
        extrapolated: Whether the device's kind was not measured.
        text: What it rests on, in a sentence.
    """

    factor: float = 1.0
    log_std: float = DEFAULT_LOG_STD
    floor: float = FLOOR_NOTHING
    n_ratios: int = 0
    extrapolated: bool = True
    text: str = ""

    @property
    def error(self) -> float:
        """Error factor: the value lies between central / error and central x error."""
        return self.floor * math.exp(2 * self.log_std)


def report_files(folder: Path | None = None) -> list[Path]:
    """Measured reports that come with the project: ``results/*/rtf*.json``; perhaps none.

    Args:
        folder: Where to look instead of ``RESULTS``.
    """
    return sorted((folder or RESULTS).glob("*/rtf*.json"))


def measured(paths: Iterable[Path], engines: Iterable[Path] = ()) -> Measured:
    """Compare measured reports with predictions for the same machines, with their own peaks.

    A row counts if its graphs are those of an engine folder that is found (by hash). CPU rows are
    predicted from the report's measured peak, CUDA rows from the data sheet of the GPU that the
    report names.

    Args:
        paths: JSON files of ``rtf.py``.
        engines: Engine folders to look in besides those under engines/.

    Raises:
        InputError: A report cannot be read, is of another schema, or does not fit it.
    """
    folders = _by_hash([*engines, *find_engines()])
    costs: dict[tuple[Path, int, int], dict[str, GraphCosts]] = {}
    ratios: list[Ratio] = []
    hosts: list[Host] = []
    skipped: list[str] = []
    warned: list[str] = []
    files = list(paths)
    for path in files:
        read = report.read(path)
        try:
            warned += [f"{path.name}: {text}" for text in read["warnings"]]
            for row in read["rows"]:
                if row["status"] != "ok":
                    continue
                if (host := _host(read, row)) is not None:
                    hosts.append(host)
                ratio = _ratio(path.name, read, row, folders, costs)
                if isinstance(ratio, Ratio):
                    ratios.append(ratio)
                else:
                    skipped.append(f"{path.name}, {report.label(row)}: {ratio}")
        except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            # without jsonschema, `read` has looked at the version alone
            raise InputError(
                f"{path}: does not fit the schema {report.SCHEMA}: {error!r}"
            ) from None
    return Measured(
        tuple(ratios),
        tuple(hosts),
        tuple(dict.fromkeys(skipped)),
        tuple(warned),
        tuple(path.name for path in files),
    )


def _ratio(
    source: str,
    read: Mapping[str, Any],
    row: Mapping[str, Any],
    folders: Mapping[tuple[str | None, ...], Path],
    costs: dict[tuple[Path, int, int], dict[str, GraphCosts]],
) -> Ratio | str:
    """A row beside its prediction, or why it has none; ``costs`` keeps what was counted."""
    device = _row_device(read, row)
    if isinstance(device, str):
        return device
    folder = folders.get(_hashes(read["protocol"]["graphs"].get(row["engine"], {})))
    if folder is None:
        return "its graphs are those of no engine folder here"
    stages, launch = row["stages_ms"], CALLS
    took = stages["predictive"] + sum(stages["score"])
    if stages.get("sampler"):
        took, launch = stages["sampler"], GRAPH
    if took <= 0:
        return "the network calls were not timed apart"
    key = (folder, row["frames"], row["batch"])
    if key not in costs:
        costs[key] = engine_costs(*key)
    predicted = network_ms(costs[key], device, row["steps"], launch)
    case = (
        f"{report.label(dict(row))}, {row['frames']} frames, batch {row['batch']}, "
        f"{row['steps']} steps"
    )
    return Ratio(source, device.machine, device.kind, case, predicted, took)


def _hashes(graphs: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(graphs.get(name) for name in GRAPH_NAMES)


def _by_hash(folders: Iterable[Path]) -> dict[tuple[str | None, ...], Path]:
    table: dict[tuple[str | None, ...], Path] = {}
    for folder in folders:
        try:
            manifest = Manifest.load(folder)
        except (ManifestError, OSError):
            continue  # a damaged folder under engines/ calibrates nothing
        table.setdefault(tuple(manifest.graphs[name].sha256 for name in GRAPH_NAMES), folder)
    return table


def _row_device(read: Mapping[str, Any], row: Mapping[str, Any]) -> Device | str:
    """What a row ran on, or why it cannot be predicted."""
    if row["backend"] in GPU_ONLY or row["device"].startswith("cuda"):
        return reported_device(read["machine"], read["protocol"]["nvpmodel"])
    if row["device"] not in ("cpu", "auto"):
        return f"no published figures of the device {row['device']}"
    if row["precision"] != "fp32":
        return "CPU engines convert float16 graphs in ways that are not modelled"
    if read["peak"] is None:
        return "the report has no peak of its machine"
    return cpu_device(read["peak"], read["machine"]["cpu"], read["machine"]["memory_gib"])


def _host(read: Mapping[str, Any], row: Mapping[str, Any]) -> Host | None:
    stages, steps = row["stages_ms"], row["steps"]
    frames = row["frames"] * row["batch"]
    ends, fusion = stages["stft"] + stages["istft"], stages["fusion"]
    if min(ends, frames) <= 0:
        return None
    beside = reported_device(read["machine"], read["protocol"]["nvpmodel"])
    return Host(
        (read["machine"]["cpu"], *([beside.name] if isinstance(beside, Gpu) else [])),
        1e3 * ends / frames,
        1e3 * fusion / (frames * steps) if steps and fusion > 0 else None,
    )


def fit(ratios: Sequence[float]) -> tuple[float, float]:
    """Geometric mean and standard deviation of the logarithms.

    Args:
        ratios: Measured over predicted, positive; with fewer than three the spread is assumed.
    """
    logs = [math.log(x) for x in ratios]
    spread = statistics.stdev(logs) if len(logs) >= MIN_RATIOS else DEFAULT_LOG_STD
    return math.exp(statistics.fmean(logs)), spread


def calibrate(device: Device, found: Measured) -> Calibration:
    """The correction for a device: from its own rows, else its kind's, else another kind's.

    Args:
        device: The device.
        found: What was measured.
    """
    kin = [r for r in found.ratios if r.kind == device.kind]
    same = [r for r in kin if r.machine == device.machine]
    what = device.kind.upper()
    no_gpu = "no GPU was measured; " if device.kind == "gpu" and not kin else ""
    if same:
        used, floor, text = same, FLOOR_SAME, f"calibrated on the same {what}"
    elif kin:
        machines = ", ".join(sorted({r.machine for r in kin}))
        used, floor, text = kin, FLOOR_KIND, f"calibrated on another {what} ({machines})"
    elif found.ratios:
        used, floor = list(found.ratios), FLOOR_EXTRAPOLATED
        other = "CPU" if device.kind == "gpu" else "GPU"
        text = (
            f"{no_gpu}an extrapolation: a {other}'s factor carried to a {what}, with an error "
            f"bar of at least a factor of {FLOOR_EXTRAPOLATED:g} either way"
        )
    else:
        text = (
            f"{no_gpu}not calibrated: no measured report fits, and the error bar is a stated "
            f"factor of at least {FLOOR_NOTHING:g} either way"
        )
        return Calibration(text=text)
    factor, spread = fit([r.ratio for r in used])
    text += (
        f"; {len(used)} measured rows, measured / predicted {factor:.2f} "
        f"(log standard deviation {spread:.2f})"
    )
    return Calibration(factor, spread, floor, len(used), not kin, text)
