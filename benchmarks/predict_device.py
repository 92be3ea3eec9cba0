"""Speed and memory of an engine on a device that is not at hand: an ESTIMATE, not a measurement.

    python benchmarks/predict_device.py orin-nano agx-orin rtx-4090     # the default engine
    python benchmarks/predict_device.py this-machine --engine engines/dvpd-tiny --json a.json
    python benchmarks/predict_device.py --list                          # devices and their sources

Every node of the graphs is put under the device's roofline (Williams et al., 2009): the time of its
arithmetic at an achievable share of the published peak, or of its bytes at an achievable share of
the published bandwidth, whichever is longer, and a cost for each kernel. Two estimates bracket what
an engine makes of it: every node a kernel of its own, and every chain of elementwise nodes and
copies fused into its producer. The central value is their mean times a factor that reports of
``rtf.py`` give: measured over predicted, on machines that were measured. How far those ratios
scatter, and how far the device is from what was measured, sets the error bar. Also
``dvpd predict-device``.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import machine, report, tables
from dvpd.benchmarks.common.graph_costs import GraphCosts, NodeCost, engine_costs, graph_costs
from dvpd.benchmarks.rtf import _say, frames_of, now
from dvpd.runtime.backends.choose import GPU_ONLY, cpu_quota
from dvpd.runtime.engines import default_engine, find_engines
from dvpd.runtime.errors import DvpdError, InputError, ManifestError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import GRAPH_NAMES, N_FREQS

SCHEMA = "dvpd-predict-1"
RESULTS = Path(__file__).resolve().parent / "results"  # */rtf*.json: what was measured so far
SAMPLER_GRAPHS = Path(__file__).resolve().parent.parent / "runtime" / "graphs"
THIS_MACHINE = "this-machine"
WINDOW_S = 2.048
MAX_STEPS, MAX_BATCH = 1000, 64
DETAILED = 3  # stages and operators are shown of so many devices at most
MIB = 2**20

# ------------------------------------------------------------------------------------------------
# What is assumed, and published nowhere

DENSE, GROUPED, MATRIX = "dense convolution", "grouped convolution", "matrix product"
ELEMENTWISE, REDUCTION, MOVEMENT = "elementwise", "reduction", "data movement"

# Share of the peak arithmetic that kernels of a class reach. The channels are few (16 to 64), which
# leaves tiles of a tensor core half empty; a depthwise product reuses next to nothing.
ARITHMETIC_SHARE = {
    DENSE: 0.4, GROUPED: 0.15, MATRIX: 0.4, ELEMENTWISE: 0.2, REDUCTION: 0.2, MOVEMENT: 0.2,
}  # fmt: skip
BANDWIDTH_SHARE = 0.7  # of the published bandwidth, as STREAM-like kernels reach on most devices
BLEND = 0.5  # of the way from everything fused to nothing fused, before calibration
THREADS_PER_SM = 1024  # elements that an SM must have at once to run at its full rate
GRAPH, CALLS = "graph", "calls"  # the sampler as one CUDA graph, or a launch for every kernel
# Microseconds between two dependent kernels: (inside a CUDA graph, launched one by one).
DISCRETE_US, JETSON_US, CPU_US = (2.0, 5.0), (4.0, 12.0), (10.0, 10.0)
JETSON_HOST, DISCRETE_HOST = 2.0, 1.0  # its CPU's time for the front end over a measured server's

# Error factors: at their best, the ratio of two machines that the roofline calls equal.
FLOOR_SAME, FLOOR_KIND, FLOOR_EXTRAPOLATED, FLOOR_NOTHING = 1.15, 1.6, 3.0, 4.0
DEFAULT_LOG_STD = 0.25  # where there are too few ratios to show a spread
MIN_RATIOS = 3

_FUSES = {ELEMENTWISE, MOVEMENT}
_CLASSES = {
    "MatMul": MATRIX, "Gemm": MATRIX,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMin", "ReduceMax", "LayerNormalization"),
                    REDUCTION),
    **dict.fromkeys(("Slice", "Concat", "Split", "Transpose", "Pad", "Gather", "Cast",
                     "DepthToSpace", "SpaceToDepth", "Expand", "Where"), MOVEMENT),
}  # fmt: skip
_PARTIAL = {"Slice", "Gather"}  # these read no more than they write

# ------------------------------------------------------------------------------------------------
# Devices


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker publishes it.

    Attributes:
        name: What the command line calls it.
        title: What people call it.
        sms: Streaming multiprocessors.
        cores: CUDA cores.
        clock_ghz: Highest clock of the mode; boost clock of a card.
        tensor_fma: Dense FP16 multiply-accumulates of an SM and clock, with FP32 accumulation
            where the sheets tell the two apart.
        bandwidth_gbs: Memory bandwidth, GB/s.
        memory_gib: Memory; a Jetson shares it with its CPU.
        source: The data sheets.
        tensor_clock_ghz: Clock of the tensor cores where the sheet gives another.
        fp16_ratio: FP16 rate of the CUDA cores over FP32; 1 where no sheet says more.
        modes: Power modes with these clocks, as ``nvpmodel`` calls them; none for a card.
        reported: Names under which a report of ``rtf.py`` lists it: a card's name, or a part of a
            board's.
        overhead_us: Microseconds a kernel costs in a CUDA graph, and launched by itself (assumed).
        host_factor: Time of its CPU's front end over that of a measured machine (assumed).
    """

    name: str
    title: str
    sms: int
    cores: int
    clock_ghz: float
    tensor_fma: int
    bandwidth_gbs: float
    memory_gib: float
    source: str
    tensor_clock_ghz: float | None = None
    fp16_ratio: float = 1.0
    modes: tuple[str, ...] = ()
    reported: tuple[str, ...] = ()
    overhead_us: tuple[float, float] = DISCRETE_US
    host_factor: float = DISCRETE_HOST
    kind: str = field(default="gpu", init=False)

    @property
    def fp32_tflops(self) -> float:
        """Peak of the CUDA cores: cores x 2 x clock."""
        return self.cores * 2 * self.clock_ghz / 1e3

    @property
    def fp16_tflops(self) -> float:
        """Peak of the CUDA cores in half precision."""
        return self.fp32_tflops * self.fp16_ratio

    @property
    def tensor_tflops(self) -> float:
        """Dense FP16 peak of the tensor cores: SMs x multiply-accumulates x 2 x clock."""
        clock = self.tensor_clock_ghz or self.clock_ghz
        return self.sms * self.tensor_fma * 2 * clock / 1e3

    @property
    def lanes(self) -> int:
        """Elements that must be worked on at once to fill it."""
        return self.sms * THREADS_PER_SM

    @property
    def machine(self) -> str:
        """By what measured rows of it are known."""
        return self.name


