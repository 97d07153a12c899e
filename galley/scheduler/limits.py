"""Limits of a step, checked against each other once."""

from __future__ import annotations

from typing import Literal

import msgspec

from galley.batch import MIN_LOGIT_ROWS, max_logit_rows
from galley.errors import ConfigError


class SchedulerLimits(msgspec.Struct, frozen=True):
    """Limits of a step.

    Attributes:
        max_num_batched_tokens: most tokens computed in a step.
        max_num_seqs: most sequences that run at once.
        max_model_len: longest sequence, prompt and output together.
        enable_chunked_prefill: split prompts over steps.
        long_prefill_token_threshold: cap of a prefill chunk while others wait or run; 0 = none.
        long_prefill_token_threshold_adaptive: that cap is at least a fair share of a step.
        mixed_prefill_tokens: most tokens of all prompts in a step in which others decode; 0 = no
            cap. Needs chunked prefill.
        target_step_seconds: most seconds of a step in which prompts are computed while others
            decode; short prompts then overtake a long one. 0 = no limit. Needs chunked prefill.
        policy: order of admission and choice of the sequence to preempt.
        by_client: admit sequences of the client that was served least first.
        max_waiting: most requests in the queue; 0 = no limit.
        max_adapters: most adapters of running sequences.
        lookahead: tokens behind those of a step for which blocks are allocated, if there are any:
            a draft head writes to them before its drafts are part of a plan.
        max_drafts, max_row_drafts: most drafts of a step, and of a sequence in it.

    Raises:
        ConfigError: limits contradict each other.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    mixed_prefill_tokens: int = 0
    target_step_seconds: float = 0.0
    policy: Literal["fcfs", "priority"] = "fcfs"
    by_client: bool = False
    max_waiting: int = 0
    max_adapters: int = 1
    lookahead: int = 0
    max_drafts: int = MIN_LOGIT_ROWS
    max_row_drafts: int = MIN_LOGIT_ROWS

    def __post_init__(self) -> None:
        for name in ("max_num_batched_tokens", "max_num_seqs", "max_model_len"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ConfigError(
                    f"--{flag} must be at least 1, got {getattr(self, name)}.", field=name
                )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ConfigError(
                f"Without chunked prefill a prompt runs whole, so --max-num-batched-tokens "
                f"({self.max_num_batched_tokens}) must be at least --max-model-len "
                f"({self.max_model_len}).",
                field="max_num_batched_tokens",
            )

    def chunk_cap(self, num_requests: int) -> int:
        """Most tokens of a prompt in a step while so many requests wait or run; 0 = no cap."""
        cap = self.long_prefill_token_threshold
        if not cap or num_requests < 2:
            return 0
        if self.long_prefill_token_threshold_adaptive:
            return max(cap, self.max_num_batched_tokens // num_requests)
        return cap

    def left_for_prompts(self, decode_tokens: int) -> int:
        """Tokens of a step that prompts may have beside this many tokens of decoding rows."""
        left = self.max_num_batched_tokens - decode_tokens
        capped = decode_tokens and self.mixed_prefill_tokens
        return min(left, self.mixed_prefill_tokens) if capped else left

    @property
    def max_num_logits(self) -> int:
        """Most rows of logits in a step. Prompts that return logprobs are split to fit."""
        return max_logit_rows(self.max_num_seqs)
