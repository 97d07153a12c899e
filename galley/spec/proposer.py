"""`Proposer`: what guesses drafts, and `Drafts`, its guesses."""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, NewRow, RequestTable, StepPlan
from galley.config import EngineConfig, ModelInfo

#: Levels of evidence for a draft; the acceptance of each is measured by itself.
NUM_LEVELS = 12


class Drafts(msgspec.Struct, frozen=True, eq=False):
    """Guesses at the next tokens of n sequences.

    Attributes:
        counts: [n] drafts of each.
        ids: [n, width] of which the first counts[i] are set.
        levels: [n] in 0 … NUM_LEVELS - 1, how good the evidence is, such as tokens that matched.
    """

    counts: I32
    ids: I32
    levels: I32


class Target(msgspec.Struct, frozen=True, eq=False):
    """What drafts are for.

    Attributes:
        config, model_info: of the engine and its model.
        num_slots: of its table.
        available: bytes of memory that could be taken before anything was loaded.
    """

    config: EngineConfig
    model_info: ModelInfo
    num_slots: int
    available: int


class Proposer(Protocol):
    """Guesses the continuation of sequences that have just sampled a token.

    Attributes:
        width: most drafts of a sequence.
        memory: bytes that its weights and caches take.
        is_free: whether a guess costs nothing next to a step; then guesses are made at each step,
            and their quality is known before any of them is computed.
    """

    width: int
    memory: int
    is_free: bool

    def enter(self, row: NewRow) -> None:
        """A sequence enters a slot."""

    def leave(self, table: RequestTable, slots: NDArray[np.intp]) -> None:
        """Sequences leave these slots; `table` still has their tokens."""

    def propose(self, table: RequestTable, slots: NDArray[np.intp], most: I32) -> Drafts:
        """Drafts for `slots`, at most `most` [n] of each.

        Args:
            table: with the tokens just sampled; known are token_ids[slot, : num_tokens[slot]].
        """

    def stepped(self, plan: StepPlan) -> None:
        """A step has been computed, before its result is in the table."""
