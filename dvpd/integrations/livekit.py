"""LiveKit: a ``rtc.FrameProcessor`` that removes noise from a track.

    stream = rtc.AudioStream(track, noise_cancellation=NoiseFilter(worker))

Needs ``pip install 'dvpd[livekit]'`` and an engine's extra.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from livekit import rtc

from ..runtime.stream_workers import Worker
from .sound import FilteredSound, Pcm


class NoiseFilter(rtc.FrameProcessor[rtc.AudioFrame]):
    """Noise removal for one track; many share a ``StreamWorker``.

    LiveKit calls it on the event loop and wants a frame at once, so the frame that it gets back is
    the one that was computed meanwhile: as long, and late by the model's delay and ``buffer_ms``.
    """

    def __init__(self, worker: Worker, *, buffer_ms: float = 30.0, **options: Any) -> None:
        """Use an engine.

        Args:
            worker: The engine that the rooms share.
            buffer_ms: Time for computing (ms); where a frame is not ready then, it passes as it is.
            **options: Of ``StreamPool.open``: attenuation_limit_db, mix, seed.
        """
        self._awaited = FilteredSound(worker, **options)
        self.sound = FilteredSound(worker, buffer_ms=buffer_ms, **options)

    @property
    def enabled(self) -> bool:
        """Whether noise is removed; otherwise frames pass as they are, without delay."""
        return self.sound.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.sound.enabled = self._awaited.enabled = value

    async def process(self, frame: rtc.AudioFrame) -> rtc.AudioFrame:
        """For your own loop over frames: the frame as soon as it is computed, without a buffer.

        Args:
            frame: Of any rate, length and number of channels.
        """
        return _frame(frame, await self._awaited.later(_samples(frame), frame.sample_rate))

    def _process(self, frame: rtc.AudioFrame) -> rtc.AudioFrame:
        return _frame(frame, self.sound.now(_samples(frame), frame.sample_rate))

    def _close(self) -> None:
        self.sound.close()
        self._awaited.close()


def _samples(frame: rtc.AudioFrame) -> Pcm:
    n = frame.samples_per_channel * frame.num_channels
    return np.frombuffer(frame.data, np.int16)[:n].reshape(-1, frame.num_channels).copy()


def _frame(like: rtc.AudioFrame, pcm: Pcm) -> rtc.AudioFrame:
    return rtc.AudioFrame(
        pcm.tobytes(), like.sample_rate, like.num_channels, len(pcm), userdata=like.userdata
    )
