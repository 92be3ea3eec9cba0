"""A recording stand-in for cuda.bindings.runtime, .driver and the TensorRT packages.

Device memory has addresses that the host cannot read; work on a stream waits until the stream is
synchronised; engines run their ONNX graph in ONNX Runtime on that memory. So numbers are real, and
these end a test: work on freed or foreign memory, tensors without address or shape, shapes outside
the profile, calls that are illegal while a stream captures, a graph that outlives its memory,
a host copy of ``feat_*``, results read before they are there.
"""

from __future__ import annotations

import enum
import types

import numpy as np

from dvpd.runtime.tensorrt import plans, versions


class Misuse(AssertionError):
    """What a real GPU would answer with a crash or a wrong result."""


class cudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorDevicesUnavailable = 46
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900


OK = cudaError.cudaSuccess


class FakeCuda:
    """State of one pretended GPU; ``runtime`` and ``driver`` are the modules.

    Attributes:
        calls: Names of the runtime's functions, in order.
        copies: (kind, bytes) of copies that were executed.
        fail: Function name -> status it returns from now on.
        capacity: Bytes of device memory.
    """

    FIRST = 0x7F00_0000_0000

    def __init__(self, count=1, driver_version=13000, capacity=1 << 32):
        self.calls, self.copies, self.fail = [], [], {}
        self.capacity, self.count, self.version = capacity, count, driver_version
        self.device, self.context, self.primary = 0, 0, 77
        self.memory, self.pinned, self.feats = {}, {}, {}
        self.next, self.next_handle = self.FIRST, 1
        self.streams, self.capture, self.graphs, self.execs = {}, None, {}, {}
        self.capture_ok = True
        functions = {n: getattr(self, n) for n in dir(self) if n.startswith("cuda")}
        self.runtime = types.SimpleNamespace(
            cudaMemcpyKind=types.SimpleNamespace(cudaMemcpyDefault=4),
            cudaStreamCaptureMode=types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
            **{name: self._recorded(name, f) for name, f in functions.items()},
        )
        self.driver = types.SimpleNamespace(
            cuCtxGetCurrent=lambda: (0, self.context),
            cuCtxGetDevice=lambda: (0, self.device),
            cuDevicePrimaryCtxRetain=lambda device: (0, self.primary),
            cuDevicePrimaryCtxRelease=lambda device: (0,),
        )

    def _recorded(self, name, function):
        def call(*args):
            self.calls.append(name)
            if name in self.fail:
                return (self.fail[name], None)
            return function(*args)

        return call

    def handle(self):
        self.next_handle += 1
        return self.next_handle

    def no_capture(self, what):
        if self.capture is not None:
            raise Misuse(f"{what} while a stream captures")

    # memory

    def find(self, address, n_bytes):
        """The live bytes at an address of the device."""
        for base, data in self.memory.items():
            if base <= address and address + n_bytes <= base + len(data):
                return data[address - base : address - base + n_bytes]
        raise Misuse(f"{n_bytes} bytes at {address:#x} are no live device memory")

    def array(self, address, shape, dtype):
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.find(address, n_bytes).view(dtype).reshape(shape)

    def put(self, array, **changes):
        """Someone else's array on the device; ``changes`` of its interface, None removes a key."""
        _, address = self.cudaMalloc(array.nbytes)
        self.find(address, array.nbytes)[:] = array.view(np.uint8).ravel()
        table = {"shape": array.shape, "typestr": array.dtype.str, "version": 3, "strides": None}
        table |= {"data": (address, False), "stream": 1} | changes
        table = {key: value for key, value in table.items() if value is not None}
        return types.SimpleNamespace(__cuda_array_interface__=table)

    def used(self):
        return sum(map(len, self.memory.values()))

    def cudaMalloc(self, size):
        self.no_capture("cudaMalloc")
        if self.used() + size > self.capacity:
            return cudaError.cudaErrorMemoryAllocation, None
        address, self.next = self.next, self.next + -(-size // 4096) * 4096 + 4096
        self.memory[address] = np.full(size, 0xFF, np.uint8)  # NaN until written
        return OK, address

    def cudaMallocHost(self, size):
        self.no_capture("cudaMallocHost")
        data = np.full(size, 0xFF, np.uint8)
        self.pinned[data.ctypes.data] = data
        return OK, data.ctypes.data

    def cudaFree(self, address):
        self.no_capture("cudaFree")
        if address:
            if any(self.streams.values()):
                raise Misuse("memory freed while work waits")
            if self.memory.pop(address, None) is None:
                raise Misuse("memory freed twice, or never allocated")
        return (OK,)

    def cudaFreeHost(self, address):
        self.no_capture("cudaFreeHost")
        if self.pinned.pop(address, None) is None:
            raise Misuse("pinned memory freed twice, or never allocated")
        return (OK,)

    def _side(self, address, n_bytes):
        if address >= self.FIRST and address < self.next:
            return "D", self.find(address, n_bytes)
        for base, data in self.pinned.items():
            if base <= address and address + n_bytes <= base + len(data):
                return "H", data[address - base : address - base + n_bytes]
        raise Misuse(f"{n_bytes} bytes at {address:#x} are neither device nor pinned memory")

    def cudaMemcpyAsync(self, target, source, n_bytes, kind, stream):
        self._side(target, n_bytes), self._side(source, n_bytes)

        def copy():
            (to, there), (come, here) = self._side(target, n_bytes), self._side(source, n_bytes)
            if to == "H":
                for first, size in self.feats.items():
                    if first < source + n_bytes and source < first + size:
                        raise Misuse("feat_* copied to the host")
            there[:] = here
            self.copies.append((f"{come}2{to}", n_bytes))

        self.enqueue(stream, copy)
        return (OK,)

    def cudaMemsetAsync(self, target, value, n_bytes, stream):
        self.find(target, n_bytes)

        def fill():
            self.find(target, n_bytes)[:] = value

        self.enqueue(stream, fill)
        return (OK,)

    # streams and graphs

    def enqueue(self, stream, work):
        if self.capture is not None and self.capture[0] == stream:
            self.capture[1].append(work)
        elif stream not in self.streams:
            raise Misuse(f"no stream {stream}")
        else:
            self.streams[stream].append(work)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == 1
        stream = self.handle()
        self.streams[stream] = []
        return OK, stream

    def cudaStreamDestroy(self, stream):
        if self.streams.pop(stream):
            raise Misuse("stream destroyed with work on it")
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        self.no_capture("cudaStreamSynchronize")
        for work in self.streams[stream] if stream not in (0, 1) else []:
            work()
        if stream in self.streams:
            self.streams[stream] = []
        return (OK,)

    def cudaDeviceSynchronize(self):
        self.no_capture("cudaDeviceSynchronize")
        for stream in self.streams:
            self.cudaStreamSynchronize(stream)
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.no_capture("a second capture")
        self.capture = (stream, [])
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        if self.capture is None or self.capture[0] != stream:
            raise Misuse("this stream captures nothing")
        works, self.capture = self.capture[1], None
        if not self.capture_ok:
            return cudaError.cudaErrorStreamCaptureUnsupported, None
        graph = self.handle()
        self.graphs[graph] = works
        return OK, graph

    def cudaGraphInstantiate(self, graph, flags):
        executable = self.handle()
        self.execs[executable] = list(self.graphs[graph])
        return OK, executable

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (OK,)

    def cudaGraphExecDestroy(self, graph):
        del self.execs[graph]
        return (OK,)

    def cudaGraphLaunch(self, graph, stream):
        if graph not in self.execs:
            raise Misuse("this graph was destroyed")
        for work in self.execs[graph]:
            self.enqueue(stream, work)
        return (OK,)

    # devices

    def cudaGetDeviceCount(self):
        if not self.version:
            return cudaError.cudaErrorInsufficientDriver, None
        return (OK, self.count) if self.count else (cudaError.cudaErrorNoDevice, None)

    def cudaDriverGetVersion(self):
        return OK, self.version

    def cudaGetDevice(self):
        return OK, self.device

    def cudaSetDevice(self, index):
        self.device = index
        return (OK,)


def plan_bytes(onnx_bytes, magic=b"ftrt", version=(10, 3, 0)):
    """A plan that the fake runs: a real header, then the ONNX graph."""
    head = magic.ljust(plans.PLAN_VERSION_AT, b"\0") + bytes([*version, 0]).ljust(8, b"\0")
    return head + onnx_bytes


def make_trt(cuda, version="10.3.0", magic=b"ftrt", scratch=4096):
    """A module like tensorrt whose engines run in ONNX Runtime on ``cuda``'s memory."""
    import onnxruntime

    numbers = versions.parse_version(version)[:3]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    module = types.SimpleNamespace(
        __version__=version, contexts=0, refuse=set(), said="", allocates=False,
        settings=[], caches=[], flags=[],
    )  # fmt: skip
    numpy_types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

        def __init__(self):
            pass

    class Mode(enum.Enum):
        INPUT, OUTPUT = range(2)

    class Strategy(enum.Enum):
        STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)

    rtx = magic == plans.PLAN_MAGIC["tensorrt-rtx"]

    class Context:
        def __init__(self, engine, settings=None):
            self.engine, self.shapes, self.addresses, self.memory = engine, {}, {}, None
            module.contexts += 1
            self.settings = settings
            if rtx:
                module.settings.append(settings)

        if rtx:

            def is_stream_capturable(self, stream):
                return self.engine.user_allocates and stream in cuda.streams

        def set_input_shape(self, name, shape):
            cuda.no_capture("set_input_shape")
            profile = self.engine.profile.get(name)
            if profile and not all(
                low <= size <= high
                for size, low, high in zip(shape, profile[0], profile[2], strict=True)
            ):
                raise Misuse(f"{name} {shape} is outside the profile {profile}")
            self.shapes[name] = tuple(shape)
            return True

        def infer_shapes(self):
            return [n for n in self.engine.inputs if n not in self.shapes]

        def get_tensor_shape(self, name):
            if name in self.shapes:
                return self.shapes[name]
            return self.engine.outputs_of(self.shapes)[name]

        def update_device_memory_size_for_shapes(self):
            return scratch

        def set_device_memory(self, address, size):
            if address % 256 or size < scratch:
                raise Misuse(f"scratch memory at {address:#x}, {size} bytes")
            cuda.find(address, size)
            self.memory = (address, size)

        def set_tensor_address(self, name, address):
            if name not in self.engine.names or address % 256:
                raise Misuse(f"{name} at {address:#x}")
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream):
            if self.infer_shapes() or self.memory is None:
                raise Misuse("enqueue before shapes and memory are set")
            if missing := set(self.engine.names) - set(self.addresses):
                raise Misuse(f"enqueue before the addresses of {missing} are set")
            if self.engine.graph_name in module.refuse:
                self.engine.log.log(ILogger.ERROR, module.said)
                return False
            addresses, shapes = dict(self.addresses), dict(self.shapes)
            outputs = self.engine.outputs_of(shapes)
            for name in self.engine.names:
                shape, dtype = shapes.get(name) or outputs[name], self.engine.types[name]
                size = cuda.array(addresses[name], shape, dtype).nbytes
                if name.startswith("feat_"):
                    cuda.feats[addresses[name]] = size

            eager = self.settings and self.settings.specialise is Specialise.EAGER
            if rtx and cuda.capture and not eager:
                raise Misuse("the slow kernels that fit every shape are captured for good")

            def launch():
                cuda.find(*self.memory)
                feed = {n: cuda.array(addresses[n], shapes[n], self.engine.types[n]).copy()
                        for n in self.engine.inputs}  # fmt: skip
                results = self.engine.session.run(None, feed)
                for value, got in zip(self.engine.session.get_outputs(), results, strict=True):
                    cuda.array(addresses[value.name], got.shape, got.dtype)[...] = got

            launch.kernel = self.engine.graph_name
            cuda.enqueue(stream, launch)
            return True

    class Engine:
        num_optimization_profiles = 1

        def __init__(self, data, log):
            self.session = onnxruntime.InferenceSession(data, settings)
            self.log, self.profile = log, module.profiles
            values = [*self.session.get_inputs(), *self.session.get_outputs()]
            self.names = [v.name for v in values]
            self.inputs = [v.name for v in self.session.get_inputs()]
            self.types = {v.name: numpy_types[v.type] for v in values}
            self.fixed = {v.name: v.shape for v in values}
            self.graph_name = "+".join(v.name for v in self.session.get_outputs()[:1])
            self.num_io_tensors = len(values)
            self.known = {}
            self.user_allocates = not module.allocates

        def outputs_of(self, shapes):
            key = tuple(sorted(shapes.items()))
            if key not in self.known:
                feed = {n: np.ones(shapes[n], self.types[n]) for n in self.inputs}
                results = self.session.run(None, feed)
                names = [v.name for v in self.session.get_outputs()]
                self.known[key] = {n: r.shape for n, r in zip(names, results, strict=True)}
            return self.known[key]

        def get_tensor_name(self, i):
            return self.names[i]

        def get_tensor_mode(self, name):
            return Mode.INPUT if name in self.inputs else Mode.OUTPUT

        def get_tensor_dtype(self, name):
            return self.types[name]

        def get_tensor_shape(self, name):
            return tuple(s if isinstance(s, int) else -1 for s in self.fixed[name])

        def create_execution_context(self, settings):
            cuda.no_capture("create_execution_context")
            strategy = settings.strategy if isinstance(settings, RuntimeConfig) else settings
            assert strategy is Strategy.USER_MANAGED
            return Context(self, settings if isinstance(settings, RuntimeConfig) else None)

        if rtx:

            def create_runtime_config(self):
                return RuntimeConfig()

    class Runtime:
        def __init__(self, log):
            self.log = log

        def deserialize_cuda_engine(self, data):
            head = magic.ljust(plans.PLAN_VERSION_AT, b"\0") + bytes(numbers)
            if not bytes(data).startswith(head):
                self.log.log(ILogger.ERROR, "the engine plan file is of another version")
                return None
            return Engine(bytes(data)[plans.PLAN_VERSION_AT + 8 :], self.log)

    class Specialise(enum.Enum):
        LAZY, EAGER, NONE = range(3)

    class Cache:
        data = b""

        def deserialize(self, data):
            fits = data.startswith(b"kernels")
            self.data = bytes(data) if fits else self.data
            return fits

        def serialize(self):
            return self.data or b"kernels of this run"

    class RuntimeConfig:
        def __init__(self):
            self.strategy, self.specialise, self.cache = Strategy.STATIC, Specialise.LAZY, None

        def set_execution_context_allocation_strategy(self, strategy):
            self.strategy = strategy

        @property
        def dynamic_shapes_kernel_specialization_strategy(self):
            return self.specialise

        @dynamic_shapes_kernel_specialization_strategy.setter
        def dynamic_shapes_kernel_specialization_strategy(self, value):
            self.specialise = value

        def create_runtime_cache(self):
            module.caches.append(Cache())
            return module.caches[-1]

        def set_runtime_cache(self, cache):
            self.cache = cache
            return True

    class Flag(enum.Enum):
        TF32, REQUIRE_USER_ALLOCATION = range(2)

    class Config:
        def __init__(self):
            self.flags = {Flag.TF32}

        def set_flag(self, flag):
            self.flags.add(flag)

        def clear_flag(self, flag):
            self.flags.discard(flag)

        def add_optimization_profile(self, profile):
            return 0

    class OptimizationProfile:
        def set_shape(self, name, low, opt, high):
            assert low <= opt <= high

    class Network:
        data = b""

    class Builder:
        def __init__(self, log):
            pass

        def create_network(self, flags):
            return Network()

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return OptimizationProfile()

        def build_serialized_network(self, network, config):
            module.flags.append({flag.name for flag in config.flags})
            return plan_bytes(network.data, magic, numbers)

    class OnnxParser:
        def __init__(self, network, log):
            self.network = network

        def parse(self, data):
            self.network.data = data
            return True

    module.profiles = {}
    module.ILogger, module.TensorIOMode = ILogger, Mode
    module.ExecutionContextAllocationStrategy = Strategy
    module.BuilderFlag = Flag
    if rtx:
        module.DynamicShapesKernelSpecializationStrategy = Specialise
    module.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    module.nptype = lambda dtype: dtype
    module.Runtime, module.Builder, module.OnnxParser = Runtime, Builder, OnnxParser
    return module
