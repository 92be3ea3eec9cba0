"""The small model of the tests, and weights for it by formula."""

from __future__ import annotations

import math

import torch

from dvpd.config import ModelConfig

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
