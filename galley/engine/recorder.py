"""Records each step of an engine core in its trace."""

from __future__ import annotations

import logging

import numpy as np

from galley.batch import StepPlan
from galley.observability.step_trace import StepRows, StepTrace
from galley.scheduler import CommittedStep, Scheduler

log = logging.getLogger(__name__)


class StepRecorder:
    """`begin` before a step is planned, `end` when it is committed.

    Attributes:
        logs: also log each step.
    """

    def __init__(self, scheduler: Scheduler, trace: StepTrace) -> None:
        self._scheduler = scheduler
        self._trace = trace
        self.logs = False
        self._before = self._counters()

    def begin(self) -> None:
        self._before = self._counters()

    def end(
        self, plan: StepPlan, done: CommittedStep, times: tuple[float, float, float, float]
    ) -> None:
        """Record a step; `times` are its begin, submission, result and end (`perf_counter`)."""
        scheduler, n = self._scheduler, len(plan.slots)
        before = self._before
        taken, released, evicted, preemptions = self._counters()
        record = (
            plan.step,
            *times,
            n,
            scheduler.step_tokens,
            int(np.count_nonzero(plan.num_new == plan.num_sampled)),
            len(done.token_ids),
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
        started = [
            (s.handle, s.num_cached_tokens, s.queued_time, s.scheduled_time, s.resumed)
            for s in done.started
        ]
        ended = [(e.handle, str(e.reason)) for e in done.ended]
        rows = StepRows(done.row_handles, plan.num_new, plan.num_sampled, started, ended)
        self._trace.record(record, rows)
        if self.logs:
            self._log(plan, times[3] - times[0])

    def _log(self, plan: StepPlan, seconds: float) -> None:
        decoding = int(np.count_nonzero(plan.num_new == 1))
        log.info(
            "Iteration(%d): %d context requests, %d context tokens, %d generation requests, %d "
            "generation tokens, iteration elapsed time: %.2f ms, KV cache usage: %.1f%%",
            plan.step,
            len(plan.slots) - decoding,
            self._scheduler.step_tokens - decoding,
            decoding,
            decoding,
            seconds * 1000,
            self._scheduler.kv.usage * 100,
        )

    def _counters(self) -> tuple[int, int, int, int]:
        scheduler, pool = self._scheduler, self._scheduler.kv.pool
        return (
            pool.num_allocated,
            pool.num_freed,
            pool.num_evicted,
            scheduler.counters.num_preemptions,
        )
