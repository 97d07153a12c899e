"""Times the operations of a few steps of a running engine, and notes what these steps computed.

`EngineCore.profile_operations` starts it, `operation_times` ends it, both between two steps. While
it runs, each operation of a step costs two readings of a clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from galley.engine.observers import StepObserver

if TYPE_CHECKING:
    from galley.batch import RequestTable, StepPlan
    from galley.executor.executor import Executor


class StepSize(msgspec.Struct):
    """The work of a step: of each row the tokens before it and in it, and the rows of logits."""

    computed: list[int]
    new: list[int]
    logits: int


class OperationTimes(msgspec.Struct):
    """Operations of some steps.

    Attributes:
        timings: (name, runs, nanoseconds of all runs) of each operation of the program, in order.
    """

    steps: list[StepSize]
    timings: list[tuple[str, int, int]]


class StepProfile(StepObserver):
    """Profiles the next steps, at most `most` of them."""

    def __init__(self, executor: Executor, most: int) -> None:
        self._executor = executor
        self._most = most
        self._times = OperationTimes([], [])
        self._runs = True
        executor.rpc("profile", True)

    @property
    def complete(self) -> bool:
        """Whether it has ended, as it does when all its steps are timed."""
        return not self._runs

    def planned(self, plan: StepPlan, table: RequestTable) -> None:
        if self._runs:
            computed = table.num_computed[plan.slots].tolist()
            size = StepSize(computed, plan.num_new.tolist(), int(plan.num_logits.sum()))
            self._times.steps.append(size)

    def committed(self) -> None:
        if self._runs and len(self._times.steps) >= self._most:
            self.stop()

    def stop(self) -> OperationTimes:
        """End the profile; returns what has been measured."""
        if self._runs:
            self._runs = False
            [self._times.timings] = self._executor.rpc("timings")
            self._executor.rpc("profile", False)
        return self._times
