"""The waiting queue: order, lazy removal, and that depth costs nothing."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from galley.scheduler.queue import COMPACT_FROM, ByPriority, Fcfs, WaitingQueue
from galley.scheduler.sequence import Sequence
from tests.scheduler.fakes import make_core, request


def sequence(arrival: int, priority: int = 0) -> Sequence:
    return Sequence(request(arrival, [1], priority=priority), arrival, 0.0, 100, None)


def drain(queue: WaitingQueue) -> list[int]:
    found = []
    while (seq := queue.first()) is not None:
        queue.take(seq)
        found.append(seq.arrival)
    return found


def test_first_come_first_served_with_the_preempted_in_front() -> None:
    queue = WaitingQueue(Fcfs())
    sequences = [sequence(i) for i in range(5)]
    for seq in sequences[2:]:
        queue.push(seq)
    queue.push_front(sequences[1])
    queue.push_front(sequences[0])
    assert [s.arrival for s in queue] == [0, 1, 2, 3, 4]
    assert drain(queue) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("order", [Fcfs, ByPriority])
def test_a_parked_sequence_is_in_no_order_and_returns_to_its_place(order: type) -> None:
    queue = WaitingQueue(order())
    sequences = [sequence(i) for i in range(5)]
    for seq in sequences:
        if seq.arrival in (1, 3):
            queue.park(seq, "grammar")
        else:
            queue.push(seq)
    assert [s.arrival for s in queue] == [0, 2, 4]
    assert queue.num_by_reason == {"capacity": 3, "grammar": 2}
    queue.unpark(sequences[3])
    assert [s.arrival for s in queue] == [0, 2, 3, 4]
    queue.discard(sequences[1])
    assert queue.num_by_reason == {"capacity": 4}
    assert queue.num_waiting == 4
    assert drain(queue) == [0, 2, 3, 4]


def test_an_unparked_sequence_overtakes_no_earlier_arrival_behind_a_preempted_one() -> None:
    queue = WaitingQueue(Fcfs())
    queue.push(sequence(4))
    queue.push_front(sequence(7))
    seq = sequence(5)
    queue.park(seq, "remote_kv")
    queue.unpark(seq)
    assert drain(queue) == [7, 4, 5]


def test_by_priority_then_arrival_also_for_the_preempted() -> None:
    queue = WaitingQueue(ByPriority())
    for arrival, priority in ((1, 3), (2, 0), (3, 3), (4, -1)):
        queue.push(sequence(arrival, priority))
    queue.push_front(sequence(0, 3))
    assert [s.arrival for s in queue] == [4, 2, 0, 1, 3]
    assert drain(queue) == [4, 2, 0, 1, 3]


@pytest.mark.parametrize("order", [Fcfs, ByPriority])
def test_discarded_sequences_are_gone(order: type) -> None:
    queue = WaitingQueue(order())
    sequences = [sequence(i) for i in range(6 * COMPACT_FROM)]
    for seq in sequences:
        queue.push(seq)
    for n, seq in enumerate(sequences[: 5 * COMPACT_FROM]):
        queue.discard(seq)
        assert len(queue) == len(sequences) - n - 1
        assert len(queue._order) <= 2 * len(queue) + COMPACT_FROM + 1
    assert [s.arrival for s in queue] == list(range(5 * COMPACT_FROM, 6 * COMPACT_FROM))
    assert queue.first() is sequences[5 * COMPACT_FROM]
    assert drain(queue) == list(range(5 * COMPACT_FROM, 6 * COMPACT_FROM))
    assert len(queue) == 0


def instructions_of(function: Any) -> int:
    """Lines executed by `function`: work without a clock."""
    lines = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(None)
    return lines


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_twenty_thousandth_admission_costs_no_more_than_the_first(policy: str) -> None:
    core = make_core(max_num_seqs=1, policy=policy)

    def arrive_and_admit(handle: int) -> None:
        core.scheduler.add(request(handle, [handle % 7, 1], max_tokens=1))
        core.step()

    shallow = instructions_of(lambda: arrive_and_admit(1))
    assert not core.has_work
    for handle in range(2, 20_002):
        core.scheduler.add(request(handle, [handle % 7, 1], max_tokens=1))
    deep = instructions_of(lambda: arrive_and_admit(30_000))
    assert core.scheduler.num_waiting == 20_000
    assert deep <= shallow * 1.1


def test_a_long_prompt_that_does_not_fit_is_not_looked_up_in_every_step() -> None:
    core = make_core(budget=512, max_model_len=512, num_blocks=1 + 40)
    core.add([request(1, [1] * 300, max_tokens=60), request(2, [2] * 400, max_tokens=2)])
    core.step()
    core.step()
    assert (core.scheduler.num_running, core.scheduler.num_waiting) == (1, 1)
    lookups = 0
    find_hit = core.scheduler.kv.find_hit

    def counted(*args: Any) -> Any:
        nonlocal lookups
        lookups += 1
        return find_hit(*args)

    core.scheduler.kv.find_hit = counted
    while core.scheduler.num_waiting:
        core.step()
    assert lookups == 1, "only when the first request released its blocks"
    assert core.scheduler.table.handles[core.scheduler.running.order].tolist() == [2]
