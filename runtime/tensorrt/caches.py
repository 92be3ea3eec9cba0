"""What TensorRT has measured and compiled on this machine, kept for the next process."""

from __future__ import annotations

import os
from pathlib import Path

from ..files import cache_path
from .gpus import Gpu, Target
from .plans import PlanSpec, read_owned, write_owned
from .versions import release


def timing_cache_path(spec: PlanSpec) -> Path:
    """Where TensorRT's measurements of this machine are kept, shared by all engine folders."""
    return cache_path(f"{spec.builder}-{release(spec.version)}.{spec.target.slug}.timing")


def kernel_cache_path(version: str, gpu: Gpu) -> Path:
    """Where the kernels that TensorRT-RTX compiled for a GPU are kept.

    Args:
        version: Of the package.
        gpu: The GPU.
    """
    slug = Target(gpu.name, gpu.compute_capability).slug
    return cache_path(f"tensorrt-rtx-{release(version)}.{slug}.kernels")


def read_kernel_cache(path: Path) -> bytes | None:
    """The kernels kept there, or None where there are none; they are executable code, as plans are.

    Args:
        path: From ``kernel_cache_path``.

    Raises:
        PlanError: Somebody else could have written them.
    """
    return read_owned(path, None) if path.is_file() else None


def write_kernel_cache(path: Path, data: bytes) -> None:
    """Keep compiled kernels, whole or not at all.

    Args:
        path: From ``kernel_cache_path``.
        data: The serialised cache.

    Raises:
        OSError: They cannot be kept.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_owned(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
