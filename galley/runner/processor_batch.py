"""The batch as logits processors see it: dense rows that sequences enter and leave."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import NewRow, RequestTable
from galley.request import PoolingParams, SamplingParams
from galley.runner.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality
from galley.runner.sampled_rows import SampledRows

F32 = NDArray[np.float32]

logger = logging.getLogger(__name__)


class _Member(msgspec.Struct):
    """A sequence of the batch; `output` is the list that processors hold."""

    slot: int
    params: SamplingParams
    output: list[int]


class ProcessorBatch:
    """The processors of an engine, and its batch. Slots are the runner's; rows are theirs."""

    def __init__(self, processors: Sequence[LogitsProcessor]) -> None:
        invariant = [each.is_argmax_invariant() for each in processors]
        self._all = processors
        self._plain = [p for p, after in zip(processors, invariant, strict=True) if not after]
        self._scaled = [p for p, after in zip(processors, invariant, strict=True) if after]
        self._rows: list[_Member | None] = []
        self._row_of: dict[int, int] = {}
        self._new: dict[int, _Member] = {}
        self._gaps: list[int] = []

    def set_row(self, row: NewRow) -> None:
        """A request enters its slot."""
        if not isinstance(row.params, PoolingParams):
            self._new[row.slot] = _Member(row.slot, row.params, [])

    def clear(self, slot: int) -> None:
        """The slot is empty."""
        if self._new.pop(slot, None) is None and slot in self._row_of:
            row = self._row_of.pop(slot)
            self._rows[row] = None
            self._gaps.append(row)

    def apply(
        self,
        sampled: SampledRows,
        table: RequestTable,
        temperature: NDArray[np.float32],
        logits: F32,
    ) -> dict[int, str]:
        """Rewrite the logits of these rows; row of the plan → message for those that failed.

        Args:
            sampled: one row of each sequence that samples.
            temperature: by slot; 0 = greedy.
            logits: [L, V] of the step.
        """
        if not len(sampled):
            return {}
        try:
            update = self._update(table)
            for processor in self._all:
                processor.update_state(update)
            rows = np.array([self._row_of[slot] for slot in sampled.slots.tolist()], np.intp)
            batch = np.zeros((len(self._rows), logits.shape[1]), np.float32)
            batch[rows] = logits[sampled.logit_rows]
            for processor in self._plain:
                batch = _processed(processor, batch)
            warm = temperature[sampled.slots] > 0
            if self._scaled and warm.any():
                batch[rows[warm]] = self._after_temperature(
                    batch, rows[warm], temperature[sampled.slots[warm], None]
                )
            logits[sampled.logit_rows] = batch[rows]
        except Exception as error:
            logger.exception("a logits processor failed; the requests of this step end")
            message = f"a logits processor failed: {type(error).__name__}: {error}"
            return dict.fromkeys(sampled.rows.tolist(), message)
        return {}

    def _after_temperature(self, batch: F32, rows: NDArray[np.intp], temperature: F32) -> F32:
        """These rows, rewritten by the processors that get logits over the temperature. What they
        leave as it is keeps its bits.
        """
        scaled = batch.copy()
        scaled[rows] /= temperature
        given = scaled[rows]
        for processor in self._scaled:
            scaled = _processed(processor, scaled)
        changed = scaled[rows]
        return np.where(changed == given, batch[rows], changed * temperature)

    def _update(self, table: RequestTable) -> BatchUpdate | None:
        """Changes since the last step that sampled; output lists as they are now."""
        gaps = sorted(self._gaps, reverse=True)
        added = []
        for slot, member in self._new.items():
            row = gaps.pop() if gaps else len(self._rows)
            self._rows[row : row + 1] = [member]
            self._row_of[slot] = row
            prompt = table.token_ids[slot, : table.num_prompt[slot]].tolist()
            added.append((row, member.params, prompt, member.output))
        moved = []
        for gap in reversed(gaps):
            while self._rows and self._rows[-1] is None:
                self._rows.pop()
            if gap >= len(self._rows):
                break
            member_moved = self._rows.pop()
            assert member_moved is not None
            self._rows[gap], self._row_of[member_moved.slot] = member_moved, gap
            moved.append((len(self._rows), gap, MoveDirectionality.UNIDIRECTIONAL))
        self._new, self._gaps = {}, []
        for each in self._rows:
            assert each is not None
            first = int(table.num_prompt[each.slot]) + len(each.output)
            each.output += table.token_ids[each.slot, first : table.num_tokens[each.slot]].tolist()
        if not (gaps or added or moved):
            return None
        return BatchUpdate(len(self._rows), gaps, added, moved)


def _processed(processor: LogitsProcessor, logits: F32) -> F32:
    """The logits that the processor returns for a batch. Raises ValueError for another shape."""
    returned: F32 = np.asarray(processor.process(logits), np.float32)
    if returned.shape != logits.shape:
        raise ValueError(
            f"{type(processor).__name__} returned shape {returned.shape} for logits of shape "
            f"{logits.shape}"
        )
    return returned
