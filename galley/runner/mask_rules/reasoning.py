"""Limits of reasoning: after so many tokens of it the marker of its end comes, and an answer that
must not end inside it does not.
"""

from __future__ import annotations

import numpy as np

from galley.batch import I32, NewRow
from galley.request import ReasoningLimits
from galley.runner.mask_rules.rule import TokenSets, Words


class ReasoningEnd:
    yields = False

    def __init__(self, limits: ReasoningLimits, no_stop: Words, sets: TokenSets) -> None:
        self._limits = limits
        self._no_stop = no_stop if limits.must_end else None
        self._end = np.array(limits.end, np.int32)
        self._next = [sets.only((token_id,)) for token_id in limits.end]

    @classmethod
    def of(cls, row: NewRow, sets: TokenSets) -> ReasoningEnd | None:
        limits = row.sampling.reasoning_limits
        if limits is None:
            return None
        stop_ids = {*row.eos_token_ids, *(row.sampling.stop_token_ids or ())}
        no_stop = sets.all_but(i for i in stop_ids if 0 <= i < sets.vocab_size)
        return cls(limits, no_stop, sets)

    def allowed(self, token_ids: I32, num_prompt: int) -> Words | None:
        limits = self._limits
        output = token_ids[num_prompt:]
        start = 0 if limits.begun else _end_of(output, limits.start)
        if start is None:
            return None
        thought = output[start:]
        if _end_of(thought, limits.end) is not None:
            return None
        if limits.max_tokens is None or len(thought) < limits.max_tokens:
            return self._no_stop
        written = range(min(len(self._end) - 1, len(thought)), 0, -1)
        done = next((n for n in written if np.array_equal(thought[-n:], self._end[:n])), 0)
        return self._next[done]


def _end_of(tokens: I32, marker: tuple[int, ...]) -> int | None:
    """Where the first occurrence of `marker` ends."""
    for place in np.flatnonzero(tokens[: max(len(tokens) - len(marker) + 1, 0)] == marker[0]):
        if np.array_equal(tokens[place : place + len(marker)], marker):
            return int(place) + len(marker)
    return None
