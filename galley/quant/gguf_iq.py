"""GGUF's IQ types of 1 to 3 bits, whose values are runs of a codebook with signs or an offset.

No kernel reads codebooks: each value becomes a 4-bit code in a table of its type's levels, which is
exact, with the type's own scales. Such a weight takes more memory than its file (`WIDENED`).

    IQ2_XXS, IQ2_XS, IQ2_S   ± 8, 25 or 43, times d * (0.5 + s) / 4
    IQ3_XXS                  ± eight magnitudes, times d * (0.5 + s) / 2
    IQ3_S                    ± eight odd numbers, times d * (1 + 2 s)
    IQ1_S, IQ1_M             -1, 0 or 1, plus or minus 1/8, times d * (1 + 2 s)

with s of a group of 16 or 32 values. Bit i of a byte of signs is that of value i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.kernels.quantized import QuantizedWeight
from galley.quant.gguf_grids import grid

#: Types that take 4 bits a value and their scales in memory.
WIDENED = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")

Bytes = NDArray[np.uint8]
_F16 = "<f2"
IQ2_XXS_BLOCK = np.dtype([("d", _F16), ("qs", [("index", "u1", 4), ("rest", "<u4")], 8)])
IQ2_XS_BLOCK = np.dtype([("d", _F16), ("qs", "<u2", 32), ("scales", "u1", 8)])
IQ2_S_BLOCK = np.dtype(
    [("d", _F16), ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8)]
)
IQ3_XXS_BLOCK = np.dtype([("d", _F16), ("qs", "u1", 64), ("rest", "<u4", 8)])
IQ3_S_BLOCK = np.dtype(
    [("d", _F16), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)]
)
IQ1_S_BLOCK = np.dtype([("d", _F16), ("qs", "u1", 32), ("qh", "<u2", 8)])
IQ1_M_BLOCK = np.dtype([("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4)])


def blocks_of(data: NDArray[np.generic], block: np.dtype) -> NDArray[np.void]:
    """The blocks of each row: structured [N, K / values per block], a view if possible."""
    return np.ascontiguousarray(data).view(np.uint8).view(block)


def _levels(*magnitudes: int) -> NDArray[np.float32]:
    """The magnitudes, then their negatives, of 16 in all."""
    table = np.zeros(16, np.float32)
    table[: 2 * len(magnitudes)] = [*magnitudes, *(-m for m in magnitudes)]
    return table


_IQ2 = _levels(8, 25, 43)
_IQ3_XXS = _levels(4, 12, 20, 28, 36, 44, 52, 62)
_IQ3_S = _levels(1, 3, 5, 7, 9, 11, 13, 15)
#: -1, 0, 1 plus 1/8, then minus 1/8, times 8.
_IQ1 = np.array([-7, 1, 9, -9, -1, 7, *[0] * 10], np.float32)


def _fields(data: NDArray[Any], shifts: Sequence[int], mask: int) -> NDArray[Any]:
    """[..., n] numbers → [..., n * shifts]: of each the fields at `shifts`."""
    steps = np.array(shifts, data.dtype)
    parts = (data[..., None] >> steps) & data.dtype.type(mask)
    return parts.reshape(*data.shape[:-1], -1)


def _sign_bits(signs: Bytes) -> Bytes:
    """[..., n] bytes → [..., 8 n] of 0 and 1."""
    return np.unpackbits(np.ascontiguousarray(signs), axis=-1, bitorder="little")


def _sign_bytes(rest: NDArray[np.uint32]) -> Bytes:
    """Four times seven signs of each number; the eighth makes their number even."""
    seven = _fields(rest, (0, 7, 14, 21), 127).astype(np.uint8)
    return _with_eighth(seven)


def _with_eighth(seven: Bytes) -> Bytes:
    """Seven signs with an eighth, which makes the number of minuses even."""
    return (seven | (_parity(seven) << 7)).astype(np.uint8, copy=False)


def _parity(numbers: Bytes) -> Bytes:
    for shift in (4, 2, 1):
        numbers = (numbers ^ (numbers >> shift)).astype(np.uint8, copy=False)
    return (numbers & 1).astype(np.uint8, copy=False)


def _weight(
    codes: Bytes,
    table: NDArray[np.float32],
    d: NDArray[np.float16],
    s: NDArray[Any],
    eighths: int,
) -> QuantizedWeight:
    """value = d * (1 + 2 s) * eighths / 8 * level.

    Args:
        codes: [N, blocks, 256]; s: [N, blocks, groups].
    """
    n, blocks, groups = s.shape
    scale = (2 * s + 1).astype(np.int8).reshape(n, -1)
    whole = d.astype(np.float32) * np.float32(eighths / 8)
    factor = whole.astype(np.float16)
    fields: dict[str, Any] = {"scale": scale, "super_scale": factor}
    if (factor != whole).any():  # a subnormal float16
        product = scale.reshape(n, blocks, groups).astype(np.float32) * whole[..., None]
        fields = {"scale": product.reshape(n, -1)}
    q = codes.reshape(n, -1)
    return QuantizedWeight(q=q, bits=4, group=256 // groups, table=table, **fields)


def _signed(name: str, index: NDArray[Any], signs: Bytes) -> Bytes:
    """Codes [N, blocks, 256] of runs [N, blocks, n] of a codebook, and bytes of signs."""
    count = {"IQ3_XXS": 8, "IQ3_S": 8}.get(name, 3)
    places = grid(name)[index].reshape(*index.shape[:2], 256)
    codes: Bytes = places + _sign_bits(signs) * np.uint8(count)
    return codes


def iq2_xxs(data: Bytes) -> QuantizedWeight:
    """Of 32 values four runs, four times seven signs, and s in the highest four bits."""
    b = blocks_of(data, IQ2_XXS_BLOCK)
    index = b["qs"]["index"].reshape(*b.shape, 32)
    rest = b["qs"]["rest"]
    codes = _signed("IQ2_XXS", index, _sign_bytes(rest))
    return _weight(codes, _IQ2, b["d"], rest >> 28, 1)


def iq2_xs(data: Bytes) -> QuantizedWeight:
    """Of eight values nine bits of a run and seven signs; s of 16 values in four bits."""
    b = blocks_of(data, IQ2_XS_BLOCK)
    signs = _with_eighth((b["qs"] >> 9).astype(np.uint8))
    codes = _signed("IQ2_XS", b["qs"] & 511, signs)
    return _weight(codes, _IQ2, b["d"], _fields(b["scales"], (0, 4), 15), 1)


def iq2_s(data: Bytes) -> QuantizedWeight:
    """Of eight values ten bits of a run, the upper two in `qh`, and eight signs."""
    b = blocks_of(data, IQ2_S_BLOCK)
    index = b["qs"].astype(np.uint16) | (_fields(b["qh"], (0, 2, 4, 6), 3).astype(np.uint16) << 8)
    codes = _signed("IQ2_S", index, b["signs"])
    return _weight(codes, _IQ2, b["d"], _fields(b["scales"], (0, 4), 15), 1)


def iq3_xxs(data: Bytes) -> QuantizedWeight:
    """Of 32 values eight runs of four, four times seven signs, and s in the highest four bits."""
    b = blocks_of(data, IQ3_XXS_BLOCK)
    codes = _signed("IQ3_XXS", b["qs"], _sign_bytes(b["rest"]))
    return _weight(codes, _IQ3_XXS, b["d"], b["rest"] >> 28, 2)


def iq3_s(data: Bytes) -> QuantizedWeight:
    """Of four values nine bits of a run, the upper one in `qh`; s of 32 values in four bits."""
    b = blocks_of(data, IQ3_S_BLOCK)
    index = b["qs"].astype(np.uint16) | (_sign_bits(b["qh"]).astype(np.uint16) << 8)
    codes = _signed("IQ3_S", index, b["signs"])
    return _weight(codes, _IQ3_S, b["d"], _fields(b["scales"], (0, 4), 15), 8)


def _offset_codes(index: NDArray[np.uint16], minus: NDArray[np.bool_]) -> Bytes:
    """Codes of IQ1: runs [N, blocks, 32] of the codebook, whose offset is minus 1/8 or not."""
    places = grid("IQ1_S")[index] + np.uint8(3) * minus[..., None].astype(np.uint8)
    return places.reshape(*index.shape[:2], 256)


def iq1_s(data: Bytes) -> QuantizedWeight:
    """Of 32 values four runs of eleven bits, three of them in `qh`, s of three bits, the offset."""
    b = blocks_of(data, IQ1_S_BLOCK)
    qh = b["qh"]
    index = b["qs"].astype(np.uint16) | (_fields(qh, (0, 3, 6, 9), 7) << np.uint16(8))
    codes = _offset_codes(index, (qh >> 15).repeat(4, axis=-1) != 0)
    return _weight(codes, _IQ1, b["d"], (qh >> 12) & 7, 1)


def iq1_m(data: Bytes) -> QuantizedWeight:
    """As IQ1_S, an offset of each run, s of 16 values, and d in the highest bits of `scales`."""
    b = blocks_of(data, IQ1_M_BLOCK)
    parts = b["scales"] >> 12 << np.array([0, 4, 8, 12], np.uint16)
    d = np.bitwise_or.reduce(parts, axis=-1).astype(np.uint16).view(np.float16)
    upper = _fields(b["qh"], (0, 4), 15)
    index = (b["qs"] | ((upper & 7).astype(np.uint16) << 8)).astype(np.uint16, copy=False)
    codes = _offset_codes(index, upper >> 3 != 0)
    return _weight(codes, _IQ1, d, _fields(b["scales"], (0, 3, 6, 9), 7), 1)
