"""GGUF tensor types: number, name, values per block and bytes per block.

Complete, so that a header can be checked. `quant` knows which types can be computed.
"""

from __future__ import annotations

import ml_dtypes
import msgspec
import numpy as np


class GGMLType(msgspec.Struct, frozen=True):
    """`block` values of a row take `block_bytes` bytes; `dense` is the dtype of plain numbers.

    Attributes:
        name: RawTensor's dtype: numpy's name for dense types, GGUF's for block types.
    """

    name: str
    block: int
    block_bytes: int
    dense: np.dtype | None = None


def _dense(name: str, dtype: object) -> GGMLType:
    numpy_dtype = np.dtype(dtype)  # type: ignore[call-overload]
    return GGMLType(name, 1, numpy_dtype.itemsize, numpy_dtype)


#: type number → type; numbers that llama.cpp has removed are absent.
GGML_TYPES: dict[int, GGMLType] = {
    0: _dense("float32", "<f4"),
    1: _dense("float16", "<f2"),
    2: GGMLType("Q4_0", 32, 18),
    3: GGMLType("Q4_1", 32, 20),
    6: GGMLType("Q5_0", 32, 22),
    7: GGMLType("Q5_1", 32, 24),
    8: GGMLType("Q8_0", 32, 34),
    9: GGMLType("Q8_1", 32, 40),
    10: GGMLType("Q2_K", 256, 84),
    11: GGMLType("Q3_K", 256, 110),
    12: GGMLType("Q4_K", 256, 144),
    13: GGMLType("Q5_K", 256, 176),
    14: GGMLType("Q6_K", 256, 210),
    15: GGMLType("Q8_K", 256, 292),
    16: GGMLType("IQ2_XXS", 256, 66),
    17: GGMLType("IQ2_XS", 256, 74),
    18: GGMLType("IQ3_XXS", 256, 98),
    19: GGMLType("IQ1_S", 256, 50),
    20: GGMLType("IQ4_NL", 32, 18),
    21: GGMLType("IQ3_S", 256, 110),
    22: GGMLType("IQ2_S", 256, 82),
    23: GGMLType("IQ4_XS", 256, 136),
    24: _dense("int8", "i1"),
    25: _dense("int16", "<i2"),
    26: _dense("int32", "<i4"),
    27: _dense("int64", "<i8"),
    28: _dense("float64", "<f8"),
    29: GGMLType("IQ1_M", 256, 56),
    30: _dense("bfloat16", ml_dtypes.bfloat16),
    34: GGMLType("TQ1_0", 256, 54),
    35: GGMLType("TQ2_0", 256, 66),
    39: GGMLType("MXFP4", 32, 17),
    40: GGMLType("NVFP4", 64, 36),
    41: GGMLType("Q1_0", 128, 18),
}
