"""Writes GGUF's K types: float32 values as blocks of 256, for `galley quantize`.

Codes and scales of groups are chosen by squared error (`online`); their scales are rounded to six
or eight bits over one float16 of the block, and codes are the nearest ones with those scales. The
layouts are those that csrc/blocks.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.quant.online import Values, in_parallel, search, search_range

Bytes = NDArray[np.uint8]
#: Candidates for the range of a group, as factors of its own.
_RANGES = tuple(np.linspace(1.07, 0.85, 12))
_SIX_BIT_RANGES = tuple(np.linspace(1.03, 0.94, 12))


def _rounded(scales: Values, low: int, high: int) -> tuple[Values, NDArray[Any]]:
    """Scales [B, groups] as integers low … high times a float16 of each block: (its value [B, 1],
    integers)."""
    top = np.abs(scales).max(axis=1, keepdims=True) / np.float32(high)
    factor = top.astype(np.float16).astype(np.float32)
    return factor, np.clip(np.rint(_divided(scales, factor)), low, high)


def _divided(values: Values, by: Values) -> Values:
    """0 where the divisor is."""
    result: Values = np.divide(values, by, out=np.zeros_like(values), where=by != 0)
    return result


def _half(values: Values) -> Bytes:
    """[B, 1] → the bytes [B, 2] of float16 numbers."""
    return values.astype("<f2").view(np.uint8)


def _best_codes(
    x: Values, d: Values, scales: Values, dmin: Values, mins: Values, most: int
) -> list[Bytes]:
    """Codes like x [B, 8, 32], and the integers of scales and minimums: of each group those with
    the least error among the given ones and their neighbours."""
    best = [np.zeros(shape, np.uint8) for shape in (x.shape, scales.shape, scales.shape)]
    least = np.full(scales.shape, np.inf, np.float32)
    for i in (0, -1, 1):
        for j in (0, -1, 1):
            sc, m = np.clip(scales + i, 0, 63), np.clip(mins + j, 0, 63)
            step, shift = (d * sc)[..., None], (dmin * m)[..., None]
            codes = np.rint((x + shift) / np.where(step != 0, step, np.float32(1))).clip(0, most)
            error = np.square(step * codes - shift - x).sum(axis=-1)
            better = error < least
            for kept, new in zip(best, (codes, sc, m), strict=True):
                kept[better] = new[better].astype(np.uint8)
            least[better] = error[better]
    return best


def _with_mins(bits: int, x: Values) -> tuple[Bytes]:
    """Q4_K and Q5_K: value = d * scale * code - dmin * min, in groups of 32."""
    most = 2**bits - 1
    groups = x.reshape(-1, 32)
    _, scale, least = search_range(groups, most, _RANGES)
    # A minimum is not above 0.
    scale = np.where(least > 0, groups.max(axis=1) / np.float32(most), scale)
    d, scales = _rounded(np.maximum(scale, 0).reshape(-1, 8), 0, 63)
    dmin, mins = _rounded(np.maximum(-least, 0).reshape(-1, 8), 0, 63)
    codes, sc, m = _best_codes(x.reshape(-1, 8, 32), d, scales, dmin, mins, most)
    packed = [
        sc[:, :4] | sc[:, 4:] >> 4 << 6,
        m[:, :4] | m[:, 4:] >> 4 << 6,
        sc[:, 4:] & 15 | m[:, 4:] << 4,
    ]
    fifth = np.packbits(codes >> 4, axis=1, bitorder="little")[:, 0]
    low = codes & 15
    nibbles = (low[:, 0::2] | low[:, 1::2] << 4).reshape(-1, 128)
    parts = [_half(d), _half(dmin), *packed, *([fifth] if bits == 5 else []), nibbles]
    return (np.concatenate(parts, axis=1),)


def _six_bits(x: Values) -> tuple[Bytes, Values]:
    levels = np.clip(np.rint(x), -32, 31)
    return (levels + 32).astype(np.uint8), levels


def _q6_k(x: Values) -> tuple[Bytes]:
    """value = d * scale * (code - 32), in groups of 16."""
    _, scale = search(x.reshape(-1, 16), 31.5, _six_bits, _SIX_BIT_RANGES)
    d, scales = _rounded(scale.reshape(-1, 16), -128, 127)
    values = x.reshape(-1, 16, 16)
    steps = np.broadcast_to((d * scales)[..., None], values.shape)
    codes, _ = _six_bits(_divided(values, steps))
    runs = codes.reshape(-1, 2, 4, 32)
    low, high = runs & 15, runs >> 4
    nibbles = low[:, :, :2] | low[:, :, 2:] << 4
    pairs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = [nibbles.reshape(-1, 128), pairs.reshape(-1, 64), scales.astype(np.int8).view(np.uint8)]
    return (np.concatenate([*parts, _half(d)], axis=1),)


def _encode(work: Callable[[Values], tuple[Bytes]], x: Values) -> Bytes:
    """Values [..., K] as blocks [..., bytes]; K is a multiple of 256."""
    [blocks] = in_parallel(x, 256, work)
    return blocks.reshape(*x.shape[:-1], -1)


#: Type → float32 [..., K] → uint8 [..., bytes].
ENCODERS: Mapping[str, Callable[[Values], Bytes]] = {
    "Q4_K": partial(_encode, partial(_with_mins, 4)),
    "Q5_K": partial(_encode, partial(_with_mins, 5)),
    "Q6_K": partial(_encode, _q6_k),
}