@dataclass(frozen=True)
class Cpu:
    """A CPU as ``machine.peak`` measures it; it computes in float32 whatever the graph holds.

    Attributes:
        name: What the command line calls it.
        title: The processor's name.
        gflops: Measured peak of a matrix product.
        bandwidth_gbs: Measured bandwidth, bytes read and written.
        threads: Threads of both.
        memory_gib: Memory, None where the system hides it.
        source: How it was measured.
    """

    name: str
    title: str
    gflops: float
    bandwidth_gbs: float
    threads: int
    memory_gib: float | None
    source: str
    overhead_us: tuple[float, float] = CPU_US
    host_factor: float = 1.0
    kind: str = field(default="cpu", init=False)

    @property
    def fp32_tflops(self) -> float:
        """Measured peak."""
        return self.gflops / 1e3

    @property
    def fp16_tflops(self) -> float:
        """The same: float16 is converted."""
        return self.fp32_tflops

    @property
    def tensor_tflops(self) -> float:
        """The same: a CPU's matrix product is its peak."""
        return self.fp32_tflops

    @property
    def lanes(self) -> int:
        """A vector unit is always filled here."""
        return 1

    @property
    def machine(self) -> str:
        """By what measured rows of it are known."""
        return self.title


Device = Gpu | Cpu

