"""GGUF's types of blocks that native code decodes (csrc/blocks.cpp).

Rows stay where the file has them until they are packed. The other types: `gguf_iq`, `gguf_nvfp4`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.kernels.quantized import BLOCK_TYPES, Blocks, BlockType, QuantizedWeight


def read(block: BlockType, data: NDArray[Any]) -> QuantizedWeight:
    """Rows of whole blocks, uint8 [N, bytes per row]. Raises ValueError for other data."""
    if data.ndim != 2 or data.shape[1] % block.bytes or not data.size:
        raise ValueError(f"{data.shape} bytes are not rows of blocks of {block.bytes}")
    if data.strides[1] != 1:
        data = np.ascontiguousarray(data)
    rows = np.uint64(data.ctypes.data) + np.arange(len(data), dtype=np.uint64) * np.uint64(
        data.strides[0]
    )
    k = data.shape[1] // block.bytes * block.values
    return QuantizedWeight(blocks=Blocks(block, rows, k, (data,)))


#: Type → raw array → QuantizedWeight.
BLOCKS: dict[str, Callable[[NDArray[Any]], QuantizedWeight]] = {
    name: partial(read, block) for name, block in BLOCK_TYPES.items()
}
