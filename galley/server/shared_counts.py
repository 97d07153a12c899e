"""Requests and tokens in flight of several processes, in memory that all of them map.

    slot i   [pid][requests][tokens]     int64 each, written by one process alone

A process that dies leaves its slot behind. Before a request is rejected, slots of dead processes
are cleared.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from galley.engine.control import is_alive

_SLOTS = 256
_FIELDS = 3
_SIZE = 8 * _SLOTS * _FIELDS


class SharedCounts:
    """The counts of one process and its view of the others'.

    Args:
        path: in a folder that only these processes can read.
        number: of this process; those of living ones differ by less than 256.
    """

    def __init__(self, path: Path, number: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, _SIZE)
            self._words = memoryview(mmap.mmap(fd, _SIZE)).cast("q")
        finally:
            os.close(fd)
        self._own = number % _SLOTS * _FIELDS
        self._words[self._own] = os.getpid()
        self.publish(0, 0)

    def publish(self, requests: int, tokens: int) -> None:
        """Set what this process has in flight."""
        self._words[self._own + 1], self._words[self._own + 2] = requests, tokens

    def of_others(self) -> tuple[int, int]:
        """Requests and tokens of all other processes."""
        words, requests, tokens = self._words, 0, 0
        for slot in range(0, _SLOTS * _FIELDS, _FIELDS):
            if slot != self._own and words[slot]:
                requests += words[slot + 1]
                tokens += words[slot + 2]
        return requests, tokens

    def forget_dead(self) -> None:
        """Clear the slots of dead processes."""
        for slot in range(0, _SLOTS * _FIELDS, _FIELDS):
            pid = self._words[slot]
            if pid and not is_alive(pid):
                self._words[slot] = 0
