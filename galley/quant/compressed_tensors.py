"""compressed-tensors checkpoints: of their many schemes, W8A8 in int8.

A quantised linear layer has int8 `weight` [N, K] and `weight_scale` [N, 1], value = scale * q, and
its inputs are rounded to int8 with one scale per token while the model runs. Layers on the
scheme's `ignore` list have dense weights, and their tensors say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.registry import to_float32

if TYPE_CHECKING:
    from galley.loader.tensor import RawTensor

#: What each group's `weights` and `input_activations` must say.
_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def check_scheme(config: Mapping[str, Any]) -> None:
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
        for part, wanted in (("weights", _WEIGHTS), ("input_activations", _INPUTS)):
            given = (group.get(part) if isinstance(group, Mapping) else None) or {}
            if not isinstance(given, Mapping):
                raise ModelError(f"compressed-tensors {name}.{part} is not an object")
            for key, value in wanted.items():
                if given.get(key) != value:
                    raise ModelError(
                        f"compressed-tensors {name}.{part}.{key} is {given.get(key)!r}; "
                        f"only {value!r} is supported"
                    )


def channel_int8(weight: RawTensor, scale: RawTensor) -> QuantizedWeight:
    """An int8 weight [N, K] with one scale per output [N, 1].

    `group` is 0: all of K; kernels then round activations with one scale per row.
    """
    # Adding 128 to a signed byte is flipping its top bit.
    codes = weight.data.view(np.uint8) ^ np.uint8(0x80)
    return QuantizedWeight(q=codes, bits=8, group=0, zero=128, scale=to_float32(scale))
