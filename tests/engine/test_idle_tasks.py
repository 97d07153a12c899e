"""An idle engine checks its invariants and reports changes of available memory."""

from __future__ import annotations

import pytest

from galley.engine.memory_guard import INTERVAL, Cache, MemoryGuard
from galley.messages import Stats
from tests.engine.test_memory_guard import PLENTY, RESERVE, Source
from tests.scheduler.fakes import make_core, request, run, step


def test_an_idle_engine_has_no_violated_invariant() -> None:
    core = make_core()
    core.add([request(1, [1, 2, 3]), request(2, [4, 5])])
    step(core)
    assert core.idle_tasks.run([0]) == []
    run(core)
    assert core.idle_tasks.run([0]) == []


def test_a_leaked_block_is_detected() -> None:
    core = make_core()
    core.add([request(1, [1, 2, 3])])
    run(core)
    core.scheduler.kv.pool.allocate(1)
    with pytest.raises(AssertionError, match="references differ"):
        core.idle_tasks.run([])


def test_without_new_steps_nothing_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    core = make_core()
    proofs: list[int] = []
    monkeypatch.setattr(core.scheduler, "check_integrity", lambda: proofs.append(1))
    for work in (True, False, False, True):
        if work:
            core.add([request(1, [1, 2, 3])])
            while core.has_work:
                core.step()
        core.idle_tasks.run([])
    assert len(proofs) == 2


def test_clients_get_the_state_of_memory_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    core, source = make_core(), Source()
    core.guard = MemoryGuard(core.scheduler, Cache(1000, lambda blocks: None), source, RESERVE)
    clock = iter(range(100))
    monkeypatch.setattr("galley.engine.idle_tasks.perf_counter", lambda: next(clock) * INTERVAL)

    def told(available: int) -> list[tuple[int, bool, int]]:
        source.available = available
        found = core.idle_tasks.run([3, 7])
        states = [(client, outputs.stats) for client, outputs in found]
        assert all(isinstance(stats, Stats) for _, stats in states)
        return [(c, s.memory_short, s.reserved_blocks) for c, s in states if s]

    assert told(PLENTY) == []
    most = 63 - 256 // 16
    assert told(RESERVE) == [(3, True, most), (7, True, most)]
    assert told(RESERVE) == []
    assert told(PLENTY) == [(3, False, 0), (7, False, 0)]


def test_updates_carry_counters_once() -> None:
    core = make_core()
    core.add([request(1, [1, 2, 3], client_index=3)])
    run(core)
    core.counters.prefix_hits += 7
    hits = [
        (client, outputs.stats.counters and outputs.stats.counters.prefix_hits)
        for _ in range(2)
        for client, outputs in core.stats_updates([9, 3])
        if outputs.stats
    ]
    assert hits == [(3, 7), (9, None), (3, 0), (9, None)]
