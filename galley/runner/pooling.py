"""Pooled vectors: from the final hidden states of a prompt to one vector of it.

Chunks of a prompt are added up token by token, so a vector has the same bits however its prompt was
split.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import NewRow, RequestTable, StepPlan
from galley.request import PoolingParams

F32 = NDArray[np.float32]


class _Pooled(msgspec.Struct):
    """A slot that pools; `total` is the sum of the hidden states so far, float64 [H] (MEAN)."""

    params: PoolingParams
    total: NDArray[np.float64] | None = None


class Pooler:
    """The slots that pool."""

    def __init__(self) -> None:
        self._slots: dict[int, _Pooled] = {}

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def slots(self) -> set[int]:
        return set(self._slots)

    def set_row(self, row: NewRow) -> None:
        """A request enters its slot."""
        if isinstance(row.params, PoolingParams):
            self._slots[row.slot] = _Pooled(row.params)

    def clear(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def pool(self, plan: StepPlan, table: RequestTable, hidden: F32) -> dict[int, F32]:
        """The vectors of slots whose prompt this step completes.

        Args:
            table: as it was before the step.
            hidden: [T, H] of the step's tokens.
        """
        vectors: dict[int, F32] = {}
        ends = np.cumsum(plan.num_new)
        for row in np.flatnonzero(np.isin(plan.slots, list(self._slots))).tolist():
            slot, num_new = int(plan.slots[row]), int(plan.num_new[row])
            pooled, rows = self._slots[slot], hidden[ends[row] - num_new : ends[row]]
            if pooled.params.pooling == "MEAN":
                pooled.total = _add_rows(pooled.total, rows)
            num_prompt = int(table.num_prompt[slot])
            if int(table.num_computed[slot]) + num_new == num_prompt:
                total = rows[-1] if pooled.total is None else pooled.total / num_prompt
                vectors[slot] = _finish(total.astype(np.float64), pooled.params.normalize)
        return vectors


def _add_rows(total: NDArray[np.float64] | None, rows: F32) -> NDArray[np.float64]:
    """`total` + rows[0] + rows[1] + …, in this order whatever the number of rows."""
    wide = rows.astype(np.float64)
    if total is not None:
        wide = np.concatenate((total[None], wide))
    summed: NDArray[np.float64] = np.add.accumulate(wide, axis=0)[-1]
    return summed


def _finish(vector: NDArray[np.float64], normalize: bool) -> F32:
    if normalize:
        vector = vector / max(float(np.sqrt(np.square(vector).sum())), 1e-12)
    return vector.astype(np.float32)
