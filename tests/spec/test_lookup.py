"""The native index of n-grams: the same drafts as a search through the whole text."""

from __future__ import annotations

import random

import numpy as np
import pytest

from galley.batch import GroupSpec, NewRow, RequestTable
from galley.config.speculative import SpeculativeSettings
from galley.request import SamplingParams
from galley.spec.ngram import ngram
from galley.spec.suffix import SuffixProposer, scope_of

GROUPS = [GroupSpec("full", 16, 64)]


class Texts:
    """A table whose sequences grow."""

    def __init__(self, slots: int, longest: int = 600) -> None:
        self.table = RequestTable(slots, longest, GROUPS)

    def start(self, slot: int, handle: int, prompt: list[int]) -> None:
        row = NewRow(slot, handle, np.array(prompt), len(prompt), 0, SamplingParams(), [])
        self.table.set_row(row)

    def append(self, slot: int, tokens: list[int]) -> None:
        start = int(self.table.num_tokens[slot])
        self.table.token_ids[slot, start : start + len(tokens)] = tokens
        self.table.num_tokens[slot] += len(tokens)

    def drafts(self, proposer, slots: list[int], most: int = 15):
        n = np.array(slots, np.intp)
        found = proposer.propose(self.table, n, np.full(len(slots), most, np.int32))
        return [
            (found.ids[i, : found.counts[i]].tolist(), int(found.levels[i]))
            for i in range(len(slots))
        ]


class Search:
    """Drafts of the latest place with the longest match, or behind a changed token those of the
    place that the last ones came from.
    """

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.behind = self.resumed = 0

    def drafts(self, text: list[int], most: int) -> list[int]:
        n, best, place = len(text), self.low - 1, 0
        for at in range(self.low, n):
            match = self.match(text[:at], text)
            if match >= self.low and match >= best:
                best, place = match, at
        best = 0 if best < self.low else best
        if self.behind:
            at = n - self.behind
            fresh = self.match(text[:at], text)
            old = self.match(text[: max(at - fresh - 1, 0)], text[: n - fresh - 1])
            if fresh < self.low and at > fresh and fresh + old // 4 > best:
                best, place = fresh + old, at
                self.resumed += 1
        if not best:
            return []
        self.behind = n - place
        return [text[place + i % self.behind] for i in range(most)]

    def match(self, a: list[int], b: list[int]) -> int:
        """Equal last tokens."""
        match = 0
        while match < min(self.high, len(a)) and a[-1 - match] == b[-1 - match]:
            match += 1
        return match


@pytest.mark.parametrize(("low", "high"), [(1, 4), (2, 16), (3, 5)])
def test_drafts_are_those_of_a_search(low: int, high: int) -> None:
    """Texts with matches, but no more of one than are compared."""
    rng = random.Random(low)
    settings = SpeculativeSettings("ngram", prompt_lookup_min=low, prompt_lookup_max=high)
    texts, proposer = Texts(3), ngram(settings, 3)
    known: dict[int, list[int]] = {}
    for slot in range(3):
        known[slot] = [rng.randrange(100) for _ in range(40 + slot)]
        texts.start(slot, 100 + slot, known[slot])
    drafts, searches = 0, [Search(low, high) for _ in range(3)]
    for _ in range(60):
        order = rng.sample(range(3), 3)
        for slot, (ids, _) in zip(order, texts.drafts(proposer, order, 5), strict=True):
            assert ids == searches[slot].drafts(known[slot], 5)
            drafts += len(ids)
        for slot in range(3):
            more = [rng.randrange(100) for _ in range(rng.randint(1, 4))]
            if rng.random() < 0.5:  # repeat something
                start = rng.randrange(len(known[slot]) - 8)
                more = known[slot][start : start + 8]
                if rng.random() < 0.5:  # but for a token, at the end or before it
                    more[rng.choice((-1, -2))] = rng.randrange(100)
            known[slot] += more
            texts.append(slot, more)
    assert drafts > 100
    if high > 4:  # four tokens before the changed one count for one behind it
        assert sum(search.resumed for search in searches) > 2


def test_a_copy_goes_on_behind_a_changed_token() -> None:
    texts, proposer = Texts(1), ngram(SpeculativeSettings("ngram"), 1)
    source = list(range(100, 120))
    texts.start(0, 1, [*source, 7, *source[:8]])
    assert texts.drafts(proposer, [0], 3) == [([108, 109, 110], 8)]
    texts.append(0, [55])
    assert texts.drafts(proposer, [0], 3) == [([109, 110, 111], 1)]
    texts.append(0, [66])
    assert texts.drafts(proposer, [0], 3) == [([], 0)], "a second one: it is no copy any more"


def test_outputs_go_on_behind_a_changed_token_in_their_scope_alone() -> None:
    texts, proposer = Texts(3), suffix(suffix_decoding_max_spec_factor=4.0)
    texts.start(0, 1, [50])
    texts.append(0, list(range(10, 30)))
    finish(texts, proposer, 0, "a")
    texts.start(0, 2, [50])
    texts.append(0, [80, 81, 82])  # the next text of the ring, of another scope
    finish(texts, proposer, 0, "b")
    texts.start(1, 3, [50, *range(10, 20)])
    proposer.scopes[1] = scope_of("a", 0)
    assert texts.drafts(proposer, [1], 2) == [([20, 21], 10)]
    texts.append(1, [99])
    assert texts.drafts(proposer, [1], 2) == [([21, 22], 1)]
    texts.append(1, list(range(21, 29)))
    assert texts.drafts(proposer, [1], 3) == [([29], 8)]
    texts.append(1, [98])
    assert texts.drafts(proposer, [1], 3) == [([], 0)], "the text has ended"


