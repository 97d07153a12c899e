"""GGUF's K formats: blocks of 256 values whose group scales are themselves quantised.

    scale of group g = d * sc[g]        minimum of group g = -(dmin * m[g])

Both products are exact in float32 and not in float16, so K types carry float32 scales.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from galley.kernels.quantized import QuantizedWeight
from galley.quant.gguf_blocks import Bytes, blocks_of, nibbles

_F16 = "<f2"
Q4_K_BLOCK = np.dtype([("d", _F16), ("dmin", _F16), ("scales", "u1", 12), ("qs", "u1", (4, 32))])
Q5_K_BLOCK = np.dtype(
    [("d", _F16), ("dmin", _F16), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", (4, 32))]
)
Q6_K_BLOCK = np.dtype(
    [("ql", "u1", (2, 2, 32)), ("qh", "u1", (2, 1, 32)), ("scales", "i1", 16), ("d", _F16)]
)
F32 = NDArray[np.float32]


def _scale_and_min(b: NDArray[np.void]) -> tuple[F32, F32]:
    """Group scales and minima of Q4_K and Q5_K blocks, [N, K / 32] float32 each.

    The 12 bytes hold eight 6-bit scales (A … H) and eight 6-bit minima (a … h):

        bytes 0-3   EEAAAAAA FFBBBBBB GGCCCCCC HHDDDDDD
        bytes 4-7   eeaaaaaa ffbbbbbb ggcccccc hhdddddd
        bytes 8-11  eeeeEEEE ffffFFFF ggggGGGG hhhhHHHH
    """
    packed = b["scales"]
    low, mid, high = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    sc = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=-1)
    m = np.concatenate([mid & 0x3F, (high >> 4) | ((mid >> 2) & 0x30)], axis=-1)
    n = packed.shape[0]
    scale = b["d"].astype(np.float32)[..., None] * sc
    minimum = -(b["dmin"].astype(np.float32)[..., None] * m)
    return scale.reshape(n, -1), minimum.reshape(n, -1)


def q4_k(data: Bytes) -> QuantizedWeight:
    """4-bit codes in groups of 32. Each 32 bytes hold two groups: low nibbles, high nibbles."""
    b = blocks_of(data, Q4_K_BLOCK)
    scale, minimum = _scale_and_min(b)
    codes = nibbles(b["qs"])
    return QuantizedWeight(
        q=codes.reshape(codes.shape[0], -1), bits=4, group=32, scale=scale, min=minimum
    )


def q5_k(data: Bytes) -> QuantizedWeight:
    """5-bit codes in groups of 32: nibbles as in Q4_K, bit g of `qh[j]` on value j of group g."""
    b = blocks_of(data, Q5_K_BLOCK)
    scale, minimum = _scale_and_min(b)
    n, blocks = b.shape
    codes = nibbles(b["qs"]).reshape(n, blocks, 8, 32)
    qh = b["qh"]
    for g in range(8):
        codes[:, :, g] |= ((qh >> g) & 1) << 4
    return QuantizedWeight(q=codes.reshape(n, -1), bits=8, group=32, scale=scale, min=minimum)


def q6_k(data: Bytes) -> QuantizedWeight:
    """6-bit codes around 32 in groups of 16.

    Each half block of 128 values, as four runs of 32:

        run 0: low nibbles of ql[0],  bits 0-1 of qh      run 2: high nibbles of ql[0],  bits 4-5
        run 1: low nibbles of ql[1],  bits 2-3 of qh      run 3: high nibbles of ql[1],  bits 6-7
    """
    b = blocks_of(data, Q6_K_BLOCK)
    n, blocks = b.shape
    ql, qh = b["ql"], b["qh"]
    codes = np.empty((n, blocks, 2, 4, 32), np.uint8)
    np.bitwise_and(ql, 15, out=codes[..., 0:2, :])
    np.right_shift(ql, 4, out=codes[..., 2:4, :])
    for run in range(4):
        codes[..., run, :] |= ((qh[..., 0, :] >> (2 * run)) & 3) << 4
    scale = b["d"].astype(np.float32)[..., None] * b["scales"]
    return QuantizedWeight(
        q=codes.reshape(n, -1), bits=8, group=16, zero=32, scale=scale.reshape(n, -1)
    )
