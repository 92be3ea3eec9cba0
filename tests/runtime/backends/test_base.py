import hashlib
import importlib.util
import json
import logging
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_graphs import GAIN, make_manifest, predictive_model, write_engine

from dvpd.runtime.backends import choose
from dvpd.runtime.backends import ort as ort_module
from dvpd.runtime.backends.choose import open_backend
from dvpd.runtime.errors import BackendError, InputError, ManifestError
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.spec import GRAPH_NAMES, SamplerSpec
from dvpd.runtime.tensorrt.gpus import cuda_device_count

onnx = pytest.importorskip("onnx")

BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(module) is None, reason=f"{module} is not installed"
        ),
    )
    for name, module in (("ort", "onnxruntime"), ("openvino", "openvino"))
]
FLOAT32_TOLERANCE = 1e-5
TINY = Path(__file__).resolve().parents[3] / "engines" / "dvpd-tiny"


def load(folder, name, device="cpu", threads=1):
    return open_backend(folder, Manifest.load(folder), name, device, threads)


def inputs(batch=1, n_frames=32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "noisy": rng.standard_normal((batch, 3, n_frames, 257)).astype(np.float32),
        "xt": rng.standard_normal((batch, 1, n_frames, 257)).astype(np.float32),
        "t": np.linspace(0.1, 0.2, batch).astype(np.float32),
        "tlb_skip": np.array([[1, 2], [3, 4]], np.float32),
        "tlb_backbone": np.array([[5, 6], [7, 8]], np.float32),
    }


def run_score(engine, feats, x, **changed):
    given = {**{k: x[k] for k in ("xt", "t", "tlb_skip", "tlb_backbone")}, **changed}
    return engine.score(given["xt"], given["t"], feats, given["tlb_skip"], given["tlb_backbone"])


def expected_score(x):
    noisy = x["noisy"]
    feats = sum((i + 1) * noisy[:, : 1 + i % 3].mean(1, keepdims=True) for i in range(6))
    return (
        0.05 * x["xt"]
        + 0.001 * feats
        + 0.1 * x["t"].reshape(-1, 1, 1, 1)
        + 0.01 * x["tlb_skip"].sum()
        + 0.02 * x["tlb_backbone"].sum()
    )


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("batch", "n_frames"), [(1, 32), (2, 36), (1, 128)])
def test_both_graphs_at_any_size(engine_shared, name, batch, n_frames):
    x = inputs(batch, n_frames)
    engine = load(engine_shared, name)
    clean_ri, feats = engine.predict(x["noisy"])
    np.testing.assert_allclose(clean_ri, GAIN * x["noisy"][:, :2], atol=FLOAT32_TOLERANCE)
    sigma_z = run_score(engine, feats, x)
    np.testing.assert_allclose(sigma_z, expected_score(x), atol=FLOAT32_TOLERANCE)
    assert (engine.name, engine.device) == (name, "cpu")
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.predict(x["noisy"])


@pytest.mark.parametrize("name", BACKENDS)
def test_half_precision_feats_pass_through(engine_fp16, name):
    x = inputs()
    engine = load(engine_fp16, name)
    _, feats = engine.predict(x["noisy"])
    assert all(np.asarray(f).dtype == np.float16 for f in feats)
    np.testing.assert_allclose(run_score(engine, feats, x), expected_score(x), atol=1e-3)
    engine.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_feats_outlive_the_next_call(engine_shared, name):
    x, other = inputs(seed=0), inputs(seed=1)
    engine = load(engine_shared, name)
    _, feats = engine.predict(x["noisy"])
    engine.predict(other["noisy"])
    np.testing.assert_allclose(run_score(engine, feats, x), expected_score(x), atol=1e-5)
    engine.close()


