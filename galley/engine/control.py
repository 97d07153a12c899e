"""What the launcher and its children say to each other: JSON lines over a socket pair.

    engine core ── Bound, Serving, Failed ──▶ launcher ── EngineUp, EngineDown ──▶ API server
    API server ─────── Serving, Failed ─────▶          ── EnginesLost ──────────▶ API server
                                                       ── ClientGone ───────────▶ engine core

The channel is also a lifeline: its end means that the other side is gone. Requests and tokens
never pass here (see `messages`).
"""

from __future__ import annotations

import os
import socket

import msgspec


class Bound(msgspec.Struct, tag="bound"):
    """An engine listens at `address`; it has not loaded its model yet."""

    address: str


class Serving(msgspec.Struct, tag="serving"):
    """Start-up is over: the engine has its model, or the API server accepts connections."""

    note: str = ""


class Failed(msgspec.Struct, tag="failed"):
    """Start-up has failed for a reason that a person can read; `code` is the exit code."""

    message: str
    code: int = 1


class EngineUp(msgspec.Struct, tag="up"):
    """A frontend may connect to this incarnation of engine `index` and say `Hello`."""

    index: int
    epoch: int
    address: str


class EngineDown(msgspec.Struct, tag="down"):
    """That incarnation is dead.

    Attributes:
        crashed: it died by itself (a fault, an exception), not by a signal from outside.
        rows: what it was occupied with: handles, and how many tokens each had (0: not known).
    """

    index: int
    epoch: int
    crashed: bool = False
    rows: list[tuple[int, int]] = []


class EnginesLost(msgspec.Struct, tag="lost"):
    """No engine will come any more."""

    message: str


class ClientGone(msgspec.Struct, tag="gone"):
    """A frontend has died: its requests are to be aborted."""

    client_index: int


Control = Bound | Serving | Failed | EngineUp | EngineDown | EnginesLost | ClientGone

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Control).decode


class Channel:
    """One end of a control socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    @staticmethod
    def pair() -> tuple[Channel, Channel]:
        a, b = socket.socketpair()
        return Channel(a), Channel(b)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: Control) -> None:
        """Send; a peer that is gone is noticed by whoever reads, not here."""
        try:
            self.sock.sendall(_encode(message) + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass

    def receive(self) -> list[Control]:
        """All whole messages that have arrived; waits for data if none has.

        Raises:
            EOFError: the other side is gone.
        """
        try:
            data = self.sock.recv(65_536)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [_decode(line) for line in lines]

    def close(self) -> None:
        self.sock.close()


def is_alive(pid: int) -> bool:
    """A process of this number exists, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
