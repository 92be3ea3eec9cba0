"""Plans beside an engine: keys, sidecars, and everything that must be refused."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from dvpd.runtime.errors import InputError, ManifestError
from dvpd.runtime.spec import GRAPH_NAMES
from dvpd.runtime.tensorrt import gpus, onnx_inputs, plans
from dvpd.runtime.tensorrt.gpus import Gpu, Target
from dvpd.runtime.tensorrt.onnx_inputs import Profile
from dvpd.runtime.tensorrt.plans import PlanError, PlanSpec

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "engines" / "dvpd-tiny-fp16"
ORIN = Target("Orin", "8.7")
SPEC = PlanSpec("score", "0" * 64, "tensorrt", "10.3.0.26", ORIN, "fp16", Profile())


def plan_bytes(builder="tensorrt", version=(10, 3, 0, 26), size=4096):
    """Bytes that begin like a plan."""
    head = plans.PLAN_MAGIC[builder].ljust(plans.PLAN_VERSION_AT, b"\0") + bytes(version)
    return head + bytes(range(256)) * (size // 256)


@pytest.fixture
def installed(tmp_path):
    path = plans.install_plan(tmp_path, SPEC, plan_bytes(), {"tool": "test"})
    return tmp_path, path


# ------------------------------------------------------------------------------------------------
# Names and keys


def test_file_name_is_the_contract():
    assert SPEC.file == "score.tensorrt-10.3.0.orin.fp16.plan"
    spec = dataclasses.replace(
        SPEC, builder="tensorrt-rtx", version="1.7.1.116", target=Target.parse("sm86,sm89")
    )
    assert spec.file == "score.tensorrt-rtx-1.7.1.sm86-sm89.fp16.plan"
    board = Target("NVIDIA GeForce RTX 4090", "8.9")
    assert dataclasses.replace(SPEC, target=board).file == (
        "score.tensorrt-10.3.0.nvidia-geforce-rtx-4090.fp16.plan"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"graph": "predictive"},
        {"onnx_sha256": "1" * 64},
        {"builder": "tensorrt-rtx"},
        {"version": "10.4.0"},
        {"target": Target("Orin", "8.6")},
        {"target": Target("Thor", "8.7")},
        {"precision": "fp32"},
        {"profile": Profile(frames=(32, 256, 512))},
        {"profile": Profile(batch=(1, 2, 4))},
    ],
)
def test_everything_that_decides_a_plan_is_in_its_key(change):
    assert dataclasses.replace(SPEC, **change).key != SPEC.key


def test_the_build_number_is_not_in_the_key():
    # apt says 10.3.0, pip 10.3.0.26, trtexec v100300: one release
    assert dataclasses.replace(SPEC, version="10.3.0").key == SPEC.key


@pytest.mark.parametrize("version", ["10", "10.3", "ten", ""])
def test_versions_that_are_none(version):
    with pytest.raises(InputError, match=r"major\.minor\.patch"):
        dataclasses.replace(SPEC, version=version)


@pytest.mark.parametrize("change", [{"graph": "third"}, {"builder": "tvm"}])
def test_unknown_graph_and_builder(change):
    with pytest.raises(InputError, match="expected one of"):
        dataclasses.replace(SPEC, **change)


@pytest.mark.parametrize(
    ("target", "gpu", "fits"),
    [
        ("portable", Gpu("NVIDIA GeForce RTX 3090", "8.6"), True),
        ("portable", Gpu("NVIDIA GeForce RTX 5090", "12.0"), True),
        ("portable", Gpu("NVIDIA GeForce RTX 2080", "7.5"), False),
        ("portable", Gpu("NVIDIA H100 PCIe", "9.0"), False),
        ("portable", Gpu("Orin", "8.7"), False),
        ("portable", Gpu("NVIDIA B200", "10.0"), False),
        ("sm89", Gpu("NVIDIA GeForce RTX 4090", "8.9"), True),
        ("sm89", Gpu("NVIDIA GeForce RTX 3090", "8.6"), False),
        ("sm86,sm120", Gpu("NVIDIA GeForce RTX 5090", "12.0"), True),
        (ORIN, Gpu("Orin", "8.7"), True),
        (ORIN, Gpu("Orin Nano", "8.7"), False),
    ],
)
def test_where_a_plan_runs(target, gpu, fits):
    target = Target.parse(target) if isinstance(target, str) else target
    reason = target.why_unfit(gpu)
    assert (reason is None) == fits
    assert fits or gpu.name in reason


@pytest.mark.parametrize("text", ["", "sm", "SM89", "sm89;sm86", "orin", "sm89,sm89", "sm89,"])
def test_targets_that_are_none(text):
    with pytest.raises(InputError, match="target is"):
        Target.parse(text)


# ------------------------------------------------------------------------------------------------
# Profiles and graph inputs


@pytest.mark.parametrize(
    "sizes",
    [
        {"frames": (30, 256, 512)},
        {"frames": (0, 256, 512)},
        {"frames": (32, 512, 256)},
        {"frames": (32, 257, 512)},
        {"frames": (32, 256)},
        {"frames": (32.0, 256, 512)},
        {"batch": (0, 1, 4)},
        {"batch": (2, 1, 4)},
        {"batch": (True, True, True)},
    ],
)
def test_wrong_profiles(sizes):
    with pytest.raises(InputError, match=r"profile (frames|batch) is .*min,opt,max"):
        Profile(**sizes)


def test_profile_holds():
    profile = Profile(frames=(32, 256, 512), batch=(1, 1, 2))
    assert profile.holds(32, 1)
    assert profile.holds(512, 2)
    assert not profile.holds(516, 1)
    assert not profile.holds(34, 1)
    assert not profile.holds(32, 3)


def test_default_profile_holds_the_runtimes_window():
    from dvpd.runtime.spec import SignalSpec
    from dvpd.runtime.windows import WindowPlan

    n_frames = SignalSpec().n_frames(WindowPlan().window_samples)
    assert Profile().holds(n_frames, 1)


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_graph_inputs_without_onnx_are_onnx_own(graph):
    onnx = pytest.importorskip("onnx")
    path = TINY / f"{graph}.onnx"
    wanted = [
        (v.name, tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim))
        for v in onnx.load(str(path)).graph.input
    ]
    assert [(v.name, v.shape) for v in onnx_inputs.graph_inputs(path)] == wanted


def test_shapes_follow_the_profile():
    shapes = Profile((32, 64, 128), (1, 2, 3)).shapes(onnx_inputs.graph_inputs(TINY / "score.onnx"))
    assert shapes["xt"] == ((1, 1, 32, 257), (2, 1, 64, 257), (3, 1, 128, 257))
    assert [s[2] for s in shapes["feat_2"]] == [16, 32, 64]
    assert [s[2] for s in shapes["feat_3"]] == [8, 16, 32]
    assert shapes["t"] == ((1,), (2,), (3,))
    assert shapes["tlb_skip"] == ((2, 2),) * 3


def test_graphs_of_another_kind(tmp_path):
    with pytest.raises(ManifestError, match="expected B, T, T/2, T/4"):
        Profile().shapes([onnx_inputs.GraphInput("xt", ("B", 1, "frames", 257))])
    whole = (TINY / "score.onnx").read_bytes()
    cases = [b"", b"no graph", whole[: len(whole) // 2], b"\xff" * 100]
    for content in cases:
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(ManifestError, match="export the engine again"):
            onnx_inputs.graph_inputs(tmp_path / "x.onnx")
    with pytest.raises(ManifestError, match="cannot be read"):
        onnx_inputs.graph_inputs(tmp_path / "gone.onnx")


# ------------------------------------------------------------------------------------------------
# Reading and refusing


def test_what_was_installed_is_read(installed):
    folder, path = installed
    data, sidecar = plans.load_plan(folder, SPEC)
    assert data == plan_bytes()
    assert sidecar.spec.key == SPEC.key
    assert sidecar.built == {"tool": "test"}
    assert sorted(os.listdir(folder)) == [path.name, path.name + ".json"]
    assert plans.find_plans(folder) == [path]
    table = json.loads(plans.sidecar_path(path).read_text())
    assert table["key"] == SPEC.key
    assert oct(path.stat().st_mode & 0o777) == "0o644"


def refused(folder, match, spec=SPEC, **options):
    with pytest.raises(PlanError, match=match) as caught:
        plans.load_plan(folder, spec, **options)
    assert "cannot be used" in str(caught.value)
    assert "dvpd build" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_plan_and_sidecar(installed):
    folder, path = installed
    plans.sidecar_path(path).unlink()
    refused(folder, "has no sidecar")
    path.unlink()
    refused(folder, "there is none")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda b: b[:-100], "bytes, its sidecar says"),
        (lambda b: b"", "bytes, its sidecar says"),
        (lambda b: b + b"\0", "bytes, its sidecar says"),
        (lambda b: b[:1000] + b"\x77" + b[1001:], "SHA-256 differs"),
    ],
    ids=["truncated", "empty", "longer", "tampered"],
)
def test_damaged_plan(installed, change, match):
    folder, path = installed
    path.write_bytes(change(path.read_bytes()))
    refused(folder, match)


def test_foreign_bytes_under_a_forged_sidecar(installed):
    folder, path = installed
    for data, match in (
        (b"\x7fELF" + bytes(4000), "it is no plan of tensorrt"),
        (plan_bytes("tensorrt-rtx"), "it is no plan of tensorrt"),
        (plan_bytes(version=(10, 13, 3, 9)), r"header says version 10\.13\.3"),
        (b"ftrt", "header says version"),
    ):
        with pytest.raises(PlanError):
            plans.install_plan(folder, SPEC, data)
        path.write_bytes(data)
        forged = plans.Sidecar(SPEC, plans.hashlib.sha256(data).hexdigest(), len(data))
        plans.sidecar_path(path).write_text(forged.to_json())
        refused(folder, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"onnx_sha256": "1" * 64}, "another export of the graph"),
        ({"profile": Profile((32, 64, 128))}, r"profile frames \(32, 256, 1024\).*\(32, 64, 128\)"),
    ],
)
def test_stale_plan(installed, change, match):
    refused(installed[0], match, dataclasses.replace(SPEC, **change))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": "10.13.3"}, r"built by tensorrt 10\.3\.0, here is tensorrt 10\.13\.3"),
        ({"target": Target("Thor", "11.0")}, r"built for Orin \(8\.7\)"),
        ({"precision": "fp32"}, "precision is fp16, wanted fp32"),
        ({"graph": "predictive"}, "graph is score, wanted predictive"),
    ],
)
def test_renamed_plan_of_something_else(installed, change, match):
    folder, path = installed
    other = dataclasses.replace(SPEC, **change)
    shutil.move(path, folder / other.file)
    shutil.move(plans.sidecar_path(path), plans.sidecar_path(folder / other.file))
    refused(folder, match, other)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "sidecar cannot be read"),
        ("[]", "sidecar cannot be read"),
        ("[" * 100_000, "sidecar cannot be read|larger than"),
        ('{"format": 1}', "format 1, expected 2"),
        ('{"format": 2}', "sidecar cannot be read"),
    ],
)
def test_unreadable_sidecar(installed, text, match):
    folder, path = installed
    plans.sidecar_path(path).write_text(text)
    refused(folder, match)
    plans.sidecar_path(path).write_bytes(b"\xff\xfe")
    refused(folder, "not text")


def test_edited_sidecar(installed):
    folder, path = installed
    sidecar = plans.sidecar_path(path)
    table = json.loads(sidecar.read_text())
    table["spec"]["profile"]["frames"] = [32, 64, 128]
    sidecar.write_text(json.dumps(table))
    refused(folder, "key does not match")


def test_other_profile_may_be_asked_for_by_size(installed):
    folder, _ = installed
    wanted = dataclasses.replace(SPEC, profile=Profile((32, 64, 128)))
    _, sidecar = plans.load_plan(folder, wanted, exact_profile=False, fits=wanted.profile)
    assert sidecar.spec.profile == SPEC.profile
    big = Profile((32, 64, 2048))
    refused(folder, "needed 2048 frames", SPEC, exact_profile=False, fits=big)
    refused(folder, "needed .* batch 8", SPEC, exact_profile=False, fits=Profile(batch=(1, 1, 8)))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no file owners here")
@pytest.mark.parametrize("which", ["plan", "sidecar"])
def test_others_must_not_be_able_to_write(installed, which):
    folder, path = installed
    target = path if which == "plan" else plans.sidecar_path(path)
    for mode in (0o664, 0o646, 0o666):
        target.chmod(mode)
        refused(folder, f"others may write to {target.name}")
    target.chmod(0o444)
    plans.load_plan(folder, SPEC)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no file owners here")
def test_another_users_plan(installed, monkeypatch):
    folder, path = installed
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    refused(folder, "belongs to user")


# ------------------------------------------------------------------------------------------------
# Writing


def test_installing_ignores_the_umask(tmp_path):
    before = os.umask(0o002)
    try:
        plans.install_plan(tmp_path, SPEC, plan_bytes())
    finally:
        os.umask(before)
    plans.load_plan(tmp_path, SPEC)


def test_full_disk_leaves_the_old_plan(installed, monkeypatch):
    folder, path = installed
    real = plans.write_owned

    def full(target, data):
        if target.name.endswith(".json" + plans.TEMPORARY_SUFFIX):
            raise OSError(28, "No space left on device")
        real(target, data)

    monkeypatch.setattr(plans, "write_owned", full)
    with pytest.raises(InputError, match="No space left"):
        plans.install_plan(folder, SPEC, plan_bytes(size=8192))
    assert sorted(os.listdir(folder)) == [path.name, path.name + ".json"]
    assert plans.load_plan(folder, SPEC)[0] == plan_bytes()


def test_stopped_between_the_two_renames(installed, monkeypatch):
    folder, _ = installed
    real = Path.replace

    def stop(self, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        plans.install_plan(folder, SPEC, plan_bytes(size=8192))
    refused(folder, "its sidecar says")


def _die_writing(folder):
    with plans.folder_lock(folder):
        real = os.fsync

        def fsync(handle):
            real(handle)
            os.kill(os.getpid(), 9)

        plans.os.fsync = fsync
        plans.install_plan(folder, SPEC, plan_bytes())


def test_killed_while_writing(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_die_writing, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -9
    refused(tmp_path, "there is none")
    assert os.listdir(tmp_path) != []  # a temporary file, which the next builder removes
    with plans.folder_lock(tmp_path):  # the lock went with the process
        plans.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def _hold(folder, held, release):
    with plans.folder_lock(folder):
        held.set()
        release.wait(60)


def test_second_builder_waits(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, release))
    process.start()
    assert held.wait(60)
    waited = []

    def waiting(seconds):
        waited.append(seconds)
        release.set()

    begin = time.monotonic()
    with plans.folder_lock(tmp_path, waiting):
        pass
    process.join(60)
    assert waited
    assert time.monotonic() - begin >= waited[0] >= 1.0


def test_lock_needs_a_folder(tmp_path):
    with (
        pytest.raises(InputError, match="give an engine folder"),
        plans.folder_lock(tmp_path / "gone"),
    ):
        pass


def test_writable_is_known_beforehand(tmp_path, monkeypatch):
    plans.check_writable(tmp_path)
    assert os.listdir(tmp_path) == []

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(plans.os, "open", refuse)
    with pytest.raises(InputError, match=r"Read-only file system.*copy the folder"):
        plans.check_writable(tmp_path)


def test_no_gpu_here_or_a_real_one():
    driver = gpus.cuda_driver()
    assert driver is None or driver.version >= (11, 0)
