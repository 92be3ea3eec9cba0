"""The errors that DVPD raises on purpose; each message is one line that names the fix."""

from __future__ import annotations

SALVAGE = "--salvage (salvage=True) enhances what is there"  # the option of a RecordingError


class DvpdError(Exception):
    """Base of every error that DVPD raises on purpose."""


class InputError(DvpdError, ValueError):
    """The caller's data, file or option cannot be used as given."""


class UsageError(InputError):
    """The command line itself is wrong: an option's value, or options that do not go together."""


class RecordingError(InputError):
    """A recording that cannot be read as it is, but with an option.

    Attributes:
        plain: What is wrong, without the option: for whoever has none, such as a server's client.
    """

    def __init__(self, message: str, option: str = "") -> None:
        """Say what is wrong.

        Args:
            message: What is wrong.
            option: What ``dvpd enhance`` has for it.
        """
        super().__init__(f"{message}; {option}" if option else message)
        self.plain = message


class ManifestError(DvpdError):
    """An engine folder is incomplete, damaged, or does not fit this version of the runtime."""


class BackendError(DvpdError, RuntimeError):
    """An inference engine is missing, refuses the model, or returned something unusable."""


class NonFiniteError(BackendError):
    """An engine returned NaN, infinity, or values beyond any signal."""


class HubError(DvpdError):
    """The Hugging Face Hub does not give an engine that was asked for by name."""


class ParityError(DvpdError):
    """Two forms of the same model disagree by more than the stated tolerance."""


class Terminated(KeyboardInterrupt):
    """A signal asks the process to end.

    Attributes:
        signal: Its number.
    """

    def __init__(self, signal: int) -> None:
        """Remember the signal.

        Args:
            signal: Its number.
        """
        super().__init__()
        self.signal = signal


_noted: list[KeyboardInterrupt] = []


def note_interrupt(interrupt: KeyboardInterrupt | None) -> None:
    """Remember an interrupt in case that whoever it meets swallows it.

    Args:
        interrupt: What a signal handler is about to raise; None forgets the last one.
    """
    _noted[:] = [] if interrupt is None else [interrupt]


def raise_interrupt(error: BaseException | None = None) -> None:
    """Raise the interrupt that hides behind another exception, or was swallowed, if there is one.

    Extension modules that are being imported, and engines, turn Ctrl-C into errors of their own;
    callbacks from C drop it. Whoever reports an error and goes on calls this first.

    Args:
        error: The exception; what it was raised from and while is looked at, too.

    Raises:
        KeyboardInterrupt: The one that was found.
    """
    if _noted:
        raise _noted[0]
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        if isinstance(found, KeyboardInterrupt):
            raise found
        seen.add(id(found))
        waiting += [found.__cause__, found.__context__]


def one_line(error: BaseException) -> str:
    """An exception as one line: its message, its class before it where that says more.

    Args:
        error: The exception.
    """
    text = " ".join(str(error).split())
    if isinstance(error, DvpdError):
        return text
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
