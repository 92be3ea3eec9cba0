"""Pipecat: a ``BaseAudioFilter`` that removes noise from what a transport hears.

    TransportParams(audio_in_enabled=True, audio_in_filter=NoiseFilter(worker))

Needs ``pip install 'dvpd[pipecat]'`` and an engine's extra.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
from pipecat.frames.frames import FilterControlFrame, FilterEnableFrame

from ..runtime.stream_workers import Worker
from .sound import FilteredSound


class NoiseFilter(BaseAudioFilter):
    """Noise removal for one transport; many share a ``StreamWorker``.

    As many bytes come back as went in, late by the model's delay. ``FilterEnableFrame`` switches it.
    """

    def __init__(self, worker: Worker, *, channels: int = 1, **options: Any) -> None:
        """Use an engine.

        Args:
            worker: The engine that the transports share.
            channels: The transport's ``audio_in_channels``.
            **options: Of ``StreamPool.open``: attenuation_limit_db, mix, seed.
        """
        self.sound = FilteredSound(worker, **options)
        self._channels, self._rate = channels, 0

    async def start(self, sample_rate: int) -> None:
        """Called by the transport.

        Args:
            sample_rate: Its rate (Hz).
        """
        self._rate = sample_rate

    async def stop(self) -> None:
        """Called by the transport at its end."""
        self.sound.close()

    async def process_frame(self, frame: FilterControlFrame) -> None:
        """Called by the transport: switch the filter on or off.

        Args:
            frame: Others than ``FilterEnableFrame`` are left alone.
        """
        if isinstance(frame, FilterEnableFrame):
            self.sound.enabled = frame.enable

    async def filter(self, audio: bytes) -> bytes:
        """Called by the transport for each piece of sound.

        Args:
            audio: 16-bit samples.

        Returns:
            As many bytes. A part of a frame at the end passes as it is.
        """
        whole = len(audio) - len(audio) % (2 * self._channels)
        block = np.frombuffer(audio[:whole], np.int16).reshape(-1, self._channels)
        return (await self.sound.later(block, self._rate)).tobytes() + audio[whole:]