def without_steps(folder):
    """Make ``folder`` an engine that takes no steps by default."""
    path = folder / "manifest.json"
    table = json.loads(path.read_text())
    table["sampler"]["n_steps"] = 0
    path.write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_both_graphs_are_loaded_with_the_first_step_where_there_is_none_by_default(
    engine, name, graph
):
    def step(_=None):
        _, feats = backend.predict(x["noisy"])
        return run_score(backend, feats, x)

    file = engine / f"{graph}.onnx"
    x, content = inputs(), file.read_bytes()
    backend = load(without_steps(engine), name)
    file.write_bytes(content[:-1])  # exchanged while the process ran
    with pytest.raises(ManifestError, match="the file is damaged or of another export"):
        step()
    file.unlink()
    with pytest.raises(ManifestError, match=f"names this file as the {graph} graph"):
        step()
    alone = backend.estimate(x["noisy"])  # was there from the start
    file.write_bytes(content)
    with ThreadPoolExecutor(4) as pool:  # once, whoever asks first
        results = list(pool.map(step, range(4)))
    file.unlink()
    for sigma_z in (*results, step()):
        np.testing.assert_allclose(sigma_z, expected_score(x), atol=FLOAT32_TOLERANCE)
    np.testing.assert_array_equal(backend.estimate(x["noisy"]), alone)
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        step()
    with pytest.raises(BackendError, match="closed"):
        backend.estimate(x["noisy"])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_closed_backend_loads_no_graph(engine, name):
    x = inputs()
    backend = load(without_steps(engine), name)
    backend.close()
    for call in (backend.predict, backend.estimate):
        with pytest.raises(BackendError, match="closed"):
            call(x["noisy"])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("batch", "n_frames"), [(1, 32), (3, 44)])
def test_the_estimate_is_what_predict_returns_first(engine, name, batch, n_frames):
    noisy = inputs(batch, n_frames)["noisy"]
    backend = load(engine, name)
    want, _ = backend.predict(noisy)
    np.testing.assert_array_equal(backend.estimate(noisy), want)  # steps by default: the same call
    backend.close()
    backend = load(without_steps(engine), name)
    np.testing.assert_array_equal(backend.estimate(noisy), want)
    workers, _ = backend.for_workers()
    np.testing.assert_array_equal(workers.estimate(noisy), want)
    with pytest.raises(InputError, match="multiple of 4"):
        backend.estimate(noisy[:, :, :31])
    backend.close()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("single", [True, False])
def test_without_steps_a_shipped_engine_computes_no_feats(tmp_path, name, single):
    manifest = Manifest.load(TINY)
    if not single:  # as engines without graphs for one recording are
        manifest = replace(manifest, single={})
    noisy = inputs(1, 64)["noisy"]
    backend = open_backend(TINY, replace(manifest, sampler=SamplerSpec(n_steps=0)), name, "cpu", 1)
    alone = backend.estimate(noisy)
    assert outputs_of(backend) == {"estimate": ["clean_ri"]}
    want, feats = backend.predict(noisy)
    assert outputs_of(backend)["predictive"] == ["clean_ri", *(f"feat_{i}" for i in range(6))]
    assert len(feats) == 6
    np.testing.assert_allclose(alone, want, rtol=0, atol=1e-6 * np.abs(want).max())
    backend.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_where_steps_are_known_to_come_no_third_graph_is_loaded(name):
    manifest = replace(Manifest.load(TINY), sampler=SamplerSpec(n_steps=0))
    noisy = inputs(1, 64)["noisy"]
    backend = open_backend(TINY, manifest, name, "cpu", 1, with_steps=True)
    assert set(outputs_of(backend)) == {"predictive", "score"}
    np.testing.assert_array_equal(backend.estimate(noisy), backend.predict(noisy)[0])
    backend.close()


def outputs_of(backend):
    """Names of the outputs of each graph that is loaded."""
    if backend.name == "ort":
        return {k: [o.name for o in s.get_outputs()] for k, s in backend._sessions.items()}
    table = {}
    for graph, requests in backend._requests.items():
        request = requests.get()
        table[graph] = [port.get_any_name() for port in request.get_compiled_model().outputs]
        requests.put(request)
    return table


