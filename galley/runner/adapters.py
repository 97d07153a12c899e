"""The adapters in a worker's memory: files that are mapped while their requests run."""

from __future__ import annotations

from collections import Counter, OrderedDict
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import NewRow
from galley.config.engine import LoRAConfig
from galley.errors import ModelError
from galley.kernels.adapters import AdapterShape, AdapterTable, PackedAdapter
from galley.kernels.backend import Dense
from galley.layers.sites import Sites
from galley.lora import AdapterFolder
from galley.request import Failure

#: In the column: no adapter.
NONE = -1


class AdapterLimits(msgspec.Struct, frozen=True):
    """Of the adapters in memory.

    Attributes:
        places: most adapters (--max-cpu-loras); those of a step are fewer (--max-loras).
        max_rank: largest rank.
        bf16: their numbers are bf16; otherwise float32.
        target_modules: --lora-target-modules.
    """

    places: int
    max_rank: int
    bf16: bool
    target_modules: tuple[str, ...] = ()

    def num_bytes(self, sites: Sites) -> int:
        """Memory that they may take. Raises ConfigError for targets that no module has."""
        targets = sites.targets(self.target_modules)
        return self.places * sites.num_bytes(self.max_rank, 2 if self.bf16 else 4, targets)


class AdapterSlots:
    """The adapter of each slot.

    Args:
        shape: of the model's adapters.
        folder: where packed adapters are.
        num_slots: of the request table.

    Attributes:
        table: the adapters by place, for the backend.
        column: [slots] int32 place of a slot's adapter, -1 = none.
        errors: slot → why its adapter cannot be had.
    """

    def __init__(
        self, shape: AdapterShape, limits: AdapterLimits, folder: Path, num_slots: int
    ) -> None:
        self.table = AdapterTable(shape, limits.places, limits.max_rank, limits.bf16)
        self.column: NDArray[np.int32] = np.full(num_slots, NONE, np.int32)
        self.errors: dict[int, Failure] = {}
        self._folder = AdapterFolder(folder)
        self._empty = list(range(limits.places - 1, -1, -1))
        self._places: OrderedDict[int, int] = OrderedDict()  # by load, least recently used first
        self._users: Counter[int] = Counter()  # slots of each place

    def set_row(self, row: NewRow) -> None:
        """A request enters a slot."""
        if not row.adapter:
            return
        try:
            place = self._place_of(row.adapter)
        except ModelError as error:
            self.errors[row.slot] = Failure(error.message)
            return
        self.column[row.slot] = place
        self._users[place] += 1

    def clear(self, slot: int) -> None:
        """The slot is empty again."""
        self.errors.pop(slot, None)
        place = int(self.column[slot])
        if place != NONE:
            self._users[place] -= 1
            self.column[slot] = NONE

    def adapter_of(self, slot: int) -> PackedAdapter | None:
        """Of a slot; None = it has none."""
        place = int(self.column[slot])
        return None if place == NONE else self.table.adapters[place]

    def any_of(self, slots: NDArray[np.int32]) -> bool:
        """Whether one of these slots has an adapter."""
        return bool((self.column[slots] != NONE).any())

    def _place_of(self, load: int) -> int:
        place = self._places.get(load)
        if place is None:
            adapter = self._folder.map(load, self.table.shape)
            if adapter.bf16 != self.table.bf16 or adapter.ranks.max() > self.table.max_rank:
                raise ModelError("the adapter was packed for other settings")
            place = self._empty.pop() if self._empty else self._evict()
            self.table.set(place, adapter)
            self._places[load] = place
        self._places.move_to_end(load)
        return place

    def _evict(self) -> int:
        """The place of the adapter that has not been used for longest. Those of one step never
        fill all places."""
        load, place = next(item for item in self._places.items() if not self._users[item[1]])
        del self._places[load]
        self.table.set(place, None)
        return place


def adapter_limits(config: LoRAConfig, dense: Dense) -> AdapterLimits:
    """Of a checked configuration.

    Args:
        dense: number format of the model's weights that are not quantised.
    """
    kind = config.lora_dtype
    bf16 = dense == "bf16" if kind == "auto" else kind == "bfloat16"
    places = config.max_cpu_loras or config.max_loras
    return AdapterLimits(places, config.max_lora_rank, bf16, config.lora_target_modules)
