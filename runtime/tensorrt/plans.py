"""Compiled TensorRT plans beside an engine folder's graphs: names, keys, sidecars, checks.

A plan is executable code for one TensorRT release and one GPU. Beside every plan lies a JSON
sidecar that says what it was built from; nothing reaches TensorRT before both have been checked.
Builders (export/build_engine.py, engines/build_with_trtexec.sh) and the runtime share this module,
which needs neither TensorRT nor onnx.

``python -m dvpd.runtime.tensorrt.plans flags|check|gpu|seal`` is what the trtexec script calls.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BackendError, DvpdError, InputError, ManifestError
from ..spec import FRAME_MULTIPLE, GRAPH_NAMES, MIN_FRAMES, Manifest, sha256_of

try:
    import fcntl
except ImportError:  # Windows: no second builder can be waited for there
    fcntl = None  # type: ignore[assignment]

SIDECAR_FORMAT = 2  # 1 did not say whether products are rounded to TF32
SIDECAR_MAX_BYTES = 1 << 16
BUILDERS = ("tensorrt", "tensorrt-rtx")
# First bytes of a serialised plan, and where the version of its builder lies (four bytes: major,
# minor, patch, build), as `trtexec --getPlanVersionOnly` reads it.
PLAN_MAGIC = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}
PLAN_VERSION_AT = 24
# GPUs that TensorRT-RTX 1.7 compiles for (``ComputeCapability`` of its Python package, and its support
# matrix): RTX cards of Turing, Ampere, Ada and Blackwell and GB10. Not Hopper (9.0), Blackwell of
# data centres (10.x) or Jetson's Orin (8.7) and Thor (11.0). Portable plans leave Turing out.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
PORTABLE_CAPABILITIES = RTX_CAPABILITIES[1:]
TEMPORARY_SUFFIX = ".plan.tmp"
Version = tuple[int, ...]
Shape = tuple[int, ...]


class PlanError(BackendError):
    """A plan must not be used.

    Attributes:
        reason: Why, without the path and the cure that the message may have.
    """

    def __init__(self, reason: str, message: str | None = None) -> None:
        """Keep the reason.

        Args:
            reason: Why.
            message: The whole message; the reason alone if None.
        """
        super().__init__(message or reason)
        self.reason = reason


# ------------------------------------------------------------------------------------------------
# What a graph takes


@dataclass(frozen=True)
class GraphInput:
    """One input of an ONNX graph; sizes are numbers, or names such as "B" and "T/2"."""

    name: str
    shape: tuple[int | str, ...]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of the wire format, and where the next one starts."""
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if not byte & 0x80:
            return value, at
    raise ValueError("number too long")


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Fields of one protobuf message: (number, int or memoryview); fixed-size ones are skipped."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            size, at = _varint(data, at)
            if size > len(data) - at:
                raise ValueError("message cut off")
            yield number, data[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")


def _all(message: memoryview, *path: int) -> Iterator[Any]:
    """Every value at a path of field numbers."""
    for number, value in _fields(message):
        if number == path[0]:
            if len(path) == 1:
                yield value
            else:
                yield from _all(value, *path[1:])


def graph_inputs(path: Path) -> tuple[GraphInput, ...]:
    """Inputs of an ONNX graph, read without the onnx package.

    Args:
        path: A graph written by export/to_onnx.py.

    Raises:
        ManifestError: The file is not such a graph.
    """
    # Field numbers of onnx.proto: ModelProto.graph 7, GraphProto.input 11, ValueInfoProto.name 1
    # and .type 2, TypeProto.tensor_type 1, Tensor.shape 2, TensorShapeProto.dim 1, Dimension
    # .dim_value 1 and .dim_param 2.
    try:
        found = []
        for value in _all(memoryview(path.read_bytes()), 7, 11):
            (name,) = _all(value, 1)
            shape: list[int | str] = []
            for dim in _all(value, 2, 1, 2, 1):
                sizes = dict(_fields(dim))
                shape.append(str(sizes[2], "utf-8") if 2 in sizes else int(sizes[1]))
            found.append(GraphInput(str(name, "utf-8"), tuple(shape)))
    except (OSError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ManifestError(
            f"{path}: inputs cannot be read ({error}); export the engine again"
        ) from None
    if not found:
        raise ManifestError(f"{path}: a graph without inputs; export the engine again")
    return tuple(found)


@dataclass(frozen=True)
class Profile:
    """Sizes that a plan accepts: (smallest, tuned for, largest) of frames and of the batch.

    The default holds the runtime's window of 1024 frames.
    """

    frames: tuple[int, int, int] = (32, 256, 1024)
    batch: tuple[int, int, int] = (1, 1, 4)

    def __post_init__(self) -> None:
        """Refuse sizes that no graph accepts."""
        for name, step, low in (("frames", FRAME_MULTIPLE, MIN_FRAMES), ("batch", 1, 1)):
            sizes = getattr(self, name)
            fits = (
                isinstance(sizes, tuple)
                and len(sizes) == 3
                and all(isinstance(s, int) and not isinstance(s, bool) for s in sizes)
                and list(sizes) == sorted(sizes)
                and all(s >= low and s % step == 0 for s in sizes)
            )
            if not fits:
                raise InputError(
                    f"profile {name} is {sizes!r}; expected min,opt,max in rising order, multiples "
                    f"of {step}, at least {low}"
                )

    def shapes(self, inputs: Sequence[GraphInput]) -> dict[str, tuple[Shape, Shape, Shape]]:
        """Shapes (min, opt, max) of each input.

        Args:
            inputs: The graph's inputs.

        Raises:
            ManifestError: A dynamic size is neither the batch nor a part of the frames.
        """
        table = {}
        for value in inputs:
            rows = []
            for batch, frames in zip(self.batch, self.frames, strict=True):
                sizes = {"B": batch, "T": frames, "T/2": frames // 2, "T/4": frames // 4}
                try:
                    rows.append(tuple(sizes[d] if isinstance(d, str) else d for d in value.shape))
                except KeyError as error:
                    raise ManifestError(
                        f"input {value.name} has a size named {error}; expected "
                        f"{', '.join(sizes)}: export the engine again"
                    ) from None
            table[value.name] = (rows[0], rows[1], rows[2])
        return table

    def holds(self, n_frames: int, batch: int) -> bool:
        """Whether a call of this size is inside."""
        return (
            self.frames[0] <= n_frames <= self.frames[2]
            and n_frames % FRAME_MULTIPLE == 0
            and self.batch[0] <= batch <= self.batch[2]
        )


# ------------------------------------------------------------------------------------------------
# What a plan is for


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

    def misfit(self, gpu: Gpu) -> str | None:
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


def rtx_misfit(gpu: Gpu) -> str | None:
    """Why TensorRT-RTX does not run on ``gpu`` whatever the plan, with the cure; or None."""
    if gpu.compute_capability in RTX_CAPABILITIES:
        return None
    return (
        f"TensorRT-RTX does not run on {gpu.name} (compute {gpu.compute_capability}): it is for RTX "
        f"cards of Turing to Blackwell ({', '.join(RTX_CAPABILITIES)}): use TensorRT (pip install "
        "'dvpd[trt]'; on a Jetson the system's)"
    )


@dataclass(frozen=True)
class PlanSpec:
    """All that decides what is in a plan.

    Attributes:
        graph: "predictive" or "score".
        onnx_sha256: Of the graph's file.
        builder: "tensorrt" or "tensorrt-rtx".
        version: The builder's version; plans fit their release, the first three numbers.
        target: What it is built for.
        precision: "fp32" or "fp16", that of the graph.
        profile: Sizes that it accepts.
        tf32: Whether float32 products may be rounded to TF32 (10 bits); only of fp32 graphs.
    """

    graph: str
    onnx_sha256: str
    builder: str
    version: str
    target: Target
    precision: str
    profile: Profile
    tf32: bool = False

    def __post_init__(self) -> None:
        """Refuse what no builder is called."""
        if self.graph not in GRAPH_NAMES:
            raise InputError(f"graph is {self.graph!r}; expected one of {', '.join(GRAPH_NAMES)}")
        if self.builder not in BUILDERS:
            raise InputError(f"builder is {self.builder!r}; expected one of {', '.join(BUILDERS)}")
        parse_version(self.version)

    @property
    def key(self) -> str:
        """SHA-256 over everything that decides the plan, in hex."""
        table = self.as_dict()
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """What the key is made of, ready for JSON."""
        table = json.loads(json.dumps(asdict(self)))
        table["version"] = release(self.version)
        return dict(table)

    @property
    def file(self) -> str:
        """Name of the plan's file, beside the graph."""
        return (
            f"{self.graph}.{self.builder}-{release(self.version)}.{self.target.slug}."
            f"{self.precision}{'-tf32' if self.tf32 else ''}.plan"
        )


def plan_spec(
    manifest: Manifest,
    graph: str,
    builder: str,
    version: str,
    target: Target,
    profile: Profile,
    tf32: bool = False,
) -> PlanSpec:
    """The spec of one of an engine folder's graphs.

    Args:
        manifest: The folder's manifest, its graphs verified.
        graph: "predictive" or "score".
        builder: "tensorrt" or "tensorrt-rtx".
        version: The builder's version.
        target: What the plan is for.
        profile: Sizes that it accepts.
        tf32: Whether float32 products may be rounded to TF32; without effect on fp16 graphs.
    """
    digest, precision = manifest.graphs[graph].sha256, manifest.precision
    tf32 = tf32 and precision == "fp32"
    return PlanSpec(graph, digest, builder, version, target, precision, profile, tf32)


def set_builder_flags(trt: Any, config: Any, builder: str, exact: bool) -> None:
    """The flags that every plan of ours is built with; strong typing is the network's.

    Args:
        trt: The package.
        config: Its ``IBuilderConfig``.
        builder: "tensorrt" or "tensorrt-rtx".
        exact: Whether float32 products must not be rounded to TF32, which both packages do unless
            told not to.
    """
    if builder == "tensorrt-rtx":
        # Else an execution context may allocate for itself, and no stream can capture it.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if exact:
        config.clear_flag(trt.BuilderFlag.TF32)


# ------------------------------------------------------------------------------------------------
# Files


@dataclass(frozen=True)
class Sidecar:
    """What lies beside a plan as JSON.

    Attributes:
        spec: What it was built from and for.
        sha256: Of the plan's bytes. Plans differ from build to build: it proves that this file is
            whole, not that two plans are equal.
        size_bytes: Length of the plan.
        built: How, for people: tool, seconds, day; not checked.
    """

    spec: PlanSpec
    sha256: str
    size_bytes: int
    built: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text."""
        table = {
            "format": SIDECAR_FORMAT,
            "key": self.spec.key,
            "spec": self.spec.as_dict(),
            "plan": {"file": self.spec.file, "sha256": self.sha256, "bytes": self.size_bytes},
            "built": dict(self.built),
        }
        return json.dumps(table, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Sidecar:
        """Read the file's text.

        Args:
            text: The JSON.

        Raises:
            PlanError: It is not a sidecar of this format, or its key does not match its content.
        """
        try:
            table = json.loads(text)
            if table["format"] != SIDECAR_FORMAT:
                raise ValueError(f"format {table['format']!r}, expected {SIDECAR_FORMAT}")
            raw = dict(table["spec"])
            raw["target"] = Target(**raw["target"])
            raw["profile"] = Profile(**{k: tuple(v) for k, v in raw["profile"].items()})
            found = cls(
                PlanSpec(**raw),
                str(table["plan"]["sha256"]),
                int(table["plan"]["bytes"]),
                dict(table["built"]),
            )
            key = table["key"]
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise PlanError(f"its sidecar cannot be read ({error})") from None
        if key != found.spec.key:
            raise PlanError("its sidecar's key does not match the sidecar's content")
        return found


def sidecar_path(plan: Path) -> Path:
    """Where a plan's sidecar lies."""
    return plan.with_name(plan.name + ".json")


def _owned(path: Path, limit: int | None) -> bytes:
    """Bytes of a file that only its owner, this user or root, can have written.

    Everything is read through one handle: what was checked is what is used.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise PlanError("there is none" if limit is None else "it has no sidecar") from None
    except OSError as error:
        raise PlanError(f"{path.name} cannot be read ({error.strerror})") from None
    with os.fdopen(handle, "rb") as stream:
        state = os.fstat(stream.fileno())
        if hasattr(os, "geteuid"):
            if state.st_uid not in (os.geteuid(), 0):
                raise PlanError(
                    f"{path.name} belongs to user {state.st_uid}; a plan is executable code and "
                    "must belong to you or to root"
                )
            if state.st_mode & 0o022:
                raise PlanError(
                    f"others may write to {path.name} (mode {state.st_mode & 0o777:o}); a plan is "
                    "executable code: chmod go-w it if you trust it"
                )
        if limit is not None and state.st_size > limit:
            raise PlanError(f"{path.name} is larger than {limit} bytes")
        try:
            return stream.read()
        except OSError as error:
            raise PlanError(f"{path.name} cannot be read ({error.strerror})") from None


def read_sidecar(plan: Path) -> Sidecar:
    """The sidecar of a plan.

    Args:
        plan: The plan's path.

    Raises:
        PlanError: It is missing, unreadable, not this user's, or damaged.
    """
    text = _owned(sidecar_path(plan), SIDECAR_MAX_BYTES)
    try:
        return Sidecar.from_json(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise PlanError("its sidecar is not text") from None


def _differences(have: PlanSpec, want: PlanSpec) -> list[str]:
    """Why a plan of ``have`` is not one of ``want``, the most telling first."""
    told = []
    if have.builder != want.builder or release(have.version) != release(want.version):
        told.append(
            f"built by {have.builder} {release(have.version)}, here is {want.builder} "
            f"{release(want.version)}"
        )
    if have.target != want.target:
        told.append(f"built for {have.target.name} ({have.target.compute_capability})")
    if have.onnx_sha256 != want.onnx_sha256:
        told.append("built from another export of the graph")
    for name in ("graph", "precision", "tf32"):
        if getattr(have, name) != getattr(want, name):
            told.append(f"{name} is {getattr(have, name)}, wanted {getattr(want, name)}")
    if have.profile != want.profile:
        told.append(
            f"profile frames {have.profile.frames}, batch {have.profile.batch}; wanted "
            f"{want.profile.frames}, {want.profile.batch}"
        )
    return told


def _check_header(data: bytes, spec: PlanSpec) -> None:
    """Refuse bytes that do not start like a plan of this builder and release."""
    if not data.startswith(PLAN_MAGIC[spec.builder]):
        raise PlanError(f"it is no plan of {spec.builder} (it starts with {data[:4]!r})")
    version = tuple(data[PLAN_VERSION_AT : PLAN_VERSION_AT + 3])
    if version != parse_version(spec.version)[:3]:
        raise PlanError(
            f"its header says version {'.'.join(map(str, version))}, its sidecar "
            f"{release(spec.version)}"
        )


def load_plan(
    folder: Path, spec: PlanSpec, *, exact_profile: bool = True, fits: Profile | None = None
) -> tuple[bytes, Sidecar]:
    """A plan's bytes, after every check that needs no TensorRT.

    Args:
        folder: The engine folder.
        spec: What is wanted.
        exact_profile: Whether the plan must have the spec's profile; else only ``fits`` counts.
        fits: Sizes that the plan must accept.

    Returns:
        Bytes to hand to ``deserialize_cuda_engine``, and the sidecar.

    Raises:
        PlanError: There is none, or it must not be used; the message says why.
    """
    path = folder / spec.file
    try:
        data = _owned(path, None)
        sidecar = read_sidecar(path)
        have = sidecar.spec
        wanted = PlanSpec(
            **{
                **{name: getattr(spec, name) for name in spec.__dataclass_fields__},
                "profile": spec.profile if exact_profile else have.profile,
            }
        )
        if have.key != wanted.key:
            raise PlanError("; ".join(_differences(have, wanted)))
        if len(data) != sidecar.size_bytes:
            raise PlanError(f"it has {len(data)} bytes, its sidecar says {sidecar.size_bytes}")
        if hashlib.sha256(data).hexdigest() != sidecar.sha256:
            raise PlanError("its bytes are not those that were built (SHA-256 differs)")
        _check_header(data, have)
        if fits is not None:
            for i in (0, 2):
                if not have.profile.holds(fits.frames[i], fits.batch[i]):
                    raise PlanError(
                        f"its profile holds frames {have.profile.frames}, batch "
                        f"{have.profile.batch}; needed {fits.frames[i]} frames, batch "
                        f"{fits.batch[i]}"
                    )
    except PlanError as error:
        text = f"{path}: this plan cannot be used: {error}; build it: dvpd build {folder}"
        raise PlanError(error.reason, text) from None
    return data, sidecar


def find_plans(folder: Path) -> list[Path]:
    """Every plan in an engine folder."""
    return sorted(path for path in Path(folder).glob("*.plan") if path.is_file())


@contextmanager
def folder_lock(folder: Path, waiting: Callable[[float], None] | None = None) -> Iterator[None]:
    """Hold the engine folder for building; one builder at a time, of Python or of the shell.

    The lock is on the folder itself and ends with the process, however that ends.

    Args:
        folder: The engine folder.
        waiting: Called about once a second with the seconds waited (s).

    Raises:
        InputError: The folder cannot be opened.
    """
    if fcntl is None:
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; give an engine folder") from None
    try:
        begin = told = time.monotonic()
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise InputError(f"{folder}: cannot be locked ({error.strerror})") from None
            if waiting is not None and time.monotonic() - told >= 1.0:
                told = time.monotonic()
                waiting(told - begin)
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed builder left; only under ``folder_lock``."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Fail before minutes of building if the folder takes no file.

    Args:
        folder: The engine folder.

    Raises:
        InputError: It cannot be written to.
    """
    probe = folder / f".probe{TEMPORARY_SUFFIX}"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600))
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{folder}: plans go beside their graphs, but the folder cannot be written to "
            f"({error.strerror}): copy the folder to one of yours, or fix its permissions"
        ) from None


