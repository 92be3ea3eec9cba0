"""``dvpd live``: a microphone, the model, a loudspeaker or a virtual cable; meters and keys."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .cli_options import add_stream_options, between, whole
from .cli_stream import stats_table
from .command import EXIT_DONE, say
from .duplex import Duplex
from .errors import BackendError, InputError, UsageError
from .progress import Steps
from .spec import STREAM_RATES_HZ

if TYPE_CHECKING:
    from .enhancer import Enhancer
    from .live import Stream

LOOK_S = 0.1  # between two looks at keys, meters and devices
FLOOR_DB = -60.0  # where a meter's bar begins
BAR = 8  # characters: the line has to fit on a terminal
KEYS = "keys: space compares with the raw sound, q ends"


def add_parser(commands: Any) -> None:
    """Add the command to those of ``dvpd``.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "live",
        help="enhance a microphone while somebody speaks",
        description="Enhance what comes from a microphone and play it, on a loudspeaker or on a "
        f"virtual cable that another program listens to. {KEYS.capitalize()}. Needs "
        "pip install 'dvpd[live]'. With --json an object is printed at the end.",
    )
    parser.add_argument("--list", action="store_true", help="list the devices, and end")
    parser.add_argument(
        "--input",
        type=_device,
        metavar="N|NAME",
        help="number, or part of the name (default: the system's)",
    )
    parser.add_argument("--output", type=_device, metavar="N|NAME", help="likewise")
    parser.add_argument(
        "--rate", type=whole(*STREAM_RATES_HZ), metavar="HZ", help="default: the input device's own"
    )
    parser.add_argument(
        "--channels", type=whole(1, 8), default=1, metavar="N", help="of the input (default: 1)"
    )
    parser.add_argument(
        "--block-ms", type=between(1.0, 200.0, "ms"), default=10.0, metavar="MS",
        help="of the devices and the worker (default: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--buffer-ms", type=between(1.0, 500.0, "ms"), default=30.0, metavar="MS",
        help="that wait for the output on average: more where it crackles (default: 30)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=between(0.0, math.inf, "s"), default=math.inf, metavar="S",
        help="end after so long (default: when you end it)",
    )  # fmt: skip
    add_stream_options(parser)
    parser.set_defaults(run=run)