def test_an_onnx_runtime_that_takes_no_weights_beside_bytes_loads_the_whole_graph(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")

    def older(model, *given, inner=onnxruntime.InferenceSession, **settings):
        if isinstance(model, bytes):
            raise RuntimeError("External data path does not exist")  # as 1.18 to 1.20 say
        return inner(model, *given, **settings)

    noisy = inputs()["noisy"]
    manifest = replace(Manifest.load(TINY), sampler=SamplerSpec(n_steps=0))
    want = open_backend(TINY, manifest, "ort", "cpu", 1).estimate(noisy)
    monkeypatch.setattr(onnxruntime, "InferenceSession", older)
    backend = open_backend(TINY, manifest, "ort", "cpu", 1)
    assert len(outputs_of(backend)["estimate"]) == 7
    np.testing.assert_allclose(backend.estimate(noisy), want, rtol=0, atol=1e-6)
    backend.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_without_steps_a_broken_predictive_graph_is_refused_at_the_start(tmp_path, name):
    renamed = predictive_model("fp32", onnx)
    renamed.output[0].name = "ri"
    folder = without_steps(write_engine(tmp_path / "renamed", predictive=renamed))
    with pytest.raises(ManifestError, match="has outputs"):
        load(folder, name)
    folder = without_steps(write_engine(tmp_path / "garbage"))
    (folder / "predictive.onnx").write_bytes(b"not a graph")
    table = json.loads((folder / "manifest.json").read_text())
    table["graphs"]["predictive"]["sha256"] = hashlib.sha256(b"not a graph").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(table))
    with pytest.raises(ManifestError, match="refuses the predictive graph"):
        load(folder, name)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_live_models_score_graph_is_ready_before_sound_comes(tmp_path, engine_causal, name):
    folder = without_steps(Path(shutil.copytree(engine_causal, tmp_path / "live")))
    backend = load(folder, name)
    (folder / "score.onnx").unlink()
    x = inputs(1, 4)
    _, feats, _ = backend.predict_next(x["noisy"], None)
    given = (x["xt"], x["t"], feats, x["tlb_skip"], x["tlb_backbone"])
    sigma_z, _ = backend.score_next(*given, None)
    assert np.isfinite(sigma_z).all()
    backend.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_causal_model_is_not_run_without_its_state(engine_causal, name):
    x = inputs()
    engine = load(engine_causal, name)
    with pytest.raises(InputError, match="use predict_next and score_next"):
        engine.predict(x["noisy"])
    _, feats, _ = engine.predict_next(x["noisy"], None)
    with pytest.raises(InputError, match="use predict_next and score_next"):
        run_score(engine, feats, x)
    engine.close()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.astype(np.float64), "float64"),
        (lambda v: v[0], "expected float32"),
        (lambda v: v[:, :2], "expected float32"),
        (lambda v: v[:, :, :31], "multiple of 4"),
        (lambda v: v[:, :, :28], "at least 32"),
        (lambda v: v[..., :256], "257"),
        (lambda v: v[:0], "empty axis"),
        (lambda v: v.tolist(), "list"),
    ],
)
def test_wrong_noisy(engine_shared, name, change, message):
    engine = load(engine_shared, name)
    with pytest.raises(InputError, match=message):
        engine.predict(change(inputs()["noisy"]))
    engine.close()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"t": np.zeros(2, np.float32)}, "t is"),
        ({"t": np.zeros(1)}, "float64"),
        ({"tlb_skip": np.ones((2, 3), np.float32)}, "tlb_skip"),
        ({"tlb_backbone": np.ones((2, 2))}, "tlb_backbone"),
        ({"xt": np.zeros((1, 2, 32, 257), np.float32)}, "xt"),
    ],
)
def test_wrong_score_input(engine_shared, changed, message):
    pytest.importorskip("onnxruntime")
    x = inputs()
    engine = load(engine_shared, "ort")
    _, feats = engine.predict(x["noisy"])
    with pytest.raises(InputError, match=message):
        run_score(engine, feats, x, **changed)
    with pytest.raises(InputError, match="6"):
        run_score(engine, feats[:5], x)
    with pytest.raises(BackendError, match="failed in the score graph"):
        run_score(engine, [np.zeros((1, 1), np.float32)] * 6, x)
    engine.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_non_finite_output_is_refused(tmp_path, name):
    graph = predictive_model("fp32", onnx, clean_ri_gain=np.inf)
    engine = load(write_engine(tmp_path / "e", predictive=graph), name)
    with pytest.raises(BackendError, match="non-finite"):
        engine.predict(inputs()["noisy"])
    engine.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_graph_that_breaks_the_contract(tmp_path, name):
    fp16 = predictive_model("fp16", onnx)
    folder = write_engine(tmp_path / "dtype", predictive=fp16)
    with pytest.raises(ManifestError, match="feat_0 is float16"):
        load(folder, name)
    fixed = predictive_model("fp32", onnx)
    fixed.input[0].type.tensor_type.shape.dim[2].dim_value = 64
    with pytest.raises(ManifestError, match="noisy is"):
        load(write_engine(tmp_path / "fixed", predictive=fixed), name)
    renamed = predictive_model("fp32", onnx)
    renamed.output[0].name = "ri"
    with pytest.raises(ManifestError, match="has outputs"):
        load(write_engine(tmp_path / "renamed", predictive=renamed), name)


