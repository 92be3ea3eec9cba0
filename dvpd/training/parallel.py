"""Training on several processes: ``torchrun --nproc-per-node N -m dvpd.train ...``.

Lightning Fabric finds the processes, makes their group and wraps the model (DDP). A step on N
processes is the step that one process would make on the same batch: each takes its share of the
crops, gradients are averaged, and batch norms use the statistics of the whole batch. Without
torchrun nothing of this is imported.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..runtime.errors import InputError
from ..torch_device import find_device


class Team:
    """The processes that train together; on its own, one process.

    Attributes:
        rank: This process, from 0.
        size: How many there are.
        device: Where this process computes.
    """

    rank = 0
    size = 1

    def __init__(self, device: str = "cpu") -> None:
        """A team of one.

        Args:
            device: torch device.
        """
        self.device = torch.device(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module such that its gradients are averaged over the team."""
        return module

    def backward(self, loss: Tensor) -> None:
        """Gradients of ``loss`` (averaged over the team)."""
        loss.backward()

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the team of a tensor of the same shape everywhere."""
        return values

    def agree(self, value: float) -> float:
        """Mean over the team of a number of the host."""
        return value

    def all(self, value: bool) -> bool:
        """Whether ``value`` holds in every process."""
        return value

    def lead_first(self) -> AbstractContextManager[Any]:
        """The first process of each machine runs the block alone, then the others do."""
        return contextlib.nullcontext()


class FabricTeam(Team):
    """One process among several, as torchrun started them."""

    def __init__(self, device: str = "cpu") -> None:
        """Join the process group; blocks until all processes have.

        Args:
            device: "cpu" (gloo) or "cuda" (NCCL, one GPU for each process).

        Raises:
            InputError: Lightning Fabric is not installed.
        """
        try:
            from lightning_fabric import Fabric
            from lightning_fabric.strategies.ddp import DDPStrategy
        except ImportError as error:
            raise InputError(
                "training on several processes needs lightning-fabric: pip install "
                f"'dvpd[train]' ({error})"
            ) from error
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        self.fabric = Fabric(
            accelerator=torch.device(device).type,
            devices=per_node,
            num_nodes=int(os.environ["WORLD_SIZE"]) // per_node,
            strategy=DDPStrategy(broadcast_buffers=False),  # the norms keep them equal
        )
        self.fabric.launch()
        super().__init__(str(self.fabric.device))
        self.rank, self.size = self.fabric.global_rank, self.fabric.world_size

    def wrap(self, module: nn.Module) -> nn.Module:
        """See `Team`."""
        return self.fabric.setup_module(synchronise_norms(module), move_to_device=False)

    def backward(self, loss: Tensor) -> None:
        """See `Team`."""
        self.fabric.backward(loss)

    def mean(self, values: Tensor) -> Tensor:
        """See `Team`."""
        mean = self.fabric.all_reduce(values.clone(), reduce_op="mean")
        assert isinstance(mean, Tensor)  # as what it was given
        return mean

    def agree(self, value: float) -> float:
        """See `Team`."""
        return float(self.mean(torch.tensor(value, device=self.device)))

    def all(self, value: bool) -> bool:
        """See `Team`."""
        return bool(self.mean(torch.tensor(float(value), device=self.device)) == 1.0)

    def lead_first(self) -> AbstractContextManager[Any]:
        """See `Team`."""
        return self.fabric.rank_zero_first(local=True)


def join_team(device: str = "auto") -> Team:
    """The team that torchrun's environment describes, or a team of one.

    Args:
        device: "cpu", "cuda" or "auto" (CUDA if there).

    Raises:
        InputError: There are several processes, and Lightning Fabric is not installed.
        BackendError: There is no such device.
    """
    device = str(find_device(device))
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return FabricTeam(device) if several else Team(device)


class _Gather(torch.autograd.Function):
    """[...] of each process -> [size, ...] in all of them; gradients go back to their owner."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every process's loss depends on these statistics: its owner gets the sum.
        total = grad.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total[torch.distributed.get_rank()]


class JointBatchNorm(nn.BatchNorm2d):
    """Batch norm over the crops of all processes, on any device (torch's is for GPUs alone).

    Parameters, buffers and results are those of `dvpd.layers.BatchNorm` on the whole batch, if
    every process has an equal share of it.
    """

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types for it
    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [B, C, T, F]; statistics in float32 as in ``nn.BatchNorm2d``."""
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * torch.distributed.get_world_size()
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)  # [C] of this share
        both: Tensor = _Gather.apply(torch.stack([var, mean]))  # type: ignore[no-untyped-call]  # torch has no types for it
        vars_, means = both.unbind(1)  # [size, C] each
        mean = means.mean(0)
        # No difference of squares: it would lose the variance of a channel far from zero.
        var = vars_.mean(0) + (means - mean).square().mean(0)
        assert self.running_mean is not None  # it tracks them
        assert self.running_var is not None
        assert self.momentum is not None  # make_norm gives it
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], x.float(), scale[:, None, None]).to(x.dtype)


def synchronise_norms(module: nn.Module) -> nn.Module:
    """Replace every ``nn.BatchNorm2d`` in place by a `JointBatchNorm` with the same tensors."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and not isinstance(child, JointBatchNorm):
            joint = JointBatchNorm(child.num_features, child.eps, child.momentum)
            joint.weight, joint.bias = child.weight, child.bias
            joint.running_mean, joint.running_var = child.running_mean, child.running_var
            joint.num_batches_tracked = child.num_batches_tracked
            joint.training = child.training
            setattr(module, name, joint)
        else:
            synchronise_norms(child)
    return module
