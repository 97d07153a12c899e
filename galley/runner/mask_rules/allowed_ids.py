"""`allowed_token_ids`: no other token is ever sampled."""

from __future__ import annotations

from galley.batch import I32, NewRow
from galley.runner.mask_rules.rule import TokenSets, Words


class AllowedIds:
    yields = False

    def __init__(self, words: Words) -> None:
        self._words = words

    @classmethod
    def of(cls, row: NewRow, sets: TokenSets) -> AllowedIds | None:
        token_ids = row.sampling.allowed_token_ids
        return None if token_ids is None else cls(sets.only(token_ids))

    def allowed(self, token_ids: I32, num_prompt: int) -> Words | None:
        return self._words
