"""NVIDIA GPUs: those of this machine, and those that a plan is built for."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass

from ..errors import InputError

# GPUs that TensorRT-RTX 1.7 compiles for (``ComputeCapability`` of its Python package, and its support
# matrix): RTX cards of Turing, Ampere, Ada and Blackwell and GB10. Not Hopper (9.0), Blackwell of
# data centres (10.x) or Jetson's Orin (8.7) and Thor (11.0). Portable plans leave Turing out.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
PORTABLE_CAPABILITIES = RTX_CAPABILITIES[1:]


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        name: As the driver calls it, such as "Orin" or "NVIDIA GeForce RTX 4090".
        compute_capability: Such as "8.7".
    """

    name: str
    compute_capability: str


@dataclass(frozen=True)
class CudaDriver:
    """What the CUDA driver says.

    Attributes:
        version: Highest CUDA version that the driver supports, (major, minor).
        gpus: Its devices.
    """

    version: tuple[int, int]
    gpus: tuple[Gpu, ...]


def cuda_driver() -> CudaDriver | None:
    """Ask the CUDA driver for its version and devices; None without a working one.

    No CUDA context is made. Works on Jetson, where nvidia-smi may be missing.
    """
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        number = ctypes.c_int(0)
        if cuda.cuInit(0) != 0 or cuda.cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
        version = (number.value // 1000, number.value % 1000 // 10)
        if cuda.cuDeviceGetCount(ctypes.byref(number)) != 0:
            return None
        gpus = []
        for index in range(number.value):
            name, device, part = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
            cuda.cuDeviceGet(ctypes.byref(device), index)
            cuda.cuDeviceGetName(name, 256, device)
            capability = []
            for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
                cuda.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
                capability.append(str(part.value))
            gpus.append(Gpu(name.value.decode("utf-8", "replace"), ".".join(capability)))
    except (OSError, AttributeError):
        return None
    return CudaDriver(version, tuple(gpus))


def cuda_device_count() -> int:
    """NVIDIA GPUs that the driver can open on this machine; 0 without a driver."""
    driver = cuda_driver()
    return 0 if driver is None else len(driver.gpus)


@dataclass(frozen=True)
class Target:
    """What a plan is built for.

    Attributes:
        name: The GPU's name; for GPUs that are not here "portable", or such as "sm86,sm89".
        compute_capability: Such as "8.9" or "8.6,8.9"; "portable" for ``PORTABLE_CAPABILITIES``.
    """

    name: str
    compute_capability: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read "portable", "sm89" or "sm86,sm89".

        Args:
            text: The target.

        Raises:
            InputError: It is none of them.
        """
        if text == "portable":
            return cls(text, text)
        found = [re.fullmatch(r"sm(\d+)(\d)", part) for part in text.split(",")]
        capabilities = [f"{match[1]}.{match[2]}" for match in found if match]
        if len(capabilities) < len(found) or len(set(capabilities)) < len(found):
            raise InputError(
                f"target is {text!r}; expected local, portable, or sm89, or several: sm86,sm89"
            )
        return cls(text, ",".join(capabilities))

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "gpu"

    def why_unfit(self, gpu: Gpu) -> str | None:
        """Why plans of this target do not run on ``gpu``, or None."""
        have = gpu.compute_capability
        if self.compute_capability == "portable":
            fits = have in PORTABLE_CAPABILITIES
        else:
            # "sm89" names a capability, everything else one board.
            named = self.name == gpu.name or re.match(r"sm\d", self.name) is not None
            fits = named and have in self.compute_capability.split(",")
        if fits:
            return None
        return (
            f"built for {self.name} (compute {self.compute_capability}), this GPU is {gpu.name} "
            f"(compute {have})"
        )


def why_rtx_unfit(gpu: Gpu) -> str | None:
    """Why TensorRT-RTX does not run on ``gpu`` whatever the plan, and what to use instead; or None."""
    if gpu.compute_capability in RTX_CAPABILITIES:
        return None
    return (
        f"TensorRT-RTX does not run on {gpu.name} (compute {gpu.compute_capability}): it is for RTX "
        f"cards of Turing to Blackwell ({', '.join(RTX_CAPABILITIES)}): use TensorRT (pip install "
        "'dvpd[trt]'; on a Jetson the system's)"
    )
