"""Drafts for a model of random weights, as often right as those for a model that answers.

`Recorder` looks up drafts at each position of an answer, and has none computed. `Replay`, beside
another model, proposes at the same position of its answer to the same prompt as many drafts, and
from the first on as many of them are right. That measures what such drafts bring at the other
model's cost of a step; how often a trained model of its size would copy it does not say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, NewRow, RequestTable, StepPlan
from galley.config.speculative import SpeculativeSettings
from galley.spec.lookup import Lookup
from galley.spec.ngram import ngram
from galley.spec.proposer import Drafts
from galley.spec.suffix import SuffixProposer

LOOKUPS: dict[str, Callable[[SpeculativeSettings, int], Lookup]] = {
    "ngram": ngram,
    "suffix": SuffixProposer,
}


class Place(NamedTuple):
    """Drafts at a position of an answer: how many, of which right, and the level of evidence."""

    drafts: int
    right: int
    level: int


#: Prompt → place by tokens of the answer that are known; of the last answer that was recorded.
PLACES: dict[bytes, dict[int, Place]] = {}


def prompt_of(table: RequestTable, slot: int) -> bytes:
    return table.token_ids[slot, : table.num_prompt[slot]].tobytes()


def answer_of(table: RequestTable, slot: int) -> I32:
    answer: I32 = table.token_ids[slot, table.num_prompt[slot] : table.num_tokens[slot]]
    return answer


def num_right(ids: I32, answer: I32) -> int:
    """Drafts from the first on that are the tokens of the answer."""
    n = min(len(ids), len(answer))
    wrong = np.flatnonzero(ids[:n] != answer[:n])
    return int(wrong[0]) if len(wrong) else n


class Recorder:
    """See the module.

    Attributes:
        method: a key of LOOKUPS.
    """

    is_free = True
    memory = 0
    method: ClassVar[str] = "ngram"

    def __init__(self, settings: SpeculativeSettings, num_slots: int) -> None:
        settings = msgspec.structs.replace(settings, method=self.method, model=None)
        self._lookup = LOOKUPS[self.method](settings, num_slots)
        self.width = self._lookup.width
        #: of each slot: tokens of the answer that are known → drafts, level
        self._seen: list[dict[int, tuple[I32, int]]] = [{} for _ in range(num_slots)]

    def enter(self, row: NewRow) -> None:
        self._seen[row.slot] = {}
        self._lookup.enter(row)

    def leave(self, table: RequestTable, slots: NDArray[np.intp]) -> None:
        for slot in slots.tolist():
            answer = answer_of(table, slot)
            PLACES[prompt_of(table, slot)] = {
                at: Place(len(ids), num_right(ids, answer[at:]), level)
                for at, (ids, level) in self._seen[slot].items()
            }
        self._lookup.leave(table, slots)

    def stepped(self, plan: StepPlan) -> None:
        pass

    def propose(self, table: RequestTable, slots: NDArray[np.intp], most: I32) -> Drafts:
        drafts = self._lookup.propose(table, slots, most)
        for i, slot in enumerate(slots.tolist()):
            ids = drafts.ids[i, : drafts.counts[i]].copy()
            self._seen[slot][len(answer_of(table, slot))] = ids, int(drafts.levels[i])
        return Drafts(np.zeros_like(drafts.counts), drafts.ids, drafts.levels)


class Replay:
    """See the module. An answer is known once it was given: the first time there are no drafts."""

    is_free = True
    memory = 0

    def __init__(self, settings: SpeculativeSettings, num_slots: int) -> None:
        self.width = settings.most_drafts
        self._answers: dict[bytes, I32] = {}

    def enter(self, row: NewRow) -> None:
        pass

    def leave(self, table: RequestTable, slots: NDArray[np.intp]) -> None:
        for slot in slots.tolist():
            self._answers[prompt_of(table, slot)] = answer_of(table, slot).copy()

    def stepped(self, plan: StepPlan) -> None:
        pass

    def propose(self, table: RequestTable, slots: NDArray[np.intp], most: I32) -> Drafts:
        counts, levels = np.zeros(len(slots), np.int32), np.zeros(len(slots), np.int32)
        ids = np.zeros((len(slots), self.width), np.int32)
        for i, slot in enumerate(slots.tolist()):
            prompt, at = prompt_of(table, slot), len(answer_of(table, slot))
            place = PLACES.get(prompt, {}).get(at)
            coming = self._answers.get(prompt, table.token_ids[:0, 0])[at : at + self.width]
            if place is None or len(coming) == 0:
                continue
            counts[i], levels[i] = min(place.drafts, most[i], len(coming)), place.level
            ids[i, : len(coming)] = coming
            ids[i, place.right :] ^= 1
        return Drafts(counts, ids, levels)
