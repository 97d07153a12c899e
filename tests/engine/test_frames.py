"""Frames through short buffers and in pieces, and connections that end."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from galley.engine import frames
from galley.engine.frames import Change, Event, FrameServer, FrameSocket, connect

#: Seconds after which a read that should have ended is a failure.
LIMIT = 60


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, FrameSocket]]:
    peer, ours = socket.socketpair()
    sock = FrameSocket(ours)
    yield peer, sock
    peer.close()
    sock.close()


@pytest.fixture(params=["ipc", "tcp"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FrameServer]:
    server = FrameServer(f"ipc://{tmp_path}/e" if request.param == "ipc" else "tcp://127.0.0.1:0")
    yield server
    server.close()


@pytest.fixture
def silent() -> Iterator[int]:
    """A file descriptor with nothing to read."""
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


def events(server: FrameServer, number: int, silent: int) -> list[Event]:
    """Receive until there are `number` events."""
    found: list[Event] = []
    while len(found) < number:
        assert server.wait([silent], LIMIT), f"only {found} have arrived"
        found += server.receive()
    return found


def received(sock: FrameSocket, number: int) -> list[bytes]:
    """Receive until there are `number` frames."""
    found: list[bytes] = []
    end = time.monotonic() + LIMIT
    while len(found) < number:
        assert time.monotonic() < end, f"only {found} have arrived"
        found += sock.receive()
    return found


def until_closed(sock: FrameSocket) -> list[bytes]:
    """The frames up to the end of the connection."""
    found: list[bytes] = []
    end = time.monotonic() + LIMIT
    try:
        while True:
            assert time.monotonic() < end, "the connection is still open"
            found += sock.receive()
    except EOFError:
        return found


def framed(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def test_frames_come_out_as_they_went_in(server: FrameServer) -> None:
    """Larger than any socket's buffer, empty, and many at once."""
    sock = connect(server.address, 3)
    sent = [b"x" * size for size in (0, 1, 1000, 3_000_000, 5)]
    for payload in sent:
        sock.send(payload)
    found: list[Event] = []
    end = time.monotonic() + LIMIT
    while len(found) < 1 + len(sent) and time.monotonic() < end:
        sock.flush()
        found += server.receive()
    assert found == [(3, Change.OPENED), *((3, payload) for payload in sent)]
    for payload in sent:
        server.send(3, payload)
    answers: list[bytes] = []
    while len(answers) < len(sent) and time.monotonic() < end:
        server.receive()  # sends what was buffered
        answers += sock.receive()
    assert answers == sent
    sock.close()


def test_frames_in_pieces(pair: tuple[socket.socket, FrameSocket]) -> None:
    peer, sock = pair
    data = framed(b"first") + framed(b"") + framed(b"last")
    found: list[bytes] = []
    assert sock.receive() == []
    for i in range(len(data)):
        peer.sendall(data[i : i + 1])
        found += sock.receive()
    assert found == [b"first", b"", b"last"]


def test_frames_before_the_end_are_received(pair: tuple[socket.socket, FrameSocket]) -> None:
    peer, sock = pair
    peer.sendall(framed(b"whole") + framed(b"half")[:6])
    peer.close()
    assert sock.receive() == [b"whole"]
    with pytest.raises(EOFError):
        sock.receive()
    sock.send(b"to a closed peer")
    sock.flush()
    assert sock.unsent == 0


def test_an_impossible_length_ends_the_connection(pair: tuple[socket.socket, FrameSocket]) -> None:
    peer, sock = pair
    peer.sendall(b"\xff" * 10)
    with pytest.raises(EOFError):
        sock.receive()


def test_a_waiting_server_sends_what_it_has_buffered(server: FrameServer, silent: int) -> None:
    """As soon as the client reads: not at the next tick, nor when something arrives."""
    sock = connect(server.address, 1)
    assert events(server, 1, silent) == [(1, Change.OPENED)]
    payload = b"y" * 8_000_000
    server.send(1, payload)
    assert not server.wait([silent], 0.01), "the client's buffer is full"
    found: list[bytes] = []
    waits = 0
    end = time.monotonic() + LIMIT
    while not found:
        assert time.monotonic() < end, "it was not sent"
        found += sock.receive()
        if server.wait([silent], 0):
            waits += 1
            server.receive()
    assert found == [payload]
    assert waits > 1
    assert not server.wait([silent], 0), "with nothing to send it sleeps"
    sock.close()


def test_a_client_that_does_not_read_delays_nothing_and_is_disconnected(
    server: FrameServer, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames are buffered up to a limit."""
    slow, quick = connect(server.address, 1), connect(server.address, 2)
    events(server, 2, silent)
    monkeypatch.setattr(frames, "MAX_UNSENT", 5_000_000)
    payload = b"y" * 1_000_000
    for _ in range(3):
        server.send(1, payload)
    assert slow.receive() is not None
    for _ in range(30):
        server.send(1, payload)
    server.send(2, b"for you")
    assert received(quick, 1) == [b"for you"]
    assert server.wait([silent], 0), "the end of a session is an event"
    assert server.receive() == [(1, Change.CLOSED)]
    until_closed(slow)
    again = connect(server.address, 1)
    again.send(b"once more")
    assert events(server, 2, silent) == [(1, Change.OPENED), (1, b"once more")]
    for sock in (slow, quick, again):
        sock.close()


def test_a_client_that_closes_is_reported_after_its_frames(
    server: FrameServer, silent: int
) -> None:
    sock = connect(server.address, 4)
    sock.send(b"last")
    sock.close()
    assert events(server, 3, silent) == [(4, Change.OPENED), (4, b"last"), (4, Change.CLOSED)]


def test_a_later_connection_of_a_client_replaces_the_earlier(
    server: FrameServer, silent: int
) -> None:
    first = connect(server.address, 1)
    first.send(b"1")
    assert events(server, 2, silent) == [(1, Change.OPENED), (1, b"1")]
    second = connect(server.address, 1)
    second.send(b"2")
    assert events(server, 3, silent) == [(1, Change.CLOSED), (1, Change.OPENED), (1, b"2")]
    server.send(1, b"to the second")
    assert received(second, 1) == [b"to the second"]
    assert until_closed(first) == []
    first.close()
    second.close()


def test_frames_to_a_client_that_is_not_connected_are_dropped(
    server: FrameServer, silent: int
) -> None:
    server.send(5, b"?")
    sock = connect(server.address, 5)
    events(server, 1, silent)
    server.disconnect(5)
    server.disconnect(5)
    server.send(5, b"?")
    assert until_closed(sock) == []
    assert server.receive() == [(5, Change.CLOSED)]
    sock.close()


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        connect(f"ipc://{tmp_path}/nothing", 0)
    server = FrameServer(f"ipc://{tmp_path}/e")
    server.close()
    assert not (tmp_path / "e").exists()
