"""Packed weights: what the native kernels read.

Layouts are the kernels' (csrc/linear.h); here are their names, sizes and memory. Knows neither
checkpoint formats (`galley.quant` makes codes of those) nor models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from galley.kernels import _native
from galley.kernels.nested_scales import shared_factors
from galley.kernels.quantized import Blocks, QuantizedWeight, from_arrays, in_input_order
from galley.kernels.weight_format import (
    E4M3,
    E4M3_VALUES,
    SCALE_DTYPES,
    SUPER_DTYPES,
    FormatName,
    OffsetName,
    ScaleName,
    TableName,
    WeightFormat,
    addresses,
)

_ALIGNMENT = 64
#: Makes memory of so many bytes, at a multiple of `_ALIGNMENT`.
Allocate = Callable[[int], NDArray[np.uint8]]
#: The narrowest name for codes of so many bits.
_CODES: dict[int, FormatName] = {1: "i1", 2: "i2", 3: "i3", 4: "i4", 5: "i5", 6: "i6", 8: "i8"}
#: Values that share a super scale, in the formats u6, i8, u4 and s6.
_SUPER_GROUP = 256
#: Outputs that share a scale in the format "halves".
_HALF_PANEL = 16


class PackedWeight(msgspec.Struct, frozen=True, eq=False):
    """A weight of N outputs and K inputs in panels of 32 outputs.

    Attributes:
        shape: (N, K).
        data: uint8, contiguous, 64-byte aligned; may be a mapped file.
    """

    format: WeightFormat
    shape: tuple[int, int]
    data: NDArray[np.uint8]

    def __post_init__(self) -> None:
        needed = self.format.num_bytes(self.shape)
        if self.data.nbytes != needed:
            raise ValueError(f"{self.data.nbytes} bytes where {self.shape} needs {needed}")
        if not self.data.flags.c_contiguous or self.data.ctypes.data % _ALIGNMENT:
            raise ValueError(f"packed weights must be contiguous, at a multiple of {_ALIGNMENT}")

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes

    def arguments(self) -> dict[str, int]:
        """Sizes and format, as native ops take them."""
        n, k = self.shape
        return {"n": n, "k": k, **self.format.arguments()}

    @property
    def order(self) -> NDArray[np.int32] | None:
        """int32 [K]: the input of each packed column; None = they are in order."""
        return self.data[-4 * self.shape[1] :].view(np.int32) if self.format.ordered else None

    def unpack(self) -> NDArray[np.float32]:
        """[N, K]: exactly the values that the kernels multiply."""
        out = np.empty(self.shape, np.float32)
        layout = self.format.layout(self.shape)
        _native.unpack_rows(layout, self.data.ctypes.data, 0, self.shape[0], out.ctypes.data)
        return in_input_order(out, self.order)

    def codes(self) -> QuantizedWeight:
        """The codes and all that belongs to them. ValueError for a dense weight."""
        fmt, layout = self.format, self.format.layout(self.shape)
        arrays = fmt.arrays(self.shape)
        _native.unpack_codes(layout, self.data.ctypes.data, **addresses(arrays))
        return from_arrays(fmt, arrays, self.order)

    def cut(self, rows: slice = slice(None), columns: slice = slice(None)) -> PackedWeight:
        """Part of the weight, in the same format: a rank's shard. Copies.

        Raises ValueError if a border of columns cuts through a group of values that share a scale.
        """
        if self.format.is_dense:
            return _pack_dense(self.unpack()[rows, columns], self.format, _aligned)
        first, last, _ = columns.indices(self.shape[1])
        cut = self.codes().take(rows).columns(first, last)
        fmt = self.format
        if fmt.scale == "halves" and rows.indices(self.shape[0])[0] % _HALF_PANEL:
            fmt = replace(fmt, scale="f32")
        if fmt.scale == "nested":
            # A part may have too many factors.
            return pack(cut, "bf16" if fmt.activations == "bf16" else "f32")
        return _pack_codes(cut, fmt, _aligned)


class WeightMemory:
    """Memory for packed weights, of which small ones share blocks: numpy asks the system to back
    large arrays with large pages, without which a stream of small weights (experts) costs a page
    table walk every 4 KiB. May be used by several threads."""

    _BLOCK, _LARGE = 32 << 20, 4 << 20

    def __init__(self) -> None:
        self._left = np.empty(0, np.uint8)
        self._lock = threading.Lock()

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """So many bytes, at a multiple of 64."""
        if nbytes >= self._LARGE:
            return _aligned(nbytes)
        size = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        with self._lock:
            if len(self._left) < size:
                self._left = _aligned(self._BLOCK)
            data, self._left = self._left[:nbytes], self._left[size:]
        return data


def pack(
    weight: QuantizedWeight,
    dense: Literal["f32", "bf16"] = "bf16",
    memory: WeightMemory | None = None,
) -> PackedWeight:
    """Pack a weight for the native kernels.

    Codes are packed without loss and take no more bits than in a checkpoint (plus padding):

        codes of up to 1, 2, 3, 4, 5, 6, 8 bits     i1, i2, i3, i4, i5, i6, i8; trits t2
        groups of 16, of multiples of 32, all of K  as they are; others have no kernel and become
                                                    dense
        scales, mins, fractional zeros              f16 or bf16 where these hold them, else f32;
                                                    6-bit, 4-bit or int8 with super scales per 256;
                                                    exponents where all are powers of two; E4M3
                                                    with an f32 per output; codes of levels
        tables of integers                          int8 levels, or affine codes of 8 bits
        other tables                                float32 levels

    Args:
        dense: number format of dense weights, and of the rows that codes which prescribe no
            integers are multiplied with, where there is a kernel for it.
        memory: for the packed weight; None = memory of its own.

    Raises:
        ValueError: codes or zeros do not fit their bits, the shape is no matrix, or int8
            activations with one scale per token are prescribed for anything but 8-bit codes with
            one scale per output.
    """
    if len(weight.shape) != 2:
        raise ValueError(f"a packed weight is a matrix; this one has shape {weight.shape}")
    allocate = _aligned if memory is None else memory.allocate
    if weight.blocks is not None:
        return _pack_blocks(weight.blocks, allocate)
    if weight.dense is not None:
        return _pack_dense(weight.dense, WeightFormat(dense), allocate)
    codes, scale = _with_native_scales(_with_native_table(weight))
    group = 0 if codes.group >= codes.shape[1] else codes.group
    no_kernel = group != 16 and group % 32 != 0
    if no_kernel or (codes.min is not None and not isinstance(codes.zero, int)):
        return _pack_dense(weight.to_float32(), WeightFormat(dense), allocate)
    return _pack_codes(codes, _format_of(codes, group, scale, dense), allocate)


def _format_of(
    codes: QuantizedWeight, group: int, scale: ScaleName, dense: Literal["f32", "bf16"]
) -> WeightFormat:
    name = next(n for bits, n in _CODES.items() if codes.bits <= bits)
    if codes.table is not None and codes.bits < 4:
        name = "i4"
    if codes.trits and codes.shape[1] % 256 == 0:
        name = "t2"
    offset: OffsetName = "zero" if codes.min is None else "min"
    if codes.fraction is not None:
        offset = "fractions"
    zero, table = codes.zero, codes.table
    if not isinstance(zero, int):
        zero, offset = 0, "zeros"
    kind: TableName = "none" if table is None else "floats"
    if table is not None and codes.min is None and _is_int8(table):
        kind = "levels"
    ordered, activations = codes.order is not None, codes.activations
    # Where there is a kernel for rows of bf16:
    four_bits = name == "i4" and kind != "levels" and codes.shape[1] % 32 == 0
    is_float8 = table is not None and np.array_equal(table, E4M3_VALUES, equal_nan=True)
    whole_blocks = group != 16 and scale not in SUPER_DTYPES
    if dense == "bf16" and activations == "as_is" and whole_blocks and (four_bits or is_float8):
        activations = "bf16"
    fmt = WeightFormat(name, group, zero, scale, offset, kind, activations, ordered)
    if fmt.activations == "token" and fmt != WeightFormat("i8", 0, 128, "f32", activations="token"):
        raise ValueError(f"no kernel for int8 activations with one scale per token and {fmt}")
    return fmt


def _is_int8(levels: NDArray[np.float32]) -> bool:
    whole = bool((levels == np.round(levels)).all())
    return len(levels) == 16 and whole and levels.min() >= -128 and levels.max() <= 127


def _with_native_table(weight: QuantizedWeight) -> QuantizedWeight:
    """Levels that are multiples of a power of two as integers, which 8-bit codes can be."""
    table = weight.table
    if table is None:
        return weight
    if 4 < weight.bits < 7:
        return replace(weight, zero=0)
    for exponent in range(10):
        levels = table * np.float32(2**exponent)
        if not ((levels == np.round(levels)) & (levels >= -128) & (levels <= 127)).all():
            continue
        scaled = weight
        if exponent or weight.scale_table is not None:
            scale = weight.scales() / np.float32(2**exponent)
            scaled = _with_scales(weight, scale)
        if weight.bits <= 4:
            return replace(scaled, table=np.resize(levels, 16))
        assert weight.q is not None
        codes = (levels + 128).astype(np.uint8)[weight.q]
        return replace(scaled, q=codes, bits=8, zero=128, table=None)
    return replace(weight, zero=0)


def _with_scales(weight: QuantizedWeight, scale: NDArray[np.float32]) -> QuantizedWeight:
    """Scales of one level in place of two."""
    return replace(weight, scale=scale, super_scale=None, scale_table=None, scale_base=None)


def _with_native_scales(weight: QuantizedWeight) -> tuple[QuantizedWeight, ScaleName]:
    """Scales, mins and zeros in the smallest number format that kernels have, and its name."""
    assert weight.scale is not None
    zero = weight.zero
    if not isinstance(zero, int) and (zero == zero.flat[0]).all():
        zero = int(zero.flat[0])
    weight = replace(weight, zero=zero)
    if weight.scale_table is not None:
        if _nested(weight) is not None:
            return weight, "nested"
        weight = _with_scales(weight, weight.scales())
    upper = _two_levels(weight)
    if upper is not None:
        factors = weight.super_scale
        if upper == "e4m3" and factors is not None:
            factors = factors.astype(np.float32)
        return replace(weight, super_scale=factors), upper
    arrays: list[NDArray[Any]] = []
    has_fractions = weight.fraction is not None
    for values, factors, product in (
        (weight.scale, weight.super_scale, weight.scales),
        (weight.fraction if has_fractions else weight.min, weight.super_min, weight.mins),
    ):
        whole = values if factors is None else product()
        if whole is not None:
            arrays.append(whole)
    name, arrays = _one_level(weight, arrays)
    scale, low = arrays if len(arrays) == 2 else (arrays[0], None)
    return replace(
        weight,
        scale=scale,
        min=None if has_fractions else low,
        fraction=low if has_fractions else None,
        super_scale=None,
        super_min=None,
    ), name


def _one_level(
    weight: QuantizedWeight, arrays: list[NDArray[Any]]
) -> tuple[ScaleName, list[NDArray[Any]]]:
    """Scales, and mins if there are any, in the smallest number format of one level."""
    if weight.activations == "token":
        return "f32", [array.astype(np.float32, copy=False) for array in arrays]
    if len(arrays) == 1 and isinstance(weight.zero, int) and weight.group:
        exponents = _exponents(arrays[0])
        if exponents is not None:
            return "e8m0", [exponents]
    name = _smallest_dtype(arrays)
    if name == "f32" and len(arrays) == 1 and isinstance(weight.zero, int) and weight.group:
        [scale] = arrays
        rows = len(scale) - len(scale) % _HALF_PANEL
        runs = scale[:rows].reshape(-1, _HALF_PANEL, scale.shape[1])
        if (runs == runs[:, :1]).all() and (scale[rows:] == scale[rows : rows + 1]).all():
            return "halves", [scale.astype(np.float32, copy=False)]
    return name, [array.astype(SCALE_DTYPES[name], copy=False) for array in arrays]


def _exponents(scale: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Exponents plus 128 of scales that are powers of two from 2**-128 to 2**127, else None."""
    values = scale.astype(np.float32)
    fraction, exponent = np.frexp(values)
    code = exponent + 127
    if (fraction != 0.5).any() or code.min() < 0 or code.max() > 255:
        return None
    codes: NDArray[np.uint8] = code.astype(np.uint8)
    return codes


