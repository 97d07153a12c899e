"""Dense formats: float32, float16 and bfloat16, from safetensors or GGUF."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from galley.kernels.quantized import QuantizedWeight

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def float32(data: NDArray[np.generic]) -> QuantizedWeight:
    """float32 stays as it is; float16 is widened, since kernels have no float16."""
    return QuantizedWeight(dense=np.asarray(data, dtype=np.float32))


def bfloat16(data: NDArray[np.generic]) -> QuantizedWeight:
    """bfloat16 values, given as such or as their bits (uint16, or bytes of a GGUF row)."""
    return QuantizedWeight(dense=data if data.dtype == BFLOAT16 else data.view(BFLOAT16))


def gguf_f32(data: NDArray[np.generic]) -> QuantizedWeight:
    """GGUF F32: float32 values or the bytes of each row."""
    return float32(data.view(np.float32) if data.dtype == np.uint8 else data)


def gguf_f16(data: NDArray[np.generic]) -> QuantizedWeight:
    """GGUF F16: float16 values or the bytes of each row."""
    return float32(data.view(np.float16) if data.dtype == np.uint8 else data)
