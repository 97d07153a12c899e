"""GGUF's NVFP4: blocks of 64 values in groups of 16, whose nibbles are low ones, then high ones."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from galley.kernels.quantized import QuantizedWeight

BLOCK = np.dtype([("d", "u1", 4), ("qs", "u1", (4, 8))])
#: E2M1 numbers, doubled.
E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def nvfp4(data: NDArray[np.uint8]) -> QuantizedWeight:
    """value = scale / 2 * level, with scales of E4M3 without a sign."""
    b = np.ascontiguousarray(data).view(BLOCK)
    n = len(b)
    scale = (b["d"] & 127).reshape(n, -1)
    scale[scale == 127] = 0  # NaN
    return QuantizedWeight(
        q=np.concatenate([b["qs"] & 15, b["qs"] >> 4], axis=-1).reshape(n, -1),
        bits=4,
        group=16,
        scale=scale.view(ml_dtypes.float8_e4m3fn),
        super_scale=np.full((n, 1), 0.5, np.float32),
        table=E2M1_DOUBLED,
    )
