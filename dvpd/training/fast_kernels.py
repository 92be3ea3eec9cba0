"""The same layers in forms that a GPU runs faster in training: ``train.kernels = "fast"``.

Narrow convolutions are bound by memory. A 1x1 convolution of a channels-last map is one matrix
product without a copy. A depthwise 3x3 one can be nine shifted multiply-adds, which a compiler fuses
with what stands before and behind; as LISA's stripes, it may be faster or slower than the library's
convolution. A short measurement on the machine decides. Parameters and state dict stay as they are.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config.train import TrainConfig
from ..lisa import LISA

logger = logging.getLogger("dvpd.train")

DEPTHWISE_FORMS = ("convolution", "shifted sums")
MEASURED_SHAPE = {"cuda": (16, 48, 128, 128), "cpu": (1, 8, 32, 128)}  # [B, C, T, F]
REPEATS = 5
# Choices by layer that a process is to keep to, and adds to; None measures in every training. Measured
# anew, a close race may end otherwise, and what was compiled for the first choice fits no more.
remembered: dict[str, str] | None = None


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as a matrix product over channels."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, T, F] -> [B, Cout, T, F], both channels-last in memory."""
        y = nn.functional.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return y.permute(0, 3, 1, 2)


class ShiftedDepthwise(nn.Conv2d):
    """A depthwise 3x3 convolution of stride 1 as nine shifted multiply-adds in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, F] -> same shape; under autocast in its type, as a convolution is."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        frames, bins = x.shape[2:]
        padded = nn.functional.pad(x, (1, 1, 1, 1)).float()
        weight = self.weight.to(x.dtype).float()[:, 0, :, :, None, None]  # [C, 3, 3, 1, 1]
        total: Tensor | None = None
        for i in range(3):
            for j in range(3):
                part = weight[:, i, j] * padded[:, :, i : i + frames, j : j + bins]
                total = part if total is None else total + part
        assert total is not None
        if self.bias is not None:
            total = total + self.bias.float()[:, None, None]
        return total.to(x.dtype)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1


def _is_depthwise(conv: nn.Conv2d) -> bool:
    same = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.dilation == (1, 1)
    alone = conv.groups == conv.in_channels == conv.out_channels
    return same and alone and conv.stride == (1, 1)


def _as(kind: type[nn.Conv2d], conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution as another class, with the same parameters."""
    rows, columns = conv.kernel_size
    with torch.device("meta"):
        new = kind(
            conv.in_channels, conv.out_channels, (rows, columns), groups=conv.groups,
            padding=conv.padding if isinstance(conv.padding, str) else (conv.padding[0], conv.padding[1]),
            bias=conv.bias is not None,
        )  # fmt: skip
    new.weight, new.bias = conv.weight, conv.bias
    return new.train(conv.training)


def replace_layers(module: nn.Module, depthwise: str, shifted_lisa: bool) -> nn.Module:
    """Give a model's layers their fast forms, in place; returns it.

    Args:
        module: The model; its parameters, their names and their order stay.
        depthwise: One of ``DEPTHWISE_FORMS``.
        shifted_lisa: Whether LISA's stripes are shifted sums in training, too.
    """
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and _is_pointwise(child):
            setattr(module, name, _as(Pointwise, child))
        elif type(child) is nn.Conv2d and _is_depthwise(child) and depthwise == "shifted sums":
            setattr(module, name, _as(ShiftedDepthwise, child))
        else:
            replace_layers(child, depthwise, shifted_lisa)
    if isinstance(module, LISA):
        module.shifted = shifted_lisa
    return module


def seconds_of(function: Callable[[Tensor], Tensor], x: Tensor, bf16: bool) -> float:
    """Median time of a forward and a backward pass (s), after two that warm up."""
    times = []
    for _ in range(REPEATS + 2):
        given = x.detach().requires_grad_()
        begin = time.perf_counter()
        with torch.autocast(x.device.type, torch.bfloat16, bf16):
            y = function(given)
        y.sum().backward()
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def fastest(forms: dict[str, nn.Module], x: Tensor, config: TrainConfig) -> str:
    """The form that is fastest here; one that fails is left out.

    Args:
        forms: Modules by name, the first of which must run.
        x: Their input.
        config: Its precision, and whether blocks are compiled.
    """
    times: dict[str, float] = {}
    for name, module in forms.items():
        run = torch.compile(module, dynamic=False) if config.compile else module
        try:
            times[name] = seconds_of(run, x, config.precision == "bf16")
        except Exception as error:  # a compiler that is not there
            logger.warning("%s: %s", name, (str(error) or type(error).__name__).splitlines()[0])
    best = min(times, key=times.__getitem__) if times else next(iter(forms))
    measured = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in times.items())
    logger.info("measured: %s; taken: %s", measured or "none", best)
    return best


def use_fast_kernels(model: nn.Module, device: torch.device, config: TrainConfig) -> nn.Module:
    """Measure on the device which forms are faster, and give them to the model, in place.

    Args:
        model: The networks.
        device: Where they are to run.
        config: Its precision, and whether blocks are compiled.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    b, c, frames, bins = MEASURED_SHAPE[kind]
    x = torch.ones(b, c, frames, bins, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    random = torch.get_rng_state()  # a measurement must not change what is drawn after it
    convs = [
        kind(c, c, 3, padding=1, groups=c, bias=False) for kind in (nn.Conv2d, ShiftedDepthwise)
    ]
    lisas = [LISA(c, "batch") for _ in range(2)]
    torch.set_rng_state(random)
    lisas[1].shifted = True
    known = {} if remembered is None else remembered
    for layer, pair in (("depthwise", convs), ("stripes", lisas)):
        if layer not in known:
            forms = {n: m.to(device) for n, m in zip(DEPTHWISE_FORMS, pair, strict=True)}
            known[layer] = fastest(forms, x, config)
    return replace_layers(model, known["depthwise"], known["stripes"] == "shifted sums")