_ORIN_BRIEF = "NVIDIA Jetson AGX Orin Series Technical Brief"
_MODES = "power modes: nvpmodel tables of Jetson Linux"
_NANO = Gpu(
    "orin-nano", "Jetson Orin Nano 8GB, 15 W", sms=8, cores=1024, clock_ghz=0.625,
    tensor_fma=1024, bandwidth_gbs=68.0, memory_gib=8,
    source="NVIDIA Jetson Orin Nano Series data sheet: 1024 cores, 625 MHz, 68 GB/s, 40 sparse "
    f"INT8 TOPS; tensor cores: {_ORIN_BRIEF}",
    modes=("15W",), reported=("Orin Nano",), overhead_us=JETSON_US, host_factor=JETSON_HOST,
)  # fmt: skip
_NX = Gpu(
    "orin-nx", "Jetson Orin NX 16GB, MAXN", sms=8, cores=1024, clock_ghz=0.918, tensor_fma=1024,
    bandwidth_gbs=102.4, memory_gib=16,
    source="NVIDIA Jetson Orin NX Series data sheet: 1024 cores, 918 MHz, 102.4 GB/s; tensor "
    f"cores: {_ORIN_BRIEF}",
    modes=("MAXN",), reported=("Orin NX",), overhead_us=JETSON_US, host_factor=JETSON_HOST,
)  # fmt: skip
_AGX = Gpu(
    "agx-orin", "Jetson AGX Orin 64GB, MAXN", sms=16, cores=2048, clock_ghz=1.3, tensor_fma=1024,
    bandwidth_gbs=204.8, memory_gib=64,
    source=f"{_ORIN_BRIEF}: 2048 cores in 16 SMs, 1.3 GHz, 5.3 FP32 TFLOPS, 170 sparse INT8 TOPS, "
    "204.8 GB/s",
    modes=("MAXN",), reported=("AGX Orin",), overhead_us=JETSON_US, host_factor=JETSON_HOST,
)  # fmt: skip
_H100 = Gpu(
    "h100", "H100 SXM5 80GB", sms=132, cores=16896, clock_ghz=1.98, tensor_fma=2048,
    bandwidth_gbs=3350.0, memory_gib=80,
    source="NVIDIA H100 Tensor Core GPU Architecture white paper: 132 SMs, 66.9 FP32, 133.8 FP16, "
    "989.4 dense FP16 tensor TFLOPS; data sheet: 3.35 TB/s",
    tensor_clock_ghz=1.83, fp16_ratio=2.0, reported=("NVIDIA H100 80GB HBM3",),
)  # fmt: skip
DEVICES: dict[str, Gpu] = {
    device.name: device
    for device in (
        _NANO,
        replace(
            _NANO, name="orin-nano-super", title="Jetson Orin Nano Super 8GB, MAXN_SUPER",
            clock_ghz=1.02, bandwidth_gbs=102.0, modes=("MAXN_SUPER",),
            source="NVIDIA Jetson Orin Nano Super Developer Kit data sheet: 1020 MHz, 102 GB/s, "
            f"67 sparse INT8 TOPS; tensor cores: {_ORIN_BRIEF}",
        ),
        _NX,
        replace(
            _NX, name="orin-nx-super", title="Jetson Orin NX 16GB, 40 W (Super)", clock_ghz=1.173,
            modes=("40W", "MAXN_SUPER"), source=f"{_NX.source}; {_MODES}: 1173 MHz at 40 W",
        ),
        _AGX,
        replace(
            _AGX, name="agx-orin-50w", title="Jetson AGX Orin 64GB, 50 W", clock_ghz=0.816,
            modes=("50W",), source=f"{_AGX.source}; {_MODES}: 816 MHz at 50 W",
        ),
        replace(
            _AGX, name="agx-orin-30w", title="Jetson AGX Orin 64GB, 30 W", sms=8, cores=1024,
            clock_ghz=0.612, modes=("30W",),
            source=f"{_AGX.source}; {_MODES}: 4 of 8 TPCs, 612 MHz at 30 W",
        ),
        Gpu(
            "thor", "Jetson AGX Thor (T5000)", sms=20, cores=2560, clock_ghz=1.57,
            tensor_fma=4096, bandwidth_gbs=273.0, memory_gib=128,
            source="NVIDIA Jetson T5000 data sheet: 2560 cores, 1.57 GHz, 273 GB/s, 2070 sparse "
            "FP4 TFLOPS (an eighth of it in dense FP16)",
            modes=("MAXN",), reported=("AGX Thor",), overhead_us=JETSON_US, host_factor=JETSON_HOST,
        ),
        Gpu(
            "rtx-3060", "GeForce RTX 3060 12GB", sms=28, cores=3584, clock_ghz=1.777,
            tensor_fma=256, bandwidth_gbs=360.0, memory_gib=12,
            source="NVIDIA GeForce RTX 3060 specifications: 3584 cores, 1.78 GHz, 360 GB/s, 13 "
            "shader TFLOPS, 101 sparse tensor TFLOPS (with FP16 accumulation)",
            reported=("NVIDIA GeForce RTX 3060",),
        ),
        Gpu(
            "rtx-4090", "GeForce RTX 4090", sms=128, cores=16384, clock_ghz=2.52, tensor_fma=256,
            bandwidth_gbs=1008.0, memory_gib=24,
            source="NVIDIA Ada GPU Architecture white paper: 128 SMs, 2520 MHz, 82.6 FP32 TFLOPS, "
            "165.2 dense FP16 tensor TFLOPS with FP32 accumulation, 1008 GB/s",
            reported=("NVIDIA GeForce RTX 4090",),
        ),
        Gpu(
            "l4", "L4", sms=58, cores=7424, clock_ghz=2.04, tensor_fma=512, bandwidth_gbs=300.0,
            memory_gib=24,
            source="NVIDIA L4 Tensor Core GPU data sheet: 30.3 FP32, 242 sparse FP16 tensor "
            "TFLOPS, 300 GB/s",
            reported=("NVIDIA L4",),
        ),
        Gpu(
            "a100", "A100 SXM4 80GB", sms=108, cores=6912, clock_ghz=1.41, tensor_fma=1024,
            bandwidth_gbs=2039.0, memory_gib=80,
            source="NVIDIA A100 Tensor Core GPU Architecture white paper: 108 SMs, 19.5 FP32, 78 "
            "FP16, 312 dense FP16 tensor TFLOPS; 80GB data sheet: 2039 GB/s",
            fp16_ratio=4.0, reported=("NVIDIA A100-SXM4-80GB",),
        ),
        _H100,
        replace(
            _H100, name="h200", title="H200 SXM 141GB", bandwidth_gbs=4800.0, memory_gib=141,
            reported=("NVIDIA H200",),
            source="NVIDIA H200 Tensor Core GPU data sheet: 4.8 TB/s, 141 GB; cores as the H100's",
        ),
    )
}  # fmt: skip


