"""Quark checkpoints: FP8, int8 and MXFP4, which the tensors of a layer say themselves.

A quantized layer of N outputs and K inputs has

    FP8     weight float8_e4m3fn [N, K], weight_scale: one number or [N]
    int8    weight int8 [N, K], weight_scale: one number or [N]
    MXFP4   weight uint8 [N, K / 2], two codes a byte, the first in the low nibble;
            weight_scale uint8 [N, K / 32], exponents plus 127

value = weight_scale * number. int8 weights with a scale per output have int8 inputs with a scale
per token where the configuration rounds inputs to int8; other inputs are not rounded. Layers that
are excluded have dense weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.fp4 import mxfp4_weight, use_codes, use_exponents
from galley.quant.fp8 import E4M3, e4m3_weight, use_input_scale
from galley.quant.registry import read_weight
from galley.quant.scales import ScaleBlock
from galley.quant.scheme import Tensors

_METHOD = "quark"
_DTYPES = ("fp8_e4m3", "int8", "fp4")


class Quark:
    """`Scheme` of Quark checkpoints."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        every = _table("global_quant_config", config.get("global_quant_config"))
        for where, table in (("global_quant_config", every), *_layer_tables(config)):
            weight = _table(f"{where}.weight", table.get("weight"))
            dtype = weight.get("dtype")
            if weight and dtype not in _DTYPES:
                raise ModelError(
                    f"{_METHOD}: {where}.weight.dtype is {dtype!r}; {', '.join(_DTYPES)} are "
                    "supported"
                )
        inputs = _table("global_quant_config.input_tensors", every.get("input_tensors"))
        self._rounds_inputs = inputs.get("dtype") == "int8"

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        weight, scale = f"{name}.weight", f"{name}.weight_scale"
        if not tensors.has(scale):
            return read_weight(tensors.use(weight, shape))
        use_input_scale(name, tensors)
        stored = tensors.shape(weight)
        if len(stored) == 2 and stored[1] * 2 == shape[1]:
            return mxfp4_weight(
                use_codes(_METHOD, weight, shape, tensors),
                use_exponents(_METHOD, scale, shape, tensors),
            )
        raw = tensors.use(weight, shape)
        block = ScaleBlock(0, 0) if tensors.shape(scale) in ((), (1,)) else ScaleBlock(1, 0)
        scales = block.read(scale, shape, tensors)
        if raw.dtype == E4M3:
            return e4m3_weight(raw.data, scales, 0)
        if raw.dtype != "int8":
            raise ModelError(f"{_METHOD}: tensor {weight} is {raw.dtype}; {E4M3} or int8 is needed")
        zeros = f"{name}.weight_zero_point"
        if tensors.has(zeros) and tensors.use(zeros, tensors.shape(zeros)).data.any():
            raise ModelError(f"{_METHOD}: tensor {zeros} is not 0; symmetric weights are supported")
        return QuantizedWeight(
            q=raw.data.view(np.uint8) ^ np.uint8(0x80),  # plus 128
            bits=8,
            group=0,
            zero=128,
            scale=scales,
            activations="token" if self._rounds_inputs else "as_is",
        )


def _layer_tables(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    layers = _table("layer_quant_config", config.get("layer_quant_config"))
    return [
        (f"layer_quant_config.{name}", _table(f"layer_quant_config.{name}", table))
        for name, table in layers.items()
    ]


def _table(where: str, value: object) -> Mapping[str, Any]:
    """An object of the configuration; null is an empty one."""
    if not isinstance(value, Mapping | None):
        raise ModelError(f"{_METHOD}: {where} is not an object")
    return value or {}
