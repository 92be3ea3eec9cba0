"""What this machine has, what it can run, and the fix for what is missing.

Nothing heavy is imported: torch is only looked up, engines are asked for their devices.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import tensorrt_doctor
from .backends.choose import BACKENDS, TORCH, cpu_quota, installed
from .backends.ort import UNINSTALL, ort_conflict
from .engines import find_engines, verification_problem
from .errors import DvpdError, raise_interrupt
from .manifest import Manifest
from .tensorrt.gpus import cuda_device_count

# Import name -> distributions that may provide it, in order.
PACKAGES: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "soundfile": ("soundfile",),
    "soxr": ("soxr",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "cuda": ("cuda-python", "cuda-bindings"),
    "pycuda": ("pycuda",),
    "onnx": ("onnx",),
    "torch": ("torch",),
}
_REQUIRED = ("numpy", "soundfile", "soxr")
# An ONNX graph of one Identity node: the smallest proof that a provider really starts.
_IDENTITY = bytes.fromhex(
    "080912003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a0808011204"
    "0a020801620f0a0179120a0a08080112040a02080142040a001012"
)
_CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "fphp")


def _version(module: str) -> str | None:
    """Version of a package that can be imported, "unknown" without metadata, None if absent."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except (ImportError, ValueError):
        return None
    for name in PACKAGES[module]:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def processor_name() -> str:
    """The processor as the system calls it."""
    model = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _cpu() -> dict[str, Any]:
    text = _read("/proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    have = set(flags[1].split()) if flags else set()
    return {
        "name": processor_name(),
        "architecture": platform.machine(),
        "logical_cores": os.cpu_count() or 1,
        "usable_cores": cpu_quota(),
        "features": [name for name in _CPU_FEATURES if name in have],
    }


def _memory() -> dict[str, float | None]:
    text = _read("/proc/meminfo")
    found = {key: int(kib) / 2**20 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    total = found.get("MemTotal")
    if total is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {"total_gib": total, "available_gib": found.get("MemAvailable")}


def _gpus() -> list[dict[str, str]]:
    """NVIDIA GPUs as nvidia-smi lists them; empty where it is missing or fails."""
    keys = ("name", "driver_version", "memory.total", "compute_cap")
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        done = subprocess.run(
            [command, f"--query-gpu={','.join(keys)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]


def _jetson() -> dict[str, str] | None:
    model = _read("/proc/device-tree/model")
    release = _read("/etc/nv_tegra_release").splitlines()
    if "NVIDIA" not in model and not release:
        return None
    return {"model": model, "l4t": release[0] if release else ""}


def _sound_library() -> str | None:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the shared library is missing
        return None
    return str(soundfile.__libsndfile_version__)


def _ort_providers() -> list[str]:
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers())
    except Exception as error:  # a damaged install raises whatever it likes: not usable
        raise_interrupt(error)
        return []


def _ort_starts(provider: str) -> bool:
    """Whether a provider really loads: being listed says only that it was compiled in."""
    try:
        import onnxruntime

        from .backends.ort import preload_libraries

        if provider != "CPUExecutionProvider":
            preload_libraries(onnxruntime)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # the failure is what we ask for
        session = onnxruntime.InferenceSession(_IDENTITY, settings, providers=[provider])
        return bool(session.get_providers()[0] == provider)
    except Exception as error:  # likewise
        raise_interrupt(error)
        return False


def _openvino_devices() -> list[str]:
    try:
        from .backends.openvino import shared_core

        return [str(name).lower() for name in shared_core().available_devices]
    except Exception as error:  # likewise
        raise_interrupt(error)
        return []


def _backends(n_gpus: int) -> list[dict[str, Any]]:
    """Each backend and device: can it run, and if not, what fixes it."""
    rows: list[dict[str, Any]] = []

    def add(backend: str, device: str, missing: str | None, fix: str | None) -> None:
        rows.append(
            {
                "backend": backend,
                "device": device,
                "usable": missing is None,
                "missing": missing,
                "fix": fix,
            }
        )

    conflict = ort_conflict()
    providers = _ort_providers() if installed("ort") else []
    if not installed("ort"):
        cpu = ("onnxruntime is not installed", f"pip install '{BACKENDS['ort'][1]}'")
    elif conflict:
        cpu = (conflict.split(": ", 1)[0], conflict.split(": ", 1)[1])
    elif not _ort_starts("CPUExecutionProvider"):
        cpu = ("onnxruntime does not start", "pip install --force-reinstall onnxruntime")
    else:
        cpu = None
    add("ort", "cpu", *(cpu or (None, None)))
    for device, provider, libraries in (
        ("cuda", "CUDAExecutionProvider", "CUDA"),
        ("tensorrt", "TensorrtExecutionProvider", "TensorRT and CUDA"),
    ):
        if n_gpus == 0:
            add("ort", device, "no NVIDIA GPU with a working driver", "a machine with one")
        elif conflict and cpu:
            add("ort", device, *cpu)
        elif provider not in providers:
            fix = f"{UNINSTALL}, then pip install 'dvpd[gpu]'"
            kind = provider.removesuffix("ExecutionProvider")
            add("ort", device, f"this onnxruntime has no {kind} provider", fix)
        elif not _ort_starts(provider):
            fix = f"install the {libraries} (and cuDNN) versions that this onnxruntime-gpu names"
            add("ort", device, f"ONNX Runtime cannot load its {libraries} libraries", fix)
        else:
            add("ort", device, None, None)
    if not installed("openvino"):
        fix = f"pip install '{BACKENDS['openvino'][1]}'"
        add("openvino", "cpu", "openvino is not installed", fix)
    else:
        devices = _openvino_devices()
        if not devices:
            fix = "pip install --force-reinstall openvino"
            add("openvino", "cpu", "openvino does not import or finds no device", fix)
        for device in devices:
            add("openvino", device, None, None)
    # Importing it takes seconds: whether it starts shows when it is asked for.
    there = installed("torch")
    get = None if there else f"pip install '{TORCH[1]}'"
    add("torch", "cpu", None if there else "torch is not installed", get)
    return rows


def _engines() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for folder in find_engines():
        row: dict[str, Any] = {"folder": str(folder), "usable": False, "problem": None}
        try:
            manifest = Manifest.load(folder)
            manifest.verify_graphs(folder)
        except DvpdError as error:
            row["problem"] = str(error)
        else:
            row.update(
                usable=True,
                name=manifest.name,
                version=manifest.version,
                precision=manifest.precision,
                unverified=verification_problem(folder, manifest),
            )
        rows.append(row)
    return rows


def examine() -> dict[str, Any]:
    """Look at this machine.

    Returns:
        A JSON-ready report. "ready" says whether a recording can be enhanced now; "problems" lists
        what is wrong with its fix.
    """
    packages = {name: _version(name) for name in PACKAGES}
    backends = _backends(cuda_device_count())
    engines = _engines()
    jetson = _jetson()
    facts = tensorrt_doctor.gather((jetson["model"] or "Jetson") if jetson else None)
    diagnosis = tensorrt_doctor.diagnose(facts, find_engines())
    sound = _sound_library()
    problems = [
        f"{name} is missing: pip install {name}" for name in _REQUIRED if packages[name] is None
    ]
    if packages["soundfile"] is not None and sound is None:
        problems.append(
            "soundfile cannot load libsndfile: apt install libsndfile1, or "
            "pip install --force-reinstall soundfile"
        )
    if (conflict := ort_conflict()) is not None:
        problems.append(conflict)
    # What runs on request alone makes no machine ready: a command without --backend would fail.
    can_run = any(row["usable"] for row in backends if row["backend"] in BACKENDS)
    if not can_run:
        problems.append("no backend can run: pip install 'dvpd[cpu]' or 'dvpd[openvino]'")
    problems += diagnosis.problems
    problems += [row["problem"] for row in engines if row["problem"]]
    if not engines:
        problems.append("no engine folder under engines/: python export/to_onnx.py writes one")
    ready = (
        can_run
        and any(row["usable"] for row in engines)
        and all(packages[name] is not None for name in _REQUIRED)
        and sound is not None
    )
    return {
        "ready": ready,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": {"os": platform.platform(), "cpu": _cpu(), "memory": _memory()},
        "nvidia": {"gpus": _gpus(), "cuda_devices": cuda_device_count(), "jetson": jetson},
        "tensorrt": tensorrt_doctor.report(facts, diagnosis),
        "packages": packages,
        "libsndfile": sound,
        "ort_providers": _ort_providers() if packages["onnxruntime"] else [],
        "backends": backends,
        "engines": engines,
        "problems": problems,
    }


def render(report: dict[str, Any]) -> str:
    """The report as text for a terminal.

    Args:
        report: From ``examine``.
    """
    system, cpu = report["system"], report["system"]["cpu"]
    memory = system["memory"]
    lines = [
        f"Python    {report['python']['version']} ({report['python']['executable']})",
        f"System    {system['os']}",
        f"CPU       {cpu['name']}, {cpu['usable_cores']} of {cpu['logical_cores']} cores usable"
        + (f", {' '.join(cpu['features'])}" if cpu["features"] else ""),
    ]
    if memory["total_gib"] is not None:
        available = memory["available_gib"]
        free = "" if available is None else f", {available:.1f} available"
        lines.append(f"Memory    {memory['total_gib']:.1f} GiB{free}")
    for gpu in report["nvidia"]["gpus"]:
        lines.append(
            f"GPU       {gpu['name']}, {gpu['memory.total']}, compute {gpu['compute_cap']}, driver "
            f"{gpu['driver_version']}"
        )
    if (jetson := report["nvidia"]["jetson"]) is not None:
        lines.append(f"Jetson    {jetson['model']} {jetson['l4t']}".rstrip())
    elif not report["nvidia"]["gpus"]:
        lines.append("GPU       no NVIDIA GPU seen")
    lines.append(f"TensorRT  {report['tensorrt']['line']}")
    lines += ["", "Packages"]
    for name, version in report["packages"].items():
        note = f" (libsndfile {report['libsndfile']})" if name == "soundfile" else ""
        lines.append(f"  {name:14s}{version + note if version else '-'}")
    if report["ort_providers"]:
        lines.append(f"  ONNX Runtime providers: {', '.join(report['ort_providers'])}")
    lines += ["", "Backends"]
    for row in report["backends"]:
        label = f"  {row['backend']:10s} {row['device']:10s}"
        asked = "" if row["backend"] in BACKENDS else f", with --backend {row['backend']}"
        can = f"can run{asked}"
        lines.append(label + (can if row["usable"] else f"no: {row['missing']}; fix: {row['fix']}"))
    lines += ["", "Engines"]
    for row in report["engines"]:
        state = (
            f"{row['name']} {row['version']} {row['precision']}" if row["usable"] else "unusable"
        )
        if row["usable"] and row["unverified"]:
            state += f"; {row['unverified']} (python export/verify.py {row['folder']})"
        lines.append(f"  {row['folder']}  {state}")
    if not report["engines"]:
        lines.append("  none")
    if report["problems"]:
        lines += ["", "Problems", *(f"  {text}" for text in report["problems"])]
    lines += ["", "Ready to enhance." if report["ready"] else "Not ready: see Problems."]
    return "\n".join(lines)
