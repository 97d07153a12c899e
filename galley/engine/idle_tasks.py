"""Idle-time checks: verifies scheduler and KV-cache invariants and polls memory."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from galley.engine.core import EngineCore
    from galley.engine.outputs import ClientOutputs


class IdleTasks:
    """The idle tasks of one core; run between its steps."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._checked_step = 0

    def run(self, clients: Iterable[int]) -> ClientOutputs:
        """Check the invariants if there were steps since the last call, and poll memory.

        Args:
            clients: they get the new state if it has changed.

        Raises:
            AssertionError: an invariant of scheduler or cache is violated.
        """
        core = self._core
        scheduler, guard = core.scheduler, core.guard
        if scheduler.step != self._checked_step:
            core.check_integrity()
            used = scheduler.kv.pool.num_used
            assert scheduler.has_work or not used, f"{used} blocks are in use without a request"
            self._checked_step = scheduler.step
        if guard is None or core.pausing.stopped:
            return []  # memory is released already
        before = guard.short, guard.num_reserved
        guard.poll(perf_counter())
        return core.stats_updates(clients) if (guard.short, guard.num_reserved) != before else []
