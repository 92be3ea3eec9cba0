"""Estimates follow the roofline, recover what was measured, and are called estimates everywhere."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from dvpd.benchmarks import predict_device
from dvpd.benchmarks.common import machine, report
from dvpd.benchmarks.common.graph_costs import engine_costs, graph_costs
from dvpd.benchmarks.predict import calibration, devices, display, estimate, roofline
from dvpd.runtime import cli
from dvpd.runtime.errors import InputError
from dvpd.runtime.manifest import Manifest

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "engines" / "dvpd-tiny"
FP16 = ROOT / "engines" / "dvpd-tiny-fp16"
# Round figures of the data sheets (TFLOP/s): FP32, dense FP16 of the tensor cores.
PUBLISHED = {
    "orin-nano": (1.28, 40 / 4), "orin-nano-super": (2.09, 67 / 4), "orin-nx": (1.88, 60 / 4),
    "agx-orin": (5.3, 170 / 4), "thor": (8.06, 2070 / 8), "rtx-3060": (13, 101 / 4),
    "rtx-4090": (82.6, 165.2), "l4": (30.3, 242 / 2), "a100": (19.5, 312), "h100": (66.9, 989.4),
    "h200": (66.9, 989.4),
}  # fmt: skip
ROUNDED = 0.03  # data sheets give two or three digits
CPU_PEAK = {"gflops": 100.0, "bandwidth_gbs": 20.0, "threads": 2}
CPU = devices.cpu_device(CPU_PEAK, "Test CPU")


@pytest.fixture(autouse=True)
def no_results(monkeypatch, tmp_path):
    """Reports that come with the project must not move these tests."""
    monkeypatch.setattr(calibration, "RESULTS", tmp_path / "results")


@pytest.fixture(scope="module")
def costs():
    return engine_costs(TINY, 64)


def case_of(folder, frames=64, batch=1, steps=3, launch=roofline.GRAPH):
    return estimate.Case(folder, Manifest.load(folder), frames, batch, steps, launch)


# ------------------------------------------------------------------------------------------------
# Devices


@pytest.mark.parametrize("name", PUBLISHED)
def test_derived_rates_are_the_published_ones(name):
    device = devices.find_device(name)
    fp32, tensor = PUBLISHED[name]
    assert device.fp32_tflops == pytest.approx(fp32, rel=ROUNDED)
    assert device.tensor_tflops == pytest.approx(tensor, rel=ROUNDED)


def test_every_device_has_its_source_and_its_kind():
    assert set(devices.DEVICES) - set(PUBLISHED) == {
        "orin-nx-super",
        "agx-orin-50w",
        "agx-orin-30w",
    }
    for name, device in devices.DEVICES.items():
        assert device.name == name
        assert "NVIDIA" in device.source
        jetson = device.overhead_us == devices.JETSON_US
        assert bool(device.modes) is jetson is ("Jetson" in device.title)
        assert device.cores in (64 * device.sms, 128 * device.sms)
    assert devices.DEVICES["h100"].fp16_tflops == pytest.approx(133.8, rel=ROUNDED)
    assert devices.DEVICES["a100"].fp16_tflops == pytest.approx(78, rel=ROUNDED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        devices.DEVICES["h100"].sms = 1


def test_names_are_read_kindly_and_a_wrong_one_is_answered_with_close_ones():
    assert devices.device_name("RTX_4090") == "rtx-4090"
    assert devices.device_name("Jetson Orin Nano") == "orin-nano"
    with pytest.raises(InputError, match=r"no device 'rtx-409': did you mean rtx-4090"):
        devices.device_name("rtx-409")
    with pytest.raises(InputError, match=r"did you mean .*agx-orin"):
        devices.device_name("orin")
    with pytest.raises(InputError, match=r"no device 'abacus': Known are orin-nano, "):
        devices.device_name("abacus")


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.setattr(machine, "peak", lambda threads: {**CPU_PEAK, "threads": threads})
    device = devices.find_device("this-machine", threads=3)
    assert (device.kind, device.threads, device.bandwidth_gbs) == ("cpu", 3, 20.0)
    assert device.fp32_tflops == device.fp16_tflops == device.tensor_tflops == 0.1
    monkeypatch.setattr(machine, "peak", lambda threads: None)
    with pytest.raises(InputError, match="peak of this machine could not be measured"):
        devices.find_device("this-machine")


@pytest.mark.parametrize(("board", "gpus", "mode", "expected"), [
    (None, ["NVIDIA GeForce RTX 4090"], None, "rtx-4090"),
    (None, ["NVIDIA H100 80GB HBM3"], None, "h100"),
    ("NVIDIA Jetson Orin Nano Developer Kit", [], "NV Power Mode: 15W 0", "orin-nano"),
    ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", ["Orin (nvgpu)"],
     "NV Power Mode: MAXN_SUPER 2", "orin-nano-super"),
    ("NVIDIA Jetson AGX Orin Developer Kit", [], "NV Power Mode: MODE_30W 2", "agx-orin-30w"),
])  # fmt: skip
def test_the_gpu_of_a_report_is_known_by_its_names(board, gpus, mode, expected):
    assert devices.reported_device({"board": board, "gpus": gpus}, mode).name == expected


@pytest.mark.parametrize(("board", "gpus", "mode", "reason"), [
    (None, [], None, "names no GPU"),
    (None, ["NVIDIA H100 PCIe"], None, "no published figures of NVIDIA H100 PCIe"),
    (None, ["NVIDIA GeForce RTX 3060 Ti"], None, "no published figures"),
    ("NVIDIA Jetson AGX Orin Developer Kit", [], "NV Power Mode: MODE_15W 1", "in mode NV Power"),
    ("NVIDIA Jetson AGX Orin Developer Kit", [], None, "in mode None"),
])  # fmt: skip
def test_a_gpu_that_is_not_in_the_table_is_not_taken_for_its_neighbour(board, gpus, mode, reason):
    assert reason in devices.reported_device({"board": board, "gpus": gpus}, mode)


# ------------------------------------------------------------------------------------------------
# The roofline


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    """A convolution of 3x3, 4 -> 6 channels on 8x5, and a Relu."""
    onnx = pytest.importorskip("onnx")
    node, floats = onnx.helper.make_node, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.zeros((6, 4, 3, 3), np.float32), "w")
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="net.a/c", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["y"], name="net.a/r"),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", floats, [1, 4, 8, 5])], [info("y", floats, [1, 6, 8, 5])], [weight]
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    path = tmp_path_factory.mktemp("graphs") / "two.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return graph_costs(path, {"x": (1, 4, 8, 5)})


def test_the_roofline_of_two_nodes_is_what_a_hand_computes(two_nodes):
    x, w, c = 4 * 160, 4 * 216, 4 * 240  # bytes
    flops = 2 * 240 * 36
    conv, relu = roofline.kernels(two_nodes, fused=False)
    assert (conv.operator, conv.parts, conv.n_bytes) == (
        "dense convolution", (("dense convolution", False, flops),), x + w + c,
    )  # fmt: skip
    assert (relu.operator, relu.parts, relu.n_bytes) == (
        "elementwise", (("elementwise", False, 240),), 2 * c,
    )  # fmt: skip
    (both,) = roofline.kernels(two_nodes, fused=True)
    assert both.n_bytes == x + w + c  # the map between them stays on the chip
    assert both.operator == "dense convolution"

    # 1 GFLOP/s: the convolution is bound by its arithmetic, the Relu by its bytes
    device = devices.cpu_device({"gflops": 1.0, "bandwidth_gbs": 1.0, "threads": 1}, "slow")
    node_s = 10e-6
    conv_s, relu_s = flops / (1e9 * 0.4), 2 * c / (1e9 * 0.7)
    assert relu_s > 240 / (1e9 * 0.2)
    sides = roofline.bracket(two_nodes, device)
    assert sides.n_kernels == (1, 2)
    assert sides.unfused["dense convolution"] == roofline.Seconds(
        pytest.approx(conv_s), 0.0, node_s
    )
    assert sides.unfused["elementwise"] == roofline.Seconds(0.0, pytest.approx(relu_s), node_s)
    assert roofline.total(sides.fused).total == pytest.approx(conv_s + 240 / (1e9 * 0.2) + node_s)
    between = 0.5 * (roofline.total(sides.fused).total + conv_s + relu_s + 2 * node_s)
    assert roofline.total(sides.blend()).total == pytest.approx(between)


def test_a_kernel_too_small_for_the_device_leaves_it_idle():
    device = devices.DEVICES["h100"]
    parts = (("elementwise", False, 0),)
    full = roofline.Kernel("elementwise", parts, 10**6, device.lanes)
    small = roofline.Kernel("elementwise", parts, 10**6, device.lanes // 4)
    times = [roofline.kernel_seconds(k, device).bandwidth for k in (full, small)]
    assert times[1] == pytest.approx(4 * times[0])
    calls = roofline.kernel_seconds(full, device, roofline.CALLS)
    assert (roofline.kernel_seconds(full, device).launches, calls.launches) == (2e-6, 5e-6)


def test_half_precision_products_run_on_tensor_cores_and_the_rest_does_not():
    device = devices.DEVICES["agx-orin"]
    rates = {}
    for operator in (roofline.DENSE, roofline.GROUPED):
        for half in (False, True):
            kernel = roofline.Kernel(operator, ((operator, half, 10**9),), 0, 10**9)
            seconds = roofline.kernel_seconds(kernel, device).arithmetic
            rates[operator, half] = 1e-3 / seconds / roofline.ARITHMETIC_SHARE[operator]
    assert rates[roofline.DENSE, False] == pytest.approx(device.fp32_tflops)
    assert rates[roofline.DENSE, True] == pytest.approx(device.tensor_tflops)
    assert rates[roofline.GROUPED, True] == pytest.approx(device.fp16_tflops)


@pytest.mark.parametrize("graph", ["predictive", "score"])
def test_fusion_only_saves_and_its_order_can_be_run(costs, graph):
    apart, joined = (roofline.kernels(costs[graph], fused) for fused in (False, True))
    assert len(apart) == sum(not node.view for node in costs[graph].work)
    assert 1 < len(joined) < len(apart) / 2
    assert sum(k.n_bytes for k in joined) < sum(k.n_bytes for k in apart)
    assert sum(k.n_bytes for k in joined) >= costs[graph].bytes_least - 4096  # small constants
    flops = [sum(part[2] for k in side for part in k.parts) for side in (apart, joined)]
    assert flops[0] == flops[1]
    # a slice reads what it writes, else this is what graph_costs counts
    assert sum(k.n_bytes for k in apart) < sum(costs[graph].bytes_moved.values())
    for device in (*devices.DEVICES.values(), CPU):
        sides = roofline.bracket(costs[graph], device)
        assert roofline.total(sides.fused).total < roofline.total(sides.unfused).total


def test_more_bandwidth_and_more_arithmetic_are_never_slower(costs):
    base = devices.DEVICES["orin-nano"]
    for change in ({"bandwidth_gbs": 2 * base.bandwidth_gbs}, {"clock_ghz": 2 * base.clock_ghz},
                   {"overhead_us": (1.0, 2.0)}):  # fmt: skip
        better = dataclasses.replace(base, **change)
        for fused in (True, False):
            for kernel in roofline.kernels(costs["score"], fused):
                now, before = (roofline.kernel_seconds(kernel, d).total for d in (better, base))
                assert now <= before
        assert roofline.network_ms(costs, better, 3) < roofline.network_ms(costs, base, 3)
    order = ["orin-nano", "orin-nano-super", "agx-orin", "rtx-4090"]
    times = [roofline.network_ms(costs, devices.DEVICES[name], 3) for name in order]
    assert times == sorted(times, reverse=True)
    assert roofline.network_ms(costs, base, 3, roofline.CALLS) > roofline.network_ms(
        costs, base, 3, roofline.GRAPH
    )


def test_half_precision_moves_fewer_bytes(costs):
    half = engine_costs(FP16, 64)
    for graph in costs:
        for fused in (True, False):
            full_b, half_b = (
                sum(k.n_bytes for k in roofline.kernels(c[graph], fused)) for c in (costs, half)
            )
            assert half_b < 0.75 * full_b
    device = devices.DEVICES["orin-nano"]
    assert roofline.network_ms(half, device, 3) < roofline.network_ms(costs, device, 3)
    assert estimate.memory_of(half).total < estimate.memory_of(costs).total


def test_memory_is_weights_activations_features_and_io(costs):
    memory = estimate.memory_of(costs)
    t, f = 64, 257
    shapes = costs["predictive"].outputs
    features = 4 * sum(math.prod(v) for k, v in shapes.items() if k.startswith("feat_"))
    assert memory.features == features
    # noisy, clean_ri, xt, sigma_z, t, and two tables of 2x2
    assert memory.io == 4 * ((3 + 2 + 1 + 1) * t * f + 1 + 2 * 4)
    assert memory.weights == sum(c.weight_bytes for c in costs.values())
    assert memory.activations == max(c.peak_activation_bytes for c in costs.values())
    assert memory.total == memory.weights + memory.activations + features + memory.io


# ------------------------------------------------------------------------------------------------
# Calibration


def make_report(engine, factors, *, gpu=None, steps=3, path=None, **change):
    """A report whose network calls take so many times what the model predicts, by row."""
    manifest = Manifest.load(engine)
    device = devices.DEVICES[gpu] if gpu else CPU
    rows = []
    for i, factor in enumerate(factors):
        frames = 32 + 4 * i
        predicted = roofline.network_ms(engine_costs(engine, frames), device, steps, roofline.CALLS)
        ms = factor * predicted / (1 + steps)
        total = 4.0 + (1 + steps) * ms
        rows.append({
            "engine": engine.name, "model": manifest.name, "precision": manifest.precision,
            "backend": "tensorrt" if gpu else "ort", "device": "auto" if gpu else "cpu",
            "frames": frames, "window_s": (frames - 1) * 128 / 16000, "batch": 1, "steps": steps,
            "status": "ok", "error": None, "runs": 3, "samples_ms": [total] * 3,
            "latency_ms": dict.fromkeys(("p50", "p90", "p95", "p99", "max", "mean"), total),
            "rtf": 0.1, "rtf_p95": 0.1, "audio_s_per_s": 10.0, "energy": None,
            "stages_ms": {"stft": 0.01 * frames, "predictive": ms, "score": [ms] * steps,
                          "fusion": 0.006 * frames * steps, "istft": 0.02 * frames},
        })  # fmt: skip
    result = {
        "schema": "dvpd-rtf-1", "created": "2026-11-02T10:00:00+00:00",
        "machine": {"cpu": "Test CPU", "architecture": "x86_64", "logical_cores": 2,
                    "usable_cores": 2, "memory_gib": 8.0, "os": "Linux", "board": None,
                    "gpus": list(device.reported) if gpu else []},
        "protocol": {"timed": "a window", "threads": 2, "affinity": None, "governors": [],
                     "clocks_mhz": None, "nvpmodel": None, "versions": {}, "interleaved": True,
                     "warm_up_rounds": 2, "settle_s": 0.05, "min_runs": 3, "min_seconds": 0,
                     "load_before": None, "load_after": None, "others_cpu_share": None,
                     "git": None,
                     "graphs": {engine.name: {k: g.sha256 for k, g in manifest.graphs.items()}}},
        "peak": CPU_PEAK, "meters": {"found": [], "absent": {}, "idle_watts": {}}, "warnings": [],
        "not_run": [], "costs": {}, "rows": rows, "processes": [], **change,
    }  # fmt: skip
    report.validate(result)
    if path is not None:
        path.write_text(json.dumps(result))
    return result


def test_calibration_recovers_a_planted_factor_and_its_spread(tiny_engine, tmp_path):
    planted, spread = 1.7, 0.2
    signs = (1, -1, 1, -1, 0)
    factors = [planted * math.exp(spread * sign) for sign in signs]
    path = tmp_path / "rtf.json"
    make_report(tiny_engine, factors, path=path)
    found = calibration.measured([path], [tiny_engine])
    assert found.skipped == ()
    assert [r.ratio for r in found.ratios] == pytest.approx(factors)
    found_factor = calibration.calibrate(CPU, found)
    assert found_factor.factor == pytest.approx(planted)
    assert found_factor.log_std == pytest.approx(spread)  # 4 x spread² over 5 - 1 rows
    assert found_factor.error == pytest.approx(calibration.FLOOR_SAME * math.exp(2 * spread))
    assert not found_factor.extrapolated
    assert "calibrated on the same CPU; 5 measured rows" in found_factor.text

    # and the corrected prediction is what was planted
    prediction = estimate.predict(CPU, case_of(tiny_engine, frames=32), found)
    networks = sum(s.ms.central for s in prediction.stages if s.n_kernels)
    assert networks == pytest.approx(planted * found.ratios[0].predicted_ms)
    host = prediction.stages[-1]
    assert host.ms.central == pytest.approx(0.03 * 32 + 0.006 * 32 * 3)
    assert prediction.latency_ms.central == pytest.approx(networks + host.ms.central)


def test_other_machines_widen_the_error_bar(tiny_engine, tmp_path):
    path = tmp_path / "rtf.json"
    make_report(tiny_engine, [1.5] * 4, path=path)
    found = calibration.measured([path], [tiny_engine])
    other = devices.cpu_device(CPU_PEAK, "Another CPU")
    errors = [
        calibration.calibrate(d, found).error for d in (CPU, other, devices.DEVICES["orin-nano"])
    ]
    assert errors == pytest.approx(
        [calibration.FLOOR_SAME, calibration.FLOOR_KIND, calibration.FLOOR_EXTRAPOLATED]
    )
    assert calibration.calibrate(other, found).text.startswith(
        "calibrated on another CPU (Test CPU)"
    )
    assert calibration.calibrate(CPU, calibration.Measured()).error > 4
    few = dataclasses.replace(found, ratios=found.ratios[:2])
    assert (
        calibration.calibrate(CPU, few).log_std == calibration.DEFAULT_LOG_STD
    )  # two rows show no spread


def test_without_a_gpu_report_a_gpu_estimate_says_so_and_is_wide(tiny_engine, tmp_path):
    path = tmp_path / "rtf.json"
    make_report(tiny_engine, [1.5] * 4, path=path)
    for files in ([], [path]):
        found = calibration.measured(files, [tiny_engine])
        case = case_of(tiny_engine)
        prediction = estimate.predict(devices.DEVICES["orin-nano"], case, found)
        assert "no GPU was measured" in display.warnings(prediction)[0]
        stages = [s for s in prediction.stages if s.n_kernels]
        for stage in stages:
            assert stage.ms.high / stage.ms.central >= 3
            assert stage.ms.central / stage.ms.low >= 3
            assert stage.ms.low <= stage.fused_ms <= stage.unfused_ms <= stage.ms.high
        assert display.to_json(case, [prediction], found)["gpu_measured"] is False
        assert prediction.host is bool(files)
    assert "extrapolation: a CPU's factor carried to a GPU" in prediction.calibration.text
    # its own CPU runs the front end, taken to be slower than the measured one
    host = prediction.stages[-1].ms
    assert host.central == pytest.approx(devices.JETSON_HOST * (0.03 * 64 + 0.006 * 64 * 3))
    assert host.high / host.central >= 3


def test_gpu_rows_are_used_where_there_are_some(tiny_engine, tmp_path):
    cpu, gpu = tmp_path / "rtf-cpu.json", tmp_path / "rtf-gpu.json"
    make_report(tiny_engine, [5.0] * 4, path=cpu)
    make_report(tiny_engine, [2.0] * 4, gpu="h100", path=gpu)
    found = calibration.measured([cpu, gpu], [tiny_engine])
    for name, floor in (("h100", calibration.FLOOR_SAME), ("orin-nano", calibration.FLOOR_KIND)):
        found_factor = calibration.calibrate(devices.DEVICES[name], found)
        assert found_factor.factor == pytest.approx(2.0)
        assert found_factor.error == pytest.approx(floor)
        assert "no GPU was measured" not in found_factor.text
    assert calibration.calibrate(CPU, found).factor == pytest.approx(5.0)
    only = calibration.calibrate(CPU, calibration.measured([gpu], [tiny_engine]))
    assert only.extrapolated
    assert "a GPU's factor carried to a CPU" in only.text


def test_rows_that_cannot_be_compared_are_left_out_with_the_reason(
    tiny_engine, tiny_engine_fp16, tmp_path
):
    paths = [tmp_path / f"rtf-{i}.json" for i in range(6)]
    make_report(tiny_engine_fp16, [1.0], path=paths[0])
    make_report(tiny_engine, [1.0], path=paths[1], peak=None)
    other = make_report(tiny_engine, [1.0])
    other["protocol"]["graphs"]["tiny"]["score"] = "0" * 64
    paths[2].write_text(json.dumps(other))
    unknown = make_report(tiny_engine, [1.0], gpu="h100")
    unknown["machine"]["gpus"] = ["NVIDIA TITAN"]
    paths[3].write_text(json.dumps(unknown))
    failed = make_report(tiny_engine, [1.0], warnings=["busy machine"])
    failed["rows"][0].update(status="failed", error="it fell over")
    paths[4].write_text(json.dumps(failed))
    elsewhere = make_report(tiny_engine, [1.0])
    elsewhere["rows"][0].update(backend="openvino", device="npu")
    paths[5].write_text(json.dumps(elsewhere))
    found = calibration.measured(paths, [tiny_engine, tiny_engine_fp16])
    assert found.ratios == ()
    reasons = ("convert float16", "no peak", "no engine folder", "NVIDIA TITAN", "device npu")
    assert len(found.skipped) == len(reasons)
    for line, reason in zip(found.skipped, reasons, strict=True):
        assert reason in line
    assert found.warnings == ("rtf-4.json: busy machine",)


def test_damaged_reports_are_refused(tiny_engine, tmp_path, monkeypatch):
    path = tmp_path / "rtf.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"rtf\.json: "):
        calibration.measured([path])
    good = make_report(tiny_engine, [1.0])
    path.write_text(json.dumps({**good, "schema": "dvpd-rtf-0"}))
    with pytest.raises(InputError, match="schema is 'dvpd-rtf-0'"):
        calibration.measured([path])
    broken = copy.deepcopy(good)
    del broken["rows"][0]["stages_ms"]
    path.write_text(json.dumps(broken))
    with pytest.raises(InputError, match="does not fit the schema"):
        calibration.measured([path])
    monkeypatch.setitem(sys.modules, "jsonschema", None)  # the light install on a board
    with pytest.raises(InputError, match="does not fit the schema dvpd-rtf-1: KeyError"):
        calibration.measured([path])
    with pytest.raises(InputError, match="No such file"):
        calibration.measured([tmp_path / "none.json"])


def test_reports_that_come_with_the_project_are_found(tmp_path, monkeypatch):
    assert calibration.report_files() == []
    for name in ("a/rtf.json", "b/rtf-gpu.json", "b/macs.json", "rtf.json"):
        target = tmp_path / "found" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    names = [
        p.relative_to(tmp_path / "found").as_posix()
        for p in calibration.report_files(tmp_path / "found")
    ]
    assert names == ["a/rtf.json", "b/rtf-gpu.json"]


# ------------------------------------------------------------------------------------------------
# Predictions


@pytest.mark.parametrize("name", devices.DEVICES)
def test_low_is_below_central_and_central_below_high(costs, name):
    p = estimate.predict(devices.DEVICES[name], case_of(TINY), calibration.Measured(), costs)
    for value in (p.latency_ms, p.rtf, *(stage.ms for stage in p.stages)):
        assert 0 < value.low < value.central < value.high
    central = p.latency_ms.central
    assert sum(stage.ms.central for stage in p.stages) == pytest.approx(central)
    assert sum(p.by_class.values()) == pytest.approx(central)
    assert sum(p.bounds.values()) == pytest.approx(central)
    assert p.rtf.central == pytest.approx(central / 1e3 / (63 * 128 / 16000))
    assert [s.name for s in p.stages] == ["predictive call", "score calls (3)", "sampler"]
    assert p.bound in ("bandwidth", "launches")  # few channels, many small nodes


def test_steps_batch_and_window_cost_what_they_should(costs):
    device = devices.DEVICES["orin-nano"]
    one = estimate.predict(device, case_of(TINY), calibration.Measured(), costs)
    none = estimate.predict(device, case_of(TINY, steps=0), calibration.Measured(), costs)
    assert [s.name for s in none.stages] == ["predictive call"]
    assert none.latency_ms.central == pytest.approx(one.stages[0].ms.central)
    two = estimate.predict(device, case_of(TINY, batch=2), calibration.Measured())
    assert one.latency_ms.central < two.latency_ms.central < 2 * one.latency_ms.central
    assert two.rtf.central < one.rtf.central  # launches are shared
    assert two.memory.weights == one.memory.weights
    assert two.memory.activations > 1.9 * one.memory.activations


def test_more_memory_than_there_is_and_doubtful_real_time_are_said(costs):
    small = dataclasses.replace(devices.DEVICES["orin-nano"], memory_gib=0.001, bandwidth_gbs=3.0)
    lines = display.warnings(estimate.predict(small, case_of(TINY), calibration.Measured(), costs))
    assert any("more memory than the device has" in line for line in lines)
    assert any("real time lies within the error bar" in line for line in lines)
    assert any("the networks and the sampler alone" in line for line in lines)
    slow = dataclasses.replace(small, bandwidth_gbs=0.1)
    lines = display.warnings(estimate.predict(slow, case_of(TINY), calibration.Measured(), costs))
    assert any("slower than real time" in line for line in lines)


# ------------------------------------------------------------------------------------------------
# The command line


def test_every_table_row_and_json_object_is_called_an_estimate(tiny_engine, tmp_path, capsys):
    rtf, out = tmp_path / "rtf.json", tmp_path / "out.json"
    make_report(tiny_engine, [1.5] * 4, path=rtf)
    words = ["orin-nano", "rtx-4090", "--engine", str(tiny_engine), "--window", "0.512", "--steps",
             "2", "--batch", "2", "--calibrate", str(rtf), "--json", str(out)]  # fmt: skip
    assert cli.main(["predict-device", *words]) == 0
    text = capsys.readouterr().out
    assert "ESTIMATE, not measured: tiny (fp32), window 0.50 s, batch 2, 2 steps" in text
    for line in text.splitlines():
        if line.strip().startswith(("orin-nano ", "rtx-4090 ")):
            assert line.rstrip().endswith("estimate"), line
    assert "no GPU was measured; an extrapolation" in text
    assert "one captured CUDA graph" in text
    result = json.loads(out.read_text())
    assert (result["schema"], result["estimate"]) == ("dvpd-predict-1", True)
    assert (result["frames"], result["batch"], result["steps"]) == (64, 2, 2)
    assert [p["device"]["name"] for p in result["predictions"]] == ["orin-nano", "rtx-4090"]
    for p in result["predictions"]:
        for part in (p, *p["stages"], *p["classes"]):
            assert part["estimate"] is True
        assert p["latency_ms"]["low"] < p["latency_ms"]["central"] < p["latency_ms"]["high"]
        assert p["device"]["source"].startswith("NVIDIA")
        assert p["calibration"]["factor"] == pytest.approx(1.5)
        assert p["memory_bytes"]["total"] > 0
        assert p["front_end_included"] is True
    assert len(result["measured"]["rows"]) == 4


def test_this_machine_and_the_default_engine(tiny_engine, monkeypatch, capsys):
    monkeypatch.setattr(machine, "peak", lambda threads: {**CPU_PEAK, "threads": threads})
    monkeypatch.setenv("DVPD_ENGINE", str(tiny_engine))
    assert predict_device.main(["this-machine", "--window", "0.256"]) == 0
    text = capsys.readouterr().out
    assert "ESTIMATE, not measured: tiny (fp32)" in text
    assert "not calibrated" in text
    assert "no GPU was measured" not in text  # nothing here is a GPU's


def test_an_engine_is_known_by_its_name(capsys):
    assert predict_device.main(["l4", "--engine", "dvpd-tiny", "--window", "0.256"]) == 0
    assert "ESTIMATE, not measured: dvpd-tiny (fp32)" in capsys.readouterr().out
    assert predict_device.main(["l4", "--engine", "dvpd-huge"]) == 1
    assert "no engine is called 'dvpd-huge'" in capsys.readouterr().err


def test_many_devices_are_one_table_without_details(tiny_engine, capsys):
    names = ["orin-nano", "orin-nx", "agx-orin", "h100"]
    assert predict_device.main([*names, "--engine", str(tiny_engine), "--window", "0.256"]) == 0
    text = capsys.readouterr().out
    assert "ESTIMATE: stages" not in text
    assert "ESTIMATE: memory" in text


def test_precision_takes_the_folder_beside(capsys, tmp_path, tiny_engine):
    assert predict_device.with_precision(TINY, None) == TINY
    assert predict_device.with_precision(TINY, "fp32") == TINY
    assert predict_device.with_precision(TINY, "fp16") == FP16
    assert predict_device.with_precision(FP16, "fp32") == TINY
    with pytest.raises(InputError, match="is fp32 and there is no tiny-fp16 beside it"):
        predict_device.with_precision(tiny_engine, "fp16")


def test_the_list_names_devices_and_sources(capsys):
    assert cli.main(["predict-device", "--list"]) == 0
    text = capsys.readouterr().out
    for name in (*devices.DEVICES, "this-machine"):
        assert name in text
    assert "data sheet" in text


@pytest.mark.parametrize(("arguments", "message"), [
    (["orin-nanno"], "no device 'orin-nanno': did you mean orin-nano"),
    (["h100", "--window", "0.1"], "expected 0.256 to 60 s"),
    (["h100", "--window", "61"], "expected 0.256 to 60 s"),
    (["h100", "--calibrate", "/nonexistent.json"], "No such file"),
    (["h100", "--json", "/nonexistent/x.json"], "folder does not exist"),
    (["h100", "--engine", "/nonexistent"], "manifest"),
])  # fmt: skip
def test_bad_input_is_one_line(tiny_engine, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("DVPD_ENGINE", str(tiny_engine))
    assert cli.main(["predict-device", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("dvpd: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [
    [], ["h100", "--steps", "-1"], ["h100", "--batch", "0"], ["h100", "--precision", "int8"],
    ["h100", "--window", "nan"], ["h100", "--calibrate"],
])  # fmt: skip
def test_wrong_usage_is_exit_code_2(capsys, arguments):
    assert cli.main(["predict-device", *arguments]) == 2
    assert "usage: dvpd predict-device" in capsys.readouterr().err


def test_help_is_the_modules_own(capsys):
    assert cli.main(["predict-device", "--help"]) == 0
    assert "every figure is an estimate" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["--help"]) == 0
    assert "predict-device" in capsys.readouterr().out


def test_without_onnx_it_says_what_to_install(tiny_engine, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert predict_device.main(["h100", "--engine", str(tiny_engine)]) == 1
    assert "pip install onnx" in capsys.readouterr().err
