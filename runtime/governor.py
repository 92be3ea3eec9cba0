"""Fewer steps when computing falls behind, and back when it recovers.

Time is counted in audio: a block of D seconds comes in every D seconds, whatever the caller's rhythm,
and what computing it took beyond that is work that waits for the next one. So a recording that is
pushed through as fast as it goes is judged like a microphone.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable

logger = logging.getLogger("dvpd")

FIRST_WAIT = 31  # blocks on time before more steps are tried: 1 s
LONGEST_WAIT = 64 * FIRST_WAIT  # each try that fails doubles the wait up to this
PROVEN = 10 * FIRST_WAIT  # blocks on time after a try that make it a success


class Governor:
    """Chooses the number of steps of the next block.

    Attributes:
        steps: Of the next block.
        backlog_s: Work that waits when a block comes in (s).
        changes: How often the number of steps was changed.
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

    @property
    def steps(self) -> int:
        """Of the next block."""
        return self._ladder[self._level]

    @property
    def ladder(self) -> tuple[int, ...]:
        """Numbers of steps that are chosen from, most first."""
        return tuple(self._ladder)

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
            if self._was_late and self._level + 1 < len(self._ladder):
                if self._tried is not None:
                    self._wait, self._tried = min(2 * self._wait, LONGEST_WAIT), None
                self._change(1)
        else:
            self._on_time += 1
            if self._tried is not None:
                self._tried += 1
                if self._tried == PROVEN:
                    self._wait, self._tried = FIRST_WAIT, None
            if self._level and self._on_time >= self._wait:
                self._change(-1)
                self._on_time = self._tried = 0
        self._was_late = late

    def _change(self, by: int) -> None:
        self._level += by
        self.changes += 1
        logger.info(
            "%s: %d step%s from here on (%.0f ms behind)",
            "computing falls behind" if by > 0 else "computing keeps up",
            self.steps,
            "" if self.steps == 1 else "s",
            1e3 * self.backlog_s,
        )
