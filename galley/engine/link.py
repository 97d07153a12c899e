"""A conversation between one frontend and one engine, over a transport that may fail it.

    frame: [session: u32][number: u64][crc32: u32] | payload

Both sides number what they send, from 0 in each session, and check what they get. A frontend opens
a session with `Hello`; that is number 0, and so is the `Ready` that answers it. When a frame is
lost or damaged, either way, the frontend opens the next session and says again what it wants: the
engine then has forgotten all that it was asked in the one before. Knows nothing of messages,
nor of sockets (`wire`).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Literal

_HEADER = struct.Struct("<IQI")
_CRC_AT = 12
HEADER_SIZE = _HEADER.size

#: What a frame is to its receiver: the one that is due, one that is of no interest any more, or
#: the sign that something was lost.
Arrival = Literal["due", "old", "gap"]


@dataclass(frozen=True, slots=True)
class Frame:
    """What a whole header says."""

    session: int
    number: int


def open_frame(header: bytes, payload: bytes) -> Frame | None:
    """The header of a frame that arrived as it was sent; None if it was damaged."""
    if len(header) != _HEADER.size:
        return None
    session, number, crc = _HEADER.unpack(header)
    if zlib.crc32(payload, zlib.crc32(header[:_CRC_AT])) != crc:
        return None
    return Frame(session, number)


@dataclass(slots=True)
class Line:
    """One side's count of a session: frames sent, and frames received in order."""

    session: int
    sent: int = 0
    received: int = 0

    def wrap(self, payload: bytes) -> list[bytes]:
        """The next frame."""
        number = self.sent
        self.sent += 1
        return self.wrap_as(number, payload)

    def wrap_as(self, number: int, payload: bytes) -> list[bytes]:
        """A frame that was sent before, again."""
        start = _HEADER.pack(self.session, number, 0)[:_CRC_AT]
        return [start + struct.pack("<I", zlib.crc32(payload, zlib.crc32(start))), payload]

    def arrival(self, frame: Frame) -> Arrival:
        """Judge a frame, and count it if it is due."""
        if frame.session != self.session or frame.number < self.received:
            return "old"
        if frame.number > self.received:
            return "gap"
        self.received += 1
        return "due"