def device_name(text: str) -> str:
    """The name that is meant; capitals, spaces, underscores and "jetson" do not matter.

    Args:
        text: What the user wrote.

    Raises:
        InputError: There is no such device; the message lists close names.
    """
    key = re.sub(r"[\s_]+", "-", text.strip().lower()).removeprefix("jetson-")
    known = [*DEVICES, THIS_MACHINE]
    if key in known:
        return key
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    close += [x for x in known if key and key in x and x not in close]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise InputError(f"no device {text!r}: {hint}Known are {', '.join(known)}")


def find_device(name: str, threads: int | None = None) -> Device:
    """The device of a name.

    Args:
        name: See ``device_name``. "this-machine" measures the peak of this CPU, which takes some
            seconds.
        threads: CPU threads of "this-machine"; None for all that it may use.

    Raises:
        InputError: There is no such device, or the peak of this machine cannot be measured.
    """
    key = device_name(name)
    if key in DEVICES:
        return DEVICES[key]
    threads = threads or cpu_quota()
    peak = machine.peak(threads)
    if peak is None:
        raise InputError("the peak of this machine could not be measured")
    found = machine.machine()
    return cpu_device(peak, found["cpu"], found["memory_gib"])


def cpu_device(peak: Mapping[str, float], title: str, memory_gib: float | None = None) -> Cpu:
    """A CPU from its measured peak.

    Args:
        peak: Of ``machine.peak``: "gflops", "bandwidth_gbs", "threads".
        title: Name of the processor.
        memory_gib: Memory.
    """
    return Cpu(
        THIS_MACHINE, title, peak["gflops"], peak["bandwidth_gbs"], int(peak["threads"]),
        memory_gib, f"measured by benchmarks/common/machine.py with {int(peak['threads'])} threads",
    )  # fmt: skip


