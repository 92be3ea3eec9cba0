"""An estimate for one device: calibrated time by stage, bounds and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dvpd.benchmarks.common.graph_costs import GraphCosts, engine_costs, graph_costs
from dvpd.benchmarks.predict.calibration import (
    FLOOR_EXTRAPOLATED,
    FLOOR_SAME,
    Calibration,
    Measured,
    calibrate,
    fit,
)
from dvpd.benchmarks.predict.devices import Device
from dvpd.benchmarks.predict.roofline import GRAPH, Seconds, bracket, total
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import GRAPH_NAMES, N_FREQS

SAMPLER_GRAPHS = Path(__file__).resolve().parents[2] / "runtime" / "graphs"


@dataclass(frozen=True)
class Interval:
    """A value and between what it may lie; ``low <= central <= high``."""

    low: float
    central: float
    high: float

    def __add__(self, other: Interval) -> Interval:
        """The sum, the errors of both taken to go the same way."""
        return Interval(self.low + other.low, self.central + other.central, self.high + other.high)

    def __mul__(self, factor: float) -> Interval:
        """So many times as much."""
        return Interval(self.low * factor, self.central * factor, self.high * factor)


@dataclass(frozen=True)
class Stage:
    """One stage of a window.

    Attributes:
        name: What it is.
        ms: Its time.
        fused_ms: If everything fuses, calibrated; None on the host.
        unfused_ms: If nothing does.
        n_kernels: Kernels, fused and not; None on the host.
    """

    name: str
    ms: Interval
    fused_ms: float | None = None
    unfused_ms: float | None = None
    n_kernels: tuple[int, int] | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes of an open engine for one size; features and I/O are partly in the peak as well.

    Attributes:
        weights: Constants of both graphs.
        activations: Larger of the graphs' peaks of live tensors.
        features: What the predictive graph hands to the score graph.
        io: Inputs and outputs of both graphs.
    """

    weights: int
    activations: int
    features: int
    io: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.features + self.io


@dataclass(frozen=True)
class Prediction:
    """An estimate for one device.

    Attributes:
        device: The device.
        calibration: What corrected it.
        latency_ms: A window (batch of windows), ms.
        rtf: Seconds of work for a second of audio.
        stages: Where the time goes.
        by_class: Class of operator -> ms, central, network calls and sampler.
        bounds: "arithmetic", "bandwidth", "launches", "front end" -> ms, central.
        memory: Bytes.
        host: Whether the front end on the CPU is in it.
    """

    device: Device
    calibration: Calibration
    latency_ms: Interval
    rtf: Interval
    stages: tuple[Stage, ...]
    by_class: Mapping[str, float]
    bounds: Mapping[str, float]
    memory: Memory
    host: bool

    @property
    def bound(self) -> str:
        """What most of the time goes to."""
        return max(self.bounds, key=lambda name: self.bounds[name])


@dataclass(frozen=True)
class Case:
    """What is predicted.

    Attributes:
        folder: Engine folder.
        manifest: Its manifest.
        frames: T.
        batch: B.
        steps: Score calls.
        launch: "graph" or "calls".
    """

    folder: Path
    manifest: Manifest
    frames: int
    batch: int
    steps: int
    launch: str = GRAPH

    @property
    def window_s(self) -> float:
        """Seconds of audio in a window, as ``rtf.py`` counts them."""
        signal = self.manifest.signal
        return (self.frames - 1) * signal.hop_length / signal.sample_rate


def sampler_costs(frames: int, batch: int) -> dict[str, GraphCosts]:
    """Costs of the sampler's own small graphs: "start", "step", "finish".

    Args:
        frames: T.
        batch: B.

    Raises:
        InputError: They cannot be counted.
    """
    size = (batch, 1, frames, N_FREQS)
    shapes = {
        "noisy": (batch, 3, *size[2:]), "clean_ri": (batch, 2, *size[2:]), "coefficients": (4,),
        **dict.fromkeys(("noise", "xt", "sigma_z", "mag_p"), size),
    }  # fmt: skip
    names = ("start", "step", "finish")
    return {name: graph_costs(SAMPLER_GRAPHS / f"{name}.onnx", shapes) for name in names}


def memory_of(costs: Mapping[str, GraphCosts]) -> Memory:
    """Memory of an open engine.

    Args:
        costs: "predictive" and "score".
    """
    predictive, score = (costs[name] for name in GRAPH_NAMES)
    ends = {
        name: graph.tensors[name][1]
        for graph in (predictive, score)
        for name in (*_graph_inputs(graph), *graph.outputs)
    }
    features = sum(n for name, n in ends.items() if name.startswith("feat_"))
    return Memory(
        weights=predictive.weight_bytes + score.weight_bytes,
        activations=max(predictive.peak_activation_bytes, score.peak_activation_bytes),
        features=features,
        io=sum(ends.values()) - features,
    )


