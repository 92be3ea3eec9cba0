"""What TensorRT finds on this machine, what follows from it, and the known ways it goes wrong.

`gather` looks, `diagnose` concludes: the second needs nothing but the first's facts, so that every
board can be simulated.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import DvpdError
from .tensorrt.gpus import CudaDriver, cuda_driver, why_rtx_unfit
from .tensorrt.plans import find_plans, read_sidecar
from .tensorrt.versions import JETPACKS, parse_version, release, supported, supported_range

IMPORT_TIMEOUT_S = 60
TRTEXEC = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")


@dataclass(frozen=True)
class Package:
    """One of the two TensorRT packages as this Python sees it.

    Attributes:
        version: Its version; None if it does not load.
        error: Why it does not load.
        cuda: Major CUDA version that its wheel was built for; None for the system's package.
    """

    version: str | None
    error: str | None = None
    cuda: int | None = None


@dataclass(frozen=True)
class Facts:
    """What was found.

    Attributes:
        python: Version of this Python.
        in_venv: Whether this is a virtual environment.
        sees_system: Whether it sees the system's packages.
        tensorrt: The package "tensorrt"; None if this Python has none.
        rtx: The package "tensorrt_rtx", likewise.
        system_tensorrt: Folders with the system's tensorrt for Python.
        trtexec: Its path.
        driver: What the CUDA driver says; None without a working one.
        board: Model of the Jetson; None on other machines.
        cuda_python: Version of cuda-python (or its cuda-bindings); None without it.
    """

    python: str
    in_venv: bool = False
    sees_system: bool = True
    tensorrt: Package | None = None
    rtx: Package | None = None
    system_tensorrt: tuple[str, ...] = ()
    trtexec: str | None = None
    driver: CudaDriver | None = None
    board: str | None = None
    cuda_python: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What follows.

    Attributes:
        line: Everything that decides, and what to do, in one line.
        problems: What is wrong, each with its fix.
    """

    line: str
    problems: tuple[str, ...]


