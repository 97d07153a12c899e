"""compressed-tensors checkpoints: of their many schemes, W8A8 in int8.

A quantized linear layer has int8 `weight` [N, K] and `weight_scale` [N, 1], value = scale * q, and
its inputs are rounded to int8 with one scale per token. Layers on the scheme's `ignore` list have
dense weights, which their tensors' dtype says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.registry import read_weight, to_float32
from galley.quant.scheme import Tensors

#: What each group's `weights` and `input_activations` must say.
_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def _check(config: Mapping[str, Any]) -> None:
    """Raise ModelError for a `quantization_config` that is not int8 W8A8; names the value."""
    groups = config.get("config_groups")
    if config.get("format") != "int-quantized" or not isinstance(groups, Mapping) or not groups:
        raise ModelError(
            f"compressed-tensors format {config.get('format')!r} is not supported; "
            "'int-quantized' (W8A8) is"
        )
    if config.get("kv_cache_scheme"):
        raise ModelError("compressed-tensors: kv_cache_scheme is not supported")
    for name, group in groups.items():
        for part, required in (("weights", _WEIGHTS), ("input_activations", _INPUTS)):
            values = (group.get(part) if isinstance(group, Mapping) else None) or {}
            if not isinstance(values, Mapping):
                raise ModelError(f"compressed-tensors {name}.{part} is not an object")
            for key, value in required.items():
                if values.get(key) != value:
                    raise ModelError(
                        f"compressed-tensors {name}.{part}.{key} is {values.get(key)!r}; "
                        f"only {value!r} is supported"
                    )


class CompressedTensors:
    """`Scheme` of W8A8 checkpoints."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        _check(config)

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        weight = tensors.use(f"{name}.weight", shape)
        if weight.dtype != "int8":
            return read_weight(weight)
        return QuantizedWeight(
            # Adding 128 to a signed byte is flipping its top bit.
            q=weight.data.view(np.uint8) ^ np.uint8(0x80),
            bits=8,
            group=0,
            zero=128,
            scale=to_float32(tensors.use(f"{name}.weight_scale", (shape[0], 1))),
            activations="token",
        )
