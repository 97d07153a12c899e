"""GGUF's K formats: blocks of 256 values whose group scales are themselves quantized.

scale of group g = d * sc[g]        minimum of group g = -dmin * m[g]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.kernels.quantized import QuantizedWeight
from galley.quant.gguf_blocks import Bytes, blocks_of, nibbles

_F16 = "<f2"
Q2_K_BLOCK = np.dtype([("scales", "u1", 16), ("qs", "u1", (2, 1, 32)), ("d", _F16), ("dmin", _F16)])
Q3_K_BLOCK = np.dtype(
    [("hmask", "u1", 32), ("qs", "u1", (2, 1, 32)), ("scales", "u1", 12), ("d", _F16)]
)
Q4_K_BLOCK = np.dtype([("d", _F16), ("dmin", _F16), ("scales", "u1", 12), ("qs", "u1", (4, 32))])
Q5_K_BLOCK = np.dtype(
    [("d", _F16), ("dmin", _F16), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", (4, 32))]
)
Q6_K_BLOCK = np.dtype(
    [("ql", "u1", (2, 2, 32)), ("qh", "u1", (2, 1, 32)), ("scales", "i1", 16), ("d", _F16)]
)


def _scales_and_mins(b: NDArray[np.void]) -> dict[str, Any]:
    """Group scales and minima of Q4_K and Q5_K blocks, as fields of `QuantizedWeight`.

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
    return {
        "scale": sc.reshape(n, -1),
        "min": m.reshape(n, -1),
        "super_scale": b["d"].copy(),
        "super_min": -b["dmin"],
    }


def q4_k(data: Bytes) -> QuantizedWeight:
    """4-bit codes in groups of 32. Each 32 bytes hold two groups: low nibbles, high nibbles."""
    b = blocks_of(data, Q4_K_BLOCK)
    codes = nibbles(b["qs"])
    codes = codes.reshape(codes.shape[0], -1)
    return QuantizedWeight(q=codes, bits=4, group=32, **_scales_and_mins(b))


def q5_k(data: Bytes) -> QuantizedWeight:
    """5-bit codes in groups of 32: nibbles as in Q4_K, bit g of `qh[j]` on value j of group g."""
    b = blocks_of(data, Q5_K_BLOCK)
    n, blocks = b.shape
    codes = nibbles(b["qs"]).reshape(n, blocks, 8, 32)
    qh = b["qh"]
    for g in range(8):
        codes[:, :, g] |= ((qh >> g) & 1) << 4
    return QuantizedWeight(q=codes.reshape(n, -1), bits=5, group=32, **_scales_and_mins(b))


def _pairs(qs: Bytes) -> Bytes:
    """[N, blocks, 2, 1, 32] bytes → 2-bit codes [N, blocks, 8, 32]: of each half, run by run of 32,
    bits 0-1, 2-3, 4-5, 6-7."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    codes = ((qs >> shifts) & 3).astype(np.uint8, copy=False)
    return codes.reshape(*qs.shape[:2], 8, 32)


def q2_k(data: Bytes) -> QuantizedWeight:
    """2-bit codes in groups of 16, each with a 4-bit scale and, in the high nibble, minimum."""
    b = blocks_of(data, Q2_K_BLOCK)
    n = len(b)
    return QuantizedWeight(
        q=_pairs(b["qs"]).reshape(n, -1),
        bits=2,
        group=16,
        scale=(b["scales"] & 15).reshape(n, -1),
        min=(b["scales"] >> 4).reshape(n, -1),
        super_scale=b["d"].copy(),
        super_min=-b["dmin"],
    )


def q3_k(data: Bytes) -> QuantizedWeight:
    """3-bit codes around 4 in groups of 16: two bits as in Q2_K, the third of run r at bit r of
    `hmask`; 6-bit scales around 32.

    Of scale i, byte i % 8 of `scales` has four bits (the high ones of the byte if i > 7), byte
    8 + i % 4 the two highest, at 2 * (i // 4).
    """
    b = blocks_of(data, Q3_K_BLOCK)
    n = len(b)
    runs = np.arange(8, dtype=np.uint8)[:, None]
    third = (b["hmask"][..., None, :] >> runs) & 1
    low, high = b["scales"][..., :8], b["scales"][..., 8:]
    scale = np.concatenate([low & 15, low >> 4], axis=-1)
    for quarter in range(4):
        scale[..., 4 * quarter : 4 * quarter + 4] |= ((high >> (2 * quarter)) & 3) << 4
    return QuantizedWeight(
        q=(_pairs(b["qs"]) | (third << 2)).astype(np.uint8, copy=False).reshape(n, -1),
        bits=3,
        group=16,
        zero=4,
        scale=(scale.astype(np.int8) - np.int8(32)).reshape(n, -1),
        super_scale=b["d"].copy(),
    )


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
    return QuantizedWeight(
        q=codes.reshape(n, -1),
        bits=6,
        group=16,
        zero=32,
        scale=b["scales"].reshape(n, -1),
        super_scale=b["d"].copy(),
    )
