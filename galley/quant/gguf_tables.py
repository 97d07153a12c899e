"""GGUF's formats whose 4-bit codes are places in a table: IQ4_NL, IQ4_XS, MXFP4 and NVFP4.

Nibbles of 32 values (16 of NVFP4) lie as in the plain formats: low ones, then high ones.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from galley.kernels.quantized import QuantizedWeight
from galley.quant.gguf_blocks import Bytes, blocks_of, nibbles

_F16 = "<f2"
IQ4_NL_BLOCK = np.dtype([("d", _F16), ("qs", "u1", 16)])
IQ4_XS_BLOCK = np.dtype(
    [("d", _F16), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", (8, 16))]
)
MXFP4_BLOCK = np.dtype([("e", "u1"), ("qs", "u1", 16)])
NVFP4_BLOCK = np.dtype([("d", "u1", 4), ("qs", "u1", (4, 8))])
_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
#: E2M1 numbers, doubled.
E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _codes(qs: Bytes) -> Bytes:
    """[N, ..., 16] bytes → [N, K]."""
    return nibbles(qs).reshape(len(qs), -1)


def iq4_nl(data: Bytes) -> QuantizedWeight:
    """value = d * level, in groups of 32."""
    b = blocks_of(data, IQ4_NL_BLOCK)
    return QuantizedWeight(q=_codes(b["qs"]), bits=4, group=32, scale=b["d"].copy(), table=_IQ4)


def iq4_xs(data: Bytes) -> QuantizedWeight:
    """value = d * (scale - 32) * level, with a scale of 6 bits per group of 32.

    Of group g, `scales_l` has four bits at 4 * g, `scales_h` the two highest at 2 * g.
    """
    b = blocks_of(data, IQ4_XS_BLOCK)
    low = np.stack([b["scales_l"] & 15, b["scales_l"] >> 4], axis=-1).reshape(*b.shape, 8)
    high = (b["scales_h"][..., None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & 3
    scale = (low | (high << 4)).astype(np.int8) - np.int8(32)
    return QuantizedWeight(
        q=_codes(b["qs"]),
        bits=4,
        group=32,
        scale=scale.reshape(len(b), -1),
        super_scale=b["d"].copy(),
        table=_IQ4,
    )


def mxfp4(data: Bytes) -> QuantizedWeight:
    """value = 2**(e - 128) * level, in groups of 32."""
    b = blocks_of(data, MXFP4_BLOCK)
    scale = np.ldexp(np.float32(1), b["e"].astype(np.int32) - 128)
    return QuantizedWeight(q=_codes(b["qs"]), bits=4, group=32, scale=scale, table=E2M1_DOUBLED)


def nvfp4(data: Bytes) -> QuantizedWeight:
    """value = scale / 2 * level, in groups of 16, with scales of E4M3 without a sign."""
    b = blocks_of(data, NVFP4_BLOCK)
    n = len(b)
    scale = (b["d"] & 127).reshape(n, -1)
    scale[scale == 127] = 0  # NaN
    return QuantizedWeight(
        q=_codes(b["qs"]),
        bits=4,
        group=16,
        scale=scale.view(ml_dtypes.float8_e4m3fn),
        super_scale=np.full((n, 1), 0.5, np.float32),
        table=E2M1_DOUBLED,
    )
