"""Drafts of constrained sequences, before a step computes them.

A draft that the constraint forbids, and what lies behind it, would be computed for nothing. Tokens
that are certain, of a sequence that takes each by itself (logprobs, a bias of logits …), are drafts
that are always accepted, so that they share a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from galley.batch import I32, StepResult

if TYPE_CHECKING:
    from galley.structured.sequences import ConstrainedSequence


def review_drafts(result: StepResult, sequences: Mapping[int, ConstrainedSequence]) -> None:
    """Change the drafts of a result, of an engine that has any.

    Args:
        sequences: row of the plan → its sequence, which goes on and has seen the row's tokens.
    """
    indptr, ids = result.drafts_indptr, result.drafts_ids
    changed: dict[int, list[int]] = {}
    for row, seq in sequences.items():
        drafts = ids[indptr[row] : indptr[row + 1]].tolist()
        reviewed = seq.reviewed(drafts)
        if reviewed != drafts:
            changed[row] = reviewed
    if not changed:
        return
    parts: list[I32] = np.split(ids, indptr[1:-1])
    for row, drafts in changed.items():
        parts[row] = np.array(drafts, np.int32)
    result.drafts_ids = np.concatenate(parts)
    result.drafts_indptr = np.cumsum([0, *map(len, parts)], dtype=np.int32)
