"""What a server allows, and whom."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError

TOKEN_VARIABLE = "DVPD_TOKEN"
MIN_TOKEN = 16  # characters
SLOWEST = 32_000  # bytes a second that a client must keep up with


@dataclass(frozen=True)
class Limits:
    """What clients may ask for; beyond it they are refused, those that are served notice nothing.

    Attributes:
        streams: Live streams at a time; None for as many channels as are computed in time.
        files: Recordings at a time, one of which is computed.
        megabytes: Of a recording's body (10^6 bytes).
        minutes: Of a recording, with two channels at 48 kHz; of others as many samples.
        stall_s: How long a client may keep the server waiting (s).
        lead_s: By how much a live stream may be ahead of the clock (s).
        end_s: How long streams and recordings may go on when the server ends (s).
    """

    streams: int | None = None
    files: int = 8
    megabytes: float = 200.0
    minutes: float = 60.0
    stall_s: float = 30.0
    lead_s: float = 2.0
    end_s: float = 10.0

    @property
    def max_bytes(self) -> int:
        """Of a body."""
        return round(self.megabytes * 1e6)

    @property
    def max_values(self) -> int:
        """Samples of all channels of a recording."""
        return round(self.minutes * 60 * 48000 * 2)


def counted(number: int, thing: str) -> str:
    """ "1 stream", "2 streams".

    Args:
        number: How many.
        thing: The word for one of them.
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


class Refusal(Exception):
    """Why a client is not served.

    Attributes:
        status: HTTP's number.
        text: For the client.
    """

    def __init__(self, status: int, text: str) -> None:
        """Say why.

        Args:
            status: HTTP's number.
            text: For the client.
        """
        super().__init__(text)
        self.status, self.text = status, text


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Args:
        host: Address or name.
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_here(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def find_token(host: str, file: str | Path | None) -> str | None:
    """The token that clients must send.

    Args:
        host: Where the server is going to listen.
        file: Holds it; None for $DVPD_TOKEN.

    Returns:
        None where there is none, and none is needed.

    Raises:
        InputError: It cannot be read or is too short, or there is none and others reach the server.
    """
    if file is not None:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read as a token ({error})") from None
        source = str(file)
    else:
        token, source = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not token:
            if is_loopback(host):
                return None
            raise InputError(
                f"{host} can be reached from other machines: give a token with --token-file FILE or "
                f"${TOKEN_VARIABLE} (`openssl rand -hex 32` makes one), or listen on 127.0.0.1"
            )
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"{source}: holds no token; expected {MIN_TOKEN} or more ASCII characters without "
            "spaces: `openssl rand -hex 32` makes one"
        )
    return token


@dataclass(frozen=True)
class Door:
    """Who may come in.

    Attributes:
        token: What a client must know; None for anybody on this machine.
    """

    token: str | None = None

    def refusal(self, headers: Mapping[str, str], given: str | None = None) -> str | None:
        """Why a client may not come in; None if it may.

        Without a token, pages of other sites in a browser on this machine are kept out.

        Args:
            headers: Of the request.
            given: The token, where it came in another way.
        """
        if self.token is None:
            origin, host = headers.get("origin"), headers.get("host", "localhost")
            if not _is_here(f"//{host}") or (origin is not None and not _is_here(origin)):
                return "a page of another site asks; without a token only this machine is served"
            return None
        if given is None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else ""
        if not given:
            return "a token is needed: send the header `Authorization: Bearer TOKEN`"
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return "this token is not the server's"
        return None