@pytest.mark.parametrize("name", BACKENDS)
def test_graph_of_another_version(engine, name):
    # A manifest edited by hand: the hashes fit, the graphs' own words do not.
    path = engine / "manifest.json"
    table = json.loads(path.read_text())
    table["version"] = "9.9.9"
    path.write_text(json.dumps(table))
    with pytest.raises(ManifestError, match="different exports"):
        load(engine, name)


@pytest.mark.parametrize("name", BACKENDS)
def test_garbage_with_a_fitting_hash(engine, name):
    (engine / "score.onnx").write_bytes(b"not a graph")
    path = engine / "manifest.json"
    table = json.loads(path.read_text())
    table["graphs"]["score"]["sha256"] = hashlib.sha256(b"not a graph").hexdigest()
    path.write_text(json.dumps(table))
    with pytest.raises(ManifestError, match="refuses the score graph") as error:
        load(engine, name)
    assert "\n" not in str(error.value)


def test_unknown_names(engine_shared):
    with pytest.raises(InputError, match="expected auto, ort, openvino"):
        load(engine_shared, "tensorflow")
    for threads in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="threads"):
            load(engine_shared, "ort", threads=threads)


@pytest.mark.parametrize("name", [*BACKENDS, "auto"])
@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:1"])
def test_device_that_is_not_there(engine_shared, name, device):
    with pytest.raises(BackendError, match="no device") as error:
        load(engine_shared, name, device)
    assert "cpu" in str(error.value).lower()


def test_cuda_that_is_not_there(engine_shared):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    for name in ("ort", "auto"):
        with pytest.raises(BackendError, match=r"has only .*CPUExecutionProvider"):
            load(engine_shared, name, "cuda")


def test_auto_logs_its_choice_once(engine_shared, caplog):
    with caplog.at_level(logging.INFO, "dvpd"):
        load(engine_shared, "auto", "auto", None).close()
    assert [r.getMessage() for r in caplog.records if "auto chose" in r.getMessage()] == [
        r.getMessage() for r in caplog.records
    ]
    assert len(caplog.records) == 1


def test_of_a_backend_that_was_named_auto_chose_the_device_alone(engine_shared, caplog):
    with caplog.at_level(logging.INFO, "dvpd"):
        load(engine_shared, "ort", "auto", None).close()
    assert [r.getMessage() for r in caplog.records] == ["backend ort: auto chose device cpu"]


def test_auto_says_why_it_moved_on(engine_shared, caplog, monkeypatch):
    pytest.importorskip("openvino")

    def refuse(options):
        raise BackendError("broken here")

    table = dict(choose.BACKENDS)
    table["ort"] = ("json", "dvpd[cpu]", refuse)
    monkeypatch.setattr(choose, "BACKENDS", table)
    with caplog.at_level(logging.INFO, "dvpd"):
        assert load(engine_shared, "auto", "auto").name == "openvino"
    assert "ort on cpu is not usable: broken here" in caplog.text


