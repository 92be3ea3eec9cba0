"""CUDA through cuda-python: streams, graphs and memory of the device's primary context.

Everything lives in the primary context, the one that torch, CuPy and ``pycuda.autoprimaryctx`` use,
so that their arrays can be read without a copy; no context is ever made here. Importing this
module needs neither cuda-python nor a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError

ALIGNMENT = 256  # bytes; what TensorRT wants of scratch memory
_MEMORY_ALLOCATION, _INSUFFICIENT_DRIVER, _BUSY, _NO_DEVICE = 2, 35, 46, 100
# Sticky errors: the context is dead, and with it everything on the device.
_LOST = {101, 201, 214, 219, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999}
_CAPTURE = range(900, 910)


class DeviceMemoryError(BackendError):
    """The GPU's memory is full."""


class DeviceLostError(BackendError):
    """The GPU went away, or its context died; only a new process helps."""


class CaptureError(BackendError):
    """Work cannot be captured into a CUDA graph."""


@dataclass(frozen=True)
class DeviceArray:
    """A float32 array in device memory that belongs to someone else.

    Attributes:
        pointer: Its address.
        shape: Its shape.
        stream: Stream whose work must end first; None where the owner names none (version 2 of the
            interface, which torch has, knows no streams): then all of the device's.
        owner: Keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    stream: int | None
    owner: Any


def device_array(value: Any, name: str) -> DeviceArray:
    """Read ``__cuda_array_interface__``, as torch, CuPy and PyCUDA's GPUArray have it.

    Args:
        value: The array.
        name: For the message.

    Raises:
        InputError: It is not float32, or not contiguous.
    """
    table = value.__cuda_array_interface__
    shape, strides = tuple(table["shape"]), table.get("strides")
    if table["typestr"] != "<f4":
        raise InputError(f"{name} on the device is {table['typestr']}; expected float32 (<f4)")
    dense: list[int] = []
    size = 4
    for extent in reversed(shape):
        dense.insert(0, size)
        size *= extent
    if strides is not None and tuple(strides) != tuple(dense):
        raise InputError(f"{name} on the device has strides {strides}; make it contiguous")
    stream = table.get("stream")
    return DeviceArray(int(table["data"][0]), shape, None if stream is None else int(stream), value)


def _load(module: str) -> Any:
    try:
        return importlib.import_module(f"cuda.bindings.{module}")
    except ModuleNotFoundError as error:
        raise BackendError(
            f"cuda-python is not installed ({error}): pip install 'dvpd[trt]' or 'dvpd[rtx]'"
        ) from None
    except Exception as error:  # a partial install raises whatever it likes
        raise BackendError(f"cuda-python does not load ({error}): reinstall cuda-python") from None


class Cuda:
    """One device.

    Attributes:
        index: The device's number.
    """

    def __init__(self, index: int = 0, runtime: Any = None, driver: Any = None) -> None:
        """Check the driver and choose the device.

        Args:
            index: Device number.
            runtime: ``cuda.bindings.runtime``; None to import it.
            driver: ``cuda.bindings.driver``; None to import it.

        Raises:
            BackendError: No cuda-python, no driver, a driver too old, no such device, or a process
                that holds it alone.
        """
        self._rt = _load("runtime") if runtime is None else runtime
        self._driver = _load("driver") if driver is None else driver
        self.index = index
        self.lost = False
        self._check_driver()
        with self.current():
            self.call("cudaFree", 0)  # makes the primary context, if nobody has yet

    def _check_driver(self) -> None:
        status, count = self._rt.cudaGetDeviceCount()
        _, newest = self._rt.cudaDriverGetVersion()
        if int(status) == _INSUFFICIENT_DRIVER and newest:
            raise BackendError(
                f"the NVIDIA driver supports CUDA {newest // 1000}.{newest % 1000 // 10}, which is "
                "older than cuda-python's: update the driver, or install the cuda-python of the "
                "driver's CUDA version"
            )
        if not newest or int(status) in (_INSUFFICIENT_DRIVER, _NO_DEVICE) or count == 0:
            raise BackendError(
                "no NVIDIA GPU with a working driver (nvidia-smi must show one): use device cpu"
            )
        self._raise_on("cudaGetDeviceCount", status)
        if not 0 <= self.index < count:
            raise BackendError(f"device cuda:{self.index} is not there; this machine has {count}")

    def _raise_on(self, name: str, status: Any) -> None:
        code = int(status)
        if code == 0:
            return
        problem = f"{name} failed with {getattr(status, 'name', 'error')} ({code})"
        if code == _MEMORY_ALLOCATION:
            raise DeviceMemoryError(f"GPU memory is full: {problem}")
        if code == _BUSY:
            raise BackendError(f"another process holds the GPU alone: {problem}")
        if code in _CAPTURE:
            raise CaptureError(problem)
        if code in _LOST:
            self.lost = True
            raise DeviceLostError(f"the GPU was lost: {problem}; start a new process")
        raise BackendError(problem)

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of the runtime API and check its status.

        Args:
            name: Such as "cudaMalloc".
            args: Its arguments.

        Raises:
            BackendError: It failed; DeviceMemoryError, CaptureError and DeviceLostError by kind.
        """
        status, *values = getattr(self._rt, name)(*args)
        self._raise_on(name, status)
        return values[0] if len(values) == 1 else tuple(values)

    def _check_context(self) -> None:
        """Refuse a context of this device that is not the primary one: memory is not shared."""
        driver = self._driver
        status, context = driver.cuCtxGetCurrent()
        if int(status) != 0 or not int(context):
            return
        status, device = driver.cuCtxGetDevice()
        if int(status) != 0 or int(device) != self.index:
            return
        status, primary = driver.cuDevicePrimaryCtxRetain(device)
        if int(status) == 0:
            driver.cuDevicePrimaryCtxRelease(device)
            if int(primary) != int(context):
                raise BackendError(
                    "this thread has a CUDA context of its own (pycuda.autoinit makes one); the "
                    "sampler shares the device's primary context: import pycuda.autoprimaryctx"
                )

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this device current; afterwards the thread has the one it had."""
        if self.lost:
            raise DeviceLostError("the GPU was lost in an earlier call; start a new process")
        self._check_context()
        before = self.call("cudaGetDevice")
        self.call("cudaSetDevice", self.index)
        try:
            yield
        finally:
            if before != self.index and not self.lost:
                self.call("cudaSetDevice", before)

    def stream(self) -> int:
        """A new stream that does not wait for the default one."""
        return int(self.call("cudaStreamCreateWithFlags", 1))

    def synchronize(self, stream: int | None) -> None:
        """Wait for a stream's work; None: for all work on the device."""
        if stream is None:
            self.call("cudaDeviceSynchronize")
        else:
            self.call("cudaStreamSynchronize", stream)

    def copy(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        """Copy on a stream; the kind follows from the addresses (cudaMemcpyDefault)."""
        self.call(
            "cudaMemcpyAsync", target, source, n_bytes, self._rt.cudaMemcpyKind.cudaMemcpyDefault,
            stream,
        )  # fmt: skip

    def zero(self, target: int, n_bytes: int, stream: int) -> None:
        """Fill memory of the device with zeros, on a stream."""
        self.call("cudaMemsetAsync", target, 0, n_bytes, stream)

    @contextmanager
    def capturing(self, stream: int, graphs: list[int]) -> Iterator[None]:
        """Capture what is enqueued on ``stream``; the executable graph is put into ``graphs``.

        Raises:
            CaptureError: Something inside cannot be captured.
        """
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            yield
        except BaseException:
            _, graph = self._rt.cudaStreamEndCapture(stream)  # leaves the stream usable
            if graph and int(graph):
                self._rt.cudaGraphDestroy(graph)
            raise
        graph = self.call("cudaStreamEndCapture", stream)
        try:
            graphs.append(self.call("cudaGraphInstantiate", graph, 0))
        finally:
            self.call("cudaGraphDestroy", graph)


class Block:
    """Named arrays in one allocation, so that their addresses live and die together."""

    def __init__(
        self, cuda: Cuda, arrays: Mapping[str, tuple[Sequence[int], str]], *, pinned: bool = False
    ) -> None:
        """Allocate.

        Args:
            cuda: The device.
            arrays: Name -> (shape, NumPy dtype name).
            pinned: Page-locked host memory instead of the device's.

        Raises:
            DeviceMemoryError: There is no room.
        """
        self.offsets: dict[str, int] = {}
        self.n_bytes: dict[str, int] = {}
        self.size = 0
        for name, (shape, dtype) in arrays.items():
            self.offsets[name] = self.size
            self.n_bytes[name] = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self.size += -(-self.n_bytes[name] // ALIGNMENT) * ALIGNMENT
        self._arrays, self._cuda, self._pinned = arrays, cuda, pinned
        self.base = int(cuda.call("cudaMallocHost" if pinned else "cudaMalloc", max(self.size, 1)))

    def __getitem__(self, name: str) -> int:
        """Address of an array."""
        return self.base + self.offsets[name]

    def view(self, name: str) -> NDArray[Any]:
        """An array of pinned memory as NumPy array; valid until ``free``."""
        shape, dtype = self._arrays[name]
        memory: Any = (ctypes.c_char * self.n_bytes[name]).from_address(self[name])
        array: NDArray[Any] = np.ndarray(tuple(shape), dtype, buffer=memory)
        return array

    def shape(self, name: str) -> Sequence[int]:
        """Shape of an array."""
        return self._arrays[name][0]

    def clear(self) -> None:
        """Fill pinned memory with zeros."""
        ctypes.memset(self.base, 0, self.size)

    def free(self) -> None:
        """Give the memory back; a second call does nothing."""
        base, self.base = self.base, 0
        if base and not self._cuda.lost:
            self._cuda.call("cudaFreeHost" if self._pinned else "cudaFree", base)
