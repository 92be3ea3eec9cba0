"""Building plans: TensorRT-RTX for real, TensorRT against a recording stand-in."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_trt
import pytest

from dvpd.export import build_engine, trt_api
from dvpd.runtime import cli, progress
from dvpd.runtime.errors import BackendError, InputError, ManifestError
from dvpd.runtime.files import sha256_file
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import GRAPH_NAMES
from dvpd.runtime.tensorrt import gpus, onnx_inputs, plans, versions
from dvpd.runtime.tensorrt.gpus import Gpu
from dvpd.runtime.tensorrt.onnx_inputs import Profile

ROOT = Path(__file__).resolve().parent.parent.parent
ENGINES = ROOT / "engines"
CARDS = "sm86,sm89,sm120"  # what TensorRT-RTX builds for without a GPU, beside the portable plan
rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: dvpd[rtx]",
)


def copy_engine(source, folder):
    keep = shutil.ignore_patterns("*.plan*", "*.safetensors", "*.jsonl")
    return Path(shutil.copytree(source, folder, ignore=keep))


@pytest.fixture
def tiny(tmp_path):
    return copy_engine(ENGINES / "dvpd-tiny-fp16", tmp_path / "tiny")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def orin(monkeypatch):
    driver = gpus.CudaDriver((12, 6), (Gpu("Orin", "8.7"),))
    monkeypatch.setattr(trt_api, "cuda_driver", lambda: driver)
    return driver


def names(folder, pattern="*.plan*"):
    return sorted(p.name for p in folder.glob(pattern))


# ------------------------------------------------------------------------------------------------
# TensorRT-RTX, for real


def built_and_reused(folder, target, capsys):
    """Build both graphs with the command, check the plans, run it again."""
    args = ["build", str(folder), "--backend", "tensorrt-rtx", "--target", target, "--json"]
    assert cli.main(args) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["plans"]
    assert [(r["graph"], r["reused"]) for r in rows] == [(g, False) for g in GRAPH_NAMES]
    assert "layers parsed" in printed.err
    slug = target.replace(",", "-")
    for row in rows:
        path = Path(row["path"])
        version = versions.release(trt_api.TrtApi("tensorrt-rtx").version)
        precision = Manifest.load(folder).precision
        assert path.name == f"{row['graph']}.tensorrt-rtx-{version}.{slug}.{precision}.plan"
        assert path.stat().st_size == row["size_bytes"] > 1_000_000
        assert path.read_bytes()[:4] == b"vtrt"
        assert json.loads(plans.sidecar_path(path).read_text())["key"] == row["key"]
    assert names(folder, ".*") == []
    assert cli.main(args) == 0
    assert all(r["reused"] for r in json.loads(capsys.readouterr().out)["plans"])


# The two shipped engines have the same operators: each target once, a build takes half a minute.
@rtx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target"), [("dvpd-base", "portable"), ("dvpd-tiny", CARDS)], ids=str
)
def test_shipped_engines_build_for_every_target(name, target, tmp_path, capsys):
    folder = copy_engine(ENGINES / f"{name}-fp16", tmp_path / "copy")
    assert Manifest.load(folder).name == name
    built_and_reused(folder, target, capsys)


@rtx
def test_shipped_engines_have_the_same_operators():
    import onnx

    for graph in GRAPH_NAMES:
        kinds = [
            {(n.op_type, n.domain) for n in onnx.load(str(path)).graph.node}
            for path in ENGINES.glob(f"dvpd-*-fp16/{graph}.onnx")
            if Manifest.load(path.parent).causal is None  # test_live.py builds those
        ]
        assert len(kinds) > 1
        assert all(k == kinds[0] for k in kinds)


@rtx
def test_single_card_of_a_small_model(fp16, tmp_path, capsys, monkeypatch):
    flags = []

    def spy(trt, config, *args):
        plans.set_builder_flags(trt, config, *args)
        names = ("REQUIRE_USER_ALLOCATION", "TF32")
        flags.append({n for n in names if config.get_flag(getattr(trt.BuilderFlag, n))})

    monkeypatch.setattr(trt_api, "set_builder_flags", spy)
    built_and_reused(copy_engine(fp16.folder, tmp_path / "small"), "sm89", capsys)
    assert flags == 2 * [{"REQUIRE_USER_ALLOCATION", "TF32"}]  # without the first no capture


@rtx
def test_the_names_that_the_runtime_uses_of_rtx_are_there():
    import tensorrt_rtx

    for name in (
        "BuilderFlag.REQUIRE_USER_ALLOCATION",
        "BuilderFlag.TF32",
        "DynamicShapesKernelSpecializationStrategy.EAGER",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "ICudaEngine.create_runtime_config",
        "IExecutionContext.is_stream_capturable",
        "IRuntimeCache.deserialize",
        "IRuntimeCache.serialize",
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
        "IRuntimeConfig.set_execution_context_allocation_strategy",
        "IRuntimeConfig.set_runtime_cache",
    ):
        cls, attribute = name.split(".")
        assert hasattr(getattr(tensorrt_rtx, cls), attribute), name
    known = {n for n in dir(tensorrt_rtx.ComputeCapability) if n.startswith("SM")}
    assert known <= {f"SM{c.replace('.', '')}" for c in gpus.RTX_CAPABILITIES}


@rtx
def test_real_parser_names_the_operator_it_lacks(tiny):
    import onnx

    path = tiny / "score.onnx"
    model = onnx.load(str(path))
    node = next(n for n in model.graph.node if n.op_type == "Sigmoid")
    node.op_type, node.name = "Col2Im", "odd_one"
    onnx.save(model, str(path))
    with pytest.raises(BackendError, match=r"cannot parse it: node odd_one \(Col2Im\)"):
        trt_api.TrtApi("tensorrt-rtx").parse(path)
    path.write_bytes(b"no graph")
    with pytest.raises(BackendError, match="cannot parse it"):
        trt_api.TrtApi("tensorrt-rtx").parse(path)


@rtx
def test_real_builder_refuses_what_does_not_fit():
    api = trt_api.TrtApi("tensorrt-rtx")
    onnx = ENGINES / "dvpd-tiny-fp16" / "predictive.onnx"
    parsed = api.parse(onnx)
    inputs = onnx_inputs.graph_inputs(onnx)
    api.check_inputs(parsed, inputs, onnx)
    with pytest.raises(BackendError, match="reads the inputs as"):
        api.check_inputs(parsed, (dataclasses.replace(inputs[0], shape=("B", 3, 64, 257)),), onnx)
    odd = {"noisy": ((1, 3, 33, 257),) * 3}  # Profile refuses it; the builder must, too
    with pytest.raises(BackendError, match=r"builds no plan: \w+"):
        api.build(parsed, odd, api.target("portable"))


@rtx
def test_targets_of_this_version():
    api = trt_api.TrtApi("tensorrt-rtx")
    assert {"portable", "local", *CARDS.split(",")} <= set(api.targets())
    assert api.target(None).name == "portable"
    assert api.target(CARDS).compute_capability == "8.6,8.9,12.0"
    for wrong in ("sm87", "sm90", "orin", "portable,sm87", "sm89,"):
        with pytest.raises(InputError, match="builds for portable, sm75"):
            api.target(wrong)


@rtx
def test_rtx_on_a_card_that_is_here(monkeypatch):
    api = trt_api.TrtApi("tensorrt-rtx")
    for gpu, name in (
        (Gpu("NVIDIA GeForce RTX 4090", "8.9"), "sm89"),
        (Gpu("NVIDIA H100 PCIe", "9.0"), None),
        (Gpu("Orin", "8.7"), None),
    ):
        driver = gpus.CudaDriver((13, 0), (gpu,))
        monkeypatch.setattr(trt_api, "cuda_driver", lambda driver=driver: driver)
        if name:
            assert api.target("local") == gpus.Target.parse(name)
        else:
            with pytest.raises(InputError, match=rf"does not run on {gpu.name} \(compute"):
                api.target("local")
    monkeypatch.setattr(trt_api, "cuda_driver", lambda: None)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        api.target("local")


# ------------------------------------------------------------------------------------------------
# TensorRT, recorded


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "10.16.2.10", "11.4.1"])
def test_tensorrt_build(tiny, orin, version, tmp_path):
    fake = fake_trt.make(version)
    api = trt_api.TrtApi("tensorrt", fake)
    built = build_engine.build_engines(tiny, api=api)
    release = versions.release(version)
    assert [b.path.name for b in built] == [
        f"{g}.tensorrt-{release}.orin.fp16.plan" for g in GRAPH_NAMES
    ]
    calls = [c for c in fake.calls if len(c) == 2]
    assert calls[0] == ("create_network", 2)  # STRONGLY_TYPED: 1 << 1
    shapes = dict(calls)["add_optimization_profile"]
    assert shapes["xt"] == ((1, 1, 32, 257), (1, 1, 256, 257), (4, 1, 1024, 257))
    assert len(shapes) == 10
    # the second graph profits from what the first one taught, and it is kept for the next engine
    assert [c[1] for c in calls if c[0] == "set_timing_cache"] == [b"", b"learnt:"]
    kept = tmp_path / "cache" / "dvpd" / f"tensorrt-{release}.orin.timing"
    assert kept.read_bytes() == b"learnt:learnt:"
    assert all(b.reused for b in build_engine.build_engines(tiny, api=api))
    assert sum(c[0] == "build_serialized_network" for c in fake.calls) == 2
    build_engine.build_engines(tiny, api=api, force=True)
    assert sum(c[0] == "build_serialized_network" for c in fake.calls) == 4


def test_products_of_fp32_graphs_are_exact_unless_asked_otherwise(tmp_path, orin):
    fake = fake_trt.make("10.16.2")
    api = trt_api.TrtApi("tensorrt", fake)
    folder = copy_engine(ENGINES / "dvpd-tiny", tmp_path / "fp32")
    exact = build_engine.build_engines(folder, api=api)
    rounded = build_engine.build_engines(folder, api=api, tf32=True)
    flags = [call[1] for call in fake.calls if call[0] == "build_serialized_network"]
    assert flags == [[], [], ["TF32"], ["TF32"]]  # TensorRT's own default is TF32
    assert [b.path.name.endswith(".fp32.plan") for b in exact] == [True, True]
    assert [b.path.name.endswith(".fp32-tf32.plan") for b in rounded] == [True, True]
    assert {b.key for b in exact}.isdisjoint(b.key for b in rounded)
    assert all(b.reused for b in build_engine.build_engines(folder, api=api))


def test_foreign_timing_cache_is_replaced(tiny, orin, tmp_path, caplog):
    kept = tmp_path / "cache" / "dvpd" / "tensorrt-10.3.0.orin.timing"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"foreign")
    fake = fake_trt.make()
    build_engine.build_engines(tiny, api=trt_api.TrtApi("tensorrt", fake))
    assert [c[1] for c in fake.calls if c[0] == "set_timing_cache"][:2] == [b"foreign", b""]
    assert "measuring again" in caplog.text
    assert kept.read_bytes().startswith(b"learnt:")


def test_timing_cache_that_cannot_be_kept(tiny, orin, tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").write_text("a file")
    build_engine.build_engines(tiny, api=trt_api.TrtApi("tensorrt", fake_trt.make()))
    assert "cannot be kept" in caplog.text


def test_another_release_builds_its_own(tiny, orin):
    for version in ("10.3.0", "10.16.2"):
        api = trt_api.TrtApi("tensorrt", fake_trt.make(version))
        assert not any(b.reused for b in build_engine.build_engines(tiny, api=api))
    assert len(plans.find_plans(tiny)) == 4


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "10.0.1", "10.2.0", "12.0.0"])
def test_unsupported_versions(version):
    with pytest.raises(BackendError, match=rf"{version} is not supported; expected 10\.3"):
        trt_api.TrtApi("tensorrt", fake_trt.make(version))


def test_operator_that_this_version_lacks(tiny, orin):
    api = trt_api.TrtApi("tensorrt", fake_trt.make(lacks=("DepthToSpace",)))
    with pytest.raises(BackendError, match=r"10\.3\.0 cannot parse it: node node_7 \(DepthToSp"):
        build_engine.build_engines(tiny, api=api)
    assert plans.find_plans(tiny) == []


def test_no_plan_comes_out(tiny, orin):
    api = trt_api.TrtApi("tensorrt", fake_trt.make(builds=False))
    with pytest.raises(BackendError, match="builds no plan: no tactic fits"):
        build_engine.build_engines(tiny, api=api)
    assert names(tiny) == []


def test_tensorrt_builds_only_for_this_gpu(orin, monkeypatch):
    api = trt_api.TrtApi("tensorrt", fake_trt.make())
    for target in ("portable", "sm89"):
        with pytest.raises(InputError, match="only for the GPU that is here"):
            api.target(target)
    monkeypatch.setattr(trt_api, "cuda_driver", lambda: None)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        api.target("local")


def test_missing_and_broken_packages(monkeypatch):
    with pytest.raises(InputError, match="expected one of tensorrt, tensorrt-rtx"):
        trt_api.TrtApi("tvm")

    def absent(name):
        raise ModuleNotFoundError(name)

    def broken(name):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(trt_api.importlib, "import_module", absent)
    with pytest.raises(BackendError, match=r"is not installed.*system-site-packages"):
        trt_api.TrtApi("tensorrt")
    monkeypatch.setattr(trt_api.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"does not load \(libnvinfer"):
        trt_api.TrtApi("tensorrt")
    monkeypatch.setattr(build_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="neither TensorRT nor TensorRT-RTX"):
        build_engine.choose_backend()


@rtx
def test_stand_in_has_no_names_of_its_own():
    import tensorrt_rtx

    for cls, attributes in fake_trt.API.items():
        for attribute in attributes:
            assert hasattr(getattr(tensorrt_rtx, cls), attribute), (cls, attribute)
    fake = fake_trt.make()
    for name in vars(fake):
        assert name in ("calls", "__version__") or hasattr(tensorrt_rtx, name)
    for cls in ("Builder", "OnnxParser"):
        public = {n for n in vars(getattr(fake, cls)) if not n.startswith("_")}
        assert public <= set(fake_trt.API[cls])


# ------------------------------------------------------------------------------------------------
# Reasons, interruptions, company


def printed(folder, api, capsys, **options):
    build_engine.build_engines(folder, api=api, printer=progress.Steps(), **options)
    return capsys.readouterr().err


def test_reasons_are_said(tiny, orin, capsys):
    api = trt_api.TrtApi("tensorrt", fake_trt.make())
    text = printed(tiny, api, capsys)
    assert "tensorrt 10.3.0, Python 3." in text
    assert "target Orin (compute 8.7)" in text
    assert text.count("to be built: there is none") == 2
    assert "is valid, kept" in printed(tiny, api, capsys)
    path = plans.find_plans(tiny)[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert "to be built: it has 1027 bytes, its sidecar says 1028" in printed(tiny, api, capsys)
    path.chmod(0o666)
    assert "others may write" in printed(tiny, api, capsys)
    text = printed(tiny, api, capsys, profile=Profile((32, 64, 128)))
    assert "to be built: profile frames (32, 256, 1024)" in text


def test_stale_after_a_new_export(tiny, orin, capsys):
    api = trt_api.TrtApi("tensorrt", fake_trt.make())
    printed(tiny, api, capsys)
    table = json.loads((tiny / "manifest.json").read_text())
    with (tiny / "score.onnx").open("ab") as file:
        file.write(b"\x12\x01x")  # ModelProto.producer_name once more: another export
    table["graphs"]["score"]["sha256"] = sha256_file(tiny / "score.onnx")
    (tiny / "manifest.json").write_text(json.dumps(table))
    text = printed(tiny, api, capsys)
    assert text.count("built from another export of the graph") == 1
    assert "predictive.tensorrt-10.3.0.orin.fp16.plan is valid, kept" in text


def test_damaged_graph_is_not_built(tiny, orin):
    (tiny / "score.onnx").write_bytes(b"x")
    with pytest.raises(ManifestError, match="SHA-256"):
        build_engine.build_engines(tiny, api=trt_api.TrtApi("tensorrt", fake_trt.make()))
    assert names(tiny) == []


def test_read_only_folder_is_known_before_the_build(tiny, orin, monkeypatch):
    fake = fake_trt.make()
    tiny.chmod(0o555)
    if os.geteuid() == 0:  # root may write anyway

        def refuse(folder):
            raise InputError(f"{folder}: cannot be written to")

        monkeypatch.setattr(build_engine, "check_writable", refuse)
    with pytest.raises(InputError, match="cannot be written to"):
        build_engine.build_engines(tiny, api=trt_api.TrtApi("tensorrt", fake))
    tiny.chmod(0o755)
    assert "build_serialized_network" not in str(fake.calls)


def test_progress_is_told_off_a_terminal(tiny, orin, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.1)
    monkeypatch.setattr(trt_api, "WAIT_S", 0.05)
    api = trt_api.TrtApi("tensorrt", fake_trt.make(steps=6, wait=lambda: time.sleep(0.1)))
    text = printed(tiny, api, capsys)
    assert "predictive: Timing (" in text
    assert "\r" not in text
    assert all(line.startswith("[") for line in text.splitlines())


def test_progress_is_redrawn_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "BAR_EVERY_S", 0.0)
    printer = progress.Steps()
    printer.progress("score: Timing (10%)")
    printer.say("done")
    printer.close()
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "\r\033[K[   0.0 s] score: Timing (10%)" in text


def test_interrupt_ends_the_build(tiny, orin, monkeypatch):
    monkeypatch.setattr(trt_api, "WAIT_S", 0.02)
    begun = threading.Event()

    def wait():
        begun.set()
        time.sleep(0.05)

    fake = fake_trt.make(steps=1000, wait=wait)

    class Stop(progress.Steps):
        def progress(self, text):
            if begun.is_set():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine.build_engines(tiny, api=trt_api.TrtApi("tensorrt", fake), printer=Stop())
    assert ("cancelled",) in fake.calls
    assert names(tiny) == []
    with plans.folder_lock(tiny):
        pass


@rtx
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_build_leaves_nothing(tiny, number):
    command = [sys.executable, "-m", "dvpd.runtime", "build", str(tiny)]
    process = subprocess.Popen(
        [*command, "--backend", "tensorrt-rtx"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "layers parsed" in line:
            break
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == -number
    assert number == signal.SIGKILL or "interrupted" in rest
    assert names(tiny) + names(tiny, ".*") == []
    with plans.folder_lock(tiny):
        pass


def _one_of_two(folder, orin, counts, index):
    trt_api.cuda_driver = lambda: orin
    fake = fake_trt.make(wait=lambda: time.sleep(0.2))
    built = build_engine.build_engines(folder, api=trt_api.TrtApi("tensorrt", fake))
    counts[index] = sum(not b.reused for b in built)


def test_two_builders_at_once(tiny, orin):
    context = multiprocessing.get_context("spawn")
    counts = context.Array("i", [-1, -1])
    both = [context.Process(target=_one_of_two, args=(tiny, orin, counts, i)) for i in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert sorted(counts) == [0, 2]  # one built, the other waited and found valid plans
    assert len(plans.find_plans(tiny)) == 2
    assert names(tiny, ".*") == []


# ------------------------------------------------------------------------------------------------
# The command


def test_command_errors_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trt_api, "cuda_driver", lambda: None)
    for main in (build_engine.main, lambda a: cli.main(["build", *a])):
        assert main([str(tmp_path / "gone")]) == 1
        assert "not an engine folder" in capsys.readouterr().err
        assert main([str(ENGINES / "dvpd-tiny-fp16"), "--frames", "30,64,128"]) == 2
        assert "multiples of 4" in capsys.readouterr().err
    assert cli.main(["build"]) == 2
    assert cli.main(["build", "x", "--frames", "1,2"]) == 2
    assert cli.main(["build", "x", "--backend", "tvm"]) == 2


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "scipy", "soundfile", "tensorrt_rtx"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
from dvpd.runtime.cli import main
raise SystemExit(main(["build", sys.argv[1], "--backend", "tensorrt-rtx"]))
"""


def test_builder_needs_neither_torch_nor_onnx(tiny):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED, tiny],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "tensorrt_rtx does not load (tensorrt_rtx is blocked)" in done.stderr


@pytest.mark.parametrize(
    "way", [[str(ROOT / "export" / "build_engine.py")], ["-m", "dvpd.export.build_engine"]]
)
def test_runs_without_an_installation(way, tmp_path):
    cwd = ROOT if way[0] == "-m" else tmp_path
    result = subprocess.run(
        [sys.executable, *way, str(tmp_path / "gone")], cwd=cwd, capture_output=True, text=True
    )
    assert result.returncode == 1, result.stderr
    assert "not an engine folder" in result.stderr


def test_precision_of_the_graphs_is_the_plans(orin, tmp_path):
    folder = copy_engine(ENGINES / "dvpd-tiny", tmp_path / "tiny32")
    built = build_engine.build_engines(folder, api=trt_api.TrtApi("tensorrt", fake_trt.make()))
    assert all(b.path.name.endswith(".orin.fp32.plan") for b in built)
