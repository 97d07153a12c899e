"""`bad_words`: the last token of a bad word must not follow the others."""

from __future__ import annotations

from galley.batch import I32, NewRow
from galley.runner.mask_rules.rule import TokenSets, Words


class BadWords:
    yields = False

    def __init__(self, words: list[list[int]], sets: TokenSets) -> None:
        self._words = words
        self._sets = sets

    @classmethod
    def of(cls, row: NewRow, sets: TokenSets) -> BadWords | None:
        # A token beyond the vocabulary is never sampled, so there is nothing to forbid.
        words = [word for word in row.bad_words_token_ids if word[-1] < sets.vocab_size]
        return cls(words, sets) if words else None

    def allowed(self, token_ids: I32, num_prompt: int) -> Words | None:
        end = len(token_ids)
        forbidden = []
        for word in self._words:
            first = end - len(word) + 1
            if first >= num_prompt and token_ids[first:].tolist() == word[:-1]:
                forbidden.append(word[-1])
        return self._sets.all_but(forbidden) if forbidden else None
