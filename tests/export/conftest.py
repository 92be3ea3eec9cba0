"""One small model, exported once in each precision for all test processes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dvpd.checkpoint import load_model, save_checkpoint
from dvpd.config import Config, ModelConfig
from dvpd.export.build import export_checkpoint
from dvpd.model import DVPD
from dvpd.runtime.manifest import Manifest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for fake_trt
SMALL = ModelConfig(name="small", channels=8, blocks=1, decoder_channels=4, embedding=16, state=8)


def randomise(model: DVPD, seed: int = 0) -> DVPD:
    """Give every value that starts at zero or one something else, so that parity says something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
        for branch in (model.predictive, model.score):
            branch.decoder.last.weight.normal_(0, 0.1, generator=generator)
            branch.decoder.last.bias.normal_(0, 0.01, generator=generator)
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in ("gamma", "mean_weight", "l1", "l2", "beta"):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * noise)
    return model


def write_checkpoint(path: Path, model_config: ModelConfig = SMALL) -> Path:
    """A checkpoint of ``model_config`` with random weights."""
    torch.manual_seed(0)
    config = dataclasses.replace(Config(), model=model_config)
    save_checkpoint(path, randomise(DVPD(model_config)).state_dict(), config)
    return path


@pytest.fixture
def make_small():
    """``make_small(**change)``: the small model with other settings and random weights."""

    def make(**change) -> DVPD:
        torch.manual_seed(0)
        return randomise(DVPD(dataclasses.replace(SMALL, **change))).eval()

    return make


@pytest.fixture(scope="session")
def checkpoint(made_once):
    name = "small.safetensors"
    return made_once("checkpoint", lambda folder: write_checkpoint(folder / name)) / name


@dataclass
class Exported:
    """An engine folder and the model that it is from."""

    folder: Path
    manifest: Manifest
    config: Config
    model: DVPD


def _export(checkpoint: Path, made_once, precision: str) -> Exported:
    def make(root: Path) -> None:
        _, manifest = export_checkpoint(checkpoint, root / name, precision)
        (root / "returned.json").write_text(manifest.to_json())

    name = "small" if precision == "fp32" else f"small-{precision}"
    root = made_once(f"engine-{precision}", make)
    manifest = Manifest.from_dict(json.loads((root / "returned.json").read_text()))
    return Exported(root / name, manifest, *load_model(checkpoint))


@pytest.fixture(scope="session")
def fp32(checkpoint, made_once):
    return _export(checkpoint, made_once, "fp32")


@pytest.fixture(scope="session")
def fp16(checkpoint, made_once):
    return _export(checkpoint, made_once, "fp16")


@pytest.fixture(scope="session")
def live_checkpoint(made_once):
    """Of a causal model with one block of look-ahead."""
    config = dataclasses.replace(SMALL, name="small-live", causal=True, lookahead_blocks=1)
    name = "live.safetensors"
    return (
        made_once("checkpoint-live", lambda folder: write_checkpoint(folder / name, config)) / name
    )


def _live(checkpoint: Path, made_once, precision: str) -> Path:
    name = "live" if precision == "fp32" else f"live-{precision}"

    def make(root: Path) -> None:
        shutil.copy(checkpoint, root)
        export_checkpoint(checkpoint, root / name, precision)

    return made_once(f"engine-{name}", make) / name


@pytest.fixture(scope="session")
def live(live_checkpoint, made_once):
    """The engine folder of a causal model with one block of look-ahead, its checkpoint beside it."""
    return _live(live_checkpoint, made_once, "fp32")


@pytest.fixture(scope="session")
def live_fp16(live_checkpoint, made_once):
    """The same in half precision."""
    return _live(live_checkpoint, made_once, "fp16")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Of torch and of every engine: small work on many threads, beside other tests, only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dvpd.runtime.backends.choose.default_threads", lambda: 1)
        yield
    torch.set_num_threads(before)
