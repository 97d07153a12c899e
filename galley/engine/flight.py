"""The flight recorder: a small shared file that the engine writes and its launcher reads.

After a death it tells which requests the engine was occupied with: the rows of its last step and
what has arrived since. Before one, it tells whether the engine still gets on. It outlives its
writer.

    [pulse: int64][busy: int64][count: int64][handle: int64] * count

The pulse is a number that changes whenever the engine has got on; native code counts it up after
each operation (`pulse_address`), so that a long step is not mistaken for one that hangs.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from typing import Protocol

_PULSE, _BUSY, _COUNT, _ROWS = range(4)
_WORD = 8


class Column(Protocol):
    """An int64 array."""

    def __len__(self) -> int: ...
    def tobytes(self) -> bytes: ...


class FlightRecorder:
    """The engine's side.

    Args:
        capacity: handles that there is room for: at least the most rows that a step can have.
    """

    def __init__(self, path: str, capacity: int) -> None:
        self._capacity = capacity
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(fd, _WORD * (_ROWS + capacity))
            self._map = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("q")

    def beat(self) -> None:
        """The engine is awake and gets on."""
        self._words[_PULSE] += 1
        self._words[_BUSY] = 1

    def rest(self) -> None:
        """The engine has nothing to do: from now on silence is no sign of trouble."""
        self._words[_BUSY] = 0

    def record(self, handles: Column) -> None:
        """Note the rows of the step that starts now, in place of what was noted before."""
        self._words[_COUNT] = 0
        self._note(0, handles)

    def arrived(self, handles: Column) -> None:
        """Note requests that the engine looks at from now on; as many as there is room for."""
        self._note(self._words[_COUNT], handles)

    def _note(self, at: int, handles: Column) -> None:
        n = min(len(handles), self._capacity - at)
        start = _WORD * (_ROWS + at)
        self._map[start : start + _WORD * n] = handles.tobytes()[: _WORD * n]
        self._words[_COUNT] = at + n


def last_rows(path: str) -> list[int]:
    """The launcher's side: what the engine was occupied with; [] if with nothing."""
    try:
        with open(path, "rb") as f:
            words = array("q")
            words.frombytes(f.read())
    except OSError:
        return []
    return words[_ROWS : _ROWS + words[_COUNT]].tolist() if words else []


def pulse(path: str) -> int | None:
    """The launcher's side: a number that changes as the engine gets on; None while it rests."""
    try:
        with open(path, "rb") as f:
            beat, busy = struct.unpack("=qq", f.read(2 * _WORD))
    except (OSError, struct.error):
        return None
    return beat if busy else None
