"""Fairness among clients: the next sequence is one of the client that was served least.

Service is counted in tokens: those of a prompt when it is admitted, those of the output as they are
sampled. A client that comes back after a pause starts no lower than the least served one that is
active, so that it cannot save up. This is the virtual token counter of "Fairness in Serving Large
Language Models" (Sheng et al., OSDI 2024).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from galley.batch import I32
from galley.scheduler.queue import Order
from galley.scheduler.rows import Slots
from galley.scheduler.sequence import Sequence

#: Idle clients that are remembered.
MOST_IDLE = 4096


class FairShare:
    """How many tokens each client was served.

    Args:
        num_slots: of the running sequences.
    """

    def __init__(self, num_slots: int) -> None:
        self._number: dict[str, int] = {}
        self._served = np.zeros(64)
        self._unused = list(range(64))
        self._num_unfinished: Counter[str] = Counter()
        self._client_of_slot = np.zeros(num_slots, np.intp)

    def served(self, client: str) -> float:
        """Tokens that a client was served, counted from where it started."""
        number = self._number.get(client)  # None: an ended sequence waits to be dropped
        return 0.0 if number is None else float(self._served[number])

    def arrive(self, client: str) -> None:
        """A request of the client came in."""
        if not self._num_unfinished[client]:
            least = min(map(self.served, self._num_unfinished), default=0.0)
            if client not in self._number:
                self._number[client] = self._new_number()
            number = self._number[client]
            self._served[number] = max(self._served[number], least)
        self._num_unfinished[client] += 1

    def leave(self, client: str) -> None:
        """A request of the client ended."""
        self._num_unfinished[client] -= 1
        if self._num_unfinished[client]:
            return
        del self._num_unfinished[client]
        num_idle = len(self._number) - len(self._num_unfinished)
        if not self._num_unfinished or num_idle > MOST_IDLE:
            for name in self._number.keys() - self._num_unfinished.keys():
                number = self._number.pop(name)
                self._served[number] = 0.0
                self._unused.append(number)

    def enter(self, seq: Sequence) -> None:
        """A sequence was admitted to its slot."""
        number = self._number[seq.request.client]
        self._client_of_slot[seq.slot] = number
        self._served[number] += tokens_at_admission(seq)

    def charge(self, slots: Slots, tokens: I32) -> None:
        """So many tokens were sampled for the sequences in `slots`."""
        np.add.at(self._served, self._client_of_slot[slots], tokens)

    def _new_number(self) -> int:
        if not self._unused:
            size = len(self._served)
            self._served = np.concatenate((self._served, np.zeros(size)))
            self._unused = list(range(size, 2 * size))
        return self._unused.pop()


def tokens_at_admission(seq: Sequence) -> int:
    """Those of its prompt, once."""
    return 0 if seq.num_preemptions else seq.num_prompt


class ByClient:
    """An order of waiting sequences: the least served client's first, each client's in an order.

    A more important priority comes first where `by_priority`. The next is found in O(clients that
    wait).

    Args:
        share: the tokens that each client was served.
        order: makes the order of one client's sequences.
    """

    def __init__(self, share: FairShare, order: Callable[[], Order], by_priority: bool) -> None:
        self._share = share
        self._order = order
        self._by_priority = by_priority
        self._orders: dict[str, Order] = {}

    def push(self, seq: Sequence) -> None:
        self._of(seq).push(seq)

    def push_front(self, seq: Sequence) -> None:
        self._of(seq).push_front(seq)

    def push_by_arrival(self, seq: Sequence) -> None:
        self._of(seq).push_by_arrival(seq)

    def first(self) -> Sequence:
        return min((order.first() for order in self._orders.values()), key=self._rank)

    def pop(self) -> Sequence:
        seq = self.first()
        self.remove(seq)
        return seq

    def remove(self, seq: Sequence) -> None:
        order = self._orders[seq.request.client]
        if order.first() is seq:
            order.pop()
        else:
            order.remove(seq)
        if not len(order):
            del self._orders[seq.request.client]

    def drop_ended(self) -> None:
        for order in self._orders.values():
            order.drop_ended()
        self._orders = {client: order for client, order in self._orders.items() if len(order)}

    def __len__(self) -> int:
        return sum(map(len, self._orders.values()))

    def __iter__(self) -> Iterator[Sequence]:
        """In the order in which they would be admitted now; without ended ones."""
        extra: Counter[str] = Counter()
        heap = []
        for order in self._orders.values():
            rest = (seq for seq in order if not seq.ended)
            if (seq := next(rest, None)) is not None:
                heap.append((self._rank(seq), seq, rest))
        heapq.heapify(heap)
        while heap:
            _, seq, rest = heap[0]
            yield seq
            client = seq.request.client
            extra[client] += tokens_at_admission(seq)
            following = next(rest, None)
            if following is None:
                heapq.heappop(heap)
            else:
                rank = self._rank(following, extra[client])
                heapq.heapreplace(heap, (rank, following, rest))

    def _of(self, seq: Sequence) -> Order:
        """The order of the sequence's client."""
        client = seq.request.client
        if client not in self._orders:
            self._orders[client] = self._order()
        return self._orders[client]

    def _rank(self, seq: Sequence, extra: int = 0) -> tuple[int, float, int]:
        """Smaller comes first; `extra` tokens are added to what its client was served."""
        priority = seq.request.priority if self._by_priority else 0
        return priority, self._share.served(seq.request.client) + extra, seq.arrival
