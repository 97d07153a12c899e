"""The flight recorder: which requests the engine was computing when it died.

A small shared file that the engine writes before each step and its launcher reads after a death.

    [count: int64][handle: int64] * count
"""

from __future__ import annotations

import mmap
import os
from array import array
from typing import Protocol


class Column(Protocol):
    """An int64 array."""

    def __len__(self) -> int: ...
    def tobytes(self) -> bytes: ...


class FlightRecorder:
    """The engine's side. `capacity` is the most rows that a step can have."""

    def __init__(self, path: str, capacity: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(fd, 8 * (1 + capacity))
            self._map = mmap.mmap(fd, 0)
        finally:
            os.close(fd)

    def record(self, handles: Column) -> None:
        """Note the rows of the step that starts now."""
        n = len(handles)
        self._map[:8] = bytes(8)
        self._map[8 : 8 + 8 * n] = handles.tobytes()
        self._map[:8] = n.to_bytes(8, "little")


def last_rows(path: str) -> list[int]:
    """The launcher's side: handles of the last step that was started; [] if there was none."""
    try:
        with open(path, "rb") as f:
            words = array("q")
            words.frombytes(f.read())
    except OSError:
        return []
    return words[1 : 1 + words[0]].tolist() if words else []
