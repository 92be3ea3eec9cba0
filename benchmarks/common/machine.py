"""What a benchmark runs on, and what else ran there: the protocol block of a report."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13", "torch",
)  # fmt: skip


CLOCK_CHANGE = 0.05  # clocks that differ by more than this are worth a warning
BUSY_SHARE = 0.05  # so much of the CPU in other hands is worth a warning
MATRIX_SIZE = 1024
STREAM_BYTES = 64 << 20  # for each thread: larger than a share of any cache
PEAK_S = 0.5


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", "").strip()
    except OSError:
        return None


def _command(*words: str) -> str | None:
    """First lines of a command's output, or None where it is missing or fails."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def machine() -> dict[str, Any]:
    """CPU, memory, system, GPUs and board, as ``dvpd doctor`` sees them."""
    from dvpd.runtime.doctor import _cpu, _gpus, _jetson, _memory

    cpu, board = _cpu(), _jetson()
    return {
        "cpu": cpu["name"],
        "architecture": cpu["architecture"],
        "logical_cores": cpu["logical_cores"],
        "usable_cores": cpu["usable_cores"],
        "cpu_features": cpu["features"],
        "memory_gib": _memory()["total_gib"],
        "os": platform.platform(),
        "gpus": [gpu["name"] for gpu in _gpus()],
        "board": None if board is None else board["model"],
    }


def clocks_mhz(root: Path = Path("/")) -> list[float]:
    """Clock of every core now (MHz): cpufreq, else /proc/cpuinfo; empty where neither says."""
    found = [
        float(text) / 1e3
        for path in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
        if (text := _text(path)) is not None and text.isdigit()
    ]
    if found:
        return found
    info = _text(root / "proc/cpuinfo") or ""
    return [float(x) for x in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", info, re.MULTILINE)]


def governors(root: Path = Path("/")) -> list[str]:
    """Names of the frequency governors in force; empty where the system hides them."""
    paths = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return sorted({text for path in paths if (text := _text(path))})


def git_revision(folder: Path) -> dict[str, Any] | None:
    """Commit of a checkout and whether its files differ; None outside one."""
    revision = _command("git", "-C", str(folder), "rev-parse", "HEAD")
    if revision is None:
        return None
    changes = _command("git", "-C", str(folder), "status", "--porcelain", "-uno")
    return {"revision": revision, "modified": changes is not None}


def affinity() -> list[int] | None:
    """Cores that this process may use; None where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def load_average() -> list[float] | None:
    """1, 5 and 15 minute load; None where the system has none."""
    try:
        return [round(x, 2) for x in os.getloadavg()]
    except (AttributeError, OSError):
        return None


class CpuWatch:
    """How much of the CPU others used between start and ``stop``, and how the clocks moved.

    Attributes:
        clocks: Lowest and highest clock of any core seen (MHz), or None.
    """

    def __init__(self) -> None:
        """Start watching."""
        self._started = time.monotonic()
        self._busy, self._own = self._read()
        self.clocks: tuple[float, float] | None = None
        self.look()

    @staticmethod
    def _read() -> tuple[float | None, float]:
        """Busy seconds of all cores, and of this process and its children that have ended."""
        line = (_text(Path("/proc/stat")) or "").split("\n")[0].split()
        busy = None
        if line[:1] == ["cpu"]:
            ticks = [int(x) for x in line[1:9]]
            # idle and waiting for I/O are not busy; stolen time is
            busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        used = [resource.getrusage(k) for k in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return busy, sum(u.ru_utime + u.ru_stime for u in used)

    def look(self) -> None:
        """Note the clocks."""
        if now := clocks_mhz():
            low, high = self.clocks or (now[0], now[0])
            self.clocks = (min(low, *now), max(high, *now))

    def others_share(self) -> float | None:
        """Share of all cores' time that went to others, 0 to 1; None where it is not known."""
        busy, own = self._read()
        if busy is None or self._busy is None:
            return None
        elapsed = max(time.monotonic() - self._started, 1e-9) * (os.cpu_count() or 1)
        others = (busy - self._busy) - (own - self._own)
        return round(min(max(others / elapsed, 0.0), 1.0), 4)

    def warnings(self) -> list[str]:
        """What makes the figures doubtful, in words."""
        found = []
        share = self.others_share()
        if share is not None and share > BUSY_SHARE:
            found.append(
                f"busy machine: other processes used {share:.0%} of all cores' time during the "
                "measurement; figures are too slow and spread too far"
            )
        if self.clocks and self.clocks[1] > self.clocks[0] * (1 + CLOCK_CHANGE):
            found.append(
                f"clocks moved between {self.clocks[0]:.0f} and {self.clocks[1]:.0f} MHz during "
                "the measurement; fix them (governor performance, jetson_clocks) and repeat"
            )
        return found


def peak_rss_mib() -> float | None:
    """Largest resident memory of this process (MiB).

    VmHWM belongs to this program; ``ru_maxrss`` survives exec and would show the parent's.
    """
    match = re.search(r"^VmHWM:\s+(\d+) kB", _text(Path("/proc/self/status")) or "", re.MULTILINE)
    if match:
        return int(match[1]) / 1024
    if sys.platform == "linux":
        return None
    # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def rss_mib() -> float | None:
    """Resident memory of this process now (MiB); None where the system does not tell."""
    match = re.search(r"^VmRSS:\s+(\d+) kB", _text(Path("/proc/self/status")) or "", re.MULTILINE)
    return int(match[1]) / 1024 if match else None


def measure_peak(threads: int) -> dict[str, float]:
    """Peak float32 arithmetic and memory bandwidth that NumPy reaches here, in this process.

    The threads of the matrix product are set by the environment; see ``peak``.

    Args:
        threads: Threads of the memory test.

    Returns:
        "gflops" (a multiply-accumulate is two) and "bandwidth_gbs" (bytes read and written).
    """
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((MATRIX_SIZE, MATRIX_SIZE), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    best = _best(lambda: np.matmul(a, b, out=out))
    parts = [
        (np.ones(STREAM_BYTES // 4, np.float32), np.zeros(STREAM_BYTES // 4, np.float32))
        for _ in range(threads)
    ]
    with ThreadPoolExecutor(threads) as pool:

        def stream() -> None:
            list(pool.map(lambda pair: np.multiply(pair[0], np.float32(1.5), out=pair[1]), parts))

        seconds = _best(stream)
    return {
        "gflops": 2 * MATRIX_SIZE**3 / best / 1e9,
        "bandwidth_gbs": 2 * STREAM_BYTES * threads / seconds / 1e9,
    }


def _best(work: Any) -> float:
    work()
    best, end = float("inf"), time.perf_counter() + PEAK_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def peak(threads: int) -> dict[str, Any] | None:
    """``measure_peak`` in a process of its own, with so many threads; None if it fails."""
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r}); "
        "import json; from dvpd.benchmarks.common.machine import measure_peak; "
        f"print(json.dumps(measure_peak({threads})))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
            check=True, timeout=120,
        )  # fmt: skip
        return {**json.loads(done.stdout), "threads": threads}
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def nvpmodel() -> str | None:
    """Power mode of a Jetson board; None elsewhere."""
    text = _command("nvpmodel", "-q")
    return None if text is None else " ".join(text.split())


def now() -> str:
    """Date and time, ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Python and the packages that matter, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
