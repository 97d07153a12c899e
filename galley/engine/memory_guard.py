"""Sheds load before the OOM killer does.

    available ────────────────────────────────────────────────────────────────▶ bytes
    0 ......... reserve ......... + a quarter ......... more
        release           stay               grow by the excess

The KV cache takes memory as its blocks are first written. A look at memory says how many blocks
may still be touched (`BlockPool.set_reserved` withholds the rest); below the reserve, blocks
that are free or only cached give theirs back, and where that is not enough sequences are preempted:
they wait, and go on when there is room. Blocks for one sequence of the longest length always
remain, so that something always runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from galley.config.memory import Memory, MemorySource
from galley.scheduler import Scheduler

log = logging.getLogger(__name__)

MIB = 2**20
#: Seconds between two polls, and while memory is nearly short.
INTERVAL, SHORT_INTERVAL = 0.25, 0.05
#: Memory is nearly short below this multiple of the reserve.
NEAR = 4
#: With this share of time spent stalled, memory is short whatever is reported as available.
STALLED = 0.1


def reserve_of(total: int) -> int:
    """Default bytes to leave free: 2 % of all, at least 64 MiB and at most 1 GiB."""
    return min(max(total // 50, 64 * MIB), 1024 * MIB)


class Cache(msgspec.Struct, frozen=True):
    """The KV cache's memory.

    Attributes:
        block_bytes: size of a block.
        give_back: receives the blocks whose memory is to be released.
    """

    block_bytes: int
    give_back: Callable[[list[int]], object]


class MemoryGuard:
    """Polls memory between steps.

    Args:
        reserve: bytes to leave free; None = `reserve_of` the total; 0 = never poll.

    Attributes:
        source: reads the memory.
        short: load is being shed.
    """

    def __init__(
        self, scheduler: Scheduler, cache: Cache, source: MemorySource, reserve: int | None = None
    ) -> None:
        self._scheduler = scheduler
        self._cache = cache
        self.source = source
        self.reserve = reserve_of(source.read().total) if reserve is None else reserve
        self.short = False
        self._next = 0.0 if self.reserve else float("inf")

    @property
    def num_reserved(self) -> int:
        """Blocks that are kept from everybody."""
        return self._scheduler.kv.pool.num_reserved

    def poll(self, now: float) -> None:
        """Call this between steps; `now` in seconds of any clock."""
        if now < self._next:
            return
        memory = self.source.read()
        near = memory.available < NEAR * self.reserve
        self._next = now + (SHORT_INTERVAL if near else INTERVAL)
        room = self._room(memory)
        pool = self._scheduler.kv.pool
        reserved = max(pool.num_untouched - room // self._cache.block_bytes, 0)
        if reserved != pool.num_reserved:
            given_back = self._scheduler.set_reserved_blocks(reserved)
            if given_back:
                self._cache.give_back(given_back)
        self._log_changes(memory, room)

    def _room(self, memory: Memory) -> int:
        """Bytes that the cache may still use; negative: that it should release."""
        available, margin = memory.available, self.reserve // 4
        if memory.stalled > STALLED and available < NEAR * self.reserve:
            available = min(available, self.reserve - margin)
        spare = available - self.reserve
        return spare if spare < 0 else max(spare - margin, 0)

    def _log_changes(self, memory: Memory, room: int) -> None:
        """Log when load shedding begins and ends."""
        pool = self._scheduler.kv.pool
        if self.short:
            if room > self.reserve // 4 or (room >= 0 and not pool.num_reserved):
                self.short = False
                log.warning("Memory is back: %d MiB are available.", memory.available // MIB)
        elif pool.num_reserved and room <= 0:
            self.short = True
            usable = pool.num_blocks - 1 - pool.num_reserved
            log.warning(
                "Memory runs short: %d MiB are available, and %d MiB are to be left free. The KV "
                "cache gets %d of its %d blocks for now; what does not fit waits.",
                memory.available // MIB,
                self.reserve // MIB,
                usable,
                pool.num_blocks - 1,
            )
