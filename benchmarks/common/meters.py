"""Energy meters: RAPL on x86, NVML on NVIDIA cards, INA sensors on Jetson boards.

``find_meters`` says which are there and why the others are not; nothing is guessed where there is
none. RAPL and NVML count energy themselves; INA sensors show power, which a thread samples.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SAMPLE_S = 0.02  # distance of power samples


@dataclass
class Reading:
    """What a meter saw during a measurement, filled in at its end: joules and seconds."""

    joules: float = 0.0
    seconds: float = 0.0


class Meter(Protocol):
    """One energy meter.

    Attributes:
        name: What it measures, such as "RAPL package-0".
    """

    name: str

    def joules(self) -> float:
        """Energy used since some fixed point (J)."""

    def close(self) -> None:
        """Release it."""


@contextmanager
def measuring(meter: Meter) -> Iterator[Reading]:
    """Energy used inside the ``with`` block."""
    reading = Reading()
    start, begin = meter.joules(), time.perf_counter()
    yield reading
    reading.joules = meter.joules() - start
    reading.seconds = time.perf_counter() - begin


class RaplMeter:
    """One RAPL domain of Linux's powercap; counts microjoules and wraps around."""

    def __init__(self, folder: Path) -> None:
        """Open the domain in ``folder``.

        Raises:
            OSError: It cannot be read.
            ValueError: It shows no number.
        """
        self.name = "RAPL " + (folder / "name").read_text(encoding="ascii").strip()
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last = int(self._file.read_text(encoding="ascii"))
        self._total = 0

    def joules(self) -> float:
        """See ``Meter``; must be called more often than the counter wraps (about a minute)."""
        now = int(self._file.read_text(encoding="ascii"))
        self._total += (now - self._last) % (self._range + 1)
        self._last = now
        return self._total / 1e6

    def close(self) -> None:
        """Nothing to release."""


class NvmlMeter:
    """Total energy of one NVIDIA card, as its driver counts it (Volta and later)."""

    def __init__(self, index: int, library: ctypes.CDLL) -> None:
        """Open card ``index``; NVML is initialised.

        Raises:
            OSError: The card counts no energy.
        """
        self._nvml = library
        self._device = ctypes.c_void_p()
        status = library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._device))
        if status != 0:
            raise OSError(f"NVML error {status}")
        self.name = f"NVML GPU {index}"
        self.joules()

    def joules(self) -> float:
        """See ``Meter``."""
        value = ctypes.c_ulonglong()
        status = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(value))
        if status != 0:
            raise OSError(f"the card counts no energy (NVML error {status})")
        return value.value / 1e3

    def close(self) -> None:
        """Nothing to release."""


class InaMeter:
    """Power of one rail of an INA3221 sensor (Jetson), sampled and integrated."""

    def __init__(self, label: Path) -> None:
        """Open the rail whose ``inN_label`` file is ``label``.

        Raises:
            OSError: A value cannot be read.
            ValueError: It is no number.
        """
        number = label.name.removeprefix("in").removesuffix("_label")
        self.name = "INA " + label.read_text(encoding="ascii").strip()
        self._volts = label.with_name(f"in{number}_input")  # mV
        self._amperes = label.with_name(f"curr{number}_input")  # mA
        self._total, self._power, self._last = 0.0, self._watts(), time.perf_counter()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _watts(self) -> float:
        values = (int(p.read_text(encoding="ascii")) for p in (self._volts, self._amperes))
        volts, amperes = values
        return volts * amperes / 1e6

    def _step(self) -> None:
        with self._lock:
            now, power = time.perf_counter(), self._watts()
            self._total += 0.5 * (power + self._power) * (now - self._last)
            self._power, self._last = power, now

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            try:
                self._step()
            except (OSError, ValueError):  # a sensor may miss a read; the next one bridges it
                continue

    def joules(self) -> float:
        """See ``Meter``."""
        self._step()
        return self._total

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()


def find_meters(root: Path = Path("/")) -> tuple[list[Meter], dict[str, str]]:
    """Meters of this machine, and for each kind that is not there the reason.

    Args:
        root: Where ``sys`` is; for tests.
    """
    meters: list[Meter] = []
    absent: dict[str, str] = {}
    for kind, look in (("RAPL", _rapl), ("NVML", _nvml), ("INA", _ina)):
        found, reason = look(root)
        meters += found
        if not found:
            absent[kind] = reason
    return meters, absent


def _rapl(root: Path) -> tuple[list[Meter], str]:
    # packages and the whole board; core and dram domains are parts of these or not to be added
    folders = [
        folder
        for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*"))
        if folder.name.count(":") == 1
    ]
    if not folders:
        return [], "no /sys/class/powercap/intel-rapl:* (not x86, or a virtual machine)"
    found: list[Meter] = []
    reason = ""
    for folder in folders:
        try:
            found.append(RaplMeter(folder))
        except PermissionError:
            reason = f"no permission: sudo chmod a+r {folder}/energy_uj"
        except (OSError, ValueError) as error:
            reason = f"{folder.name} cannot be read ({error})"
    return found, reason


def nvml() -> ctypes.CDLL | None:
    """The NVML library, initialised; None without a driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


def _nvml(root: Path) -> tuple[list[Meter], str]:
    library = nvml()
    if library is None:
        return [], "no NVIDIA driver"
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    found: list[Meter] = []
    reason = "no NVIDIA card"
    for index in range(count.value):
        try:
            found.append(NvmlMeter(index, library))
        except OSError as error:
            reason = str(error)
    return found, reason


def gpu_memory_mib(pid: int) -> float | None:
    """Memory that a process holds on NVIDIA cards (MiB); None where no driver says."""

    class Info(ctypes.Structure):
        _fields_ = (
            ("pid", ctypes.c_uint),
            ("used", ctypes.c_ulonglong),
            ("gpu_instance", ctypes.c_uint),
            ("compute_instance", ctypes.c_uint),
        )

    library = nvml()
    if library is None:
        return None
    cards = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(cards))
    total, known = 0, False
    for index in range(cards.value):
        device, count, rows = ctypes.c_void_p(), ctypes.c_uint(64), (Info * 64)()
        library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
        call = library.nvmlDeviceGetComputeRunningProcesses_v3
        if call(device, ctypes.byref(count), rows) != 0:
            continue
        for row in rows[: count.value]:
            if row.pid == pid and row.used < 1 << 62:  # all ones: not available
                total, known = total + row.used, True
    return total / 2**20 if known else None


def _ina(root: Path) -> tuple[list[Meter], str]:
    labels = sorted(root.glob("sys/bus/i2c/drivers/ina3221*/*/hwmon/hwmon*/in*_label"))
    # the board's whole input where it has its own rail, else every rail that is not a sum
    named = {p: p.read_text(encoding="ascii").strip() for p in labels}
    chosen = [p for p, n in named.items() if n in ("VDD_IN", "VIN_SYS_5V0", "POM_5V_IN")]
    chosen = chosen or [p for p, n in named.items() if n and "sum" not in n.lower() and n != "NC"]
    if not chosen:
        return [], "no INA3221 sensor (not a Jetson board)"
    found: list[Meter] = []
    reason = ""
    for path in chosen:
        try:
            found.append(InaMeter(path))
        except (OSError, ValueError) as error:
            reason = f"{path} cannot be read ({error})"
    return found, reason
