"""The interface between the engine core and its workers."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from galley.batch import GroupSpec, StepPlan, StepResult


class Handle(Protocol):
    """A submitted step."""

    def sample(self, mask: NDArray[np.uint64] | None = None) -> StepResult:
        """Wait for the forward pass, sample, and give the result; once per step.

        Args:
            mask: uint64 [masked logit rows, ceil(V / 64)] bits of allowed tokens, for the plan's
                `masked_logits`.
        """


class Executor(Protocol):
    """Runs plans.

    Attributes:
        groups: the KV cache's groups.
        num_blocks: blocks of the pool, the null block among them.
        max_model_len: longest sequence, fitted to the pool where the configuration says -1.
        batch_invariant: a row's tokens do not depend on its batch (design 3.1).
        lookahead: tokens behind those of a step for which blocks are needed, if there are any.
        max_drafts: most drafts of a step.
    """

    groups: list[GroupSpec]
    num_blocks: int
    max_model_len: int
    batch_invariant: bool
    lookahead: int
    max_drafts: int

    def submit(self, plan: StepPlan) -> Handle:
        """Start a step. The one before must have been sampled.

        May return before the step is computed. Where the caller's cores compute it (on a CPU), it
        returns when the forward pass is done.
        """

    def rpc(self, method: str, *args: Any) -> list[Any]:
        """Call one of `RPC_METHODS` on every worker: their answers, in order of rank."""

    def shutdown(self) -> None:
        """Stop the workers; the executor cannot be used afterwards."""


#: Methods of `Runner` that may be called by name.
RPC_METHODS = frozenset(
    (
        *("reset", "set_heartbeat", "profile", "timings", "describe", "memory"),
        *("release_blocks", "release_memory", "restore_memory"),
    )
)
