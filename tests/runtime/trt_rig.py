"""An engine folder with plans on a pretended GPU, for tests of the TensorRT path."""

from dataclasses import replace

from fake_cuda import FakeCuda, make_trt, plan_bytes

from dvpd.runtime.backends.base import LoadOptions
from dvpd.runtime.backends.cuda import Cuda
from dvpd.runtime.backends.trt import TrtBackend
from dvpd.runtime.backends.trt_stream import TrtStreamBackend
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.tensorrt import gpus, onnx_inputs, plans, versions

GPU = gpus.Gpu("Test GPU", "8.7")
RTX = gpus.Gpu("Test RTX", "8.9")
PROFILE = onnx_inputs.Profile((32, 64, 128), (1, 1, 4))


class Rig:
    """An engine folder with plans, a pretended GPU, and ways to open it."""

    def __init__(self, folder, name="tensorrt", version="10.3.0", target=None, **gpu):
        self.folder, self.name, self.version = folder, name, version
        self.manifest = Manifest.load(folder)
        self.gpu = FakeCuda(**gpu)
        self.magic = plans.PLAN_MAGIC[name]
        self.trt = make_trt(self.gpu, version, self.magic)
        live = self.manifest.causal is not None
        self.profile = onnx_inputs.Profile.usual(True) if live else PROFILE
        self.target = target or gpus.Target(GPU.name, GPU.compute_capability)

    def build(self, **changes):
        for graph in ("predictive", "score"):
            spec = plans.plan_spec(
                self.manifest, graph, self.name, self.version, self.target, self.profile
            )
            data = (self.folder / f"{graph}.onnx").read_bytes()
            numbers = versions.parse_version(self.version)[:3]
            spec = replace(spec, **changes)
            plans.install_plan(self.folder, spec, plan_bytes(data, self.magic, numbers))
        return self

    def open(self, device="cuda", gpu=None, **options):
        options = LoadOptions(
            self.folder / "predictive.onnx", self.folder / "score.onnx", self.manifest, device, None,
            **options,
        )  # fmt: skip
        cuda = Cuda(0, self.gpu.runtime, self.gpu.driver)
        gpu = gpu or (GPU if self.name == "tensorrt" else RTX)
        kind = TrtBackend if self.manifest.causal is None else TrtStreamBackend
        return kind(options, self.name, trt=self.trt, cuda=cuda, gpu=gpu)