def _nested(weight: QuantizedWeight) -> tuple[NDArray[np.float32], NDArray[np.int32]] | None:
    """Factors of scales that are codes, and outputs' places, as kernels read them; None if they
    cannot."""
    factors, base, (n, k) = weight.super_scale, weight.scale_base, weight.shape
    floats = weight.table is not None and weight.bits == 4 and weight.group % 32 == 0
    if factors is None or base is None or not floats:
        return None
    group = 0 if weight.group >= k else weight.group
    width = WeightFormat("i4", group, scale="nested", table="floats").layout((n, k)).factors
    return shared_factors(factors, base, width)


def _two_levels(weight: QuantizedWeight) -> ScaleName | None:
    """The number format of two levels that holds the scales as they are, if there is one."""
    scale, upper = weight.scale, weight.super_scale
    if scale is None or upper is None or weight.group >= weight.shape[1]:
        return None
    if not isinstance(weight.zero, int):
        return None
    factors = [upper] + ([] if weight.super_min is None else [weight.super_min])
    if scale.dtype == E4M3:
        fits = weight.group == 16 and weight.min is None and upper.shape[1] == 1
        return "e4m3" if fits else None
    spans = weight.shape[1] / _SUPER_GROUP
    if any(f.dtype != np.float16 or f.shape[1] != spans for f in factors):
        return None
    if weight.min is None:
        if scale.dtype != np.int8 or weight.group not in (16, 32):
            return None
        small = weight.bits <= 3 and weight.group == 16
        return "s6" if small and scale.min() >= -32 and scale.max() < 32 else "i8"
    limit = {32: 64, 16: 16}.get(weight.group, 0)
    if len(factors) != 2 or any(
        a.dtype != np.uint8 or a.max() >= limit for a in (scale, weight.min)
    ):
        return None
    return "u6" if weight.group == 32 else "u4"


