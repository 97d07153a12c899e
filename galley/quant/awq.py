"""AWQ checkpoints: 4-bit codes with a scale and a zero per group of inputs.

A quantized layer of N outputs and K inputs has, in the "gemm" layout,

    qweight  int32   [K, N / 8]           codes, eight consecutive outputs per number
    scales   float16 [K / group, N]
    qzeros   int32   [K / group, N / 8]   zeros, as the codes

The outputs of a number lie, lowest bits first, in the order 0 2 4 6 1 3 5 7. In the "gemv" layout,
with numbers that lie in order and rows that are padded to W numbers,

    qweight  int32   [N, K / 8]           codes, eight consecutive inputs per number
    scales   float16 [N, 8 * W]           of K / group
    qzeros   int32   [N, W]               zeros, as the codes

In the "gemv_fast" layout, whose 16-bit numbers hold a code of each of four places of
`_fast_codes`,

    qweight  int16   [N / 4, K]
    scales   float16 [8 * W, N]       of K / group
    qzeros   float16 [8 * W, N]       minus the products of scales and zeros

In the "marlin" layout, without zeros (all are 8), in tiles of 16 inputs and 16 outputs as tensor
cores read them,

    qweight  int32   [K / 16, 2 * N]
    scales   float16 [K / group, N]

value[n, k] = scale * (code - zero). Activations are not rounded. Layers without `qweight`, those of
`modules_to_not_convert`, are dense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.packed_ints import int32_of, unpack_ints
from galley.quant.registry import to_float32
from galley.quant.scheme import PlainScheme, Tensors

_BITS, _PER_NUMBER = 4, 8
#: The outputs of a number, lowest bits first, and where each of them lies.
_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_PLACES = np.argsort(_ORDER)
#: Marlin's: inputs and outputs of a tile; scales of 64 outputs (of 32, with one per output).
_TILE = 16
_SCALE_PLACES = np.arange(64).reshape(8, 8).T.ravel()
_ROW_SCALE_PLACES = np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).ravel()


class AWQ:
    """`Scheme` of AWQ checkpoints."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        # AutoAWQ's names, then those of the original AWQ repository.
        self._group = config.get("group_size", config.get("q_group_size", 128))
        if type(self._group) is not int or (self._group != -1 and self._group < 1):
            raise ModelError(
                f"awq: group_size is {self._group!r}; -1 or a positive number is needed"
            )
        self._layout = str(config.get("version", "gemm")).lower()
        if self._layout not in _LAYOUTS:
            shown = ", ".join(map(repr, _LAYOUTS))
            raise ModelError(f"awq: version is {self._layout!r}; {shown} are supported")
        for key, value, supported in (
            ("bits", config.get("bits", config.get("w_bit", _BITS)), _BITS),
            ("zero_point", config.get("zero_point", True), self._layout != "marlin"),
        ):
            if value != supported:
                raise ModelError(
                    f"awq: {key} is {value!r}; {supported!r} is supported by version {self._layout}"
                )

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        if not tensors.has(f"{name}.qweight"):
            return PlainScheme().read(name, shape, tensors)
        n, k = shape
        group = k if self._group == -1 else self._group
        read, outputs, inputs = _LAYOUTS[self._layout]
        if n % outputs or k % inputs or k % group:
            raise ModelError(
                f"awq: {name} of shape {[n, k]} is not whole blocks of {[outputs, inputs]} codes "
                f"and groups of {group}"
            )
        return replace(read(name, shape, group, tensors), group=0 if group == k else group)


def _weight(q: NDArray[np.uint8], scale: NDArray[np.float32], **fields: Any) -> QuantizedWeight:
    return QuantizedWeight(q=q, bits=_BITS, scale=scale, activations="as_is", **fields)


