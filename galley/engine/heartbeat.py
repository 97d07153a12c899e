"""The status file: a small shared file that the engine writes and its launcher reads.

After a death it lists the requests that the engine was working on: the rows of its last step and
later arrivals. Before one, its heartbeat shows whether the engine makes progress. It outlives its
writer.

    [heartbeat: int64][busy: int64][steps: int64][count: int64][capacity: int64]
    [handle: int64] * capacity      of which `count` are there
    [length: int64] * capacity      tokens of each, prompt and output; 0 = not known

`steps` counts those that this incarnation has committed.

The heartbeat is a number that changes with every bit of progress. It is the first word, so that
workers can map it and increment it after each operation (`Runner.set_heartbeat`): a long step is
then not mistaken for a hang.
"""

from __future__ import annotations

import mmap
import os
from array import array
from typing import Protocol

_HEARTBEAT, _BUSY, _STEPS, _COUNT, _CAPACITY, _ROWS = range(6)
_WORD = 8


class Column(Protocol):
    """An int64 array."""

    def __len__(self) -> int: ...
    def tobytes(self) -> bytes: ...


def status_file_path(otherwise: str) -> str:
    """A path that this process and its children can open: of a file in memory, which no full disk
    affects, or `otherwise` if the system has no such files.
    """
    if not hasattr(os, "memfd_create"):
        return otherwise
    return f"/proc/self/fd/{os.memfd_create('galley-status')}"


class StatusFile:
    """The engine's side.

    Args:
        capacity: number of rows that fit: at least as many as a step can have.
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
        self._words[_BUSY] = self._words[_STEPS] = self._words[_COUNT] = 0
        self._words[_CAPACITY] = capacity

    def heartbeat(self) -> None:
        """Record progress; the engine is busy from now on."""
        self._words[_HEARTBEAT] += 1
        self._words[_BUSY] = 1

    def mark_idle(self) -> None:
        """Record that there is nothing to do: from now on no heartbeat is expected."""
        self._words[_BUSY] = 0

    def count_step(self) -> None:
        """Count a committed step."""
        self._words[_STEPS] += 1

    def record(self, handles: Column, lengths: Column) -> None:
        """Replace the rows by those of the step that starts now."""
        self._words[_COUNT] = 0
        self._write(0, handles.tobytes(), lengths.tobytes())

    def arrived(self, handles: Column) -> None:
        """Add requests that have just arrived, as many as fit."""
        self._write(self._words[_COUNT], handles.tobytes(), bytes(_WORD * len(handles)))

    def _write(self, row: int, handles: bytes, lengths: bytes) -> None:
        size = min(len(handles), _WORD * (self._capacity - row))
        for column, words in ((0, handles), (self._capacity, lengths)):
            start = _WORD * (_ROWS + column + row)
            self._map[start : start + size] = words[:size]
        self._words[_COUNT] = row + size // _WORD


class StatusReader:
    """The launcher's side. A file that is missing or incomplete reads as an engine that is idle."""

    def __init__(self, path: str) -> None:
        self._path = path

    def heartbeat(self) -> int | None:
        """A number that changes with the engine's progress; None while it is idle."""
        header = self._header()
        return header[_HEARTBEAT] if header[_BUSY] else None

    def num_steps(self) -> int:
        """Steps that the last incarnation has committed."""
        return self._header()[_STEPS]

    def rows(self) -> list[tuple[int, int]]:
        """(handle, length) of the requests that the engine was working on."""
        words = self._read(None)
        if len(words) < _ROWS:
            return []
        count, lengths = words[_COUNT], _ROWS + words[_CAPACITY]
        rows = zip(words[_ROWS : _ROWS + count], words[lengths : lengths + count], strict=True)
        return list(rows)

    def _header(self) -> array[int]:
        words = self._read(_ROWS)
        return words if len(words) == _ROWS else array("q", bytes(_WORD * _ROWS))

    def _read(self, num_words: int | None) -> array[int]:
        """The first words of the file, or all of them."""
        words = array("q")
        try:
            with open(self._path, "rb") as f:
                words.frombytes(f.read(-1 if num_words is None else _WORD * num_words))
        except (OSError, ValueError):
            pass  # no file, or not a whole number of words
        return words
