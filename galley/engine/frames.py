"""Frames over a plain stream socket, read and written by the thread that has something to say.

    on the wire: [length: u32] frame, again and again; the first one is the caller's name

Neither side ever waits for the other: what a socket does not take now is kept and goes out before
anything else. An engine writes a step's message itself, and the kernel wakes its reader: on a
machine whose cores all compute, a thread between the two would first have to wait for a core.
Knows nothing of sessions or messages (`link`, `messages`).
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from collections.abc import Iterator

from galley.engine.link import HEADER_SIZE

log = logging.getLogger(__name__)

#: A frame: its header and its payload.
Frame = tuple[bytes, bytes]

_LENGTH = struct.Struct("<I")
#: Bytes read at a time: some steps' messages, so that a reader who is behind does other things too.
_AT_ONCE = 32_768
#: Bytes of the longest frame: what is longer, no client of ours has sent.
LONGEST = 1 << 30
#: Bytes that may wait for a client. One that is further behind is hung up on: it calls again, and
#: asks for what it has not seen.
PATIENCE = 1 << 28


class FrameSocket:
    """One connection.

    Args:
        sock: connected; nobody else's from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._buffer = memoryview(bytearray(_AT_ONCE))
        self._rest = bytearray()
        self._unsent = bytearray()

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def unsent(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._unsent)

    def send(self, frame: Frame | list[bytes]) -> None:
        """Send a frame, or keep what of it must wait. A peer that is gone is noticed by whoever
        reads, not here.
        """
        data = b"".join((_LENGTH.pack(sum(map(len, frame))), *frame))
        if self._unsent:
            self._unsent += data
            self.flush()
            return
        sent = self._write(data)
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]

    def flush(self) -> None:
        """Send what waits, as far as that is possible now."""
        if self._unsent:
            del self._unsent[: self._write(self._unsent)]

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # nobody is there

    def receive(self) -> list[Frame]:
        """Frames that have arrived; a few at a time, and none where nothing has.

        Raises:
            EOFError: the other side is gone, or sends what are no frames.
        """
        try:
            size = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            return []
        except OSError as e:
            raise EOFError from e
        if not size:
            raise EOFError
        if not self._rest:
            frames, used = _split(self._buffer[:size])
            self._rest += self._buffer[used:size]
            return frames
        self._rest += self._buffer[:size]
        with memoryview(self._rest) as whole:
            frames, used = _split(whole)
        del self._rest[:used]
        return frames

    def close(self) -> None:
        self._sock.close()


def _split(data: memoryview) -> tuple[list[Frame], int]:
    """The whole frames at the beginning of `data`, and how many bytes they take."""
    frames: list[Frame] = []
    at = 0
    while at + _LENGTH.size <= len(data):
        [length] = _LENGTH.unpack_from(data, at)
        if length > LONGEST:
            raise EOFError
        start = at + _LENGTH.size
        end = start + length
        if end > len(data):
            break
        header = min(start + HEADER_SIZE, end)
        frames.append((bytes(data[start:header]), bytes(data[header:end])))
        at = end
    return frames, at


def connect(address: str, client: int) -> FrameSocket:
    """Call an engine. Raises OSError where it does not listen, or no socket is to be had."""
    family, where = _place(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.connect(where)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    wire = FrameSocket(sock)
    wire.send((b"c%d" % client, b""))
    return wire


def _place(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    kind, _, rest = address.partition("://")
    if kind == "ipc":
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    return socket.AF_INET, (host, int(port))


class FrameServer:
    """The engine's side: who has called, by the name that they gave.

    Args:
        address: `ipc://PATH` of a Unix socket, or `tcp://HOST:PORT` (port 0: a free one).

    Attributes:
        address: where it really listens.
    """

    def __init__(self, address: str) -> None:
        family, where = _place(address)
        self._listening = socket.socket(family, socket.SOCK_STREAM)
        self._listening.setblocking(False)
        self._listening.bind(where)
        self._listening.listen()
        if family != socket.AF_UNIX:
            address = "tcp://{}:{}".format(*self._listening.getsockname())
        self.address = address
        self._path = where if isinstance(where, str) else None
        self._wires: dict[int, FrameSocket] = {}
        #: file descriptor → a wire, and the client's index once it has told that
        self._calls: dict[int, tuple[FrameSocket, int | None]] = {}
        self._poll = select.poll()
        self._poll.register(self._listening, select.POLLIN)

    def wait(self, other: int, seconds: float) -> bool:
        """Sleep until something arrives here or at the file descriptor `other`; False: in vain."""
        poll = select.poll()
        poll.register(other, select.POLLIN)
        poll.register(self._listening, select.POLLIN)
        for fd, (wire, _) in self._calls.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if wire.unsent else 0))
        return bool(poll.poll(seconds * 1000))

    def receive(self) -> Iterator[tuple[int, Frame]]:
        """All that has arrived, each frame with the index of the client that sent it."""
        for wire in self._wires.values():
            wire.flush()
        while ready := self._poll.poll(0):
            for fd, _ in ready:
                if fd == self._listening.fileno():
                    self._accept()
                elif fd in self._calls:
                    yield from self._read(fd)

    def send(self, client: int, frame: Frame | list[bytes]) -> None:
        """Send to a client; what is for one who has not called, or is gone, is lost."""
        wire = self._wires.get(client)
        if wire is None:
            return
        wire.send(frame)
        if wire.unsent > PATIENCE:
            log.warning("client %d does not take what it has asked for.", client)
            self.forget(client)

    def forget(self, client: int) -> None:
        """A client is gone for good."""
        wire = self._wires.get(client)
        if wire is not None:
            self._hang_up(wire.fileno())

    def close(self) -> None:
        for fd in list(self._calls):
            self._hang_up(fd)
        self._listening.close()
        if self._path is not None:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass  # its folder has been removed

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # nobody is there any more
        wire = FrameSocket(sock)
        self._calls[wire.fileno()] = wire, None
        self._poll.register(wire.fileno(), select.POLLIN)

    def _read(self, fd: int) -> Iterator[tuple[int, Frame]]:
        wire, client = self._calls[fd]
        try:
            frames = wire.receive()
            for frame in frames:
                if client is None:
                    client = self._name(fd, wire, frame)
                else:
                    yield client, frame
        except (EOFError, ValueError):
            self._hang_up(fd)

    def _name(self, fd: int, wire: FrameSocket, frame: Frame) -> int:
        """Whose wire this is; it takes the place of one that the client had before. Raises
        ValueError where nobody of ours calls.
        """
        name = frame[0] + frame[1]
        if name[:1] != b"c":
            log.warning("hung up on a caller that is no client of ours.")
            raise ValueError
        client = int(name[1:])
        self.forget(client)
        self._wires[client] = wire
        self._calls[fd] = wire, client
        return client

    def _hang_up(self, fd: int) -> None:
        if fd not in self._calls:
            return
        wire, client = self._calls.pop(fd)
        if client is not None and self._wires.get(client) is wire:
            del self._wires[client]
        self._poll.unregister(fd)
        wire.close()
