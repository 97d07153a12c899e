"""GGUF's plain block formats: 32 values share one scale (and, in the `_1` types, one minimum).

Each function takes the raw blocks of a weight, uint8 [N, bytes per row], and returns its codes and
scales unchanged. Nibbles of a block:

    byte j of `qs`:   low nibble = value j,   high nibble = value j + 16
    bit j of `qh`:    fifth bit of value j                              (Q5 types)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from galley.kernels.quantized import QuantizedWeight

GROUP = 32
Bytes = NDArray[np.uint8]

_F16 = "<f2"
Q4_0_BLOCK = np.dtype([("d", _F16), ("qs", "u1", 16)])
Q4_1_BLOCK = np.dtype([("d", _F16), ("m", _F16), ("qs", "u1", 16)])
Q5_0_BLOCK = np.dtype([("d", _F16), ("qh", "u1", 4), ("qs", "u1", 16)])
Q5_1_BLOCK = np.dtype([("d", _F16), ("m", _F16), ("qh", "u1", 4), ("qs", "u1", 16)])
Q8_0_BLOCK = np.dtype([("d", _F16), ("qs", "i1", 32)])


def blocks_of(data: NDArray[np.generic], block: np.dtype) -> NDArray[np.void]:
    """The blocks of each row: structured [N, K / values per block], a view if possible."""
    return np.ascontiguousarray(data).view(np.uint8).view(block)


def nibbles(qs: Bytes, out: Bytes | None = None) -> Bytes:
    """[..., h] bytes -> [..., 2h] codes: the low nibbles, then the high ones."""
    half = qs.shape[-1]
    if out is None:
        out = np.empty((*qs.shape[:-1], 2 * half), np.uint8)
    np.bitwise_and(qs, 15, out=out[..., :half])
    np.right_shift(qs, 4, out=out[..., half:])
    return out


def _five_bits(b: NDArray[np.void]) -> Bytes:
    codes = nibbles(b["qs"])
    high = np.unpackbits(np.ascontiguousarray(b["qh"]), axis=-1, bitorder="little")
    np.left_shift(high, 4, out=high)
    codes |= high
    return codes


def _in_rows(codes: Bytes) -> Bytes:
    return codes.reshape(codes.shape[0], -1)


def q4_0(data: Bytes) -> QuantizedWeight:
    """value = d * (q - 8), q of 4 bits."""
    b = blocks_of(data, Q4_0_BLOCK)
    return QuantizedWeight(
        q=_in_rows(nibbles(b["qs"])), bits=4, group=GROUP, zero=8, scale=b["d"].copy()
    )


def q4_1(data: Bytes) -> QuantizedWeight:
    """value = d * q + m, q of 4 bits."""
    b = blocks_of(data, Q4_1_BLOCK)
    return QuantizedWeight(
        q=_in_rows(nibbles(b["qs"])),
        bits=4,
        group=GROUP,
        scale=b["d"].copy(),
        min=b["m"].copy(),
    )


def q5_0(data: Bytes) -> QuantizedWeight:
    """value = d * (q - 16), q of 5 bits."""
    b = blocks_of(data, Q5_0_BLOCK)
    return QuantizedWeight(
        q=_in_rows(_five_bits(b)), bits=5, group=GROUP, zero=16, scale=b["d"].copy()
    )


def q5_1(data: Bytes) -> QuantizedWeight:
    """value = d * q + m, q of 5 bits."""
    b = blocks_of(data, Q5_1_BLOCK)
    return QuantizedWeight(
        q=_in_rows(_five_bits(b)), bits=5, group=GROUP, scale=b["d"].copy(), min=b["m"].copy()
    )


def q8_0(data: Bytes) -> QuantizedWeight:
    """value = d * q, q a signed byte."""
    b = blocks_of(data, Q8_0_BLOCK)
    # Adding 128 to a signed byte is flipping its top bit.
    codes = _in_rows(b["qs"].view(np.uint8) ^ np.uint8(0x80))
    return QuantizedWeight(q=codes, bits=8, group=GROUP, zero=128, scale=b["d"].copy())
