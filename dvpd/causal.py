"""The causal network's building blocks: what a stream's past leaves for the next block.

The network halves the time axis twice, so its unit is a block of four frames (two and one at the
deeper levels); within a block everything is known at once. Every layer that looks back is
`Stateful`: it reads what it kept of the frames before, and keeps what the frames after need. Without
a `Memory` the frames before are zeros and nothing is kept: that is the parallel form, for
training. With one the same code continues a stream, so both forms agree for any split into blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .runtime.spec import FRAME_MULTIPLE, SignalSpec

BLOCK_S = FRAME_MULTIPLE / SignalSpec().frame_rate_hz  # 32 ms
MEAN_S = 2.0  # time constant of the running means
MEAN_DECAY = math.exp(-BLOCK_S / MEAN_S)  # a block
EXTREME_DOUBLINGS = 6
EXTREME_BLOCKS = 2**EXTREME_DOUBLINGS - 1  # before the present one whose extremes count: 2 s


@dataclass(frozen=True)
class Grid:
    """Where a layer stands.

    Attributes:
        frames: Frames of a block at this level: 4, 2 or 1.
    """

    frames: int

    @classmethod
    def at(cls, level: int) -> Grid:
        """The grid of U-Net level 0, 1 or 2."""
        return cls(FRAME_MULTIPLE >> level)

    def blocks(self, x: Tensor) -> Tensor:
        """[B, C, T, F] -> [B, C, J, frames, F], a view."""
        blocks: Tensor = x.unflatten(2, (-1, self.frames))
        return blocks

    def scale(self, x: Tensor, gain: Tensor) -> Tensor:
        """``x`` [B, C, T, F] times ``gain`` [B, C, J, F] (or one bin), one factor a block."""
        return (self.blocks(x) * gain.unsqueeze(3)).flatten(2, 3)


class Memory:
    """The flat state of a stream, read and written by the layers in the order in which they run.

    Attributes:
        chunk: Frames that the attention along time takes at once; None for all of a call.
    """

    def __init__(self, state: Tensor | None, chunk: int | None = 32) -> None:
        """Start a call.

        Args:
            state: float32 [B, S], what the call before left; None at the start of a stream (zeros
                are the same).
            chunk: As in the attributes.
        """
        self.state, self.chunk = state, chunk
        self._read = 0
        self._kept: list[Tensor] = []
        self._tables: dict[Any, Any] = {}

    def recall(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The next part of the state, float32 [B, *shape]."""
        if self.state is None:
            return like.new_zeros((like.shape[0], *shape), dtype=torch.float32)
        first, self._read = self._read, self._read + math.prod(shape)
        part: Tensor = self.state[:, first : self._read].unflatten(1, shape)
        return part

    def keep(self, value: Tensor) -> None:
        """Append to the next state what ``recall`` will return in the next call."""
        self._kept.append(value.float().flatten(1))

    def table(self, key: Any, make: Callable[[], Any]) -> Any:
        """What all layers share in a call, made once."""
        if key not in self._tables:
            self._tables[key] = make()
        return self._tables[key]

    @property
    def next_state(self) -> Tensor:
        """The state after the call, float32 [B, S]."""
        return torch.cat(self._kept, dim=1)


class Stateful(nn.Module):
    """A layer that looks back.

    Attributes:
        memory: Of the stream that runs through the network, set by `remembering`.
    """

    memory: Memory | None = None

    def recall(self, like: Tensor, *shape: int) -> Tensor:
        """What was kept in the call before, float32 [B, *shape]; zeros at the start."""
        memory = self.memory or Memory(None)
        return memory.recall(like, shape)

    def keep(self, value: Tensor) -> None:
        """Keep what the next call will ask for; nothing is kept in the parallel form."""
        if self.memory is not None:
            self.memory.keep(value)

    def shared(self, key: Any, make: Callable[[], Any]) -> Any:
        """A table that all layers of a call share."""
        return make() if self.memory is None else self.memory.table(key, make)

    def extended(self, x: Tensor, frames: int) -> Tensor:
        """``x`` [B, C, T, F] with as many frames of its past in front, [B, C, frames + T, F]."""
        past = self.recall(x, x.shape[1], frames, x.shape[3]).to(x.dtype)
        y = torch.cat([past, x], dim=2)
        self.keep(y[:, :, -frames:])
        return y


