"""How every command begins and ends: one prefix, one line for an error, one set of exit codes.

::

    def main(argv: Sequence[str] | None = None) -> int:
        return command.run(build_parser(), argv, _measure)  # _measure(args) -> int or None

    if __name__ == "__main__":
        command.leave(main())
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import logging
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from .errors import (
    DvpdError,
    InputError,
    Terminated,
    UsageError,
    note_interrupt,
    one_line,
    raise_interrupt,
)
from .files import remove_unfinished

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_SIGNAL = 128  # plus the signal's number: 130 for Ctrl-C
PREFIX = "dvpd: "
TRACEBACK_VARIABLE = "DVPD_TRACEBACK"

# Package as it is imported -> the extra that brings it.
EXTRAS = {
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt": "trt",
    "tensorrt_rtx": "rtx",
    "onnxruntime_ep_nv_tensorrt_rtx": "ort-rtx",
    "cuda": "trt",
    "pycuda": "pycuda",
    "av": "media",
    "onnx": "export",
    "torch": "train",
    "safetensors": "train",
    "scipy": "train",
    "lightning_fabric": "train",
    "pyroomacoustics": "train",
    "tensorboard": "train",
    "tomli": "train",
    "jsonschema": "bench",
    "matplotlib": "bench",
    "pesq": "bench",
    "pystoi": "bench",
    "ptflops": "bench",
    "rich": "bench",
    "shtab": "completion",
    "sounddevice": "live",
    "ray": "ray",
    "upath": "cloud",
    "fsspec": "cloud",
    "huggingface_hub": "hub",
    "gradio": "demo-app",
    "livekit": "livekit",
    "pipecat": "pipecat",
    "fastapi": "serve",
    "uvicorn": "serve",
    "websockets": "serve",
    "anyio": "serve",
}
_STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_stopped_by: int | None = None  # the signal that ended the last command


def say(message: object) -> None:
    """Print one line on stderr; a stream that is closed, full or missing is no reason to fail.

    Args:
        message: Its text; line breaks become spaces.
    """
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(PREFIX + " ".join(str(message).split()), file=sys.stderr, flush=True)


def _homeless() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def explain(error: BaseException) -> str:
    """One line for any exception: what is wrong and, where it is known, what to do.

    Args:
        error: The exception.
    """
    text = _explain(error)
    if _homeless() and not isinstance(error, ModuleNotFoundError):
        text += " (the working folder has been deleted: cd to one that exists)"
    return text


def _explain(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split(".")[0]
        if package in EXTRAS:
            return f"the package {package} is missing: pip install 'dvpd[{EXTRAS[package]}]'"
        return f"the package {package} is missing: pip install {package}"
    if isinstance(error, MemoryError):
        return f"not enough memory ({one_line(error)}): close other programs, or give it less"
    if isinstance(error, (DvpdError, OSError)):
        return one_line(error)
    where = traceback.extract_tb(error.__traceback__)
    place = f", {os.path.basename(where[-1].filename)} line {where[-1].lineno}" if where else ""
    return (
        f"unexpected error ({one_line(error)}{place}); please report it, with what "
        f"{TRACEBACK_VARIABLE}=1 in the environment shows"
    )


def whole(least: int) -> Callable[[str], int]:
    """The type of an option: a whole number from ``least`` on.

    Args:
        least: The least that it may be.
    """

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return value

    return parse


def number(
    least: float = 0.0, *, above: bool = False, most: float = sys.float_info.max
) -> Callable[[str], float]:
    """The type of an option: a number from ``least`` on.

    Args:
        least: The least that it may be.
        above: It must be more than that.
        most: The most; infinity if that is a number, too.
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or (above and value == least):
            range_ = f"above {least:g}" if above else f"from {least:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {range_}")
        return value

    return parse


def version_text() -> str:
    """What ``--version`` prints."""
    # not of importlib.metadata: a checkout that was installed once goes on
    return f"dvpd {importlib.import_module('dvpd').__version__}"