def _package(module: str, stem: str) -> Package | None:
    """Import a package in another process: a broken one may take its process down."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except (ImportError, ValueError):
        return None
    cuda = None
    for major in (12, 13):
        try:
            importlib.metadata.version(f"{stem}-cu{major}")
            cuda = major
        except importlib.metadata.PackageNotFoundError:
            continue
    code = f"import {module}; print({module}.__version__)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Package(None, " ".join(str(error).split()), cuda)
    if done.returncode != 0 or not done.stdout.strip():
        said = done.stderr.strip().splitlines() or [f"import ended with {done.returncode}"]
        return Package(None, said[-1], cuda)
    return Package(done.stdout.split()[-1], None, cuda)


def gather(board: str | None = None) -> Facts:
    """Look at this machine.

    Args:
        board: Model of the Jetson, if it is one.
    """
    in_venv = sys.prefix != sys.base_prefix
    config = Path(sys.prefix) / "pyvenv.cfg"
    sees = True
    if in_venv:
        try:
            text = config.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        sees = re.search(r"^include-system-site-packages\s*=\s*true", text, re.M | re.I) is not None
    roots = sorted(Path("/usr/lib").glob("python3*/dist-packages/tensorrt"))
    found = shutil.which("trtexec") or next((p for p in TRTEXEC if os.access(p, os.X_OK)), None)
    return Facts(
        python=platform.python_version(),
        in_venv=in_venv,
        sees_system=sees,
        tensorrt=_package("tensorrt", "tensorrt"),
        rtx=_package("tensorrt_rtx", "tensorrt-rtx"),
        system_tensorrt=tuple(map(str, roots)),
        trtexec=found,
        driver=cuda_driver(),
        board=board,
        cuda_python=_version_of("cuda-bindings") or _version_of("cuda-python"),
    )


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def diagnose(facts: Facts, engines: Sequence[Path] = ()) -> Diagnosis:
    """Conclude.

    Args:
        facts: From `gather`, or of a simulated board.
        engines: Engine folders whose plans are looked at.
    """
    problems = [*_package_problems(facts), *_board_problems(facts), *_binding_problems(facts)]
    installed = {
        "tensorrt": facts.tensorrt.version if facts.tensorrt else None,
        "tensorrt-rtx": facts.rtx.version if facts.rtx else None,
    }
    for folder in engines:
        problems += plan_problems(folder, installed, facts)
    return Diagnosis(_line(facts), tuple(problems))


def _package_problems(facts: Facts) -> list[str]:
    """TensorRT that is not there, does not load, or is of a version that is not supported."""
    problems = []
    if facts.tensorrt is None and facts.system_tensorrt:
        versions = [re.search(r"python(3[.\d]*)", path) for path in facts.system_tensorrt]
        pythons = [match[1] for match in versions if match]
        where = facts.system_tensorrt[0]
        if facts.in_venv and not facts.sees_system:
            problems.append(
                f"TensorRT is on this system ({where}), but this virtual environment does not see "
                "the system's packages: python3 -m venv --system-site-packages DIR, and install "
                "dvpd there"
            )
        else:
            problems.append(
                f"TensorRT is on this system ({where}), but not for Python {facts.python}: use "
                f"the system's Python ({', '.join(pythons) or 'python3'})"
            )
    elif facts.tensorrt is None and facts.board is not None:
        problems.append(
            f"{facts.board} has no TensorRT for Python: apt install tensorrt python3-libnvinfer "
            "(JetPack), then a virtual environment with --system-site-packages"
        )
    for builder, package in (("tensorrt", facts.tensorrt), ("tensorrt-rtx", facts.rtx)):
        if package is None:
            continue
        if package.version is None:
            problems.append(
                f"{builder} is installed but does not load ({package.error}): "
                + (
                    "apt install --reinstall python3-libnvinfer"
                    if facts.board
                    else f"pip install --force-reinstall {builder}"
                )
            )
        elif not supported(builder, package.version):
            problems.append(
                f"{builder} {package.version} is not supported: install {supported_range(builder)}"
            )
        need = package.cuda
        if need is not None and facts.driver is not None and facts.driver.version[0] < need:
            have = ".".join(map(str, facts.driver.version))
            problems.append(
                f"the NVIDIA driver is too old: it knows CUDA {have}, this {builder} needs CUDA "
                f"{need}: update the driver ({'R580' if need >= 13 else 'R525'} or newer), or pip "
                f"install {builder}-cu{need - 1} instead of -cu{need}"
            )
    return problems


def _binding_problems(facts: Facts) -> list[str]:
    """Python bindings of a newer CUDA than the driver knows, such as 13 on JetPack 6."""
    if facts.cuda_python is None or facts.driver is None:
        return []
    need, have = parse_version(facts.cuda_python)[0], facts.driver.version[0]
    if need <= have:
        return []
    extra = " (the extra dvpd[jetson] does)" if facts.board else ", or update the driver"
    return [
        f"cuda-python {facts.cuda_python} needs CUDA {need}, the driver knows CUDA {have}: pip "
        f"install 'cuda-python<{have + 1}'{extra}"
    ]


def _board_problems(facts: Facts) -> list[str]:
    """Versions and GPUs that are known not to go together."""
    problems = []
    gpus = facts.driver.gpus if facts.driver else ()
    version = facts.tensorrt.version if facts.tensorrt else None
    orin = any(gpu.compute_capability == "8.7" for gpu in gpus)
    if version is not None and parse_version(version)[:2] == (10, 13) and orin:
        problems.append(
            f"TensorRT {release(version)} (JetPack 7.0/7.1) has no kernels for Orin (compute 8.7): "
            "install JetPack 6.2 (TensorRT 10.3) or 7.2 (10.16)"
        )
    if facts.rtx is not None and facts.rtx.version is not None and facts.tensorrt is None:
        problems += [why for gpu in gpus if (why := why_rtx_unfit(gpu))]
    return problems


def plan_problems(folder: Path, installed: dict[str, str | None], facts: Facts) -> list[str]:
    """Plans of an engine folder that cannot run here although their builder is installed.

    Args:
        folder: The engine folder.
        installed: Builder -> its version, None where it is not there.
        facts: For the GPU.
    """
    problems = []
    for path in find_plans(folder):
        try:
            spec = read_sidecar(path).spec
        except DvpdError as error:
            problems.append(f"{path}: {error}: dvpd build {folder}")
            continue
        version = installed[spec.builder]
        if version is None:
            continue  # another builder's plan hurts nobody
        gpus = facts.driver.gpus if facts.driver else ()
        reasons = [spec.target.why_unfit(gpu) for gpu in gpus]
        if release(version) != release(spec.version):
            problems.append(
                f"{path}: built by {spec.builder} {release(spec.version)}, here is "
                f"{release(version)}: delete it and run dvpd build {folder}"
            )
        elif reasons and all(reasons):
            problems.append(f"{path}: {reasons[0]}: run dvpd build {folder}")
    return problems


def _line(facts: Facts) -> str:
    """The one line that tells which versions were found and which graph and flags follow."""
    driver = facts.driver
    gpu = driver.gpus[0] if driver and driver.gpus else None
    parts = []
    version = facts.tensorrt.version if facts.tensorrt else None
    rtx = facts.rtx.version if facts.rtx else None
    if version is not None:
        jetpack = JETPACKS.get(".".join(version.split(".")[:2])) if facts.board else None
        parts.append(f"TensorRT {version}" + (f" ({jetpack})" if jetpack else ""))
    if rtx is not None:
        parts.append(f"TensorRT-RTX {rtx}")
    parts = parts or ["no TensorRT"]
    parts.append(
        f"CUDA {'.'.join(map(str, driver.version))}" if driver else "no working NVIDIA driver"
    )
    parts.append(f"Python {facts.python}")
    parts.append(f"compute {gpu.compute_capability} ({gpu.name})" if gpu else "no GPU")
    return f"{', '.join(parts)}: {_advice(facts, version, rtx)}"


def _advice(facts: Facts, version: str | None, rtx: str | None) -> str:
    gpu = bool(facts.driver and facts.driver.gpus)
    flags = None
    if facts.trtexec:
        strongly = version is None or parse_version(version)[0] <= 10
        flags = (
            f"engines/build_with_trtexec.sh works, too{' (--stronglyTyped)' if strongly else ''}"
        )
    if version is not None and gpu:
        advice = "dvpd build NAME-fp16 builds the fp16 graphs for this GPU, strongly typed"
        return f"{advice}; {flags}" if flags else advice
    if rtx is not None:
        advice = "dvpd build NAME-fp16 builds portable plans of the fp16 graphs"
        runs = facts.driver is not None and any(not why_rtx_unfit(g) for g in facts.driver.gpus)
        return advice if runs else f"{advice}; nothing here can run them"
    if flags and gpu:
        return f"the fp16 graphs; {flags}"
    return "the fp32 graphs on ONNX Runtime or OpenVINO"


def report(facts: Facts, diagnosis: Diagnosis) -> dict[str, Any]:
    """Both, ready for JSON.

    Args:
        facts: From `gather`.
        diagnosis: From `diagnose`.
    """
    return {"line": diagnosis.line, "facts": asdict(facts)}
