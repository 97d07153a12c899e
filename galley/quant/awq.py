"""AWQ checkpoints in the "gemm" layout: 4-bit codes with a scale and a zero per group of inputs.

A quantized layer of N outputs and K inputs has

    qweight  int32   [K, N / 8]           codes, eight consecutive outputs per number
    scales   float16 [K / group, N]
    qzeros   int32   [K / group, N / 8]   zeros, as the codes

The outputs of a number lie, lowest bits first, in the order 0 2 4 6 1 3 5 7.

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
            ("version", str(config.get("version", "gemm")).lower(), "gemm"),
        ):
            if value != supported:
                raise ModelError(f"awq: {key} is {value!r}; {supported!r} is supported")

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        if not tensors.has(f"{name}.qweight"):
            return PlainScheme().read(name, shape, tensors)
        n, k = shape
        group = k if self._group == -1 else self._group
        if n % _PER_NUMBER or k % group:
            raise ModelError(
                f"awq: {name} of shape {[n, k]} is not whole numbers of {_PER_NUMBER} outputs and "
                f"groups of {group}"
            )
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


def _in_order(numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
    """int32 [rows, N / 8] → codes uint8 [rows, N], in order of the outputs."""
    codes = unpack_ints(numbers, _BITS)
    return codes.reshape(len(codes), -1, _PER_NUMBER)[:, :, _PLACES].reshape(codes.shape)
