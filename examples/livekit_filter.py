"""Remove noise from a LiveKit track: a recording is published on a local track and heard again.

    pip install -e ".[cpu,livekit]"
    python examples/livekit_filter.py examples/noisy.flac enhanced.wav --seconds 5

In a room the track is a participant's; the line with NoiseFilter stays the same. Sound passes in real
time, so it takes as long as the recording. It needs no server.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

import numpy as np
import soundfile

from dvpd.integrations import StreamWorker
from dvpd.runtime import command

END_S = 2.0  # without a frame
TAIL_S = 0.3  # of silence behind the recording: what is late comes out, too


async def hear(args: argparse.Namespace, worker: StreamWorker) -> None:
    """Play the recording into a track and write what a listener hears.

    Args:
        args: The command's arguments.
        worker: The engine.
    """
    from livekit import rtc

    from dvpd.integrations.livekit import NoiseFilter

    pcm, rate = soundfile.read(args.input, dtype="int16", always_2d=True)
    pcm = pcm[: round(args.seconds * rate)]
    channels, size = pcm.shape[1], rate // 100  # 10 ms
    pcm = np.concatenate([pcm, np.zeros((round(TAIL_S * rate), channels), np.int16)])
    source = rtc.AudioSource(rate, channels)
    track = rtc.LocalAudioTrack.create_audio_track("recording", source)
    noise_filter = NoiseFilter(worker)
    stream = rtc.AudioStream(
        track, sample_rate=rate, num_channels=channels, frame_size_ms=10,
        noise_cancellation=noise_filter,
    )  # fmt: skip

    async def speak() -> None:
        for first in range(0, len(pcm) - size + 1, size):
            block = pcm[first : first + size].tobytes()
            await source.capture_frame(rtc.AudioFrame(block, rate, channels, size))

    speaking = asyncio.create_task(speak())
    with soundfile.SoundFile(args.output, "w", rate, channels, "PCM_16") as out:
        while out.frames < len(pcm):
            try:
                event = await asyncio.wait_for(anext(stream), END_S)
            except (asyncio.TimeoutError, StopAsyncIteration):  # LiveKit has dropped frames
                break
            out.write(np.frombuffer(event.frame.data, np.int16).reshape(-1, channels))
    await speaking
    await stream.aclose()
    await source.aclose()
    sound = noise_filter.sound
    print(f"{args.output}: {sound.late} frames late, {sound.failures} failures, {worker.enhancer}")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Remove noise from a LiveKit track.")
    parser.add_argument("input")
    parser.add_argument("output", help="a WAV or FLAC file")
    parser.add_argument("--model", help="a causal one (default: the best that is there)")
    parser.add_argument("--seconds", type=command.number(above=True), default=1e6)
    return parser


def _run(args: argparse.Namespace) -> None:
    with StreamWorker.start(args.model) as worker:
        asyncio.run(hear(args, worker))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    """
    return command.run(build_parser(), argv, _run)


if __name__ == "__main__":
    command.leave(main())
