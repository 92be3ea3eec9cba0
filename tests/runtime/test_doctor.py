"""TensorRT on simulated machines: the line that is shown, and each known failure with its fix."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dvpd.runtime import cli, doctor, engines, tensorrt_doctor
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.tensorrt import plans, versions
from dvpd.runtime.tensorrt.gpus import CudaDriver, Gpu, Target
from dvpd.runtime.tensorrt.onnx_inputs import Profile
from dvpd.runtime.tensorrt.plans import PlanSpec
from dvpd.runtime.tensorrt_doctor import Facts, Package, diagnose

ORIN, THOR = Gpu("Orin", "8.7"), Gpu("NVIDIA Thor", "11.0")
RTX4090, H100 = Gpu("NVIDIA GeForce RTX 4090", "8.9"), Gpu("NVIDIA H100 PCIe", "9.0")
DIST = "/usr/lib/python3.10/dist-packages/tensorrt"
JETPACK62 = Facts(
    python="3.10.12",
    in_venv=True,
    tensorrt=Package("10.3.0"),
    system_tensorrt=(DIST,),
    trtexec="/usr/src/tensorrt/bin/trtexec",
    driver=CudaDriver((12, 6), (ORIN,)),
    board="NVIDIA Jetson AGX Orin Developer Kit",
)
PC = Facts(
    python="3.12.3",
    in_venv=True,
    sees_system=False,
    rtx=Package("1.7.1.116", cuda=13),
    driver=CudaDriver((13, 0), (RTX4090,)),
)


def changed(facts, **change):
    return dataclasses.replace(facts, **change)


def test_jetson_orin():
    found = diagnose(JETPACK62)
    assert found.problems == ()
    assert found.line == (
        "TensorRT 10.3.0 (JetPack 6.1/6.2), CUDA 12.6, Python 3.10.12, compute 8.7 (Orin): dvpd "
        "build NAME-fp16 builds the fp16 graphs for this GPU, strongly typed; "
        "engines/build_with_trtexec.sh works, too (--stronglyTyped)"
    )


def test_bindings_of_a_newer_cuda_than_the_boards():
    """pip takes cuda-python 13 for cuda-python>=12.6; JetPack 6 has CUDA 12.6."""
    (problem,) = diagnose(changed(JETPACK62, cuda_python="13.4.4")).problems
    assert "pip install 'cuda-python<13' (the extra dvpd[jetson] does)" in problem
    assert diagnose(changed(JETPACK62, cuda_python="12.9.1")).problems == ()
    assert diagnose(changed(PC, cuda_python="13.4.4")).problems == ()


def test_jetson_thor_with_tensorrt_11():
    facts = changed(
        JETPACK62,
        python="3.12.3",
        tensorrt=Package("11.4.1.5"),
        driver=CudaDriver((13, 2), (THOR,)),
        board="NVIDIA Jetson AGX Thor",
    )
    found = diagnose(facts)
    assert found.problems == ()
    assert found.line.startswith("TensorRT 11.4.1.5, CUDA 13.2, Python 3.12.3, compute 11.0")
    assert "--stronglyTyped" not in found.line


def test_rtx_card_and_no_gpu():
    found = diagnose(PC)
    assert found.problems == ()
    assert "builds portable plans of the fp16 graphs" in found.line
    assert "nothing here" not in found.line
    found = diagnose(changed(PC, driver=None))
    assert found.problems == ()
    assert "no working NVIDIA driver" in found.line
    assert found.line.endswith("nothing here can run them")


def test_nothing_at_all():
    found = diagnose(Facts(python="3.11.7"))
    assert found.problems == ()
    assert found.line == (
        "no TensorRT, no working NVIDIA driver, Python 3.11.7, no GPU: the fp32 graphs on ONNX "
        "Runtime or OpenVINO"
    )


def test_trtexec_alone():
    found = diagnose(changed(JETPACK62, tensorrt=None, in_venv=False, python="3.12.3"))
    assert "the fp16 graphs; engines/build_with_trtexec.sh" in found.line


@pytest.mark.parametrize(
    ("facts", "wrong", "fix"),
    [
        (
            changed(JETPACK62, tensorrt=None, sees_system=False),
            f"TensorRT is on this system ({DIST}), but this virtual environment does not see",
            "python3 -m venv --system-site-packages",
        ),
        (
            changed(JETPACK62, tensorrt=None, python="3.12.3"),
            "but not for Python 3.12.3",
            "use the system's Python (3.10)",
        ),
        (
            changed(JETPACK62, tensorrt=None, system_tensorrt=()),
            "NVIDIA Jetson AGX Orin Developer Kit has no TensorRT for Python",
            "apt install tensorrt python3-libnvinfer",
        ),
        (
            changed(JETPACK62, tensorrt=Package(None, "libnvinfer.so.10: cannot open")),
            "tensorrt is installed but does not load (libnvinfer.so.10: cannot open)",
            "apt install --reinstall python3-libnvinfer",
        ),
        (
            changed(PC, rtx=Package(None, "no libcudart")),
            "tensorrt-rtx is installed but does not load (no libcudart)",
            "pip install --force-reinstall tensorrt-rtx",
        ),
        (
            changed(JETPACK62, tensorrt=Package("8.6.2")),
            "tensorrt 8.6.2 is not supported",
            "install 10.3 or newer, below 12",
        ),
        (
            changed(JETPACK62, tensorrt=Package("10.13.3.9"), driver=CudaDriver((13, 0), (ORIN,))),
            "TensorRT 10.13.3 (JetPack 7.0/7.1) has no kernels for Orin (compute 8.7)",
            "install JetPack 6.2 (TensorRT 10.3) or 7.2 (10.16)",
        ),
        (
            changed(PC, driver=CudaDriver((12, 8), (RTX4090,))),
            "the NVIDIA driver is too old: it knows CUDA 12.8, this tensorrt-rtx needs CUDA 13",
            "update the driver (R580 or newer), or pip install tensorrt-rtx-cu12",
        ),
        (
            changed(PC, driver=CudaDriver((13, 0), (H100,))),
            "TensorRT-RTX does not run on NVIDIA H100 PCIe (compute 9.0)",
            "use TensorRT",
        ),
    ],
)
def test_known_failures(facts, wrong, fix):
    (problem,) = diagnose(facts).problems
    assert problem.startswith(wrong) or wrong in problem
    assert fix in problem.partition(wrong)[2]
    assert "\n" not in problem


def test_thor_is_no_orin():
    facts = changed(
        JETPACK62, tensorrt=Package("10.13.3.9"), driver=CudaDriver((13, 0), (THOR,)), board="Thor"
    )
    assert diagnose(facts).problems == ()


# ------------------------------------------------------------------------------------------------
# Plans


def install(folder, version="10.3.0", target=None, builder="tensorrt"):
    numbers = bytes([*versions.parse_version(version), 0][:4])
    head = plans.PLAN_MAGIC[builder].ljust(plans.PLAN_VERSION_AT, b"\0") + numbers
    target = target or Target(ORIN.name, ORIN.compute_capability)
    spec = PlanSpec("score", "0" * 64, builder, version, target, "fp16", Profile())
    return plans.install_plan(folder, spec, head + bytes(100))


def test_plan_of_another_version(tmp_path):
    assert diagnose(JETPACK62, [tmp_path]).problems == ()
    install(tmp_path)
    assert diagnose(JETPACK62, [tmp_path]).problems == ()
    path = install(tmp_path, "10.16.2")
    (problem,) = diagnose(JETPACK62, [tmp_path]).problems
    assert problem.startswith(f"{path}: built by tensorrt 10.16.2, here is 10.3.0: ")
    assert problem.endswith(f"run dvpd build {tmp_path}")


def test_plan_of_another_gpu(tmp_path):
    install(tmp_path, target=Target("Orin Nano", "8.7"))
    (problem,) = diagnose(JETPACK62, [tmp_path]).problems
    assert "built for Orin Nano (compute 8.7), this GPU is Orin (compute 8.7)" in problem


def test_plans_that_hurt_nobody(tmp_path):
    install(tmp_path, "1.7.1", Target.parse("portable"), "tensorrt-rtx")
    assert diagnose(JETPACK62, [tmp_path]).problems == ()  # no TensorRT-RTX here
    assert diagnose(PC, [tmp_path]).problems == ()
    assert diagnose(changed(PC, driver=None), [tmp_path]).problems == ()


def test_plan_without_a_sidecar(tmp_path):
    plans.sidecar_path(install(tmp_path)).unlink()
    (problem,) = diagnose(JETPACK62, [tmp_path]).problems
    assert "it has no sidecar" in problem


# ------------------------------------------------------------------------------------------------
# Looking


def test_gathering_here():
    facts = tensorrt_doctor.gather()
    assert facts.python == sys.version.split()[0]
    assert facts.in_venv == (sys.prefix != sys.base_prefix)
    json.dumps(tensorrt_doctor.report(facts, diagnose(facts)))
    if facts.rtx is not None and facts.rtx.version is not None:
        assert facts.rtx.cuda in (12, 13)


def test_virtual_environments_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(tensorrt_doctor, "_package", lambda *_: None)
    for text, sees in (("true", True), ("false", False), ("True", True)):
        (tmp_path / "pyvenv.cfg").write_text(f"include-system-site-packages = {text}\n")
        facts = tensorrt_doctor.gather()
        assert (facts.in_venv, facts.sees_system) == (True, sees)


def test_packages_are_imported_elsewhere(tmp_path, monkeypatch):
    """A package that takes its process down does not take the doctor down."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for text, version, error in (
        ("__version__ = '10.3.0'", "10.3.0", None),
        ("raise ImportError('libnvinfer.so.10: cannot open')", None, "libnvinfer"),
        ("import os; os.abort()", None, "import ended with -6"),
    ):
        (tmp_path / "faketrt.py").write_text(text)
        found = tensorrt_doctor._package("faketrt", "faketrt")
        assert found.version == version
        assert error is None or error in found.error
    assert tensorrt_doctor._package("no_such_package", "x") is None