def _device(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _sounddevice() -> Any:
    try:
        import sounddevice
    except OSError as error:  # the package is there, PortAudio is not
        raise BackendError(
            f"sounddevice does not find PortAudio ({error}); on Debian and Ubuntu: "
            "apt install libportaudio2"
        ) from None
    return sounddevice


def _found(sd: Any, device: int | str | None, side: str) -> dict[str, Any]:
    """What the audio system says of a device.

    Raises:
        InputError: There is none, or several have such a name.
    """
    try:
        found: dict[str, Any] = sd.query_devices(device, side)
    except (ValueError, sd.PortAudioError) as error:
        named = "there is no default device" if device is None else f"device {device!r}"
        raise InputError(f"{side}: {named} ({error}); dvpd live --list shows them") from None
    return found


def _list(sd: Any, as_json: bool) -> int:
    rows = [
        {
            "number": number,
            "name": row["name"],
            "inputs": row["max_input_channels"],
            "outputs": row["max_output_channels"],
            "rate": row["default_samplerate"],
        }
        for number, row in enumerate(sd.query_devices())
    ]
    if as_json:
        print(json.dumps({"devices": rows}))
        return EXIT_DONE
    for row in rows:
        print(
            f"{row['number']:3d}  {row['name']}: {row['inputs']} in, {row['outputs']} out, "
            f"{row['rate']:g} Hz"
        )
    if not rows:
        say(
            "the audio system shows no devices: is one plugged in, and is PulseAudio or PipeWire up?"
        )
    return EXIT_DONE


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: Parsed arguments.

    Returns:
        0.
    """
    from .live_engine import open_live

    sd = _sounddevice()
    if args.list:
        return _list(sd, args.json_line)
    devices = {side: _found(sd, getattr(args, side), side) for side in ("input", "output")}
    rate = args.rate or round(devices["input"]["default_samplerate"])
    block = max(1, round(args.block_ms * rate / 1000))
    with open_live(
        args.model,
        args.backend,
        args.device,
        args.threads,
        tf32=args.tf32,
        channels=args.channels,
        adapt=not args.fixed_steps,
    ) as enhancer:
        if enhancer.manifest.causal is None:
            raise UsageError(
                f"{enhancer.manifest.name} hears windows of a recording, whose computing would "
                "interrupt the sound every few seconds; give a causal model: --model dvpd-live"
            )
        stream = enhancer.stream(
            rate,
            args.channels,
            steps=args.steps,
            quality=args.quality,
            attenuation_limit_db=args.max_attenuation,
            adapt=not args.fixed_steps,
        )
        loop = Duplex(
            stream, rate, args.channels, block=block, target=round(args.buffer_ms * rate / 1000)
        )
        with _opened(sd, args, devices, rate, block, loop) as streams, _keys() as pressed:
            for side, name in devices.items():
                say(f"{side}: {name['name']}, {rate} Hz")
            if pressed is not None:
                say(KEYS)
            try:
                _watch(loop, stream, streams, devices, pressed, args)
            finally:  # also when Ctrl-C ends it
                _tell(enhancer, loop, stream, streams, args)
    return EXIT_DONE


@contextlib.contextmanager
def _opened(
    sd: Any,
    args: argparse.Namespace,
    devices: dict[str, dict[str, Any]],
    rate: int,
    block: int,
    loop: Duplex,
) -> Iterator[dict[str, Any]]:
    """Both devices and the worker at work; they end in the reverse order."""
    common = {"samplerate": rate, "blocksize": block, "dtype": "float32", "latency": "low"}
    # Most loudspeakers have two channels: a mono signal goes to both.
    outputs = args.channels
    if outputs == 1:
        outputs = max(1, min(2, devices["output"]["max_output_channels"]))
    with contextlib.ExitStack() as stack:
        opened = {}
        stack.callback(loop.stop)
        for side, kind, channels, callback in (
            ("output", sd.OutputStream, outputs, loop.on_output),
            ("input", sd.InputStream, args.channels, loop.on_input),
        ):
            try:
                opened[side] = stack.enter_context(
                    kind(device=getattr(args, side), channels=channels, callback=callback, **common)
                )
            except (sd.PortAudioError, ValueError) as error:
                raise InputError(
                    f"{side} device {devices[side]['name']!r} cannot be opened with {channels} "
                    f"channels at {rate} Hz ({error}); try --rate, --channels, or another of "
                    "dvpd live --list"
                ) from None
        loop.start()
        yield opened


def _watch(
    loop: Duplex,
    stream: Stream,
    streams: dict[str, Any],
    devices: dict[str, dict[str, Any]],
    pressed: Callable[[], str] | None,
    args: argparse.Namespace,
) -> None:
    """Show what goes on until it ends.

    Raises:
        InputError: A device has gone.
    """
    steps, end = Steps(), time.monotonic() + args.seconds
    try:
        while time.monotonic() < end:
            time.sleep(LOOK_S)
            if loop.error is not None:
                raise loop.error
            for side, opened in streams.items():
                if not opened.active or loop.gone(side):
                    raise InputError(
                        f"the {side} device {devices[side]['name']!r} is gone: unplugged, or its "
                        "audio server has ended"
                    )
            for key in pressed() if pressed is not None else "":
                if key in ("q", "\x03", "\x04"):
                    return
                if key == " ":
                    loop.raw = not loop.raw
            steps.progress(_line(loop, stream, streams))
    finally:
        steps.close()


def _bar(level_db: float) -> str:
    filled = round(BAR * min(max(1.0 - level_db / FLOOR_DB, 0.0), 1.0))
    return f"{level_db:3.0f} {'#' * filled}{'.' * (BAR - filled)}"


def _delay_ms(loop: Duplex, stream: Stream, streams: dict[str, Any]) -> float:
    """From the microphone to the loudspeaker, as far as the audio system says (ms)."""
    devices_s = sum(float(opened.latency) for opened in streams.values())
    return float(stream.latency_ms + 1e3 * (loop.waiting_s + devices_s))


def _line(loop: Duplex, stream: Stream, streams: dict[str, Any]) -> str:
    stats = stream.stats
    return (
        f"in {_bar(loop.meter_in.take_db())} {'RAW' if loop.raw else 'out'} "
        f"{_bar(loop.meter_out.take_db())} dB, {_delay_ms(loop, stream, streams):.0f} ms, RTF "
        f"{stats.rtf:.2f}, steps {stats.steps_now}, late {stats.late}, xruns "
        f"{loop.xruns['input']}/{loop.xruns['output']}, drift {loop.drift.corrections}"
    )


def _tell(
    enhancer: Enhancer,
    loop: Duplex,
    stream: Stream,
    streams: dict[str, Any],
    args: argparse.Namespace,
) -> None:
    stats, drift = stats_table(stream.stats), loop.drift
    delay_ms = _delay_ms(loop, stream, streams)
    say(
        f"{stats['seconds']:.1f} s of audio, real-time factor {stats['rtf']:.3f}, {stats['late']} "
        f"blocks late, delay {delay_ms:.0f} ms of which the model's {stream.latency_ms:.0f}; "
        f"{loop.xruns['input']} interruptions of the input and {loop.xruns['output']} of the output; "
        f"clocks: {drift.dropped} frames left out, {drift.repeated} repeated"
    )
    if args.json_line:
        from .results import model_table

        print(
            json.dumps(
                {
                    "latency_ms": stream.latency_ms,
                    "delay_ms": delay_ms,
                    "device_latency_s": {s: float(o.latency) for s, o in streams.items()},
                    "xruns": loop.xruns,
                    "lost_frames": {"input": loop.heard.lost, "output": loop.ready.lost},
                    "drift": {
                        "corrections": drift.corrections,
                        "dropped": drift.dropped,
                        "repeated": drift.repeated,
                    },
                    **model_table(enhancer),
                    "stats": stats,
                }
            ),
            flush=True,
        )


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[], str] | None]:
    """Keys as they are pressed, without Enter; None where there is no terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield None
        return
    if os.name == "nt":
        import msvcrt

        def pressed_there() -> str:
            keys = ""
            while msvcrt.kbhit():  # type: ignore[attr-defined]  # of Windows alone
                keys += msvcrt.getwch()  # type: ignore[attr-defined]  # of Windows alone
            return keys

        yield pressed_there
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed() -> str:
        return os.read(fd, 64).decode(errors="ignore") if select.select([fd], [], [], 0)[0] else ""

    try:
        tty.setcbreak(fd)  # Ctrl-C still interrupts
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
