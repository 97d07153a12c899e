"""GPTQ checkpoints: 2-, 3-, 4- and 8-bit codes with a scale and a zero per group of inputs.

A quantized layer of N outputs and K inputs has, with P = 32 / bits codes per int32 (of 3 bits: 32
codes in three numbers), lowest bits first:

    qweight  int32   [K / P, N]       codes, P consecutive inputs per number
    scales   float16 [K / group, N]
    qzeros   int32   [K / group, N / P]  zeros minus 1 (modulo 2**bits), P consecutive outputs per
                                      number; "gptq_v2" checkpoints hold the zeros themselves
    g_idx    int32   [K]              group of each input; k // group without activation order

value[n, k] = scale * (code - zero). Activations are not rounded. Layers without
`qweight` are dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.input_order import input_order
from galley.quant.packed_ints import int32_of, unpack_ints
from galley.quant.registry import read_weight
from galley.quant.scheme import PlainScheme, Tensors

_BITS = (2, 3, 4, 8)


class GPTQ:
    """`Scheme` of GPTQ checkpoints. Layers say themselves whether they have activation order."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._bits = _choice(config, "bits", _BITS)
        self._group = config.get("group_size", 128)
        if type(self._group) is not int or (self._group != -1 and self._group < 1):
            raise ModelError(
                f"gptq: group_size is {self._group!r}; -1 or a positive number is needed"
            )
        _choice(config, "desc_act", (False, True, None))
        version = _choice(config, "checkpoint_format", ("gptq", "gptq_v2", None))
        #: Difference of a zero and its stored number.
        self._zero_offset = 0 if version == "gptq_v2" else 1

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        if not tensors.has(f"{name}.qweight"):
            return PlainScheme().read(name, shape, tensors)
        n, k = shape
        group = k if self._group == -1 else self._group
        together = 32 if self._bits == 3 else 32 // self._bits  # codes in whole numbers
        if k % together or n % together or k % group:
            raise ModelError(
                f"gptq: {name} of shape {[n, k]} is not whole numbers of {together} codes and "
                f"groups of {group}"
            )
        groups = k // group
        codes = int32_of("gptq", tensors.use(f"{name}.qweight", (k * self._bits // 32, n)))
        zeros = int32_of("gptq", tensors.use(f"{name}.qzeros", (groups, n * self._bits // 32)))
        scales = read_weight(tensors.use(f"{name}.scales", (groups, n))).to_float32()
        order = None
        if tensors.has(f"{name}.g_idx"):
            order = input_order("gptq", f"{name}.g_idx", k, group, tensors)
        q = unpack_ints(codes.T, self._bits)
        zero = unpack_ints(zeros, self._bits).T + np.uint8(self._zero_offset)
        return QuantizedWeight(
            q=q if order is None else q[:, order],
            bits=self._bits,
            group=0 if self._group == -1 else group,
            zero=zero & np.uint8(2**self._bits - 1),
            scale=scales.T,
            order=order,
            activations="as_is",
        )


def _choice(config: Mapping[str, Any], key: str, supported: tuple[Any, ...]) -> Any:
    value = config.get(key)
    if value not in supported:
        shown = ", ".join(repr(v) for v in supported if v is not None)
        raise ModelError(f"gptq: {key} is {value!r}; {shown} is supported")
    return value
