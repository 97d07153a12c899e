"""From a committed step to messages: columns as bytes, one `Outputs` for each client."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from galley.batch import LogprobColumns
from galley.messages import Finished, Logprobs, Outputs, Started, Stats
from galley.scheduler import CommittedStep

ClientOutputs = list[tuple[int, Outputs]]


@dataclass(frozen=True, slots=True)
class EngineId:
    """Which engine speaks: its index and its incarnation."""

    engine_index: int = 0
    epoch: int = 0


COUNTERS = (
    *("num_preemptions", "prefix_queries", "prefix_hits", "num_steps"),
    *("flops", "read_bytes", "write_bytes"),
)
_counters = attrgetter(*COUNTERS)
_NONE = (0,) * len(COUNTERS)


@dataclass(slots=True)
class Shares:
    """Each client's part of the engine's counters; all parts add up to the whole."""

    _told: tuple[float, ...] = _NONE
    _of: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def grant(self, client: int, stats: Stats) -> None:
        """Give a client all that the counters have grown by since the last call."""
        now = _counters(stats)
        if self._of.keys() <= {client}:
            self._of[client] = self._told = now
            return
        grown = zip(self._of.get(client, _NONE), now, self._told, strict=True)
        self._of[client] = tuple(mine + new - old for mine, new, old in grown)
        self._told = now

    def part(self, client: int, stats: Stats, granted: int) -> Stats:
        """`stats` with the client's part of the counters, of which `granted` has got the last."""
        mine = self._of.get(client, _NONE)
        if mine is self._told:
            return stats
        changes: dict[str, Any] = dict(zip(COUNTERS, mine, strict=True))
        if client != granted:
            changes["block_times"] = []
        return msgspec.structs.replace(stats, **changes)


def build_outputs(
    done: CommittedStep, stats: Stats, engine_id: EngineId, shares: Shares
) -> ClientOutputs:
    """One message per client that had a row in the step or an event since the last.

    What the counters in `stats` have grown by goes to the first of them. Handles are int64, counts
    and token ids int32, little-endian bytes (`galley.messages`).
    """
    clients = done.row_clients
    one_client = not len(clients) or not np.count_nonzero(clients != clients[0])
    if one_client and not done.started and not done.ended:
        if not len(clients):
            return []
        client = int(clients[0])
        shares.grant(client, stats)
        return [(client, _for_one_client(done, shares.part(client, stats, client), engine_id))]
    concerned = {*np.unique(clients).tolist()}
    concerned.update(s.client_index for s in done.started)
    concerned.update(e.client_index for e in done.ended)
    first = min(concerned)
    shares.grant(first, stats)
    return [
        (c, _for_one_client(_part_of(done, c), shares.part(c, stats, first), engine_id))
        for c in sorted(concerned)
    ]


def build_stats_updates(
    clients: Iterable[int], stats: Stats, engine_id: EngineId, shares: Shares
) -> ClientOutputs:
    """`stats` for each client; what its counters have grown by goes to the first."""
    told = sorted(clients)
    if told:
        shares.grant(told[0], stats)
    return [
        (c, _for_one_client(CommittedStep(), shares.part(c, stats, told[0]), engine_id))
        for c in told
    ]


def _for_one_client(done: CommittedStep, stats: Stats, engine_id: EngineId) -> Outputs:
    handles = done.row_handles if done.rows is None else done.row_handles[done.rows]
    return Outputs(
        step=done.step,
        epoch=engine_id.epoch,
        engine_index=engine_id.engine_index,
        timestamp=time.time(),
        handles=handles.tobytes() if len(done.token_ids) else b"",
        counts=done.counts.tobytes(),
        token_ids=done.token_ids.tobytes(),
        logprobs=_logprobs(done.logprobs, done),
        prompt_logprobs=_logprobs(done.prompt_logprobs, done),
        started=[
            Started(s.handle, s.num_cached_tokens, s.queued_time, s.scheduled_time, s.resumed)
            for s in done.started
        ]
        if done.started
        else [],
        finished=[Finished(e.handle, int(e.reason), e.stop_reason, e.error) for e in done.ended]
        if done.ended
        else [],
        stats=stats,
    )


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
