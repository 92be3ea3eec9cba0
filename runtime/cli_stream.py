"""``dvpd stream``: samples without a header in, enhanced ones out, while they come.

Bytes are handed on as they arrive: nothing waits for a whole block, nothing is kept but what the
model itself needs, and a reader that stops reading stops the reading too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .arrays import FloatArray
from .cli_options import add_stream_options, between, whole
from .command import EXIT_DONE, EXIT_SIGNAL, say, usage
from .containers import FORMATS, Raw
from .errors import InputError, UsageError
from .spec import MAX_CHANNELS, STREAM_RATES_HZ

if TYPE_CHECKING:
    from .enhancer import Enhancer
    from .live import Stream, StreamStats

STALL_S = 5.0  # without a byte, before it is said
# What a recording with a header begins with, and what turns it into samples without one.
_HEADERS = {
    b"RIFF": "WAV",
    b"RF64": "WAV",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"FORM": "AIFF",
    b".snd": "AU",
}
EXIT_NO_READER = EXIT_SIGNAL + 13  # SIGPIPE's number


def add_parser(commands: Any) -> None:
    """Add the command to those of ``dvpd``.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "stream",
        help="enhance samples while they come through a pipe",
        description="Enhance samples without a header from standard input to standard output while "
        "they come; rate, channels and format go out as they came in. With --json the last line on "
        "stderr is an object.",
    )
    parser.add_argument(
        "--rate", type=whole(*STREAM_RATES_HZ), required=True, metavar="HZ", help="of both sides"
    )
    parser.add_argument(
        "--channels", type=whole(1, MAX_CHANNELS), default=1, metavar="N", help="default: 1"
    )
    parser.add_argument(
        "--format", default="s16", metavar="F", help=f"{FORMATS} (default: s16, little-endian)"
    )
    parser.add_argument(
        "--block-ms",
        type=between(1.0, 1000.0, "ms"),
        default=10.0,
        metavar="MS",
        help="most that is read at a time (default: 10)",
    )
    parser.add_argument(
        "--compensate",
        action="store_true",
        help="leave out the first samples, as many as the output is late: as long as the input, and "
        "in step with it",
    )
    add_stream_options(parser)
    parser.set_defaults(run=run)


@dataclass
class Report:
    """What a run did; written while it goes on, so that one that is ended can say it too."""

    samples: int = 0  # of each channel
    samples_out: int = 0
    bytes_left_out: int = 0
    clipped: int = 0
    waited_s: dict[str, float] = field(default_factory=lambda: {"input": 0.0, "output": 0.0})


def pump(
    stream: Stream,
    raw: Raw,
    read: Callable[[int], bytes],
    write: Callable[[memoryview], object],
    report: Report,
    *,
    block: int,
    compensate: bool,
) -> None:
    """Carry samples from ``read`` through the stream to ``write`` until there are no more.

    Args:
        stream: From ``Enhancer.stream``.
        raw: How the samples are coded on both sides.
        read: Returns as many bytes as are there, at most so many; none at the end.
        write: Takes all bytes that it is given.
        report: Counts what is done.
        block: Frames that are read at a time, at most.
        compensate: Whether the output begins where the input began, and ends where it ended.
    """
    from .pipes import from_raw, to_raw  # soundfile; the parser needs none

    size, rest = raw.frame_bytes, b""
    late = stream.latency_samples if compensate else 0

    def put(out: FloatArray) -> None:
        nonlocal late
        skipped = min(late, len(out))
        late -= skipped
        if compensate:
            out = out[skipped : skipped + report.samples - report.samples_out]
        if len(out):
            data, beyond = to_raw(out, raw)
            report.clipped += beyond
            write(data)
            report.samples_out += len(out)

    while data := read(block * size - len(rest)):
        if not report.samples and (kind := _HEADERS.get(data[:4])):
            raise InputError(
                f"standard input: is a recording with a header ({kind}); expected samples alone: "
                "put `ffmpeg -i - -f s16le -` before it, or use dvpd enhance - -"
            )
        data = rest + data
        whole_bytes = len(data) // size * size
        rest = data[whole_bytes:]
        if whole_bytes:
            report.samples += whole_bytes // size
            put(stream.process(from_raw(data[:whole_bytes], raw)))
    put(stream.flush())
    report.bytes_left_out = len(rest)
    if rest:
        say(f"standard input: its last {len(rest)} bytes are no whole frame of {size}; left out")


