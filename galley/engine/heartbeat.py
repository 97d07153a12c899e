"""The status file: a small shared file that the engine writes and its launcher reads.

After a death it lists the requests that the engine was working on: the rows of its last step and
later arrivals. Before one, its heartbeat shows whether the engine makes progress. It outlives its
writer.

    [heartbeat: int64][busy: int64][count: int64][capacity: int64]
    [handle: int64] * capacity      of which `count` are there
    [length: int64] * capacity      tokens of each, prompt and output; 0 = not known

The heartbeat is a number that changes with every bit of progress. It is the first word, so that
workers can map it and increment it after each operation (`Runner.set_heartbeat`): a long step is
then not mistaken for a hang.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from typing import Protocol

_HEARTBEAT, _BUSY, _COUNT, _CAPACITY, _ROWS = range(5)
_WORD = 8


class Column(Protocol):
    """An int64 array."""

    def __len__(self) -> int: ...
    def tobytes(self) -> bytes: ...


def status_file_path(otherwise: str) -> str:
    """A path that this process and what it forks can open: of memory, so that no full disk matters,
    or `otherwise` where the system has no such files.
    """
    if not hasattr(os, "memfd_create"):
        return otherwise
    return f"/proc/self/fd/{os.memfd_create('galley-status')}"


class StatusFile:
    """The engine's side.

    Args:
        capacity: handles that there is room for: at least the most rows that a step can have.
    """

    def __init__(self, path: str, capacity: int) -> None:
        self._capacity = capacity
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, _WORD * (_ROWS + 2 * capacity))
            self._map = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("q")
        self._words[_BUSY] = self._words[_COUNT] = 0
        self._words[_CAPACITY] = capacity

    def heartbeat(self) -> None:
        """The engine is awake and gets on."""
        self._words[_HEARTBEAT] += 1
        self._words[_BUSY] = 1

    def mark_idle(self) -> None:
        """The engine has nothing to do: from now on silence is no sign of trouble."""
        self._words[_BUSY] = 0

    def record(self, handles: Column, lengths: Column) -> None:
        """Note the rows of the step that starts now, in place of what was noted before."""
        self._words[_COUNT] = 0
        self._note(0, handles.tobytes(), lengths.tobytes())

    def arrived(self, handles: Column) -> None:
        """Note requests that the engine looks at from now on; as many as there is room for."""
        self._note(self._words[_COUNT], handles.tobytes(), bytes(_WORD * len(handles)))

    def _note(self, at: int, handles: bytes, lengths: bytes) -> None:
        size = min(len(handles), _WORD * (self._capacity - at))
        for column, words in ((0, handles), (self._capacity, lengths)):
            start = _WORD * (_ROWS + column + at)
            self._map[start : start + size] = words[:size]
        self._words[_COUNT] = at + size // _WORD


def last_rows(path: str) -> list[tuple[int, int]]:
    """The launcher's side: (handle, length) of what the engine was occupied with."""
    try:
        with open(path, "rb") as f:
            words = array("q")
            words.frombytes(f.read())
    except OSError:
        return []
    if len(words) < _ROWS:
        return []
    count, lengths = words[_COUNT], _ROWS + words[_CAPACITY]
    return list(zip(words[_ROWS : _ROWS + count], words[lengths : lengths + count], strict=True))


def read_heartbeat(path: str) -> int | None:
    """The launcher's side: a number that changes as the engine gets on; None while it rests."""
    try:
        with open(path, "rb") as f:
            beat, busy = struct.unpack("=qq", f.read(2 * _WORD))
    except (OSError, struct.error):
        return None
    return beat if busy else None
