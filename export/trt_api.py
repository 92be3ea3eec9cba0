"""TensorRT 10.3 to 11.x and TensorRT-RTX 1.4 to 1.7 behind one small interface.

The two packages have nearly the same Python API; what differs is here and nowhere else:

| | tensorrt 10.x | tensorrt 11.x | tensorrt_rtx 1.x |
|---|---|---|---|
| strong typing | a flag of the network | always | a flag of the network |
| target | the GPU that is here | the GPU that is here | any, without a GPU |
| timing cache | yes | yes | needs a GPU and does nothing: not used |

Names and signatures were compared with the Python bindings of tensorrt 10.3.0, 10.13.3, 10.16.1 and
11.4.0; tensorrt_rtx 1.4.0, 1.5.0, 1.6.1 and 1.7.1 have built the shipped graphs.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpd.runtime.errors import BackendError, InputError, UsageError
from dvpd.runtime.tensorrt.gpus import Target, cuda_driver, why_rtx_unfit
from dvpd.runtime.tensorrt.onnx_inputs import GraphInput, Shape
from dvpd.runtime.tensorrt.plans import set_builder_flags
from dvpd.runtime.tensorrt.versions import (
    BUILDERS,
    INSTALL,
    MODULES,
    supported,
    supported_range,
)

WAIT_S = 0.2  # how often the caller hears that a build goes on, and an interrupt is noticed
logger = logging.getLogger("dvpd")
# Called every WAIT_S during a build with the phase that TensorRT is in and its part done, 0 to 1.
Progress = Callable[[str, float], None]


@dataclass
class Parsed:
    """A graph as TensorRT reads it; the objects keep each other alive."""

    network: Any
    builder: Any
    parser: Any


class TrtApi:
    """One of the two packages.

    Attributes:
        name: "tensorrt" or "tensorrt-rtx".
        version: Its version.
        trt: The imported module.
    """

    def __init__(self, name: str, module: Any = None) -> None:
        """Import the package and check its version.

        Args:
            name: "tensorrt" or "tensorrt-rtx".
            module: An already imported module, for tests.

        Raises:
            InputError: Unknown name.
            BackendError: The package is not there, does not load, or is of another version.
        """
        if name not in BUILDERS:
            raise InputError(f"backend is {name!r}; expected one of {', '.join(BUILDERS)}")
        if module is None:
            try:
                module = importlib.import_module(MODULES[name])
            except ModuleNotFoundError:
                raise BackendError(f"{MODULES[name]} is not installed: {INSTALL[name]}") from None
            except Exception as error:  # a package without its libraries raises whatever it likes
                raise BackendError(
                    f"{MODULES[name]} does not load ({error}): {INSTALL[name]}"
                ) from None
        self.name, self.trt, self.version = name, module, str(module.__version__)
        if not supported(name, self.version):
            raise BackendError(
                f"{name} {self.version} is not supported; expected {supported_range(name)}: "
                f"{INSTALL[name]}"
            )
        self._errors: list[str] = []
        self._log = self._make_log()

    def _make_log(self) -> Any:
        trt, errors = self.trt, self._errors

        class Log(trt.ILogger):  # type: ignore[name-defined,misc]  # loaded at run time
            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.append(" ".join(message.split()))
                elif severity == trt.ILogger.WARNING:
                    logger.debug("%s", message)

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

        return Log()

    def _failure(self, what: str) -> BackendError:
        """An error with the last things that TensorRT said."""
        said = "; ".join(dict.fromkeys(self._errors[-3:])) or "it gave no reason"
        return BackendError(f"{self.name} {self.version} {what}: {said}")

    def targets(self) -> list[str]:
        """What can be built here: names for --target."""
        if self.name == "tensorrt":
            return ["local"]
        names = [n.lower() for n in dir(self.trt.ComputeCapability) if n.startswith("SM")]
        return ["portable", *sorted(names, key=lambda n: int(n[2:])), "local"]

    def target(self, text: str | None) -> Target:
        """The target that a command line names.

        Args:
            text: "local", "portable", "sm89" or several, "sm86,sm89"; None for this package's usual one:
                TensorRT the GPU that is here, TensorRT-RTX portable.

        Raises:
            InputError: This package does not build for it.
            BackendError: "local" without a GPU.
        """
        text = text or ("local" if self.name == "tensorrt" else "portable")
        if not set(text.split(",")) <= set(self.targets()):
            if self.name == "tensorrt":
                raise UsageError(
                    f"target is {text!r}; TensorRT builds plans only for the GPU that is here "
                    "(local): build on the device, or use --backend tensorrt-rtx"
                )
            raise UsageError(
                f"target is {text!r}; TensorRT-RTX {self.version} builds for "
                f"{', '.join(self.targets())}"
            )
        if text != "local":
            return Target.parse(text)
        driver = cuda_driver()
        if driver is None or not driver.gpus:
            fix = "run this on the machine that has one"
            if self.name == "tensorrt-rtx":
                fix += ", or name a target: " + ", ".join(self.targets()[:-1])
            raise BackendError(f"target local needs an NVIDIA GPU with a working driver: {fix}")
        gpu = driver.gpus[0]
        if self.name == "tensorrt-rtx":
            if why := why_rtx_unfit(gpu):
                raise InputError(f"target local: {why}")
            # TensorRT-RTX compiles for a capability, not for a board.
            name = f"sm{gpu.compute_capability.replace('.', '')}"
            if name not in self.targets():
                raise InputError(
                    f"{gpu.name} has compute capability {gpu.compute_capability}; TensorRT-RTX "
                    f"{self.version} builds for {', '.join(self.targets()[1:-1])}: use "
                    "--backend tensorrt"
                )
            return Target.parse(name)
        return Target(gpu.name, gpu.compute_capability)

    def parse(self, path: Path) -> Parsed:
        """Read a graph as a strongly typed network.

        Args:
            path: An exported graph.

        Raises:
            BackendError: An operator or attribute is not supported by this version, by name.
        """
        trt = self.trt
        self._errors.clear()
        builder = trt.Builder(self._log)
        # TensorRT 11 has no other networks; it still knows the flag, a later one may not.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(path)):
            problems = []
            for i in range(parser.num_errors):
                error = parser.get_error(i)
                node = f"node {error.node_name()} ({error.node_operator()}): "
                problems.append((node if error.node_operator() else "") + error.desc())
            raise BackendError(
                f"{path}: {self.name} {self.version} cannot parse it: "
                f"{'; '.join(problems[:3]) or 'it gave no reason'}: update TensorRT, or export the "
                "engine again"
            )
        return Parsed(network, builder, parser)

    def check_inputs(self, parsed: Parsed, inputs: tuple[GraphInput, ...], path: Path) -> None:
        """Compare the inputs that TensorRT found with the graph's own.

        Args:
            parsed: From ``parse``.
            inputs: From ``dvpd.runtime.tensorrt.onnx_inputs.graph_inputs``.
            path: For the message.

        Raises:
            BackendError: A name or a fixed size differs, or a dynamic size was fixed.
        """
        found = {}
        for i in range(parsed.network.num_inputs):
            tensor = parsed.network.get_input(i)
            found[tensor.name] = tuple(tensor.shape)
        wanted = {v.name: tuple(-1 if isinstance(d, str) else d for d in v.shape) for v in inputs}
        if found != wanted:
            raise BackendError(
                f"{path}: {self.name} {self.version} reads the inputs as {found}; the graph has "
                f"{wanted}: report it with this line"
            )

    def build(
        self,
        parsed: Parsed,
        shapes: Mapping[str, tuple[Shape, Shape, Shape]],
        target: Target,
        timing_cache: bytes | None = None,
        progress: Progress | None = None,
        *,
        exact: bool = False,
    ) -> tuple[bytes, bytes | None]:
        """Compile a parsed graph.

        Runs in a thread of its own, so that progress is reported and an interrupt ends it.

        Args:
            parsed: From ``parse``.
            shapes: Shapes (min, opt, max) of every input.
            target: From ``target``.
            timing_cache: What an earlier build on this machine returned; tensorrt only.
            progress: Called every ``WAIT_S``.
            exact: Whether float32 products must not be rounded to TF32.

        Returns:
            The plan, and the timing cache with what was learnt (None on tensorrt_rtx).

        Raises:
            BackendError: No plan came out; the message holds TensorRT's reasons.
        """
        trt, builder = self.trt, parsed.builder
        self._errors.clear()
        config = builder.create_builder_config()
        set_builder_flags(trt, config, self.name, exact)
        profile = builder.create_optimization_profile()
        for tensor, (low, opt, high) in shapes.items():
            profile.set_shape(tensor, low, opt, high)
        if config.add_optimization_profile(profile) < 0:
            raise self._failure("refuses the optimisation profile")
        if self.name == "tensorrt-rtx" and target.name != "portable":
            names = target.name.upper().split(",")
            config.num_compute_capabilities = len(names)
            for i, name in enumerate(names):
                config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
        if self.name == "tensorrt":
            self._set_timing_cache(config, timing_cache)
        monitor = self._monitor()
        config.progress_monitor = monitor
        result: list[Any] = []

        def work() -> None:
            try:
                result.append(builder.build_serialized_network(parsed.network, config))
            except Exception as error:  # pybind's own types; reported with TensorRT's messages
                self._errors.append(str(error))

        # A daemon: if TensorRT does not heed the monitor, the process still ends when asked to.
        thread = threading.Thread(target=work, name="tensorrt-build", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(WAIT_S)
                if progress is not None:
                    progress(*monitor.state())
        except BaseException:
            monitor.cancelled = True
            thread.join(10.0)
            raise
        if not result or result[0] is None:
            raise self._failure("parses the graph but builds no plan")
        cache = None
        if self.name == "tensorrt":
            cache = bytes(config.get_timing_cache().serialize())
        return bytes(result[0]), cache

    def _set_timing_cache(self, config: Any, data: bytes | None) -> None:
        cache = config.create_timing_cache(data or b"")
        if cache is None or not config.set_timing_cache(cache, False):
            logger.warning("the timing cache is of another TensorRT or GPU: measuring again")
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def _monitor(self) -> Any:
        trt = self.trt

        class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]  # as above
            """Knows the innermost phase, and how far the outermost ones are."""

            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)
                self.cancelled = False
                self._open: dict[str, list[int]] = {}

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                self._open[phase] = [0, max(steps, 1)]

            def step_complete(self, phase: str, step: int) -> bool:
                if phase in self._open:
                    self._open[phase][0] = step + 1
                return not self.cancelled  # False ends the build

            def phase_finish(self, phase: str) -> None:
                self._open.pop(phase, None)

            def state(self) -> tuple[str, float]:
                done, width, name = 0.0, 1.0, ""
                for phase, (step, steps) in list(self._open.items()):
                    name = phase
                    done += width * min(step, steps) / steps
                    width /= steps
                return name, min(done, 1.0)

        return Monitor()
