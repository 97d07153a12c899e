"""Limits of reasoning: after so many tokens of it the marker of its end comes, and an answer that
must not end inside it does not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from galley.batch import I32, NewRow
from galley.request import MarkerTable, ReasoningLimits
from galley.runner.mask_rules.rule import TokenSets, Words

#: The last tokens, which may be drafts, are looked at again each time.
UNSETTLED = 32


class _Place(NamedTuple):
    """Where an output is.

    Attributes:
        state: of the marker that is looked for: of the start, or of the end.
        parts: states of the markers of parts, start and end.
        counts: what comes is reasoning.
        thought: tokens of reasoning.
    """

    begun: bool
    ended: bool
    state: int
    parts: tuple[int, int]
    counts: bool
    thought: int


class ReasoningEnd:
    yields = False

    _parts: tuple[MarkerTable, MarkerTable] | None

    def __init__(self, limits: ReasoningLimits, stop_ids: frozenset[int], sets: TokenSets) -> None:
        self._limits = limits
        self._stop_ids = stop_ids
        self._sets = sets
        self._start, self._end = limits.start.table(), limits.end.table()
        self._parts, self._end_of_part = None, 0
        if limits.parts is not None:
            self._parts = limits.parts[0].table(), limits.parts[1].table()
            self._end_of_part = len(limits.parts[1].ids)
        self._close = np.array(limits.close or limits.end.ids, np.int32)
        self._next = [sets.only((token_id,)) for token_id in self._close.tolist()]
        self._no_stop: dict[int, Words] = {}
        self._settled: I32 = np.empty(0, np.int32)
        self._place = self._first = _Place(
            limits.begun, False, 0, (0, 0), limits.begun and self._parts is None, 0
        )

    @classmethod
    def of(cls, row: NewRow, sets: TokenSets) -> ReasoningEnd | None:
        limits = row.sampling.reasoning_limits
        if limits is None:
            return None
        stop_ids = {*row.eos_token_ids, *(row.sampling.stop_token_ids or ())}
        return cls(limits, frozenset(i for i in stop_ids if 0 <= i < sets.vocab_size), sets)

    def allowed(self, token_ids: I32, num_prompt: int) -> Words | None:
        limits = self._limits
        output = token_ids[num_prompt:]
        place = self._place_of(output)
        if not place.begun or place.ended:
            return None
        if limits.max_tokens is None or place.thought < limits.max_tokens:
            return self._without_stop(place.state) if limits.must_end else None
        written = range(min(len(self._close) - 1, len(output)), 0, -1)
        done = next((n for n in written if np.array_equal(output[-n:], self._close[:n])), 0)
        if not done and not place.counts:
            return self._without_stop(place.state) if limits.must_end else None
        return self._next[done]

    def _place_of(self, output: I32) -> _Place:
        known = len(self._settled)
        if not np.array_equal(output[:known], self._settled):
            known, self._place = 0, self._first
        settled = max(known, len(output) - UNSETTLED)
        for token_id in output[known:settled].tolist():
            self._place = self._after(self._place, token_id)
        self._settled = output[:settled].copy()
        place = self._place
        for token_id in output[settled:].tolist():
            place = self._after(place, token_id)
        return place

    def _after(self, place: _Place, token_id: int) -> _Place:
        """The place behind one more token."""
        if place.ended:
            return place
        if not place.begun:
            state = self._start.step(place.state, token_id)
            if state < self._start.size:
                return place._replace(state=state)
            return place._replace(begun=True, state=0, counts=self._parts is None)
        state = self._end.step(place.state, token_id)
        if state >= self._end.size:
            return place._replace(ended=True)
        count = place.thought + place.counts
        if self._parts is None:
            return place._replace(state=state, thought=count)
        first, last = (
            table.step(at, token_id) for table, at in zip(self._parts, place.parts, strict=True)
        )
        counts = place.counts
        if first >= self._parts[0].size:
            counts, first = True, 0
        elif counts and last >= self._parts[1].size:
            # The marker of its end is no part of it.
            counts, count = False, count - self._end_of_part
        parts = (first, 0 if last >= self._parts[1].size else last)
        return place._replace(state=state, thought=count, counts=counts, parts=parts)

    def _without_stop(self, state: int) -> Words:
        """All tokens but stop tokens and those that go beyond the end of the reasoning."""
        found = self._no_stop.get(state)
        if found is None:
            barred = self._stop_ids | self._end.overruns(state)
            found = self._no_stop[state] = self._sets.all_but(barred)
        return found
