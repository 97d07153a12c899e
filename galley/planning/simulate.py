"""The real scheduler, driven with step times from the planner's model instead of a device.

A simulated second costs what scheduling costs. The same classes schedule as in a server:
admission, chunks, budget, preemption, `--target-itl`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np

from galley.batch import GroupSpec, RequestTable, StepPlan, StepResult
from galley.config import CacheConfig, EngineConfig, SchedulerConfig
from galley.config.cores import usable_cores
from galley.engine.build import build_core
from galley.engine.core import EngineCore
from galley.planning.step import StepLoad
from galley.request import Request, SamplingParams

#: CPU seconds of a front end for a step, for each token that it streams, and for a request, where
#: the engine's host part of a step with one row takes `_HOST` (docs/performance.md, S9 and S7).
_FRONT_END_STEP, _FRONT_END_TOKEN, _FRONT_END_REQUEST, _HOST = 120e-6, 20e-6, 6e-4, 24e-6


class Workload(msgspec.Struct, frozen=True):
    """Requests of one size.

    Attributes:
        prompt, output: tokens of each.
        concurrency: clients that send their next request when the last one is answered.
        rate: requests per second that arrive, at random; 0 = as `concurrency` says.
        shared: tokens at the beginning of all prompts that are the same.
        requests: how many; 0 = enough for a steady state.
        batching: "static" begins a batch when all answers of the last one have ended.
    """

    prompt: int = 512
    output: int = 128
    concurrency: int = 8
    rate: float = 0.0
    shared: int = 0
    requests: int = 0
    batching: Literal["continuous", "static"] = "continuous"

    @property
    def num_requests(self) -> int:
        if self.requests:
            return self.requests
        return min(max(64, int(20 * self.rate)), 400) if self.rate else max(3 * self.concurrency, 4)


class SimulatedStep(msgspec.Struct, frozen=True):
    """Attributes:
    begin, seconds: of simulated time.
    rows: (request, tokens computed before, tokens of this step) of each.
    waiting: requests in the queue after it was planned.
    free_blocks: of the KV cache.
    """

    begin: float
    seconds: float
    rows: list[tuple[int, int, int]]
    waiting: int
    free_blocks: int


class Simulation(msgspec.Struct, frozen=True):
    """Attributes:
    arrivals, firsts, ends: [requests] seconds at which each came, had its first and last token.
    gaps: seconds between two tokens of a request, all requests together.
    steps: as they were run, if they were asked for.
    preemptions: how often a sequence lost its blocks.
    """

    arrivals: list[float]
    firsts: list[float]
    ends: list[float]
    gaps: list[float]
    steps: list[SimulatedStep]
    preemptions: int
    tokens: int

    @property
    def seconds(self) -> float:
        return max(self.ends) - min(self.arrivals)


class StandIn:
    """An executor (`executor.Executor`) that computes nothing: token 7 for every row that samples.

    Args:
        num_blocks: of the KV cache, the null block among them.
    """

    batch_invariant = True
    lookahead = max_drafts = 0

    def __init__(
        self, groups: list[GroupSpec], num_blocks: int, max_num_seqs: int, max_model_len: int
    ) -> None:
        self.groups = groups
        self.max_model_len = max_model_len
        self.num_blocks = num_blocks
        self.table = RequestTable(max_num_seqs, max_model_len, self.groups)
        self.tokens = np.full(max_num_seqs, 7, np.int32)
        self.plan: StepPlan | None = None

    def submit(self, plan: StepPlan) -> StandIn:
        self.table.apply_plan(plan)
        self.plan = plan
        return self

    def sample(self, mask: Any = None) -> StepResult:
        assert self.plan is not None
        result = self.result(self.plan)
        self.table.apply_result(self.plan, result)
        return result

    def result(self, plan: StepPlan) -> StepResult:
        counts = plan.num_sampled
        return StepResult(plan.step, counts, self.tokens[: np.count_nonzero(counts)])

    def rpc(self, method: str, *args: Any) -> list[Any]:
        return []

    def shutdown(self) -> None:
        pass


def simulate(
    config: EngineConfig,
    executor: StandIn,
    seconds: Callable[[StepLoad], float],
    workload: Workload,
    request_seconds: float = 0.0,
    request_delay: float = 0.0,
    keep_steps: bool = False,
) -> Simulation:
    """Run a workload.

    Args:
        config: resolved.
        executor: with the groups and blocks of the model's KV cache.
        seconds: of a step.
        request_seconds: of the front end, which takes one request after the other.
        request_delay: more seconds between the client and the engine, for all requests alike.
    """
    core = build_core(config, executor)
    scheduler, table = core.scheduler, core.scheduler.table
    _warm_up(core, executor, seconds, workload)
    requests = _Requests(workload, request_seconds, request_delay)
    count = workload.num_requests
    firsts, last, ends = [0.0] * count, [0.0] * count, [0.0] * count
    arrivals, gaps, steps = [0.0] * count, [], []
    tokens, now = 0, 0.0
    while requests.left or scheduler.has_work:
        for index, arrival, ready in requests.due(now, idle=not scheduler.has_work):
            now = max(now, ready)
            arrivals[index] = arrival
            core.add([requests.make(index)])
        plan = scheduler.schedule()
        if plan is None:
            break
        took = seconds(_step_load(plan, table))
        if keep_steps:
            computed = table.num_computed[plan.slots]
            rows = zip(plan.handles.tolist(), computed.tolist(), plan.num_new.tolist(), strict=True)
            free = scheduler.kv.pool.num_free
            steps.append(SimulatedStep(now, took, list(rows), scheduler.num_waiting, free))
        now += took
        sampled = plan.num_sampled > 0
        scheduler.record_time(took)
        done = scheduler.commit(plan, executor.result(plan))
        tokens += int(sampled.sum())
        for handle in plan.handles[sampled].tolist():
            if last[handle]:
                gaps.append(now - last[handle])
            else:
                firsts[handle] = now
            last[handle] = now
        for end in done.ended:
            ends[end.handle] = now
            requests.ended(now)
    return Simulation(arrivals, firsts, ends, gaps, steps, core.counters.num_preemptions, tokens)


def _step_load(plan: StepPlan, table: RequestTable) -> StepLoad:
    computed = table.num_computed[plan.slots]
    return StepLoad.of(computed, plan.num_new, int(plan.num_logits.sum()))


def _warm_up(
    core: EngineCore, executor: StandIn, seconds: Callable[[StepLoad], float], workload: Workload
) -> None:
    """Serve a request of two tokens with a prompt of its own: a server's scheduler has measured
    steps before the load begins, and inserts none to measure a lone decoding row.
    """
    scheduler, table = core.scheduler, core.scheduler.table
    load = msgspec.structs.replace(workload, shared=0, output=min(workload.output, 2))
    core.add([_Requests(load, seed=1).make(0)])
    while (plan := scheduler.schedule()) is not None:
        scheduler.record_time(seconds(_step_load(plan, table)))
        scheduler.commit(plan, executor.result(plan))


class _Requests:
    """When requests arrive, and what they are."""

    def __init__(
        self,
        workload: Workload,
        request_seconds: float = 0.0,
        request_delay: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._load, self._delay = workload, request_delay
        self._each, self._free = request_seconds, 0.0  # of the front end: when it is free again
        count = workload.num_requests
        self._next, self._running = 0, 0
        self._times: list[float] | None = None
        rng = np.random.default_rng(seed)
        self._tokens = rng.integers(10, 30000, workload.shared, dtype=np.int32)
        self._rng = rng
        if workload.rate:
            self._times = np.cumsum(rng.exponential(1 / workload.rate, count)).tolist()
        self._open: deque[float] = deque([0.0] * min(workload.concurrency, count))

    @property
    def left(self) -> bool:
        return self._next < self._load.num_requests

    def due(self, now: float, idle: bool) -> list[tuple[int, float, float]]:
        """(number, time of arrival, time at which the engine has it) of the requests that have
        come to the engine; if idle, at least the next one."""
        found: list[tuple[int, float, float]] = []
        times = self._open if self._times is None else self._times[self._next :]
        static = self._load.batching == "static"
        if static and self._running:
            return []
        for at in list(times):
            done = max(at, self._free) + self._each
            ready = done + self._delay
            if not self.left or (ready > now and not (idle and not found)):
                break
            found.append((self._next, at, ready))
            now = max(now, ready)  # if idle: others may come at the same time
            self._free = done
            self._next += 1
            self._running += 1
            if self._times is None:
                self._open.popleft()
        return found

    def ended(self, now: float) -> None:
        self._running -= 1
        if self._times is None:
            self._open.append(now)

    def make(self, index: int) -> Request:
        load = self._load
        own = self._rng.integers(10, 30000, load.prompt - load.shared, dtype=np.int32)
        prompt = np.concatenate((self._tokens, own))
        return Request(
            handle=index,
            request_id=str(index),
            prompt_token_ids=prompt.astype(np.int32).tobytes(),
            params=SamplingParams(max_tokens=load.output, seed=0),
            max_total_tokens=load.prompt + load.output,
            eos_token_ids=[2],
        )


class HostTimes(msgspec.Struct, frozen=True):
    """Attributes:
    step, row: seconds of a step's host part, and for each of its rows.
    request: of the front end, for a request.
    """

    step: float
    row: float
    request: float


def host_times(threads: int) -> HostTimes:
    """The host's times, measured with a `StandIn`.

    A front end streams the tokens. It is taken to be as much slower than where it was measured as
    the engine's host part is. If all cores compute, a step waits for it: the tile of the thread
    that it displaces is the last to be done.
    """
    few, many = _step_seconds(1), _step_seconds(64)
    slower = few / _HOST
    waits = slower if threads >= usable_cores() else 0.0
    return HostTimes(
        step=few + waits * _FRONT_END_STEP,
        row=max(many - few, 0.0) / 63 + waits * _FRONT_END_TOKEN,
        request=_FRONT_END_REQUEST * slower,
    )


def _step_seconds(running: int, steps: int = 200) -> float:
    """The host's median seconds of a decode step."""
    length = 64 + steps + 8
    max_len = -(-length // 16) * 16
    config = EngineConfig(
        cache=CacheConfig(block_size=16),
        scheduler=SchedulerConfig(max_num_batched_tokens=8192, max_num_seqs=running),
    )
    blocks = 1 + running * max_len // 16
    core = build_core(config, StandIn([GroupSpec("full", 16, 64)], blocks, running, max_len))
    requests = _Requests(Workload(64, steps + 4, running))
    core.add([requests.make(i) for i in range(running)])
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        core.step()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))
