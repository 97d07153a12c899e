"""The end rule interface."""

from __future__ import annotations

from typing import Protocol

import msgspec

from galley.batch import I32
from galley.request import FinishReason


class Ending(msgspec.Struct, frozen=True):
    """Why a sequence ends. `stop_reason` is the stop token id that was hit, or a word."""

    reason: FinishReason
    stop_reason: int | str | None = None


class EndRule(Protocol):
    """A reason to end one sequence."""

    def ending(self, token_ids: I32, num_prompt: int) -> Ending | None:
        """The end that the last of `token_ids` brings, or None.

        Args:
            token_ids: prompt and output so far; at least one token is output.
        """
