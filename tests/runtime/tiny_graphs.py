"""Tiny graphs that keep the contract, so that these tests need no trained model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from dvpd.runtime.manifest import GraphFile, Manifest, manifest_to_metadata
from dvpd.runtime.schedule import SdeSpec
from dvpd.runtime.spec import (
    N_FEATS,
    TLB_PRESETS,
    CausalSpec,
    SamplerSpec,
    SignalSpec,
    graph_io,
    stream_latency,
)

GAIN = 0.5  # of the compressed spectrum, in the tiny predictive graph


# Of the causal graphs: each hears its last frame again.
CAUSAL = CausalSpec(0, {"predictive": 2 * 257, "score": 257}, stream_latency(SignalSpec(), 0))


def make_manifest(precision="fp32", name="tiny-test", causal=None):
    return Manifest(
        name=name,
        version="0.0.1",
        signal=SignalSpec(),
        sde=SdeSpec(),
        sampler=SamplerSpec(),
        tlb_presets=dict(TLB_PRESETS),
        precision=precision,
        opset=18,
        exporter={"onnx": "test"},
        checkpoint_sha256="0" * 64,
        graphs={
            "predictive": GraphFile("predictive.onnx", "0" * 64),
            "score": GraphFile("score.onnx", "0" * 64),
        },
        parameters={"predictive": 0, "all": 0},
        macs_per_second={"predictive": 0, "all": 0},
        parity={},
        causal=causal,
    )


def _io(graph, precision, onnx, causal=None):
    def value(spec):
        dtype = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}
        shape = spec.shape
        if spec.name.startswith("feat_"):
            shape = ["B", 1 + int(spec.name[5:]) % 3, "T", 257]
        return onnx.helper.make_tensor_value_info(spec.name, dtype[spec.dtype], shape)

    inputs, outputs = graph_io(graph, precision, causal)
    return [value(s) for s in inputs], [value(s) for s in outputs]


def _constant(onnx, name, value, dtype):
    return onnx.numpy_helper.from_array(np.array(value, dtype), name)


def _echo(onnx, source, channels, target):
    """Nodes and constants: target = source + 0.3 source one frame before, whose state it is."""
    node = onnx.helper.make_node
    inits = [
        _constant(onnx, "map", [-1, channels, 1, 257], np.int64),
        _constant(onnx, "row", [-1, channels * 257], np.int64),
        _constant(onnx, "share", 0.3, np.float32),
        *(_constant(onnx, n, v, np.int64) for n, v in (("e0", [0]), ("e-1", [-1]), ("e2", [2]))),
        _constant(onnx, "end", [1 << 30], np.int64),
    ]
    nodes = [
        node("Reshape", ["state", "map"], ["before"]),
        node("Concat", ["before", source], ["both"], axis=2),
        node("Slice", ["both", "e0", "e-1", "e2"], ["late"]),
        node("Mul", ["late", "share"], ["echo"]),
        node("Add", [source, "echo"], [target]),
        node("Slice", [source, "e-1", "end", "e2"], ["last"]),
        node("Reshape", ["last", "row"], ["next_state"]),
    ]
    return nodes, inits


def predictive_model(precision, onnx, clean_ri_gain=GAIN, causal=None):
    """clean_ri = gain * noisy[:, :2]; feat_i = noisy[:, :1 + i % 3] * (i + 1)."""
    node, inits, nodes = onnx.helper.make_node, [], []
    inits += [
        _constant(onnx, n, v, np.int64)
        for n, v in (("zero", [0]), ("one", [1]), ("two", [2]), ("three", [3]))
    ]
    inits.append(_constant(onnx, "gain", clean_ri_gain, np.float32))
    nodes.append(node("Slice", ["noisy", "zero", "two", "one"], ["ri"]))
    heard = "ri"
    if causal is not None:
        more, constants = _echo(onnx, "ri", 2, "heard")
        nodes, inits, heard = nodes + more, inits + constants, "heard"
    nodes.append(node("Mul", [heard, "gain"], ["clean_ri"]))
    for i in range(N_FEATS):
        inits.append(_constant(onnx, f"k{i}", i + 1, np.float32))
        end = ("one", "two", "three")[i % 3]
        nodes.append(node("Slice", ["noisy", "zero", end, "one"], [f"s{i}"]))
        if precision == "fp16":
            nodes.append(node("Mul", [f"s{i}", f"k{i}"], [f"m{i}"]))
            nodes.append(node("Cast", [f"m{i}"], [f"feat_{i}"], to=onnx.TensorProto.FLOAT16))
        else:
            nodes.append(node("Mul", [f"s{i}", f"k{i}"], [f"feat_{i}"]))
    inputs, outputs = _io("predictive", precision, onnx, causal)
    return onnx.helper.make_graph(nodes, "predictive", inputs, outputs, inits)


def score_model(precision, onnx, causal=None):
    """sigma_z = 0.05 xt + 0.001 sum_i mean_C feat_i + 0.1 t + 0.01 (sum skip + 2 sum backbone)."""
    node, inits, nodes = onnx.helper.make_node, [], []
    for name, value in (("kx", 0.05), ("kf", 0.001), ("kt", 0.1), ("ks", 0.01), ("kb", 0.02)):
        inits.append(_constant(onnx, name, value, np.float32))
    inits.append(_constant(onnx, "axis1", [1], np.int64))
    inits.append(_constant(onnx, "column", [-1, 1, 1, 1], np.int64))
    terms = []
    for i in range(N_FEATS):
        source = f"feat_{i}"
        if precision == "fp16":
            nodes.append(node("Cast", [source], [f"c{i}"], to=onnx.TensorProto.FLOAT))
            source = f"c{i}"
        nodes.append(node("ReduceMean", [source, "axis1"], [f"m{i}"], keepdims=1))
        terms.append(f"m{i}")
    nodes.append(node("Sum", terms, ["feats"]))
    nodes.append(node("Mul", ["feats", "kf"], ["a"]))
    heard = "xt"
    if causal is not None:
        more, constants = _echo(onnx, "xt", 1, "heard")
        nodes, inits, heard = nodes + more, inits + constants, "heard"
    nodes.append(node("Mul", [heard, "kx"], ["b"]))
    nodes.append(node("Reshape", ["t", "column"], ["t4"]))
    nodes.append(node("Mul", ["t4", "kt"], ["c"]))
    nodes.append(node("ReduceSum", ["tlb_skip"], ["ss"], keepdims=0))
    nodes.append(node("Mul", ["ss", "ks"], ["d"]))
    nodes.append(node("ReduceSum", ["tlb_backbone"], ["sb"], keepdims=0))
    nodes.append(node("Mul", ["sb", "kb"], ["e"]))
    nodes.append(node("Sum", ["a", "b", "c", "d", "e"], ["sigma_z"]))
    inputs, outputs = _io("score", precision, onnx, causal)
    return onnx.helper.make_graph(nodes, "score", inputs, outputs, inits)


def write_engine(folder: Path, precision="fp32", manifest=None, predictive=None, score=None):
    """Write an engine folder; graphs may be replaced by other onnx graphs."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    manifest = manifest or make_manifest(precision)
    graphs = {
        "predictive": predictive or predictive_model(precision, onnx, causal=manifest.causal),
        "score": score or score_model(precision, onnx, causal=manifest.causal),
    }
    table = manifest.to_dict()
    for name, graph in graphs.items():
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
        )
        onnx.helper.set_model_props(model, manifest_to_metadata(manifest))
        onnx.checker.check_model(model)
        data = model.SerializeToString()
        (folder / f"{name}.onnx").write_bytes(data)
        table["graphs"][name]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(table), encoding="utf-8")
    hashes = {name: graph["sha256"] for name, graph in table["graphs"].items()}
    verified = {"format": 1, "passed": True, "graphs": hashes}  # else the runtime warns
    (folder / "verification.json").write_text(json.dumps(verified), encoding="utf-8")
    return folder
