"""Windows of several recordings through one engine together; which of them meet changes nothing.

A GPU takes hardly longer for several windows than for one. Each recording is walked by a thread of
its own, and where it would call the engine, it waits for others that are as far.

Rounding may depend on the size of a batch, so the size depends on a window's length alone: windows of
full length always go in batches of exactly ``size``, filled up with repeats where fewer wait; all
others, the ends of recordings and short ones, go alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import FloatArray
from .backends.base import Backend, check_predict
from .checks import check_whole
from .closing import Closing
from .sampler import sample
from .schedule import InitialState, SamplerStep
from .spec import TlbFactors

PATIENCE_S = 1.0  # then a batch goes as it is: somebody may be reading from a slow disk


@dataclass
class _Request:
    """A window that waits for the engine.

    Attributes:
        lane: Whose it is.
        noisy: float32 [1, 3, T, 257].
        noise: float32 [steps, 1, 1, T, 257].
        how: Start, steps, alpha and TLB factors.
        since: When it came (s).
        answer: float32 [1, 2, T, 257], or what the engine raised.
    """

    lane: Lane
    noisy: FloatArray
    noise: FloatArray
    how: tuple[InitialState, tuple[SamplerStep, ...], float, TlbFactors]
    since: float
    answer: FloatArray | BaseException | None = None

    def fits(self, other: _Request) -> bool:
        """Whether the two may share a batch."""
        return self.noisy.shape == other.noisy.shape and self.how == other.how


class Batches:
    """An engine that several threads share, window by window.

    Attributes:
        backend: The engine; it belongs to the caller.
        size: Windows in a batch.
        n_frames: Padded frames of a window of full length.
    """

    def __init__(
        self, backend: Backend, size: int, n_frames: int, patience_s: float = PATIENCE_S
    ) -> None:
        """Begin without lanes.

        Args:
            backend: The engine.
            size: Windows in a batch, at least 1.
            n_frames: Padded frames of a window of full length.
            patience_s: How long a window waits for others, at most.

        Raises:
            InputError: ``size`` is no whole number from 1 on.
        """
        self.backend, self.size, self.n_frames = backend, check_whole("", "size", size, 1), n_frames
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._lanes: list[Lane] = []
        self._waiting: list[_Request] = []  # in the order in which they came
        self._busy = False

    def lane(self) -> Lane:
        """A backend for the thread that walks one recording; close it at the recording's end."""
        lane = Lane(self)
        with self._changed:
            self._lanes.append(lane)
        return lane

    def _leave(self, lane: Lane) -> None:
        with self._changed:
            if lane in self._lanes:
                self._lanes.remove(lane)
            self._waiting = [request for request in self._waiting if request.lane is not lane]
            self._changed.notify_all()  # those that are left may be complete now

    def _answer(self, request: _Request) -> FloatArray:
        """Wait until a request is answered, by this thread or another one's."""
        with self._changed:
            self._waiting.append(request)
        while request.answer is None:
            with self._changed:
                group = self._take()
                if not group and request.answer is None:
                    self._changed.wait(self._patience_s)
            if group:
                self._work(group)
        if isinstance(request.answer, BaseException):
            raise request.answer
        return request.answer

    def _take(self) -> list[_Request]:
        """What the caller is to compute now; nothing while more may come, or another computes."""
        if self._busy or not self._waiting:
            return []
        groups = [self._together(request) for request in self._waiting]
        whole = (group for group in groups if len(group) == self._size(group[0]))
        group = next(whole, None)
        if group is None:
            all_wait = {id(r.lane) for r in self._waiting} >= {id(lane) for lane in self._lanes}
            if not all_wait and time.monotonic() - self._waiting[0].since < self._patience_s:
                return []
            group = groups[0]
        taken = set(map(id, group))
        self._waiting = [request for request in self._waiting if id(request) not in taken]
        self._busy = True
        return group

    def _size(self, request: _Request) -> int:
        """Windows in a batch of such."""
        return self.size if request.noisy.shape[2] == self.n_frames else 1

    def _together(self, first: _Request) -> list[_Request]:
        """A request and others that may share its batch, in the order in which they came."""
        others = [r for r in self._waiting if r is not first and r.fits(first)]
        return [first, *others][: self._size(first)]

    def _work(self, group: Sequence[_Request]) -> None:
        """Compute a group and answer each of it."""
        answers: list[FloatArray | BaseException] = []
        try:
            try:
                answers += list(self._run(group))
            except Exception as error:
                if len(group) == 1:
                    answers.append(error)
                for request in group if len(group) > 1 else ():  # one may have spoilt it for all
                    answers += self._alone(request)
        except BaseException as error:  # an interrupt: the others must not wait for ever
            answers += [error] * (len(group) - len(answers))
            raise
        finally:
            with self._changed:
                for request, answer in zip(group, answers, strict=True):
                    request.answer = answer
                self._busy = False
                self._changed.notify_all()

    def _alone(self, request: _Request) -> list[FloatArray | BaseException]:
        try:
            return list(self._run([request]))
        except Exception as error:
            return [error]

    def _run(self, group: Sequence[_Request]) -> list[FloatArray]:
        size = self._size(group[0])
        rows = [group[i % len(group)] for i in range(size)]
        noise = np.concatenate([row.noise for row in rows], axis=1)
        start, steps, alpha, tlb = group[0].how
        out = sample(
            self.backend,
            np.concatenate([row.noisy for row in rows]),
            start=start,
            steps=steps,
            alpha=alpha,
            tlb=tlb,
            draw=lambda index: noise[index],
        )
        return [out[i : i + 1].copy() for i in range(len(group))]


class Lane(Closing):
    """The engine as one recording's thread sees it: a ``SamplerBackend`` whose calls may wait.

    Attributes:
        name: Of the engine.
        device: Likewise.
    """

    def __init__(self, batches: Batches) -> None:
        """See ``Batches.lane``."""
        self._batches = batches
        self.name, self.device = batches.backend.name, batches.backend.device

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """See ``Backend.predict``; for a thread that has the engine for itself."""
        return self._batches.backend.predict(noisy)

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """See ``Backend.score``; for a thread that has the engine for itself."""
        return self._batches.backend.score(xt, t, feats, tlb_skip, tlb_backbone)

    def run_sampler(
        self,
        noisy: FloatArray,
        noise: FloatArray,
        *,
        start: InitialState,
        steps: Sequence[SamplerStep],
        alpha: float,
        tlb: TlbFactors,
    ) -> FloatArray:
        """See ``SamplerBackend.run_sampler``; rows of a batch are requests of their own."""
        check_predict(noisy)
        how, now = (start, tuple(steps), alpha, tlb), time.monotonic()
        rows = [
            _Request(self, noisy[i : i + 1], noise[:, i : i + 1], how, now)
            for i in range(len(noisy))
        ]
        return np.concatenate([self._batches._answer(row) for row in rows])

    def close(self) -> None:
        """Leave: the others wait for this one no longer."""
        self._batches._leave(self)