def _smallest_dtype(arrays: list[NDArray[Any]]) -> ScaleName:
    """float16 or bfloat16 if it holds every number exactly, else float32."""

    def holds(dtype: np.dtype[Any], array: NDArray[Any]) -> bool:
        if array.dtype == dtype:
            return True
        values = array.astype(np.float32)
        with np.errstate(over="ignore"):
            return bool((values.astype(dtype).astype(np.float32) == values).all())

    names: tuple[ScaleName, ...] = ("f16", "bf16")
    for name in names:
        if all(holds(SCALE_DTYPES[name], array) for array in arrays):
            return name
    return "f32"


def _aligned(nbytes: int) -> NDArray[np.uint8]:
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


def _pack_dense(values: NDArray[np.generic], to: WeightFormat, allocate: Allocate) -> PackedWeight:
    is_bf16 = values.dtype.name == "bfloat16"
    if not is_bf16:
        values = values.astype(np.float32, copy=False)
    if values.strides[1] != values.itemsize or values.strides[0] < 0:
        values = np.ascontiguousarray(values)
    n, k = values.shape
    layout = to.layout((n, k))
    data = allocate(layout.bytes)
    stride = values.strides[0] // values.itemsize
    _native.pack_dense(layout, values.ctypes.data, is_bf16, stride, data.ctypes.data)
    return PackedWeight(to, (n, k), data)