@contextmanager
def remembering(network: nn.Module, memory: Memory) -> Iterator[Memory]:
    """Let a network's layers use ``memory`` inside."""
    layers = [m for m in network.modules() if isinstance(m, Stateful)]
    try:
        for layer in layers:
            layer.memory = memory
        yield memory
    finally:
        for layer in layers:
            layer.memory = None


class Past(Stateful):
    """Two frames of the past in front, for convolutions that share them."""

    def __init__(self, frames: int = 2) -> None:
        """Make the layer."""
        super().__init__()
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, F] -> [B, C, frames + T, F]."""
        return self.extended(x, self.frames)


class CausalConv2d(Stateful, nn.Conv2d):
    """A convolution whose last tap in time is the present frame: [B, Cin, T, F] -> [B, Cout, T, F'].

    The parameters are those of the symmetric convolution; ``padding`` along time is ignored.
    """

    def __init__(self, c_in: int, c_out: int, kernel: Any, **options: Any) -> None:
        """Make the layer; arguments as of ``nn.Conv2d``."""
        super().__init__(c_in, c_out, kernel, **options)
        pad = self.padding[1]
        assert isinstance(pad, int)
        self.padding = (0, pad)
        self.reach = self.dilation[0] * (self.kernel_size[0] - 1)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve; the argument's name is that of ``nn.Conv2d``."""
        return super().forward(self.extended(input, self.reach) if self.reach else input)


def lower_triangle(n: Any, device: torch.device) -> Tensor:
    """[n, n] in float32: 1 where the column is not after the row."""
    place = torch.arange(n, device=device).float()
    return (place[:, None] >= place).float()


class BlockClock(Stateful):
    """Blocks heard so far, each counted less the older it is: W_j = c W_(j-1) + 1.

    It is the denominator of every running mean, and tells whether a stream has begun.
    """

    def forward(self, like: Tensor, n_blocks: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Decays from block to block [J, J], from before the call [J, 1], and W [B, J]."""
        place = torch.arange(n_blocks, device=like.device).float()
        age = place[:, None] - place
        log = math.log(MEAN_DECAY)
        within = torch.exp(log * torch.relu(age)) * (age >= 0).float()  # [J, J]
        since = torch.exp(log * (place[:, None] + 1))  # [J, 1]
        before = self.recall(like, 1)  # [B, 1]
        weight = within.sum(-1) + since[:, 0] * before  # [B, J]
        self.keep(weight[:, -1:])
        return within, since, weight

    def of(self, like: Tensor, n_blocks: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The same, made once a call."""
        tables: tuple[Tensor, Tensor, Tensor] = self.shared("clock", lambda: self(like, n_blocks))
        return tables


class BlockMean(Stateful):
    """Running mean over time, one value a block: [B, C, T, F] -> [B, C, J, F].

    N_j = c N_(j-1) + the block's mean, m = N / W with W from `BlockClock`: all frames of the block
    and, fading with a time constant of 2 s, those before it.
    """

    def __init__(self, grid: Grid) -> None:
        """Make the layer."""
        super().__init__()
        self.grid, self.clock = grid, BlockClock()

    def forward(self, x: Tensor) -> Tensor:
        """The means of ``x`` until the end of each block."""
        own = self.grid.blocks(x.float()).mean(3)  # [B, C, J, F]
        within, since, weight = self.clock.of(x, own.shape[2])
        before = self.recall(x, x.shape[1], 1, x.shape[3])
        total = within @ own + since * before
        self.keep(total[:, :, -1:])
        return (total / weight[:, None, :, None]).to(x.dtype)


class BlockExtremes(Stateful):
    """Least and largest value of the last 2 s, by block: [B, 1, T, F] -> two of [B, 1, J, 1].

    At the start of a stream zero counts among them.
    """

    def __init__(self, grid: Grid) -> None:
        """Make the layer."""
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The extremes of ``x`` until the end of each block."""
        blocks = self.grid.blocks(x.float())
        both = torch.cat([blocks, -blocks], dim=1).amax((3, 4))  # [B, 2, J]: largest, -least
        seen = torch.cat([self.recall(x, 2, EXTREME_BLOCKS), both], dim=2)
        self.keep(seen[:, :, -EXTREME_BLOCKS:])
        for i in range(EXTREME_DOUBLINGS):  # a maximum over 2, 4, ... 64 blocks
            seen = torch.maximum(seen[:, :, : -(2**i)], seen[:, :, 2**i :])
        pooled = seen.unsqueeze(3)  # [B, 2, J, 1]
        return -pooled[:, 1:], pooled[:, :1]


class LookAhead(Stateful):
    """The output comes some blocks late, so that it knows what follows.

    The network works on the frames that the output is of; those that are there already stand beside
    them as more channels of its first convolution. So a network without look-ahead becomes one that
    has it, and computes the same, when the new channels begin at zero.

    In the parallel form the output is moved back to its frames. In a stream it comes late: the first
    frames that leave belong to nothing, and are zero.
    """

    def __init__(self, blocks: int) -> None:
        """Make the layer for 0 or more blocks."""
        super().__init__()
        self.blocks, self.frames = blocks, FRAME_MULTIPLE * blocks
        self.clock = BlockClock()

    def late(self, x: Tensor) -> Tensor:
        """The noisy spectrum at the frames that the output is of."""
        if not self.frames or self.memory is None:
            return self.delay(x)
        return self.extended(x, self.frames)[:, :, : -self.frames]

    def beside(self, late: Tensor, x: Tensor) -> Tensor:
        """What ``late`` returned, and where there is look-ahead the spectrum that is there already.

        Args:
            late: [B, 3, T, F]; in the parallel form T is longer by the look-ahead.
            x: The noisy spectrum.

        Returns:
            [B, 3 or 6, T, F].
        """
        if not self.frames:
            return late
        if self.memory is None:
            x = nn.functional.pad(x, (0, 0, 0, self.frames))
        return torch.cat([late, x], dim=1)

    def delay(self, x: Tensor) -> Tensor:
        """The diffused magnitude as the score branch hears it."""
        if self.frames and self.memory is None:
            return nn.functional.pad(x, (0, 0, self.frames, 0))
        return x

    def cut(self, x: Tensor) -> Tensor:
        """The decoder's output [B, C, T, F] at the frames that it belongs to."""
        return x[:, :, self.frames :] if self.frames and self.memory is None else x

    def begun(self, x: Tensor) -> Tensor:
        """``x`` [B, C, T, F], zero where a stream has not begun."""
        if not self.frames or self.memory is None:
            return x
        weight = self.clock.of(x, x.shape[2] // FRAME_MULTIPLE)[2]  # [B, J]
        least = sum(MEAN_DECAY**i for i in range(self.blocks)) + 0.5 * MEAN_DECAY**self.blocks
        return Grid.at(0).scale(x, (weight > least).to(x.dtype)[:, None, :, None])


def advance(
    network: nn.Module, state: Tensor | None, *inputs: Any, chunk: int | None = 32
) -> tuple[Any, Tensor]:
    """Continue a stream: the network's output for the next blocks, and its next state.

    Args:
        network: A causal branch in eval mode.
        state: float32 [B, S] from the call before; None at the start.
        inputs: The branch's.
        chunk: See `Memory`.
    """
    with remembering(network, Memory(state, chunk)) as memory:
        out = network(*inputs)
    return out, memory.next_state
