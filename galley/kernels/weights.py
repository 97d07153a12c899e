"""Packed weights: what the native kernels read.

Layouts are the kernels' (csrc/linear.h); here are their names, sizes and memory. Knows neither
checkpoint formats (`galley.quant` makes codes of those) nor models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from galley.kernels import _native
from galley.kernels.quantized import QuantizedWeight

FormatName = Literal["f32", "bf16", "i8", "i4"]

_FORMATS: tuple[FormatName, ...] = ("f32", "bf16", "i8", "i4")
_SCALES = ("f16", "f32")
#: Values per scale that kernels know, the largest first; 0 = one scale per output.
_GROUPS = {"i8": (32, 16), "i4": (32,)}
_ALIGNMENT = 64


@dataclass(frozen=True)
class WeightFormat:
    """How the numbers of a packed weight are stored.

    Attributes:
        name: f32 and bf16 are dense; i8 and i4 are codes with scales.
        group: values along K that share a scale: 32, 16 (i8 only) or 0 = all of them (i8 only).
        scale: number format of scales and mins.
        has_min: value = scale * code + min instead of scale * (code - zero).
    """

    name: FormatName
    group: int = 0
    scale: Literal["f16", "f32"] = "f32"
    has_min: bool = False

    def arguments(self) -> dict[str, int]:
        """The weight arguments of a native op (docs/native_ops.md)."""
        return {
            "format": _FORMATS.index(self.name),
            "group": self.group,
            "scale": _SCALES.index(self.scale),
            "has_min": int(self.has_min),
        }

    def layout(self, shape: tuple[int, int]) -> _native.WeightLayout:
        """Sizes for [N, K]; ValueError where no kernel has this format."""
        n, k = shape
        a = self.arguments()
        return _native.WeightLayout(
            a["format"], n, k, group=a["group"], scale=a["scale"], has_min=self.has_min
        )


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight of N outputs and K inputs in panels of 32 outputs.

    Attributes:
        shape: (N, K).
        data: uint8, contiguous, 64-byte aligned; may be a mapped file.
    """

    format: WeightFormat
    shape: tuple[int, int]
    data: NDArray[np.uint8]

    def __post_init__(self) -> None:
        needed = self.format.layout(self.shape).bytes
        if self.data.nbytes != needed:
            raise ValueError(f"{self.data.nbytes} bytes where {self.shape} needs {needed}")
        if not self.data.flags.c_contiguous or self.data.ctypes.data % _ALIGNMENT:
            raise ValueError(f"packed weights must be contiguous, at a multiple of {_ALIGNMENT}")

    def arguments(self) -> dict[str, int]:
        """Sizes and format, as native ops take them."""
        n, k = self.shape
        return {"n": n, "k": k, **self.format.arguments()}

    def unpack(self) -> NDArray[np.float32]:
        """[N, K]: exactly the values that the kernels multiply."""
        out = np.empty(self.shape, np.float32)
        layout = self.format.layout(self.shape)
        _native.unpack_rows(layout, self.data.ctypes.data, 0, self.shape[0], out.ctypes.data)
        return out

    def codes(self) -> QuantizedWeight:
        """The codes, scales and mins of an integer weight. ValueError for a dense one."""
        n, k = self.shape
        layout = self.format.layout(self.shape)
        group = self.format.group or k
        dtype = np.float16 if self.format.scale == "f16" else np.float32
        q = np.empty(self.shape, np.uint8)
        scale, low = (np.empty((n, -(-k // group)), dtype) for _ in range(2))
        _native.unpack_codes(
            layout, self.data.ctypes.data, q.ctypes.data, scale.ctypes.data, low.ctypes.data
        )
        bits = 4 if self.format.name == "i4" else 8
        minimum = low if self.format.has_min else None
        return QuantizedWeight(
            q=q, bits=bits, group=self.format.group, zero=layout.zero, scale=scale, min=minimum
        )

    def cut(self, rows: slice = slice(None), columns: slice = slice(None)) -> PackedWeight:
        """Part of the weight, in the same format: a rank's share. Copies.

        Raises ValueError where a border of columns cuts through a group of shared scales.
        """
        if self.format.name in ("f32", "bf16"):
            return _pack_dense(self.unpack()[rows, columns], self.format)
        start, stop, _ = rows.indices(self.shape[0])
        first, last, _ = columns.indices(self.shape[1])
        return _pack_codes(self.codes().rows(start, stop).columns(first, last), self.format)


def pack(weight: QuantizedWeight, dense: Literal["f32", "bf16"] = "bf16") -> PackedWeight:
    """Pack a weight for the native kernels.

    Codes are packed without loss, in the narrowest format that holds them:

        4-bit codes around 8, or around 0 with mins, in groups of 32 or multiples → i4
        all other codes that fit int8 around their zero                           → i8
        codes with one scale per output (group 0), for activations with one
        scale per row                                                             → i8
        codes in groups that no kernel has                                        → dense

    Args:
        dense: number format of dense weights.

    Raises:
        ValueError: codes do not fit their zero, or the shape is no matrix.
    """
    if len(weight.shape) != 2:
        raise ValueError(f"a packed weight is a matrix; this one has shape {weight.shape}")
    if weight.dense is not None:
        return _pack_dense(weight.dense, WeightFormat(dense))
    code_format = _format_of(weight)
    if code_format is None:
        return _pack_dense(weight.to_float32(), WeightFormat(dense))
    return _pack_codes(weight, code_format)


def _format_of(source: QuantizedWeight) -> WeightFormat | None:
    """The narrowest format for these codes, None where their groups fit no kernel's."""
    assert source.scale is not None
    has_min = source.min is not None
    if source.group == 0:
        return None if has_min else WeightFormat("i8", 0, "f32")
    fits_i4 = source.bits <= 4 and source.zero == (0 if has_min else 8)
    name: FormatName = "i4" if fits_i4 and source.group % 32 == 0 else "i8"
    for group in _GROUPS[name]:
        if source.group % group == 0:
            scale: Literal["f16", "f32"] = "f16" if source.scale.dtype == np.float16 else "f32"
            return WeightFormat(name, group, scale, has_min)
    return None


def _aligned(nbytes: int) -> NDArray[np.uint8]:
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


def _pack_dense(values: NDArray[np.generic], to: WeightFormat) -> PackedWeight:
    is_bf16 = values.dtype.name == "bfloat16"
    if not is_bf16:
        values = values.astype(np.float32, copy=False)
    if values.strides[1] != values.itemsize or values.strides[0] < 0:
        values = np.ascontiguousarray(values)
    n, k = values.shape
    layout = to.layout((n, k))
    data = _aligned(layout.bytes)
    stride = values.strides[0] // values.itemsize
    _native.pack_dense(layout, values.ctypes.data, is_bf16, stride, data.ctypes.data)
    return PackedWeight(to, (n, k), data)


def _pack_codes(source: QuantizedWeight, to: WeightFormat) -> PackedWeight:
    assert source.q is not None
    assert source.scale is not None
    assert isinstance(source.zero, int)
    n, k = source.q.shape
    layout = to.layout((n, k))
    q = np.ascontiguousarray(source.q, np.uint8)
    scale = _scales(source.scale, source.group, to, k)
    low = None if source.min is None else _scales(source.min, source.group, to, k)
    data = _aligned(layout.bytes)
    _native.pack_codes(
        layout,
        q.ctypes.data,
        k,
        source.zero,
        scale.ctypes.data,
        0 if low is None else low.ctypes.data,
        scale.shape[1],
        data.ctypes.data,
    )
    return PackedWeight(to, (n, k), data)


def _scales(
    values: NDArray[np.floating], group: int, to: WeightFormat, k: int
) -> NDArray[np.floating]:
    """One scale per kernel group, [N, ceil(K / to.group)]; larger groups are repeated."""
    dtype = np.float16 if to.scale == "f16" else np.float32
    values = values.astype(dtype, copy=False)
    if to.group and group != to.group:
        values = np.repeat(values, group // to.group, axis=1)[:, : -(-k // to.group)]
    return np.ascontiguousarray(values)
