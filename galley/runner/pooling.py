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
    """A slot that pools.

    Attributes:
        kept: float64 [H] of the chunks so far: the sum of the hidden states (MEAN), or that of the
            first token (CLS).
    """

    params: PoolingParams
    kept: NDArray[np.float64] | None = None

    def add(self, rows: F32) -> None:
        """The next hidden states [n, H] of the prompt."""
        kind = self.params.pooling
        if kind == "MEAN":
            self.kept = _add_rows(self.kept, rows)
        elif kind != "CLS" or self.kept is None:
            self.kept = rows[0 if kind == "CLS" else -1].astype(np.float64)

    def vector(self, num_prompt: int) -> F32:
        """The vector [H] of a prompt of so many tokens, all of which have been added."""
        assert self.kept is not None
        mean = self.params.pooling == "MEAN"
        return _finish(self.kept / num_prompt if mean else self.kept, self.params)


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
            pooled, num_prompt = self._slots[slot], int(table.num_prompt[slot])
            pooled.add(hidden[ends[row] - num_new : ends[row]])
            if int(table.num_computed[slot]) + num_new == num_prompt:
                vectors[slot] = pooled.vector(num_prompt)
        return vectors


def _add_rows(total: NDArray[np.float64] | None, rows: F32) -> NDArray[np.float64]:
    """`total` + rows[0] + rows[1] + …, in this order whatever the number of rows."""
    wide = rows.astype(np.float64)
    if total is not None:
        wide = np.concatenate((total[None], wide))
    summed: NDArray[np.float64] = np.add.accumulate(wide, axis=0)[-1]
    return summed


def _finish(vector: NDArray[np.float64], params: PoolingParams) -> F32:
    vector = vector[: params.dimensions]
    if params.use_activation is not False:
        vector = vector / max(float(np.sqrt(np.square(vector).sum())), 1e-12)
    return vector.astype(np.float32)
