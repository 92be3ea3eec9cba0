"""What one training step costs in launches and bytes, counted without running it.

    python -m dvpd.benchmarks.step_cost dvpd/configs/base.toml --crops 64 --json cost.json
    python -m dvpd.benchmarks.step_cost dvpd/configs/base.toml --set train.kernels='"fast"'

The whole step (losses, backward pass, clipping, AdamW, average) runs on tensors without data, so that
any machine can count any batch. Bytes are those that the operators read and write, no two of them
fused: what a GPU moves that runs the step call by call and whose caches hold nothing between calls.
Views cost nothing. The counts depend on the version of torch, not on the machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dvpd import lisa
from dvpd.config import Config, load_toml, override
from dvpd.runtime import command
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole
from dvpd.training import fast_kernels
from dvpd.training.fast_step import Step
from dvpd.training.objective import Objective
from dvpd.training.trainer import Trainer

CROPS = 64
SHOWN = 15  # operators in the table
FREE = ("detach", "_unsafe_view", "lift_fresh", "empty_like", "empty")  # without a kernel


class Counted(TorchDispatchMode):
    """Counts calls and bytes by operator; views are free.

    Attributes:
        calls: Calls by operator.
        bytes: Bytes read and written by operator.
    """

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` and count it."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        if func.is_view or name in FREE or "::" in name:  # prim::device asks, and moves nothing
            return out
        read = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if _is_tensor(x)]
        made = [x for x in torch.utils._pytree.tree_leaves(out) if _is_tensor(x)]
        self.calls[name] += 1
        # an expanded map is read once
        self.bytes[name] += sum(_stored(x) for x in read) + sum(_stored(x) for x in made)
        return out


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _stored(x: Tensor) -> int:
    sizes = [n for n, stride in zip(x.shape, x.stride(), strict=True) if stride]
    count = 1
    for n in sizes:
        count *= n
    return count * x.element_size() if x.numel() else 0


class _NoData:
    def pair(self, seed: int, epoch: int, index: int) -> Any:
        raise AssertionError("nothing is mixed here")


def count_step(config: Config, crops: int, depthwise: str = "convolution") -> dict[str, Any]:
    """Launches and bytes of a step as a GPU runs it, call by call.

    Args:
        config: The whole config; crops are as long as its [data] says.
        crops: In the batch.
        depthwise: Form of depthwise and LISA's convolutions with kernels = "fast".

    Returns:
        "calls" and "bytes" of the step, and "operators": [name, calls, bytes], most bytes first.
    """
    # Nothing is timed, so the forms cannot be measured; and a GPU takes LISA's plain convolutions.
    fixed = mock.patch.object(
        fast_kernels,
        "fastest",
        lambda forms, *_: depthwise if depthwise in forms else "convolution",
    )
    plain = mock.patch.object(lisa, "_DilatedSum", SimpleNamespace(apply=lisa._dilated_sum))
    with tempfile.TemporaryDirectory() as scratch, fixed, plain:
        trainer = Trainer(config, _NoData(), scratch)
        objective = Objective(trainer.model, config, dft=torch.float32, average=trainer.ema.model)
        step = Step(
            objective, trainer.model, trainer.optimizer, trainer.ema, trainer.team,
            config.train, rows=1,
        )  # fmt: skip
        with FakeCopyMode(fake := FakeTensorMode()):
            step = copy.deepcopy(step)
        step.bind()  # a copied optimiser has lost them
        samples, cpu = config.data.crop_samples, torch.device("cpu")
        with fake:
            noisy, clean = torch.zeros(2, crops, samples)
            draws = _draws(step.objective, crops, samples, cpu)
            for parameter in step.parameters:
                parameter.grad = torch.zeros_like(parameter)
            step.optimizer.step()  # makes its state
            with Counted() as counted:
                step(noisy, clean, draws)
    rows = [[name, counted.calls[name], size] for name, size in counted.bytes.most_common()]
    return {
        "crops": crops,
        "crop_samples": samples,
        "torch": torch.__version__,
        "calls": sum(counted.calls.values()),
        "bytes": sum(counted.bytes.values()),
        "operators": rows,
    }


class _Unseeded:
    """In a generator's place: it cannot draw on tensors without data."""

    def __init__(self, device: torch.device) -> None: ...

    def manual_seed(self, seed: int) -> None: ...


def _draws(objective: Any, crops: int, samples: int, device: torch.device) -> Any:
    with mock.patch.object(torch, "Generator", _Unseeded):
        return objective.draw(0, crops, samples, device)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="dvpd.benchmarks.step_cost", description="Count a training step's launches and bytes."
    )
    parser.add_argument("config", help="TOML file")
    parser.add_argument("--crops", type=int, default=CROPS, help=f"in the batch ({CROPS})")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument(
        "--shifted", action="store_true", help="depthwise convolutions as shifted sums (fast)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="T.K=V", dest="settings",
        help="override a key of the config",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _measure)


def _measure(args: argparse.Namespace) -> int:
    if args.crops < 1:
        raise InputError(f"--crops is {args.crops}; expected at least 1")
    config = override(load_toml(args.config), args.settings)
    form = "shifted sums" if args.shifted else "convolution"
    cost = count_step(config, args.crops, form)
    for name, calls, size in cost["operators"][:SHOWN]:
        print(f"{name:36} {calls:6} calls {size / 1e9:9.3f} GB")
    print(f"{'all':36} {cost['calls']:6} calls {cost['bytes'] / 1e9:9.3f} GB")
    if args.json:
        write_whole(args.json, json.dumps(cost, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command.leave(main())
