"""`min_tokens`: no stop token before so many tokens of output."""

from __future__ import annotations

from galley.batch import I32, NewRow
from galley.runner.mask_rules.rule import TokenSets, Words


class MinTokens:
    yields = True

    def __init__(self, min_tokens: int, no_stop: Words) -> None:
        self._min_tokens = min_tokens
        self._no_stop = no_stop

    @classmethod
    def of(cls, row: NewRow, sets: TokenSets) -> MinTokens | None:
        params = row.sampling
        stop_ids = {*row.eos_token_ids, *(params.stop_token_ids or ())}
        if not params.min_tokens:
            return None
        no_stop = sets.all_but(i for i in stop_ids if 0 <= i < sets.vocab_size)
        return cls(params.min_tokens, no_stop)

    def allowed(self, token_ids: I32, num_prompt: int) -> Words | None:
        return self._no_stop if len(token_ids) - num_prompt < self._min_tokens else None
