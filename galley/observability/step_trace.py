"""A ring of the last steps: what ran, how long it took, what happened to the blocks.

Metrics, the live view and cache statistics are derived from it. Recording a step writes one row
of a structured array and keeps references to the plan's columns; nothing is copied.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

#: Times in seconds of `time.perf_counter`; blocks_* count changes within the step.
STEP_DTYPE = np.dtype(
    [
        ("step", np.int64),
        ("begin", np.float64),  # schedule begins
        ("submit", np.float64),  # the plan is handed to the executor
        ("sampled", np.float64),  # the result is available
        ("end", np.float64),  # outputs are built
        ("num_rows", np.int32),
        ("num_tokens", np.int32),  # computed in this step
        ("num_decodes", np.int32),  # rows of one token that yield one
        ("num_output", np.int32),  # tokens that the step yields
        ("num_running", np.int32),  # after the step
        ("num_waiting", np.int32),
        ("blocks_taken", np.int32),
        ("blocks_released", np.int32),
        ("blocks_evicted", np.int32),
        ("blocks_free", np.int32),
        ("preemptions", np.int32),
        ("started", np.int32),
        ("ended", np.int32),
    ]
)


class StepRows(msgspec.Struct, frozen=True):
    """The rows of a step.

    Attributes:
        handles: [n] int64.
        num_new: [n] int32, tokens computed.
        num_sampled: [n] int32, tokens sampled: 0 for a chunk that ends before its prompt does, 1,
            or 1 + drafts.
        started: (handle, cached tokens, time queued, time admitted, resumed) of each admission.
        ended: (handle, reason) of each end.
    """

    handles: NDArray[np.int64]
    num_new: NDArray[np.int32]
    num_sampled: NDArray[np.int32]
    started: list[tuple[int, int, float, float, bool]] = []
    ended: list[tuple[int, str]] = []


class StepTrace:
    """The last `capacity` steps.

    Attributes:
        records: [capacity] of STEP_DTYPE; step n is at n % capacity.
        last: number of the last step recorded, 0 = none.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = capacity
        self.records = np.zeros(capacity, STEP_DTYPE)
        self.rows: list[StepRows | None] = [None] * capacity
        self.last = 0

    def record(self, record: tuple[int | float, ...], rows: StepRows) -> None:
        """Keep a step; `record` has the fields of STEP_DTYPE in order."""
        step = int(record[0])
        index = step % self.capacity
        self.records[index] = record
        self.rows[index] = rows
        self.last = step

    def since(self, step: int) -> NDArray[np.void]:
        """Records of the steps after `step` that are still in the ring, oldest first."""
        first = max(step + 1, self.last - self.capacity + 1, 1)
        indices = np.arange(first, self.last + 1) % self.capacity
        records: NDArray[np.void] = self.records[indices]
        return records[records["step"] >= first]

    def rows_of(self, step: int) -> StepRows | None:
        """The rows of `step`, if it is still in the ring."""
        index = step % self.capacity
        return self.rows[index] if self.records["step"][index] == step else None
