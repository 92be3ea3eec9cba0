"""Send a recording to `dvpd serve` as microphones would, and say how late the answers come.

    dvpd serve
    python examples/stream_clients.py examples/noisy.flac enhanced.wav --streams 8 --seconds 60

Each stream sends 20 ms every 20 ms, whatever comes back, and not at the same moment as the others;
the recording is repeated as often as it takes. The first stream's answers are written. It exits with
1 if a sample was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import soundfile

from dvpd.runtime import InputError, command

BLOCK_S = 0.02
APART = 0.618  # of a block, between one stream's and the next one's: no two fall together


class Voice:
    """One microphone and its listener."""

    def __init__(self, args: argparse.Namespace, pcm: np.ndarray, rate: int, index: int) -> None:
        """Say nothing yet.

        Args:
            args: The command's arguments.
            pcm: int16 [n, channels].
            rate: Samples a second (Hz).
            index: Which of the streams.
        """
        self._args, self._rate, self._channels = args, rate, pcm.shape[1]
        size = round(BLOCK_S * rate)
        if len(pcm) < size:
            raise InputError(
                f"{args.input}: shorter than {1e3 * BLOCK_S:.0f} ms; give a longer one"
            )
        # Made before: the client shall cost the machine that is measured next to nothing.
        whole = np.split(pcm[: len(pcm) // size * size], len(pcm) // size)
        self._blocks = [block.tobytes() for block in whole]
        self._first = index * len(whole) // args.streams
        self._after_s = index * APART % 1.0 * BLOCK_S
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
            hello = {"rate": self._rate, "channels": self._channels, "format": "s16"}
            await socket.send(json.dumps(hello))
            answer = json.loads(await socket.recv())
            if "error" in answer:
                raise InputError(f"the server: {answer['error']}")
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
        await asyncio.sleep(self._after_s)
        begun = time.perf_counter()
        for i in range(round(self._args.seconds / BLOCK_S)):
            await asyncio.sleep(max(0.0, begun + i * BLOCK_S - time.perf_counter()))
            block = self._blocks[(self._first + i) % len(self._blocks)]
            self._sent.append(time.perf_counter())
            await socket.send(block)
        await socket.send("END")


async def measure(args: argparse.Namespace) -> int:
    """Run all streams; returns the exit code."""
    pcm, rate = soundfile.read(args.input, dtype="int16", always_2d=True)
    voices = [Voice(args, pcm, rate, i) for i in range(args.streams)]
    await asyncio.gather(*(voice.run(i == 0) for i, voice in enumerate(voices)))
    waits = 1e3 * np.concatenate([voice.waits for voice in voices])

    def total(name: str) -> int:
        return sum(voice.stats.get(name, 0) for voice in voices)

    sent = sum(len(voice._sent) for voice in voices) * round(BLOCK_S * rate)
    lost = sent - total("samples_in")
    steps: Counter[str] = Counter()
    for voice in voices:
        steps.update(voice.stats.get("steps_used", {}))
    first = b"".join(voices[0].heard)
    soundfile.write(args.output, np.frombuffer(first, np.int16).reshape(-1, pcm.shape[1]), rate)
    quantiles = ", ".join(
        f"{q:g} %: {np.percentile(waits, q):.1f}" for q in (50, 95, 99, 99.9, 100)
    )
    by_steps = ", ".join(f"{n} with {name}" for name, n in sorted(steps.items()))
    print(
        f"{args.streams} streams of {args.seconds:g} s: {lost} samples lost, {total('late')} of "
        f"{total('blocks')} blocks late, {total('passed')} passed; steps: {by_steps} blocks; from a "
        f"block to its answer (ms): {quantiles}"
    )
    return int(lost != 0)


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
