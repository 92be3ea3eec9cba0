"""Send a recording to `dvpd serve` as microphones would, and say how late the answers come.

    dvpd serve
    python examples/stream_clients.py examples/noisy.flac enhanced.wav --streams 8 --seconds 60

Each stream sends 20 ms every 20 ms, whatever comes back; the recording is repeated as often as it
takes. The first stream's answers are written. It exits with 1 if a sample was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence

import numpy as np
import soundfile

from dvpd.runtime import command

BLOCK_S = 0.02


class Voice:
    """One microphone and its listener."""

    def __init__(self, args: argparse.Namespace, pcm: np.ndarray, rate: int) -> None:
        """Say nothing yet.

        Args:
            args: The command's arguments.
            pcm: int16 [n, channels].
            rate: Samples a second (Hz).
        """
        self._args, self._pcm, self._rate = args, pcm, rate
        self._sent: list[float] = []
        self.waits: list[float] = []
        self.heard: list[bytes] = []
        self.stats: dict = {}

    async def run(self, keep: bool) -> None:
        """Speak and listen.

        Args:
            keep: Whether the answers are kept.
        """
        from websockets.asyncio.client import connect

        token = {"Authorization": f"Bearer {self._args.token}"} if self._args.token else {}
        # Without pings of its own: a server that is behind answers late.
        async with connect(
            self._args.url, additional_headers=token, compression=None, ping_interval=None
        ) as socket:
            hello = {"rate": self._rate, "channels": self._pcm.shape[1], "format": "s16"}
            await socket.send(json.dumps(hello))
            answer = json.loads(await socket.recv())
            if "error" in answer:
                raise RuntimeError(answer["error"])
            speaking = asyncio.create_task(self._speak(socket))
            async for message in socket:
                if isinstance(message, str):
                    self.stats = json.loads(message)
                    break
                if len(self.waits) < len(self._sent):
                    self.waits.append(time.perf_counter() - self._sent[len(self.waits)])
                if keep:
                    self.heard.append(message)
            await speaking

    async def _speak(self, socket) -> None:
        size = round(BLOCK_S * self._rate)
        n_blocks = round(self._args.seconds / BLOCK_S)
        begun = time.perf_counter()
        for i in range(n_blocks):
            rows = np.arange(i * size, (i + 1) * size) % len(self._pcm)
            await asyncio.sleep(max(0.0, begun + i * BLOCK_S - time.perf_counter()))
            self._sent.append(time.perf_counter())
            await socket.send(self._pcm[rows].tobytes())
        await socket.send("END")


async def measure(args: argparse.Namespace) -> int:
    """Run all streams; returns the exit code."""
    pcm, rate = soundfile.read(args.input, dtype="int16", always_2d=True)
    voices = [Voice(args, np.roll(pcm, i * rate, axis=0), rate) for i in range(args.streams)]
    await asyncio.gather(*(voice.run(i == 0) for i, voice in enumerate(voices)))
    waits = 1e3 * np.concatenate([voice.waits for voice in voices])
    sent = sum(len(voice._sent) for voice in voices) * round(BLOCK_S * rate)
    received = sum(voice.stats.get("samples_in", 0) for voice in voices)
    late = sum(voice.stats.get("late", 0) for voice in voices)
    blocks = sum(voice.stats.get("blocks", 0) for voice in voices)
    first = b"".join(voices[0].heard)
    soundfile.write(args.output, np.frombuffer(first, np.int16).reshape(-1, pcm.shape[1]), rate)
    quantiles = ", ".join(f"{q:g} %: {np.percentile(waits, q):.1f}" for q in (50, 95, 99, 100))
    print(
        f"{args.streams} streams of {args.seconds:g} s: {sent - received} samples lost, {late} of "
        f"{blocks} blocks late; from a block to its answer (ms): {quantiles}"
    )
    return int(sent != received)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Send a recording to dvpd serve, live.")
    parser.add_argument("input")
    parser.add_argument("output", help="a WAV or FLAC file")
    parser.add_argument("--url", default="ws://127.0.0.1:8130/stream")
    parser.add_argument("--token")
    parser.add_argument("--streams", type=command.whole(1), default=1)
    parser.add_argument("--seconds", type=command.number(above=True), default=10.0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    """
    return command.run(build_parser(), argv, lambda args: asyncio.run(measure(args)))


if __name__ == "__main__":
    command.leave(main())
