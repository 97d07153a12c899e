"""How packed weights store their numbers: names and sizes of the formats in csrc/linear.h."""

from __future__ import annotations

from typing import Any, Literal, get_args

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.kernels import _native
from galley.kernels.nested_scales import OUTPUTS, RUN

FormatName = Literal["f32", "bf16", "i4", "i5", "i6", "i8", "i2", "i3", "i1", "t2"]
ScaleName = Literal[
    "f16", "f32", "bf16", "u6", "i8", "u4", "s6", "e8m0", "e4m3", "halves", "nested"
]
OffsetName = Literal["zero", "min", "zeros", "fractions"]
TableName = Literal["none", "levels", "floats"]
#: Precision of a linear layer's input, as the weight's format prescribes it: as_is = not rounded
#: below 16 bits, bf16 = rounded to that where AMX multiplies it, token = int8 with one scale per
#: token, group = integers with a scale per 32 values whose width the backend chooses.
Activations = Literal["as_is", "bf16", "token", "group"]

#: E4M3 numbers.
E4M3: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fn)
#: The value of each of its codes.
E4M3_VALUES = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
#: Number format of scales and mins in arrays; of powers of two the exponent plus 128.
SCALE_DTYPES: dict[ScaleName, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "u6": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
    "u4": np.dtype(np.uint8),
    "s6": np.dtype(np.int8),
    "e8m0": np.dtype(np.uint8),
    "e4m3": E4M3,
    "halves": np.dtype(np.float32),
    "nested": np.dtype(np.uint8),
}
#: Scales of two levels: the number format of the upper one.
SUPER_DTYPES: dict[ScaleName, np.dtype[Any]] = {
    **dict.fromkeys(("u6", "i8", "u4", "s6"), np.dtype(np.float16)),
    "e4m3": np.dtype(np.float32),
}


class WeightFormat(msgspec.Struct, frozen=True):
    """How the numbers of a packed weight are stored (csrc/linear.h).

    Attributes:
        name: f32 and bf16 are dense; the others are codes of so many bits, with scales; t2 those
            below 3, five a byte.
        group: values along K that share a scale: 16, a multiple of 32, or 0 = all of them.
        zero: the code of level 0, if `offset` is "zero" or "min" and there is no table.
        scale: number format of scales and mins; u6, i8, u4 and s6 are integers times an f16 per 256
            values, e8m0 powers of two, e4m3 times an f32 per output, halves an f32 of 16 outputs,
            nested codes of levels (`nested_scales`).
        offset: one zero for all codes; besides it a min per scale; a zero per scale, whole or
            fractional (in the number format of scales).
        table: levels of codes: int8 or float32; none = affine.
        activations: precision of the layer's input, as in `QuantizedWeight`.
        ordered: the inputs have an order of their own: int32 [K] behind the panels.
    """

    name: FormatName
    group: int = 0
    zero: int = 0
    scale: ScaleName = "f16"
    offset: OffsetName = "zero"
    table: TableName = "none"
    activations: Activations = "group"
    ordered: bool = False

    def __post_init__(self) -> None:
        if type(self.group) is not int or type(self.zero) is not int:
            raise ValueError("group and zero of a weight format are whole numbers")
        for value, names in (
            (self.name, FormatName),
            (self.scale, ScaleName),
            (self.offset, OffsetName),
            (self.table, TableName),
            (self.activations, Activations),
        ):
            if value not in get_args(names):
                raise ValueError(f"{value!r} in a weight format; known: {get_args(names)}")

    @property
    def is_dense(self) -> bool:
        return self.name in ("f32", "bf16")

    def arguments(self) -> dict[str, int]:
        """The weight arguments of a native op (docs/native_ops.md)."""
        return {
            "format": _native.Format[self.name],
            "group": self.group,
            "zero": self.zero,
            "scale": _native.Scale[self.scale],
            "offset": _native.Offset[self.offset],
            "table": _native.CodeTable[self.table],
        }

    def num_bytes(self, shape: tuple[int, int]) -> int:
        """Bytes of a packed weight [N, K]; ValueError where no kernel has this format."""
        return int(self.layout(shape).bytes) + (4 * shape[1] if self.ordered else 0)

    def layout(self, shape: tuple[int, int]) -> _native.WeightLayout:
        """Sizes for [N, K]; ValueError where no kernel has this format."""
        n, k = shape
        a = self.arguments()
        return _native.WeightLayout(a.pop("format"), n, k, **a)

    def arrays(self, shape: tuple[int, int]) -> dict[str, NDArray[Any] | None]:
        """Arrays for the codes of a weight [N, K] and what belongs to them, by native code's names;
        None for those that the format does not have. ValueError for a dense one."""
        if self.is_dense:
            raise ValueError("a dense weight has no codes")
        layout, n, bits = self.layout(shape), shape[0], int(self.name[1:])
        per_scale, per_span = (n, layout.scales), (n, layout.spans)
        dtype, upper = SCALE_DTYPES[self.scale], SUPER_DTYPES.get(self.scale)
        has_min = self.offset in ("min", "fractions")
        super_scale = None if upper is None else np.empty(per_span, upper)
        super_min = np.empty(per_span, upper) if upper is not None and has_min else None
        if self.scale == "nested":
            super_scale = np.empty((-(-n // OUTPUTS), layout.factors), np.float32)
            super_min = np.empty(n, np.int32)
        return {
            "q": np.empty(shape, np.uint8),
            "scale": np.empty(per_scale, dtype),
            "min": np.empty(per_scale, dtype) if has_min else None,
            "zeros": np.empty(per_scale, np.uint8) if self.offset == "zeros" else None,
            "super_scale": super_scale,
            "super_min": super_min,
            "table": _table(self.table, 2**bits + (RUN if self.scale == "nested" else 0)),
        }


def _table(name: TableName, floats: int) -> NDArray[Any] | None:
    if name == "none":
        return None
    return np.empty(16, np.int8) if name == "levels" else np.empty(floats, np.float32)


def addresses(arrays: dict[str, NDArray[Any] | None]) -> dict[str, int]:
    """Of each array; 0 for those that are not there."""
    return {name: 0 if a is None else a.ctypes.data for name, a in arrays.items()}
