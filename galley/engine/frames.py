"""Frames over stream sockets, read and written by the thread that uses them.

    on the wire: [length: u32] payload, repeated; the first payload names the client ("c3")

Neither side ever blocks on the other: bytes that a socket does not accept now are buffered and
sent before anything else. An engine writes a step's message itself, and the kernel wakes its
reader: on a machine whose cores are all busy, a thread between the two would first have to wait for
a core. A connection is a session: whatever breaks it ends the session. Knows nothing of messages
(`galley.messages`).
"""

from __future__ import annotations

import enum
import logging
import os
import select
import socket
import struct
from collections.abc import Iterable

log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<I")
#: Bytes read at a time: the messages of several steps, so that a reader with a backlog also gets to
#: other work.
READ_SIZE = 32_768
#: Bytes of the longest frame. No client of ours sends a longer one.
MAX_FRAME = 1 << 30
#: Bytes buffered for a client. One that is further behind is disconnected: it connects again and
#: asks for what it has not seen.
MAX_UNSENT = 1 << 28


class Change(enum.Enum):
    """Events of a client's connection."""

    OPENED = enum.auto()
    CLOSED = enum.auto()


#: A client's index, and a frame of it or a change of its connection.
Event = tuple[int, bytes | Change]


class FrameSocket:
    """One end of a connection.

    Args:
        sock: connected; owned by this object from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._partial = bytearray()
        self._unsent = bytearray()

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def unsent(self) -> int:
        """Number of buffered bytes."""
        return len(self._unsent)

    def send(self, payload: bytes) -> None:
        """Send a frame, or buffer what the socket does not accept. A closed peer is noticed when
        reading, not here.
        """
        data = _LENGTH.pack(len(payload)) + payload
        if self._unsent:
            self._unsent += data
            self.flush()
            return
        sent = self._write(data)
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]

    def flush(self) -> None:
        """Send as much of the buffer as the socket accepts."""
        if self._unsent:
            del self._unsent[: self._write(self._unsent)]

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # the peer is gone

    def receive(self) -> list[bytes]:
        """The frames that have arrived, a few at a time; [] if none has.

        Raises:
            EOFError: the peer has closed the connection, or sends something that is not a frame.
        """
        try:
            size = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            return []
        except OSError as e:
            raise EOFError from e
        if not size:
            raise EOFError
        if not self._partial:
            frames, used = _split(self._buffer[:size])
            self._partial += self._buffer[used:size]
            return frames
        self._partial += self._buffer[:size]
        with memoryview(self._partial) as data:
            frames, used = _split(data)
        del self._partial[:used]
        return frames

    def close(self) -> None:
        self._sock.close()


def _split(data: memoryview) -> tuple[list[bytes], int]:
    """The complete frames at the start of `data`, and the number of bytes that they take."""
    frames: list[bytes] = []
    offset = 0
    while offset + _LENGTH.size <= len(data):
        [length] = _LENGTH.unpack_from(data, offset)
        if length > MAX_FRAME:
            raise EOFError
        start = offset + _LENGTH.size
        end = start + length
        if end > len(data):
            break
        frames.append(bytes(data[start:end]))
        offset = end
    return frames, offset


def connect(address: str, client: int) -> FrameSocket:
    """Connect to an engine. Raises OSError if it does not listen or no socket is available."""
    family, target = _parse(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.connect(target)
        _configure(sock)
    except BaseException:
        sock.close()
        raise
    frames = FrameSocket(sock)
    frames.send(b"c%d" % client)
    return frames


def _configure(sock: socket.socket) -> None:
    """Over TCP: send at once, and notice a peer whose machine has disappeared."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _parse(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    scheme, _, rest = address.partition("://")
    if scheme == "ipc":
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    return socket.AF_INET, (host, int(port))


class FrameServer:
    """The engine's side: listens, and knows each client's connection by the index that it sent.

    Args:
        address: `ipc://PATH` of a Unix socket, or `tcp://HOST:PORT` (port 0: any free port).

    Attributes:
        address: where it listens, with the actual port.
    """

    def __init__(self, address: str) -> None:
        family, target = _parse(address)
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(target)
        self._listener.listen()
        if family != socket.AF_UNIX:
            address = "tcp://{}:{}".format(*self._listener.getsockname())
        self.address = address
        self._path = target if isinstance(target, str) else None
        self._clients: dict[int, FrameSocket] = {}
        #: file descriptor → its connection, and the client's index once it has sent that
        self._connections: dict[int, tuple[FrameSocket, int | None]] = {}
        self._events: list[Event] = []
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)

    def wait(self, others: Iterable[int], seconds: float) -> bool:
        """Sleep until there is something to receive or to send, here or at one of the file
        descriptors `others`; False after `seconds` without.
        """
        if self._events:
            return True
        poll = select.poll()
        for other in others:
            poll.register(other, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        for fd, (connection, _) in self._connections.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if connection.unsent else 0))
        return bool(poll.poll(seconds * 1000))

    def receive(self) -> list[Event]:
        """Events since the last call, in order: a client's OPENED comes before its
        frames, its CLOSED after them.
        """
        for connection in self._clients.values():
            connection.flush()
        while ready := self._poll.poll(0):
            for fd, _ in ready:
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._connections:
                    self._read(fd)
        events, self._events = self._events, []
        return events

    def send(self, client: int, payload: bytes) -> None:
        """Send a frame to a client; dropped if it is not connected."""
        connection = self._clients.get(client)
        if connection is None:
            return
        connection.send(payload)
        if connection.unsent > MAX_UNSENT:
            log.warning("client %d does not read; disconnecting it.", client)
            self.disconnect(client)

    def disconnect(self, client: int) -> None:
        """Close a client's connection, if it has one."""
        connection = self._clients.get(client)
        if connection is not None:
            self._close(connection.fileno())

    def close(self) -> None:
        for fd in list(self._connections):
            self._close(fd)
        self._listener.close()
        if self._path is not None:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass  # its folder has been removed

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the peer is gone again
        _configure(sock)
        connection = FrameSocket(sock)
        self._connections[connection.fileno()] = connection, None
        self._poll.register(connection.fileno(), select.POLLIN)

    def _read(self, fd: int) -> None:
        connection, client = self._connections[fd]
        try:
            for payload in connection.receive():
                if client is None:
                    client = self._identify(fd, connection, payload)
                else:
                    self._events.append((client, payload))
        except EOFError:
            self._close(fd)

    def _identify(self, fd: int, connection: FrameSocket, name: bytes) -> int:
        """The index of the client that has connected; an earlier connection of it is closed.
        Raises EOFError if it is not a Galley client.
        """
        if name[:1] != b"c" or not name[1:].isdigit() or len(name) > 20:
            log.warning("rejected a connection that is not a Galley client.")
            raise EOFError
        client = int(name[1:])
        self.disconnect(client)
        self._clients[client] = connection
        self._connections[fd] = connection, client
        self._events.append((client, Change.OPENED))
        return client

    def _close(self, fd: int) -> None:
        connection, client = self._connections.pop(fd)
        if client is not None:
            del self._clients[client]
            self._events.append((client, Change.CLOSED))
        self._poll.unregister(fd)
        connection.close()
