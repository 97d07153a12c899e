"""Random blocks of GGUF types: every bit random but those of scales, which are of weights."""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Type

#: Byte offsets of a block's float16 fields.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "TQ1_0": [52],
    "TQ2_0": [64],
    "NVFP4": [],
    "IQ1_S": [0],
    "IQ1_M": [],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ2_S": [0],
    "IQ3_XXS": [0],
    "IQ3_S": [0],
}
#: Byte offset of a block's exponent: its scale is 2 ** (byte - 128).
EXPONENTS = {"MXFP4": 0}


def random_blocks(
    name: str, rng: np.random.Generator, rows: int, k: int, scale: float = 0.1
) -> np.ndarray:
    """uint8 [rows, bytes per row] of K = k values; `scale` is the spread of the block scales."""
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[Type[name]]
    data = rng.integers(0, 256, (rows, k // per_block * block_bytes), dtype=np.uint8)
    blocks = data.reshape(-1, block_bytes)
    for offset in HALVES[name]:
        halves = rng.normal(0, scale, len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    if name in EXPONENTS:
        _, exponents = np.frexp(rng.normal(0, scale, len(blocks)))
        blocks[:, EXPONENTS[name]] = exponents + 128
    if name == "NVFP4":
        scales = np.abs(rng.normal(0, scale, (len(blocks), 4))).astype(ml_dtypes.float8_e4m3fn)
        blocks[:, :4] = scales.view(np.uint8)
    if name == "IQ1_M":  # d is spread over the four numbers of scales
        d = rng.normal(0, scale, len(blocks)).astype(np.float16).view(np.uint16)
        words = blocks[:, 48:].copy().view(np.uint16) & 0x0FFF
        words |= (d[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15) << 12
        blocks[:, 48:] = words.view(np.uint8)
    return data
