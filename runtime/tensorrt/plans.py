"""Compiled TensorRT plans beside an engine folder's graphs: names, keys, sidecars, checks.

A plan is executable code for one TensorRT release and one GPU. Beside every plan lies a JSON
sidecar that says what it was built from; nothing reaches TensorRT before both have been checked.
Builders (export/build_engine.py, engines/build_with_trtexec.sh) and the runtime share this module,
which needs neither TensorRT nor onnx.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BackendError, InputError
from ..manifest import Manifest
from ..spec import GRAPH_NAMES
from .gpus import Target
from .onnx_inputs import Profile
from .versions import BUILDERS, parse_version, release

try:
    import fcntl
except ImportError:  # Windows: no second builder can be waited for there
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

SIDECAR_FORMAT = 2  # 1 did not say whether products are rounded to TF32
SIDECAR_MAX_BYTES = 1 << 16
# First bytes of a serialised plan, and where the version of its builder lies (four bytes: major,
# minor, patch, build), as `trtexec --getPlanVersionOnly` reads it.
PLAN_MAGIC = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}
PLAN_VERSION_AT = 24
TEMPORARY_SUFFIX = ".plan.tmp"


class PlanError(BackendError):
    """A plan must not be used.

    Attributes:
        reason: Why, without the path and the fix that the message may have.
    """

    def __init__(self, reason: str, message: str | None = None) -> None:
        """Keep the reason.

        Args:
            reason: Why.
            message: The whole message; the reason alone if None.
        """
        super().__init__(message or reason)
        self.reason = reason


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
            the flag is cleared.
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


def read_owned(path: Path, limit: int | None) -> bytes:
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
    text = read_owned(sidecar_path(plan), SIDECAR_MAX_BYTES)
    try:
        return Sidecar.from_json(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise PlanError("its sidecar is not text") from None


def _differences(have: PlanSpec, want: PlanSpec) -> list[str]:
    """Why a plan of ``have`` is not one of ``want``, the most decisive first."""
    differences = []
    if have.builder != want.builder or release(have.version) != release(want.version):
        differences.append(
            f"built by {have.builder} {release(have.version)}, here is {want.builder} "
            f"{release(want.version)}"
        )
    if have.target != want.target:
        differences.append(f"built for {have.target.name} ({have.target.compute_capability})")
    if have.onnx_sha256 != want.onnx_sha256:
        differences.append("built from another export of the graph")
    for name in ("graph", "precision", "tf32"):
        if getattr(have, name) != getattr(want, name):
            differences.append(f"{name} is {getattr(have, name)}, wanted {getattr(want, name)}")
    if have.profile != want.profile:
        differences.append(
            f"profile frames {have.profile.frames}, batch {have.profile.batch}; wanted "
            f"{want.profile.frames}, {want.profile.batch}"
        )
    return differences


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
        data = read_owned(path, None)
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
        begin = shown = time.monotonic()
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise InputError(f"{folder}: cannot be locked ({error.strerror})") from None
            if waiting is not None and time.monotonic() - shown >= 1.0:
                shown = time.monotonic()
                waiting(shown - begin)
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


def write_owned(path: Path, data: bytes) -> None:
    """Write a file that all can read and its owner alone can write, whatever the umask."""
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
            write_owned(temporary, content)
        for temporary, (target, _) in zip(temporaries, pairs, strict=True):
            temporary.replace(target)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    return path