def test_command_tells_line_and_problems(monkeypatch, capsys, engine):
    bad = changed(JETPACK62, tensorrt=None, sees_system=False)
    monkeypatch.setattr(tensorrt_doctor, "gather", lambda board: bad)
    monkeypatch.setattr(doctor, "find_engines", lambda: [engine])
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"TensorRT  {diagnose(bad).line}\n" in text
    assert "--system-site-packages" in text.partition("Problems")[2]
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tensorrt"]["line"] == diagnose(bad).line
    assert report["tensorrt"]["facts"]["driver"]["gpus"] == [dataclasses.asdict(ORIN)]


@pytest.mark.parametrize("there", [True, False])
def test_torch_runs_on_request_and_makes_no_machine_ready(monkeypatch, there):
    monkeypatch.setattr(doctor, "installed", lambda name: there and name == "torch")
    monkeypatch.setattr(doctor, "ort_conflict", lambda: None)
    report = doctor.examine()
    (row,) = [row for row in report["backends"] if row["backend"] == "torch"]
    assert row["usable"] is there
    assert report["ready"] is False
    assert any("no backend can run" in text for text in report["problems"])
    lines = doctor.render(report).splitlines()
    line = next(text for text in lines if re.match(" +torch +cpu", text))
    how = "can run, with --backend torch" if there else "torch is not installed; fix: pip install"
    assert how in line


