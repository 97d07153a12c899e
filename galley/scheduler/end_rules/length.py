"""Ends at a number of tokens."""

from __future__ import annotations

from galley.batch import I32
from galley.request import FinishReason, Request
from galley.scheduler.end_rules.rule import Ending


class LengthLimit:
    """`limit` counts prompt and output."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    @classmethod
    def of(cls, request: Request, max_model_len: int) -> LengthLimit | None:
        if request.pools:
            return None
        return cls(min(request.max_total_tokens, max_model_len))

    def ending(self, token_ids: I32, num_prompt: int) -> Ending | None:
        return Ending(FinishReason.LENGTH) if len(token_ids) >= self.limit else None
