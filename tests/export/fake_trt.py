"""A recording stand-in for the tensorrt Python package, for what cannot run without a GPU.

It has the names that export/trt_api.py uses and nothing else, so that a call outside the API of
TensorRT 10.3 to 11.x fails; ``API`` lists them for a comparison with the real packages.
"""

from __future__ import annotations

import enum
import types
from pathlib import Path

from dvpd.runtime.tensorrt import onnx_inputs, plans, versions

# Class -> attributes in use. Compared with the genuine bindings in test_trt_api.py.
API = {
    "Builder": (
        "create_network",
        "create_builder_config",
        "create_optimization_profile",
        "build_serialized_network",
    ),
    "IBuilderConfig": (
        "add_optimization_profile",
        "clear_flag",
        "set_flag",
        "create_timing_cache",
        "get_timing_cache",
        "progress_monitor",
        "set_timing_cache",
    ),
    "IOptimizationProfile": ("set_shape",),
    "INetworkDefinition": ("num_inputs", "get_input", "num_layers"),
    "ITensor": ("name", "shape"),
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "ParserError": ("desc", "node_name", "node_operator"),
    "ILogger": ("log", "ERROR", "INTERNAL_ERROR", "WARNING"),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
    "ITimingCache": ("serialize",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "BuilderFlag": ("TF32", "REQUIRE_USER_ALLOCATION"),  # the second is TensorRT-RTX's alone
}


def make(version="10.3.0", *, lacks=(), builds=True, steps=3, wait=lambda: None):
    """A module like tensorrt ``version``.

    Args:
        version: Its __version__.
        lacks: Operators that its parser does not know.
        builds: False for a builder that ends without a plan.
        steps: Progress steps of a build.
        wait: Called in every step.

    Returns:
        The module; ``calls`` is the list of what was called.
    """
    calls = []

    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = list(Severity)[:3]

        def __init__(self):
            calls.append(("ILogger",))

    class IProgressMonitor:
        def __init__(self):
            calls.append(("IProgressMonitor",))

    class Flag(enum.IntEnum):
        STRONGLY_TYPED = 1

    class BuilderFlag(enum.IntEnum):
        TF32 = 0

    class Tensor:
        def __init__(self, value):
            self.name = value.name
            self.shape = tuple(-1 if isinstance(d, str) else d for d in value.shape)

    class Network:
        num_inputs = num_layers = 0

        def get_input(self, i):
            return self.inputs[i]

    class Cache:
        def __init__(self, data):
            self.data = data

        def serialize(self):
            return b"learnt:" + self.data

    class Config:
        progress_monitor = None

        def __init__(self):
            self.flags = {BuilderFlag.TF32}  # TensorRT's default

        def clear_flag(self, flag):
            self.flags.discard(flag)

        def set_flag(self, flag):
            self.flags.add(flag)

        def add_optimization_profile(self, profile):
            calls.append(("add_optimization_profile", profile.shapes))
            return 0

        def create_timing_cache(self, data):
            return Cache(bytes(data))

        def set_timing_cache(self, cache, ignore_mismatch):
            assert ignore_mismatch is False
            calls.append(("set_timing_cache", cache.data))
            self.cache = cache
            return not cache.data.startswith(b"foreign")

        def get_timing_cache(self):
            return self.cache

    class OptimizationProfile:
        def __init__(self):
            self.shapes = {}

        def set_shape(self, name, low, opt, high):
            self.shapes[name] = (low, opt, high)

    class Builder:
        def __init__(self, log):
            self.log = log

        def create_network(self, flags):
            calls.append(("create_network", flags))
            return Network()

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return OptimizationProfile()

        def build_serialized_network(self, network, config):
            calls.append(("build_serialized_network", sorted(f.name for f in config.flags)))
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 1)
            monitor.phase_start("Timing", "Building", steps)
            for i in range(steps):
                wait()
                if not monitor.step_complete("Timing", i):
                    calls.append(("cancelled",))
                    return None
            monitor.phase_finish("Timing")
            if not builds:
                self.log.log(Severity.ERROR, "no tactic\n fits")
                return None
            numbers = versions.parse_version(version)
            head = b"ftrt".ljust(plans.PLAN_VERSION_AT, b"\0")
            return head + bytes([*numbers, 0][:4]) + bytes(1000)

    class ParserError:
        def __init__(self, operator):
            self.operator = operator

        def desc(self):
            return f"no importer registered for op: {self.operator}"

        def node_name(self):
            return "node_7"

        def node_operator(self):
            return self.operator

    class OnnxParser:
        def __init__(self, network, log):
            self.network = network
            self.errors = []

        @property
        def num_errors(self):
            return len(self.errors)

        def get_error(self, i):
            return self.errors[i]

        def parse_from_file(self, path):
            assert isinstance(path, str)
            import onnx

            operators = {node.op_type for node in onnx.load(path).graph.node}
            self.errors = [ParserError(op) for op in sorted(operators & set(lacks))]
            self.network.inputs = [Tensor(v) for v in onnx_inputs.graph_inputs(Path(path))]
            self.network.num_inputs = len(self.network.inputs)
            self.network.num_layers = 1
            return not self.errors

    module = types.SimpleNamespace(
        __version__=version,
        ILogger=ILogger,
        IProgressMonitor=IProgressMonitor,
        NetworkDefinitionCreationFlag=Flag,
        BuilderFlag=BuilderFlag,
        Builder=Builder,
        OnnxParser=OnnxParser,
        calls=calls,
    )
    return module
