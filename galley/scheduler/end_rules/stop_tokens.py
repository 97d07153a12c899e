"""Ends at an end-of-sequence or stop token."""

from __future__ import annotations

from galley.batch import I32
from galley.request import FinishReason, Request
from galley.scheduler.end_rules.rule import Ending


class StopTokens:
    """`eos_ids` end without a stop_reason, `stop_ids` with their id."""

    def __init__(self, eos_ids: frozenset[int], stop_ids: frozenset[int]) -> None:
        self.eos_ids = eos_ids
        self.stop_ids = stop_ids
        self.all_ids = eos_ids | stop_ids

    @classmethod
    def of(cls, request: Request, _max_model_len: int) -> StopTokens | None:
        if request.pools:
            return None
        params = request.sampling
        # A constraint allows an end token where its text may end, and nothing may follow that.
        ignore = params.ignore_eos and request.constraint is None
        eos_ids = frozenset(() if ignore else request.eos_token_ids)
        stop_ids = frozenset(params.stop_token_ids or ())
        return cls(eos_ids, stop_ids) if eos_ids or stop_ids else None

    def ending(self, token_ids: I32, num_prompt: int) -> Ending | None:
        token = int(token_ids[-1])
        if token in self.eos_ids:
            return Ending(FinishReason.STOP)
        if token in self.stop_ids:
            return Ending(FinishReason.STOP, token)
        return None
