"""Fairness among clients: the least served comes first, and a pause earns nothing."""

from __future__ import annotations

import numpy as np
import pytest

from galley.engine.core import EngineCore
from galley.scheduler.fair_share import MOST_IDLE, FairShare
from galley.scheduler.sequence import Sequence
from tests.scheduler.fakes import Collected, make_core, request, step


def finish(core: EngineCore) -> list[int]:
    """Run all; handles in the order in which they ended."""
    got = Collected()
    for _ in range(1000):
        if not core.scheduler.has_work:
            break
        step(core, got)
        core.scheduler.check_integrity()
    return list(got.ends)


def add(core: EngineCore, handle: int, client: str, tokens: int = 8, priority: int = 0) -> None:
    prompt = [handle * 50 + i for i in range(tokens)]
    core.scheduler.add(request(handle, prompt, max_tokens=4, client=client, priority=priority))


@pytest.mark.parametrize(
    ("fairness_by", "order"),
    [("none", [1, 2, 3, 4, 5, 6]), ("user", [1, 5, 6, 2, 3, 4])],
)
def test_a_newcomer_is_not_behind_all_of_a_busy_client(fairness_by: str, order: list[int]) -> None:
    core = make_core(max_num_seqs=1, fairness_by=fairness_by)
    for handle in (1, 2, 3, 4):
        add(core, handle, "busy", tokens=20)
    add(core, 5, "a")
    add(core, 6, "a")
    assert finish(core) == order


def test_clients_with_equal_requests_take_turns() -> None:
    core = make_core(max_num_seqs=1, fairness_by="user")
    for handle in range(1, 10):
        add(core, handle, "abc"[(handle - 1) // 3])
    assert finish(core) == [1, 4, 7, 2, 5, 8, 3, 6, 9]


def test_a_more_important_request_of_a_busy_client_comes_first() -> None:
    core = make_core(max_num_seqs=1, fairness_by="user", policy="priority")
    for handle in (1, 2):
        add(core, handle, "busy", tokens=20)
    add(core, 3, "busy", tokens=20, priority=-1)
    add(core, 4, "a")
    assert finish(core) == [3, 4, 1, 2]


def running(slot: int, client: str, tokens: int) -> Sequence:
    """A sequence in a slot, with a prompt of so many tokens."""
    seq = Sequence(request(slot, [1] * tokens, client=client), slot, 0.0, 2000, None)
    seq.slot = slot
    return seq


def test_a_client_cannot_save_up_by_waiting() -> None:
    share = FairShare(4)
    share.arrive("busy")
    share.enter(running(0, "busy", 10))
    share.charge(np.array([0]), np.array([990], np.int32))
    share.arrive("late")
    assert share.served("late") == share.served("busy") == 1000
    share.enter(running(1, "late", 10))
    share.charge(np.array([0, 1]), np.array([1, 500], np.int32))
    share.leave("late")
    share.arrive("late")  # it did pay for what it had
    assert share.served("late") == 1510


def test_names_that_come_once_take_no_memory_for_ever() -> None:
    share = FairShare(1)
    share.arrive("busy")
    for i in range(2 * MOST_IDLE):
        share.arrive(f"once {i}")
        share.leave(f"once {i}")
    assert len(share._number) <= MOST_IDLE + 1
    share.leave("busy")
    assert not share._number
