"""Building blocks shared by both branches: norms, convolutions, and their exact folding.

Everything outside the attention's products is a convolution followed by batch normalisation and a
ReLU, leaky ReLU or sigmoid. At inference the norm is a constant affine map and is folded into the
convolution before it, and the activation is one that every engine applies inside the convolution,
so that a layer is one pass over memory. Channel layer norm, PReLU and GELU each cost
one to four more passes (measured; see ``benchmarks/profile_graphs.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .causal import CausalConv2d

BN_MOMENTUM = 0.02  # training crops are few per step: average the statistics over about 50 steps


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that leaves ``num_batches_tracked`` alone: nothing here reads it.

    It stays in the state dict, so that weights of any version load; counting it took a small kernel
    for each norm and step.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [B, C, T, F]."""
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            BN_MOMENTUM if self.momentum is None else self.momentum, self.eps,
        )  # fmt: skip


class ChannelNorm(nn.Module):
    """Layer norm over channels at every time-frequency point, [B, C, T, F] -> same shape."""

    def __init__(self, channels: int) -> None:
        """Make the norm for ``channels`` channels."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [B, C, T, F]; statistics in float32."""
        shape = (x.shape[1],)
        weight, bias = self.weight.float(), self.bias.float()
        y = nn.functional.layer_norm(x.movedim(1, -1).float(), shape, weight, bias)
        return y.movedim(-1, 1).to(x.dtype)


def make_norm(kind: str, channels: int) -> nn.Module:
    """Norm over ``channels``: "batch" (folds into the convolution) or "layer"."""
    if kind == "batch":
        return BatchNorm(channels, momentum=BN_MOMENTUM)
    if kind == "layer":
        return ChannelNorm(channels)
    raise ValueError(f"norm is {kind!r}; it must be 'batch' or 'layer'")


class ConvNorm(nn.Module):
    """Convolution, norm, and nothing else: [B, Cin, T, F] -> [B, Cout, T', F'].

    ``zero_init`` starts the norm's gain at zero, so that a residual branch starts as the identity.
    A ``causal`` one has its last tap in time on the present frame.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | None = None,
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        norm: str = "batch",
        zero_init: bool = False,
        causal: bool = False,
    ) -> None:
        """Make the layer; ``padding`` defaults to "same" for odd kernels."""
        super().__init__()
        k = (kernel, kernel) if isinstance(kernel, int) else kernel
        if padding is None:
            padding = (dilation[0] * (k[0] // 2), dilation[1] * (k[1] // 2))
        kind = CausalConv2d if causal and k[0] > 1 else nn.Conv2d
        self.conv = kind(
            c_in, c_out, k, stride=stride, padding=padding, dilation=dilation, groups=groups,
            bias=False,
        )  # fmt: skip
        self.norm = make_norm(norm, c_out)
        if zero_init:
            nn.init.zeros_(self.norm.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Apply convolution and norm."""
        out: Tensor = self.norm(self.conv(x))
        return out


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold every `ConvNorm`'s batch norm into its convolution, in place; the model must be in eval.

    Exact up to rounding: BN(Wx) = (g / s) W x + (b - g m / s), with s = sqrt(var + eps).
    Returns the model.
    """
    for module in model.modules():
        if isinstance(module, ConvNorm) and isinstance(module.norm, nn.BatchNorm2d):
            if module.training:
                raise ValueError("fold_batch_norms: model is in training mode; call model.eval()")
            bn = module.norm
            assert bn.running_mean is not None  # it tracks them
            assert bn.running_var is not None
            gain = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
            weight = module.conv.weight.double() * gain[:, None, None, None]
            bias = bn.bias.double() - gain * bn.running_mean.double()
            module.conv.weight = nn.Parameter(weight.to(module.conv.weight.dtype))
            module.conv.bias = nn.Parameter(bias.to(module.conv.weight.dtype))
            module.norm = nn.Identity()
    return model
