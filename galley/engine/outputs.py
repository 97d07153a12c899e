"""Turns a committed step into messages: columns as bytes, one `Outputs` per client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import msgspec
import numpy as np

from galley.batch import LogprobColumns
from galley.messages import Finished, Logprobs, Outputs, Started, Stats
from galley.scheduler import CommittedStep, SequenceEnd

ClientOutputs = list[tuple[int, Outputs]]


class EngineId(msgspec.Struct, frozen=True):
    """The engine that outputs come from: its index and its incarnation."""

    engine_index: int = 0
    epoch: int = 0


def build_outputs(
    done: CommittedStep, stats: Callable[[], Stats], engine_id: EngineId
) -> ClientOutputs:
    """One message per client that had a row in the step, or an event since the last.

    Handles are int64, counts and token ids int32, little-endian bytes (`galley.messages`).

    Args:
        stats: called if there is any message; the first client gets the counters in it.
    """
    clients = done.row_clients
    one_client = not len(clients) or not np.count_nonzero(clients != clients[0])
    if one_client and not done.started and not done.ended:
        if not len(clients):
            return []
        return [(int(clients[0]), _for_one_client(done, stats(), engine_id))]
    recipients = {*np.unique(clients).tolist()}
    recipients.update(s.client_index for s in done.started)
    recipients.update(e.client_index for e in done.ended)
    return [
        (client, _for_one_client(_part_of(done, client), part, engine_id))
        for client, part in _split_stats(recipients, stats)
    ]


def build_stats_updates(
    clients: Iterable[int], stats: Callable[[], Stats], engine_id: EngineId
) -> ClientOutputs:
    """A message with `stats` alone for each client; the first gets the counters in it."""
    return [
        (client, _for_one_client(CommittedStep(), part, engine_id))
        for client, part in _split_stats(clients, stats)
    ]


def _split_stats(clients: Iterable[int], stats: Callable[[], Stats]) -> Iterator[tuple[int, Stats]]:
    """Clients in order, each with its part of the statistics: counters go to the first alone."""
    recipients = sorted(clients)
    if not recipients:
        return
    whole = stats()
    yield recipients[0], whole
    if len(recipients) > 1:
        rest = msgspec.structs.replace(whole, counters=None, block_times=[], drafts=None)
        yield from ((client, rest) for client in recipients[1:])


def _for_one_client(done: CommittedStep, stats: Stats, engine_id: EngineId) -> Outputs:
    handles, drafts = done.row_handles, done.drafts
    if done.rows is not None:
        handles = handles[done.rows]
        drafts = drafts[done.rows] if len(drafts) else drafts
    return Outputs(
        step=done.step,
        epoch=engine_id.epoch,
        engine_index=engine_id.engine_index,
        timestamp=time.time(),
        handles=handles.tobytes() if len(done.token_ids) else b"",
        counts=done.counts.tobytes(),
        token_ids=done.token_ids.tobytes(),
        drafts=drafts.tobytes() if len(done.token_ids) else b"",
        logprobs=_logprobs(done.logprobs, done),
        prompt_logprobs=_logprobs(done.prompt_logprobs, done),
        started=[
            Started(s.handle, s.num_cached_tokens, s.queued_time, s.scheduled_time, s.resumed)
            for s in done.started
        ]
        if done.started
        else [],
        finished=[_finished(end) for end in done.ended] if done.ended else [],
        stats=stats,
    )


def _finished(end: SequenceEnd) -> Finished:
    pooled, columns = None, 0
    if end.pooled is not None:
        pooled = end.pooled.tobytes()
        columns = end.pooled.shape[1] if end.pooled.ndim > 1 else 0
    return Finished(end.handle, int(end.reason), end.stop_reason, end.error, pooled, columns)


def _logprobs(columns: LogprobColumns | None, done: CommittedStep) -> Logprobs | None:
    if columns is None or not len(columns.rows):
        return None
    return Logprobs(
        handles=done.row_handles[columns.rows].tobytes(),
        positions=columns.positions.tobytes(),
        ranks=columns.ranks.tobytes(),
        indptr=columns.indptr.tobytes(),
        token_ids=columns.token_ids.tobytes(),
        logprobs=columns.logprobs.tobytes(),
    )


def _part_of(done: CommittedStep, client: int) -> CommittedStep:
    """The rows and events of one client; logprobs keep naming rows of the whole plan."""
    rows = np.arange(len(done.row_handles)) if done.rows is None else done.rows
    mine = done.row_clients[rows] == client
    token_mask = np.repeat(mine, done.counts) if len(done.counts) else mine
    if not len(done.token_ids):
        token_mask = mine = mine[:0]
        rows = rows[:0]
    return CommittedStep(
        step=done.step,
        row_handles=done.row_handles,
        row_clients=done.row_clients,
        rows=rows[mine],
        counts=done.counts[mine] if len(done.counts) else done.counts,
        token_ids=done.token_ids[token_mask],
        drafts=done.drafts,
        logprobs=_entries_of(done.logprobs, done, client),
        prompt_logprobs=_entries_of(done.prompt_logprobs, done, client),
        started=[s for s in done.started if s.client_index == client],
        ended=[e for e in done.ended if e.client_index == client],
    )


def _entries_of(
    columns: LogprobColumns | None, done: CommittedStep, client: int
) -> LogprobColumns | None:
    if columns is None:
        return None
    return columns.select(done.row_clients[columns.rows] == client)
