"""Control messages over a socket pair: long ones come in pieces, and the end is noticed."""

from __future__ import annotations

import threading

import pytest

from galley.engine.control import Channel, Control, EngineDown, EngineUp, Serving


def test_messages_come_out_as_they_went_in_also_longer_ones_than_a_read() -> None:
    ours, theirs = Channel.pair()
    theirs.sock.settimeout(60)
    # More than 64 KiB, and not aligned to it.
    rows = [(1 << 41 | i, i) for i in range(20_000)]
    sent: list[Control] = [
        EngineUp(0, 1, "ipc://x"),
        EngineDown(0, 1, True, rows),
        Serving("é"),
        EngineDown(1, 2, False, rows[:3]),
    ]

    def send() -> None:
        for message in sent:
            ours.send(message)

    sender = threading.Thread(target=send)
    sender.start()
    received: list[Control] = []
    reads = 0
    while len(received) < len(sent):
        received += theirs.receive()
        reads += 1
    sender.join(60)
    assert received == sent
    assert reads > 3
    ours.close()
    with pytest.raises(EOFError):
        theirs.receive()
    theirs.send(Serving())  # without a receiver: no error
    theirs.close()
