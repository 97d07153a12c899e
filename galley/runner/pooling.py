"""Pooling: from the final hidden states of a prompt to one vector of it, or one of each token.

Chunks of a prompt are added up token by token, so a vector has the same bits however its prompt was
split.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import NewRow, RequestTable, StepPlan
from galley.kernels.adapters import PackedAdapter
from galley.request import PoolingParams
from galley.runner.pooling_head import Head

F32 = NDArray[np.float32]


class _Pooled(msgspec.Struct):
    """A slot that pools.

    Attributes:
        kept: float64 [H] of the chunks so far: the sum of the hidden states (MEAN), or that of one
            token (CLS, LAST).
        rows: all of them, chunk by chunk (ALL, STEP).
    """

    params: PoolingParams
    kept: NDArray[np.float64] | None = None
    rows: list[F32] = msgspec.field(default_factory=list)

    def add(self, rows: F32) -> None:
        """The next hidden states [n, H] of the prompt."""
        kind = self.params.pooling
        if kind in ("ALL", "STEP"):
            self.rows.append(rows.copy())
        elif kind == "MEAN":
            self.kept = _add_rows(self.kept, rows)
        elif kind != "CLS" or self.kept is None:
            self.kept = rows[0 if kind == "CLS" else -1].astype(np.float64)

    def states(self, num_prompt: int) -> NDArray[np.float64] | F32:
        """The hidden states [n, H] that are left of a prompt of so many tokens, all of which have
        been added."""
        if self.rows:
            return np.concatenate(self.rows)
        assert self.kept is not None
        return (self.kept / num_prompt if self.params.pooling == "MEAN" else self.kept)[None]


class Pooler:
    """The slots that pool, and the head that their states go through."""

    def __init__(self, head: Head | None = None) -> None:
        self._slots: dict[int, _Pooled] = {}
        self._head = head

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

    def pool(
        self,
        plan: StepPlan,
        table: RequestTable,
        hidden: F32,
        adapter_of: Callable[[int], PackedAdapter | None],
    ) -> dict[int, F32]:
        """The vectors of slots whose prompt this step completes.

        Args:
            table: as it was before the step.
            hidden: [T, H] of the step's tokens.
            adapter_of: a slot's adapter.
        """
        vectors: dict[int, F32] = {}
        num_new = plan.num_new.tolist()
        ends = np.cumsum(plan.num_new).tolist()
        slots = plan.slots.astype(np.intp)
        lengths = table.num_prompt[slots].tolist()
        done = (table.num_computed[slots] + plan.num_new).tolist()
        for row, slot in enumerate(slots.tolist()):
            pooled = self._slots.get(slot)
            if pooled is None:
                continue
            pooled.add(hidden[ends[row] - num_new[row] : ends[row]])
            if done[row] == lengths[row]:
                tokens = table.token_ids[slot, : lengths[row]]
                states, adapter = pooled.states(lengths[row]), adapter_of(slot)
                vectors[slot] = self._finished(states, pooled.params, tokens, adapter)
        return vectors

    def _finished(
        self,
        states: NDArray[np.float64] | F32,
        params: PoolingParams,
        tokens: NDArray[np.int32],
        adapter: PackedAdapter | None,
    ) -> F32:
        """The result of a request: [columns], or [tokens, columns] of tasks of tokens."""
        head = self._head
        if head is None:
            rows: NDArray[np.float64] | F32 = states
        else:
            rows = head(states.astype(np.float32), adapter)
            if head.is_vocabulary:
                rows = np.log1p(np.maximum(rows, np.float32(0))).max(axis=0, keepdims=True)
        if params.task in ("classify", "token_classify"):
            rows = self._labels(rows.astype(np.float32), params, tokens)
        else:
            rows = _vectors(rows, params)
        return np.ascontiguousarray(rows if params.of_tokens else rows[0], np.float32)

    def _labels(self, rows: F32, params: PoolingParams, tokens: NDArray[np.int32]) -> F32:
        if params.returned_token_ids is not None:
            rows = rows[:, params.returned_token_ids]
        if params.pooling == "STEP":
            rows = rows[tokens == params.step_tag_id]
        if params.use_activation is False or self._head is None:
            return rows
        return self._head.activated(rows)


def _add_rows(total: NDArray[np.float64] | None, rows: F32) -> NDArray[np.float64]:
    """`total` + rows[0] + rows[1] + …, in this order whatever the number of rows."""
    wide = rows.astype(np.float64)
    if total is not None:
        wide = np.concatenate((total[None], wide))
    summed: NDArray[np.float64] = np.add.reduce(wide, axis=0)  # row by row
    return summed


def _vectors(rows: NDArray[np.float64] | F32, params: PoolingParams) -> NDArray[np.float64] | F32:
    """Vectors [n, H] as they are returned: cut, and scaled to length 1."""
    rows = rows[:, : params.dimensions]
    if params.use_activation is False:
        return rows
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    unit: NDArray[np.float64] = wide / np.maximum(lengths, 1e-12)
    return unit
