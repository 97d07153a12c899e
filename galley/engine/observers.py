"""Step observers: they watch the steps of an engine core without taking part in them.

The launcher imports this module (by way of the faults), so it imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from galley.batch import RequestTable, StepPlan
    from galley.engine.heartbeat import StatusFile
    from galley.observability.meter import Workload


class StepObserver:
    """Notified of each step, on the engine's thread and in order of registration.

    Both methods do nothing here: an observer overrides those that it needs.
    """

    def planned(self, plan: StepPlan, table: RequestTable) -> None:
        """A step has been planned and is about to be executed."""

    def committed(self) -> None:
        """The step that was planned last has been computed, and its results are in the table."""


class RowRecorder(StepObserver):
    """Writes the rows of each step to the status file, for the launcher to read after a death."""

    def __init__(self, status: StatusFile) -> None:
        self._status = status

    def planned(self, plan: StepPlan, table: RequestTable) -> None:
        lengths = table.num_tokens[plan.slots].astype("int64")
        self._status.record(table.handles[plan.slots], lengths)

    def committed(self) -> None:
        self._status.count_step()


class WorkloadMeter(StepObserver):
    """Estimates the work of each step (--enable-mfu-metrics)."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    def planned(self, plan: StepPlan, table: RequestTable) -> None:
        num_computed = table.num_computed[plan.slots]
        self._workload.add(plan.num_new, num_computed, int(plan.num_logits.sum()))