def _gemm(name: str, shape: tuple[int, int], group: int, tensors: Tensors) -> QuantizedWeight:
    n, k = shape
    per_number = n // _PER_NUMBER
    codes = int32_of("awq", tensors.use(f"{name}.qweight", (k, per_number)))
    zeros = int32_of("awq", tensors.use(f"{name}.qzeros", (k // group, per_number)))
    scale = to_float32(tensors.use(f"{name}.scales", (k // group, n))).T
    return _weight(_in_order(codes).T, scale, zero=_in_order(zeros).T)


def _gemv(name: str, shape: tuple[int, int], group: int, tensors: Tensors) -> QuantizedWeight:
    n, k = shape
    groups, zeros, scales = k // group, f"{name}.qzeros", f"{name}.scales"
    width = _padded(zeros, 1, groups, tensors, each=_PER_NUMBER)
    padded = _padded(scales, 1, groups, tensors)
    codes = int32_of("awq", tensors.use(f"{name}.qweight", (n, k // _PER_NUMBER)))
    zero = unpack_ints(int32_of("awq", tensors.use(zeros, (n, width))), _BITS)
    scale = to_float32(tensors.use(scales, (n, padded)))[:, :groups]
    return _weight(unpack_ints(codes, _BITS), scale, zero=zero[:, :groups])


def _gemv_fast(name: str, shape: tuple[int, int], group: int, tensors: Tensors) -> QuantizedWeight:
    n, k = shape
    groups, minimums, scales = k // group, f"{name}.qzeros", f"{name}.scales"
    scale, least = (
        to_float32(tensors.use(stored, (_padded(stored, 0, groups, tensors), n)))[:groups].T
        for stored in (scales, minimums)
    )
    codes = tensors.use(f"{name}.qweight", (n // 4, k))
    if codes.dtype != "int16":
        raise ModelError(f"awq: tensor {codes.name} is {codes.dtype}; int16 is needed")
    return _weight(_fast_codes(codes.data), scale, min=least)


def _marlin(name: str, shape: tuple[int, int], group: int, tensors: Tensors) -> QuantizedWeight:
    n, k = shape
    numbers = int32_of("awq", tensors.use(f"{name}.qweight", (k // _TILE, 2 * n)))
    stored = to_float32(tensors.use(f"{name}.scales", (k // group, n)))
    places = _SCALE_PLACES if group < k else _ROW_SCALE_PLACES
    scale = _restored(stored, places).reshape(k // group, n)
    tiles = _restored(unpack_ints(numbers, _BITS), _MARLIN_PLACES)
    codes = tiles.reshape(k // _TILE, n // _TILE, _TILE, _TILE).transpose(1, 3, 0, 2)
    return _weight(codes.reshape(n, k), scale.T, zero=8)


def _padded(name: str, axis: int, groups: int, tensors: Tensors, each: int = 1) -> int:
    """How many numbers, of `each` groups, the tensor has along an axis; 0 if there is none."""
    if not tensors.has(name):
        return 0
    shape = tensors.shape(name)
    if len(shape) != 2 or shape[axis] * each < groups:
        raise ModelError(f"awq: tensor {name} has no place for {groups} groups")
    return shape[axis]


def _fast_codes(numbers: NDArray[np.int16]) -> NDArray[np.uint8]:
    """int16 [N / 4, K] → codes [N, K].

    64 inputs of four outputs lie together, an output after the other, and of 32 inputs number
    8 a + 4 b + c is input 8 c + 2 a + b.
    """
    quarter, k = numbers.shape
    pairs = np.ascontiguousarray(numbers, "<i2").view(np.uint8)
    codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(quarter, k // 64, 4, 64)
    rows = codes.transpose(0, 2, 1, 3).reshape(4 * quarter, k // 32, 4, 2, 4)
    return rows.transpose(0, 1, 4, 2, 3).reshape(4 * quarter, k)


def _restored(values: NDArray[Any], places: NDArray[np.intp]) -> NDArray[Any]:
    """Undo a permutation of each run of values: number i of a run belongs to place places[i]."""
    runs = values.reshape(-1, len(places))
    restored = np.empty_like(runs)
    restored[:, places] = runs
    return restored


def _marlin_places() -> NDArray[np.intp]:
    """Of four tiles, [4][16 inputs][16 outputs], in the order of the codes."""
    thread, tile, half, pair = np.ix_(range(32), range(4), range(2), range(4))
    row = 2 * (thread % 4) + pair % 2 + 8 * (pair // 2)
    places = 256 * tile + 16 * row + thread // 4 + 8 * half
    # Of eight codes of a thread, the even ones lie in the lower half of a number.
    return places.reshape(-1, 8)[:, _ORDER].ravel()


_MARLIN_PLACES = _marlin_places()

#: Layout → its reader, and the outputs and inputs that codes lie together of.
_LAYOUTS: dict[str, tuple[Callable[..., QuantizedWeight], int, int]] = {
    "gemm": (_gemm, _PER_NUMBER, 1),
    "gemv": (_gemv, 1, _PER_NUMBER),
    "gemv_fast": (_gemv_fast, 4, 64),
    "marlin": (_marlin, 64, _TILE),
}


def _in_order(numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
    """int32 [rows, N / 8] → codes uint8 [rows, N], in order of the outputs."""
    codes = unpack_ints(numbers, _BITS)
    return codes.reshape(len(codes), -1, _PER_NUMBER)[:, :, _PLACES].reshape(codes.shape)
