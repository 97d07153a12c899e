"""The engine core: one step after another, schedule → execute → commit.

    schedule ── plan ──▶ submit ── while_waiting ──▶ sample ── result ──▶ commit ──▶ outputs
                                   aborts, arrivals

No feature lives here. Its parts are passed to the constructor, so tests pass a fake executor;
`build_core` wires the real ones. One thread owns it and calls `add` and `abort` between steps or
from `while_waiting`: once a step, after `submit` and before the result is committed. An executor
that computes in the background leaves this time to the caller. On a CPU all cores compute, so
`submit` of the local executor returns when the step is computed, and `while_waiting` adds to its
time. Either way, an arrival is in the queue of the next step, and an abort drops the tokens of this
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import sub
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from galley.engine.idle_tasks import IdleTasks
from galley.engine.memory_guard import MemoryGuard
from galley.engine.observers import StepObserver
from galley.engine.outputs import ClientOutputs, EngineId, build_outputs, build_stats_updates
from galley.engine.pausing import Pausing
from galley.engine.recorder import StepRecorder
from galley.messages import Counters, Stats
from galley.observability.meter import BlockLifetimes
from galley.observability.perfetto import Profile
from galley.observability.step_trace import StepTrace
from galley.request import Request
from galley.scheduler import CommittedStep, Scheduler

if TYPE_CHECKING:
    from galley.engine.live_view import LiveView
    from galley.engine.step_profile import OperationTimes, StepProfile
    from galley.executor.executor import Executor
    from galley.structured.sequences import ConstrainedSequences


class Core(Protocol):
    """The interface of an engine core, for its process and for `InprocClient`."""

    executor: Any
    pausing: Any
    idle_tasks: Any
    observers: list[StepObserver]
    while_waiting: Callable[[], None] | None

    @property
    def has_work(self) -> bool: ...
    def add(self, requests: Iterable[Request]) -> None: ...
    def abort(self, handles: Iterable[int], client_index: int = 0) -> None: ...
    def step(self) -> ClientOutputs: ...
    def on_compiled(self, notify: Callable[[], None]) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def shutdown(self) -> None: ...


class EngineCore:
    """Runs steps.

    Args:
        scheduler: plans steps and keeps the state of requests.
        executor: computes.
        engine_id: which engine and incarnation outputs come from.

    Attributes:
        observers: notified of each step.
        while_waiting: called between submit and sample; it may `add` and `abort`.
        counters: what this engine counts, from its start on.
        block_lifetimes: measures lifetimes of cached blocks, with --kv-cache-metrics.
        trace: the last steps.
        recorder: writes them.
        pausing: whether steps are taken.
        guard: sheds load before memory runs out.
        idle_tasks: to be run while there is no work.
        open_constrained: makes `constrained` when it is first needed; None where no request can
            have a constraint.
    """

    def __init__(
        self, scheduler: Scheduler, executor: Executor, engine_id: EngineId | None = None
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.engine_id = engine_id or EngineId()
        self.observers: list[StepObserver] = []
        self.while_waiting: Callable[[], None] | None = None
        self.counters = scheduler.counters
        self.block_lifetimes: BlockLifetimes | None = None
        self.trace = StepTrace()
        self.recorder = StepRecorder(scheduler, self.trace)
        self.pausing = Pausing(scheduler, executor, self._queue)
        self.guard: MemoryGuard | None = None
        self.idle_tasks = IdleTasks(self)
        self.open_constrained: Callable[[], ConstrainedSequences] | None = None
        self._constrained: ConstrainedSequences | None = None
        self._notify: Callable[[], None] | None = None
        self._profile: Profile | None = None
        self._operations: StepProfile | None = None
        self._sent = msgspec.structs.astuple(self.counters)
        self._model_seconds = 0.0

    @property
    def constrained(self) -> ConstrainedSequences:
        """The sequences with a constraint."""
        if self._constrained is None:
            assert self.open_constrained is not None, "this engine has no vocabulary"
            self._constrained = self.open_constrained()
            self._constrained.compiler.wake = self._notify
        return self._constrained

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something or report an end."""
        scheduler, constrained = self.scheduler, self._constrained
        if self.pausing.stopped:
            return scheduler.has_ends
        return scheduler.has_work or (constrained is not None and constrained.has_settled)

    def add(self, requests: Iterable[Request]) -> None:
        """Queue requests in order of arrival; those that arrive during a pause are held."""
        if not self.pausing.hold(requests):
            for request in requests:
                self._queue(request)

    def _queue(self, request: Request) -> None:
        """Queue a request, or park it while its constraint compiles."""
        parked = None
        if request.constraint is not None:
            parked = self.constrained.arrive(request)
        self.scheduler.add(request, parked)

    def abort(self, handles: Iterable[int], client_index: int = 0) -> None:
        """Abort a client's requests; unknown handles are ignored."""
        if self.pausing.held:
            handles = list(handles)
            self.pausing.release_held(handles, client_index)
        self.scheduler.abort(handles, client_index)

    def step(self) -> ClientOutputs:
        """Run one step. Returns the outputs of each client that has any."""
        begin = perf_counter()
        scheduler, stopped = self.scheduler, self.pausing.stopped
        if self.guard is not None and not stopped:
            self.guard.poll(begin)
        self.recorder.begin()
        constrained = self._constrained or None
        if constrained is not None and constrained.has_settled:
            self._settle(constrained)
        plan = None if stopped else scheduler.schedule()
        if plan is None:
            events = scheduler.take_events()
            self._forget(events)
            return build_outputs(events, self._stats_update, self.engine_id)
        if constrained is not None:
            constrained.plan(plan)
        for observer in self.observers:
            observer.planned(plan, scheduler.table)
        submit = perf_counter()
        handle = self.executor.submit(plan)
        if self.while_waiting:
            self.while_waiting()
        result = handle.sample(None if constrained is None else constrained.masks(plan))
        sampled = perf_counter()
        self._model_seconds += sampled - submit
        scheduler.record_time(sampled - submit)
        if constrained is not None:
            constrained.advance(plan, result, scheduler.table)
        done = scheduler.commit(plan, result)
        self._forget(done)
        self.counters.num_steps += 1
        for observer in self.observers:
            observer.committed()
        outputs = build_outputs(done, self._stats_update, self.engine_id)
        self.recorder.end(plan, done, (begin, submit, sampled, perf_counter()))
        return outputs

    def _settle(self, constrained: ConstrainedSequences) -> None:
        """Queue the sequences whose constraint has been compiled; end those where it cannot be."""
        for (client_index, handle), error in constrained.settle():
            if error is None:
                self.scheduler.unpark(handle, client_index)
            else:
                self.scheduler.fail(handle, error, client_index)

    def _forget(self, done: CommittedStep) -> None:
        """Drop what is kept of constrained sequences that have ended."""
        if done.ended and self._constrained:
            self._constrained.end((end.client_index, end.handle) for end in done.ended)

    def on_compiled(self, notify: Callable[[], None]) -> None:
        """Have `notify` called, in a thread, when there may be work because a constraint has been
        compiled.
        """
        self._notify = notify
        if self._constrained is not None:
            self._constrained.compiler.wake = notify

    def wait(self, seconds: float) -> None:
        """Sleep while constraints compile and nothing else can be done."""
        if self._constrained is not None and not self.has_work:
            self._constrained.compiler.wait(seconds)

    def stats(self) -> Stats:
        """The state of queue and cache now, without counters."""
        scheduler = self.scheduler
        kv = scheduler.kv
        return Stats(
            num_running=len(scheduler.running.order),
            num_waiting=scheduler.num_waiting + len(self.pausing.held),
            waiting_by_reason=scheduler.waiting_by_reason,
            kv_cache_usage=kv.usage,
            step_tokens=scheduler.step_tokens,
            model_seconds=self._model_seconds,
            memory_short=self.guard is not None and self.guard.short,
            reserved_blocks=kv.pool.num_reserved,
        )

    def _stats_update(self) -> Stats:
        """The state now, and what has been counted and measured since the last call."""
        stats = self.stats()
        counted = msgspec.structs.astuple(self.counters)
        stats.counters = Counters(*map(sub, counted, self._sent))
        self._sent = counted
        stats.drafts = self.scheduler.draft_counts.take()
        if self.block_lifetimes is not None:
            stats.block_times = self.block_lifetimes.take()
        return stats

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Clear the prefix cache; False while blocks are in use (see `Scheduler`)."""
        return self.scheduler.reset_prefix_cache(reset_running_requests)

    def start_profile(self, folder: str, prefix: str = "", delay: int = 0, most: int = 0) -> None:
        """Record steps from now on; see `Profile`. A running profile is discarded."""
        self._profile = Profile(self.trace, folder, prefix, delay, most)

    def stop_profile(self) -> str | None:
        """Write the steps since `start_profile`. Returns the file's path, None without a start."""
        profile, self._profile = self._profile, None
        return None if profile is None else profile.write()

    def live_view(self, epoch: int, step: int) -> LiveView:
        """The steps after `step` of the incarnation `epoch`, and the current state."""
        from galley.engine.live_view import live_view  # only while somebody looks

        return live_view(self, epoch, step)

    def profile_operations(self, most: int) -> None:
        """Time each operation of the next steps, at most `most` of them."""
        from galley.engine.step_profile import StepProfile  # only while somebody looks

        self.operation_times()
        self._operations = StepProfile(self.executor, most)
        self.observers.append(self._operations)

    def has_timed_operations(self) -> bool:
        """Whether this profile has all its steps, or there is none."""
        return self._operations is None or self._operations.complete

    def operation_times(self) -> OperationTimes | None:
        """End this profile; None if there was none."""
        profile, self._operations = self._operations, None
        if profile is None:
            return None
        self.observers.remove(profile)
        return profile.stop()

    def check_integrity(self) -> None:
        """Check the invariants of scheduler and cache. Raises AssertionError."""
        self.scheduler.check_integrity()

    def stats_updates(self, clients: Iterable[int]) -> ClientOutputs:
        """The present state for each of these clients, apart from any step."""
        return build_stats_updates(clients, self._stats_update, self.engine_id)

    def shutdown(self) -> None:
        if self._constrained is not None:
            self._constrained.compiler.close()
        self.executor.shutdown()
