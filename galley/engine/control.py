"""Control messages between the launcher and its children: JSON lines over a socket pair.

    engine core ── Bound, Serving, Failed ──▶ launcher ── EngineUp, EngineDown ──▶ API server
    API server ─────── Serving, Failed ─────▶          ── EnginesLost ──────────▶ API server

The channel is also a lifeline: its end means that the other side is gone. Requests and tokens
never pass here (see `galley.messages`).
"""

from __future__ import annotations

import os
import socket

import msgspec

#: Folder of packed adapters in the launcher's private folder.
ADAPTERS = "adapters"


class Bound(msgspec.Struct, tag="bound"):
    """An engine listens at `address`; it has not loaded its model yet."""

    address: str


class Serving(msgspec.Struct, tag="serving"):
    """Start-up has finished: the engine has its model, or the API server accepts connections."""

    note: str = ""


class Failed(msgspec.Struct, tag="failed"):
    """Start-up has failed; `message` is for people, `code` is the exit code."""

    message: str
    code: int = 1


class EngineUp(msgspec.Struct, tag="up"):
    """A frontend may connect to this incarnation of engine `index`."""

    index: int
    epoch: int
    address: str


class EngineDown(msgspec.Struct, tag="down"):
    """That incarnation is dead.

    Attributes:
        crashed: it died by itself (a fault, an exception), not by a signal from outside.
        rows: handles of the requests that it was working on, and how many tokens each had (0: not
            known).
    """

    index: int
    epoch: int
    crashed: bool = False
    rows: list[tuple[int, int]] = []


class EnginesLost(msgspec.Struct, tag="lost"):
    """No engine will be started any more."""

    message: str


Control = Bound | Serving | Failed | EngineUp | EngineDown | EnginesLost

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Control).decode


class Channel:
    """One end of a control socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._partial = b""

    @staticmethod
    def pair() -> tuple[Channel, Channel]:
        a, b = socket.socketpair()
        return Channel(a), Channel(b)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: Control) -> None:
        """Send. A closed peer is noticed when reading, not here."""
        try:
            self.sock.sendall(_encode(message) + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass

    def receive(self) -> list[Control]:
        """The complete messages that have arrived, possibly none; blocks until there is data.

        Raises:
            EOFError: the other side is gone.
        """
        try:
            data = self.sock.recv(65_536)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [_decode(line) for line in lines]

    def close(self) -> None:
        self.sock.close()


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists, of any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