def test_doctor_imports_nothing_heavy():
    code = (
        "import sys; from dvpd.runtime.doctor import examine; examine(); "
        "print(sorted({'torch', 'tensorrt_rtx', 'onnx'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# ------------------------------------------------------------------------------------------------
# Verification reports


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"passed": False}, "has failed its verification"),
        ({"passed": "yes"}, "has failed its verification"),
        ({"graphs": {}}, "has a verification report of other graphs"),
        ({"format": 2}, "has a verification report of another version"),
        (None, "has no verification report"),
        ("{", "has a verification report that cannot be read"),
        ("[]", "has a verification report that cannot be read"),
    ],
)
def test_verification_is_known(engine, change, problem):
    manifest = Manifest.load(engine)
    graphs = {name: graph.sha256 for name, graph in manifest.graphs.items()}
    path = engine / engines.VERIFICATION_NAME
    path.unlink(missing_ok=True)
    if isinstance(change, str):
        path.write_text(change)
    elif change is not None:
        path.write_text(json.dumps({"format": 1, "passed": True, "graphs": graphs} | change))
    assert engines.verification_problem(engine, manifest) == problem


def test_unverified_engine_is_told_once(engine, caplog):
    from dvpd.runtime import Enhancer

    (engine / engines.VERIFICATION_NAME).unlink(missing_ok=True)
    for _ in range(2):
        Enhancer.open(engine, backend="ort", device="cpu").close()
    warnings = [r for r in caplog.records if "verification" in r.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].levelname == "WARNING"
    assert "python export/verify.py" in warnings[0].getMessage()
