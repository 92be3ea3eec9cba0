"""Devices by their published figures (devices.toml), and this machine by its measured peak."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvpd.benchmarks.common import machine
from dvpd.config.tables import tomllib
from dvpd.runtime.backends.choose import cpu_quota
from dvpd.runtime.errors import InputError

DEVICES_FILE = Path(__file__).with_name("devices.toml")
THIS_MACHINE = "this-machine"

# What is assumed, and published nowhere.
THREADS_PER_SM = 1024  # elements that an SM must have at once to run at its full rate
# Microseconds between two dependent kernels: (inside a CUDA graph, launched one by one).
DISCRETE_US, JETSON_US, CPU_US = (2.0, 5.0), (4.0, 12.0), (10.0, 10.0)
JETSON_HOST, DISCRETE_HOST = 2.0, 1.0  # its CPU's time for the front end over a measured server's


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


def _read_devices(path: Path) -> dict[str, Gpu]:
    """The table of devices; a device with power modes is a Jetson."""
    found: dict[str, Gpu] = {}
    row: dict[str, Any]  # as TOML has it: Gpu's constructor names the keys
    for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items():
        jetson = bool(row.get("modes"))
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        found[name] = Gpu(
            name,
            overhead_us=JETSON_US if jetson else DISCRETE_US,
            host_factor=JETSON_HOST if jetson else DISCRETE_HOST,
            **given,
        )
    return found


DEVICES = _read_devices(DEVICES_FILE)


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
