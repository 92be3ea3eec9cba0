"""Fewer steps when computing falls behind, and back when it recovers.

Time is counted in audio: a block of D seconds comes in every D seconds, whatever the caller's rhythm,
and what computing it took beyond that is work that waits for the next one. So a recording that is
pushed through as fast as it goes is judged like a microphone.

With a ``Forecast`` steps become fewer before anything is late: when a stream comes for which there
would be no time, or when blocks take longer than they did.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from collections.abc import Hashable, Iterable, Mapping

logger = logging.getLogger("dvpd")

FIRST_WAIT = 31  # blocks on time before more steps are tried: 1 s
LONGEST_WAIT = 64 * FIRST_WAIT  # each try that fails doubles the wait up to this
PROVEN = 10 * FIRST_WAIT  # blocks on time after a try that make it a success
RECENT = 31  # batches whose median says what a block takes now: one that is held up says nothing


class Forecast:
    """What the next blocks take, from a measurement before and from the last ones.

    Attributes:
        channels: That come in, each with a block every ``block_s``.
    """

    def __init__(self, costs: Mapping[int, float], most_load: float, block_s: float) -> None:
        """Begin with what was measured.

        Args:
            costs: Number of steps -> time for a block of one channel (s).
            most_load: Share of the time that blocks may take.
            block_s: Length of a block (s).
        """
        self._costs, self._budget_s = dict(costs), most_load * block_s
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._steps = -1  # of the recent blocks
        self.channels = 0

    def count(self, seconds: float, channels: int, steps: int) -> None:
        """Remember what a batch took.

        Args:
            seconds: For all of it.
            channels: In it.
            steps: That it had.
        """
        if steps != self._steps:
            self._recent.clear()
            self._steps = steps
        self._recent.append(seconds / channels)

    def fits(self, steps: int) -> bool:
        """Whether there is time for so many steps with the channels that there are.

        Args:
            steps: Among those measured.
        """
        cost = self._costs[steps]
        if len(self._recent) == RECENT:  # the machine is faster or slower than it was
            cost *= statistics.median(self._recent) / self._costs[self._steps]
        return self.channels * cost <= self._budget_s


class Governor:
    """Chooses the number of steps of the next block.

    Attributes:
        steps: Of the next block.
        backlog_s: Work that waits when a block comes in (s).
        changes: How often the number of steps was changed.
        forecast: What blocks will take; None to wait until they are late.
    """

    def __init__(self, steps: int, adapt: bool = True) -> None:
        """Start with all steps.

        Args:
            steps: The most.
            adapt: Whether fewer are taken when computing falls behind; lateness is counted anyway.
        """
        self._ladder = sorted({steps, min(steps, 1), 0} if adapt else {steps}, reverse=True)
        self._level = 0
        self._wait, self._on_time = FIRST_WAIT, 0
        self._tried: int | None = None  # blocks on time since more steps were tried, until proven
        self._was_late = False
        self._round: set[Hashable] = set()
        self._spent_s = 0.0  # in this round
        self.backlog_s = 0.0
        self.changes = 0
        self.forecast: Forecast | None = None

    @property
    def steps(self) -> int:
        """Of the next block."""
        return self._ladder[self._level]

    @property
    def ladder(self) -> tuple[int, ...]:
        """Numbers of steps that are chosen from, most first."""
        return tuple(self._ladder)

    def expect(self, channels: int) -> None:
        """Choose for so many channels from the next block on; fewer steps at once, more later.

        Args:
            channels: Of all streams.
        """
        if self.forecast is None:
            return
        self.forecast.channels = channels
        while self._level + 1 < len(self._ladder) and not self.forecast.fits(self.steps):
            self._change(1, "there are more streams")
            self._on_time, self._tried = 0, None

    def spent(self, seconds: float, streams: Iterable[Hashable], block_s: float) -> bool:
        """Count the work for one block of each of some streams.

        Args:
            seconds: What it took.
            streams: Whose blocks they were: a stream's next block begins a new round.
            block_s: Length of a block (s).

        Returns:
            Whether they were late.
        """
        members = set(streams)
        if self._round & members:
            self.backlog_s = max(0.0, self.backlog_s + self._spent_s - block_s)
            self._round, self._spent_s = set(), 0.0
        self._round |= members
        self._spent_s += seconds
        late = self.backlog_s + self._spent_s > block_s
        self._choose(late)
        return late

    def _choose(self, late: bool) -> None:
        if late:
            self._on_time = 0
            # One block may be late for any reason; two mean that the first is not made up for.
            if self._was_late:
                self._fewer("computing falls behind")
        else:
            self._on_time += 1
            if self._tried is not None:
                self._tried += 1
                if self._tried == PROVEN:
                    self._wait, self._tried = FIRST_WAIT, None
            if not self._fits(self._level):
                self._on_time = 0
                self._fewer("computing would fall behind")
            elif self._level and self._on_time >= self._wait and self._fits(self._level - 1):
                self._change(-1, "computing keeps up")
                self._on_time = self._tried = 0
        self._was_late = late

    def _fits(self, level: int) -> bool:
        return self.forecast is None or self.forecast.fits(self._ladder[level])

    def _fewer(self, why: str) -> None:
        """One number of steps down, where there is one."""
        if self._level + 1 == len(self._ladder):
            return
        if self._tried is not None:
            self._wait, self._tried = min(2 * self._wait, LONGEST_WAIT), None
        self._change(1, why)

    def _change(self, by: int, why: str) -> None:
        self._level += by
        self.changes += 1
        logger.info(
            "%s: %d step%s from here on (%.0f ms behind)",
            why,
            self.steps,
            "" if self.steps == 1 else "s",
            1e3 * self.backlog_s,
        )
