"""Rows of a step while it is planned: decoding rows as columns, then prompts one by one."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32

Slots = NDArray[np.intp]


class StepColumns(msgspec.Struct):
    """Columns of a plan's rows, [n] each; see `batch.StepPlan`."""

    slots: Slots
    num_new: I32
    num_logits: I32
    num_sampled: I32


class StepRows(msgspec.Struct):
    """Rows in scheduling order.

    Attributes:
        decode_slots: [d] rows that compute their last known token, and drafts behind it.
        decode_tokens: [d] tokens of each: 1 + its drafts. All of them yield logits and are sampled.
        num_decode_tokens, num_prompt_tokens, num_prompt_logits: totals so far.
    """

    decode_slots: Slots
    decode_tokens: I32
    num_decode_tokens: int
    num_prompt_tokens: int = 0
    num_prompt_logits: int = 0
    _prompts: list[tuple[int, int, int, int]] = []

    @property
    def num_logits(self) -> int:
        return self.num_decode_tokens + self.num_prompt_logits

    @property
    def num_tokens(self) -> int:
        return self.num_decode_tokens + self.num_prompt_tokens

    def add(self, slot: int, num_new: int, num_logits: int, sampled: bool) -> None:
        """Append a chunk of a prompt; `sampled` if its last position yields a token."""
        self._prompts.append((slot, num_new, num_logits, int(sampled)))
        self.num_prompt_tokens += num_new
        self.num_prompt_logits += num_logits

    def columns(self) -> StepColumns:
        tokens = self.decode_tokens
        if not self._prompts:
            return StepColumns(self.decode_slots, tokens, tokens, tokens)
        added = np.array(self._prompts, np.int32)
        slots = np.concatenate((self.decode_slots, added[:, 0]), dtype=np.intp)
        num_new, num_logits, num_sampled = (
            np.concatenate((tokens, added[:, column])) for column in (1, 2, 3)
        )
        return StepColumns(slots, num_new, num_logits, num_sampled)
