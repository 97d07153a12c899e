"""The local executor with a process border through it: only bytes cross it.

A test aid: it exposes a plan or result that is not self-contained, or an array that both sides
write to, without a second process.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import (
    GroupSpec,
    StepPlan,
    StepResult,
    decode_plan,
    decode_result,
    encode_plan,
    encode_result,
)
from galley.executor.local import LocalExecutor
from galley.runner.runner import Runner


class LoopbackExecutor:
    """See `executor.Executor`."""

    def __init__(self, runner: Runner) -> None:
        self._worker = LocalExecutor(runner)
        self.groups = [
            msgspec.msgpack.decode(msgspec.msgpack.encode(g), type=GroupSpec) for g in runner.groups
        ]
        self.num_blocks = runner.num_blocks
        self.max_model_len = runner.max_model_len
        self.batch_invariant = runner.batch_invariant
        self.lookahead = runner.lookahead
        self.max_drafts = runner.max_drafts

    def submit(self, plan: StepPlan) -> LoopbackExecutor:
        self._worker.submit(decode_plan(encode_plan(plan)))
        return self

    def sample(self, mask: NDArray[np.uint64] | None = None) -> StepResult:
        sent = None if mask is None else mask.copy()
        return decode_result(encode_result(self._worker.sample(sent)))

    def rpc(self, method: str, *args: Any) -> list[Any]:
        sent = msgspec.msgpack.decode(msgspec.msgpack.encode(args))
        answers: list[Any] = msgspec.msgpack.decode(
            msgspec.msgpack.encode(self._worker.rpc(method, *sent))
        )
        return answers

    def shutdown(self) -> None:
        self._worker.shutdown()
