"""`Proposer`: what guesses drafts, and `Drafts`, its guesses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, NewRow, RequestTable, StepPlan
from galley.config import EngineConfig, ModelInfo
from galley.kernels.backend import Backend, Executable, Model
from galley.kernels.ops import CacheLayer
from galley.kv.layout import KVLayout

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
    """The sequences that drafts are for.

    Attributes:
        config, model_info: of the engine and its model.
        num_slots: of its table.
        available: bytes of memory that could be taken before anything was loaded.
    """

    config: EngineConfig
    model_info: ModelInfo
    num_slots: int
    available: int


class ReadsHidden(Protocol):
    """A proposer that reads hidden states of the model: its parts beside those of `Proposer`.

    Attributes:
        outputs: that the model has to keep (`kernels.backend.Executable.outputs`).
        memory: known once `load` was called.
        lookahead: positions behind those of a step that it writes to, where they have blocks.
        follows: `propose` is to be called after every step, also with no slots.
    """

    outputs: tuple[str, ...]
    memory: int

    @property
    def lookahead(self) -> int: ...
    @property
    def follows(self) -> bool: ...

    def caches(self, before: Sequence[CacheLayer]) -> list[CacheLayer]:
        """Its caches, which lie in the blocks of the model, behind the model's own."""

    def load(self, backend: Backend, model: Model, max_positions: int) -> None:
        """Read its weights; `model` is the one that it drafts for.

        Raises ConfigError and ModelError.
        """

    def attach(
        self,
        target: Executable,
        table: RequestTable,
        columns: dict[str, NDArray[Any]],
        layout: KVLayout,
    ) -> None:
        """Follow an executable of the model, whose cache has been allocated.

        Args:
            columns: of sampling, by slot.
        """


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


def hidden_reader(proposer: Proposer) -> ReadsHidden | None:
    """The proposer, if it reads hidden states of the model."""
    return cast(ReadsHidden, proposer) if hasattr(proposer, "outputs") else None
