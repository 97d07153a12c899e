"""MXFP4 checkpoints of transformers (gpt-oss): experts of E2M1 codes in blocks of 32 inputs.

A tensor of E experts of N outputs and K inputs, called NAME where it is not quantized, is

    NAME_blocks  uint8 [E, N, K / 32, 16]   codes, two a byte, the first in the low nibble
    NAME_scales  uint8 [E, N, K / 32]       exponents plus 127

value = 2 ** (exponent - 127) * e2m1. All other layers are dense.
"""

from __future__ import annotations

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.fp4 import MX_GROUP, mxfp4_weight
from galley.quant.scheme import PlainScheme, Tensors

_METHOD = "mxfp4"


class MXFP4(PlainScheme):
    """`Scheme` of such checkpoints, and `ExpertScheme`."""

    def has_experts(self, name: str, tensors: Tensors) -> bool:
        return tensors.has(f"{name}_blocks")

    def read_expert(
        self, name: str, shape: tuple[int, int, int], index: int, tensors: Tensors
    ) -> QuantizedWeight:
        experts, n, k = shape
        if k % MX_GROUP:
            raise ModelError(
                f"{_METHOD}: {name} has {k} inputs, which are not groups of {MX_GROUP}"
            )
        blocks = tensors.use(f"{name}_blocks", (experts, n, k // MX_GROUP, MX_GROUP // 2))
        scales = tensors.use(f"{name}_scales", (experts, n, k // MX_GROUP))
        for raw in (blocks, scales):
            if raw.dtype != "uint8":
                raise ModelError(f"{_METHOD}: tensor {raw.name} is {raw.dtype}; uint8 is needed")
        return mxfp4_weight(blocks.data[index].reshape(n, -1), scales.data[index])
