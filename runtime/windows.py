"""Cut a long signal into overlapping windows and join the processed pieces without a seam.

Windows lie on the frame grid, so frame m of the recording is always frame m of the noise. The
contaminated ends of each window (reflect padding, missing context of the network) are thrown
away; neighbours meet in a short cross-fade in the middle of what both know well.

A network tells noise by comparing it with speech, and a window in which nobody speaks has none: its
noise comes back. So the loudest second of the recording stands beside each window of several.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from .arrays import FloatArray
from .errors import InputError
from .spec import SignalSpec

_STRIDE = 16 * 128  # the loudest stretch begins at a multiple of this


@dataclass(frozen=True)
class WindowPlan:
    """Sizes of the windows, in samples at the model's rate.

    Attributes:
        window_samples: What a network is given at a time, the reminder included; also the longest
            signal processed in one piece.
        context_samples: What is thrown away at a cut.
        fade_samples: Length of the cross-fade, centred at the cut.
        least_samples: The last window of several reaches back to be as long as this, or as the
            others if they are shorter.
        reminder_samples: How much of the recording's loudest stretch stands beside each window of
            several, a multiple of 0.128 s; 0 for nothing. 1 s makes 17 % more frames in recordings
            longer than a window.
    """

    window_samples: int = 1023 * 128  # 8.184 s: 1024 frames, a multiple of 4
    context_samples: int = 64 * 128  # 0.512 s
    fade_samples: int = 16 * 128  # 0.128 s
    least_samples: int = 511 * 128  # 4.088 s, several times what the model was trained on
    reminder_samples: int = 128 * 128  # 1.024 s

    def __post_init__(self) -> None:
        """Refuse sizes that cannot tile a signal."""
        if self.fade_samples < 2 or self.fade_samples % 2:
            raise InputError(f"fade_samples is {self.fade_samples}; expected an even number >= 2")
        if self.context_samples < self.fade_samples:
            raise InputError("context_samples must be at least fade_samples")
        if self.reminder_samples < 0 or self.reminder_samples % _STRIDE:
            raise InputError(
                f"reminder_samples is {self.reminder_samples}; expected a multiple of {_STRIDE}, or 0"
            )
        if self.cut_samples < 2 * self.context_samples + self.fade_samples:
            raise InputError("window_samples must hold the reminder, two contexts and a fade")
        if self.least_samples < 1:
            raise InputError(f"least_samples is {self.least_samples}; expected at least 1")

    @property
    def last_samples(self) -> int:
        """Least length of the last window of several."""
        return min(self.least_samples, self.cut_samples)

    @property
    def cut_samples(self) -> int:
        """What each window of several holds of the recording."""
        return self.window_samples - self.reminder_samples

    @property
    def step_samples(self) -> int:
        """Distance between windows."""
        return self.cut_samples - 2 * self.context_samples

    def seams(self, n_samples: int) -> tuple[int, ...]:
        """Middles of the cross-fades of a recording, in samples.

        Args:
            n_samples: Its length at the model's rate.
        """
        if n_samples <= self.window_samples:
            return ()
        count = -(-(n_samples - self.cut_samples) // self.step_samples)
        first = self.cut_samples - self.context_samples
        return tuple(first + i * self.step_samples for i in range(count))

    def check_grid(self, signal: SignalSpec) -> None:
        """Refuse windows that do not start on frames.

        Args:
            signal: Front-end constants.

        Raises:
            InputError: A size is no multiple of the hop.
        """
        if self.step_samples % signal.hop_length:
            raise InputError(
                f"windows step by {self.step_samples} samples; expected a multiple of the hop, "
                f"{signal.hop_length}"
            )


@dataclass(frozen=True)
class Reminder:
    """A stretch of the recording that stands beside its windows.

    Attributes:
        wav: [n] samples.
        first_frame: Absolute index of its first frame.
    """

    wav: FloatArray
    first_frame: int


class LoudestStretch:
    """Find the loudest stretch of a signal that comes in pieces of any size."""

    def __init__(self, n_samples: int, hop_length: int) -> None:
        """Start with nothing.

        Args:
            n_samples: Length of the stretch, a multiple of 0.128 s, at least one.
            hop_length: Samples a frame.
        """
        self._recent: deque[FloatArray] = deque(maxlen=n_samples // _STRIDE)
        self._energies: deque[float] = deque(maxlen=n_samples // _STRIDE)
        self._rest = np.zeros(0, np.float32)
        self._hop = hop_length
        self._end = 0  # of what is in _recent
        self._most = -1.0
        self.found: Reminder | None = None  # while the signal is shorter than the stretch

    def push(self, wav: FloatArray) -> None:
        """Add samples [n]."""
        self._rest = np.concatenate([self._rest, wav])
        while self._rest.size >= _STRIDE:
            block, self._rest = self._rest[:_STRIDE].copy(), self._rest[_STRIDE:]
            self._recent.append(block)
            self._energies.append(float(np.sum(np.square(block, dtype=np.float64))))
            self._end += _STRIDE
            full = len(self._recent) == self._recent.maxlen
            if full and (energy := sum(self._energies)) > self._most:
                self._most = energy
                stretch = np.concatenate(self._recent)
                self.found = Reminder(stretch, (self._end - stretch.size) // self._hop)


Piece = Callable[[], FloatArray]  # waits for what it stands for, and returns it


class WindowedStream:
    """Push a signal in pieces of any size, get the processed signal back in order.

    What comes back is a function of the whole signal only, not of the pieces. Windows may be
    processed side by side: pieces are functions, to be called once each, in order.
    """

    def __init__(
        self,
        begin: Callable[[FloatArray, int], Piece],
        plan: WindowPlan,
        hop_length: int,
    ) -> None:
        """Start an empty stream.

        Args:
            begin: (wav [L], absolute index of its first frame) -> what returns the processed wav [L].
            plan: Sizes of the windows.
            hop_length: Samples a frame.
        """
        self._begin = begin
        self._plan = plan
        self._hop = hop_length
        self._buffer = np.zeros(0, np.float32)  # the recording from sample _origin on
        self._origin = 0
        self._start = 0  # first sample of the next window
        self._emitted = 0  # first sample not yet returned
        self._tail: FloatArray | None = None  # last window's side of the coming cross-fade

    def push(self, wav: FloatArray) -> Iterator[Piece]:
        """Add samples; the iterator has to be exhausted before the next call.

        Args:
            wav: float32 [n].

        Yields:
            Processed pieces that are final now, in order. A window begins when its piece is asked
            for.
        """
        self._buffer = np.concatenate([self._buffer, wav])
        plan = self._plan
        # Strictly more than a window: the last one ends where the recording ends.
        while self._origin + self._buffer.size > self._start + self._limit:
            stop = self._start + plan.cut_samples
            piece = self._window(self._start, stop, cut=stop - plan.context_samples)
            self._start += plan.step_samples
            # The last window may reach back.
            keep = min(self._start, self._origin + self._buffer.size - plan.last_samples)
            keep = max(keep // self._hop * self._hop, self._origin)
            self._buffer = self._buffer[keep - self._origin :]
            self._origin = keep
            yield piece

    @property
    def _limit(self) -> int:
        """What the next window may hold if it is the last: one piece goes without a reminder."""
        return self._plan.cut_samples if self._start else self._plan.window_samples

    def finish(self) -> list[Piece]:
        """Process what is left; the stream is spent afterwards.

        Returns:
            The last pieces, in order; none for an empty signal.
        """
        end = self._origin + self._buffer.size
        if end == 0:
            return []
        # Reach back: a short window would have little to take its averages over.
        start = min(
            self._start, max(0, -(-(end - self._plan.last_samples) // self._hop)) * self._hop
        )
        return [self._window(start, end, cut=end)]

    def _window(self, start: int, stop: int, cut: int) -> Piece:
        """Begin [start, stop); what returns [emitted, cut - fade / 2), or to the end."""
        wav = self._buffer[start - self._origin : stop - self._origin].copy()
        # Silence stays silence, whatever a network makes of it.
        out = self._begin(wav, start // self._hop) if wav.any() else partial(np.zeros_like, wav)
        return lambda: self._join(out(), start, stop, cut)

    def _join(self, out: FloatArray, start: int, stop: int, cut: int) -> FloatArray:
        half = self._plan.fade_samples // 2
        last = cut == stop
        first = self._emitted
        final = stop if last else cut - half
        piece = out[first - start : final - start].copy()
        if self._tail is not None:
            ramp = (np.arange(2 * half, dtype=np.float32) + 0.5) / np.float32(2 * half)
            # Both sides estimate the same speech, so amplitudes add: linear, not equal power.
            piece[: 2 * half] = self._tail * (1.0 - ramp) + piece[: 2 * half] * ramp
        self._tail = None if last else out[final - start : cut + half - start].copy()
        self._emitted = final
        return piece