def _graph_inputs(costs: GraphCosts) -> list[str]:
    made = {name for node in costs.work for name in node.outputs}
    return [name for name in costs.tensors if name not in made]


def predict(
    device: Device,
    case: Case,
    found: Measured,
    costs: Mapping[str, GraphCosts] | None = None,
) -> Prediction:
    """Estimate a window on a device.

    Args:
        device: The device.
        case: Engine and sizes.
        found: What was measured, for the calibration.
        costs: Of ``engine_costs`` for the case, if they are there already.

    Raises:
        DvpdError: The engine cannot be counted.
    """
    if costs is None:
        costs = engine_costs(case.folder, case.frames, case.batch)
    calibration = calibrate(device, found)
    calls: list[tuple[str, int, GraphCosts]] = [("predictive call", 1, costs["predictive"])]
    if case.steps:
        calls.append((f"score calls ({case.steps})", case.steps, costs["score"]))
    # On a CPU, NumPy does the sampler's arithmetic: it is in the measured front end.
    if case.steps and device.kind == "gpu":
        small = sampler_costs(case.frames, case.batch)
        calls += [("sampler", 1, small["start"]), ("sampler", case.steps, small["step"]),
                  ("sampler", 1, small["finish"])]  # fmt: skip
    stages: dict[str, Stage] = {}
    by_class: dict[str, Seconds] = {}
    for name, count, graph in calls:
        sides = bracket(graph, device, case.launch)
        blend = {k: v * (calibration.factor * count) for k, v in sides.blend().items()}
        for k, v in blend.items():
            by_class[k] = by_class.get(k, Seconds()) + v
        ms = 1e3 * count * calibration.factor
        stage = _stage(
            name, 1e3 * total(blend).total, ms * total(sides.fused).total,
            ms * total(sides.unfused).total,
            (count * sides.n_kernels[0], count * sides.n_kernels[1]), calibration,
        )  # fmt: skip
        stages[name] = _joined(stages[name], stage) if name in stages else stage
    host = _host_stage(device, case, found)
    listed = [*stages.values(), *([host] if host else [])]
    latency = sum((stage.ms for stage in listed), Interval(0.0, 0.0, 0.0))
    return Prediction(
        device=device,
        calibration=calibration,
        latency_ms=latency,
        rtf=latency * (1e-3 / (case.window_s * case.batch)),
        stages=tuple(listed),
        by_class={k: 1e3 * v.total for k, v in sorted(
            by_class.items(), key=lambda item: -item[1].total)},
        bounds={
            **{k: 1e3 * v for k, v in asdict(total(by_class)).items()},
            "front end": host.ms.central if host else 0.0,
        },
        memory=memory_of(costs),
        host=host is not None,
    )  # fmt: skip


def _stage(
    name: str, central: float, fused: float, unfused: float, n_kernels: tuple[int, int],
    calibration: Calibration,
) -> Stage:  # fmt: skip
    low, high = central / calibration.error, central * calibration.error
    if calibration.extrapolated:  # how much this kind of device fuses is not known either
        low, high = min(low, fused), max(high, unfused)
    return Stage(name, Interval(low, central, high), fused, unfused, n_kernels)


def _joined(a: Stage, b: Stage) -> Stage:
    assert a.n_kernels is not None
    assert b.n_kernels is not None
    return Stage(
        a.name,
        a.ms + b.ms,
        (a.fused_ms or 0.0) + (b.fused_ms or 0.0),
        (a.unfused_ms or 0.0) + (b.unfused_ms or 0.0),
        (a.n_kernels[0] + b.n_kernels[0], a.n_kernels[1] + b.n_kernels[1]),
    )


def _host_stage(device: Device, case: Case, found: Measured) -> Stage | None:
    """STFT, noise and fusion on the CPU, from those that were measured; None without any.

    A GPU backend does the fusion itself: what NumPy takes for it is a little too much there.
    """
    same = [h for h in found.hosts if device.machine in h.machines]
    hosts = same or list(found.hosts)
    steps = [h.step_us for h in hosts if h.step_us is not None]
    if not hosts or (case.steps and not steps):
        return None
    us, spread = fit([h.frame_us for h in hosts])
    if case.steps:
        step_us, more = fit(steps)
        us, spread = us + case.steps * step_us, max(spread, more)
    factor = 1.0 if same else device.host_factor
    central = us * case.frames * case.batch * factor / 1e3
    error = (FLOOR_SAME if same else FLOOR_EXTRAPOLATED) * math.exp(2 * spread)
    name = "STFT and noise, on the CPU"
    return Stage(name, Interval(central / error, central, central * error))