class Pipe:
    """A descriptor that is waited for; a wait of several seconds is said."""

    def __init__(self, fd: int, name: str, waited_s: dict[str, float]) -> None:
        """Use a descriptor.

        Args:
            fd: The descriptor; it stays open.
            name: "input" or "output", for the messages.
            waited_s: Seconds that were waited for it; added to under its name.
        """
        self._fd, self._name, self._waited_s = fd, name, waited_s

    def read(self, count: int) -> bytes:
        """At most so many bytes, as soon as there are some; none at the end.

        Raises:
            InputError: It cannot be read.
        """
        while True:
            self._wait()
            try:
                return os.read(self._fd, count)
            except BlockingIOError:  # who gave it to us made it non-blocking
                continue
            except OSError as error:
                raise InputError(f"standard input: {error.strerror or error}") from None

    def write(self, data: memoryview) -> None:
        """Write all bytes.

        Raises:
            BrokenPipeError: Nobody reads any more.
            InputError: It cannot be written.
        """
        # No more than fits in once there is room for something: the waiting is done in `_wait`.
        step = getattr(select, "PIPE_BUF", 1 << 16)
        while data:
            self._wait()
            try:
                data = data[os.write(self._fd, data[:step]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise
            except OSError as error:
                raise InputError(f"standard output: {error.strerror or error}") from None

    def _wait(self) -> None:
        if os.name != "posix":  # select takes sockets alone there: the call itself waits
            return
        begin, told = time.monotonic(), False
        ways: tuple[list[int], list[int]] = ([], [])
        ways[self._name == "output"].append(self._fd)
        while not any(select.select(*ways, [], STALL_S)):
            if not told:
                what = "nothing comes" if self._name == "input" else "nobody reads"
                say(f"standard {self._name}: {what} for {STALL_S:g} s; waiting")
                told = True
        self._waited_s[self._name] += time.monotonic() - begin


@contextlib.contextmanager
def _standard_streams() -> Iterator[tuple[int, int]]:
    """Descriptors of standard input and output, both of them no terminals.

    While they are in use, what libraries print goes to stderr: among samples it would be noise.
    """
    try:
        for stream, name in ((sys.stdin, "input"), (sys.stdout, "output")):
            if stream is None or stream.isatty():
                raise UsageError(
                    f"standard {name}: is {'closed' if stream is None else 'a terminal'}; expected "
                    "a pipe or a file of samples, as in "
                    "`ffmpeg -i in.mp4 -f s16le -ar 48000 -ac 1 - | dvpd stream --rate 48000 | ...`"
                )
        source = sys.stdin.fileno()
        sys.stdout.flush()
        printed = sys.stdout.fileno()
        target = os.dup(printed)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"standard input and output: {error}; expected pipes or files") from None
    try:
        os.dup2(2, printed)
        yield source, target
    finally:
        sys.stdout.flush()
        os.dup2(target, printed)
        os.close(target)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: Parsed arguments.

    Returns:
        0, or 141 when nobody read the output any more.
    """
    from .live_engine import open_live
    from .pipes import parse_format

    with usage():
        subtype, endian = parse_format(args.format.lower())
    raw = Raw(args.rate, args.channels, subtype, endian)
    report = Report()
    with (
        _standard_streams() as (source, target),
        open_live(
            args.model,
            args.backend,
            args.device,
            args.threads,
            tf32=args.tf32,
            channels=args.channels,
            adapt=not args.fixed_steps,
        ) as enhancer,
        enhancer.stream(
            args.rate,
            args.channels,
            steps=args.steps,
            quality=args.quality,
            attenuation_limit_db=args.max_attenuation,
            adapt=not args.fixed_steps,
        ) as stream,
    ):
        if enhancer.manifest.causal is None:
            say(
                f"{enhancer.manifest.name} hears windows of a recording: the output is "
                f"{stream.latency_ms / 1e3:.1f} s late; a causal model (dvpd-live) is not"
            )
        try:
            pump(
                stream,
                raw,
                Pipe(source, "input", report.waited_s).read,
                Pipe(target, "output", report.waited_s).write,
                report,
                block=max(1, round(args.block_ms * args.rate / 1000)),
                compensate=args.compensate,
            )
        except BrokenPipeError:
            say("standard output: nobody reads it any more")
            return EXIT_NO_READER
        finally:  # also when Ctrl-C or SIGTERM end it
            _tell(enhancer, stream, report, args)
    return EXIT_DONE


def _tell(enhancer: Enhancer, stream: Stream, report: Report, args: argparse.Namespace) -> None:
    stats = stats_table(stream.stats)
    noted = [
        f"{report.clipped} values limited" if report.clipped else "",
        f"{stats['late']} blocks late" if stats["late"] else "",
        f"{stats['non_finite']} blocks with NaN or infinity" if stats["non_finite"] else "",
        f"{stats['passed']} blocks passed on as they were" if stats["passed"] else "",
    ]
    say(
        f"{report.samples / args.rate:.2f} s of audio, real-time factor {stats['rtf']:.3f}, "
        f"{stream.latency_samples} samples ({stream.latency_ms:.1f} ms) late"
        f"{', which were left out' if args.compensate else ''}; "
        f"{enhancer.backend.name} on {enhancer.backend.device}"
        + "".join(f", {text}" for text in noted if text)
    )
    if args.json_line:
        from .results import model_table

        table = {
            "sample_rate": args.rate,
            "channels": args.channels,
            "format": args.format,
            "samples": report.samples,
            "samples_out": report.samples_out,
            "bytes_left_out": report.bytes_left_out,
            "clipped": report.clipped,
            "waited_for_input_s": report.waited_s["input"],
            "waited_for_output_s": report.waited_s["output"],
            "latency_samples": stream.latency_samples,
            "latency_ms": stream.latency_ms,
            "compensated": args.compensate,
            **model_table(enhancer),
            "stats": stats,
        }
        print(json.dumps(table), file=sys.stderr, flush=True)


STATS = (
    "blocks",
    "seconds",
    "compute_s",
    "rtf",
    "late",
    "steps_now",
    "steps_used",
    "non_finite",
    "passed",
)


def stats_table(stats: StreamStats) -> dict[str, Any]:
    """A stream's statistics as JSON.

    Args:
        stats: Its ``stats``.
    """
    table = {name: getattr(stats, name) for name in STATS}
    return table | {"steps_used": dict(stats.steps_used)}  # another thread may go on counting
