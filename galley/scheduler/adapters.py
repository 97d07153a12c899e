"""Limits how many adapters run at once."""

from __future__ import annotations

from collections import Counter

#: The reason for which requests of further adapters are parked.
DEFERRED = "deferred"


class AdapterBudget:
    """The adapters of the running sequences, at most `most` of them.

    Args:
        most: --max-loras.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: Counter[int] = Counter()  # sequences by load

    def admits(self, adapter: int) -> bool:
        """Whether a sequence with this adapter (0 = none) may run now."""
        return not adapter or adapter in self._running or len(self._running) < self._most

    def enter(self, adapter: int) -> None:
        """A sequence with this adapter runs."""
        if adapter:
            self._running[adapter] += 1

    def leave(self, adapter: int) -> bool:
        """It does not any more. Whether there is room for another adapter now."""
        if not adapter:
            return False
        self._running[adapter] -= 1
        if self._running[adapter]:
            return False
        del self._running[adapter]
        return True
