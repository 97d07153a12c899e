"""Ends a pooling request when its prompt is computed."""

from __future__ import annotations

from galley.batch import I32
from galley.request import FinishReason, Request
from galley.scheduler.end_rules.rule import Ending


class PromptComputed:
    """Checked when all of a sequence's tokens are computed and none was sampled."""

    @classmethod
    def of(cls, request: Request, _max_model_len: int) -> PromptComputed | None:
        return cls() if request.pools else None

    def ending(self, token_ids: I32, num_prompt: int) -> Ending | None:
        return Ending(FinishReason.STOP) if len(token_ids) >= num_prompt else None