def reported_device(found: Mapping[str, Any], nvpmodel: str | None) -> Gpu | str:
    """The GPU of a report's machine block, or why it is not known.

    Args:
        found: The "machine" block of an rtf report.
        nvpmodel: Power mode of a Jetson as the report quotes it.
    """
    board, gpus = found["board"], found["gpus"]
    if board:
        boards = [d for d in DEVICES.values() if d.modes and any(x in board for x in d.reported)]
        mode = re.search(r"Power Mode:\s*(?:MODE_)?(\S+)", nvpmodel or "")
        right = [d for d in boards if mode and mode[1] in d.modes]
        return right[0] if right else f"no published figures of {board} in mode {nvpmodel}"
    if not gpus:
        return "the report names no GPU"
    cards = [d for d in DEVICES.values() if not d.modes and gpus[0] in d.reported]
    return cards[0] if cards else f"no published figures of {gpus[0]}"


# ------------------------------------------------------------------------------------------------
# The roofline


@dataclass(frozen=True)
class Kernel:
    """Nodes that run as one kernel.

    Attributes:
        operator: Class of its first node.
        parts: (class, half precision, floating-point operations) of its nodes.
        n_bytes: Bytes from and to memory.
        elements: Elements of its largest tensor: how much of it can run at once.
    """

    operator: str
    parts: tuple[tuple[str, bool, int], ...]
    n_bytes: int
    elements: int


@dataclass(frozen=True)
class Seconds:
    """Time by what it is spent on; of arithmetic and bandwidth, a kernel's longer one counts.

    Attributes:
        arithmetic: Kernels bound by arithmetic.
        bandwidth: Kernels bound by memory.
        launches: Between kernels.
    """

    arithmetic: float = 0.0
    bandwidth: float = 0.0
    launches: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.arithmetic + self.bandwidth + self.launches

    def __add__(self, other: Seconds) -> Seconds:
        """Both, one after the other."""
        return Seconds(
            self.arithmetic + other.arithmetic,
            self.bandwidth + other.bandwidth,
            self.launches + other.launches,
        )

    def __mul__(self, factor: float) -> Seconds:
        """So many times as long."""
        return Seconds(self.arithmetic * factor, self.bandwidth * factor, self.launches * factor)


def operator_class(node: NodeCost) -> str:
    """Class of a node: what share of the peak it reaches, and whether it fuses."""
    if node.kind == "Conv":
        return DENSE if node.groups == 1 else GROUPED
    return _CLASSES.get(node.kind, ELEMENTWISE)


def kernels(costs: GraphCosts, fused: bool) -> list[Kernel]:
    """The kernels of one call of a graph.

    Args:
        costs: The graph's costs.
        fused: Whether elementwise nodes and copies join the kernel of the latest of their
            producers: what only they read is then never written, and what they read of it is not
            read from memory. Every other input comes from an earlier kernel, so that kernels in
            order are a valid schedule. If not, every node is a kernel; views never are.
    """
    owner: dict[str, str] = {}
    groups: list[list[NodeCost]] = []
    made_by: dict[str, int] = {}
    read_by: dict[str, set[int]] = {}
    for node in costs.work:
        names = [owner.get(x, x) for x in node.inputs]
        if node.view and names:
            owner[node.outputs[0]] = names[0]
            continue
        parents = [made_by[x] for x in names if x in made_by]
        if fused and parents and operator_class(node) in _FUSES:
            index = max(parents)
        else:
            index = len(groups)
            groups.append([])
        groups[index].append(node)
        made_by.update(dict.fromkeys(node.outputs, index))
        for name in names:
            read_by.setdefault(name, set()).add(index)
    kept = {owner.get(x, x) for x in costs.outputs}
    return [
        _kernel(nodes, i, costs, owner, made_by, read_by, kept) for i, nodes in enumerate(groups)
    ]


