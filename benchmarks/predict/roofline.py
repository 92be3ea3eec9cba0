"""The roofline of a graph on a device: its kernels, fused and not, and their time.

Williams et al., 2009: a kernel takes as long as its arithmetic at an achievable share of the peak, or as
its bytes at an achievable share of the bandwidth, whichever is longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dvpd.benchmarks.common.graph_costs import GraphCosts, NodeCost
from dvpd.benchmarks.predict.devices import Device
from dvpd.runtime.spec import GRAPH_NAMES

DENSE, GROUPED, MATRIX = "dense convolution", "grouped convolution", "matrix product"
ELEMENTWISE, REDUCTION, MOVEMENT = "elementwise", "reduction", "data movement"

# Share of the peak arithmetic that kernels of a class reach. The channels are few (16 to 64), which
# leaves tiles of a tensor core half empty; a depthwise product reuses next to nothing.
ARITHMETIC_SHARE = {
    DENSE: 0.4, GROUPED: 0.15, MATRIX: 0.4, ELEMENTWISE: 0.2, REDUCTION: 0.2, MOVEMENT: 0.2,
}  # fmt: skip
BANDWIDTH_SHARE = 0.7  # of the published bandwidth, as STREAM-like kernels reach on most devices
BLEND = 0.5  # of the way from everything fused to nothing fused, before calibration
GRAPH, CALLS = "graph", "calls"  # the sampler as one CUDA graph, or a launch for every kernel

_FUSES = {ELEMENTWISE, MOVEMENT}
_CLASSES = {
    "MatMul": MATRIX, "Gemm": MATRIX,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMin", "ReduceMax", "LayerNormalization"),
                    REDUCTION),
    **dict.fromkeys(("Slice", "Concat", "Split", "Transpose", "Pad", "Gather", "Cast",
                     "DepthToSpace", "SpaceToDepth", "Expand", "Where"), MOVEMENT),
}  # fmt: skip
_PARTIAL = {"Slice", "Gather"}  # these read no more than they write


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
