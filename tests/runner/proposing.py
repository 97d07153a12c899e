"""A speculator of a fixed length for proposers that tests write."""

from __future__ import annotations

from typing import Any

import numpy as np

from galley.spec.lengths import FixedLengths
from galley.spec.proposer import Drafts
from galley.spec.speculator import Speculator

WIDTH = 8


class Guesser:
    """A proposer of `guess(known tokens, length of the prompt)`, at most WIDTH drafts."""

    width, is_free, memory = WIDTH, True, 0

    def guess(self, known: list[int], num_prompt: int) -> list[int]:
        raise NotImplementedError

    def enter(self, row: Any) -> None:
        pass

    def leave(self, table: Any, slots: Any) -> None:
        pass

    def stepped(self, plan: Any) -> None:
        pass

    def propose(self, table: Any, slots: Any, most: Any) -> Drafts:
        counts, ids = np.zeros(len(slots), np.int32), np.zeros((len(slots), WIDTH), np.int32)
        for i, slot in enumerate(slots.tolist()):
            known = table.token_ids[slot, : table.num_tokens[slot]].tolist()
            drafts = self.guess(known, int(table.num_prompt[slot]))[: most[i]]
            counts[i] = len(drafts)
            ids[i, : len(drafts)] = drafts
        return Drafts(counts, ids, np.zeros_like(counts))

    def speculator(self) -> Speculator:
        return Speculator(self, FixedLengths(WIDTH))
