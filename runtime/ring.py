"""Samples on their way between two threads, and two clocks that do not agree.

Memory is set aside beforehand: what writes or reads here inside an audio callback only copies.
"""

from __future__ import annotations

import numpy as np

from .arrays import FloatArray


class Ring:
    """Samples between one thread that writes and one that reads.

    Attributes:
        written: Frames that were taken in.
        taken: Frames that were given out.
        lost: Frames that came when there was no room.
    """

    def __init__(self, capacity: int, n_channels: int) -> None:
        """Set the memory aside.

        Args:
            capacity: Frames that fit in.
            n_channels: Values of a frame.
        """
        self._data = np.zeros((capacity, n_channels), np.float32)
        self._capacity = capacity
        self.written = self.taken = self.lost = 0

    @property
    def level(self) -> int:
        """Frames that wait."""
        return self.written - self.taken

    def write(self, block: FloatArray) -> None:
        """Take in frames [n, n_channels]; those without room are lost, and counted."""
        count = min(len(block), self._capacity - self.level)
        begin = self.written % self._capacity
        first = min(count, self._capacity - begin)
        self._data[begin : begin + first] = block[:first]
        self._data[: count - first] = block[first:count]
        self.lost += len(block) - count
        self.written += count  # last: the reader looks at it

    def read(self, out: FloatArray) -> int:
        """Give out frames into ``out`` [n, n_channels], zeros where there are too few.

        Returns:
            Frames that were there.
        """
        count = min(len(out), self.level)
        begin = self.taken % self._capacity
        first = min(count, self._capacity - begin)
        out[:first] = self._data[begin : begin + first]
        out[first:count] = self._data[: count - first]
        out[count:] = 0.0
        self.taken += count
        return count


BURST = 4  # times the allowed deviation, at one moment


class DriftControl:
    """Keep a buffer's level where it should be, although it is filled and emptied by two clocks.

    The level is averaged, since it goes up and down with the devices' blocks. When the average is
    off by more than is allowed, some frames are left out of a block, or come twice, with a short
    cross-fade over the seam. What comes in a burst, as from a device that starts late and delivers
    what it has kept, is left out at once.

    Attributes:
        dropped: Frames that were left out.
        repeated: Frames that came twice.
        corrections: How often either was done.
    """

    def __init__(self, target: int, allowed: int, fade: int, average_blocks: int) -> None:
        """Begin at the target.

        Args:
            target: Frames that should wait on average.
            allowed: Frames by which the average may differ.
            fade: Frames of a cross-fade.
            average_blocks: Blocks over which the level is averaged.
        """
        self._target, self._allowed, self._fade = target, allowed, fade
        self._weight = 1.0 / average_blocks
        rise = (np.arange(1, fade + 1, dtype=np.float32) / np.float32(fade + 1))[:, None]
        self._rise, self._fall = rise, np.float32(1.0) - rise
        self._cut: FloatArray | None = None  # what would have followed, were nothing left out
        self.mean = float(target)
        self.dropped = self.repeated = self.corrections = 0

    def restart(self) -> None:
        """Forget the average: the buffer was empty, and is filled to its target again."""
        self.mean = float(self._target)

    def apply(self, block: FloatArray, level: int) -> FloatArray:
        """The block as it goes into the buffer.

        Args:
            block: [n, n_channels].
            level: Frames that wait now.

        Returns:
            ``block``, or a shorter or longer one.
        """
        if level > self._target + (0 if self._cut is not None else BURST * self._allowed):
            if self._cut is None:
                self._cut = block[: self._fade].copy()
                self.corrections += 1
            self.dropped += len(block)
            return block[:0]
        if self._cut is not None:
            joined = block.copy()
            joined[: self._fade] *= self._rise
            joined[: self._fade] += self._cut * self._fall
            block, self._cut = joined, None
            self.restart()
        self.mean += self._weight * (level - self.mean)
        excess = round(self.mean) - self._target
        room = len(block) - self._fade
        if abs(excess) <= self._allowed or room < 1:
            return block
        count = min(abs(excess), room)
        self.corrections += 1
        if excess > 0:
            self.dropped += count
            self.mean -= count
            return self._joined(block, 0, count)
        self.repeated += count
        self.mean += count
        return self._joined(block, room, room - count)

    def _joined(self, block: FloatArray, left: int, right: int) -> FloatArray:
        """The block up to ``left``, a fade from there to what begins at ``right``, and what follows."""
        fade = self._fade
        seam = block[left : left + fade] * self._fall + block[right : right + fade] * self._rise
        return np.concatenate([block[:left], seam, block[right + fade :]])
