"""Two numbers of each of several processes, seen by all: what each has in flight.

    slot i   [pid][requests][tokens]     int64 each, written by one process alone

A process that has died leaves its slot behind; whoever is about to turn a request away looks first
whether those it counts are still alive.
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
    """A process's hold on the file.

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
        self.tell(0, 0)

    def tell(self, requests: int, tokens: int) -> None:
        """What this process has in flight now."""
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
        """Give up the slots of processes that are gone."""
        for slot in range(0, _SLOTS * _FIELDS, _FIELDS):
            pid = self._words[slot]
            if pid and not is_alive(pid):
                self._words[slot] = 0
