"""The engine core: one step after another, schedule → execute → commit.

    schedule ── plan ──▶ submit ─ (device works) ─▶ sample ── result ──▶ commit ──▶ outputs
                             while_waiting: aborts, arrivals

No feature lives here. Its parts come by constructor, so tests pass a fake executor; `build` wires
the real ones. One thread owns it: who receives requests calls `add` and `abort` between steps, or
from `while_waiting`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.batch import RequestTable, StepPlan
from galley.config import EngineConfig
from galley.engine.ledger import BlockLedger
from galley.engine.messages import Stats
from galley.engine.outputs import ClientOutputs, Shares, Stamp, build_outputs
from galley.engine.pausing import Pausing
from galley.errors import ConfigError
from galley.kv import BlockHasher, BlockPool, KVCacheManager
from galley.observability.meter import BlockLives, Meter, Workload
from galley.observability.perfetto import Profile
from galley.observability.step_trace import StepRows, StepTrace
from galley.request import Request
from galley.scheduler import Committed, Scheduler, SchedulerLimits

if TYPE_CHECKING:
    from galley.executor.executor import Executor


log = logging.getLogger(__name__)


class EngineCore:
    """Runs steps.

    Args:
        scheduler: decides and keeps the books.
        executor: computes.
        stamp: which engine and incarnation outputs come from.

    Attributes:
        on_plan: called with handles and lengths of a plan's rows before it is submitted.
        while_waiting: called while the device works; it may `add` and `abort`.
        on_done: called when a plan has been computed and committed.
        trace: the last steps.
        pausing: whether steps are taken.
        meter: measures what is measured only when asked for.
    """

    def __init__(
        self, scheduler: Scheduler, executor: Executor, stamp: Stamp | None = None
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.stamp = stamp or Stamp()
        self.on_plan: Callable[[NDArray[np.int64], NDArray[np.int64]], None] | None = None
        self.while_waiting: Callable[[], None] | None = None
        self.on_done: Callable[[], None] | None = None
        self.trace = StepTrace()
        self.meter: Meter | None = None
        self.pausing = Pausing(scheduler, executor)
        self._profile: Profile | None = None
        self._shares = Shares()
        self._model_seconds = 0.0

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something, or tell of an end."""
        scheduler = self.scheduler
        return scheduler.has_ends if self.pausing.stopped else scheduler.has_work

    def add(self, requests: Iterable[Request]) -> None:
        """Queue requests in order of arrival; those that come during a pause are held."""
        if not self.pausing.hold(requests):
            for request in requests:
                self.scheduler.add(request)

    def abort(self, handles: Iterable[int], client_index: int = 0) -> None:
        """End a client's requests; unknown handles are ignored."""
        if self.pausing.held:
            handles = list(handles)
            self.pausing.give_up(handles, client_index)
        self.scheduler.abort(handles, client_index)

    def step(self) -> ClientOutputs:
        """Run one step: the outputs of each client concerned, possibly none."""
        begin = perf_counter()
        scheduler = self.scheduler
        before = self._counters()
        plan = None if self.pausing.stopped else scheduler.schedule()
        if plan is None:
            return build_outputs(scheduler.take_events(), self._told(), self.stamp, self._shares)
        if self.on_plan:
            table = scheduler.table
            lengths = table.num_tokens[plan.slots].astype(np.int64)
            self.on_plan(table.handles[plan.slots], lengths)
        if self.meter is not None and self.meter.workload is not None:
            num_computed = scheduler.table.num_computed[plan.slots]
            self.meter.workload.add(plan.num_new, num_computed, int(plan.num_logits.sum()))
        submit = perf_counter()
        handle = self.executor.submit(plan)
        if self.while_waiting:
            self.while_waiting()
        result = handle.sample()
        sampled = perf_counter()
        self._model_seconds += sampled - submit
        done = scheduler.commit(plan, result)
        if self.on_done:
            self.on_done()
        outputs = build_outputs(done, self._told(), self.stamp, self._shares)
        self._record(plan, done, (begin, submit, sampled, perf_counter()), before)
        return outputs

    def stats(self) -> Stats:
        """The state of queue and cache now, and counters since the start."""
        scheduler = self.scheduler
        kv = scheduler.kv
        return Stats(
            num_running=len(scheduler.running.order),
            num_waiting=scheduler.num_waiting + len(self.pausing.held),
            waiting_by_reason=scheduler.waiting_by_reason,
            kv_cache_usage=kv.usage,
            num_preemptions=scheduler.num_preemptions,
            prefix_queries=kv.stats.queries,
            prefix_hits=kv.stats.hits,
            step_tokens=scheduler.step_tokens,
            num_steps=scheduler.step,
            model_seconds=self._model_seconds,
        )

    def _told(self) -> Stats:
        """The state, with what has been measured since it was last told."""
        stats = self.stats()
        if self.meter is not None:
            self.meter.tell(stats)
        return stats

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Forget cached prefixes; False while blocks are in use (see `Scheduler`)."""
        return self.scheduler.reset_prefix_cache(reset_running_requests)

    def start_profile(self, folder: str, prefix: str = "", delay: int = 0, most: int = 0) -> None:
        """Note the steps from now on; see `Profile`. A profile under way is given up."""
        self._profile = Profile(self.trace, folder, prefix, delay, most)

    def stop_profile(self) -> str | None:
        """Write the steps noted since `start_profile`; the file's path, None without a start."""
        profile, self._profile = self._profile, None
        return None if profile is None else profile.write()

    def check_integrity(self) -> None:
        """Prove the invariants of scheduler and cache; AssertionError otherwise."""
        self.scheduler.check_integrity()

    def shutdown(self) -> None:
        self.executor.shutdown()

    def _counters(self) -> tuple[int, int, int, int]:
        scheduler, pool = self.scheduler, self.scheduler.kv.pool
        return pool.num_taken, pool.num_released, pool.num_evicted, scheduler.num_preemptions

    def _record(
        self,
        plan: StepPlan,
        done: Committed,
        times: tuple[float, float, float, float],
        before: tuple[int, int, int, int],
    ) -> None:
        scheduler, n = self.scheduler, len(plan.slots)
        taken, released, evicted, preemptions = self._counters()
        record = (
            plan.step,
            *times,
            n,
            scheduler.step_tokens,
            int(np.count_nonzero((plan.num_new == 1) & plan.samples)),
            len(scheduler.running.order),
            scheduler.num_waiting,
            taken - before[0],
            released - before[1],
            evicted - before[2],
            scheduler.kv.pool.num_free,
            preemptions - before[3],
            len(done.started),
            len(done.ended),
        )
        self.trace.record(record, StepRows(done.row_handles, plan.num_new))


