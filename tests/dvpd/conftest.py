import math
import sys
from pathlib import Path

import pytest
import torch

from dvpd.config import ModelConfig
from dvpd.model import DVPD

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for train_parts

SMALL = ModelConfig(name="small", channels=8, blocks=1, state=4, decoder_channels=4, embedding=8)


def set_weights(model: torch.nn.Module) -> None:
    """Give every weight and statistic a value by formula: the same on any version of torch."""
    with torch.no_grad():
        # TLB's bands came later: the others keep their values
        buffers = [(n, b) for n, b in model.named_buffers() if not n.endswith((".band1", ".band2"))]
        tensors = [*model.named_parameters(), *buffers]
        for i, (name, tensor) in enumerate(sorted(tensors, key=lambda item: item[0])):
            if not tensor.is_floating_point() or name.endswith("centre"):
                continue
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 1.7 + 0.37 * i)
            if name.endswith(("running_var", "norm.weight")):
                value = 1 + 0.3 * wave
            elif tensor.ndim > 1:
                fan_in = tensor[0].numel()
                value = wave * math.sqrt(2 / max(fan_in, 1))
            else:
                value = 0.2 * wave
            tensor.copy_(value.reshape(tensor.shape))


@pytest.fixture
def small_config() -> ModelConfig:
    return SMALL


@pytest.fixture
def make_small_model():
    def make(config: ModelConfig = SMALL) -> DVPD:
        model = DVPD(config)
        set_weights(model)
        return model.eval()

    return make


@pytest.fixture
def small_model(make_small_model) -> DVPD:
    return make_small_model()