def test_nothing_installed(engine_shared, monkeypatch):
    monkeypatch.setattr(choose, "installed", lambda name: False)
    with pytest.raises(BackendError, match=r"no inference engine is installed.*pip install"):
        load(engine_shared, "auto")
    with pytest.raises(BackendError, match=r"pip install 'dvpd\[cpu\]'"):
        load(engine_shared, "ort")


def test_both_onnx_runtimes(engine_shared, monkeypatch, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    (tmp_path / "onnxruntime").mkdir()
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "onnxruntime")])
    real = importlib.util.find_spec
    monkeypatch.setattr(
        ort_module.importlib.util, "find_spec",
        lambda name, *more: found if name == "onnxruntime" else real(name, *more),
    )  # fmt: skip
    # The Python files say what was installed; the compiled part may be of the other package.
    named = importlib.import_module("onnxruntime.capi.build_and_package_info")
    for package, version, providers, mixed in (
        ("onnxruntime", "1.32.0", ["CPUExecutionProvider"], False),
        ("onnxruntime-gpu", "1.32.0", ["CUDAExecutionProvider", "CPUExecutionProvider"], False),
        ("onnxruntime", "1.32.0", ["CUDAExecutionProvider", "CPUExecutionProvider"], True),
        ("onnxruntime-gpu", "1.32.0", ["CPUExecutionProvider"], True),
        ("onnxruntime", "1.31.0", ["CPUExecutionProvider"], True),
    ):
        for record in tmp_path.glob("*.dist-info"):
            record.rmdir()
        monkeypatch.setattr(named, "package_name", package)
        monkeypatch.setattr(named, "__version__", version)
        monkeypatch.setattr(ort, "get_version_string", lambda: "1.32.0")
        monkeypatch.setattr(ort, "get_available_providers", lambda names=providers: names)
        for name in ("onnxruntime_gpu-1.32.0.dist-info", "onnxruntime_extensions-0.1.dist-info"):
            (tmp_path / name).mkdir()
        assert ort_module.ort_conflict() is None, "one of the two"
        (tmp_path / "onnxruntime-1.32.0.dist-info").mkdir()
        if not mixed:
            assert ort_module.ort_conflict() is None, package
            load(engine_shared, "ort").close()
            continue
        assert "pip uninstall -y onnxruntime onnxruntime-gpu" in ort_module.ort_conflict()
        with pytest.raises(BackendError, match="overwritten each other"):
            load(engine_shared, "ort")
    monkeypatch.delattr(named, "package_name")  # a damaged install
    assert ort_module.ort_conflict() is not None


def test_manifest_of_the_fixture_is_valid():
    assert Manifest.from_dict(make_manifest().to_dict()) == make_manifest()


def test_a_live_block_gets_one_thread_where_more_only_wait(engine_causal, engine_shared):
    live, whole = Manifest.load(engine_causal), Manifest.load(engine_shared)
    for name in ("ort", "openvino"):
        assert choose.usual_threads(live, name, "cpu") == 1
        assert choose.usual_threads(whole, name, "cpu") == choose.default_threads()
    assert choose.usual_threads(live, "ort", "cuda") == choose.default_threads()
    for asked, got in ((None, 1), (2, 2)):
        backend = load(engine_causal, "ort", threads=asked)
        assert backend._options.threads == got
        backend.close()


def test_cpu_quota_is_positive():
    assert choose.cpu_quota() >= 1
    assert cuda_device_count() >= 0


SIGNAL_AFTER_CLOSE = """
import gc, os, signal, sys
sys.path.insert(0, sys.argv[1])
from dvpd.runtime.backends.choose import open_backend
from dvpd.runtime.doctor import _openvino_devices
from dvpd.runtime.manifest import Manifest

seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append("signal"))
manifest = Manifest.load(sys.argv[2])
backends = [open_backend(sys.argv[2], manifest, "openvino", "cpu", 1) for _ in range(2)]
_openvino_devices()
while backends:
    backends.pop(0).close()
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
print(*seen)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_signals_are_survived_after_openvino_backends_close(engine):
    """Cores released in the order of their making left an unmapped signal stack: a crash."""
    pytest.importorskip("openvino")
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_CLOSE, str(root), str(engine)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "signal"), done.stderr
