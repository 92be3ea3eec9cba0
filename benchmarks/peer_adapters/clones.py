"""Enhancers whose code is a clone that the user gives by path."""

from __future__ import annotations

import importlib
import json
import types
from typing import Any

import numpy as np

from dvpd.benchmarks.peer_adapters.base import (
    Peer,
    fit_length,
    make_package,
    read_yaml,
    stub_module,
)
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.errors import InputError


class Gtcrn(Peer):
    """GTCRN (Xiaobin-Rong/gtcrn): a clone with ``gtcrn.py``."""

    latency = "streaming"

    def load(self) -> None:
        """Build it as its ``infer.py`` does."""
        import torch

        self.model = importlib.import_module("gtcrn").GTCRN().eval()
        names = ("checkpoints/model_trained_on_vctk.tar", "checkpoints/model_trained_on_dns3.tar")
        if path := self.find(*reversed(names)):
            self.model.load_state_dict(self.read(path)["model"])
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
        make_package("model", self.folder / "model")  # its __init__ imports the trainer
        score_net = importlib.import_module("model.backbone.score_net")
        inferencer = importlib.import_module("model.sde.inferencer")
        self.config = read_yaml(self.folder / "config" / "config.yaml")
        self.model = score_net.ScoreNet(**self.config["model_config"]).eval()
        self.sampler = inferencer.Inferencer(**self.config["test_sde_config"])
        if path := self.find():
            state = self.read(path)
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
        out: FloatArray = m.generate_wav(fused.squeeze(1), phase, length=len(wav))[0].numpy()
        return out


class MpSenet(Peer):
    """MP-SENet (yxlu-0102/MP-SENet): a clone with ``models/`` and ``best_ckpt/config.json``."""

    def load(self) -> None:
        """Build it as its ``inference.py`` does."""
        assert self.folder is not None
        stub_module("librosa")
        stub_module("joblib", "Parallel", "delayed")
        self.front = importlib.import_module("dataset")
        self.h = types.SimpleNamespace(
            **json.loads((self.folder / "best_ckpt" / "config.json").read_text())
        )
        self.model = importlib.import_module("models.model").MPNet(self.h).eval()
        if path := self.find("best_ckpt/g_best_vb", "best_ckpt/g_best_dns"):
            self.model.load_state_dict(self.read(path)["generator"])
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
        return fit_length(y, len(wav))


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
        stub_module("librosa")
        stub_module("librosa.filters", "mel")
        config = read_yaml(self.folder / "configs" / "fastenhancer" / f"{self.size}.yaml")
        self.sizes = {k: config["model_kwargs"][k] for k in ("n_fft", "hop_size", "win_size")}
        module = importlib.import_module(f"models.{config['model']}.model")
        self.model = module.Model(**config["model_kwargs"]).eval()
        self.model.remove_weight_reparameterizations()
        self.window = torch.hann_window(self.sizes["win_size"])
        self.networks = [self.model]
        self.session: Any = None
        stem = f"onnx/fastenhancer_{self.size}"
        if path := self.find(f"{stem}.spec.onnx", f"{stem}_spec.onnx"):
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
            return fit_length(self.model(x)[0][0].numpy(), len(wav))
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
        return fit_length(torch.istft(spec, n_fft, hop, win, self.window)[0].numpy(), len(wav))

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
            make_package(name, package.joinpath(*name.split(".")[1:]))
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
