"""The live view of an engine: its last steps, and the current state of scheduler and cache.

A client asks for it by name, between two steps, with the last step that it has seen: it gets what
came after, and keeps whatever history it wants. Nothing is recorded for it beside the step trace,
so it costs nothing without a watcher. It holds no text and no token.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.scheduler.queue import CAPACITY

if TYPE_CHECKING:
    from galley.engine.core import EngineCore
    from galley.scheduler import Scheduler
    from galley.scheduler.sequence import Sequence

#: Most steps in a view; the newest ones. A client that asks more often than once in so many misses
#: none.
MAX_STEPS = 512
#: Most waiting requests that are listed for each reason.
MAX_WAITING = 64
#: Columns of the step trace that are passed on as they are.
_COUNTS = (
    *("step", "num_tokens", "num_decodes", "num_output", "num_running", "num_waiting"),
    *("blocks_taken", "blocks_released", "blocks_evicted", "blocks_free", "preemptions"),
)


class Rows(msgspec.Struct):
    """The rows of all steps of a view, one after the other.

    Attributes:
        counts: rows of each step.
        handles, tokens, sampled: of each row; see `StepRows`.
        started, ended: the events of `StepRows`, with the step before them.
    """

    counts: list[int] = []
    handles: list[int] = []
    tokens: list[int] = []
    sampled: list[int] = []
    started: list[tuple[int, int, int, float, float, bool]] = []
    ended: list[tuple[int, int, str]] = []


class RunningRequest(msgspec.Struct):
    """A sequence in a slot. `blocks` are its block ids in order of position, for each KV group."""

    handle: int
    request_id: str
    slot: int
    num_prompt: int
    num_tokens: int
    num_computed: int
    num_preemptions: int
    blocks: list[list[int]]


class WaitingRequest(msgspec.Struct):
    """A sequence in the queue. `queued` is the time of its arrival, in seconds since the epoch."""

    handle: int
    request_id: str
    reason: str
    num_prompt: int
    num_tokens: int
    queued: float
    num_preemptions: int


class Limits(msgspec.Struct):
    """Sizes that do not change. `num_blocks` leaves out the null block, which has the id 0."""

    block_size: int
    num_blocks: int
    groups: list[str]
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


class LiveView(msgspec.Struct):
    """The result of one call of `live_view`.

    Attributes:
        now: seconds since the epoch, to which all other times refer.
        begin: of each step, seconds since the epoch.
        schedule, execute, commit: of each step, microseconds.
        columns: other columns of the step trace by name.
        cached: bit i says that the block of id i is free and in the prefix index (`np.packbits`).
        num_waiting: by reason, those that are not listed included.
        counters: since the engine's start.
        memory: bytes of the process that are resident; of weights, activations and the KV cache.
    """

    engine: int
    epoch: int
    now: float
    limits: Limits
    begin: list[float]
    schedule: list[int]
    execute: list[int]
    commit: list[int]
    columns: dict[str, list[int]]
    rows: Rows
    running: list[RunningRequest]
    waiting: list[WaitingRequest]
    num_waiting: dict[str, int]
    blocks_used: int
    blocks_reserved: int
    cached: bytes
    counters: dict[str, int]
    memory: dict[str, int]
    paused: bool


def live_view(core: EngineCore, epoch: int, step: int) -> LiveView:
    """The steps after `step`, and the current state.

    Args:
        epoch, step: what the caller has seen last: a step of this incarnation. Of another one, or
            for a negative step, it gets the last `MAX_STEPS` steps.
    """
    scheduler, trace = core.scheduler, core.trace
    known = step if epoch == core.engine_id.epoch and 0 <= step <= trace.last else None
    first = trace.last - MAX_STEPS
    records = trace.since(first if known is None else max(known, first))
    now = time.time()
    offset = now - time.perf_counter()
    counters, pool = core.counters, scheduler.kv.pool
    return LiveView(
        engine=core.engine_id.engine_index,
        epoch=core.engine_id.epoch,
        now=now,
        limits=_limits(scheduler),
        begin=np.round(records["begin"] + offset, 6).tolist(),
        schedule=_microseconds(records, "begin", "submit"),
        execute=_microseconds(records, "submit", "sampled"),
        commit=_microseconds(records, "sampled", "end"),
        columns={name: records[name].tolist() for name in _COUNTS},
        rows=_rows(core, records["step"].tolist()),
        running=_running(scheduler),
        waiting=_waiting(scheduler),
        num_waiting=scheduler.waiting_by_reason,
        blocks_used=pool.num_used,
        blocks_reserved=pool.num_reserved,
        cached=_bits(pool.cached, pool.num_blocks),
        counters={
            "preemptions": counters.num_preemptions,
            "prefix_queries": counters.prefix_queries,
            "prefix_hits": counters.prefix_hits,
        },
        memory={"resident": _resident(), **(core.executor.rpc("memory")[0] or {})},
        paused=core.pausing.stopped,
    )


def _limits(scheduler: Scheduler) -> Limits:
    kv, limits = scheduler.kv, scheduler.limits
    return Limits(
        block_size=kv.block_size,
        num_blocks=kv.pool.num_blocks - 1,
        groups=[group.kind for group in scheduler.table.groups],
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
    )


def _microseconds(records: NDArray[np.void], begin: str, end: str) -> list[int]:
    spans: list[int] = np.rint((records[end] - records[begin]) * 1e6).astype(np.int64).tolist()
    return spans


def _rows(core: EngineCore, steps: list[int]) -> Rows:
    rows = Rows()
    found = [(step, of) for step in steps if (of := core.trace.rows_of(step)) is not None]
    if not found:
        return rows
    rows.counts = [len(of.handles) for _, of in found]
    rows.handles = np.concatenate([of.handles for _, of in found]).tolist()
    rows.tokens = np.concatenate([of.num_new for _, of in found]).tolist()
    rows.sampled = np.concatenate([of.num_sampled for _, of in found]).tolist()
    rows.started = [(step, *start) for step, of in found for start in of.started]
    rows.ended = [(step, *end) for step, of in found for end in of.ended]
    return rows


def _running(scheduler: Scheduler) -> list[RunningRequest]:
    table, running = scheduler.table, scheduler.running
    order = running.order
    columns = (table.num_prompt, table.num_tokens, table.num_computed)
    lengths = [column[order].tolist() for column in columns]
    held = table.num_blocks[:, order].T.tolist()
    return [
        RunningRequest(
            running.at(slot).request.handle,
            running.at(slot).request.request_id,
            slot,
            prompt,
            tokens,
            computed,
            running.at(slot).num_preemptions,
            [table.block_tables[g, slot, :n].tolist() for g, n in enumerate(counts)],
        )
        for slot, prompt, tokens, computed, counts in zip(
            order.tolist(), *lengths, held, strict=True
        )
    ]


def _waiting(scheduler: Scheduler) -> list[WaitingRequest]:
    queue = scheduler.queue
    listed = [_waits(seq, CAPACITY) for seq in islice(queue, MAX_WAITING)]
    for reason in queue.num_by_reason:
        listed += [_waits(seq, reason) for seq in queue.parked_for(reason)[:MAX_WAITING]]
    return listed


def _waits(seq: Sequence, reason: str) -> WaitingRequest:
    return WaitingRequest(
        seq.request.handle,
        seq.request.request_id,
        reason,
        seq.num_prompt,
        len(seq.token_ids),
        seq.queued_time,
        seq.num_preemptions,
    )


def _resident() -> int:
    """Bytes of this process in memory, shared ones included."""
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _bits(ids: Collection[int], size: int) -> bytes:
    mask = np.zeros(size, np.bool_)
    mask[np.fromiter(ids, np.int64, len(ids))] = True
    return np.packbits(mask, bitorder="little").tobytes()
