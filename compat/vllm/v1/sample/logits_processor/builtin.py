"""State that logits processors keep for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from galley import BatchUpdate, MoveDirectionality, SamplingParams

_T = TypeVar("_T")


def process_dict_updates(
    req_entries: dict[int, _T],
    batch_update: BatchUpdate | None,
    new_state: Callable[[SamplingParams, list[int] | None, list[int]], _T | None],
) -> bool:
    """Have `req_entries`, row → state, follow the batch; `new_state` makes that of a new row, None
    for none. Returns whether an entry changed.
    """
    if batch_update is None:
        return False
    before = dict(req_entries)
    for row in batch_update.removed:
        req_entries.pop(row, None)
    for row, *of_request in batch_update.added:
        req_entries.pop(row, None)
        state = new_state(*of_request)
        if state is not None:
            req_entries[row] = state
    for a, b, direction in batch_update.moved:
        from_a, from_b = req_entries.pop(a, None), req_entries.pop(b, None)
        if from_a is not None:
            req_entries[b] = from_a
        if from_b is not None and direction is MoveDirectionality.SWAP:
            req_entries[a] = from_b
    return before != req_entries