def _kernel(
    nodes: Sequence[NodeCost],
    index: int,
    costs: GraphCosts,
    owner: Mapping[str, str],
    made_by: Mapping[str, int],
    read_by: Mapping[str, set[int]],
    kept: set[str],
) -> Kernel:
    reads: Counter[str] = Counter()
    n_bytes = elements = 0
    parts: Counter[tuple[str, bool]] = Counter()
    for node in nodes:
        parts[operator_class(node), node.half] += 2 * node.macs + node.operations
        n_bytes += node.weight_bytes
        written = sum(costs.tensors[x][1] for x in node.outputs)
        elements = max(elements, *(costs.tensors[x][0] for x in (*node.inputs, *node.outputs)))
        for name in (owner.get(x, x) for x in node.inputs):
            if made_by.get(name) != index:
                whole = costs.tensors[name][1]
                part = min(written, whole) if node.kind in _PARTIAL else whole
                reads[name] = min(whole, reads[name] + part)
        for name in node.outputs:
            if name in kept or read_by.get(name, set()) - {index}:
                n_bytes += costs.tensors[name][1]
    return Kernel(
        operator_class(nodes[0]),
        tuple((operator, half, flops) for (operator, half), flops in parts.items()),
        n_bytes + sum(reads.values()),
        elements,
    )


def kernel_seconds(kernel: Kernel, device: Device, launch: str = GRAPH) -> Seconds:
    """Roofline of one kernel.

    Args:
        kernel: The kernel.
        device: Where it runs.
        launch: "graph" (one CUDA graph) or "calls" (launched one by one).
    """
    # A kernel with less to do at once than the device has lanes leaves some of it idle.
    fill = min(1.0, max(1, kernel.elements) / device.lanes)
    arithmetic = 0.0
    for operator, half, flops in kernel.parts:
        if half:
            products = operator in (DENSE, MATRIX)
            peak = device.tensor_tflops if products else device.fp16_tflops
        else:
            peak = device.fp32_tflops
        arithmetic += flops / (peak * 1e12 * ARITHMETIC_SHARE[operator] * fill)
    memory = kernel.n_bytes / (device.bandwidth_gbs * 1e9 * BANDWIDTH_SHARE * fill)
    between = device.overhead_us[launch == CALLS] / 1e6
    if arithmetic > memory:
        return Seconds(arithmetic=arithmetic, launches=between)
    return Seconds(bandwidth=memory, launches=between)


@dataclass(frozen=True)
class Bracket:
    """Uncalibrated time of one call: by class of operator, fused and not.

    Attributes:
        fused: Everything fused that can be.
        unfused: Every node a kernel.
        n_kernels: Kernels of both.
    """

    fused: Mapping[str, Seconds]
    unfused: Mapping[str, Seconds]
    n_kernels: tuple[int, int]

    def blend(self) -> dict[str, Seconds]:
        """The point between the two that a calibration starts from, by class."""
        names = dict.fromkeys([*self.fused, *self.unfused])
        zero = Seconds()
        return {
            x: self.fused.get(x, zero) * (1 - BLEND) + self.unfused.get(x, zero) * BLEND
            for x in names
        }


def total(by_class: Mapping[str, Seconds]) -> Seconds:
    """The sum over the classes."""
    return sum(by_class.values(), Seconds())


def bracket(costs: GraphCosts, device: Device, launch: str = GRAPH) -> Bracket:
    """Both rooflines of one call of a graph.

    Args:
        costs: The graph's costs.
        device: Where it runs.
        launch: "graph" or "calls".
    """
    sides, counts = [], []
    for fused in (True, False):
        parts = kernels(costs, fused)
        by_class: dict[str, Seconds] = {}
        for kernel in parts:
            seconds = kernel_seconds(kernel, device, launch)
            by_class[kernel.operator] = by_class.get(kernel.operator, Seconds()) + seconds
        sides.append(by_class)
        counts.append(len(parts))
    return Bracket(sides[0], sides[1], (counts[0], counts[1]))


def network_ms(
    costs: Mapping[str, GraphCosts], device: Device, steps: int, launch: str = GRAPH
) -> float:
    """Uncalibrated central time of 1 predictive call and ``steps`` score calls, ms.

    Args:
        costs: "predictive" and "score".
        device: Where they run.
        steps: Score calls.
        launch: "graph" or "calls".
    """
    predictive, score = (
        total(bracket(costs[name], device, launch).blend()).total for name in GRAPH_NAMES
    )
    return 1e3 * (predictive + steps * score)


# ------------------------------------------------------------------------------------------------
# Calibration


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

    A row counts if its graphs are those of an engine folder at hand (by hash). CPU rows are
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


