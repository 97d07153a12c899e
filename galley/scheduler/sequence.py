"""One request inside the scheduler: the state that does not change from step to step.

Lengths and tokens of a running sequence live in the request table's columns; here they are kept
only while it waits.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32
from galley.kv import HashChain
from galley.request import Failure, FinishReason, PoolingParams, Request
from galley.scheduler.end_rules import end_rules

NO_SLOT = -1


class SequenceStart(msgspec.Struct):
    """A sequence was admitted to a slot. Times in seconds since the epoch."""

    client_index: int
    handle: int
    num_cached_tokens: int
    queued_time: float
    scheduled_time: float
    resumed: bool


class SequenceEnd(msgspec.Struct):
    """The one end of a request. `stop_reason` is the stop token id that was hit, or a word."""

    client_index: int
    handle: int
    reason: FinishReason
    stop_reason: int | str | None = None
    error: Failure | None = None
    pooled: NDArray[np.float32] | None = None


class Sequence:
    """A request from its arrival to its end.

    Attributes:
        arrival: number of the arrival, which breaks ties.
        token_ids: int32, prompt and output; up to date only while waiting.
        limit: number of tokens at which it ends with "length".
        chain: hashes of its full blocks, None if it shares no blocks.
        end_rules: rules that may end it, in order.
        num_prompt_scored: prompt positions whose logits have been used for prompt logprobs.
        slot: its row in the table, NO_SLOT while waiting.
    """

    __slots__ = (
        "arrival",
        "chain",
        "end_rules",
        "ended",
        "limit",
        "num_preemptions",
        "num_prompt",
        "num_prompt_scored",
        "queued_time",
        "request",
        "slot",
        "token_ids",
    )

    def __init__(
        self,
        request: Request,
        arrival: int,
        now: float,
        max_model_len: int,
        chain: HashChain | None,
    ) -> None:
        prompt = np.frombuffer(request.prompt_token_ids, np.int32)
        self.request = request
        self.arrival = arrival
        self.queued_time = now
        self.token_ids: I32 = prompt
        if request.output_token_ids:
            output = np.frombuffer(request.output_token_ids, np.int32)
            self.token_ids = np.concatenate((prompt, output))
        self.num_prompt = len(prompt)
        self.limit = min(request.max_total_tokens, max_model_len)
        self.chain = chain
        self.end_rules = end_rules(request, max_model_len)
        self.num_prompt_scored = self.num_prompt
        if not request.pools and request.sampling.prompt_logprobs is not None:
            # A replayed request has had its prompt logprobs before its first token.
            self.num_prompt_scored = self.num_prompt if request.output_token_ids else 0
        self.num_preemptions = 0
        self.slot = NO_SLOT
        self.ended = False

    @property
    def key(self) -> tuple[int, int]:
        return self.request.client_index, self.request.handle

    @property
    def importance(self) -> tuple[int, int]:
        """Smaller is more important: priority first, then arrival."""
        return self.request.priority, self.arrival

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt positions remain that owe logprobs (the last one samples)."""
        return self.num_prompt_scored < self.num_prompt - 1

    @property
    def pools(self) -> bool:
        return self.request.pools

    @property
    def in_one_piece(self) -> bool:
        """Whether its prompt must be computed in one step."""
        return self.request.in_one_piece

    @property
    def reads_cache(self) -> bool:
        """Whether its prompt may come from the prefix cache; not if earlier rows are needed."""
        params = self.request.params
        needs_all = isinstance(params, PoolingParams) and params.pooling not in (None, "LAST")
        return self.chain is not None and not needs_all and not self.wants_prompt_logprobs

    def ending(self, token_ids: I32) -> SequenceEnd | None:
        """The end that the last of `token_ids` (prompt and output) brings, or None."""
        for rule in self.end_rules:
            ending = rule.ending(token_ids, self.num_prompt)
            if ending is not None:
                return self.end(ending.reason, ending.stop_reason)
        return None

    def end(
        self,
        reason: FinishReason,
        stop_reason: int | str | None = None,
        error: Failure | None = None,
    ) -> SequenceEnd:
        return SequenceEnd(
            self.request.client_index, self.request.handle, reason, stop_reason, error
        )
