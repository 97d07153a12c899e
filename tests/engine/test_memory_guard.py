"""Memory runs short: the KV cache shrinks, no request is lost, and it grows again afterwards."""

from __future__ import annotations

import logging

import pytest

from galley import LLM
from galley.batch import RequestTable, StepPlan
from galley.config.memory import Memory
from galley.engine.core import EngineCore
from galley.engine.memory_guard import (
    INTERVAL,
    MIB,
    SHORT_INTERVAL,
    Cache,
    MemoryGuard,
    reserve_of,
)
from galley.engine.observers import StepObserver
from tests.equality.workload import answer, params, prompts
from tests.scheduler.fakes import (
    GARBAGE,
    Collected,
    FakeExecutor,
    assert_all_free,
    expected,
    make_core,
    request,
    run,
    step,
)
from tests.small_model import small_model

BLOCK, RESERVE = 1000, 10_000
#: From here on the cache may grow: a quarter of the reserve stays between that and giving back.
GROWTH = RESERVE + RESERVE // 4
PLENTY = 10**9
LONGEST = 128 // 16


class Source:
    """As much memory as a test says."""

    def __init__(self, available: int = PLENTY) -> None:
        self.available = available
        self.stalled = 0.0
        self.reads = 0

    def read(self) -> Memory:
        self.reads += 1
        return Memory(PLENTY, self.available, self.stalled)


class Bench:
    """A core over fakes, whose 64 blocks lose their contents when they are given back."""

    def __init__(self) -> None:
        self.core: EngineCore = make_core(num_blocks=65, max_model_len=128)
        self.source = Source()
        self.given_back: list[int] = []
        cache = Cache(BLOCK, self.give_back)
        self.guard = MemoryGuard(self.core.scheduler, cache, self.source, RESERVE)
        self.pool = self.core.scheduler.kv.pool
        self.now = 0.0

    def give_back(self, blocks: list[int]) -> None:
        self.given_back += blocks
        executor = self.core.executor
        assert isinstance(executor, FakeExecutor)
        executor.kv[blocks] = GARBAGE

    def poll(self, available: int) -> None:
        self.source.available = available
        self.now += INTERVAL
        self.guard.poll(self.now)
        self.core.check_integrity()

    def squeeze(self) -> None:
        """There is nothing however much is given back."""
        for _ in range(8):
            self.poll(0)

    def compute(self, num_requests: int, max_tokens: int = 20) -> dict[int, list[int]]:
        """Requests, no two alike, and their answers; they are not run yet."""
        answers = {}
        for i in range(1, num_requests + 1):
            prompt = list(range(100 * i, 100 * i + 60))
            self.core.add([request(i, prompt, max_tokens=max_tokens)])
            answers[i] = expected(prompt, max_tokens)
        return answers

    @property
    def resident(self) -> int:
        """Blocks that take memory."""
        return 64 - self.pool.num_untouched


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_cache_grows_as_far_as_there_is_memory(bench: Bench) -> None:
    bench.poll(PLENTY)
    assert bench.pool.num_reserved == 0
    for blocks in (40, 20):
        bench.poll(GROWTH + blocks * BLOCK + BLOCK - 1)
        assert (bench.pool.num_reserved, bench.pool.num_free) == (64 - blocks, blocks)
    bench.poll(PLENTY)
    assert bench.pool.num_free == 64
    assert bench.given_back == []


def test_between_growing_and_shrinking_nothing_changes(bench: Bench) -> None:
    answers = bench.compute(2)
    assert run(bench.core).tokens == answers
    resident = bench.resident
    assert resident == 2 * 5
    for available in (GROWTH, RESERVE):
        bench.poll(available)
        assert (bench.pool.num_free, bench.given_back) == (resident, [])
    bench.poll(RESERVE - 1)
    assert (bench.pool.num_free, len(bench.given_back)) == (resident - 1, 1)


def test_blocks_are_released_except_those_of_one_longest_sequence(bench: Bench) -> None:
    bench.compute(4)
    run(bench.core)
    resident = bench.resident
    assert resident > LONGEST + 3
    bench.poll(RESERVE - 3 * BLOCK)
    assert len(set(bench.given_back)) == 3
    assert bench.pool.num_free == resident - 3
    bench.squeeze()
    assert (bench.pool.num_free, bench.pool.num_used) == (LONGEST, 0)
    bench.poll(PLENTY)
    assert bench.pool.num_free == 64


