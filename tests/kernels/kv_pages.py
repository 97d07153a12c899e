"""The KV cache's layout (docs/native_ops.md), implemented a second time, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.native_harness import BF16, Native, aligned, kind_dtype

PAGE = 16


class KVPages:
    """One layer's blocks, NaN where nothing was written, so that a stray read shows."""

    def __init__(self, native: Native, heads: int, dim: int, kind: int, padding: int = 64) -> None:
        self.native, self.heads, self.dim, self.kind = native, heads, dim, kind
        dtype = kind_dtype(kind)
        self.page_size = heads * 2 * PAGE * dim
        block = native.block_size // PAGE * self.page_size * np.dtype(dtype).itemsize
        self.block_stride = block + padding  # another layer's, for all that the op knows
        self.data = aligned((native.num_blocks, self.block_stride), np.uint8)
        self.values[...] = np.nan
        self.values[0] = 0

    @property
    def values(self) -> NDArray[Any]:
        return self.data.view(kind_dtype(self.kind))

    def _places(self, slot: int, positions: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Blocks [n, 1, 1] of positions, and where in them K and V are, [n, heads, dim] each."""
        size, half = self.native.block_size, PAGE * self.dim
        t, d = positions[:, None, None] % PAGE, np.arange(self.dim)
        page = positions[:, None, None] % size // PAGE * self.page_size
        head = page + 2 * half * np.arange(self.heads)[:, None]
        if self.kind == BF16:
            k, v = d // 2 * 2 * PAGE + 2 * t + d % 2, t // 2 * 2 * self.dim + 2 * d + t % 2
        else:
            k, v = d * PAGE + t, t * self.dim + d
        blocks = self.native.block_table[slot, positions // size]
        return blocks[:, None, None], head + k, head + half + v

    def write(self, slot: int, first: int, k: NDArray[Any], v: NDArray[Any]) -> None:
        """k, v: [n, heads, dim], of n positions from the first on."""
        blocks, k_places, v_places = self._places(slot, np.arange(first, first + len(k)))
        values = self.values
        values[blocks, k_places], values[blocks, v_places] = k, v

    def read(self, slot: int, first: int, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """K and V of `count` positions from the first on, [count, heads, dim] each."""
        blocks, k_places, v_places = self._places(slot, np.arange(first, first + count))
        return self.values[blocks, k_places], self.values[blocks, v_places]
