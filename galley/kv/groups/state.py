"""Recurrent state: one block a sequence, overwritten by every step.

There are no snapshots: a state is never shared and cannot be rewound. So a model with such a group
has no prefix hits and no drafts, and a preempted sequence is recomputed from its first token.
"""

from __future__ import annotations

import numpy as np

from galley.batch import I32, GroupSpec
from galley.kv.groups.policy import Lookup


class StatePolicy:
    """One block, whatever the length (`GroupPolicy`)."""

    caches_prefixes = False
    frees_early = False
    can_rewind = False

    def __init__(self, spec: GroupSpec, max_chunk: int) -> None:
        pass

    def needed(self, totals: I32) -> I32:
        return np.minimum(totals, 1)

    def longest_hit(self, lookup: Lookup, limit: int) -> list[int]:
        return []

    def most_held(self, num_tokens: int) -> int:
        return min(num_tokens, 1)

    def first_live(self, num_computed: I32) -> I32:
        return np.zeros_like(num_computed)
