"""Embedding rows that the prompts in the slots bring."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.batch import NewRow


class PromptRowSlots:
    """The columns of the op `prompt_rows`.

    Args:
        num_slots, max_len: of the request table.

    Attributes:
        columns: `prompt_rows` [slots] uint64, the address of a slot's rows, 0 = none; `prompt_row`
            [slots, max_len] int32, 1 + the row of each position, 0 = that of its token id.
    """

    def __init__(self, num_slots: int, max_len: int) -> None:
        self._addresses = np.zeros(num_slots, np.uint64)
        self._row = np.zeros((num_slots, max_len), np.int32)
        self._rows: dict[int, NDArray[np.float32]] = {}  # their memory is read by native code
        self.columns: dict[str, NDArray[Any]] = {
            "prompt_rows": self._addresses,
            "prompt_row": self._row,
        }

    def set_row(self, row: NewRow) -> None:
        """A request enters a slot."""
        if row.embeds is None:
            return
        rows = np.frombuffer(row.embeds.rows, np.float32)
        positions = np.frombuffer(row.embeds.positions, np.int32)
        self._rows[row.slot] = rows
        self._addresses[row.slot] = rows.ctypes.data
        self._row[row.slot, positions] = np.arange(1, len(positions) + 1)

    def clear(self, slot: int) -> None:
        """The slot is empty again."""
        if self._rows.pop(slot, None) is not None:
            self._addresses[slot] = 0
            self._row[slot] = 0
