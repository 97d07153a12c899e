"""Waiting sequences in the order of a policy, and parked ones that wait for something else.

Operations cost O(log n) at most; only `unpark` is O(n) with the policy `fcfs`. An aborted sequence
is only marked `ended`; it is dropped when it comes up, or when the marked outnumber the others.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterator
from typing import Protocol

from galley.scheduler.sequence import Sequence

COMPACT_FROM = 64


#: Waits for a slot, blocks or budget: the reason of all sequences that are not parked.
CAPACITY = "capacity"


class Order(Protocol):
    """Waiting sequences in some order; ended ones are among them until they come up."""

    def push(self, seq: Sequence) -> None: ...
    def push_front(self, seq: Sequence) -> None: ...
    def push_by_arrival(self, seq: Sequence) -> None: ...
    def first(self) -> Sequence: ...
    def pop(self) -> Sequence: ...
    def remove(self, seq: Sequence) -> None: ...
    def drop_ended(self) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sequence]: ...


class Fcfs:
    """First come, first served; a preempted sequence returns to the front."""

    def __init__(self) -> None:
        self._items: deque[Sequence] = deque()
        self.push = self._items.append
        self.push_front = self._items.appendleft
        self.pop = self._items.popleft
        self.remove = self._items.remove

    def push_by_arrival(self, seq: Sequence) -> None:
        """Insert `seq` behind the last earlier arrival."""
        index = len(self._items)
        for other in reversed(self._items):
            if other.arrival < seq.arrival:
                break
            index -= 1
        self._items.insert(index, seq)

    def first(self) -> Sequence:
        return self._items[0]

    def drop_ended(self) -> None:
        unended = [s for s in self._items if not s.ended]
        self._items.clear()
        self._items.extend(unended)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._items)


class ByPriority:
    """Most important first; a preempted sequence comes before later arrivals of its priority."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []

    def push(self, seq: Sequence) -> None:
        heapq.heappush(self._heap, (seq.importance, seq))

    push_front = push_by_arrival = push

    def first(self) -> Sequence:
        return self._heap[0][1]

    def pop(self) -> Sequence:
        return heapq.heappop(self._heap)[1]

    def remove(self, seq: Sequence) -> None:
        self._heap.remove((seq.importance, seq))
        heapq.heapify(self._heap)

    def drop_ended(self) -> None:
        self._heap = [item for item in self._heap if not item[1].ended]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Sequence]:
        heap = self._heap.copy()  # the first few cost no sort
        while heap:
            yield heapq.heappop(heap)[1]


class WaitingQueue:
    """The waiting sequences, first to be admitted first.

    A parked sequence waits for something that is no capacity (a grammar that compiles, an adapter,
    remote KV): it is in no order and blocks none behind it.

    Args:
        order: of those that are not parked; it is empty.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._num_ended = 0
        self._parked: dict[Sequence, str] = {}

    def push(self, seq: Sequence) -> None:
        self._order.push(seq)

    def push_front(self, seq: Sequence) -> None:
        """Return a preempted sequence to the front of its like."""
        self._order.push_front(seq)

    def park(self, seq: Sequence, reason: str) -> None:
        """Let a sequence that is not in the queue wait, in no order, until `unpark`."""
        self._parked[seq] = reason

    def unpark(self, seq: Sequence) -> None:
        """Put a parked sequence at its place in the order."""
        del self._parked[seq]
        self._order.push_by_arrival(seq)

    @property
    def num_waiting(self) -> int:
        """Sequences in the order and parked ones."""
        return len(self) + len(self._parked)

    @property
    def num_by_reason(self) -> dict[str, int]:
        """Waiting sequences by what they wait for; no zeros."""
        counts = dict(Counter(self._parked.values())) if self._parked else {}
        if waiting := len(self):
            counts[CAPACITY] = counts.get(CAPACITY, 0) + waiting
        return counts

    @property
    def parked(self) -> list[Sequence]:
        return list(self._parked)

    def parked_for(self, reason: str) -> list[Sequence]:
        """Parked sequences with this reason, in the order in which they were parked."""
        return [seq for seq, why in self._parked.items() if why == reason]

    def first(self) -> Sequence | None:
        """The next to be admitted; it stays in the queue."""
        while len(self._order):
            seq = self._order.first()
            if not seq.ended:
                return seq
            self._order.pop()
            self._num_ended -= 1
        return None

    def take(self, seq: Sequence) -> None:
        """Take out a sequence that has not ended."""
        if self._order.first() is seq:
            self._order.pop()
        else:
            self._order.remove(seq)

    def discard(self, seq: Sequence) -> None:
        """Remove an aborted sequence; it is marked `ended`."""
        seq.ended = True
        if self._parked.pop(seq, None) is not None:
            return
        self._num_ended += 1
        if self._num_ended > max(COMPACT_FROM, len(self._order) // 2):
            self._order.drop_ended()
            self._num_ended = 0

    def __len__(self) -> int:
        """Sequences in the order; without parked ones."""
        return len(self._order) - self._num_ended

    def __iter__(self) -> Iterator[Sequence]:
        return (seq for seq in self._order if not seq.ended)
