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

value[n, k] = scale * (code - zero). Activations are not rounded. Layers without `qweight`, those of
`modules_to_not_convert`, are dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.packed_ints import int32_of, unpack_ints
from galley.quant.registry import to_float32
from galley.quant.scheme import PlainScheme, Tensors

_BITS, _PER_NUMBER = 4, 8
_LAYOUTS = ("gemm", "gemv")
#: Where in a number each of its eight outputs lies.
_PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])


class AWQ:
    """`Scheme` of AWQ checkpoints."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        # AutoAWQ's names, then those of the original AWQ repository.
        self._group = config.get("group_size", config.get("q_group_size", 128))
        if type(self._group) is not int or (self._group != -1 and self._group < 1):
            raise ModelError(
                f"awq: group_size is {self._group!r}; -1 or a positive number is needed"
            )
        for key, value, supported in (
            ("bits", config.get("bits", config.get("w_bit", _BITS)), _BITS),
            ("zero_point", config.get("zero_point", True), True),
        ):
            if value != supported:
                raise ModelError(f"awq: {key} is {value!r}; {supported!r} is supported")
        self._layout = str(config.get("version", "gemm")).lower()
        if self._layout not in _LAYOUTS:
            raise ModelError(
                f"awq: version is {self._layout!r}; {', '.join(map(repr, _LAYOUTS))} are supported"
            )

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        if not tensors.has(f"{name}.qweight"):
            return PlainScheme().read(name, shape, tensors)
        n, k = shape
        group = k if self._group == -1 else self._group
        packed = n if self._layout == "gemm" else k
        if packed % _PER_NUMBER or k % group:
            raise ModelError(
                f"awq: {name} of shape {[n, k]} is not whole numbers of {_PER_NUMBER} codes and "
                f"groups of {group}"
            )
        if self._layout == "gemv":
            return self._gemv(name, shape, group, tensors)
        per_number = n // _PER_NUMBER
        codes = int32_of("awq", tensors.use(f"{name}.qweight", (k, per_number)))
        zeros = int32_of("awq", tensors.use(f"{name}.qzeros", (k // group, per_number)))
        return QuantizedWeight(
            q=_in_order(codes).T,
            bits=_BITS,
            group=0 if self._group == -1 else group,
            zero=_in_order(zeros).T,
            scale=to_float32(tensors.use(f"{name}.scales", (k // group, n))).T,
            activations="as_is",
        )

    def _gemv(
        self, name: str, shape: tuple[int, int], group: int, tensors: Tensors
    ) -> QuantizedWeight:
        n, k = shape
        groups, zeros, scales = k // group, f"{name}.qzeros", f"{name}.scales"
        for stored, each in ((zeros, _PER_NUMBER), (scales, 1)):
            if tensors.has(stored) and tensors.shape(stored)[-1] * each < groups:
                raise ModelError(f"awq: tensor {stored} has no place for {groups} groups")
        width = tensors.shape(zeros)[-1] if tensors.has(zeros) else 0
        padded = tensors.shape(scales)[-1] if tensors.has(scales) else 0
        codes = int32_of("awq", tensors.use(f"{name}.qweight", (n, k // _PER_NUMBER)))
        zero = unpack_ints(int32_of("awq", tensors.use(zeros, (n, width))), _BITS)
        return QuantizedWeight(
            q=unpack_ints(codes, _BITS),
            bits=_BITS,
            group=0 if self._group == -1 else group,
            zero=zero[:, :groups],
            scale=to_float32(tensors.use(scales, (n, padded)))[:, :groups],
            activations="as_is",
        )


def _in_order(numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
    """int32 [rows, N / 8] → codes uint8 [rows, N], in order of the outputs."""
    codes = unpack_ints(numbers, _BITS)
    return codes.reshape(len(codes), -1, _PER_NUMBER)[:, :, _PLACES].reshape(codes.shape)
