"""The filter in Pipecat's own input transport and pipeline."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

pytest.importorskip("pipecat", reason="pipecat is not installed: pip install 'dvpd[pipecat]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore:'audioop' is deprecated"),  # its own
]


@pytest.fixture
def noise_filter(networks_worker):
    from dvpd.integrations.pipecat import NoiseFilter

    return NoiseFilter(networks_worker[0])


def bytes_of(noise_filter, pcm, size: int = 320) -> np.ndarray:
    async def hear():
        await noise_filter.start(16000)
        parts = [pcm[i : i + size].tobytes() for i in range(0, len(pcm), size)]
        out = [await noise_filter.filter(part) for part in parts]
        await noise_filter.stop()
        return b"".join(out)

    return np.frombuffer(asyncio.run(hear()), np.int16)[:, None]


def test_as_many_bytes_come_back(noise_filter, pcm):
    out = bytes_of(noise_filter, pcm)
    assert out.shape == pcm.shape
    assert out[896:].any()
    assert not np.array_equal(out, pcm)


def test_half_a_frame_passes(noise_filter):
    async def hear():
        await noise_filter.start(16000)
        return await noise_filter.filter(b"\1\2\3")

    assert len(out := asyncio.run(hear())) == 3
    assert out[2:] == b"\3"


def test_a_pipeline_is_filtered_and_switched(noise_filter, pcm):
    from pipecat.frames.frames import EndFrame, FilterEnableFrame, InputAudioRawFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineWorker
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.transports.base_input import BaseInputTransport
    from pipecat.transports.base_transport import TransportParams
    from pipecat.workers.runner import WorkerRunner

    class Input(BaseInputTransport):
        async def start(self, frame):
            await super().start(frame)
            await self.set_transport_ready(frame)
            self.reading = self.create_task(self.read())

        async def read(self):
            for part in np.split(pcm, 10):
                audio = part.tobytes()
                await self.push_audio_frame(
                    InputAudioRawFrame(audio=audio, sample_rate=16000, num_channels=1)
                )

    class Ears(FrameProcessor):
        def __init__(self):
            super().__init__()
            self.heard = b""
            self.all = asyncio.Event()

        async def process_frame(self, frame, direction):
            await super().process_frame(frame, direction)
            if isinstance(frame, InputAudioRawFrame):
                self.heard += frame.audio
                if len(self.heard) == 2 * len(pcm):
                    self.all.set()
            await self.push_frame(frame, direction)

    async def run() -> np.ndarray:
        ears = Ears()
        transport = Input(
            TransportParams(
                audio_in_enabled=True, audio_in_sample_rate=16000, audio_in_filter=noise_filter
            )
        )
        worker = PipelineWorker(Pipeline([transport, ears]), enable_rtvi=False)

        async def end():
            await asyncio.wait_for(ears.all.wait(), 60.0)
            await worker.queue_frame(FilterEnableFrame(enable=False))
            await worker.queue_frame(EndFrame())

        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await asyncio.gather(runner.run(), end())
        return np.frombuffer(ears.heard, np.int16)[:, None]

    out = asyncio.run(run())
    np.testing.assert_array_equal(out, bytes_of_new(noise_filter, pcm))
    assert not noise_filter.sound.enabled
    assert noise_filter.sound._sound is None
    np.testing.assert_array_equal(bytes_of(noise_filter, pcm), pcm)


def bytes_of_new(noise_filter, pcm) -> np.ndarray:
    """What another filter of the same engine makes of it."""
    from dvpd.integrations.pipecat import NoiseFilter

    return bytes_of(NoiseFilter(noise_filter.sound._worker), pcm)
