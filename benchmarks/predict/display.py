"""What is shown of the estimates: tables, sentences and JSON; every figure is called an estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dvpd.benchmarks.common import tables
from dvpd.benchmarks.common.machine import now
from dvpd.benchmarks.predict.calibration import Measured
from dvpd.benchmarks.predict.devices import (
    CPU_US,
    DEVICES,
    DISCRETE_US,
    JETSON_HOST,
    JETSON_US,
    THIS_MACHINE,
)
from dvpd.benchmarks.predict.estimate import Case, Interval, Prediction
from dvpd.benchmarks.predict.roofline import (
    ARITHMETIC_SHARE,
    BANDWIDTH_SHARE,
    CALLS,
    GRAPH,
    MOVEMENT,
)

SCHEMA = "dvpd-predict-1"
DETAILED = 3  # stages and operators are shown of so many devices at most
MIB = 2**20


def assumptions(case: Case) -> list[str]:
    """What every figure rests on, in sentences."""
    card, jetson = (us[case.launch == CALLS] for us in (DISCRETE_US, JETSON_US))
    launched = (
        "the sampler is one captured CUDA graph, without a launch for every kernel"
        if case.launch == GRAPH
        else "every kernel is launched by itself"
    )
    shares = ", ".join(f"{k} {v:g}" for k, v in ARITHMETIC_SHARE.items() if k != MOVEMENT)
    return [
        f"{launched}: a kernel costs {card:g} us on a card, {jetson:g} us on a Jetson, a node "
        f"{CPU_US[0]:g} us on a CPU",
        f"share of the published peak that is reached: {shares}; of the bandwidth "
        f"{BANDWIDTH_SHARE:g}",
        "float16 products run on tensor cores with float32 accumulation, all else on CUDA cores; "
        "no TF32, no sparsity; caches are not modelled",
        "the highest clocks of the mode, no throttling, no other load; no copies between host and "
        f"device; a Jetson's CPU takes {JETSON_HOST:g} times as long as the measured one",
        "memory is that of weights and tensors, features and inputs counted beside the peak that "
        "holds some of them; CUDA, TensorRT and Python take hundreds of MiB more",
    ]


def to_json(case: Case, predictions: Sequence[Prediction], found: Measured) -> dict[str, Any]:
    """Everything as JSON; "estimate" is true in every object that holds a predicted figure.

    Args:
        case: What was predicted.
        predictions: One for each device.
        found: What was measured.
    """
    return {
        "schema": SCHEMA,
        "estimate": True,
        "created": now(),
        "engine": case.folder.name,
        "model": case.manifest.name,
        "model_version": case.manifest.version,
        "precision": case.manifest.precision,
        "graphs": {k: g.sha256 for k, g in case.manifest.graphs.items()},
        "frames": case.frames,
        "window_s": round(case.window_s, 4),
        "batch": case.batch,
        "steps": case.steps,
        "launch": case.launch,
        "gpu_measured": any(r.kind == "gpu" for r in found.ratios),
        "assumptions": assumptions(case),
        "measured": {
            "sources": list(found.sources),
            "skipped": list(found.skipped),
            "warnings": list(found.warnings),
            "rows": [{**asdict(r), "ratio": r.ratio} for r in found.ratios],
        },
        "predictions": [_prediction_json(p) for p in predictions],
    }


def _prediction_json(p: Prediction) -> dict[str, Any]:
    return {
        "estimate": True,
        "device": {
            **asdict(p.device),
            "fp32_tflops": p.device.fp32_tflops,
            "fp16_tflops": p.device.fp16_tflops,
            "tensor_tflops": p.device.tensor_tflops,
        },
        "calibration": {**asdict(p.calibration), "error_factor": p.calibration.error},
        "latency_ms": asdict(p.latency_ms),
        "rtf": asdict(p.rtf),
        "bound": p.bound,
        "bounds_ms": dict(p.bounds),
        "front_end_included": p.host,
        "stages": [{"estimate": True, **asdict(stage)} for stage in p.stages],
        "classes": [
            {"estimate": True, "operator": name, "ms": ms} for name, ms in p.by_class.items()
        ],
        "memory_bytes": {**asdict(p.memory), "total": p.memory.total},
        "warnings": warnings(p),
    }


def warnings(p: Prediction) -> list[str]:
    """What a reader must know before using the figure."""
    lines = [f"{p.device.name}: {p.calibration.text}"]
    if not p.host:
        lines.append(
            f"{p.device.name}: the networks and the sampler alone; no report says what STFT and "
            "noise take on a CPU"
        )
    if p.device.memory_gib is not None and p.memory.total > p.device.memory_gib * 2**30:
        lines.append(f"{p.device.name}: more memory than the device has")
    if p.rtf.low > 1:
        lines.append(f"{p.device.name}: slower than real time")
    elif p.rtf.high > 1:
        lines.append(f"{p.device.name}: real time lies within the error bar; measure before use")
    return lines


KIND = "estimate"  # the last cell of every predicted row
HEADER = (
    "device", "RTF", "RTF, range", "latency, ms", "range", "bound by", "memory, MiB", "figure",
)  # fmt: skip
STAGE_HEADER = (
    "device", "stage", "ms", "range", "all fused", "none fused", "kernels", "figure",
)  # fmt: skip
CLASS_HEADER = ("device", "operator", "ms", "share, %", "figure")
BOUND_HEADER = (
    "device", "arithmetic, ms", "bandwidth, ms", "launches, ms", "CPU front end, ms", "figure",
)  # fmt: skip
MEMORY_HEADER = (
    "device", "weights, MiB", "activations", "features", "inputs, outputs", "of", "figure",
)  # fmt: skip
LIST_HEADER = (
    "name", "device", "GB/s", "FP32, TFLOP/s", "FP16", "FP16 tensor", "SMs", "GiB", "source",
)  # fmt: skip


def _range(value: Interval) -> str:
    return f"{tables.cell(value.low)} to {tables.cell(value.high)}"


def sections(
    case: Case, predictions: Sequence[Prediction]
) -> list[tuple[str, Sequence[str], list[list[Any]]]]:
    """(title, header, rows) of every table.

    Args:
        case: What was predicted.
        predictions: One for each device.
    """
    what = (
        f"ESTIMATE, not measured: {case.folder.name} ({case.manifest.precision}), window "
        f"{case.window_s:.2f} s, batch {case.batch}, {case.steps} steps"
    )
    speed, stages, classes, bounds, memory = [], [], [], [], []
    for p in predictions:
        name, m = p.device.name, p.memory
        speed.append([
            name, p.rtf.central, _range(p.rtf), p.latency_ms.central, _range(p.latency_ms),
            p.bound, m.total / MIB, KIND,
        ])  # fmt: skip
        for s in p.stages:
            kernels_text = None if s.n_kernels is None else "{} to {}".format(*s.n_kernels)
            stages.append([name, s.name, s.ms.central, _range(s.ms), s.fused_ms, s.unfused_ms,
                           kernels_text, KIND])  # fmt: skip
        whole = sum(p.by_class.values())
        classes += [[name, k, v, 100 * v / whole, KIND] for k, v in p.by_class.items()]
        bounds.append([name, *p.bounds.values(), KIND])
        limit = p.device.memory_gib
        memory.append([name, *(x / MIB for x in (m.weights, m.activations, m.features, m.io)),
                       None if limit is None else f"{limit:.3g} GiB", KIND])  # fmt: skip
    detail = [
        ("ESTIMATE: stages", STAGE_HEADER, stages),
        ("ESTIMATE: operators, a fused one counted with what it joins", CLASS_HEADER, classes),
    ]
    return [
        (what, HEADER, speed),
        *(detail if len(predictions) <= DETAILED else []),
        ("ESTIMATE: what bounds it", BOUND_HEADER, bounds),
        ("ESTIMATE: memory", MEMORY_HEADER, memory),
    ]


def show(case: Case, predictions: Sequence[Prediction], found: Measured) -> None:
    """Print the tables and what they rest on.

    Args:
        case: What was predicted.
        predictions: One for each device.
        found: What was measured.
    """
    for title, header, rows in sections(case, predictions):
        tables.show(title, header, rows)
    for p in predictions:
        for line in warnings(p):
            print(f"Estimate for {line}.")
    print("Every estimate assumes:")
    for line in assumptions(case):
        print(f"- {line}.")
    for line in found.warnings:
        print(f"Warning of a measured report, {line}.")
    for line in found.skipped:
        print(f"Not used for the calibration: {line}.")


def show_devices() -> None:
    """Print the table of devices."""
    rows = [
        [d.name, d.title, d.bandwidth_gbs, d.fp32_tflops, d.fp16_tflops, d.tensor_tflops, d.sms,
         d.memory_gib, d.source]
        for d in DEVICES.values()
    ]  # fmt: skip
    text = "its peak is measured when asked for"
    rows.append([THIS_MACHINE, "this CPU", None, None, None, None, None, None, text])
    tables.show("Published peaks, dense, derived from cores and clocks", LIST_HEADER, rows)