def test_a_slot_with_another_request_starts_again() -> None:
    texts, proposer = Texts(1), ngram(SpeculativeSettings("ngram"), 1)
    texts.start(0, 1, [5, 6, 7, 8, 5, 6])
    assert texts.drafts(proposer, [0], 2) == [([7, 8], 2)]
    texts.start(0, 2, [9, 9, 1, 5, 6])
    assert texts.drafts(proposer, [0]) == [([], 0)]


def test_long_texts_make_the_index_grow() -> None:
    texts, proposer = Texts(1, 5000), ngram(SpeculativeSettings("ngram"), 1)
    texts.start(0, 1, [1, 2, 3, 4])
    proposer.propose(texts.table, np.array([0]), np.array([4], np.int32))
    texts.append(0, list(range(100, 4900)))
    texts.append(0, [1, 2])
    assert texts.drafts(proposer, [0], 3) == [([3, 4, 100], 2)]


def suffix(**keys) -> SuffixProposer:
    return SuffixProposer(SpeculativeSettings("suffix", **keys), 4)


def finish(texts: Texts, proposer: SuffixProposer, slot: int, salt: str | None = None) -> None:
    """The sequence in `slot`, of a scope, ends."""
    proposer.scopes[slot] = scope_of(salt, 0)
    proposer.leave(texts.table, np.array([slot]))


def test_outputs_of_others_are_found_in_their_scope_alone() -> None:
    texts, proposer = Texts(4), suffix(suffix_decoding_max_spec_factor=4.0)
    texts.start(0, 1, [50, 51, 52, 53])  # a prompt is no output
    texts.append(0, [10, 11, 12, 13, 14, 15])
    finish(texts, proposer, 0, "a")
    for slot, salt in ((1, "a"), (2, "b"), (3, None)):
        texts.start(slot, 10 + slot, [99, 10, 11])
        proposer.enter(NewRow(slot, 1, np.array([1]), 1, 0, SamplingParams(), [], cache_salt=salt))
    found = texts.drafts(proposer, [1, 2, 3])
    assert found == [([12, 13, 14, 15], 2), ([], 0), ([], 0)]
    texts.start(1, 20, [99, 51, 52])
    assert texts.drafts(proposer, [1]) == [([], 0)]
    assert scope_of("a", 0) != scope_of("a", 1)


def test_the_majority_decides_and_unlikely_drafts_are_left_out() -> None:
    texts, proposer = (
        Texts(2),
        suffix(suffix_decoding_max_spec_factor=8.0, suffix_decoding_min_token_prob=0.5),
    )
    for handle, tail in enumerate(([3, 4, 5], [3, 4, 6], [3, 4, 7], [9, 9, 9])):
        texts.start(0, handle, [0])
        texts.append(0, [1, 2, *tail])
        finish(texts, proposer, 0)
    texts.start(1, 50, [8, 1, 2])
    proposer.scopes[1] = scope_of(None, 0)
    assert texts.drafts(proposer, [1]) == [([3, 4], 2)], "3 of 4, then 1 of 3"


def test_old_outputs_make_room() -> None:
    texts = Texts(2)
    proposer = suffix(suffix_decoding_max_cached_requests=2, suffix_decoding_max_spec_factor=4.0)
    for handle in range(3):
        texts.start(0, handle, [0])
        texts.append(0, [100 * handle + i for i in range(1, 9)])
        finish(texts, proposer, 0)
    proposer.scopes[1] = scope_of(None, 0)
    for handle, wanted in ((0, []), (1, [103, 104]), (2, [203, 204])):
        texts.start(1, 50 + handle, [7, 100 * handle + 1, 100 * handle + 2])
        assert texts.drafts(proposer, [1], 2)[0][0] == wanted


def test_many_outputs_stay_within_the_memory() -> None:
    """A small ring, driven through many times: what is proposed was output lately."""
    rng = np.random.default_rng(1)
    from galley.kernels._native import DraftIndex

    index = DraftIndex(1, 2, 8, 8, True, 0.0, 0.0, 256, 1000)
    recent: list[list[int]] = []
    table = RequestTable(1, 64, GROUPS)
    for turn in range(400):
        text = rng.integers(0, 12, int(rng.integers(1, 90))).astype(np.int32)
        index.add(text.ctypes.data, len(text), 7)
        recent.append(text.tolist())
        table.token_ids[0, :2] = text[:2] if len(text) > 2 else 1
        table.num_tokens[0], table.handles[0] = 3, turn
        table.token_ids[0, 2] = text[2] if len(text) > 2 else 1
        counts, matches = np.zeros(1, np.int32), np.zeros(1, np.int32)
        ids, scopes = np.zeros((1, 6), np.int32), np.full(1, 7, np.int64)
        most, slots = np.full(1, 6, np.int32), np.zeros(1, np.int64)
        addresses = [a.ctypes.data for a in (table.num_tokens, table.handles, scopes, slots)]
        index.propose(
            table.token_ids.ctypes.data, 64, *addresses, 1, most.ctypes.data, 6,
            counts.ctypes.data, matches.ctypes.data, ids.ctypes.data,
        )  # fmt: skip
        if len(text) > 9:
            assert counts[0], "the text that was just added is found"
        held = {tuple(t[i : i + 3]) for t in recent[-300:] for i in range(len(t))}
        first = (*table.token_ids[0, 1:3].tolist(), *ids[0, :1].tolist())
        assert not counts[0] or first in held or first[0] == first[1], "or it repeats itself"