def run(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    body: Callable[[argparse.Namespace], int | None],
) -> int:
    """Parse the arguments, do the work, and turn whatever ends it into an exit code.

    While the work runs, messages of the logger "dvpd" go to stderr, and SIGTERM and SIGHUP unwind
    the stack as Ctrl-C does, so that unfinished files are removed. With ``args.json is True`` an
    error is printed on stdout, too, as ``{"error": ..., "kind": ...}``. Every command gets
    ``--version``.

    Args:
        parser: The command's parser.
        argv: Arguments without the program's name; None for those of the process.
        body: The work; gets the parsed arguments, returns the exit code, None for 0.

    Returns:
        0 done; 1 failed; 2 wrong usage: argparse refused the words, or ``body`` raised UsageError;
        128 + N ended by signal N (130: Ctrl-C); 141 when whoever read stdout has gone.
    """
    global _stopped_by
    _stopped_by = None
    _open_streams()
    with contextlib.suppress(argparse.ArgumentError):  # the parser has one of its own
        parser.add_argument("--version", action="version", version=version_text())
    args: argparse.Namespace | None = None
    try:
        with _logging(), _signals():
            args = parser.parse_args(argv)
            code = body(args) or EXIT_DONE
            raise_interrupt()
        sys.stdout.flush()  # here a full disk can still be reported
        return code
    except SystemExit as stop:  # argparse has said why, or has shown its help
        if args is None and stop.code == EXIT_USAGE:
            _hint(sys.argv[1:] if argv is None else argv)
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or EXIT_DONE
        say(stop.code)
        return EXIT_FAILED
    except BrokenPipeError:
        _drop_stdout()
        return EXIT_SIGNAL + 13
    except (Exception, KeyboardInterrupt) as error:
        return _end(error, args)
    finally:
        remove_unfinished()


def _hint(words: Sequence[str]) -> None:
    """Names of files that were taken for options."""
    if "--" in words:
        return
    for word in words:
        if word.startswith("-") and word != "-" and os.path.lexists(word):
            say(f"{word} is the name of a file that begins with a dash: write ./{word}")


def _end(error: BaseException, args: argparse.Namespace | None) -> int:
    global _stopped_by
    try:
        raise_interrupt(error)
    except KeyboardInterrupt as interrupt:
        _stopped_by = interrupt.signal if isinstance(interrupt, Terminated) else signal.SIGINT
        say("interrupted; unfinished files were removed")
        return EXIT_SIGNAL + int(_stopped_by)
    if os.environ.get(TRACEBACK_VARIABLE) and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
    say(explain(error))
    try:
        if getattr(args, "json", None) is True:
            print(json.dumps({"error": explain(error), "kind": type(error).__name__}))
        sys.stdout.flush()
    except (OSError, ValueError):
        _drop_stdout()
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Options are read: what is wrong with the input here is wrong usage.

    Raises:
        UsageError: In place of an InputError.
    """
    try:
        yield
    except InputError as error:
        raise UsageError(str(error)) from error


def leave(code: int) -> NoReturn:
    """End the process with a command's exit code, or by the signal that ended the command.

    A shell stops its loop only if the program died of Ctrl-C; an exit code alone tells it that the
    program has dealt with it.

    Args:
        code: What ``run`` returned.
    """
    if _stopped_by is not None and code == EXIT_SIGNAL + _stopped_by and os.name == "posix":
        signal.signal(_stopped_by, signal.SIG_DFL)
        os.kill(os.getpid(), _stopped_by)
    # Python looks for garbage several times while it ends (44 ms of CPU), in memory that goes anyway.
    gc.freeze()
    raise SystemExit(code)


def _open_streams() -> None:
    """Give the process the three streams that everybody takes for granted.

    A descriptor that is closed would be given to the next file that is opened, and what libraries
    print to stderr would end up in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names that are not UTF-8


def _drop_stdout() -> None:
    """Send to nowhere what is still buffered: Python would try again and complain at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        fd = os.open(os.devnull, os.O_WRONLY)
        os.dup2(fd, sys.stdout.fileno())
        os.close(fd)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    log, handler = logging.getLogger("dvpd"), _Handler()
    if any(isinstance(known, _Handler) for known in log.handlers):  # a command within a command
        yield
        return
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _stop(number: int, frame: FrameType | None) -> None:
    interrupt = Terminated(number)
    note_interrupt(interrupt)
    raise interrupt


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    previous = {}
    for number in _STOPPING:
        # An ignored signal stays ignored: nohup, and background jobs of a shell.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            with contextlib.suppress(ValueError):  # not the main thread, where none arrives
                previous[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        note_interrupt(None)