def build(
    config: EngineConfig,
    executor: Executor,
    stamp: Stamp | None = None,
    workload: Workload | None = None,
    ledger: BlockLedger | None = None,
) -> EngineCore:
    """An engine core over an executor that has loaded its model and sized its KV cache.

    Args:
        config: resolved (`config.resolve`): no limit is None any more.
        executor: its num_blocks counts the null block.
        workload: counts the work of each step, where that is wanted.
        ledger: of a KV cache that outlives its engines.

    Raises:
        ConfigError: limits contradict each other, or the pool is too small for one sequence.
    """
    scheduling, cache = config.scheduler, config.cache
    assert scheduling.max_num_batched_tokens is not None, "the configuration is not resolved"
    assert scheduling.max_num_seqs is not None, "the configuration is not resolved"
    limits = SchedulerLimits(
        max_num_batched_tokens=scheduling.max_num_batched_tokens,
        max_num_seqs=scheduling.max_num_seqs,
        max_model_len=executor.max_model_len,
        enable_chunked_prefill=scheduling.enable_chunked_prefill,
        long_prefill_token_threshold=scheduling.long_prefill_token_threshold,
        mixed_prefill_tokens=scheduling.mixed_prefill_tokens or 0,
        policy=scheduling.scheduling_policy,
    )
    table = RequestTable(limits.max_num_seqs, limits.max_model_len, executor.groups)
    hasher = BlockHasher.from_environment(cache.prefix_caching_hash_algo, cache.block_size)
    observing = config.observability
    lives = BlockLives(observing.kv_cache_metrics_sample) if observing.kv_cache_metrics else None
    pool = BlockPool(executor.num_blocks, cache.enable_prefix_caching, lives)
    kv = KVCacheManager(
        table, pool, hasher, cache.enable_prefix_caching, limits.max_num_batched_tokens
    )
    if (most := kv.most_held(limits.max_model_len)) > pool.num_blocks - 1:
        room = (pool.num_blocks - 1) * kv.block_size // max(len(executor.groups), 1)
        raise ConfigError(
            f"The KV cache has {pool.num_blocks - 1} blocks of {kv.block_size} tokens, but one "
            f"sequence of --max-model-len {limits.max_model_len} tokens needs {most}. Lower "
            f"--max-model-len to {room} or raise --kv-cache-memory-bytes.",
            field="max_model_len",
        )
    core = EngineCore(Scheduler(kv, table, limits), executor, stamp)
    if lives is not None or workload is not None:
        core.meter = Meter(workload, lives)
    if ledger is not None:
        restored = ledger.attach(pool, hasher)
        if restored:
            log.info("%d KV blocks were computed before and are still there.", restored)
        core.on_done = ledger.settle
    return core