def test_running_requests_wait_and_continue_with_the_same_answers(bench: Bench) -> None:
    scheduler = bench.core.scheduler
    answers, told = bench.compute(6, max_tokens=40), Collected()
    for n in range(30):
        step(bench.core, told)
        if n in (8, 20):
            bench.squeeze()
            assert bench.pool.num_used <= LONGEST
            assert len(scheduler.running) < 3
            assert scheduler.num_waiting > 3
            assert 0.0 < bench.core.stats().kv_cache_usage <= 1.0
        if n == 14:
            bench.poll(PLENTY)
    assert scheduler.counters.num_preemptions > 0
    assert bench.given_back
    # All of them end although there is no more memory than for one at a time.
    assert run(bench.core, told).tokens == answers
    assert bench.pool.num_free == LONGEST
    bench.poll(PLENTY)
    assert_all_free(bench.core)
    assert bench.pool.num_free == 64


def test_what_did_not_fit_is_admitted_once_memory_is_back(bench: Bench) -> None:
    bench.squeeze()
    bench.compute(3, max_tokens=60)
    step(bench.core)
    assert (len(bench.core.scheduler.running), bench.core.scheduler.num_waiting) == (2, 1)
    step(bench.core)
    bench.poll(PLENTY)
    step(bench.core)
    assert (len(bench.core.scheduler.running), bench.core.scheduler.num_waiting) == (3, 0)


def test_a_stalled_machine_is_short_unless_there_is_plenty(bench: Bench) -> None:
    bench.compute(4)
    run(bench.core)
    bench.source.stalled = 0.5
    bench.poll(PLENTY)
    assert bench.pool.num_reserved == 0
    bench.poll(2 * RESERVE)
    assert len(bench.given_back) == 3  # a quarter of the reserve
    bench.source.stalled = 0.0
    bench.poll(2 * RESERVE)
    assert bench.pool.num_free > bench.resident


def test_the_begin_and_the_end_of_load_shedding_are_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    states = []
    for available in (PLENTY, RESERVE, 0, RESERVE, GROWTH, PLENTY, PLENTY):
        bench.poll(available)
        states.append(bench.guard.short)
    assert states == [False, True, True, True, True, False, False]
    said = [record.getMessage() for record in caplog.records]
    assert [message.split(":")[0] for message in said] == ["Memory runs short", "Memory is back"]


def test_memory_is_polled_more_often_when_it_is_nearly_short(bench: Bench) -> None:
    guard, source = bench.guard, bench.source
    before = source.reads
    for _ in range(100):
        guard.poll(1.0)
    assert source.reads == before + 1
    guard.poll(1.0 + INTERVAL)
    source.available = 2 * RESERVE
    guard.poll(1.0 + 2 * INTERVAL)
    guard.poll(1.0 + 2 * INTERVAL + SHORT_INTERVAL)
    assert source.reads == before + 4


def test_the_reserve(bench: Bench) -> None:
    assert [reserve_of(gib * 1024 * MIB) // MIB for gib in (1, 16, 1000)] == [64, 327, 1024]
    source = Source(0)
    never = MemoryGuard(bench.core.scheduler, Cache(BLOCK, bench.give_back), source, 0)
    never.poll(1.0)
    assert bench.pool.num_reserved == 0


def test_a_real_model_releases_memory_and_answers_the_same() -> None:
    wanted = list(zip(prompts(24), params(24), strict=True))
    common = {"max_model_len": 512, "kv_cache_memory_bytes": 128 << 20, "max_num_seqs": 24}

    def answers(llm: LLM) -> list[object]:
        texts, sampling = [text for text, _ in wanted], [p for _, p in wanted]
        return [answer(o) for o in llm.generate(texts, sampling, use_tqdm=False)]

    with LLM(str(small_model()), **common) as llm:
        undisturbed = answers(llm)
    with LLM(str(small_model()), **common) as llm:
        core = llm._core
        assert core.guard is not None
        source, steps, seen = Source(), iter(range(10**6)), set()
        core.guard.source = source

        class Shift(StepObserver):
            def planned(self, plan: StepPlan, table: RequestTable) -> None:
                source.available = (0, 1 << 40)[next(steps) // 6 % 2]
                core.guard._next = 0.0
                seen.add((core.guard.short, core.stats().reserved_blocks > 0))

        core.observers.append(Shift())
        assert answers(llm) == undisturbed
        assert core.scheduler.counters.num_preemptions > 0
        assert seen == {(False, False), (True, True)}
        core.idle_tasks.run([])
