"""GGUF's ternary formats: values -d, 0 and d, with one scale per 256."""

from __future__ import annotations

import numpy as np

from galley.kernels.quantized import QuantizedWeight
from galley.quant.gguf_blocks import Bytes, blocks_of

_F16 = "<f2"
TQ1_0_BLOCK = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", _F16)])
TQ2_0_BLOCK = np.dtype([("qs", "u1", (2, 1, 32)), ("d", _F16)])
#: A digit is the highest of a byte times a power of three, modulo 256.
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def _digits(numbers: Bytes, count: int) -> Bytes:
    """[N, blocks, n] bytes → [N, blocks, count * n] digits to base 3: the first of all bytes, then
    the second, …"""
    products = numbers[..., None, :] * _POWERS[:count, None]
    digits: Bytes = ((products.astype(np.uint16) * 3) >> 8).astype(np.uint8)
    return digits.reshape(*numbers.shape[:2], -1)


def _ternary(codes: Bytes, d: np.ndarray) -> QuantizedWeight:
    n = len(codes)
    return QuantizedWeight(q=codes.reshape(n, -1), bits=2, group=256, zero=1, scale=d.copy())


def tq1_0(data: Bytes) -> QuantizedWeight:
    """Five digits to base 3 in each byte, four in those of `qh`."""
    b = blocks_of(data, TQ1_0_BLOCK)
    qs = b["qs"]
    parts = [_digits(qs[..., :32], 5), _digits(qs[..., 32:], 5), _digits(b["qh"], 4)]
    return _ternary(np.concatenate(parts, axis=-1), b["d"])


def tq2_0(data: Bytes) -> QuantizedWeight:
    """2-bit codes around 1: of each half block, run by run of 32, bits 0-1, 2-3, 4-5, 6-7."""
    b = blocks_of(data, TQ2_0_BLOCK)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return _ternary(((b["qs"] >> shifts) & 3).astype(np.uint8, copy=False), b["d"])