def _pack_codes(source: QuantizedWeight, to: WeightFormat, allocate: Allocate) -> PackedWeight:
    assert source.q is not None
    n, k = source.q.shape
    layout = to.layout((n, k))
    data = allocate(to.num_bytes((n, k)))
    dtype, upper = SCALE_DTYPES[to.scale], SUPER_DTYPES.get(to.scale, np.dtype(np.float16))
    scale = source.scale
    if to.scale == "e8m0" and scale is not None and scale.dtype != dtype:
        scale = _exponents(scale)
    table = None
    if source.table is not None:
        table = source.table.astype(np.int8 if to.table == "levels" else np.float32)
    if source.scale_table is None:
        super_scale = _contiguous(source.super_scale, upper)
        super_min = _contiguous(source.super_min, upper)
    else:
        nested = _nested(source)
        assert table is not None
        assert nested is not None
        super_scale, super_min = nested
        table = np.concatenate([table, source.scale_table])
    arrays = {
        "q": np.ascontiguousarray(source.q, np.uint8),
        "scale": _contiguous(scale, dtype),
        "min": _contiguous(source.min if source.fraction is None else source.fraction, dtype),
        "zeros": None
        if isinstance(source.zero, int)
        else _contiguous(source.zero, np.dtype(np.uint8)),
        "super_scale": super_scale,
        "super_min": super_min,
        "table": table,
    }
    _native.pack_codes(layout, **addresses(arrays), out=data.ctypes.data)
    if to.ordered:
        assert source.order is not None
        data[layout.bytes :].view(np.int32)[:] = source.order
    return PackedWeight(to, (n, k), data)


def _pack_blocks(blocks: Blocks, allocate: Allocate) -> PackedWeight:
    fmt, shape = blocks.format, blocks.shape
    data = allocate(fmt.num_bytes(shape))
    rows = np.ascontiguousarray(blocks.rows)
    _native.pack_blocks(blocks.type.name, rows.ctypes.data, *shape, data.ctypes.data)
    return PackedWeight(fmt, shape, data)


def _contiguous(array: NDArray[Any] | None, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    return None if array is None else np.ascontiguousarray(array, dtype)
