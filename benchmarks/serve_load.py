"""Load `dvpd serve` with live streams, and say what they waited for and what it cost.

    python benchmarks/serve_load.py examples/noisy.flac --streams 4,8 --seconds 600
    python benchmarks/serve_load.py examples/noisy.flac --streams 8 --serve "--live-steps 0 --threads 1"

Server and clients (`examples/stream_clients.py`) share the machine, which should do nothing else. For
each number of streams the server is started anew. It exits with 1 if a sample was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dvpd.runtime import command
from dvpd.runtime.errors import DvpdError

CLIENTS = Path(__file__).resolve().parent.parent / "examples" / "stream_clients.py"


@contextlib.contextmanager
def serving(options: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server on a free port; the process, its address and what it said about its limits.

    Args:
        options: Of `dvpd serve`.

    Raises:
        DvpdError: It does not start.
    """
    words = [sys.executable, "-m", "dvpd.runtime", "serve", "--port", "0", *options]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None  # a pipe, as asked for
        said = []
        for line in process.stderr:
            said.append(line.strip())
            if found := re.search(r"http(://\S+):", line):
                break
        else:
            raise DvpdError(f"the server did not start: {' '.join(said)}")
        try:
            yield process, f"ws{found[1]}/stream", said[-1]
        finally:
            process.terminate()
            rest = process.stderr.read()
            process.wait()
            print("  " + "; ".join(line for line in rest.splitlines() if line), flush=True)


def thread_seconds(process_id: int) -> list[float]:
    """Time that each thread of a process has computed (s), the first one's first; [] beside Linux.

    Args:
        process_id: Its number.
    """
    seconds = []
    with contextlib.suppress(OSError):
        for thread in sorted(Path(f"/proc/{process_id}/task").iterdir(), key=lambda p: int(p.name)):
            fields = (thread / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            seconds.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return seconds


def load(args: argparse.Namespace, streams: int) -> int:
    """One number of streams; returns the clients' exit code.

    Args:
        args: The command's arguments.
        streams: How many.
    """
    options = ["--max-streams", str(streams), *shlex.split(args.serve)]
    with serving(options) as (process, url, said), tempfile.TemporaryDirectory() as folder:
        print(f"{streams} streams: {said}", flush=True)
        before, begun = thread_seconds(process.pid), time.perf_counter()
        words = [sys.executable, str(CLIENTS), args.input, str(Path(folder) / "out.wav")]
        words += ["--url", url, "--streams", str(streams), "--seconds", str(args.seconds)]
        done = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True)
        elapsed = time.perf_counter() - begun
        after = thread_seconds(process.pid)
        before += [0.0] * (len(after) - len(before))
        shares = [(b - a) / elapsed for a, b in zip(before, after, strict=False)]
        print("  " + done.stdout.strip())
        if shares:
            others = ", ".join(f"{share:.2f}" for share in shares[1:] if share > 0.005)
            print(f"  cores: messages {shares[0]:.2f}, other threads {others}, in {elapsed:.0f} s")
    return done.returncode


def _run(args: argparse.Namespace) -> int:
    return max(load(args, streams) for streams in args.streams)


def _numbers(text: str) -> list[int]:
    return [command.whole(1)(part) for part in text.split(",")]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Load dvpd serve with live streams.")
    parser.add_argument("input", help="a recording, which the clients repeat")
    parser.add_argument("--streams", type=_numbers, default=[8], metavar="N,N", help="default: 8")
    parser.add_argument("--seconds", type=command.number(above=True), default=600.0, metavar="S")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="more options of dvpd serve")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    """
    return command.run(build_parser(), argv, _run)


if __name__ == "__main__":
    command.leave(main())