# ------------------------------------------------------------------------------------------------
# Prediction


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


# ------------------------------------------------------------------------------------------------
# What is shown


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


# ------------------------------------------------------------------------------------------------
# The command line


def with_precision(folder: Path, precision: str | None) -> Path:
    """The engine folder itself, or its neighbour of another precision.

    Args:
        folder: Engine folder.
        precision: "fp32", "fp16", or None for what the folder holds.

    Raises:
        InputError: There is no such neighbour.
        ManifestError: The folder is incomplete or damaged.
    """
    have = Manifest.load(folder).precision
    if precision in (None, have):
        return folder
    name = folder.resolve().name
    other = name.removesuffix("-fp16") if precision == "fp32" else f"{name}-fp16"
    neighbour = folder.resolve().parent / other
    if not neighbour.is_dir() or Manifest.load(neighbour).precision != precision:
        raise InputError(
            f"{folder} is {have} and there is no {other} beside it: export one with python "
            f"export/to_onnx.py CKPT -o {other} --precision {precision}"
        )
    return neighbour


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text) if text.isdigit() else low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in [{low}, {high}]")
        return value

    return parse


def build_parser(prog: str = "predict_device.py") -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Estimate latency and memory of an engine on devices that are not at hand, "
        "from the graphs and published figures. Nothing is measured on them; every figure is an "
        "estimate with an error bar.",
    )
    parser.add_argument(
        "devices", nargs="*", metavar="DEVICE",
        help=f"{', '.join(DEVICES)}, or {THIS_MACHINE} (this CPU)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="show the devices and their sources")
    parser.add_argument(
        "--engine", type=Path, metavar="DIR",
        help="engine folder (default: $DVPD_ENGINE, else engines/dvpd-base or dvpd-tiny)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=["fp32", "fp16"],
        help="take the folder of this precision beside it (default: the folder's own)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=_finite, default=WINDOW_S, metavar="S",
        help=f"seconds of audio (default: {WINDOW_S})",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=_between(0, MAX_STEPS), metavar="N",
        help="score calls (default: the model's)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=_between(1, MAX_BATCH), default=1, metavar="N", help="windows a call"
    )
    parser.add_argument(
        "--launch", choices=[GRAPH, CALLS], default=GRAPH,
        help="the sampler as one CUDA graph, or kernels launched one by one (default: graph)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=_between(1, 4096), metavar="N", help=f"CPU threads of {THIS_MACHINE}"
    )
    parser.add_argument(
        "--calibrate", type=Path, nargs="+", metavar="FILE",
        help="reports of dvpd benchmark --json (default: those in benchmarks/results)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything here too")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "predict_device.py") -> int:
    """Run the command line; returns the exit code.

    Args:
        argv: Arguments without the program's name; None for those of the process.
        prog: Program name in help and messages.
    """
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if not args.devices and not args.list:
        parser.error("name a device, or --list")
    try:
        if args.list:
            show_devices()
        if args.devices:
            _run(args)
    except (DvpdError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace) -> None:
    if args.json is not None and not args.json.resolve().parent.is_dir():
        raise InputError(f"{args.json}: its folder does not exist")
    # a wrong name is said before the graphs are counted, which takes seconds
    names = list(dict.fromkeys(device_name(text) for text in args.devices))
    folder = with_precision(args.engine or default_engine(), args.precision)
    manifest = Manifest.load(folder)
    steps = manifest.sampler.n_steps if args.steps is None else args.steps
    case = Case(folder, manifest, frames_of(args.window, manifest), args.batch, steps, args.launch)
    files = args.calibrate if args.calibrate is not None else report_files()
    _say("counting the graphs of the measured reports")
    found = measured(files, [folder])
    costs = engine_costs(folder, case.frames, case.batch)
    predictions = []
    for name in names:
        _say(name if name in DEVICES else "peak arithmetic and memory bandwidth of this machine")
        predictions.append(predict(find_device(name, args.threads), case, found, costs))
    _say("")
    if args.json is not None:
        text = json.dumps(to_json(case, predictions, found), indent=1, allow_nan=False)
        args.json.write_text(text + "\n", encoding="utf-8")
    show(case, predictions, found)


if __name__ == "__main__":
    raise SystemExit(main())
