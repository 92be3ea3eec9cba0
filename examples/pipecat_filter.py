"""Remove noise in a Pipecat pipeline: a transport hears a recording, a processor writes what comes.

    pip install -e ".[cpu,pipecat]"
    python examples/pipecat_filter.py examples/noisy.flac enhanced.wav --seconds 5

In an agent the transport is Daily's, LiveKit's or a WebSocket, and speech recognition follows instead
of the writer; `audio_in_filter` stays the same. It needs no server.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile

from dvpd.integrations import StreamWorker
from dvpd.runtime import command

TAIL_S = 0.1  # of silence behind the recording: what is late comes out, too


async def hear(args: argparse.Namespace, engine: StreamWorker) -> None:
    """Run the pipeline on the recording.

    Args:
        args: The command's arguments.
        engine: The engine.
    """
    from pipecat.frames.frames import EndFrame, Frame, InputAudioRawFrame, StartFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineWorker
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
    from pipecat.transports.base_input import BaseInputTransport
    from pipecat.transports.base_transport import TransportParams
    from pipecat.workers.runner import WorkerRunner

    from dvpd.integrations.pipecat import NoiseFilter

    pcm, rate = soundfile.read(args.input, dtype="int16", always_2d=True)
    pcm = pcm[: round(args.seconds * rate)]
    channels, size = pcm.shape[1], rate // 50  # 20 ms
    pcm = np.concatenate([pcm, np.zeros((round(TAIL_S * rate), channels), np.int16)])

    class FileInput(BaseInputTransport):
        """Hears the recording."""

        async def start(self, frame: StartFrame) -> None:
            await super().start(frame)
            await self.set_transport_ready(frame)
            self._reading = self.create_task(self._read())

        async def _read(self) -> None:
            for first in range(0, len(pcm), size):
                audio = pcm[first : first + size].tobytes()
                await self.push_audio_frame(
                    InputAudioRawFrame(audio=audio, sample_rate=rate, num_channels=channels)
                )

    class Writer(FrameProcessor):
        """Writes what it hears."""

        def __init__(self, out: soundfile.SoundFile, ended: asyncio.Event) -> None:
            super().__init__()
            self._out, self._ended = out, ended

        async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
            await super().process_frame(frame, direction)
            if isinstance(frame, InputAudioRawFrame):
                self._out.write(np.frombuffer(frame.audio, np.int16).reshape(-1, channels))
                if self._out.tell() == len(pcm):
                    self._ended.set()
            await self.push_frame(frame, direction)

    noise_filter = NoiseFilter(engine, channels=channels)
    transport = FileInput(
        TransportParams(
            audio_in_enabled=True,
            audio_in_sample_rate=rate,
            audio_in_channels=channels,
            audio_in_filter=noise_filter,
        )
    )
    ended = asyncio.Event()
    with soundfile.SoundFile(args.output, "w", rate, channels, "PCM_16") as out:
        worker = PipelineWorker(Pipeline([transport, Writer(out, ended)]), enable_rtvi=False)

        async def end() -> None:
            await ended.wait()
            await worker.queue_frame(EndFrame())

        runner: Any = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await asyncio.gather(runner.run(), end())
    print(f"{args.output}: {noise_filter.sound.failures} failures, {engine.enhancer}")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Remove noise in a Pipecat pipeline.")
    parser.add_argument("input")
    parser.add_argument("output", help="a WAV or FLAC file")
    parser.add_argument("--model", help="a causal one (default: the best that is there)")
    parser.add_argument("--seconds", type=command.number(above=True), default=1e6)
    return parser


def _run(args: argparse.Namespace) -> None:
    with StreamWorker.start(args.model) as engine:
        asyncio.run(hear(args, engine))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    """
    return command.run(build_parser(), argv, _run)


if __name__ == "__main__":
    command.leave(main())
