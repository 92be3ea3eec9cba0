"""Make the checkout importable as ``dvpd`` without an installation; what folders of tests share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def pytest_collection_finish() -> None:
    """Leave what the tests' modules brought out of garbage collection: it stays to the end.

    Tracing a network makes so many objects that a sixth of its time went into looking at these.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """``made_once(name, make)``: a folder that ``make`` filled in one of the test processes.

    For what takes longer to make than to read; the folder is not to be changed.
    """
    from dvpd.runtime.tensorrt.plans import folder_lock

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of all processes

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder = root / f"once-{name}"
        folder.mkdir(exist_ok=True)
        with folder_lock(folder):
            if not (folder / "done").exists():
                make(folder)
                (folder / "done").touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def other_graphs(made_once):
    """(ModelConfig, folder with NAME.onnx): every option of the architecture that is no default."""
    import onnx

    from dvpd.config import ModelConfig
    from dvpd.export.graphs import build_graph
    from dvpd.model import DVPD
    from dvpd.torch_backend import prepare

    config = ModelConfig(
        channels=8, blocks=1, decoder_channels=4, embedding=16, state=8, encoder="uniform",
        local="dual_path", fi_gate=False, norm="layer",
    )  # fmt: skip

    def make(folder: Path) -> None:
        model = prepare(DVPD(config), "fp32")
        for graph in ("predictive", "score"):
            onnx.save(build_graph(model, graph, "fp32"), folder / f"{graph}.onnx")

    return config, made_once("other-graphs", make)


@pytest.fixture(scope="session")
def save_model() -> Callable[..., None]:
    """``save_model(path, n_in, n_out, gain)``: an ONNX model that measures loudness."""
    onnx = pytest.importorskip("onnx")

    def save_model(path, n_in, n_out, gain=1.0):
        """A model [N, *n_in] -> [N, n_out]: gain times the mean square of the input."""
        h = onnx.helper
        axes = h.make_tensor("axes", 7, [len(n_in)], list(range(1, len(n_in) + 1)))
        nodes = [
            h.make_node("Mul", ["input_1", "input_1"], ["square"]),
            h.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=0),
            h.make_node("Unsqueeze", ["mean", "one"], ["column"]),
            h.make_node("Mul", ["column", "gains"], ["score"]),
        ]
        graph = h.make_graph(
            nodes,
            "g",
            [h.make_tensor_value_info("input_1", 1, ["N", *n_in])],
            [h.make_tensor_value_info("score", 1, ["N", n_out])],
            [
                axes,
                h.make_tensor("one", 7, [1], [1]),
                h.make_tensor("gains", 1, [1, n_out], [gain * (i + 1) for i in range(n_out)]),
            ],
        )
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10)
        path.write_bytes(model.SerializeToString())

    return save_model


@pytest.fixture
def dnsmos_models(tmp_path, save_model) -> Path:
    """A folder with two models in the place of DNSMOS's."""
    folder = tmp_path / "dnsmos"
    folder.mkdir()
    save_model(folder / "sig_bak_ovr.onnx", [144160], 3)  # 9.01 s
    save_model(folder / "model_v8.onnx", [900, 120], 1)
    return folder
