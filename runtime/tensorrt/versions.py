"""Versions of TensorRT and TensorRT-RTX: which are supported, and what installs them."""

from __future__ import annotations

import re

from ..errors import InputError

Version = tuple[int, ...]
BUILDERS = ("tensorrt", "tensorrt-rtx")
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # as Python imports them
SUPPORTED: dict[str, tuple[Version, Version]] = {  # from, up to but without
    "tensorrt": ((10, 3), (12,)),
    "tensorrt-rtx": ((1, 4), (2,)),
}
INSTALL = {
    "tensorrt": "on a Jetson use the system's (python3 -m venv --system-site-packages), elsewhere "
    "pip install 'dvpd[trt]'",
    "tensorrt-rtx": "pip install 'dvpd[rtx]'",
}
# TensorRT's first two numbers -> the JetPack that brings it.
JETPACKS = {"10.3": "JetPack 6.1/6.2", "10.13": "JetPack 7.0/7.1", "10.16": "JetPack 7.2"}


def parse_version(text: str) -> Version:
    """Numbers of a version: "10.16.2.10" -> (10, 16, 2, 10).

    Args:
        text: The version; anything after the numbers is left out.

    Raises:
        InputError: It does not start with three numbers.
    """
    match = re.match(r"(\d+)\.(\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        raise InputError(f"version is {text!r}; expected major.minor.patch")
    return tuple(int(part) for part in match.groups() if part is not None)


def release(version: str) -> str:
    """The part that decides whether plans fit: "10.16.2.10" -> "10.16.2".

    apt, pip and trtexec write the build number differently.
    """
    return ".".join(map(str, parse_version(version)[:3]))


def supported(builder: str, version: str) -> bool:
    """Whether this version of a builder is one that the code knows.

    Args:
        builder: "tensorrt" or "tensorrt-rtx".
        version: Its version.

    Raises:
        InputError: The version is no version.
    """
    low, end = SUPPORTED[builder]
    return low <= parse_version(version) < end


def supported_range(builder: str) -> str:
    """Which versions those are, for a message."""
    low, end = (".".join(map(str, version)) for version in SUPPORTED[builder])
    return f"{low} or newer, below {end}"
