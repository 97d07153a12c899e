"""Ends an output whose last tokens are one pattern again and again."""

from __future__ import annotations

import numpy as np

from galley.batch import I32
from galley.request import FinishReason, RepetitionDetectionParams, Request
from galley.scheduler.end_rules.rule import Ending


class Repetition:
    """See `request.RepetitionDetectionParams`; not before `min_tokens` tokens of output."""

    def __init__(self, params: RepetitionDetectionParams, min_tokens: int) -> None:
        self._params = params
        self._min_tokens = min_tokens

    @classmethod
    def of(cls, request: Request, _max_model_len: int) -> Repetition | None:
        if request.pools:
            return None
        params = request.sampling.repetition_detection
        if params is None or not params.max_pattern_size:
            return None
        return cls(params, request.sampling.min_tokens)

    def ending(self, token_ids: I32, num_prompt: int) -> Ending | None:
        output, params = token_ids[num_prompt:], self._params
        if len(output) < self._min_tokens:
            return None
        longest = min(params.max_pattern_size, len(output) // params.min_count)
        # An output that repeats with a period of n has its last token n tokens before, too.
        recent = output[::-1][: longest + 1]
        for size in np.flatnonzero(recent[1:] == recent[0]) + 1:
            if size < params.min_pattern_size:
                continue
            tail = output[len(output) - size * params.min_count :]
            if (tail[size:] == tail[:-size]).all():
                return Ending(FinishReason.REPETITION, "repetition_detected")
        return None
