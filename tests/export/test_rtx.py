"""TensorRT-RTX parses and builds both graphs, without a GPU."""

from __future__ import annotations

import pytest

from dvpd.export import rtx_check

if not rtx_check.available():
    pytest.skip("tensorrt_rtx is not installed: dvpd[rtx]", allow_module_level=True)


@pytest.mark.parametrize("graph", ["predictive", "score"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_builds(request, precision, graph):
    engine = request.getfixturevalue(precision)
    assert rtx_check.check_graph(engine.folder / f"{graph}.onnx") > 10_000


def test_refusal_is_an_error(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(rtx_check.RtxError, match="cannot parse"):
        rtx_check.check_graph(tmp_path / "bad.onnx")