def _write(path: Path, data: bytes) -> None:
    # Readable by all and writable by the owner alone, whatever the umask: see _owned.
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(handle, "wb") as stream:
        if hasattr(os, "fchmod"):
            os.fchmod(stream.fileno(), 0o644)
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def install_plan(
    folder: Path, spec: PlanSpec, data: bytes, built: Mapping[str, Any] | None = None
) -> Path:
    """Put a plan and its sidecar in place; only under ``folder_lock``.

    Each appears whole or not at all; between the two renames the old sidecar refuses the new plan.

    Args:
        folder: The engine folder.
        spec: What it was built from and for.
        data: The plan.
        built: How, for people.

    Returns:
        The plan's path.

    Raises:
        PlanError: The bytes are no plan of this builder and version.
        InputError: The folder cannot be written to.
    """
    _check_header(data, spec)
    path = folder / spec.file
    sidecar = Sidecar(spec, hashlib.sha256(data).hexdigest(), len(data), built or {})
    pairs = [(path, data), (sidecar_path(path), sidecar.to_json().encode())]
    temporaries = [folder / f".{target.name}{TEMPORARY_SUFFIX}" for target, _ in pairs]
    try:
        for temporary, (_, content) in zip(temporaries, pairs, strict=True):
            _write(temporary, content)
        for temporary, (target, _) in zip(temporaries, pairs, strict=True):
            temporary.replace(target)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    return path


