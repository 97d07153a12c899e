"""Applies the end rules to a step's result: rows that yielded tokens, and sequences that end.

Pure functions over columns. A step in which nothing ends costs a fixed number of array
operations; only rows that end or fail are processed one by one.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import (
    EMPTY_I32,
    EMPTY_I64,
    I32,
    LogprobColumns,
    RequestTable,
    StepPlan,
    StepResult,
    ragged_positions,
)
from galley.scheduler.running import Running
from galley.scheduler.sequence import SequenceEnd, SequenceStart


class CommittedStep(msgspec.Struct):
    """The outcome of a step, for all clients.

    Attributes:
        step: its number; 0 where only events came up.
        row_handles, row_clients: [n] int64, int32: request and client of each row of the plan.
        rows: [k] the rows that yielded tokens; None = all of them.
        counts: [k] tokens of each; empty = one each.
        token_ids: [sum(counts)].
        drafts: [n, 2] computed and accepted drafts of each row of the plan; empty = none, or they
            are not reported.
        logprobs, prompt_logprobs: as in the result, of rows of the plan.
        started, ended: events since the last step.
    """

    step: int = 0
    row_handles: NDArray[np.int64] = EMPTY_I64
    row_clients: I32 = EMPTY_I32
    rows: NDArray[np.intp] | None = None
    counts: I32 = EMPTY_I32
    token_ids: I32 = EMPTY_I32
    drafts: I32 = EMPTY_I32
    logprobs: LogprobColumns | None = None
    prompt_logprobs: LogprobColumns | None = None
    started: list[SequenceStart] = []
    ended: list[SequenceEnd] = []


def drop_rows(
    done: CommittedStep, slots: NDArray[np.intp], counts: I32, dead: list[int]
) -> NDArray[np.intp]:
    """Remove tokens and logprobs of rows in `dead` slots from `done`; returns other rows."""
    gone = np.isin(slots, dead)
    keep = (counts > 0) & ~gone
    done.rows = np.flatnonzero(keep)
    done.token_ids = done.token_ids[np.repeat(keep, counts)]
    if done.logprobs is not None:
        done.logprobs = done.logprobs.select(~gone[done.logprobs.rows])
    return done.rows


def find_ends(
    done: CommittedStep,
    slots: NDArray[np.intp],
    counts: I32,
    table: RequestTable,
    running: Running,
) -> list[SequenceEnd]:
    """The sequences that end with this step's tokens.

    Args:
        done: its token_ids after an end are dropped where a row yielded several.
        slots: [k] slots of the rows that yielded tokens, `counts` [k] tokens of each.
    """
    lengths = table.num_tokens[slots]
    over = lengths >= running.limits[slots]
    ragged = len(done.token_ids) != len(slots)
    stop_ids = running.stop_ids[np.repeat(slots, counts) if ragged else slots]
    hits = stop_ids == done.token_ids[:, None]
    if ragged:
        done.counts = counts
        if running.watched or np.count_nonzero(over) or np.count_nonzero(hits):
            return _find_ends_ragged(done, slots, counts, hits.any(1), table, running)
        return []
    if np.count_nonzero(hits):
        over |= hits.any(1)
    rows = over.nonzero()[0].tolist()
    if running.watched:
        rows = sorted({*rows, *np.flatnonzero(np.isin(slots, list(running.watched))).tolist()})
    if not rows:
        return []
    ends = (running.at(int(slots[i])).ending(table.token_ids[slots[i], : lengths[i]]) for i in rows)
    return [end for end in ends if end is not None]


def find_pooled(
    plan: StepPlan,
    result: StepResult,
    failures: list[SequenceEnd],
    table: RequestTable,
    running: Running,
) -> list[SequenceEnd]:
    """The pooling sequences whose prompt the step has completed, with their vectors."""
    failed = {(end.client_index, end.handle) for end in failures}
    ends = []
    for slot in running.pooling & set(plan.slots.tolist()):
        seq, length = running.at(slot), int(table.num_tokens[slot])
        if table.num_computed[slot] < length or seq.key in failed:
            continue
        end = seq.ending(table.token_ids[slot, :length])
        if end is not None:
            end.pooled = result.pooled[slot]
            ends.append(end)
    return ends


def _find_ends_ragged(
    done: CommittedStep,
    slots: NDArray[np.intp],
    counts: I32,
    stops: NDArray[np.bool_],
    table: RequestTable,
    running: Running,
) -> list[SequenceEnd]:
    """Rows with several tokens: those after the first end are dropped.

    Args:
        stops: [tokens] whether each is a stop token of its row.
    """
    rows = np.repeat(np.arange(len(slots)), counts)
    slot_of = slots[rows]
    # lengths[i]: tokens of the sequence up to and including token i of the step.
    lengths = ragged_positions(counts, table.num_tokens[slots] - counts + 1)
    ending = stops | (lengths >= running.limits[slot_of])
    if running.watched:
        ending |= np.isin(slot_of, list(running.watched))
    ends: dict[int, SequenceEnd] = {}
    kept = counts.copy()
    for i in np.flatnonzero(ending).tolist():
        row, length = int(rows[i]), int(lengths[i])
        if row in ends:
            continue
        end = running.at(int(slots[row])).ending(table.token_ids[slots[row], :length])
        if end is not None:
            ends[row] = end
            kept[row] += length - table.num_tokens[slots[row]]
    offsets = ragged_positions(counts, np.zeros_like(counts))
    done.token_ids = done.token_ids[offsets < kept[rows]]
    done.counts = kept
    _cut_logprobs(done, slots, counts, kept, table)
    return list(ends.values())


def _cut_logprobs(
    done: CommittedStep, slots: NDArray[np.intp], counts: I32, kept: I32, table: RequestTable
) -> None:
    if done.logprobs is None or (counts == kept).all():
        return
    rows = done.rows if done.rows is not None else np.arange(len(slots))
    end_of_row = np.full(len(done.row_handles), np.iinfo(np.int32).max)
    end_of_row[rows] = table.num_tokens[slots] - counts + kept
    done.logprobs = done.logprobs.select(done.logprobs.positions < end_of_row[done.logprobs.rows])
