"""The executor of one worker in the same process: it calls the runner."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.batch import StepPlan, StepResult
from galley.executor.executor import RPC_METHODS
from galley.runner.runner import Runner


class LocalExecutor:
    """See `executor.Executor`. A handle is the executor itself: one step at a time."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.groups = runner.groups
        self.num_blocks = runner.num_blocks
        self.max_model_len = runner.max_model_len
        self.batch_invariant = runner.batch_invariant
        self.lookahead = runner.lookahead
        self.max_drafts = runner.max_drafts

    def submit(self, plan: StepPlan) -> LocalExecutor:
        self._runner.execute(plan)
        return self

    def sample(self, mask: NDArray[np.uint64] | None = None) -> StepResult:
        return self._runner.sample(mask)

    def rpc(self, method: str, *args: Any) -> list[Any]:
        if method not in RPC_METHODS:
            raise ValueError(f"no worker method {method!r}; there are {sorted(RPC_METHODS)}")
        return [getattr(self._runner, method)(*args)]

    def shutdown(self) -> None:
        del self._runner
