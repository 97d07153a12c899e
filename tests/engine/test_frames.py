"""Wires under a short buffer, in pieces, and when one side goes."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from galley.engine import frames
from galley.engine.frames import Frame, FrameServer, FrameSocket, connect

HEADER = b"sixteen bytes...."[:16]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, FrameSocket]]:
    theirs, ours = socket.socketpair()
    wire = FrameSocket(ours)
    yield theirs, wire
    theirs.close()
    wire.close()


@pytest.fixture(params=["ipc", "tcp"])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FrameServer]:
    board = FrameServer(f"ipc://{tmp_path}/e" if request.param == "ipc" else "tcp://127.0.0.1:0")
    yield board
    board.close()


def arrived(board: FrameServer, number: int) -> list[tuple[int, Frame]]:
    found: list[tuple[int, Frame]] = []
    with socket.socket() as never:
        never.bind(("127.0.0.1", 0))
        never.listen()
        end = time.monotonic() + 60
        while len(found) < number and time.monotonic() < end:
            found += board.receive()
            if len(found) < number:
                board.wait(never.fileno(), 1)
    return found


def received(wire: FrameSocket, number: int) -> list[Frame]:
    found: list[Frame] = []
    end = time.monotonic() + 60
    while len(found) < number and time.monotonic() < end:
        found += wire.receive()
    return found


def to_the_end(wire: FrameSocket) -> list[Frame]:
    """What comes until the other side hangs up."""
    found: list[Frame] = []
    try:
        while True:
            found += wire.receive()
    except EOFError:
        return found


def framed(*parts: bytes) -> bytes:
    return struct.pack("<I", sum(map(len, parts))) + b"".join(parts)


def test_frames_come_out_as_they_went_in(board: FrameServer) -> None:
    """Larger than any socket's buffer, empty, and many at once."""
    wire = connect(board.address, 3)
    sent = [(HEADER, b"x" * size) for size in (0, 1, 1000, 3_000_000, 5)]
    for frame in sent:
        wire.send(frame)
    found: list[tuple[int, Frame]] = []
    while len(found) < len(sent):
        wire.flush()
        found += board.receive()
    assert found == [(3, frame) for frame in sent]
    for frame in sent:
        board.send(3, frame)
    answers: list[Frame] = []
    while len(answers) < len(sent):
        list(board.receive())  # what had to wait goes out with whatever the engine does next
        answers += wire.receive()
    assert answers == sent
    wire.close()


def test_frames_in_pieces(pair: tuple[socket.socket, FrameSocket]) -> None:
    theirs, wire = pair
    data = framed(HEADER, b"first") + framed(HEADER) + framed(b"short") + framed(HEADER, b"last")
    found: list[Frame] = []
    assert wire.receive() == []
    for at in range(len(data)):
        theirs.sendall(data[at : at + 1])
        found += wire.receive()
    assert found == [(HEADER, b"first"), (HEADER, b""), (b"short", b""), (HEADER, b"last")]


def test_what_was_said_before_the_end_is_heard(pair: tuple[socket.socket, FrameSocket]) -> None:
    theirs, wire = pair
    theirs.sendall(framed(HEADER, b"whole") + framed(HEADER, b"half")[:9])
    theirs.close()
    assert wire.receive() == [(HEADER, b"whole")]
    with pytest.raises(EOFError):
        wire.receive()
    wire.send((HEADER, b"to nobody"))
    wire.flush()
    assert wire.unsent == 0


def test_a_length_that_no_client_sends_ends_the_wire(
    pair: tuple[socket.socket, FrameSocket],
) -> None:
    theirs, wire = pair
    theirs.sendall(b"\xff" * 10)
    with pytest.raises(EOFError):
        wire.receive()


def test_nobody_waits_for_a_client_that_does_not_read(
    board: FrameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets what it can have later, up to a limit; then it is hung up on, and others go on."""
    slow, quick = connect(board.address, 1), connect(board.address, 2)
    slow.send((HEADER, b"hello"))
    quick.send((HEADER, b"hello"))
    arrived(board, 2)
    monkeypatch.setattr(frames, "PATIENCE", 5_000_000)
    payload = b"y" * 1_000_000
    for _ in range(3):
        board.send(1, (HEADER, payload))
    assert slow.receive() is not None
    for _ in range(30):
        board.send(1, (HEADER, payload))
    board.send(2, (HEADER, b"for you"))
    assert received(quick, 1) == [(HEADER, b"for you")]
    to_the_end(slow)
    again = connect(board.address, 1)
    again.send((HEADER, b"once more"))
    assert arrived(board, 1) == [(1, (HEADER, b"once more"))]
    for wire in (slow, quick, again):
        wire.close()


def test_the_later_call_of_a_client_takes_the_place_of_the_earlier(board: FrameServer) -> None:
    first = connect(board.address, 1)
    first.send((HEADER, b"1"))
    assert arrived(board, 1) == [(1, (HEADER, b"1"))]
    second = connect(board.address, 1)
    second.send((HEADER, b"2"))
    assert arrived(board, 1) == [(1, (HEADER, b"2"))]
    board.send(1, (HEADER, b"to the second"))
    assert received(second, 1) == [(HEADER, b"to the second")]
    to_the_end(first)
    first.close()
    second.close()


def test_what_is_for_nobody_is_lost(board: FrameServer) -> None:
    board.send(5, (HEADER, b"?"))
    wire = connect(board.address, 5)
    wire.send((HEADER, b"!"))
    arrived(board, 1)
    board.forget(5)
    board.forget(5)
    board.send(5, (HEADER, b"?"))
    assert to_the_end(wire) == []
    wire.close()


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        connect(f"ipc://{tmp_path}/nothing", 0)
    board = FrameServer(f"ipc://{tmp_path}/e")
    board.close()
    assert not (tmp_path / "e").exists()
