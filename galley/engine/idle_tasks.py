"""What an engine does while it has nothing to do: it proves that its books are right and that every
block is free again, and minds the memory that others need.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from galley.engine.core import EngineCore
    from galley.engine.outputs import ClientOutputs


class IdleTasks:
    """Of one core; called now and then between its steps."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._proven = 0

    def run(self, clients: Iterable[int]) -> ClientOutputs:
        """Check what has been done since the last time, and look at memory.

        Args:
            clients: whom to tell the state if it has changed by that.

        Raises:
            AssertionError: an invariant of scheduler or cache is violated.
        """
        core = self._core
        scheduler, guard = core.scheduler, core.guard
        if scheduler.step != self._proven:
            core.check_integrity()
            used = scheduler.kv.pool.num_used
            assert scheduler.has_work or not used, f"{used} blocks of nobody are in use"
            self._proven = scheduler.step
        if guard is None or core.pausing.stopped:
            return []  # what sleeps has given its memory back
        before = guard.short, guard.num_reserved
        guard.poll(perf_counter())
        return core.stats_updates(clients) if (guard.short, guard.num_reserved) != before else []