def _cache(name: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "dvpd" / name


def timing_cache_path(spec: PlanSpec) -> Path:
    """Where TensorRT's measurements of this machine are kept, shared by all engine folders."""
    return _cache(f"{spec.builder}-{release(spec.version)}.{spec.target.slug}.timing")


def kernel_cache_path(version: str, gpu: Gpu) -> Path:
    """Where the kernels that TensorRT-RTX compiled for a GPU are kept.

    Args:
        version: Of the package.
        gpu: The GPU.
    """
    slug = Target(gpu.name, gpu.compute_capability).slug
    return _cache(f"tensorrt-rtx-{release(version)}.{slug}.kernels")


def read_kernel_cache(path: Path) -> bytes | None:
    """The kernels kept there, or None where there are none; they are executable code, as plans are.

    Args:
        path: From ``kernel_cache_path``.

    Raises:
        PlanError: Somebody else could have written them.
    """
    return _owned(path, None) if path.is_file() else None


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
        _write(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------
# Options that builders share, and what engines/build_with_trtexec.sh asks


def sizes(text: str) -> tuple[int, int, int]:
    """Read "min,opt,max" of a command line.

    Args:
        text: Three whole numbers.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    try:
        low, opt, high = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not MIN,OPT,MAX, three whole numbers"
        ) from None
    return low, opt, high


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    """Add --frames and --batch, as every builder takes them."""
    default = Profile()
    parser.add_argument(
        "--frames",
        type=sizes,
        default=default.frames,
        metavar="MIN,OPT,MAX",
        help="frames of one call, multiples of 4 (default: 32,256,1024; 125 a second)",
    )
    parser.add_argument(
        "--batch",
        type=sizes,
        default=default.batch,
        metavar="MIN,OPT,MAX",
        help="recordings in one call (default: 1,1,4)",
    )


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``dvpd build`` and of export/build_engine.py."""
    parser.add_argument("folder", type=Path, metavar="ENGINE_DIR", help="folder with the graphs")
    parser.add_argument(
        "--backend",
        choices=BUILDERS,
        help="default: tensorrt if it is installed, else tensorrt-rtx",
    )
    parser.add_argument(
        "--target",
        metavar="TARGET",
        help="local (this GPU), or with tensorrt-rtx portable, sm89, or several in one plan, "
        "sm86,sm89,sm120 (default: tensorrt local, tensorrt-rtx portable)",
    )
    add_profile_options(parser)
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="let products of fp32 graphs be rounded to TF32: faster, and no longer float32",
    )
    parser.add_argument("--force", action="store_true", help="build even if valid plans are there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def build_parser() -> argparse.ArgumentParser:
    """The command line of the trtexec script's helper."""
    parser = argparse.ArgumentParser(
        prog="plans", description="Names, shapes and sidecars of plans, for build_with_trtexec.sh."
    )
    parser.add_argument("action", choices=("flags", "check", "gpu", "seal"))
    parser.add_argument("folder", nargs="?", type=Path, metavar="ENGINE_DIR")
    parser.add_argument("--graph", choices=GRAPH_NAMES, help="which graph")
    parser.add_argument("--trt-version", metavar="V", help="TensorRT's version, such as 10.3.0")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="the plan that trtexec wrote")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long it took")
    add_profile_options(parser)
    return parser


def _local_target() -> Target:
    driver = cuda_driver()
    if driver is None or not driver.gpus:
        raise BackendError(
            "no NVIDIA GPU with a working driver: TensorRT builds plans on the machine that runs "
            "them (TensorRT-RTX builds elsewhere, too: --backend tensorrt-rtx --target portable)"
        )
    return Target(driver.gpus[0].name, driver.gpus[0].compute_capability)


def main(argv: list[str] | None = None) -> int:
    """Run the helper; returns 0 done, 1 failed (for ``check``: no usable plan), 2 wrong usage."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        if args.action == "gpu":
            target = _local_target()
            print(f"{target.name} {target.compute_capability}")
            return 0
        if args.folder is None or args.graph is None:
            parser.error(f"{args.action} needs ENGINE_DIR and --graph")
        manifest = Manifest.load(args.folder)
        onnx = manifest.verify_graphs(args.folder)[args.graph]
        profile = Profile(args.frames, args.batch)
        if args.trt_version is None:
            parser.error(f"{args.action} needs --trt-version")
        spec = plan_spec(
            manifest, args.graph, "tensorrt", args.trt_version, _local_target(), profile
        )
        if args.action == "flags":
            table = profile.shapes(graph_inputs(onnx))
            for i, which in enumerate(("min", "opt", "max")):
                shapes = (f"{name}:{'x'.join(map(str, s[i]))}" for name, s in table.items())
                print(f"--{which}Shapes={','.join(shapes)}")
            cache = timing_cache_path(spec)
            cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            print(f"--timingCacheFile={cache}")
            if spec.precision == "fp32":
                print("--noTF32")
            return 0
        if args.action == "check":
            load_plan(args.folder, spec)
            print(args.folder / spec.file)
            return 0
        if args.plan is None:
            parser.error("seal needs --plan")
        built = {"tool": "trtexec", "version": args.trt_version, "seconds": args.seconds}
        try:
            data = args.plan.read_bytes()
        except OSError as error:
            raise InputError(f"{args.plan}: {error.strerror}") from None
        if sha256_of(onnx) != spec.onnx_sha256:
            raise ManifestError(f"{onnx}: changed while its plan was built; build again")
        print(install_plan(args.folder, spec, data, built))
    except DvpdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
