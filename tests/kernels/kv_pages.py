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

    def _head(self, slot: int, position: int, head: int) -> tuple[NDArray[Any], NDArray[Any]]:
        block = self.native.block_table[slot, position // self.native.block_size]
        page = position % self.native.block_size // PAGE
        half = PAGE * self.dim
        start = page * self.page_size + head * 2 * half
        both = self.values[block, start : start + 2 * half]
        return both[:half], both[half:]

    def _views(self, slot: int, position: int, head: int) -> tuple[NDArray[Any], NDArray[Any]]:
        k, v = self._head(slot, position, head)
        t = position % PAGE
        if self.kind == BF16:
            return (
                k.reshape(self.dim // 2, PAGE, 2)[:, t],
                v.reshape(PAGE // 2, self.dim, 2)[t // 2, :, t % 2],
            )
        return k.reshape(self.dim, PAGE)[:, t], v.reshape(PAGE, self.dim)[t]

    def write(self, slot: int, position: int, k: NDArray[Any], v: NDArray[Any]) -> None:
        """k, v: [heads, dim]."""
        for h in range(self.heads):
            k_view, v_view = self._views(slot, position, h)
            k_view[...] = k[h].reshape(k_view.shape)
            v_view[...] = v[h]

    def read(self, slot: int, position: int) -> tuple[NDArray[Any], NDArray[Any]]:
        pairs = [self._views(slot, position, h) for h in range(self.heads)]
        return (
            np.stack([k.reshape(self.dim) for k, _ in pairs]),
            np.stack([v for _, v in pairs]),
        )
