"""ONNX files without the onnx package: an output less, and nothing else changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dvpd.runtime.wire_format import fields, keep_outputs, values_at

onnx = pytest.importorskip("onnx")
TINY = Path(__file__).resolve().parents[2] / "engines" / "dvpd-tiny"


@pytest.mark.parametrize("file", ["predictive.onnx", "predictive.single.onnx"])
@pytest.mark.parametrize("names", [("clean_ri",), ("clean_ri", "feat_3")])
def test_only_the_outputs_differ(file, names):
    whole = (TINY / file).read_bytes()
    want = onnx.load_from_string(whole)
    kept = [value for value in want.graph.output if value.name in names]
    del want.graph.output[:]
    want.graph.output.extend(kept)
    assert onnx.load_from_string(keep_outputs(whole, names)) == want


def test_every_output_kept_is_the_same_file():
    whole = (TINY / "score.onnx").read_bytes()
    assert keep_outputs(whole, ("sigma_z",)) == whole


def test_what_is_no_such_graph_is_refused():
    whole = (TINY / "predictive.single.onnx").read_bytes()
    with pytest.raises(ValueError, match=r"without the outputs \['mask'\]"):
        keep_outputs(whole, ("clean_ri", "mask"))
    for broken in (b"", b"not a graph", whole[:-1], whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match=r"no ONNX model|without the outputs"):
            keep_outputs(broken, ("clean_ri",))


def test_fields_of_every_kind_are_told_apart():
    # 1: varint 300; 2: "ab"; 3: fixed32; 4: fixed64; 20: nested {1: 7}, whose number takes two bytes
    message = bytes.fromhex("08ac02120261621d01000000210200000000000000a201020807")
    found = list(fields(memoryview(message)))
    assert [field.number for field in found] == [1, 2, 3, 4, 20]
    assert [found[0].value, bytes(found[1].value), found[2].value, found[3].value] == [
        300, b"ab", None, None,
    ]  # fmt: skip
    assert b"".join(field.raw for field in found) == message
    assert list(values_at(memoryview(message), 20, 1)) == [7]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("12056162", "cut off"), ("1d0100", "cut off"), ("0b", "wire type"), ("ff" * 10, "too long")],
)
def test_damage_is_named(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        list(fields(memoryview(bytes.fromhex(text))))


def test_long_graphs_keep_their_length():
    big = onnx.helper.make_tensor(
        "w", onnx.TensorProto.FLOAT, [70_000], np.zeros(70_000).tobytes()[:280_000], raw=True
    )
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([], "g", [], value, [big])
    model = onnx.helper.make_model(graph)
    cut = onnx.load_from_string(keep_outputs(model.SerializeToString(), ("y",)))
    assert [v.name for v in cut.graph.output] == ["y"]
    assert cut.graph.initializer[0] == big
