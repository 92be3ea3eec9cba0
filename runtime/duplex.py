"""A microphone and a loudspeaker with a model between them.

Two callbacks of the audio system only copy to and from rings; a thread of ours does the computing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import FloatArray
from .ring import DriftControl, Ring

if TYPE_CHECKING:
    from .live import Stream

RING_S = 0.5  # of sound that a ring holds: what comes beyond it is lost, and the delay stays short
FADE_S = 0.005  # over a seam, and between enhanced and raw sound
AVERAGE_S = 2.0  # of the buffer's level
SILENT_DEVICE_S = 3.0  # a device that calls no more is gone
WAKE_S = 0.1  # the worker looks whether it is to end


@dataclass
class Meter:
    """Largest magnitude since it was last read, held where it would fall too fast to be seen."""

    peak: float = 0.0

    def add(self, block: FloatArray) -> None:
        """Look at samples."""
        if len(block):
            self.peak = max(self.peak, float(np.abs(block).max()))

    def take_db(self) -> float:
        """The peak in dBFS, at least -99; begins anew."""
        peak, self.peak = self.peak, 0.0
        return float(20.0 * np.log10(max(peak, 10 ** (-99 / 20))))


class Duplex:
    """Rings, worker and counters between an input and an output device.

    Attributes:
        meter_in: Of what comes in.
        meter_out: Of what goes out.
        raw: Whether what came in is to be heard, as late as the enhanced sound would be.
        xruns: Interruptions by direction: samples lost, or missing.
        drift: Corrections of the two devices' clocks.
        error: What ended the worker, or None.
    """

    def __init__(
        self,
        stream: Stream,
        sample_rate: int,
        n_channels: int,
        *,
        block: int,
        target: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set all memory aside.

        Args:
            stream: From ``Enhancer.stream``.
            sample_rate: Of both devices (Hz).
            n_channels: Of the input.
            block: Frames that the worker takes at a time.
            target: Frames that wait for the output device on average.
            clock: Seconds; a test's own.
        """
        self._stream, self._rate, self._block, self._target = stream, sample_rate, block, target
        self._clock = clock
        ring = max(round(RING_S * sample_rate), 4 * target + 2 * block)
        self.heard = Ring(ring, n_channels)
        self.ready = Ring(ring, n_channels)
        self._late = Ring(stream.latency_samples + 2 * block, n_channels)
        self._late.write(np.zeros((stream.latency_samples, n_channels), np.float32))
        self._in = np.zeros((block, n_channels), np.float32)
        self._dry = np.zeros((block, n_channels), np.float32)
        fade = min(round(FADE_S * sample_rate), block // 2)
        self._ramp = (np.arange(1, fade + 1, dtype=np.float32) / np.float32(fade))[:, None]
        self.drift = DriftControl(
            target, max(target // 2, 1), fade, max(1, round(AVERAGE_S * sample_rate / block))
        )
        self.meter_in, self.meter_out = Meter(), Meter()
        self.raw = self._was_raw = False
        self.xruns = {"input": 0, "output": 0}
        self.error: BaseException | None = None
        self._playing = False
        self._calls = {"input": 0, "output": 0}
        self._seen = {"input": (0, clock()), "output": (0, clock())}
        self._ending = False
        self._wake = threading.Lock()  # held while there is nothing to do
        self._wake.acquire()
        self._worker: threading.Thread | None = None

    # In the audio system's threads: only copies and counts.

    def on_input(self, data: FloatArray, frames: int, when: Any, status: Any) -> None:
        """Callback of the input device."""
        self._calls["input"] += 1
        lost = self.heard.lost
        self.heard.write(data)
        if self.heard.lost > lost or status:
            self.xruns["input"] += 1
        if self._wake.locked():
            self._wake.release()

    def on_output(self, data: FloatArray, frames: int, when: Any, status: Any) -> None:
        """Callback of the output device; ``data`` may have more channels than a mono input."""
        self._calls["output"] += 1
        if not self._playing:
            if self.ready.level < self._target:
                data[:] = 0.0
                return
            self._playing = True
        if self.ready.read(data) < frames:  # wait for the target again: one gap, not many
            self._playing = False
            self.xruns["output"] += 1
        elif status:
            self.xruns["output"] += 1

    # In our own thread.

    def work(self) -> bool:
        """Carry one block on; False if there is none yet."""
        if self.heard.level < self._block:
            return False
        self.heard.read(self._in)
        self.meter_in.add(self._in)
        self._late.write(self._in)
        enhanced = self._stream.process(self._in)
        self._late.read(self._dry)
        out = self._chosen(enhanced)
        self.meter_out.add(out)
        if not self._playing:
            self.drift.restart()
        self.ready.write(self.drift.apply(out, self.ready.level))
        return True

    def _chosen(self, enhanced: FloatArray) -> FloatArray:
        raw, was = self.raw, self._was_raw
        self._was_raw = raw
        if raw == was:
            return self._dry if raw else enhanced
        out = (self._dry if raw else enhanced).copy()
        before = enhanced if raw else self._dry
        fade = len(self._ramp)
        out[:fade] = out[:fade] * self._ramp + before[:fade] * (np.float32(1.0) - self._ramp)
        return out

    def start(self) -> None:
        """Start the worker."""
        self._worker = threading.Thread(target=self._run, name="dvpd-live", daemon=True)
        self._worker.start()

    def stop(self) -> None:
        """End the worker, and wait for it."""
        self._ending = True
        if self._worker is not None:
            self._worker.join()

    def _run(self) -> None:
        try:
            while not self._ending:
                if not self.work():
                    self._wake.acquire(timeout=WAKE_S)
        except BaseException as error:  # shown by the thread that looks at the devices
            self.error = error

    # In the thread that shows what goes on.

    def gone(self, side: str) -> bool:
        """Whether a device has not called for so long that it must be gone.

        Args:
            side: "input" or "output".
        """
        calls, now = self._calls[side], self._clock()
        before, when = self._seen[side]
        if calls != before:
            self._seen[side] = (calls, now)
            return False
        return now - when > SILENT_DEVICE_S

    @property
    def waiting_s(self) -> float:
        """Sound between the two devices that is not the model's own delay (s)."""
        return float((self.heard.level + self.drift.mean) / self._rate)
